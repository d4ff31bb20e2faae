"""Background responses, resumed streams and cancelled ones."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.behaviour.chat_client import shape_of
from tests.behaviour.responses_client import (
    FORECAST,
    SOLD,
    ended,
    http,
    sold,
)
from tests.fakes.upstream import FakeUpstream, calls, error, text
from tests.server import Served, serve

# --- in the background ---------------------------------------------------------------------------------------


async def test_a_response_in_the_background_is_retrieved_later(
    served: Served, upstream: FakeUpstream
) -> None:
    held = asyncio.Event()
    upstream.reply(text("Hello", chunks=["Hel", held, "lo"]))
    client = served.client()

    begun = await client.responses.create(model="shop", input="Hi", background=True)
    await upstream.received(1)
    running = await client.responses.retrieve(begun.id)
    held.set()

    async with http(served) as plain:
        final = await ended(plain, begun.id)
    assert [(r.status, r.output, r.background) for r in (begun, running)] == [
        ("queued", [], True),
        ("in_progress", [], True),
    ]
    assert (final.status, final.output_text, final.background) == ("completed", "Hello", True)


async def test_a_response_in_the_background_is_cancelled(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello there").hang(after=2))
    client = served.client()
    begun = await client.responses.create(model="shop", input="Hi", background=True)
    await upstream.received(1)

    cancelled = await client.responses.cancel(begun.id)
    again = await client.responses.cancel(begun.id)

    await upstream.requests[0].closed()
    assert cancelled.status == again.status == "cancelled"
    assert (await client.responses.retrieve(begun.id)).to_dict() == again.to_dict()


async def test_a_stream_in_the_background_outlives_its_reader(served: Served, upstream: FakeUpstream) -> None:
    held = asyncio.Event()
    upstream.reply(text("Hello", chunks=["Hel", held, "lo"]))
    seen: list[Any] = []
    stream = await served.client().responses.create(model="shop", input="Hi", background=True, stream=True)
    async for event in stream:
        seen.append(event)
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    held.set()

    response_id = seen[0].response.id
    async with http(served) as client:
        final = await ended(client, response_id)
    rest = await served.client().responses.retrieve(
        response_id, stream=True, starting_after=seen[-1].sequence_number
    )
    deltas = [event.delta async for event in rest if event.type == "response.output_text.delta"]
    assert [event.type for event in seen[:3]] == [
        "response.created",
        "response.queued",
        "response.in_progress",
    ]
    assert (final.output_text, deltas) == ("Hello", ["lo"])


async def test_a_failure_in_the_background_is_in_the_response(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400, message="no such thing"))
    begun = await served.client().responses.create(model="shop", input="Hi", background=True)

    async with http(served) as client:
        final = await ended(client, begun.id)

    assert (final.status, final.output, final.usage is not None) == ("failed", [], True)
    assert final.error is not None
    assert (final.error.code, final.error.type) == ("invalid_prompt", "upstream_bad_request")


async def test_a_running_response_cannot_be_the_previous_response(
    served: Served, upstream: FakeUpstream
) -> None:
    held = asyncio.Event()
    upstream.reply(text("Hello", chunks=["Hel", held, "lo"]))
    client = served.client()
    begun = await client.responses.create(model="shop", input="Hi", background=True)

    with pytest.raises(openai.ConflictError) as busy:
        await client.responses.create(model="shop", input="Go on", previous_response_id=begun.id)
    with pytest.raises(openai.BadRequestError, match="in progress"):
        await client.responses.delete(begun.id)
    held.set()

    assert busy.value.code == "conversation_busy"
    async with http(served) as plain:
        await ended(plain, begun.id)


# --- streams that survive ------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_live", [True, False], ids=["while it runs", "after a restart"])
async def test_a_stream_resumes_after_every_event(
    tmp_path: Path, upstream: FakeUpstream, is_live: bool
) -> None:
    held = asyncio.Event()
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "wants é"})),
        text("What colour?", chunks=["What ", held, "colour?"], reasoning="hm"),
    )
    async with serve(tmp_path, upstream.base_url) as served, http(served) as client:
        begun = await served.client().responses.create(
            model="shop", input="I want a rocket", background=True, tools=[FORECAST]
        )
        path = f"/responses/{begun.id}?stream=true"
        reading = asyncio.create_task(client.get(path))
        await upstream.received(2)
        held.set()
        whole = (await reading).text
        frames = whole.split("\n\n")[:-1]
        if is_live:
            rests = [(await client.get(f"{path}&starting_after={n}")).text for n in range(len(frames))]
    if not is_live:
        async with serve(tmp_path, upstream.base_url) as served, http(served) as client:
            rests = [(await client.get(f"{path}&starting_after={n}")).text for n in range(len(frames))]
            assert (await client.get(path)).text == whole

    assert len(frames) > 15
    assert rests == ["".join(f"{frame}\n\n" for frame in frames[n + 1 :]) for n in range(len(frames))]


async def test_the_sdk_helper_resumes_a_stream(served: Served, upstream: FakeUpstream) -> None:
    first = await sold(served, upstream)

    async with served.client().responses.stream(response_id=first.id, starting_after=5) as stream:
        numbers = [event.sequence_number async for event in stream]
        final = await stream.get_final_response()

    assert numbers[0] == 6
    assert final.output_text == "What colour?"


async def test_a_client_that_leaves_stops_its_response(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello there").hang(after=2), text("Hello"))
    client = served.client()
    stream = await client.responses.create(
        model="shop", input="Hi", stream=True, extra_headers={"X-On-Disconnect": "cancel"}
    )
    event: Any = await anext(aiter(stream))

    await stream.close()

    await upstream.requests[0].closed()
    async with http(served) as plain:
        left = await ended(plain, event.response.id)
    assert left.status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        await client.responses.create(model="shop", input="Go on", previous_response_id=left.id)


async def test_a_cancelled_stream_ends_regularly_and_can_be_continued(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello there", chunks=2).hang(after=2), text("Well?"))
    client = served.client()
    stream = await client.responses.create(model="shop", input="Hi", stream=True)
    events: list[Any] = []
    async for event in stream:
        events.append(event)
        if event.type == "response.output_text.delta":
            await client.responses.cancel(events[0].response.id)

    assert (events[-1].type, events[-1].response.status) == ("response.incomplete", "cancelled")
    items_so_far = events[-1].response.output_text
    await client.responses.create(model="shop", input="Go on", previous_response_id=events[0].response.id)
    assert shape_of(upstream) == ["system", "user:Hi", f"assistant:{items_so_far}", "user:Go on"]


async def test_a_repeated_request_is_the_same_response(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*SOLD)
    client = served.client()
    headers = {"Idempotency-Key": "once"}

    one = await client.responses.create(model="shop", input="I want a rocket", extra_headers=headers)
    two = await client.responses.with_raw_response.create(
        model="shop", input="I want a rocket", extra_headers=headers
    )

    assert two.parse().to_dict() == one.to_dict()
    assert two.headers["idempotency-replayed"] == "true"
    assert len(upstream.requests) == 2
