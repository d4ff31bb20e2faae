"""Completions and their streams, frame by frame, and as the official SDK reads them."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import APIError
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from proxy.errors import InvalidRequest
from proxy.events import (
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    Entry,
    Event,
    Failed,
    Handoff,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import Usage
from proxy.wire.chat.answer_text import visible_text
from proxy.wire.chat.completion import (
    AnswerOptions,
    CompletionBuilder,
    completion,
    decode_options,
    encode_options,
)
from proxy.wire.chat.response_models import Completion, encode
from proxy.wire.chat.stream import ChunkEncoder
from proxy.wire.events import sse
from tests.fakes.streams import PLAIN, deltas, entries, frames, read, sdk, stream

WITH_USAGE = AnswerOptions(id="chatcmpl-1", created=1700000000, model="acme-support", include_usage=True)
OLD_FORM = AnswerOptions(id="chatcmpl-1", created=1700000000, model="acme-support", uses_functions=True)
USAGE = Usage(prompt=10, completion=5, cached=4, reasoning=2)
USAGE_BODY = {
    "prompt_tokens": 10,
    "completion_tokens": 5,
    "total_tokens": 15,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {
        "reasoning_tokens": 2,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
STARTED = Started("chatcmpl-1", "triage")
CALLED = ModelCalled("triage", "gpt", USAGE, 0.1)
DONE = Completed("triage", "stop", USAGE)
CALLS_DONE = Completed("triage", "tool_calls", USAGE)
HIDDEN: list[Event] = [
    ReasoningDelta("hm"),
    ToolStarted("c", "look_up", "{}", "triage"),
    ToolCompleted("c", "look_up", "found", 0.1),
    ToolStarted("d", "look_up", "{}", "triage"),
    ToolFailed("d", "look_up", "gone", 0.1),
    CALLED,
    Handoff("triage", "sales", "wants to buy"),
]


def assert_official(model: BaseModel) -> None:
    """No field beyond those that the SDK declares, at any depth."""
    assert not model.model_extra
    for name in type(model).model_fields:
        value = getattr(model, name)
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, BaseModel):
                assert_official(inner)


# --- the frames ----------------------------------------------------------------------------------------------


def test_a_stream_is_the_official_one_byte_for_byte() -> None:
    head = '{"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"acme-support","choices":['

    assert stream(STARTED, TextDelta("Hel"), TextDelta("lo"), CALLED, DONE).decode() == (
        f'id: 2\ndata: {head}{{"index":0,"delta":{{"role":"assistant","content":"","refusal":null}},'
        '"logprobs":null,"finish_reason":null}]}\n\n'
        f'id: 2.1\ndata: {head}{{"index":0,"delta":{{"content":"Hel"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'id: 3\ndata: {head}{{"index":0,"delta":{{"content":"lo"}},"logprobs":null,"finish_reason":null}}]}}\n\n'
        f'id: 5\ndata: {head}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}]}}\n\n'
        "data: [DONE]\n\n"
    )


def test_usage_comes_last_and_only_on_request() -> None:
    with_usage = stream(STARTED, TextDelta("Hi"), DONE, options=WITH_USAGE)
    *chunks, (usage_id, last), done = frames(with_usage)

    assert [json.loads(text)["usage"] for _, text in chunks] == [None, None, None]
    assert (json.loads(last)["choices"], json.loads(last)["usage"]) == ([], USAGE_BODY)
    assert (usage_id, done) == ("3.1", (None, "[DONE]"))
    assert b"usage" not in stream(STARTED, TextDelta("Hi"), DONE)


def test_an_answer_of_nothing_has_a_role_and_an_end() -> None:
    assert deltas(stream(STARTED, DONE)) == [
        {"role": "assistant", "content": "", "refusal": None},
        "stop",
        "[DONE]",
    ]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
def test_the_reason_of_the_end_is_passed_on(reason: Any) -> None:
    assert deltas(stream(STARTED, TextDelta("Hi"), Completed("triage", reason, USAGE)))[-2:] == [
        reason,
        "[DONE]",
    ]


def test_calls_come_in_pieces_with_index_and_only_the_first_has_id_and_name() -> None:
    events: list[Event] = [
        STARTED,
        ClientToolCall(0, "call_a", "f"),
        ClientToolArguments(0, '{"ci'),
        ClientToolArguments(0, ""),
        ClientToolArguments(0, 'ty":1}'),
        ClientToolCall(1, "call_b", "g"),
        ClientToolCall(2, "call_c", "h"),
        CALLED,
        CALLS_DONE,
    ]

    def first(index: int, call_id: str, name: str) -> dict[str, Any]:
        function = {"name": name, "arguments": ""}
        return {"tool_calls": [{"index": index, "id": call_id, "type": "function", "function": function}]}

    def more(index: int, arguments: str) -> dict[str, Any]:
        return {"tool_calls": [{"index": index, "function": {"arguments": arguments}}]}

    assert deltas(stream(*events)) == [
        {"role": "assistant", "content": None},
        first(0, "call_a", "f"),
        more(0, '{"ci'),
        more(0, 'ty":1}'),
        first(1, "call_b", "g"),
        more(1, "{}"),
        first(2, "call_c", "h"),
        more(2, "{}"),
        "tool_calls",
        "[DONE]",
    ]


def test_calls_after_text_do_not_repeat_the_role() -> None:
    events: list[Event] = [STARTED, TextDelta("Let me see."), ClientToolCall(0, "call_a", "f"), CALLS_DONE]

    assert ["role" in delta for delta in deltas(stream(*events)) if isinstance(delta, dict)] == [True] + [
        False
    ] * 3


def test_a_refusal_has_its_own_field() -> None:
    assert deltas(stream(STARTED, RefusalDelta("I'm"), RefusalDelta(" sorry"), DONE)) == [
        {"role": "assistant", "content": None, "refusal": ""},
        {"refusal": "I'm"},
        {"refusal": " sorry"},
        "stop",
        "[DONE]",
    ]


def test_what_the_servers_own_tools_do_leaves_no_trace() -> None:
    with_tools = deltas(stream(STARTED, *HIDDEN, TextDelta("Hi"), *HIDDEN, DONE))

    assert with_tools == deltas(stream(STARTED, TextDelta("Hi"), DONE))


def test_texts_of_two_agents_are_separated() -> None:
    events: list[Event] = [
        STARTED,
        TextDelta("One"),
        TextDelta("."),
        CALLED,
        *HIDDEN,
        TextDelta("Two"),
        TextDelta("."),
        CALLED,
        DONE,
    ]

    assert [delta["content"] for delta in deltas(stream(*events))[1:-2]] == ["One", ".", "\n\nTwo", "."]
    assert visible_text(events) == "One.\n\nTwo."


@pytest.mark.parametrize(
    ("said", "next_one", "read_as"),
    [
        ("a", "b", "a\n\nb"),
        ("a\n", "b", "a\n\nb"),
        ("a\n\n", "b", "a\n\nb"),
        ("a\n\n\n", "b", "a\n\n\nb"),
        ("a ", "b", "a \n\nb"),
        ("\n", "b", "\n\nb"),
    ],
    ids=repr,
)
def test_line_breaks_that_are_there_count_for_the_joint(said: str, next_one: str, read_as: str) -> None:
    assert visible_text([*map(TextDelta, said), Handoff("a", "b"), TextDelta(next_one)]) == read_as


def test_an_answer_neither_begins_nor_ends_with_a_joint() -> None:
    assert visible_text([CALLED, Handoff("a", "b"), TextDelta("Hi"), CALLED, CALLED]) == "Hi"


def test_logprobs_are_in_the_chunk_of_their_tokens() -> None:
    options = AnswerOptions(id="c", created=1, model="m", logprobs=True)
    token = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}
    data = stream(
        STARTED, TextDelta("Hi", [token]), TextDelta("Hi", [token]), TextDelta("!"), DONE, options=options
    )

    assert [json.loads(text)["choices"][0]["logprobs"] for _, text in frames(data)[:-1]] == [
        {"content": [], "refusal": None},
        {"content": [token], "refusal": None},
        {"content": [token], "refusal": None},
        None,
        None,
    ]
    assert b"-0.1" not in stream(STARTED, TextDelta("Hi", [token]), DONE)


def test_one_head_goes_through_the_whole_stream() -> None:
    options = AnswerOptions(
        id='chatcmpl-"ä',
        created=5,
        model="a/b",
        include_usage=True,
        service_tier="default",
        system_fingerprint="fp_1",
    )
    chunks = [
        json.loads(text) for _, text in frames(stream(STARTED, TextDelta("Hi"), DONE, options=options))[:-1]
    ]

    for chunk in chunks:
        del chunk["choices"], chunk["usage"]
        assert chunk == {
            "id": 'chatcmpl-"ä',
            "object": "chat.completion.chunk",
            "created": 5,
            "model": "a/b",
            "service_tier": "default",
            "system_fingerprint": "fp_1",
        }


# --- endings that are none -----------------------------------------------------------------------------------


def test_a_failure_takes_the_place_of_the_end() -> None:
    failed = Failed("upstream_incomplete", "It broke off.", USAGE, is_repeatable=True)

    assert deltas(stream(STARTED, TextDelta("Hi"), failed, options=WITH_USAGE))[2:] == [
        {
            "error": {
                "message": "It broke off.",
                "type": "upstream_error",
                "param": None,
                "code": "upstream_incomplete",
            }
        },
        "[DONE]",
    ]


def test_the_sdk_raises_a_failure_in_a_stream() -> None:
    data = stream(STARTED, TextDelta("Hi"), Failed("upstream_incomplete", "It broke off.", USAGE))
    chunks = sdk(data).chat.completions.create(model="m", messages=[], stream=True)

    assert [next(chunks).choices[0].delta.content for _ in range(2)] == ["", "Hi"]
    with pytest.raises(APIError, match=r"It broke off\.") as caught:
        next(chunks)
    assert caught.value.code == "upstream_incomplete"


def test_a_turn_cancelled_on_request_ends_properly() -> None:
    cancelled = Cancelled("requested", "triage", USAGE)

    assert deltas(stream(STARTED, TextDelta("Once upon"), cancelled, options=WITH_USAGE))[1:] == [
        {"content": "Once upon"},
        "stop",
        {"usage": USAGE_BODY},
        "[DONE]",
    ]
    answer = completion(PLAIN, [STARTED, TextDelta("Once upon"), cancelled])
    assert isinstance(answer, Completion)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("Once upon", "stop")


def test_a_call_truncated_by_cancellation_is_not_completed() -> None:
    events: list[Event] = [
        STARTED,
        ClientToolCall(0, "call_a", "f"),
        ClientToolArguments(0, "{}"),
        Cancelled("requested", "triage", USAGE),
    ]

    *_, error, done = deltas(stream(*events))
    answer = completion(PLAIN, events)

    assert (error["error"]["code"], error["error"]["type"], done) == (
        "turn_cancelled",
        "invalid_request_error",
        "[DONE]",
    )
    assert isinstance(answer, Completion)
    assert answer.choices[0].finish_reason == "stop"
    assert b"tool_calls" not in encode(answer)


@pytest.mark.parametrize(
    ("reason", "before", "code", "kind"),
    [
        ("shutting_down", [TextDelta("Hi")], "shutting_down", "server_error"),
        ("shutting_down", HIDDEN, "shutting_down", "invalid_request_error"),
        ("client_left", [TextDelta("Hi")], "turn_cancelled", "invalid_request_error"),
    ],
    ids=["shutting down", "shutting down after a tool", "client left"],
)
def test_other_cancellations_are_errors(reason: Any, before: list[Event], code: str, kind: str) -> None:
    events: list[Event] = [STARTED, *before, Cancelled(reason, "triage", USAGE)]

    *_, error, done = deltas(stream(*events))
    failed = completion(PLAIN, events)

    assert (error["error"]["code"], error["error"]["type"], done) == (code, kind, "[DONE]")
    assert isinstance(failed, Failed)
    assert failed.code == code


# --- one object ----------------------------------------------------------------------------------------------


def test_a_completion_is_the_official_one() -> None:
    answer = completion(PLAIN, [STARTED, TextDelta("Hel"), TextDelta("lo"), CALLED, DONE])

    assert json.loads(encode(answer)) == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "acme-support",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None, "annotations": []},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": USAGE_BODY,
    }


def message_of(*events: Event, options: AnswerOptions = PLAIN) -> dict[str, Any]:
    choice: dict[str, Any] = json.loads(encode(completion(options, [STARTED, *events])))["choices"][0]
    return {key: value for key, value in choice["message"].items() if key not in ("role", "annotations")}


def test_content_is_null_with_calls_or_a_refusal_and_else_a_string() -> None:
    call: list[Event] = [
        ClientToolCall(0, "call_a", "f"),
        ClientToolArguments(0, '{"a"'),
        ClientToolArguments(0, ":1}"),
    ]
    reported = {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}

    assert message_of(*call, CALLS_DONE) == {"content": None, "refusal": None, "tool_calls": [reported]}
    assert message_of(TextDelta("x"), *call, CALLS_DONE) == {
        "content": "x",
        "refusal": None,
        "tool_calls": [reported],
    }
    assert message_of(RefusalDelta("n"), RefusalDelta("o"), DONE) == {"content": None, "refusal": "no"}
    assert message_of(DONE) == {"content": "", "refusal": None}


def test_a_call_without_arguments_has_an_empty_object_of_them() -> None:
    reported = message_of(ClientToolCall(0, "call_a", "f"), CALLS_DONE)

    assert reported["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


def test_a_caller_of_functions_is_answered_in_the_old_form() -> None:
    events: list[Event] = [ClientToolCall(0, "call_a", "f"), ClientToolArguments(0, '{"a":1}'), CALLS_DONE]

    assert message_of(*events, options=OLD_FORM) == {
        "content": None,
        "refusal": None,
        "function_call": {"name": "f", "arguments": '{"a":1}'},
    }
    assert deltas(stream(STARTED, *events, options=OLD_FORM)) == [
        {"role": "assistant", "content": None},
        {"function_call": {"name": "f", "arguments": ""}},
        {"function_call": {"arguments": '{"a":1}'}},
        "function_call",
        "[DONE]",
    ]


def test_function_call_has_only_the_first_of_several_calls() -> None:
    one: list[Event] = [ClientToolCall(0, "call_a", "f"), ClientToolArguments(0, "{}")]
    two: list[Event] = [*one, ClientToolCall(1, "call_b", "g"), ClientToolArguments(1, "[]"), CALLS_DONE]

    assert deltas(stream(STARTED, *two, options=OLD_FORM)) == deltas(
        stream(STARTED, *one, CALLS_DONE, options=OLD_FORM)
    )
    assert message_of(*two, options=OLD_FORM)["function_call"] == {"name": "f", "arguments": "{}"}


def test_tier_and_fingerprint_are_included_if_set() -> None:
    options = AnswerOptions(id="c", created=1, model="m", service_tier="default", system_fingerprint="fp_1")
    reported = json.loads(encode(completion(options, [STARTED, DONE])))

    assert (reported["service_tier"], reported["system_fingerprint"]) == ("default", "fp_1")


def test_logprobs_of_the_whole_answer_are_gathered() -> None:
    options = AnswerOptions(id="c", created=1, model="m", logprobs=True)
    answer = completion(
        options, [STARTED, TextDelta("a", [{"token": "a"}]), TextDelta("b", [{"token": "b"}]), DONE]
    )

    assert json.loads(encode(answer))["choices"][0]["logprobs"] == {
        "content": [{"token": "a"}, {"token": "b"}],
        "refusal": None,
    }


def test_a_failed_turn_has_no_completion() -> None:
    failed = Failed("upstream_error", "It failed.", USAGE)

    assert completion(PLAIN, [STARTED, TextDelta("Hi"), failed]) is failed


def test_a_turn_that_is_not_over_has_no_answer() -> None:
    builder = CompletionBuilder(PLAIN)
    builder.add(Entry(1, STARTED))

    with pytest.raises(ValueError, match="no closing event"):
        builder.answer()


def test_options_are_stored_with_the_turn() -> None:
    options = AnswerOptions(id="c", created=1, model="m", include_usage=True, service_tier="default")

    assert decode_options(encode_options(options)) == options


# --- the SDK as the judge ------------------------------------------------------------------------------------

TEXTS = st.text(min_size=1, max_size=6) | st.sampled_from(
    ["\n", "\n\n", '"', "\u2028", "\u0085x", "\r\n", "data: ", "\0"]
)
TRANSCRIPT = st.one_of(TEXTS.map(TextDelta), st.sampled_from(HIDDEN))


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    """Events of a completed turn: text, optionally a refusal and tool calls."""
    events: list[Event] = [STARTED, *draw(st.lists(TRANSCRIPT, max_size=8))]
    events += map(RefusalDelta, draw(st.lists(TEXTS, max_size=2)))
    count = draw(st.integers(0, 3))
    for index in range(count):
        events.append(ClientToolCall(index, f"call_{index}", f"f{index}"))
        events += [
            ClientToolArguments(index, piece)
            for piece in draw(st.lists(st.sampled_from(["", "{", "}", '"é"'])))
        ]
    return [*events, CALLED, CALLS_DONE if count else DONE]


FORMS = st.sampled_from(
    [PLAIN, WITH_USAGE, AnswerOptions(id="c", created=1, model="m", service_tier="default")]
)
SLOWLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOWLY
@given(turns(), FORMS)
def test_the_sdk_reads_from_a_stream_what_it_reads_from_the_object(
    events: list[Event], options: AnswerOptions
) -> None:
    whole = ChatCompletion.model_validate_json(encode(completion(options, events)), strict=True)
    assert_official(whole)

    reported = read(stream(*events, options=options))

    expected, found = whole.choices[0], reported.choices[0]
    assert (found.message.content or "") == (expected.message.content or "") == visible_text(events)
    assert (found.message.refusal or None) == expected.message.refusal
    assert (found.finish_reason, found.message.role) == (expected.finish_reason, "assistant")
    assert [
        call.model_dump(include={"id", "type", "function"}) for call in found.message.tool_calls or []
    ] == [
        {**call.model_dump(), "function": {**call.model_dump()["function"], "parsed_arguments": None}}
        for call in expected.message.tool_calls or []
    ]
    assert (reported.id, reported.created, reported.model, reported.service_tier) == (
        whole.id,
        whole.created,
        whole.model,
        whole.service_tier,
    )
    assert reported.usage == (whole.usage if options.include_usage else None)


@SLOWLY
@given(turns(), FORMS)
def test_every_chunk_is_one_that_the_sdk_knows(events: list[Event], options: AnswerOptions) -> None:
    data = stream(*events, options=options)

    for _, text in frames(data)[:-1]:
        chunk = ChatCompletionChunk.model_validate_json(text, strict=True)
        assert_official(chunk)
        assert (chunk.id, chunk.created, chunk.model) == (options.id, options.created, options.model)
        assert len(chunk.choices) == 1 or (chunk.usage is not None and options.include_usage)


@SLOWLY
@given(turns(), FORMS, st.booleans())
def test_a_resumed_stream_continues_after_the_last_seen_frame(
    events: list[Event], options: AnswerOptions, fails: bool
) -> None:
    if fails:
        events = [*events[:-1], Failed("upstream_error", "It failed.", USAGE)]
    whole = frames(stream(*events, options=options))

    for number, (seen, _) in enumerate(whole, 1):
        if seen is not None:
            rest = stream(*events, options=options, after=sse.position(seen))
            assert frames(rest) == whole[number:]
    assert len({place for place, _ in whole}) == len(whole)


@SLOWLY
@given(turns())
def test_readers_that_split_at_any_line_end_see_whole_frames(events: list[Event]) -> None:
    response = httpx2.Response(200, content=stream(*events))

    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]

    assert lines == [text for _, text in frames(stream(*events))]


@pytest.mark.parametrize(("has_ids", "ping"), [(False, sse.PING), (True, sse.PING_BETWEEN_IDS)])
def test_keep_alives_between_frames_are_ignored_by_the_sdk(has_ids: bool, ping: bytes) -> None:
    encoder = ChunkEncoder(WITH_USAGE, has_ids=has_ids)
    events: list[Event] = [STARTED, TextDelta("Hel"), TextDelta("lo"), DONE]
    data = ping * 2 + ping.join(encoder.encode(entry) for entry in entries(events))

    assert read(data).choices[0].message.content == "Hello"


def test_the_sdk_reads_a_completion() -> None:
    answer = encode(completion(PLAIN, [STARTED, TextDelta("Hi"), DONE]))

    reported = sdk(answer, "application/json").chat.completions.create(model="m", messages=[])

    assert (reported.choices[0].message.content, reported.usage and reported.usage.total_tokens) == ("Hi", 15)


# --- positions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "place"), [("0", (0, 0)), ("12", (12, 0)), (" 12.1 ", (12, 1)), ("007.02", (7, 2))], ids=repr
)
def test_a_position_is_read(value: str, place: sse.Position) -> None:
    assert sse.position(value) == place


@pytest.mark.parametrize("value", ["", "-1", "1.", ".1", "1.1.1", "a", "１", "9" * 13, "1e3"], ids=repr)
def test_an_invalid_position_is_rejected(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        sse.position(value, param="starting_after")

    assert caught.value.param == "starting_after"
