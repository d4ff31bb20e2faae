"""Clients of older systems: what each of them sends, and the exact bytes that it reads."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proxy.auth import ANYONE
from proxy.errors import ConfigurationError
from tests.behaviour.chat_client import agent_of, shape_of
from tests.behaviour.raw_http import Socket
from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.polling import until
from tests.server import Served, serve

ANNA: dict[str, Any] = {"message": "A rocket", "conversation_id": "anna_1"}


async def post(served: Served, path: str, body: Any, **headers: str) -> httpx2.Response:
    given = {
        "Authorization": "Bearer k",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with httpx2.AsyncClient(base_url=served.url, headers=given, timeout=20) as http:
        return await http.post(path, content=content)


async def get(served: Served, path: str, key: str = "k") -> httpx2.Response:
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=served.url, headers=headers, timeout=20) as http:
        return await http.get(path)


async def chunks(served: Served, path: str, body: Any) -> list[bytes]:
    """What each HTTP chunk of the answer holds."""
    content = json.dumps(body).encode()
    async with Socket(served) as socket:
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(content)}", "", ""]
        await socket.send("\r\n".join(lines).encode() + content)
        raw = (await socket.reply()).raw.partition(b"\r\n\r\n")[2]
    found = []
    while raw:
        size, _, raw = raw.partition(b"\r\n")
        found.append(raw[: int(size, 16)])
        raw = raw[int(size, 16) + 2 :]
    assert found.pop() == b""
    return found


def error_message(response: httpx2.Response, status: int = 400) -> str:
    """Return the message of an error, which is in both formats."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body["detail"] == body["error"]["message"]
    return str(body["detail"])


# --- POST /chat/completions with one new message -------------------------------------------------------------


async def test_one_message_is_answered_in_typed_lines(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("", chunks=["Ordered", " é."]),
    )

    response = await post(served, "/chat/completions", ANNA)

    assert response.text == (
        '{"content":{"type":"function","message":"You are now talking to sales"}}\n'
        '{"content":{"type":"function","message":"Executing execute_order"}}\n'
        '{"content":{"type":"string","message":"Ordered"}}\n'
        '{"content":{"type":"string","message":" é."}}\n'
    )
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert response.headers["x-conversation-id"] == "anna_1"


async def test_every_line_is_a_separate_chunk(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One two three four five", chunks=5), text("One two three", chunks=3))

    typed = await chunks(served, "/chat/completions", ANNA)
    plain = await chunks(served, "/chat/completions", {"messages": [{"source": "user", "content": "Hi"}]})

    assert (len(typed), len(plain)) == (5, 3)
    for line in [*typed, *plain]:
        assert line.endswith(b"\n")
        assert "content" in json.loads(line)


async def test_a_line_is_sent_as_soon_as_it_is_there(served: Served, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("One two", chunks=2).held(rest, after=2))
    body = json.dumps(ANNA).encode()

    async with Socket(served) as socket:
        head = f"POST /chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        await socket.send(head.encode() + body)
        async with asyncio.timeout(5):
            await socket.reader.readuntil(b"\r\n\r\n")
            await socket.reader.readuntil(b"\r\n")
            line = await socket.reader.readuntil(b"\r\n")
        rest.set()

    assert json.loads(line)["content"]["type"] == "string"


async def test_text_can_be_requested_without_status_lines(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("Which colour?", chunks=1))

    response = await post(served, "/chat/completions?format=text", ANNA)

    assert response.text == '{"content":"Which colour?"}\n'


async def test_messages_are_stored_under_the_conversation_id(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("Colour?"), text("Red it is."), text("Hello."))

    await post(served, "/chat/completions", ANNA)
    await post(served, "/chat/completions", {**ANNA, "message": "A rocket"})

    assert agent_of(upstream) == "sales"
    assert shape_of(upstream) == [
        "system",
        "user:A rocket",
        "calls:transfer_to_sales",
        "result",
        "assistant:Colour?",
        "user:A rocket",
    ]

    await post(served, "/chat/completions", {**ANNA, "conversation_id": "bert-1"})

    assert shape_of(upstream) == ["system", "user:A rocket"]


@pytest.mark.parametrize("id", ["", "a b", "a.b", "a/b", "ä", "a\n", "x" * 129])
async def test_an_id_of_other_characters_is_refused(id: str, served: Served, upstream: FakeUpstream) -> None:
    response = await post(served, "/chat/completions", {"message": "Hi", "conversation_id": id})

    assert "Invalid 'conversation_id'" in error_message(response)
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"message": 1}, "message"),
        ({"message": ""}, "message"),
        ({"message": " \n"}, "message"),
        ({"message": "Hi", "conversation_id": 7}, "conversation_id"),
        ({"messages": [{"source": "agent", "content": "Hi"}]}, "messages[0].source"),
        ({"messages": [{"source": "user"}]}, "messages[0].content"),
        ({"messages": [{"source": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"source": "assistant", "content": "Hi"}]}, "messages"),
        ({"messages": [{"source": "user", "content": "Hi"}], "stream": "yes"}, "stream"),
        ({"messages": [{"source": "user", "content": "Hi"}] * 2001}, "messages"),
    ],
)
async def test_invalid_bodies_get_errors_in_both_formats(
    body: Any, param: str, served: Served, upstream: FakeUpstream
) -> None:
    response = await post(served, "/chat/completions", body)

    error_message(response)
    assert response.json()["error"]["param"] == param
    assert upstream.requests == []


