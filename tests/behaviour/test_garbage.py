"""A request leaves nothing for the garbage collector, whose runs stop all streams of a process."""

from __future__ import annotations

import pytest

from tests.behaviour.chat_client import Caller, user
from tests.behaviour.raw_http import Wire
from tests.cycles import found_cycles
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import Served


@pytest.mark.parametrize("is_stream", [False, True], ids=["answer", "stream"])
async def test_request_leaves_no_cycles(served: Served, upstream: FakeUpstream, is_stream: bool) -> None:
    upstream.reply(*(text("Hello") for _ in range(6)))
    async with Wire(served) as wire:
        await wire.ask(stream=is_stream)
        with found_cycles() as found:
            for number in range(5):
                response = await wire.ask(stream=is_stream, messages=[user(f"Hi {number}")])
                assert response.status_code == 200
            del response

    assert found == {}


async def test_turn_with_a_handoff_and_a_tool_leaves_no_cycles(
    served: Served, upstream: FakeUpstream
) -> None:
    def script() -> None:
        upstream.reply(
            calls(("transfer_to_sales", {"reason": "wants a rocket"})),
            calls(("execute_order", {"product": "Rocket", "price": 10})),
            text("Ordered"),
        )

    script()
    await Caller(served).ask([user("A rocket, now")])
    with found_cycles() as found:
        script()
        async with Wire(served) as wire:
            response = await wire.ask(messages=[user("A second rocket")])
            assert response.status_code == 200
        del response

    assert found == {}
