"""A turn that was stopped or failed after a handoff is history: the agent that took over answers the next message."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.behaviour.chat_client import Caller, assistant, user
from tests.behaviour.counted import read_and_cut
from tests.fakes.upstream import FakeUpstream, calls, error, text
from tests.polling import until
from tests.server import Served

ASK = user("One rocket")
NAMED = {"X-Conversation-Id": "chat-1"}
FRONTEND = {"X-OpenWebUI-Chat-Id": "chat-1"}
TRANSFER = calls(("transfer_to_sales", {}))


def instructions(upstream: FakeUpstream, call: int) -> str:
    """The instructions of the agent that made this model call."""
    return str(upstream.requests[call].body["messages"][0]["content"])


def roles(upstream: FakeUpstream) -> list[str]:
    return [message["role"] for message in upstream.requests[-1].body["messages"]]


async def stop(served: Served, upstream: FakeUpstream, headers: dict[str, str]) -> None:
    """Close the connection while the agent that took over answers."""
    never = asyncio.Event()
    upstream.reply(TRANSFER, text("I sell rockets", chunks=["I sell", never, " rockets"]))
    await read_and_cut(served, {"model": "shop", "messages": [ASK], "stream": True}, headers, shown="I sell")
    turns = served.services.turns
    await until(lambda: turns.unattended == 1 or not turns.running)


@pytest.mark.parametrize("policy", ["", "cancel"])
@pytest.mark.parametrize("shown", ["I sell", "", None], ids=["beginning", "empty", "none"])
@pytest.mark.parametrize("place", [{}, FRONTEND, NAMED], ids=["no id", "frontend", "named"])
async def test_the_next_message_after_stop_goes_to_the_agent_that_took_over(
    served: Served, upstream: FakeUpstream, place: dict[str, str], shown: str | None, policy: str
) -> None:
    await stop(served, upstream, {**place, **({"X-On-Disconnect": policy} if policy else {})})
    upstream.reply(text("Here it is."))

    messages: list[Any] = [ASK, *([assistant(shown)] if shown is not None else []), user("In short")]
    answer = await Caller(served).ask(messages, headers=place)

    assert answer == "Here it is."
    assert instructions(upstream, 2) == instructions(upstream, 1) != instructions(upstream, 0)
    assert roles(upstream)[:4] == ["system", "user", "assistant", "tool"]
    assert roles(upstream)[-1] == "user"


async def test_a_client_that_appends_messages_reaches_the_agent_that_took_over(
    served: Served, upstream: FakeUpstream
) -> None:
    await stop(served, upstream, NAMED)
    upstream.reply(text("Here it is."))

    await Caller(served).ask([user("In short")], headers=NAMED)

    assert instructions(upstream, 2) == instructions(upstream, 1)


async def test_a_repeated_message_continues_behind_the_handoff(
    served: Served, upstream: FakeUpstream
) -> None:
    await stop(served, upstream, FRONTEND)
    upstream.reply(text("Here it is."))

    assert await Caller(served).ask([ASK], headers=FRONTEND) == "Here it is."
    assert instructions(upstream, 2) == instructions(upstream, 1)
    assert roles(upstream) == ["system", "user", "assistant", "tool"]


async def test_the_next_message_after_a_failure_goes_to_the_agent_that_took_over(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(TRANSFER, error(400, "no"), text("Here it is."))
    caller = Caller(served, max_retries=0)
    with pytest.raises(Exception, match="rejected"):
        await caller.ask([ASK], headers=NAMED)

    assert await caller.ask([user("Again, please")], headers=NAMED) == "Here it is."
    assert instructions(upstream, 2) == instructions(upstream, 1)