async def test_another_format_is_refused(served: Served) -> None:
    assert "'format'" in error_message(await post(served, "/chat/completions?format=xml", ANNA))


async def test_a_failure_before_the_first_line_has_a_status(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400, message="no"))

    response = await post(served, "/chat/completions", ANNA)

    assert error_message(response, response.status_code)
    assert response.status_code >= 400


async def test_a_failure_after_it_is_a_line_that_adds_no_text(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One two three", chunks=3).cut(after=3), text("One two three", chunks=3).cut(after=3))

    typed = (await post(served, "/chat/completions", ANNA)).text.splitlines()
    plain = (await post(served, "/chat/completions?format=text", {"message": "Hi"})).text.splitlines()

    last = json.loads(typed[-1])
    assert last["content"] == {"type": "error", "message": last["error"]["message"]}
    assert last["error"]["code"].startswith("upstream_")
    assert json.loads(plain[-1])["content"] == ""
    assert json.loads(plain[-1])["error"]["code"] == last["error"]["code"]


async def test_a_turn_ends_when_its_client_leaves(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("One two three", chunks=3).hang(after=2))
    body = json.dumps(ANNA).encode()

    async with Socket(served) as socket:
        head = "POST /chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-On-Disconnect: cancel\r\n"
        await socket.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await socket.reader.readuntil(b"One")
        (turn_id,) = served.services.turns.running_turns()

    await (await upstream.received(1)).closed()
    await until(lambda: not served.services.turns.running_turns())
    turn = await served.services.history.turn(ANYONE, turn_id)
    assert turn is not None
    assert (turn.status, turn.error_code) == ("cancelled", "client_left")


async def test_a_second_message_meanwhile_waits_unless_it_has_another_policy(
    served: Served, upstream: FakeUpstream
) -> None:
    go = asyncio.Event()
    upstream.reply(text("", chunks=["One."]).held(go), text("", chunks=["Two."]))
    first = asyncio.create_task(post(served, "/chat/completions", ANNA))
    await upstream.received(1)
    second = asyncio.create_task(post(served, "/chat/completions", ANNA))
    await until(lambda: served.services.turns.queued == 1)

    refused = await post(served, "/chat/completions", ANNA, x_busy="reject")
    go.set()

    assert error_message(refused, 409)
    assert refused.json()["error"]["code"] == "conversation_busy"
    assert "One." in (await first).text
    assert "Two." in (await second).text


# --- POST /chat/completions with a whole history -------------------------------------------------------------


async def test_a_history_by_source_is_answered_in_lines(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("", chunks=["Red", " it is."]))
    said = [("user", "A rocket"), ("assistant", "Which colour?"), ("user", "Red")]
    messages = [{"source": source, "content": content} for source, content in said]

    response = await post(served, "/chat/completions", {"messages": messages, "stream": True})

    assert response.text == '{"content":"Red"}\n{"content":" it is."}\n'
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert shape_of(upstream) == ["system", "user:A rocket", "assistant:Which colour?", "user:Red"]


async def test_it_is_answered_at_once_on_request(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello you."))

    response = await post(
        served, "/chat/completions", {"messages": [{"source": "user", "content": "Hi"}], "stream": False}
    )

    assert response.text == '{"content":"Hello you."}'


async def test_the_active_agent_answers_the_next_message_list(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("Colour?"), text("Red it is."))
    messages = [{"source": "user", "content": "A rocket"}]
    first = await post(served, "/chat/completions", {"messages": messages, "stream": False})
    messages += [
        {"source": "assistant", "content": first.json()["content"]},
        {"source": "user", "content": "Red"},
    ]

    await post(served, "/chat/completions", {"messages": messages})

    assert agent_of(upstream) == "sales"


# --- OpenAI's body on the same path --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
async def test_an_openai_body_is_answered_as_under_v1(
    stream: bool, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello."), text("Hello."))
    body = {"model": "shop", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}

    here = await post(served, "/chat/completions", body)
    there = await post(served, "/v1/chat/completions", body)

    assert here.headers["content-type"] == there.headers["content-type"]
    assert len(here.text) == len(there.text)
    assert "chat.completion" in here.text


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"\xff", b'{"messages": []}', b'{"model": "shop"}', b"{}"]
)
async def test_its_refusals_are_those_of_v1(body: bytes, served: Served) -> None:
    here = await post(served, "/chat/completions", body)
    there = await post(served, "/v1/chat/completions", body)

    assert (here.status_code, here.content) == (there.status_code, there.content)


# --- which team, and who may ask -----------------------------------------------------------------------------


async def test_a_key_is_needed_where_keys_are_set(tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys="secret") as served:
        error_message(await post(served, "/chat/completions", ANNA), 401)
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", ANNA),
        ("/chat", {"message": "Hi"}),
        ("/chat/stream", {"message": "Hi"}),
        ("/ask-stream", {"question": "Hi"}),
    ],
)
async def test_rate_limits_are_reported_in_both_formats(
    path: str, body: Any, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("One"))
    async with serve(tmp_path, upstream.base_url, requests_per_minute=1) as served:
        assert (await post(served, path, body)).status_code == 200
        error_message(await post(served, path, body), 429)


