"""One turn at a time, retries that do no harm, streams that survive."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.behaviour.chat_client import HIDDEN, Caller, agent_of, assistant, shape_of, sold, user
from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.polling import until
from tests.server import Served, serve

CHAT = {"X-Conversation-Id": "chat-1"}
HELLO = [user("Hello")]


class Wire:
    """Asks without an SDK, to see every byte."""

    def __init__(self, served: Served, key: str = "test-key") -> None:
        self.http = httpx2.AsyncClient(
            base_url=served.base_url,
            headers={"Authorization": f"Bearer {key}", "X-Event-Ids": "true"},
            timeout=20,
        )

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.aclose()

    async def ask(self, body: dict[str, Any] | None = None, **headers: str) -> httpx2.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post("/chat/completions", json={**ASK, **(body or {})}, headers=given)

    async def raw(self, body: str, **headers: str) -> httpx2.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given["Content-Type"] = "application/json"
        return await self.http.post("/chat/completions", content=body, headers=given)

    async def resume(self, turn_id: str, seen: str = "") -> httpx2.Response:
        headers = {"Last-Event-ID": seen} if seen else {}
        return await self.http.get(f"/chat/completions/{turn_id}/stream", headers=headers)


ASK = {"model": "shop", "messages": HELLO}
STREAM = {"stream": True}


def frames(body: str) -> list[str]:
    return [frame for frame in body.split("\n\n") if frame]


def content(body: str) -> str:
    """The content of a stream's frames."""
    said = ""
    for frame in frames(body):
        data = frame.split("data: ", 1)[1]
        if data != "[DONE]":
            chunk = ChatCompletionChunk.model_validate_json(data)
            said += "".join(choice.delta.content or "" for choice in chunk.choices)
    return said


def seen_last(body: str) -> str:
    """The id of the last frame that has one."""
    return [f.split("\n")[0].removeprefix("id: ") for f in frames(body) if f.startswith("id: ")][-1]


# --- one turn at a time ---


async def test_a_busy_conversation_gets_409_with_retry_after(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("First").held(go), text("Second"))
    first = asyncio.create_task(Caller(served).ask(HELLO, headers=CHAT))
    await upstream.received(1)

    with pytest.raises(openai.ConflictError) as busy:
        await Caller(served).ask([user("Me too")], headers=CHAT)
    go.set()

    assert busy.value.code == "conversation_busy"
    assert int(busy.value.response.headers["retry-after"]) >= 1
    assert await first == "First"
    assert await Caller(served).ask([user("Me too")], headers=CHAT) == "Second"


async def test_the_sdk_waits_by_itself_and_gets_its_turn(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("First").held(go), text("Second"))
    first = asyncio.create_task(Caller(served).ask(HELLO, headers=CHAT))
    await upstream.received(1)
    second = asyncio.create_task(Caller(served, max_retries=2).ask([user("Me too")], headers=CHAT))
    await asyncio.sleep(0.1)
    go.set()

    assert (await first, await second) == ("First", "Second")
    assert shape_of(upstream) == ["system", "user:Hello", "assistant:First", "user:Me too"]


async def test_200_conversations_at_once_keep_to_themselves(tmp_path: Path) -> None:
    def echo(received: Any) -> Any:
        return text(f"You said {received.body['messages'][-1]['content']}")

    async with FakeUpstream(answer=echo) as upstream, serve(tmp_path, upstream.base_url) as served:
        caller = Caller(served)

        async def talk(number: int) -> list[str]:
            headers = {"X-Conversation-Id": f"chat-{number}"}
            first = await caller.ask([user(f"one {number}")], headers=headers)
            return [first, await caller.ask([user(f"two {number}")], headers=headers)]

        answers = await asyncio.gather(*(talk(number) for number in range(200)))

        assert answers == [[f"You said one {n}", f"You said two {n}"] for n in range(200)]
        histories = {
            request.body["messages"][-1]["content"]: [m["content"] for m in request.body["messages"][1:]]
            for request in upstream.requests
        }
        assert all(histories[f"two {n}"] == [f"one {n}", f"You said one {n}", f"two {n}"] for n in range(200))


