"""Everything that happens in a turn, for those who want to see it."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proxy.wire.chat.completion import AnswerOptions, encode_options
from tests.behaviour.chat_client import WEATHER, Caller, user
from tests.behaviour.websocket_client import connected
from tests.fakes.turn_records import new_turn
from tests.fakes.upstream import FakeUpstream, calls, hang, text
from tests.server import Served, serve


async def get(served: Served, path: str, *, key: str = "test-key", **headers: str) -> httpx2.Response:
    given = {"Authorization": f"Bearer {key}", **{k.replace("_", "-"): v for k, v in headers.items()}}
    # Without reading certificates, which takes longer than the test.
    async with httpx2.AsyncClient(base_url=served.base_url, headers=given, timeout=20, verify=False) as http:
        return await http.get(path)


def frames_of(body: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in body.split("\n") if line.startswith("data: ")]


def kinds(body: str) -> list[str]:
    return [frame["type"] for frame in frames_of(body)]


async def test_a_turn_has_all_events_in_order_also_after_a_restart(
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
    # How many deltas a text has depends on what arrived together.
    assert [kind for kind, _ in groupby(kinds(live))] == [
        "turn.started",
        "agent.speaking",
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
    frames = frames_of(live)
    handoff = next(frame for frame in frames if frame["type"] == "handoff")
    assert handoff["data"] == {"from": "triage", "to": "sales", "reason": "wants a rocket"}
    started = next(frame for frame in frames if frame["type"] == "tool.started")
    assert (started["agent"], started["data"]["name"]) == ("sales", "execute_order")
    assert json.loads(started["data"]["arguments"]) == {"product": "Rocket", "price": 10}
    times = [frame["time"] for frame in frames]
    assert times == sorted(times)
    assert frames[-1]["data"]["usage"]["total_tokens"] > 0


async def test_a_reader_resumes_and_filters_types(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("What colour?"))
    turn_id = (await Caller(served).completion([user("A rocket")])).id
    whole = (await get(served, f"/turns/{turn_id}/events")).text
    ids = [line.removeprefix("id: ") for line in whole.split("\n") if line.startswith("id: ")]

    rest = (await get(served, f"/turns/{turn_id}/events", Last_Event_ID=ids[2])).text
    some = (await get(served, f"/turns/{turn_id}/events?types=handoff,turn.completed")).text

    assert frames_of(rest) == frames_of(whole)[3:]
    assert kinds(some) == ["handoff", "turn.completed"]


async def test_a_live_turn_is_streamed_and_an_observer_does_not_prevent_cancellation(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    pending = asyncio.create_task(
        Caller(served).completion([user("Hi")], headers={"X-On-Disconnect": "cancel"})
    )
    sent = await upstream.received(1)
    turn_id = await served.running_turn()
    reading = asyncio.create_task(get(served, f"/turns/{turn_id}/events"))
    await asyncio.sleep(0.1)
    pending.cancel()

    await sent.closed()
    assert kinds((await reading).text) == ["turn.started", "usage", "turn.cancelled"]


async def test_client_tool_calls_are_in_the_feed(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("weather", {"city": "Bonn"})))
    turn_id = (await Caller(served).completion([user("Weather?")], tools=[WEATHER])).id

    body = (await get(served, f"/turns/{turn_id}/events?types=client_tool.requested,turn.completed")).text

    requested, completed = frames_of(body)
    assert requested["data"]["name"] == "weather"
    assert completed["data"]["finish_reason"] == "tool_calls"


async def test_how_a_turn_stood_can_be_read_also_after_a_restart(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered"),
    )
    async with serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)
        completion = await caller.completion([user("A rocket")])
        path = f"/turns/{completion.id}"
        turn = (await get(served, path)).json()
        frames = frames_of((await get(served, f"{path}/events")).text)
    async with serve(tmp_path, upstream.base_url) as served:
        assert (await get(served, path)).json() == turn

    assert (turn["status"], turn["agent"], turn["team"]) == ("completed", "sales", "shop")
    assert turn["conversation_id"] == caller.conversation
    assert (turn["finish_reason"], turn["error_code"], turn["cancel_reason"]) == ("stop", None, None)
    assert [(use["agent"], use["calls"]) for use in turn["usage_by_agent"]] == [("triage", 1), ("sales", 2)]
    assert completion.usage is not None
    assert turn["usage"]["total_tokens"] == completion.usage.total_tokens
    first_text = next(frame for frame in frames if frame["type"] == "text.delta")
    assert [frames[0]["time"], first_text["time"], frames[-1]["time"]] == [
        turn[name] for name in ("created_at", "first_text_at", "finished_at")
    ]
    assert turn["seconds"] == pytest.approx(turn["finished_at"] - turn["created_at"], abs=0.002)
    assert [(did["agent"], did["model_calls"], did["tool_calls"]) for did in turn["agents"]] == [
        ("triage", 1, 0),
        ("sales", 2, 1),
    ]
    assert sum(did["seconds"] for did in turn["agents"]) == pytest.approx(turn["seconds"], abs=0.004)
    assert "progress" not in turn


async def test_the_status_of_a_running_turn_can_be_retrieved(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), hang())
    pending = asyncio.create_task(Caller(served).completion([user("A rocket")]))
    await upstream.received(2)
    turn_id = await served.running_turn()

    turn = (await get(served, f"/turns/{turn_id}")).json()
    await served.client().post(f"/turns/{turn_id}/cancel", cast_to=object)
    await pending
    stopped = (await get(served, f"/turns/{turn_id}")).json()

    assert (turn["status"], turn["agent"], turn["finished_at"], turn["seconds"]) == (
        "running",
        "sales",
        None,
        None,
    )
    assert [did["agent"] for did in turn["agents"]] == ["triage", "sales"]
    assert turn["usage"]["total_tokens"] > 0
    assert (stopped["status"], stopped["cancel_reason"], stopped["error_code"]) == (
        "cancelled",
        "requested",
        None,
    )


async def test_the_usage_of_a_turn_without_store_is_known(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    async with serve(tmp_path, upstream.base_url) as served:
        turn_id = (await Caller(served).completion([user("Hi")], store=False)).id
    async with serve(tmp_path, upstream.base_url) as served:
        turn = (await get(served, f"/turns/{turn_id}")).json()

    (use,) = turn["usage_by_agent"]
    assert (turn["status"], use["agent"], use["usage"]) == ("completed", "triage", turn["usage"])
    assert (turn["first_text_at"], turn["agents"]) == (None, [])


async def test_a_team_with_steps_reports_progress(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        question = "Generate a monthly business report for our sales performance"
        turn_id = (await Caller(served).completion([user(question)], model="business-insights")).id
        frames = frames_of((await get(served, f"/turns/{turn_id}/events")).text)
        turn = (await get(served, f"/turns/{turn_id}")).json()

    figures = [(frame["type"], frame["data"]["progress"]) for frame in frames if "progress" in frame["data"]]
    assert figures == [
        ("turn.started", 0),
        ("handoff", 25),
        ("handoff", 50),
        ("agent.speaking", 50),
        ("turn.completed", 100),
    ]
    assert turn["progress"] == 100


async def test_details_are_omitted_if_the_operator_hides_them(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "secret"})),
        calls(("execute_order", {"product": "secret", "price": 10})),
        text("Ordered", reasoning="secret"),
    )
    async with serve(tmp_path, upstream.base_url, handoff_details=False) as served:
        turn_id = (await Caller(served).completion([user("A rocket")])).id
        body = (await get(served, f"/turns/{turn_id}/events")).text
        async with connected(served, "/v1/ws", key="test-key") as client:
            await client.send({"type": "subscribe", "turn_id": turn_id})
            over_socket = await client.until("turn.completed")

    assert over_socket[1:] == frames_of(body)
    assert "secret" not in body
    assert {"handoff", "tool.started", "tool.completed", "text.delta"} <= set(kinds(body))
    assert "reasoning.delta" not in kinds(body)


async def test_event_feed_returns_204_after_the_closing_event(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    turn_id = (await Caller(served).completion([user("Hi")])).id
    path = f"/turns/{turn_id}/events"
    last = frames_of((await get(served, path)).text)[-1]

    again = await get(served, path, Last_Event_ID=f"{last['position']}.{last['part']}")

    assert (again.status_code, again.content) == (204, b"")


async def test_event_feed_of_some_types_returns_204_after_their_last_frame(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("Hi"))
    turn_id = (await Caller(served).completion([user("Hi")])).id
    path = f"/turns/{turn_id}/events?types=handoff"
    first = await get(served, path)
    [handoff] = frames_of(first.text)

    again = await get(served, path, Last_Event_ID=f"{handoff['position']}.{handoff['part']}")
    none = await get(served, f"/turns/{turn_id}/events?types=approval.requested")

    assert [answer.status_code for answer in (first, again, none)] == [200, 204, 204]


async def test_a_reader_of_an_interrupted_turn_gets_its_closing_event(served: Served) -> None:
    caller = served.services.keys.caller("Bearer test-key")
    options = encode_options(AnswerOptions(id="", created=0, model="shop"))
    lost = new_turn(
        id="chatcmpl-lost",
        caller=caller,
        options=options,
        worker="gone:1:x",
        lease_until=time.time() - 1,
    )
    await served.services.history.begin(lost)

    body = (await get(served, "/turns/chatcmpl-lost/events", Last_Event_ID="40.1")).text
    again = (await get(served, "/chat/completions/chatcmpl-lost/stream", Last_Event_ID="40")).text

    (end,) = frames_of(body)
    assert (end["type"], end["data"]["code"]) == ("turn.failed", "turn_interrupted")
    assert '"code":"turn_interrupted"' in again
    assert again.endswith("data: [DONE]\n\n")


async def test_bad_questions_get_clear_answers(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    turn_id = (await Caller(served).completion([user("Hi")])).id

    assert (await get(served, f"/turns/{turn_id}/events?types=gossip")).json()["error"]["param"] == "types"
    assert (await get(served, f"/turns/{turn_id}/events?starting_after=x")).status_code == 400
    for path in ("/turns/chatcmpl-none", "/turns/chatcmpl-none/events"):
        assert (await get(served, path)).status_code == 404
    for path in (f"/turns/{turn_id}", f"/turns/{turn_id}/events"):
        assert (await get(served, path, key="other")).status_code == 404