async def test_a_team_that_is_not_served_stops_the_start(tmp_path: Path, upstream: FakeUpstream) -> None:
    with pytest.raises(ConfigurationError, match="PROXY_OLDER_TEAM: no team is called 'nobody'"):
        async with serve(tmp_path, upstream.base_url, older_team="nobody"):
            pass


async def test_the_first_team_answers_unless_another_is_set(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        usual = await post(served, "/chat/completions", {"messages": [{"source": "user", "content": "Hi"}]})
    async with serve(tmp_path, older_team="business-insights") as served:
        other = await post(served, "/chat/completions", {"messages": [{"source": "user", "content": "Hi"}]})

    assert "content" in json.loads(usual.text.splitlines()[0])
    assert "business" in "".join(json.loads(line)["content"] for line in other.text.splitlines())


# --- POST /chat and /chat/stream -----------------------------------------------------------------------------


def events_of(response: httpx2.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    frames = response.text.removesuffix("\n\n").split("\n\n")
    return [json.loads(frame.removeprefix("data: ")) for frame in frames]


ORDER = {"product": "Rocket", "price": 10}


async def test_a_chat_is_streamed_as_events(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", ORDER), ("execute_order", {"colour": 1})),
        text("", chunks=["Ord", "ered"]),
    )

    reported = events_of(await post(served, "/chat/stream", {"message": "A rocket", "parallel_tools": True}))

    good = reported[0]["tool_call"]
    assert reported[0]["event_type"] == "tool_call_start"
    assert (good["name"], good["arguments"]) == ("execute_order", ORDER)
    by_type = {frame["event_type"]: frame["tool_call"] for frame in reported if "tool_call" in frame}
    assert by_type["tool_call_complete"] == {**good, "result": by_type["tool_call_complete"]["result"]}
    assert by_type["tool_call_error"]["id"] != good["id"]
    assert by_type["tool_call_error"]["error"]
    assert reported[-3:] == [
        {"event_type": "chat_chunk", "content": "Ord"},
        {"event_type": "chat_chunk", "content": "ered"},
        {"event_type": "chat_complete", "final_response": "Ordered"},
    ]


async def test_a_chat_is_answered_at_once(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), calls(("execute_order", ORDER)), text("Ordered"))

    body = (await post(served, "/chat", {"message": "A rocket"})).json()

    (call,) = body["tool_calls"]
    assert (call["name"], call["arguments"]) == ("execute_order", ORDER)
    assert call["result"]
    assert (body["response"], body["agent"], body["conversation_id"]) == ("Ordered", "sales", "chat")


async def test_a_chat_continues_until_it_is_reset(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*[text(f"Answer {number}") for number in range(1, 7)])

    await post(served, "/chat", {"message": "1"})
    await post(served, "/chat/stream", {"message": "2"})
    assert shape_of(upstream) == ["system", "user:1", "assistant:Answer 1", "user:2"]

    first = await post(served, "/chat", {"message": "3", "reset_history": True})
    assert shape_of(upstream) == ["system", "user:3"]
    await post(served, "/chat", {"message": "4"})
    assert shape_of(upstream) == ["system", "user:3", "assistant:Answer 3", "user:4"]
    again = await post(served, "/chat", {"message": "5", "reset_history": True})
    assert shape_of(upstream) == ["system", "user:5"]
    assert len({"chat", first.json()["conversation_id"], again.json()["conversation_id"]}) == 3

    await post(served, "/chat", {"message": "6"}, Authorization="Bearer another")
    assert shape_of(upstream) == ["system", "user:6"]


@pytest.mark.parametrize("has_chat", [False, True], ids=["first message", "later message"])
@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_a_repeated_reset_with_a_key_gets_the_same_answer_and_resets_once(
    path: str, has_chat: bool, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(*[text(f"Answer {number}") for number in range(3)])
    if has_chat:
        await post(served, "/chat", {"message": "1"})
    keyed = {"Idempotency-Key": "reset-1"}

    first = await post(served, path, {"message": "2", "reset_history": True}, **keyed)
    again = await post(served, path, {"message": "2", "reset_history": True}, **keyed)
    await post(served, "/chat", {"message": "3"})

    assert (first.status_code, again.text) == (200, first.text)
    answered = f"assistant:Answer {int(has_chat)}"
    assert shape_of(upstream) == ["system", "user:2", answered, "user:3"]


@pytest.mark.parametrize("requested", [True, False])
async def test_tools_run_in_parallel_if_requested(
    requested: bool, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("Hi"))

    await post(served, "/chat", {"message": "Hi", "parallel_tools": requested})

    assert upstream.requests[-1].body.get("parallel_tool_calls", True) is requested


async def test_a_chat_that_fails_ends_with_an_error(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400), error(400))

    streamed = events_of(await post(served, "/chat/stream", {"message": "Hi"}))
    whole = await post(served, "/chat", {"message": "Hi"})

    assert [frame["event_type"] for frame in streamed] == ["error"]
    assert streamed[0]["code"] == whole.json()["error"]["code"]
    # They differ in the request id at the end.
    sentence = "The model's provider rejected the request. (Request ID: req_"
    assert streamed[0]["error"].startswith(sentence)
    assert error_message(whole, whole.status_code).startswith(sentence)


@pytest.mark.parametrize(
    "body", [b"", b"{", {}, {"message": 7}, {"message": ""}, {"message": "Hi", "reset_history": "no"}]
)
@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_invalid_chat_bodies_are_rejected(
    path: str, body: Any, served: Served, upstream: FakeUpstream
) -> None:
    assert error_message(await post(served, path, body))
    assert upstream.requests == []


# --- POST /ask-stream and GET /test-stream -------------------------------------------------------------------


async def test_a_question_is_streamed_as_events(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {}), text="Sales knows."),
        calls(("execute_order", ORDER)),
        text("Ordered"),
    )

    events = [
        frame["event"] for frame in events_of(await post(served, "/ask-stream", {"question": "A rocket?"}))
    ]

    assert [(event["event_type"], event["agent_name"]) for event in events] == [
        ("started", "triage"),
        ("agent_thinking", "triage"),
        ("agent_response", "triage"),
        ("agent_thinking", "sales"),
        ("tool_execution", "sales"),
        ("agent_response", "sales"),
        ("completed", "sales"),
    ]
    assert events[0]["data"] == {"question": "A rocket?", "progress": 0}
    assert (events[2]["message"], events[2]["data"]) == ("Sales knows.", {"progress": 25})
    assert events[3]["data"] == {"progress": 25}
    assert events[4]["data"] == {"tool_name": "execute_order", "parameters": ORDER, "progress": 25}
    assert events[5]["data"] == {"progress": 50}
    assert events[-1]["data"] == {
        "final_response": "Ordered",
        "total_messages": 5,
        "response_length": 7,
        "finish_reason": "stop",
        "progress": 100,
    }
    assert all(set(event) == {"event_type", "timestamp", "agent_name", "message", "data"} for event in events)


