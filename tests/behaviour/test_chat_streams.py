"""Streams, frame by frame and byte by byte."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState

from tests.behaviour.chat_client import WEATHER, user
from tests.behaviour.raw_http import HELLO, Socket, Wire, deltas, payloads
from tests.fakes.upstream import FakeUpstream, calls, chunk, cut, error, events, text
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 0,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
ROLE = {"role": "assistant", "content": "", "refusal": None}


# --- frames ---


async def test_text_comes_as_role_pieces_finish_and_done(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello", chunks=["He", "llo"]))
    async with Wire(served) as wire:
        response = await wire.ask(stream=True)

    first = json.loads(response.text.split("\n")[0].removeprefix("data: "))
    about = {name: first[name] for name in ("id", "object", "created", "model", "system_fingerprint")}
    assert about["object"] == "chat.completion.chunk"
    assert (about["model"], type(about["created"])) == ("shop", int)
    assert about["id"].startswith("chatcmpl-")
    assert about["system_fingerprint"].startswith("fp_")
    assert payloads(response.text) == [
        *(
            {
                **about,
                "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}],
            }
            for delta, finish in [
                (ROLE, None),
                ({"content": "He"}, None),
                ({"content": "llo"}, None),
                ({}, "stop"),
            ]
        ),
        "[DONE]",
    ]
    for frame in response.text.removesuffix("\n\n").split("\n\n"):
        assert re.fullmatch(r"data: [^\n]+", frame)
    assert response.text.endswith("\n\ndata: [DONE]\n\n")


async def test_the_headers_of_a_stream(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))
    async with Wire(served) as wire:
        response = await wire.ask(stream=True, headers={"Accept": "application/json"})

    assert response.status_code == 200
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in response.headers
    assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["openai-version"] == "2020-10-01"
    assert response.headers["openai-processing-ms"].isdigit()


@pytest.mark.parametrize("requested", [True, False, None])
async def test_usage_comes_last_without_choices_and_only_on_request(
    served: Served, upstream: FakeUpstream, requested: bool | None
) -> None:
    upstream.reply(text("Hello"))
    options = {} if requested is None else {"stream_options": {"include_usage": requested}}
    async with Wire(served) as wire:
        *chunks, done = await wire.frames(**options)

    assert done == "[DONE]"
    if requested:
        assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], USAGE)
        assert chunks[-1]["system_fingerprint"] == chunks[0]["system_fingerprint"]
        assert all(one["usage"] is None for one in chunks[:-1])
    else:
        assert not any("usage" in one for one in chunks)
    assert all("obfuscation" not in one for one in chunks)


async def test_calls_come_in_pieces_each_begun_once(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("weather", {"city": "Bonn"}), ("weather", "{}"), ("weather", ""), pieces=2, interleave=True)
    )
    async with Wire(served) as wire:
        frames = await wire.frames(tools=[WEATHER])

    role, *pieces, end = deltas(frames)
    assert role == {"role": "assistant", "content": None}
    call_deltas = [piece for delta in pieces for piece in delta["tool_calls"]]
    assert [set(delta) for delta in pieces] == [{"tool_calls"}] * len(pieces)
    heads = [piece for piece in call_deltas if "id" in piece]
    assert heads == [
        {
            "index": index,
            "id": head["id"],
            "type": "function",
            "function": {"name": "weather", "arguments": ""},
        }
        for index, head in enumerate(heads)
    ]
    assert all(re.fullmatch(r"call_\w+", head["id"]) for head in heads)
    assert len({head["id"] for head in heads}) == 3
    more = [piece for piece in call_deltas if "id" not in piece]
    assert all(
        set(piece) == {"index", "function"} and set(piece["function"]) == {"arguments"} for piece in more
    )
    assert [piece["index"] for piece in call_deltas] == sorted(piece["index"] for piece in call_deltas)
    whole = [
        "".join(p["function"]["arguments"] for p in call_deltas if p["index"] == index) for index in range(3)
    ]
    assert whole == ['{"city": "Bonn"}', "{}", "{}"]
    assert end == {}
    assert frames[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_a_refusal_comes_in_place_of_content(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(events(chunk({"refusal": "I must "}), chunk({"refusal": "not."}), chunk({}, "stop")))
    async with Wire(served) as wire:
        frames = await wire.frames()

    assert deltas(frames) == [
        {"role": "assistant", "content": None, "refusal": ""},
        {"refusal": "I must "},
        {"refusal": "not."},
        {},
    ]


async def test_an_empty_answer_is_still_a_whole_stream(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(events(chunk({}, "stop")))
    async with Wire(served) as wire:
        frames = await wire.frames()

    assert deltas(frames) == [ROLE, {}]


async def test_two_agents_read_as_one_message(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {}), text="One moment."), text("Which rocket?"))
    async with Wire(served) as wire:
        frames = await wire.frames()

    said = "".join(delta.get("content") or "" for delta in deltas(frames))
    assert said == "One moment.\n\nWhich rocket?"
    assert sum("role" in delta for delta in deltas(frames)) == 1
    assert [f["choices"][0]["finish_reason"] for f in frames[:-1]].count("stop") == 1


@pytest.mark.parametrize(
    ("provider_reason", "finish"),
    [
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("end_turn", "stop"),
        ("", "stop"),
        ("tool_calls", "stop"),
        ("function_call", "stop"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_no_finish_reason_leaves_but_the_official_ones(
    served: Served, upstream: FakeUpstream, provider_reason: str, finish: str, stream: bool
) -> None:
    upstream.reply(events(chunk({"content": "Hi"}), chunk({}, provider_reason)))
    async with Wire(served) as wire:
        if stream:
            reasons = [f["choices"][0]["finish_reason"] for f in (await wire.frames())[:-1]]
            assert reasons == [None, None, finish]
        else:
            assert (await wire.completion()).choices[0].finish_reason == finish


# --- log probabilities ---


def token(word: str) -> dict[str, Any]:
    one = {"token": word, "logprob": -0.5, "bytes": list(word.encode())}
    return {**one, "top_logprobs": [one]}


def chunk_with(delta: dict[str, Any], finish: str | None = None, **logprobs: Any) -> dict[str, Any]:
    whole = chunk(delta, finish)
    whole["choices"][0]["logprobs"] = logprobs or None
    return whole


async def test_log_probabilities_are_in_the_chunk_of_their_token(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(
        events(
            chunk_with({"role": "assistant", "content": ""}, content=[], refusal=None),
            chunk_with({"content": "He"}, content=[token("He")], refusal=None),
            chunk_with({"content": "llo"}, content=[token("llo")], refusal=None),
            chunk_with({}, "stop"),
        )
    )
    async with Wire(served) as wire:
        frames = await wire.frames(logprobs=True, top_logprobs=1)

    assert [frame["choices"][0]["logprobs"] for frame in frames[:-1]] == [
        {"content": [], "refusal": None},
        {"content": [token("He")], "refusal": None},
        {"content": [token("llo")], "refusal": None},
        None,
    ]


async def test_a_plain_answer_carries_them_too(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        events(
            chunk_with({"content": "He"}, content=[token("He")], refusal=None),
            chunk_with({"content": "llo"}, content=[token("llo")], refusal=None),
            chunk_with({}, "stop"),
        )
    )
    async with Wire(served) as wire:
        response = await wire.ask(logprobs=True, top_logprobs=1)

    logprobs = response.json()["choices"][0]["logprobs"]
    assert logprobs == {"content": [token("He"), token("llo")], "refusal": None}


async def test_log_probabilities_of_a_refusal_are_in_its_chunk(
    served: Served, upstream: FakeUpstream
) -> None:
    answer = events(
        chunk_with({"refusal": "No"}, content=None, refusal=[token("No")]), chunk_with({}, "stop")
    )
    upstream.reply(answer, answer)
    async with Wire(served) as wire:
        frames = await wire.frames(logprobs=True)
        plain = (await wire.ask(logprobs=True)).json()

    assert frames[1]["choices"][0]["logprobs"] == {"content": None, "refusal": [token("No")]}
    assert plain["choices"][0]["logprobs"] == {"content": None, "refusal": [token("No")]}


async def test_a_provider_that_gives_none_is_not_made_to_lie(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))
    async with Wire(served) as wire:
        plain = (await wire.ask(logprobs=True)).json()

    assert plain["choices"][0]["logprobs"] is None


# --- how it ends ---


async def test_a_failure_behind_the_first_word_takes_the_place_of_the_finish(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello there", chunks=4).cut(after=3))
    async with Wire(served) as wire:
        frames = await wire.frames(stream_options={"include_usage": True})

    *chunks, failure, done = frames
    assert done == "[DONE]"
    assert set(failure) == {"error"}
    assert set(failure["error"]) == {"message", "type", "param", "code"}
    assert failure["error"]["code"] == "upstream_error"
    assert all(one["choices"][0]["finish_reason"] is None for one in chunks)


async def test_the_sdk_raises_on_it(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello there", chunks=4).cut(after=3))
    stream: Any = await served.client().chat.completions.create(model="shop", messages=HELLO, stream=True)

    with pytest.raises(openai.APIError) as failure:
        async for _ in stream:
            pass
    assert failure.value.code == "upstream_error"


@pytest.mark.parametrize("reply", [error(500), cut()], ids=["refused", "cut"])
async def test_a_failure_before_the_first_word_has_its_own_status(
    served: Served, upstream: FakeUpstream, reply: Any
) -> None:
    # Three attempts, and one more if the first one has a connection that was in use before.
    upstream.reply(*[reply] * 4)
    async with Wire(served) as wire:
        response = await wire.ask(stream=True)

    assert response.status_code == 502
    assert response.headers["content-type"] == "application/json"
    assert set(response.json()) == {"error"}


@pytest.mark.parametrize("ending", ["whole", "failed"])
async def test_the_body_ends_after_done_and_the_connection_stays_open(
    served: Served, upstream: FakeUpstream, ending: str
) -> None:
    reply = text("Hello")
    upstream.reply(reply if ending == "whole" else reply.cut(after=2), reply)
    body = json.dumps({"model": "shop", "messages": HELLO, "stream": True}).encode()
    async with Socket(served) as socket:
        await socket.post(body, "Authorization: Bearer one")
        first = await socket.reply()
        await socket.post(body, "Authorization: Bearer two")
        second = await socket.reply()

    for reply_read in (first, second):
        # The last event and the end of the body come together: the SDK waits for the latter.
        assert reply_read.raw.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert first.headers["transfer-encoding"] == "chunked"
    assert payloads(second.body.decode())[-1] == "[DONE]"


async def test_the_sdks_connection_is_used_again(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(*[text("Hello")] * 5)
    client = served.client()
    for _ in range(5):
        stream: Any = await client.chat.completions.create(model="shop", messages=HELLO, stream=True)
        async for _ in stream:
            pass
        await stream.close()

    pool: Any = client._client._transport._pool  # type: ignore[attr-defined]
    assert len(pool.connections) == 1


@pytest.mark.parametrize(
    ("headers", "comment"),
    [({}, ": ping\n\n"), ({"X-Event-Ids": "true"}, ": ping\n")],
    ids=["without ids", "with ids"],
)
async def test_a_quiet_stream_gets_comments(
    tmp_path: Path, upstream: FakeUpstream, headers: dict[str, str], comment: str
) -> None:
    go = asyncio.Event()
    upstream.reply(text("Hello", chunks=["He", go, "llo"]))
    body = ""
    async with serve(tmp_path, upstream.base_url, keep_alive_interval=0.02) as served, Wire(served) as wire:
        requested = {"model": "shop", "messages": HELLO, "stream": True}
        async with wire.http.stream("POST", "/chat/completions", json=requested, headers=headers) as response:
            async for piece in response.aiter_text():
                body += piece
                if body.endswith(comment):
                    go.set()

    assert f"{comment}{'id: ' if headers else 'data: '}" in body
    assert (": ping\n\n" in body) is not bool(headers)
    assert deltas(payloads(body)) == [ROLE, {"content": "He"}, {"content": "llo"}, {}]


@pytest.mark.parametrize(
    ("headers", "query", "has_ids"),
    [
        ({}, "", False),
        ({"X-Event-Ids": "true"}, "", True),
        ({}, "?event_ids=true", True),
        ({"X-Event-Ids": "false"}, "?event_ids=true", False),
    ],
)
async def test_frames_have_ids_if_the_client_asks_for_them(
    served: Served, upstream: FakeUpstream, headers: dict[str, str], query: str, has_ids: bool
) -> None:
    upstream.reply(text("Hello"))
    async with Wire(served) as wire:
        body = {"model": "shop", "messages": HELLO, "stream": True}
        response = await wire.http.post(f"/chat/completions{query}", json=body, headers=headers)

    pattern = r"id: \d+(\.\d+)?\ndata: [^\n]+" if has_ids else r"data: [^\n]+"
    *rest, last = response.text.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    assert all(re.fullmatch(pattern, frame) for frame in rest)


async def test_another_value_for_ids_is_rejected(served: Served, upstream: FakeUpstream) -> None:
    async with Wire(served) as wire:
        body = {"model": "shop", "messages": HELLO, "stream": True}
        response = await wire.http.post("/chat/completions?event_ids=maybe", json=body)

    assert (response.status_code, response.json()["error"]["param"]) == (400, "event_ids")


async def test_a_reader_that_takes_everything_for_data_gets_the_whole_answer(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    # Dify splits a stream at blank lines, ignores parts that begin with a colon, and reads the others as JSON.
    go = asyncio.Event()
    upstream.reply(text("Hello", chunks=["He", go, "llo"]))
    answer, rest = "", ""
    async with serve(tmp_path, upstream.base_url, keep_alive_interval=0.02) as served, Wire(served) as wire:
        requested = {"model": "shop", "messages": HELLO, "stream": True}
        async with wire.http.stream("POST", "/chat/completions", json=requested) as response:
            async for piece in response.aiter_text():
                *parts, rest = (rest + piece).split("\n\n")
                for part in parts:
                    if part.startswith(":"):
                        go.set()
                    elif (data := part.removeprefix("data:").strip()) != "[DONE]":
                        answer += json.loads(data)["choices"][0]["delta"].get("content") or ""

    assert (answer, rest) == ("Hello", "")


async def test_the_sdks_accumulator_makes_the_plain_answer_of_a_stream(
    served: Served, upstream: FakeUpstream
) -> None:
    reply = calls(("weather", {"city": "Bonn"}), ("weather", {"city": "Rome"}), text="Let me see.")
    upstream.reply(reply, reply)
    state = ChatCompletionStreamState()
    client: Any = served.client("one").chat.completions
    stream = await client.create(
        model="shop",
        messages=[user("Both?")],
        tools=[WEATHER],
        stream=True,
        stream_options={"include_usage": True},
        extra_headers={"X-Handoff-Events": "none"},
    )
    async for one in stream:
        state.handle_chunk(one)
    plain = await served.client("two").chat.completions.create(
        model="shop", messages=[user("Both?")], tools=[WEATHER], extra_headers={"X-Handoff-Events": "none"}
    )

    gathered, answered = (
        one.model_dump(exclude={"id", "created", "service_tier"})
        for one in (state.get_final_completion(), plain)
    )
    for one in (gathered, answered):
        for number, call in enumerate(one["choices"][0]["message"]["tool_calls"]):
            call["id"] = number
            call.pop("index", None)
            call["function"].pop("parsed_arguments", None)
        one["choices"][0]["message"].pop("parsed", None)
        one["choices"][0]["message"].pop("annotations", None)
    assert gathered == answered
