"""Everything that happens in a turn, for those who want to see it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2

from tests.behaviour.asking import WEATHER, Caller, user
from tests.fakes.upstream import FakeUpstream, calls, hang, text
from tests.serving import Served, serve


async def get(served: Served, path: str, *, key: str = "test-key", **headers: str) -> httpx2.Response:
    given = {"Authorization": f"Bearer {key}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    # Without reading certificates, which takes longer than the test.
    async with httpx2.AsyncClient(base_url=served.base_url, headers=given, timeout=20, verify=False) as http:
        return await http.get(path)


def told(body: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in body.split("\n") if line.startswith("data: ")]


def kinds(body: str) -> list[str]:
    return [frame["type"] for frame in told(body)]


async def test_a_turn_tells_everything_in_order_also_after_a_restart(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "wants a rocket"}), text="One moment."),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered", chunks=1, reasoning="They said yes."),
    )
    async with serve(tmp_path, upstream.base_url) as served:
        turn_id = (await Caller(served).completion([user("A rocket, now")])).id
        live = (await get(served, f"/turns/{turn_id}/events")).text
    async with serve(tmp_path, upstream.base_url) as served:
        replayed = (await get(served, f"/turns/{turn_id}/events")).text

    assert replayed == live
    assert kinds(live) == [
        "turn.started",
        "agent.speaking",
        "text.delta",
        "text.delta",
        "usage",
        "handoff",
        "usage",
        "tool.started",
        "tool.completed",
        "agent.speaking",
        "reasoning.delta",
        "text.delta",
        "usage",
        "turn.completed",
    ]
    frames = told(live)
    handoff = next(frame for frame in frames if frame["type"] == "handoff")
    assert handoff["data"] == {"from": "triage", "to": "sales", "reason": "wants a rocket"}
    started = next(frame for frame in frames if frame["type"] == "tool.started")
    assert (started["agent"], started["data"]["name"]) == ("sales", "execute_order")
    assert json.loads(started["data"]["arguments"]) == {"product": "Rocket", "price": 10}
    times = [frame["time"] for frame in frames]
    assert times == sorted(times)
    assert frames[-1]["data"]["usage"]["total_tokens"] > 0


async def test_a_reader_goes_on_where_it_was_and_chooses_types(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"))
    turn_id = (await Caller(served).completion([user("A rocket")])).id
    whole = (await get(served, f"/turns/{turn_id}/events")).text
    ids = [line.removeprefix("id: ") for line in whole.split("\n") if line.startswith("id: ")]

    rest = (await get(served, f"/turns/{turn_id}/events", Last_Event_ID=ids[2])).text
    some = (await get(served, f"/turns/{turn_id}/events?types=handoff,turn.completed")).text

    assert told(rest) == told(whole)[3:]
    assert kinds(some) == ["handoff", "turn.completed"]


async def test_a_live_turn_is_told_as_it_happens_and_reading_does_not_keep_it_alive(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    asking = asyncio.create_task(Caller(served).completion([user("Hi")]))
    asked = await upstream.received(1)
    (turn_id,) = served.services.exchange.running_turns()
    reading = asyncio.create_task(get(served, f"/turns/{turn_id}/events"))
    await asyncio.sleep(0.1)
    asking.cancel()

    await asked.closed(within=2)
    assert kinds((await reading).text) == ["turn.started", "usage", "turn.cancelled"]


async def test_the_callers_own_tools_are_told_too(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})))
    turn_id = (await Caller(served).completion([user("Weather?")], tools=[WEATHER])).id

    body = (await get(served, f"/turns/{turn_id}/events?types=client_tool.requested,turn.completed")).text

    requested, completed = told(body)
    assert requested["data"]["name"] == "weather"
    assert completed["data"]["finish_reason"] == "tool_calls"


async def test_how_a_turn_stands_can_be_read(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"))
    caller = Caller(served)
    completion = await caller.completion([user("A rocket")])

    turn = (await get(served, f"/turns/{completion.id}")).json()

    assert (turn["status"], turn["agent"], turn["team"]) == ("completed", "sales", "shop")
    assert [use["agent"] for use in turn["usage_by_agent"]] == ["triage", "sales"]
    assert completion.usage is not None
    assert turn["usage"]["total_tokens"] == completion.usage.total_tokens
    assert turn["seconds"] >= 0
    assert turn["conversation_id"] == caller.conversation


async def test_bad_questions_get_clear_answers(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    turn_id = (await Caller(served).completion([user("Hi")])).id

    assert (await get(served, f"/turns/{turn_id}/events?types=gossip")).json()["error"]["param"] == "types"
    assert (await get(served, f"/turns/{turn_id}/events?starting_after=x")).status_code == 400
    for path in ("/turns/chatcmpl-none", "/turns/chatcmpl-none/events"):
        assert (await get(served, path)).status_code == 404
    for path in (f"/turns/{turn_id}", f"/turns/{turn_id}/events"):
        assert (await get(served, path, key="other")).status_code == 404
