"""Events of a turn as a response; the official SDK's strict types judge every frame."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.responses._responses import ResponseStreamState

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
    decode_journal,
    encode_journal,
)
from proxy.messages import Usage
from proxy.wire.chat.answer_text import visible_text
from proxy.wire.chat.completion import AnswerOptions
from proxy.wire.chat.completion import decode_options as decode_answer_options
from proxy.wire.chat.completion import encode_options as encode_answer_options
from proxy.wire.responses.ids import parse_item_id, response_id, turn_id_of
from proxy.wire.responses.options import Echo, ResponseOptions, decode_options, encode_options
from proxy.wire.responses.stream import ResponseBuilder, ResponseEncoder, response_of
from tests.fakes.response_stream import TYPES, events_in, judged_response, steps
from tests.fakes.response_stream import Event as WireEvent

TURN = "chatcmpl-" + "ab" * 16
STARTED = Started(TURN, "triage")
CALLED = ModelCalled("triage", "m", Usage(10, 5, cached=4, reasoning=2), 0.5)
USAGE = Usage(20, 10, cached=8, reasoning=4)
DONE = Completed("sales", "stop", USAGE)
LOOKED_UP: list[Event] = [
    ToolStarted("call_s1", "look_up_item", '{"search_query":"rocket"}', "repairs"),
    ToolCompleted("call_s1", "look_up_item", "item_1", 0.25),
]
WHOLE: list[Event] = [
    STARTED,
    TextDelta("One moment."),
    CALLED,
    Handoff("triage", "repairs", "it is broken"),
    ReasoningDelta("What is "),
    ReasoningDelta("broken?"),
    CALLED,
    *LOOKED_UP,
    TextDelta("Your "),
    TextDelta("rocket\u2028é."),
    ClientToolCall(0, "call_c1", "weather"),
    ClientToolArguments(0, '{"city":'),
    ClientToolArguments(0, '"Bonn"}'),
    ClientToolCall(1, "call_c2", "clock"),
    CALLED,
    Completed("repairs", "tool_calls", USAGE),
]
"""A turn with everything in it."""


def options(**changes: Any) -> ResponseOptions:
    return ResponseOptions(
        **{
            "id": TURN,
            "created": 1_750_000_000,
            "model": "shop",
            "events": "all",
            **changes,
        }
    )


def log(events: Sequence[Event]) -> list[Entry]:
    return [Entry(place, event, 1_750_000_000.25 + place) for place, event in enumerate(events, 1)]


def stream(*events: Event, after: int = -1, **changes: Any) -> list[WireEvent]:
    encoder = ResponseEncoder(options(**changes), after=after)
    return events_in(b"".join(encoder.encode(entry) for entry in log(events)).decode())


def response(*events: Event, **changes: Any) -> Any:
    body = json.loads(msgspec.json.encode(response_of(options(**changes), log(events))))
    judged_response(body)
    return body


# --- the order of events -------------------------------------------------------------------------------------


def test_text_comes_in_the_official_order() -> None:
    reported = stream(STARTED, TextDelta("Hel"), TextDelta("lo"), CALLED, DONE)

    assert [event["type"] for event in reported] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in reported] == list(range(10))
    assert [event["delta"] for event in reported[4:6]] == ["Hel", "lo"]
    assert reported[6]["text"] == reported[7]["part"]["text"] == "Hello"
    assert reported[8]["item"] == reported[9]["response"]["output"][0]
    assert [reported[at]["item"]["status"] for at in (2, 8)] == ["in_progress", "completed"]
    assert [reported[at]["response"]["status"] for at in (0, 1, 9)] == [
        "in_progress",
        "in_progress",
        "completed",
    ]


def test_client_tool_calls_are_streamed_and_completed() -> None:
    reported = stream(
        STARTED,
        ClientToolCall(0, "call_1", "weather"),
        ClientToolArguments(0, '{"a":'),
        ClientToolArguments(0, "1}"),
        ClientToolCall(1, "call_2", "clock"),
        CALLED,
        Completed("triage", "tool_calls", USAGE),
    )

    assert steps(reported)[2:-1] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert [
        (i["call_id"], i["name"], i["arguments"], i["status"]) for i in reported[-1]["response"]["output"]
    ] == [
        ("call_1", "weather", '{"a":1}', "completed"),
        ("call_2", "clock", "{}", "completed"),
    ]


def test_server_tool_calls_are_encoded_as_mcp_calls() -> None:
    reported = stream(
        STARTED,
        CALLED,
        Handoff("triage", "repairs", "broken"),
        *LOOKED_UP,
        TextDelta("Hi"),
        DONE,
        shows_server_calls=True,
    )

    call = [
        "output_item.added",
        "mcp_call.in_progress",
        "mcp_call_arguments.delta",
        "mcp_call_arguments.done",
        "mcp_call.completed",
        "output_item.done",
    ]
    assert steps(reported)[2:14] == call + call
    items = reported[-1]["response"]["output"]
    assert [(i["type"], i.get("name"), i.get("arguments"), i.get("output")) for i in items] == [
        ("mcp_call", "handoff", '{"from":"triage","to":"repairs","reason":"broken"}', "repairs"),
        ("mcp_call", "look_up_item", '{"search_query":"rocket"}', "item_1"),
        ("message", None, None, None),
    ]
    assert {i["server_label"] for i in items[:2]} == {"handoff-proxy"}


def test_server_calls_are_items_only_if_included() -> None:
    reported = stream(
        STARTED,
        TextDelta("One moment."),
        CALLED,
        Handoff("triage", "repairs", "broken"),
        *LOOKED_UP,
        TextDelta("Hi"),
        ClientToolCall(0, "call_1", "weather"),
        CALLED,
        Completed("repairs", "tool_calls", USAGE),
    )

    assert not [event for event in reported if "mcp" in event["type"]]
    added = [event["output_index"] for event in reported if event["type"] == "response.output_item.added"]
    assert added == [0, 1]
    message, call = reported[-1]["response"]["output"]
    assert (message["type"], call["type"]) == ("message", "function_call")
    assert message["content"][0]["text"] == "One moment.\n\nHi"
    assert "handoff" in reported[-1]["response"]


def test_tools_that_run_at_once_keep_their_places() -> None:
    reported = stream(
        STARTED,
        ToolStarted("c1", "one", "{}", "triage"),
        ToolStarted("c2", "two", "{}", "triage"),
        ToolFailed("c2", "two", "no such item", 0.1),
        ToolCompleted("c1", "one", "done", 0.2),
        TextDelta("Hi"),
        DONE,
        shows_server_calls=True,
    )

    ends = [(e["type"], e["output_index"]) for e in reported if e["type"].startswith("response.mcp_call.")][
        2:
    ]
    assert ends == [("response.mcp_call.failed", 1), ("response.mcp_call.completed", 0)]
    one, two, _ = reported[-1]["response"]["output"]
    assert (one["status"], one["output"], one["error"]) == ("completed", "done", None)
    assert (two["status"], two["output"]) == ("failed", None)
    assert two["error"]["content"] == [{"type": "text", "text": "no such item"}]


@pytest.mark.parametrize(
    ("sums_up", "added", "words", "field"),
    [
        (False, "content_part", "reasoning_text", "content"),
        (True, "reasoning_summary_part", "reasoning_summary_text", "summary"),
    ],
    ids=["as it is", "as a summary"],
)
def test_reasoning_is_text_or_summary_as_requested(sums_up: bool, added: str, words: str, field: str) -> None:
    reported = stream(
        STARTED,
        ReasoningDelta("Hm "),
        ReasoningDelta("well"),
        TextDelta("Hi"),
        DONE,
        sums_up_reasoning=sums_up,
    )

    assert steps(reported)[2:8] == [
        "output_item.added",
        f"{added}.added",
        f"{words}.delta",
        f"{words}.done",
        f"{added}.done",
        "output_item.done",
    ]
    assert reported[-1]["response"]["output"][0][field][0]["text"] == "Hm well"


def test_a_refusal_is_a_part_of_the_message() -> None:
    reported = stream(STARTED, TextDelta("Well, "), RefusalDelta("I can"), RefusalDelta("not."), CALLED, DONE)

    assert steps(reported)[3:10] == [
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "content_part.added",
        "refusal.delta",
        "refusal.done",
    ]
    assert [event["content_index"] for event in reported if event["type"] == "response.refusal.delta"] == [
        1,
        1,
    ]
    parts = reported[-1]["response"]["output"][0]["content"]
    assert [part.get("text") or part["refusal"] for part in parts] == ["Well, ", "I cannot."]


def test_arguments_continue_after_text_in_between() -> None:
    reported = stream(
        STARTED,
        ClientToolCall(0, "call_1", "weather"),
        ClientToolArguments(0, "{"),
        TextDelta("Let me see."),
        ClientToolArguments(0, "}"),
        CALLED,
        Completed("triage", "tool_calls", USAGE),
    )

    assert [item.get("arguments") for item in reported[-1]["response"]["output"]] == ["{}", None]


def test_a_response_in_the_background_is_queued_first() -> None:
    reported = stream(STARTED, TextDelta("Hi"), DONE, response=Echo(background=True))

    assert steps(reported)[:3] == ["created", "queued", "in_progress"]
    assert [event["response"]["status"] for event in reported[:3]] == ["queued", "queued", "in_progress"]


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    reported = response(STARTED, CALLED, DONE)

    assert [(item["type"], item["content"][0]["text"]) for item in reported["output"]] == [("message", "")]


def test_successive_agents_are_one_message() -> None:
    events: list[Event] = [
        STARTED,
        TextDelta("One."),
        CALLED,
        Handoff("triage", "sales"),
        TextDelta("Two."),
        CALLED,
        DONE,
    ]

    shown, hidden = response(*events), response(*events, events="none")

    texts = [
        part["text"] for item in shown["output"] if item["type"] == "message" for part in item["content"]
    ]
    assert "".join(texts) == visible_text(events) == "One.\n\nTwo."
    assert [item["content"][0]["text"] for item in hidden["output"]] == ["One.\n\nTwo."]


# --- how it ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "reported"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_that_was_cut_is_incomplete(reason: Any, reported: str) -> None:
    *_, last = every = stream(STARTED, TextDelta("Hel"), CALLED, Completed("triage", reason, USAGE))

    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "incomplete")
    assert last["response"]["incomplete_details"] == {"reason": reported}
    assert every[-2]["item"]["status"] == "incomplete"
    assert last["response"]["completed_at"] is None


@pytest.mark.parametrize("reason", ["requested", "client_left"])
def test_a_cancelled_turn_has_its_partial_output(reason: Any) -> None:
    last = stream(STARTED, TextDelta("Hel"), Cancelled(reason, "triage", USAGE))[-1]

    assert (last["type"], last["response"]["status"]) == ("response.incomplete", "cancelled")
    assert last["response"]["output"][0]["status"] == "incomplete"
    assert last["response"]["usage"]["total_tokens"] == 30


def test_no_call_of_a_turn_that_was_cut_off_looks_like_one_to_be_run() -> None:
    last = stream(
        STARTED,
        ClientToolCall(0, "call_1", "weather"),
        ClientToolArguments(0, "{}"),
        ClientToolCall(1, "call_2", "weather"),
        Cancelled("requested", "triage", USAGE),
    )[-1]

    assert [item["status"] for item in last["response"]["output"]] == ["incomplete", "incomplete"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (Failed("upstream_timeout", "Too slow.", USAGE, is_repeatable=True), "server_error"),
        (Failed("upstream_timeout", "Too slow.", USAGE), "invalid_prompt"),
        (Failed("upstream_rate_limited", "Slow down.", USAGE, is_repeatable=True), "rate_limit_exceeded"),
        (Failed("context_length_exceeded", "Too long.", USAGE), "invalid_prompt"),
    ],
    ids=["a repeat is harmless", "a repeat does harm", "rate limit", "hopeless"],
)
def test_the_code_of_a_failure_depends_on_repeatability(failure: Failed, code: str) -> None:
    last = stream(STARTED, TextDelta("Hel"), failure)[-1]

    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    error = last["response"]["error"]
    assert (error["code"], error["message"], error["type"]) == (code, failure.message, failure.code)


def test_a_server_that_stops_fails_its_responses() -> None:
    builder = ResponseBuilder(options())
    for entry in log([STARTED, TextDelta("Hel"), Cancelled("shutting_down", "triage", USAGE)]):
        builder.add(entry)

    failure = builder.answer()

    assert isinstance(failure, Failed)
    assert failure.code == "shutting_down"
    assert builder.response()["status"] == "failed"


def test_usage_is_that_of_the_whole_turn() -> None:
    assert response(STARTED, TextDelta("Hi"), CALLED, DONE)["usage"] == {
        "input_tokens": 20,
        "input_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 0},
        "output_tokens": 10,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 30,
    }


def test_a_whole_response_has_its_times() -> None:
    body = response(STARTED, TextDelta("Hi"), DONE)

    assert (body["created_at"], body["completed_at"]) == (1_750_000_000, 1_750_000_003)


# --- server tool calls and handoffs --------------------------------------------------------------------------


def test_the_extension_can_be_disabled() -> None:
    body = response(*WHOLE, events="none")

    assert [item["type"] for item in body["output"]] == [
        "message",
        "reasoning",
        "message",
        "function_call",
        "function_call",
    ]
    assert "handoff" not in body


def test_details_can_be_hidden() -> None:
    failed: list[Event] = [LOOKED_UP[0], ToolFailed("call_s1", "look_up_item", "secret", 0.1)]

    body = response(
        STARTED,
        Handoff("triage", "repairs", "secret"),
        *LOOKED_UP,
        *failed,
        DONE,
        hides_details=True,
        shows_server_calls=True,
    )

    assert "secret" not in json.dumps(body)
    assert "rocket" not in json.dumps(body)
    assert [item.get("arguments") for item in body["output"]][:2] == [
        '{"from":"triage","to":"repairs"}',
        "{}",
    ]


def test_arguments_that_were_cut_short_are_json_all_the_same() -> None:
    cut = ToolStarted("c", "look_up_item", '{"search_query":"roc', "repairs")

    done = ToolCompleted("c", "look_up_item", "done", 0.1)
    item = response(STARTED, cut, done, DONE, shows_server_calls=True)["output"][0]

    assert json.loads(item["arguments"]) == {"text": '{"search_query":"roc'}


def test_a_response_sums_up_what_the_team_did() -> None:
    reported = response(*WHOLE)["handoff"]

    assert (reported["agents"], reported["tool_calls"]) == (["triage", "repairs"], 1)
    assert "handoff" not in response(*WHOLE, events="reasoning")


def test_log_probabilities_are_included_if_requested() -> None:
    one = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": [{"token": "Ho", "logprob": -1.5}]}
    wanted = {
        "token": "Hi",
        "logprob": -0.5,
        "bytes": [],
        "top_logprobs": [{"token": "Ho", "bytes": [], "logprob": -1.5}],
    }

    reported = stream(STARTED, TextDelta("Hi", [one]), TextDelta("!", [one]), DONE, logprobs=True)

    assert [event["logprobs"] for event in reported if event["type"] == "response.output_text.delta"] == [
        [wanted]
    ] * 2
    assert reported[-1]["response"]["output"][0]["content"][0]["logprobs"] == [wanted] * 2


# --- again ---------------------------------------------------------------------------------------------------


def test_a_replay_is_the_same_to_the_byte() -> None:
    live = log(WHOLE)
    stored = decode_journal(encode_journal([e.event for e in live], [e.time for e in live])).entries()

    def written(entries: Sequence[Entry]) -> bytes:
        encoder = ResponseEncoder(decode_options(encode_options(options())))
        return b"".join(encoder.encode(entry) for entry in entries)

    assert written(stored) == written(live)


def test_a_stream_resumes_after_any_event() -> None:
    whole = stream(*WHOLE)

    assert [stream(*WHOLE, after=seen) for seen in range(len(whole))] == [
        whole[seen + 1 :] for seen in range(len(whole))
    ]


def test_the_sdks_helper_puts_the_stream_together() -> None:
    whole = stream(*WHOLE)
    state: Any = ResponseStreamState(input_tools=[], text_format=omit)

    for event in whole:
        state.handle_event(TYPES[event["type"]].model_validate(event))

    assert state._completed_response.output_text == "One moment.\n\nYour rocket\u2028é."
    assert [item.type for item in state._completed_response.output] == [
        item["type"] for item in whole[-1]["response"]["output"]
    ]


def test_a_builder_comes_to_what_a_stream_ends_with() -> None:
    assert response(*WHOLE) == stream(*WHOLE)[-1]["response"]


def test_line_separators_do_not_end_a_line() -> None:
    encoder = ResponseEncoder(options())
    written = b"".join(encoder.encode(entry) for entry in log(WHOLE)).decode()

    assert not set(written) & {"\u2028", "\u2029", "\u0085"}


_TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
_PIECES = st.one_of(
    _TEXT.map(TextDelta),
    _TEXT.map(ReasoningDelta),
    _TEXT.map(RefusalDelta),
    st.just(CALLED),
    st.just(Handoff("triage", "sales")),
)
_ENDS: st.SearchStrategy[Event] = st.sampled_from(
    [DONE, Completed("a", "length", USAGE), Cancelled("requested", "a", USAGE), Failed("x", "y", USAGE)]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(_PIECES, max_size=12), _ENDS, st.sampled_from(["none", "all"]))
def test_whatever_happens_every_event_is_official_and_every_item_whole(
    pieces: list[Event], end: Event, events: Any
) -> None:
    reported = stream(STARTED, *pieces, end, events=events)

    assert [event["sequence_number"] for event in reported] == list(range(len(reported)))
    done = [event["item"]["id"] for event in reported if event["type"] == "response.output_item.done"]
    added = [event["item"]["id"] for event in reported if event["type"] == "response.output_item.added"]
    assert (
        sorted(done)
        == sorted(added)
        == [item["id"] for item in sorted(reported[-1]["response"]["output"], key=lambda i: i["id"])]
    )
    content = "".join(e["delta"] for e in reported if e["type"] == "response.output_text.delta")
    assert content == visible_text(pieces)


# --- options and ids -----------------------------------------------------------------------------------------


def test_a_turn_can_be_encoded_for_the_other_api() -> None:
    chat = encode_answer_options(
        AnswerOptions(id="", created=0, model="shop", logprobs=True, events="extension")
    )
    own = encode_options(
        options(id="", created=0, logprobs=True, events="extension", response=Echo(tools=[{"a": 1}]))
    )

    assert decode_options(chat) == options(id="", created=0, logprobs=True, events="extension")
    assert decode_answer_options(own) == AnswerOptions(
        id="", created=0, model="shop", logprobs=True, events="extension"
    )


def test_ids_lead_from_responses_to_turns_and_back() -> None:
    assert response_id(TURN) == "resp_" + "ab" * 16
    assert turn_id_of(response_id(TURN)) == TURN
    assert parse_item_id(response(*WHOLE)["output"][3]["id"]) == (TURN, 3)


@pytest.mark.parametrize(
    "name", ["", "resp_", "resp_x", TURN, "ab" * 16, "resp_" + "AB" * 16, "resp_" + "a" * 33]
)
def test_other_ids_lead_nowhere(name: str) -> None:
    assert turn_id_of(name) is None
    assert parse_item_id(name) is None