async def test_the_stream_of_a_question_continues_without_its_client_and_can_be_resumed(
    served: Served, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(calls(("transfer_to_sales", {})), text("Red it is.", chunks=2).held(rest, after=1))
    body = b'{"question": "Hi?"}'
    async with Socket(served) as socket:
        head = f"POST /ask-stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        await socket.send(f"{head}Authorization: Bearer k\r\n\r\n".encode() + body)
        async with asyncio.timeout(5):
            start = await socket.reader.readuntil(b"sales is working")
    turn_id = re.findall(rb'"id":"(chatcmpl-[0-9a-f]+):1"', start)[0].decode()
    rest.set()

    whole = await get(served, f"/ask-stream/{turn_id}")
    frames = events_of(whole)
    late = await get(served, f"/ask-stream/{turn_id}?starting_after=3")
    headers = {"Last_Event_ID": f"{turn_id}:3", "Accept": "text/event-stream"}
    again = await post(served, "/ask-stream", {"question": "Hi?"}, **headers)

    assert [frame["id"] for frame in frames] == [f"{turn_id}:{n}" for n in range(1, len(frames) + 1)]
    assert frames[0]["event"]["data"]["question"] == "Hi?"
    assert frames[-1]["event"]["data"]["final_response"] == "Red it is."
    assert events_of(late) == frames[3:]
    assert again.text == "".join(
        f"id: {frame['id']}\n{data}\n\n"
        for frame, data in zip(frames[3:], whole.text.split("\n\n")[3:], strict=False)
    )
    assert len(upstream.requests) == 2


async def test_a_question_is_cancelled_with_its_client_if_requested(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    body = b'{"question": "Hi?"}'
    head = f"POST /ask-stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"

    async with Socket(served) as socket:
        await socket.send(f"{head}X-On-Disconnect: cancel\r\n\r\n".encode() + body)
        async with asyncio.timeout(5):
            await socket.reader.readuntil(b"agent_thinking")

    await until(lambda: served.services.turns.running == 0)


@pytest.mark.parametrize("seen", ["x", "chatcmpl-1:", "chatcmpl-1:-1", ":1", "chatcmpl-1:1.5"])
async def test_an_invalid_event_id_is_rejected(seen: str, served: Served) -> None:
    response = await post(served, "/ask-stream", {"question": "Hi?"}, Last_Event_ID=seen)

    assert error_message(response).startswith("Invalid 'Last-Event-ID'")


@pytest.mark.parametrize(
    ("query", "seen", "param"),
    [
        ("?starting_after=x", "", "starting_after"),
        ("?starting_after=-1", "", "starting_after"),
        ("?starting_after=٣", "", "starting_after"),
        ("", "x", "Last-Event-ID"),
        ("", "chatcmpl-2:3", "Last-Event-ID"),
        ("?starting_after=3", "chatcmpl-2:3", "Last-Event-ID"),
    ],
)
async def test_an_invalid_position_in_a_turn_is_rejected_by_its_name(
    query: str, seen: str, param: str, served: Served
) -> None:
    async with httpx2.AsyncClient(base_url=served.url) as client:
        response = await client.get(f"/ask-stream/chatcmpl-1{query}", headers={"Last-Event-ID": seen})

    assert error_message(response).startswith(f"Invalid '{param}'")
    assert response.json()["error"]["param"] == param


async def test_only_turns_of_questions_can_be_resumed(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"), text("Hello"))
    client = served.client("k")
    chat = await client.chat.completions.create(model="shop", messages=[{"role": "user", "content": "Hi"}])
    response = await client.responses.create(model="shop", input="Hi")
    turn_of_response = "chatcmpl-" + response.id.partition("_")[2]

    for turn_id in ("chatcmpl-nobody", chat.id, turn_of_response):
        error_message(await get(served, f"/ask-stream/{turn_id}"), status=404)


async def events_of_source(served: Served, path: str) -> list[list[str]]:
    """Return the event ids of each response that an ``EventSource`` would get until a status other than 200."""
    headers = {"Accept": "text/event-stream", "Authorization": "Bearer k"}
    responses: list[list[str]] = []
    async with httpx2.AsyncClient(base_url=served.url) as client:
        while len(responses) < 5:
            response = await client.get(path, headers=headers)
            if response.status_code != 200:
                assert (response.status_code, response.content) == (204, b"")
                return responses
            responses.append(re.findall(r"^id: (.*)$", response.text, re.MULTILINE))
            headers["Last-Event-ID"] = responses[-1][-1]
    raise AssertionError(responses)


async def test_an_event_source_stops_after_the_end_of_a_question(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"), error(400))
    for last_type in ("completed", "error"):
        frames = events_of(await post(served, "/ask-stream", {"question": "Hi?"}))
        ids = [frame["id"] for frame in frames]

        assert frames[-1]["event"]["event_type"] == last_type
        assert await events_of_source(served, f"/ask-stream/{ids[0].partition(':')[0]}") == [ids]


async def test_an_event_source_stops_after_the_scripted_turn(served: Served) -> None:
    frames = events_of(await get(served, "/test-stream"))

    assert await events_of_source(served, "/test-stream") == [[frame["id"] for frame in frames]]


async def test_a_program_that_resumes_after_the_last_event_gets_an_empty_stream(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    last = events_of(await post(served, "/ask-stream", {"question": "Hi?"}))[-1]["id"]

    again = await post(served, "/ask-stream", {"question": "Hi?"}, Last_Event_ID=last)

    assert (again.status_code, again.text) == (200, "")


async def test_long_text_is_written_in_short_events(served: Served, upstream: FakeUpstream) -> None:
    long = "12345678é " * 20_000
    upstream.reply(*(text("", chunks=[long]) for _ in range(2)))

    events = [json.loads(event[6:]) for event in await chunks(served, "/chat/stream", {"message": "Hi"})]
    lines = [json.loads(line) for line in await chunks(served, "/chat/completions", ANNA)]

    contents = [event["content"] for event in events if event["event_type"] == "chat_chunk"]
    messages = [line["content"]["message"] for line in lines]
    assert "".join(contents) == "".join(messages) == events[-1]["final_response"] == long
    assert max(map(len, contents + messages)) == 4000


# --- browsers without a key ----------------------------------------------------------------------------------


async def test_browsers_without_a_key_have_separate_chats(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*(text(f"Answer {n}") for n in range(5)))

    async def send(http: httpx2.AsyncClient, message: str, **headers: str) -> httpx2.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await http.post("/chat", json={"message": message}, headers=named)

    async with (
        httpx2.AsyncClient(base_url=served.url) as one,
        httpx2.AsyncClient(base_url=served.url) as other,
        httpx2.AsyncClient(base_url=served.url) as program,
    ):
        first = await send(one, "One", Sec_Fetch_Site="same-origin")
        second = await send(other, "Two", Origin=served.url)
        third = await send(one, "Three", Sec_Fetch_Site="same-origin")
        fourth = await send(program, "Four")
        fifth = await send(program, "Five", Sec_Fetch_Site="cross-site")

    cookie = first.headers["set-cookie"]
    assert re.fullmatch(
        r"handoff_chat=[\w-]{22}; Path=/; Max-Age=2592000; HttpOnly; SameSite=Lax", cookie, re.ASCII
    )
    assert "set-cookie" in second.headers
    assert not [one.headers for one in (third, fourth, fifth) if "set-cookie" in one.headers]
    ids = [one.json()["conversation_id"] for one in (first, second, third, fourth, fifth)]
    assert ids[2] == ids[0] != ids[1]
    assert ids[3:] == ["chat", "chat"]
    assert shape_of(upstream, 2) == ["system", "user:One", "assistant:Answer 0", "user:Three"]


@pytest.mark.parametrize(
    ("forwarded", "is_secure"), [("https", True), ("HTTPS, http", True), ("http", False), ("", False)]
)
async def test_the_cookie_is_secure_behind_a_reverse_proxy_that_ends_tls(
    served: Served, upstream: FakeUpstream, forwarded: str, is_secure: bool
) -> None:
    upstream.reply(text("Hello"))
    headers = {"Sec-Fetch-Site": "same-origin", "X-Forwarded-Proto": forwarded}
    async with httpx2.AsyncClient(base_url=served.url) as http:
        response = await http.post("/chat", json={"message": "Hi"}, headers=headers)

    assert response.headers["set-cookie"].endswith("; Secure") is is_secure


async def test_a_browser_with_a_key_gets_no_cookie(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))
    async with serve(tmp_path, upstream.base_url, api_keys="k") as served:
        response = await post(served, "/chat", {"message": "Hi"}, Sec_Fetch_Site="same-origin")

    assert response.json()["conversation_id"] == "chat"
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(("setting", "query"), [("string", ""), ("object", "?format=text")])
async def test_content_is_a_string_if_the_setting_or_the_request_says_so(
    setting: str, query: str, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello", chunks=1), text("Hello", chunks=1))
    async with serve(tmp_path, upstream.base_url, older_content=setting) as served:
        plain = await post(served, f"/chat/completions{query}", ANNA)
        typed = await post(served, "/chat/completions?format=json", ANNA)

    assert plain.text == '{"content":"Hello"}\n'
    assert typed.text == '{"content":{"type":"string","message":"Hello"}}\n'


async def test_the_stream_of_a_question_starts_before_the_model_answers(
    served: Served, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(text("Hello").held(rest, after=0))
    body = b'{"question": "Hi"}'

    async with Socket(served) as socket:
        head = f"POST /ask-stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        await socket.send(head.encode() + body)
        async with asyncio.timeout(5):
            assert b"started" in await socket.reader.readuntil(b"agent_thinking")
            # The turn continues without its client, and the server would wait for it.
            rest.set()
            await socket.reader.readuntil(b"Hello")


async def test_a_question_that_fails_ends_with_an_error(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(error(400))

    last = events_of(await post(served, "/ask-stream", {"question": "Hi"}))[-1]["event"]

    assert last["event_type"] == "error"
    assert last["message"] == last["data"]["error"]
    assert last["data"]["progress"] == 0


@pytest.mark.parametrize("question", ["", "  ", "x" * 4001, 7, None])
async def test_a_question_has_a_length(question: Any, served: Served, upstream: FakeUpstream) -> None:
    assert "'question'" in error_message(await post(served, "/ask-stream", {"question": question}))
    assert upstream.requests == []


async def test_a_scripted_turn_tries_a_client_without_a_model(served: Served, upstream: FakeUpstream) -> None:
    events = [frame["event"] for frame in events_of(await get(served, "/test-stream"))]

    assert {event["event_type"] for event in events} == {
        "started",
        "agent_thinking",
        "agent_response",
        "tool_execution",
        "completed",
    }
    progress = [event["data"]["progress"] for event in events]
    assert (progress[0], progress[-1], sorted(progress)) == (0, 100, progress)
    assert upstream.requests == []


# --- GET /health and /agents ---------------------------------------------------------------------------------


async def test_health_lists_tools_and_agents_for_authenticated_callers(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys="secret") as served:
        others = (await get(served, "/health", key="other")).json()
        own = (await get(served, "/health", key="secret")).json()

    assert set(others) == {"status", "version"}
    assert own == {
        **others,
        "status": "ok",
        "available_tools": ["execute_order", "look_up_item", "execute_refund"],
        "agents": ["triage", "sales", "repairs"],
    }


async def test_agents_are_listed(served: Served) -> None:
    listed = (await get(served, "/agents")).json()["agents"]

    assert [(agent["name"], agent["team"], agent["tools"]) for agent in listed] == [
        ("triage", "shop", []),
        ("sales", "shop", ["execute_order"]),
        ("repairs", "shop", ["look_up_item", "execute_refund"]),
    ]


@pytest.mark.parametrize("path", ["/agents", "/test-stream"])
async def test_the_lists_need_a_key(path: str, tmp_path: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, upstream.base_url, api_keys="secret") as served:
        message = error_message(await get(served, path, key="other"), 401)
    assert message.startswith("Incorrect API key")
