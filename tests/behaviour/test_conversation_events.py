"""The events of all turns of a conversation, as they were and as they come, in one stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.behaviour.chat_client import Caller, user
from tests.behaviour.test_turn_events import frames_of, get, kinds
from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


def named(conversation: str) -> dict[str, str]:
    return {"X-Conversation-Id": conversation}


class Reader:
    """One who listens."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.comments = 0
        self.ids: list[str] = []

    async def next(self) -> Any:
        """The next frame; None at the end of the stream."""
        async with asyncio.timeout(10):
            async for line in self.response.content:
                if line.startswith(b"data: "):
                    return json.loads(line[6:])
                if line.startswith(b"id: "):
                    self.ids.append(line[4:].decode().strip())
                self.comments += line.startswith(b":")
        return None

    async def until(self, *types: str) -> list[Any]:
        found = [await self.next()]
        while found[-1] is not None and found[-1]["type"] not in types:
            found.append(await self.next())
        return found


@asynccontextmanager
async def listening(
    served: Served, conversation: str, query: str = "", **headers: str
) -> AsyncIterator[Reader]:
    given = {"Authorization": "Bearer test-key", **{k.replace("_", "-"): v for k, v in headers.items()}}
    url = f"{served.base_url}/conversations/{conversation}/events{query}"
    async with aiohttp.ClientSession(headers=given) as http, http.get(url) as response:
        assert response.status == 200, await response.text()
        yield Reader(response)