# --- retries ---


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_idempotency_key_replays_the_response_without_a_model_call(
    served: Served, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.reply(text("Once"))
    async with Wire(served) as wire:
        first = await wire.ask({"stream": stream}, idempotency_key="k1")
        again = await wire.ask({"stream": stream}, idempotency_key="k1")

    assert again.text == first.text
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["x-conversation-match"] == "same-turn"
    assert "idempotency-replayed" not in first.headers
    assert again.headers["x-conversation-id"] == first.headers["x-conversation-id"]
    assert len(upstream.requests) == 1


async def test_the_same_key_attaches_to_the_turn_that_is_running(
    served: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(text("Once").held(go, after=1))
    async with Wire(served) as wire:
        first = asyncio.create_task(wire.ask(STREAM, idempotency_key="k1"))
        await upstream.received(1)
        again = asyncio.create_task(wire.ask(STREAM, idempotency_key="k1"))
        await asyncio.sleep(0.1)
        go.set()

        assert (await first).text == (await again).text
    assert len(upstream.requests) == 1


async def test_the_same_key_with_another_body_is_a_conflict(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Once"))
    async with Wire(served) as wire:
        await wire.ask(idempotency_key="k1")
        other = await wire.ask({"messages": [user("Other")]}, idempotency_key="k1")

    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"


SAME_JSON = [
    pytest.param(json.dumps({**ASK, "temperature": 0.5, "user": "a"}), id="same bytes"),
    pytest.param(json.dumps({"user": "a", "temperature": 0.5, **ASK}), id="other order"),
    pytest.param(json.dumps({**ASK, "temperature": 0.5, "user": "a"}, indent=2), id="white space"),
    pytest.param(
        json.dumps({**ASK, "temperature": 0.5, "user": "a"})
        .replace("0.5", "5e-1")
        .replace("Hello", "\\u0048ello"),
        id="escapes and numbers",
    ),
]


@pytest.mark.parametrize("size", [1, 100_000], ids=["short", "long"])
@pytest.mark.parametrize("again", SAME_JSON)
async def test_the_same_key_with_the_same_json_in_other_bytes_is_the_same_request(
    served: Served, upstream: FakeUpstream, again: str, size: int
) -> None:
    upstream.reply(text("Once"))
    long_name = "a" * size
    bodies = [body.replace('"a"', f'"{long_name}"') for body in (str(SAME_JSON[0].values[0]), again)]
    async with Wire(served) as wire:
        answers = [await wire.raw(body, idempotency_key="k1") for body in bodies]

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].json()["id"] == answers[0].json()["id"]
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    "changed", [{"temperature": 0.6}, {"stream": True}, {"messages": [*HELLO, user("Other")]}, {"seed": 1}]
)
async def test_the_same_key_with_another_value_is_a_conflict(
    served: Served, upstream: FakeUpstream, changed: Any
) -> None:
    upstream.reply(text("Once"))
    async with Wire(served) as wire:
        await wire.ask({"temperature": 0.5}, idempotency_key="k1")
        other = await wire.ask({"temperature": 0.5, **changed}, idempotency_key="k1")

    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")


async def test_keys_of_two_callers_have_nothing_to_do_with_each_other(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("One"), text("Two"))
    async with Wire(served, "a") as one, Wire(served, "b") as two:
        first = await one.ask(idempotency_key="k1")
        second = await two.ask({"messages": [user("Other")]}, idempotency_key="k1")

    assert (first.status_code, second.status_code) == (200, 200)


async def test_a_failed_turn_gives_its_key_back(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400), text("Now"))
    async with Wire(served) as wire:
        failed = await wire.ask(idempotency_key="k1")
        again = await wire.ask(idempotency_key="k1")

    assert (failed.status_code, again.status_code) == (400, 200)


async def test_an_sdk_retry_attaches_to_the_turn_instead_of_running_its_tools_again(
    served: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered").held(go),
    )
    async with Wire(served) as wire:
        first = asyncio.create_task(wire.ask())
        await upstream.received(3)
        retry = asyncio.create_task(wire.ask(x_stainless_retry_count="1"))
        await asyncio.sleep(0.1)
        go.set()
        answers = [await first, await retry]
        late = await wire.ask(x_stainless_retry_count="2")

    assert len({answer.json()["id"] for answer in [*answers, late]}) == 1
    assert len(upstream.requests) == 3