async def test_past_turns_are_replayed_before_new_ones(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"), text("Red"))
    caller = Caller(served)
    first = await caller.completion([user("A rocket")], headers=named("both"))

    async with listening(served, "both") as reader:
        was = await reader.until("turn.completed")
        second = await caller.completion([user("Red, please")], headers=named("both"))
        came = await reader.until("turn.completed")

    assert {frame["turn_id"] for frame in was} == {first.id}
    assert was == frames_of((await get(served, f"/turns/{first.id}/events")).text)
    assert came == frames_of((await get(served, f"/turns/{second.id}/events")).text)
    assert came[0]["agent"] == "sales"
    assert reader.ids == [f"{f['turn_id']}.{f['position']}.{f['part']}" for f in [*was, *came]]


async def test_a_reader_resumes_after_any_event_id(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One two", chunks=2), text("Three four", chunks=2))
    caller = Caller(served)
    for content in ("1", "2"):
        await caller.completion([user(content)], headers=named("again"))
    path = "/conversations/again/events?follow=false"
    whole = (await get(served, path)).text
    ids = [line.removeprefix("id: ") for line in whole.split("\n") if line.startswith("id: ")]

    rests = [frames_of((await get(served, path, Last_Event_ID=seen)).text) for seen in ids]
    behind = frames_of((await get(served, f"{path}&starting_after={ids[0].partition('.')[0]}")).text)

    assert rests == [frames_of(whole)[number + 1 :] for number in range(len(ids))]
    assert behind == frames_of(whole)[len(ids) // 2 :]


async def test_a_running_turn_is_streamed(served: Served, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))
    pending = asyncio.create_task(Caller(served).completion([user("Hi")], headers=named("live")))
    await upstream.received(1)
    await served.running_turn()

    async with listening(served, "live", "?types=text.delta,turn.completed") as reader:
        first = await reader.next()
        rest.set()
        others = await reader.until("turn.completed")
    await pending

    assert first["data"] == {"text": "One "}
    assert [frame["type"] for frame in others] == ["text.delta", "turn.completed"]


async def test_failed_turns_and_other_branches_are_included(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), error(400), text("Another one"))
    caller = Caller(served)
    await caller.ask([user("1")], headers=named("tree"))
    with pytest.raises(openai.BadRequestError, match="provider rejected the request"):
        await caller.ask([user("2")], headers=named("tree"))
    await caller.ask([user("1")], headers=named("tree"))

    body = (
        await get(served, "/conversations/tree/events?follow=false&types=turn.completed,turn.failed")
    ).text

    assert kinds(body) == ["turn.completed", "turn.failed", "turn.completed"]


async def test_a_turn_without_stored_events_has_start_and_end(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"))
    async with serve(tmp_path, upstream.base_url) as served:
        await Caller(served).completion([user("A rocket")], headers=named("private"), store=False)
    async with serve(tmp_path, upstream.base_url) as served:
        body = (await get(served, "/conversations/private/events?follow=false")).text

    began, ended = frames_of(body)
    assert (began["type"], began["agent"]) == ("turn.started", "triage")
    assert (ended["type"], ended["data"]["finish_reason"]) == ("turn.completed", "stop")
    assert ended["data"]["usage"]["total_tokens"] > 0


async def test_turns_of_another_worker_are_streamed(tmp_path: Path, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One"), text("Two three", chunks=2).held(rest, after=2))
    async with (
        serve(tmp_path, upstream.base_url) as here,
        serve(tmp_path, upstream.base_url) as there,
    ):
        caller = Caller(there)
        await caller.ask([user("1")], headers=named("far"))
        async with listening(here, "far") as reader:
            await reader.until("turn.completed")
            pending = asyncio.create_task(caller.completion([user("2")], headers=named("far")))
            began = await reader.next()
            rest.set()
            others = await reader.until("turn.completed")
        turn_id = (await pending).id
        body = (await get(there, f"/turns/{turn_id}/events")).text

    assert [began, *others] == frames_of(body)


async def test_streams_end_properly_when_the_server_stops(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), hang(), hang())
    detached = {**named("continued"), "X-On-Disconnect": "detach"}
    async with AsyncExitStack() as readers:
        async with serve(tmp_path, upstream.base_url, shutdown_grace=0) as served:
            caller = Caller(served)
            await caller.ask([user("1")], headers=named("idle"))
            pending = [
                asyncio.create_task(Caller(served).ask([user("2")], headers=headers))
                for headers in (named("under-way"), detached)
            ]
            await upstream.received(3)
            idle, running, continued = [
                await readers.enter_async_context(listening(served, name))
                for name in ("idle", "under-way", "continued")
            ]
            await idle.until("turn.completed")
            await running.until("turn.started")
            await continued.until("turn.started")
        ends = [await one.until("nothing") for one in (idle, running, continued)]
    await asyncio.gather(*pending, return_exceptions=True)

    assert ends[0] == [None]
    assert [frame["type"] for frame in ends[1][:-1]] == ["usage", "turn.cancelled"]
    # Another worker continues it, and the reader gets the rest from there.
    assert [frame["type"] for frame in ends[2][:-1]] == ["usage"]


async def test_the_stream_of_a_deleted_conversation_ends(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"))
    await Caller(served).ask([user("1")], headers=named("gone"))

    async with listening(served, "gone") as reader:
        await reader.until("turn.completed")
        await served.client().conversations.delete("gone")

        assert await reader.next() is None


async def test_an_idle_stream_gets_keep_alives(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), text("Two"))
    async with serve(tmp_path, upstream.base_url, keep_alive_interval=0.02) as served:
        caller = Caller(served)
        await caller.ask([user("1")], headers=named("quiet"))
        async with listening(served, "quiet") as reader:
            await reader.until("turn.completed")
            while b":" not in await reader.response.content.readany():
                pass
            await caller.ask([user("2")], headers=named("quiet"))

            assert (await reader.until("turn.completed"))[-1]["agent"] == "triage"


async def test_a_conversation_without_turns_can_be_listened_to(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("One"))
    conversation = await served.client().conversations.create(
        items=[{"type": "message", "role": "user", "content": "Before"}]
    )

    async with listening(served, conversation.id) as reader:
        await Caller(served).ask([user("1")], headers=named(conversation.id))
        frames = await reader.until("turn.completed")

    assert frames[0]["type"] == "turn.started"


async def test_an_end_user_sees_own_and_unassigned_turns(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"))
    await Caller(served).ask([user("1")], headers={**named("of-anna"), "X-OpenWebUI-User-Id": "anna"})
    path = "/conversations/of-anna/events?follow=false&types=turn.completed"

    found = [
        (await get(served, path, **{"X-OpenWebUI-User-Id": person})).status_code
        for person in ("anna", "otto", "")
    ]

    assert found == [200, 404, 200]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("types=gossip", "types"),
        ("follow=maybe", "follow"),
        ("starting_after=chatcmpl-none.1.0", "starting_after"),
        ("starting_after=chatcmpl-none.x", "starting_after"),
        ("starting_after=.7", "starting_after"),
        ("starting_after=" + "x" * 5000, "starting_after"),
    ],
    ids=lambda value: value[:30],
)
async def test_bad_questions_get_clear_answers(
    query: str, param: str, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("One"))
    await Caller(served).ask([user("1")], headers=named("asked"))

    refused = await get(served, f"/conversations/asked/events?{query}")

    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert len(refused.content) < 1000


async def test_conversations_of_others_are_not_there(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"))
    await Caller(served).ask([user("1")], headers=named("mine"))

    assert (await get(served, "/conversations/mine/events", key="other")).status_code == 404
    assert (await get(served, "/conversations/nobodys/events")).status_code == 404