async def test_a_retry_of_a_turn_that_failed_does_not_get_an_older_answer_to_the_same_text(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Which colour?"), text("Red it is"), *[error(503)] * 3, text("Two, then"))
    async with Wire(served) as wire:
        await wire.ask({"messages": [user("Yes")]}, x_conversation_id="chat-1")
        await wire.ask({"messages": [user("Red")]}, x_conversation_id="chat-1")
        failed = await wire.ask({"messages": [user("Yes")]}, x_conversation_id="chat-1")
        again = await wire.ask(
            {"messages": [user("Yes")]}, x_conversation_id="chat-1", x_stainless_retry_count="1"
        )

    assert failed.status_code == 502
    assert again.json()["choices"][0]["message"]["content"] == "Two, then"


# --- leaving and coming back ---


async def test_every_frame_has_an_id_and_a_stream_resumes_from_any_of_them(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_sales", {}), text="One moment."), text("What colour?", chunks=4))
    async with serve(tmp_path, upstream.base_url) as served, Wire(served) as wire:
        whole = (await wire.ask({**STREAM, "stream_options": {"include_usage": True}})).text
    every = frames(whole)
    assert all(frame.startswith("id: ") for frame in every[:-1])
    turn_id = ChatCompletionChunk.model_validate_json(every[0].split("data: ", 1)[1]).id

    async with serve(tmp_path, upstream.base_url) as served, Wire(served) as wire:  # after a restart
        for seen in range(len(every)):
            after = every[seen - 1].split("\n")[0].removeprefix("id: ") if seen else ""
            assert frames((await wire.resume(turn_id, after)).text) == every[seen:]
        assert (
            await wire.http.get(f"/chat/completions/{turn_id}/stream?starting_after=1")
        ).status_code == 200


async def test_a_live_stream_can_be_joined_where_it_was_lost(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("One two three four", chunks=["One ", "two ", go, "three ", "four"]))
    async with Wire(served) as wire:
        async with wire.http.stream(
            "POST", "/chat/completions", json={**ASK, **STREAM}, headers={"X-On-Disconnect": "detach"}
        ) as lost:
            got = ""
            async for piece in lost.aiter_text():
                got += piece
                if "two" in got:
                    break
        turn_id = ChatCompletionChunk.model_validate_json(frames(got)[0].split("data: ", 1)[1]).id
        joining = asyncio.create_task(wire.resume(turn_id, seen_last(got)))
        await asyncio.sleep(0.1)
        go.set()
        rest = (await joining).text

    assert content(got) + content(rest) == "One two three four"
    assert rest.endswith("data: [DONE]\n\n")


async def test_a_stream_of_another_caller_does_not_exist(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Mine"))
    async with Wire(served, "a") as one, Wire(served, "b") as two:
        turn_id = (await one.ask()).json()["id"]
        answers = [await two.resume(turn_id), await two.http.post(f"/chat/completions/{turn_id}/cancel")]

    assert [answer.status_code for answer in answers] == [404, 404]


async def test_a_position_that_is_none_is_refused(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        turn_id = (await wire.ask()).json()["id"]
        answer = await wire.resume(turn_id, "yesterday")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "Last-Event-ID")


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_a_client_that_leaves_stops_the_turn_and_a_retry_is_clean(
    served: Served, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.reply(text("A long answer", chunks=4).hang(after=2), text("A long answer"))
    async with Wire(served) as wire:
        headers = {"x_conversation_id": "chat-1", "x_on_disconnect": "cancel"}
        pending = asyncio.create_task(wire.ask({"stream": stream}, **headers))
        requested = await upstream.received(1)
        await asyncio.sleep(0.1)
        pending.cancel()
        await requested.closed()
        await until(lambda: served.services.turns.running == 0)
        again = await wire.ask(x_conversation_id="chat-1")

    assert again.json()["choices"][0]["message"]["content"] == "A long answer"
    assert shape_of(upstream) == ["system", "user:Hello"]


async def test_a_detached_turn_finishes_and_is_history(served: Served, upstream: FakeUpstream) -> None:
    go = asyncio.Event()
    upstream.reply(text("Done while you were away", chunks=2).held(go, after=1), text("Yes"))
    async with Wire(served) as wire:
        pending = asyncio.create_task(wire.ask(x_conversation_id="chat-1", x_on_disconnect="detach"))
        await upstream.received(1)
        await served.running_turn()
        pending.cancel()
        await asyncio.sleep(0.05)
        go.set()
        await until(lambda: served.services.turns.running == 0)
        await wire.ask({"messages": [user("Finished?")]}, x_conversation_id="chat-1")

    assert shape_of(upstream) == [
        "system",
        "user:Hello",
        "assistant:Done while you were away",
        "user:Finished?",
    ]


async def test_a_cancelled_turn_ends_regularly_and_its_output_is_stored(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {})), text("One two three", chunks=3).hang(after=2), text("Four")
    )
    async with Wire(served) as wire:
        got, stopped = "", None
        async with wire.http.stream("POST", "/chat/completions", json={**ASK, **STREAM}) as stream:
            async for piece in stream.aiter_text():
                got += piece
                if stopped is None and content(got):
                    turn_id = ChatCompletionChunk.model_validate_json(frames(got)[0].split("data: ", 1)[1]).id
                    stopped = await wire.http.post(f"/chat/completions/{turn_id}/cancel")
        said = content(got)

        assert stopped is not None
        assert stopped.json() == {
            "id": turn_id,
            "object": "chat.completion.cancelled",
            "status": "cancelled",
            "cancelled": True,
        }
        assert '"finish_reason":"stop"' in frames(got)[-2]
        assert frames(got)[-1] == "data: [DONE]"
        await wire.ask({"messages": [*HELLO, assistant(said), user("Go on")]})
    assert agent_of(upstream) == "sales"
    assert shape_of(upstream)[-2:] == [f"assistant:{said}", "user:Go on"]


async def test_a_turn_without_readers_can_be_cancelled_from_another_connection(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    async with Wire(served) as wire:
        pending = asyncio.create_task(wire.ask(idempotency_key="k1"))
        requested = await upstream.received(1)
        turn_id = await served.running_turn()
        await wire.http.post(f"/chat/completions/{turn_id}/cancel")
        await requested.closed()

        assert (await pending).status_code == 200


async def test_an_unknown_disconnect_policy_is_refused(served: Served) -> None:
    async with Wire(served) as wire:
        answer = await wire.ask(x_on_disconnect="explode")

    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-On-Disconnect")


# --- side requests ---

TITLE = [user("### Task:\nGenerate a title.\n<chat_history>\nUSER: I want a rocket\n</chat_history>")]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({}, {"model": "shop/side"}, id="by model id"),
        pytest.param({"X-Task": "title_generation"}, {}, id="by header"),
        pytest.param({}, {"messages": TITLE}, id="by its words"),
        pytest.param(
            {},
            {"messages": [user("else"), assistant("entirely"), user("?")]},
            id="by not fitting the conversation",
        ),
    ],
)
async def test_a_side_request_neither_enters_the_conversation_nor_waits_for_it(
    served: Served, upstream: FakeUpstream, headers: dict[str, str], body: dict[str, Any]
) -> None:
    await sold(Caller(served), upstream, headers={"X-OpenWebUI-Chat-Id": "chat-1"})
    go = asyncio.Event()
    upstream.reply(text("Ten").held(go), text("Rocket talk"), text("Bye"))
    async with Wire(served) as wire:
        frontend = {"X-OpenWebUI-Chat-Id": "chat-1"}
        full = [user("I want a rocket"), assistant("What colour?"), user("Red")]
        main = asyncio.create_task(
            wire.http.post("/chat/completions", json={**ASK, "messages": full}, headers=frontend)
        )
        await upstream.received(3)

        side = await wire.http.post(
            "/chat/completions", json={**ASK, **body}, headers={**frontend, **headers}
        )
        go.set()
        await main
        await wire.http.post(
            "/chat/completions",
            json={**ASK, "messages": [*full, assistant("Ten"), user("Bye")]},
            headers=frontend,
        )

    assert side.json()["choices"][0]["message"]["content"] == "Rocket talk"
    assert side.headers["x-conversation-match"] == "side-request"
    requested = upstream.requests[3].body
    assert "tools" not in requested
    assert requested["messages"][0]["role"] == "user"
    assert shape_of(upstream) == [*HIDDEN, "user:Red", "assistant:Ten", "user:Bye"]
    assert agent_of(upstream) == "sales"


async def test_a_side_request_before_the_main_turn_leaves_the_new_chat_alone(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Rocket talk"))
    caller = Caller(served)
    await caller.ask(TITLE, headers={"X-OpenWebUI-Chat-Id": "chat-1"})
    await sold(caller, upstream, headers={"X-OpenWebUI-Chat-Id": "chat-1"})

    assert shape_of(upstream)[:2] == ["system", "user:I want a rocket"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/chat/completions/{id}/stream"),
        ("POST", "/chat/completions/{id}/cancel"),
        ("GET", "/turns/{id}"),
        ("GET", "/turns/{id}/events"),
    ],
)
async def test_a_turn_of_another_end_user_does_not_exist(
    served: Served, upstream: FakeUpstream, method: str, path: str
) -> None:
    upstream.reply(text("Between the two of us"))
    async with Wire(served) as wire:
        requested = await wire.ask({"user": "ann"})
        status = {}
        for person in ("ann", "bob", ""):
            headers = {"X-OpenWebUI-User-Id": person}
            reported = await wire.http.request(
                method, path.format(id=requested.json()["id"]), headers=headers
            )
            status[person] = reported.status_code

    assert status == {"ann": 200, "bob": 404, "": 200}


async def test_an_sdk_whose_patience_ends_repeats_itself_without_running_tools_again(
    served: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered").held(go),
    )
    pending = asyncio.create_task(Caller(served, max_retries=2, timeout=0.5).completion(HELLO))
    await upstream.received(3)
    await asyncio.sleep(0.7)  # the SDK's own time limit, and a part of its pause
    go.set()

    assert (await pending).choices[0].message.content == "Ordered"
    assert len(upstream.requests) == 3
