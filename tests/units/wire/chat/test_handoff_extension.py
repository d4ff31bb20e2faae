"""The handoff extension: objects, lines of reasoning, and that the message is unaffected."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from proxy.events import (
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
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
from proxy.messages import EventsMode, Usage
from proxy.wire.chat.completion import AnswerOptions, completion
from proxy.wire.chat.handoff_extension import MAX_LINE, HandoffExtensionEncoder
from proxy.wire.chat.response_models import Completion, encode
from proxy.wire.events import sse
from tests.fakes.streams import PLAIN, deltas, frames, read, stream

MODES: list[EventsMode] = ["extension", "reasoning", "all"]
USAGE = Usage(prompt=10, completion=5)
STARTED = Started("chatcmpl-1", "triage")
TRIAGE_CALLED = ModelCalled("triage", "small", USAGE, 0.1)
SALES_CALLED = ModelCalled("sales", "large", USAGE, 0.1)
HANDED_OVER = Handoff("triage", "sales", "wants to buy")
LOOKING = ToolStarted("call_1", "look_up", '{"query": "rocket"}', "sales")
FOUND = ToolCompleted("call_1", "look_up", '{"items": []}', 0.0123)
ORDERING = ToolStarted("call_2", "order", "{}", "sales")
SOLD_OUT = ToolFailed("call_2", "order", "error: sold out", 1.5)
DONE = Completed("sales", "stop", USAGE + USAGE)
TURN: list[Event] = [
    STARTED,
    TRIAGE_CALLED,
    HANDED_OVER,
    LOOKING,
    FOUND,
    ORDERING,
    SOLD_OUT,
    SALES_CALLED,
    TextDelta("Sorry"),
    TextDelta("."),
    SALES_CALLED,
    DONE,
]
SUMMARY = {
    "type": "turn.completed",
    "agent": "sales",
    "agents": ["triage", "sales"],
    "tool_calls": 2,
    "usage": [
        {
            "agent": "triage",
            "model": "small",
            "calls": 1,
            "prompt_tokens": 10,
            "completion_tokens": 5,
            "total_tokens": 15,
        },
        {
            "agent": "sales",
            "model": "large",
            "calls": 2,
            "prompt_tokens": 20,
            "completion_tokens": 10,
            "total_tokens": 30,
        },
    ],
}


def options(mode: EventsMode = "all", **more: Any) -> AnswerOptions:
    return AnswerOptions(id="chatcmpl-1", created=1700000000, model="acme-support", events=mode, **more)


def chunks(data: bytes) -> list[Any]:
    return [json.loads(text) for _, text in frames(data) if text != "[DONE]"]


def objects(*events: Event, **more: Any) -> list[Any]:
    """Every object of the extension in the stream."""
    return [
        chunk["handoff"] for chunk in chunks(stream(*events, options=options(**more))) if "handoff" in chunk
    ]


def reasoning_of(*events: Event, **more: Any) -> str:
    """All of ``reasoning_content`` in the stream."""
    found = chunks(stream(*events, options=options(**more)))
    return "".join(
        choice["delta"].get("reasoning_content", "") for chunk in found for choice in chunk["choices"]
    )


# --- the objects ---------------------------------------------------------------------------------------------


def test_all_events_are_encoded_in_order() -> None:
    assert objects(*TURN) == [
        {"type": "handoff", "agent": "triage", "from": "triage", "to": "sales", "reason": "wants to buy"},
        {
            "type": "tool.started",
            "agent": "sales",
            "call_id": "call_1",
            "name": "look_up",
            "arguments": '{"query": "rocket"}',
        },
        {
            "type": "tool.completed",
            "agent": "sales",
            "call_id": "call_1",
            "name": "look_up",
            "result": '{"items": []}',
            "seconds": 0.012,
        },
        {
            "type": "tool.started",
            "agent": "sales",
            "call_id": "call_2",
            "name": "order",
            "arguments": "{}",
        },
        {
            "type": "tool.failed",
            "agent": "sales",
            "call_id": "call_2",
            "name": "order",
            "error": "error: sold out",
            "seconds": 1.5,
        },
        {"type": "agent.speaking", "agent": "sales"},
        SUMMARY,
    ]


def test_the_active_agent_is_reported_before_its_first_delta() -> None:
    reported = deltas(
        stream(
            STARTED,
            TextDelta("One"),
            TextDelta("."),
            TRIAGE_CALLED,
            HANDED_OVER,
            TextDelta("Two"),
            TextDelta("."),
            Handoff("sales", "triage"),
            Handoff("triage", "sales"),
            TextDelta("Three"),
            DONE,
            options=options("extension"),
        )
    )

    # Chunks that add nothing show as their finish reason, which is none.
    assert reported == [
        {"role": "assistant", "content": "", "refusal": None},
        None,
        {"content": "One"},
        {"content": "."},
        None,
        None,
        {"content": "\n\nTwo"},
        {"content": "."},
        None,
        None,
        {"content": "\n\nThree"},
        "stop",
        "[DONE]",
    ]


def test_the_chunk_of_a_handoff_is_an_ordinary_one() -> None:
    role, reported, *_ = chunks(stream(STARTED, HANDED_OVER, DONE, options=options(include_usage=True)))

    assert role["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "handoff" not in role
    assert reported == {
        **{key: role[key] for key in ("id", "object", "created", "model")},
        "choices": [
            {
                "index": 0,
                "delta": {"reasoning_content": "triage hands over to sales: wants to buy"},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
        "usage": None,
        "handoff": {
            "type": "handoff",
            "agent": "triage",
            "from": "triage",
            "to": "sales",
            "reason": "wants to buy",
        },
    }


def test_a_handoff_is_reported_without_text_after_it() -> None:
    *_, done = reported = objects(STARTED, HANDED_OVER, DONE)

    assert [each["type"] for each in reported] == ["handoff", "turn.completed"]
    assert done["agents"] == ["triage", "sales"]


def test_the_whole_answer_carries_the_object_too() -> None:
    answer = json.loads(encode(completion(options(), TURN)))

    assert answer["handoff"] == SUMMARY
    assert answer["choices"][0]["message"]["content"] == "Sorry."


@pytest.mark.parametrize("mode", ["none", "reasoning"])
def test_there_are_no_objects_unless_they_are_requested(mode: EventsMode) -> None:
    assert b'"handoff"' not in stream(*TURN, options=options(mode))
    assert b'"handoff"' not in encode(completion(options(mode), TURN))


def test_a_turn_stopped_on_request_says_so() -> None:
    events: list[Event] = [STARTED, TextDelta("Once"), Cancelled("requested", "triage", USAGE)]

    assert objects(*events)[-1]["type"] == "turn.cancelled"
    assert json.loads(encode(completion(options(), events)))["handoff"]["type"] == "turn.cancelled"


def test_a_failure_has_the_usual_error() -> None:
    failed = Failed("upstream_error", "It failed.", USAGE)

    assert stream(*TURN[:-1], failed, options=options()).endswith(stream(failed, options=PLAIN)[6:])


def test_details_can_be_omitted() -> None:
    events: list[Event] = [*TURN[:3], ReasoningDelta("They seem rich."), *TURN[3:]]

    reported = stream(*events, options=options(hides_details=True, has_status=True)) + encode(
        completion(options(hides_details=True), events)
    )

    for word in (b"rich", b"wants to buy", b"rocket", b"items", b"sold out"):
        assert word not in reported
    for word in (b"look_up", b"0.012", b"triage hands over to sales", b"order failed after 1.50 s"):
        assert word in reported


# --- what it cost --------------------------------------------------------------------------------------------


def test_costs_are_reported_if_every_call_has_a_price() -> None:
    triage = ModelCalled("triage", "small", USAGE, 0.1, cost=0.1)
    sales = ModelCalled("sales", "large", USAGE, 0.1, cost=0.2)

    reported = objects(STARTED, triage, HANDED_OVER, sales, sales, TextDelta("Hi"), DONE)[-1]

    assert [use["cost"] for use in reported["usage"]] == [0.1, 0.4]
    assert reported["cost"] == 0.5


def test_a_cost_that_is_not_known_makes_the_sum_unknown() -> None:
    triage = ModelCalled("triage", "small", USAGE, 0.1, cost=0.1)

    reported = objects(STARTED, triage, HANDED_OVER, SALES_CALLED, TextDelta("Hi"), DONE)[-1]

    assert ["cost" in use for use in reported["usage"]] == [True, False]
    assert "cost" not in reported


def test_a_turn_without_a_model_call_has_no_cost() -> None:
    assert "cost" not in objects(STARTED, DONE)[-1]


# --- the lines -----------------------------------------------------------------------------------------------


def test_lines_are_paragraphs_among_the_reasoning_text() -> None:
    events: list[Event] = [
        STARTED,
        ReasoningDelta("A cus"),
        ReasoningDelta("tomer.\n"),
        TRIAGE_CALLED,
        *TURN[2:7],
        ReasoningDelta("Pity."),
        TextDelta("Sorry."),
        SALES_CALLED,
        DONE,
    ]
    reported = (
        "A customer.\n\n"
        "triage hands over to sales: wants to buy\n\n"
        'sales calls look_up with {"query": "rocket"}\n\n'
        'look_up answered after 0.01 s: {"items": []}\n\n'
        "sales calls order with {}\n\n"
        "order failed after 1.50 s: error: sold out\n\n"
        "Pity."
    )

    answer = completion(options("reasoning"), events)

    assert reasoning_of(*events, mode="reasoning") == reasoning_of(*events) == reported
    assert isinstance(answer, Completion)
    assert answer.choices[0].message.reasoning_content == reported
    assert reasoning_of(*events, mode="extension") == ""


def test_a_line_stays_one_and_short() -> None:
    long = ToolCompleted("call_1", "look_up", "a\n\nb  " + "c" * 5000, 0.0)

    line = reasoning_of(STARTED, HANDED_OVER, LOOKING, long, DONE).rpartition("\n\n")[2]

    assert line.startswith("look_up answered after 0.00 s: a b ccc")
    assert line.endswith("c…")
    assert len(line) <= MAX_LINE + len("look_up answered after 0.00 s: ")


def test_an_answer_without_work_has_no_reasoning_text() -> None:
    events: list[Event] = [STARTED, TextDelta("Hi"), TRIAGE_CALLED, DONE]

    assert stream(*events, options=options("reasoning")) == stream(*events, options=options("none"))
    assert b"reasoning_content" not in encode(completion(options(), events))


# --- Open WebUI's status line --------------------------------------------------------------------------------


def test_the_status_line_has_activity_and_end() -> None:
    found = chunks(stream(*TURN, options=options("reasoning", has_status=True)))

    assert [chunk["event"] for chunk in found if "event" in chunk] == [
        {"type": "status", "data": {"description": reported, "done": done}}
        for reported, done in [
            ("sales takes over", True),
            ("sales uses look_up", False),
            ("look_up answered", True),
            ("sales uses order", False),
            ("order failed", True),
            ("sales", True),
        ]
    ]


@pytest.mark.parametrize("mode", ["none", "extension"])
def test_there_is_no_status_line_where_nothing_is_to_be_shown(mode: EventsMode) -> None:
    assert b'"event"' not in stream(*TURN, options=options(mode, has_status=True))


# --- the unchanged message -----------------------------------------------------------------------------------

TEXTS = st.text(min_size=1, max_size=6) | st.sampled_from(["\n\n", '"', "\u2028", "data: "])
WORK: list[Event] = [*TURN[1:8], Handoff("sales", "triage"), ToolStarted("c", "f", "\u2028", "triage")]
TRANSCRIPT = st.one_of(TEXTS.map(TextDelta), TEXTS.map(ReasoningDelta), st.sampled_from(WORK))
OPTIONS = st.builds(
    options,
    st.sampled_from(MODES),
    include_usage=st.booleans(),
    hides_details=st.booleans(),
    has_status=st.booleans(),
)
SLOWLY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def turns(draw: st.DrawFn) -> list[Event]:
    events: list[Event] = [STARTED, *draw(st.lists(TRANSCRIPT, max_size=8))]
    events += map(RefusalDelta, draw(st.lists(TEXTS, max_size=2)))
    count = draw(st.integers(0, 2))
    for index in range(count):
        events += [ClientToolCall(index, f"call_{index}", f"f{index}"), ClientToolArguments(index, '{"é":1}')]
    return [*events, SALES_CALLED, Completed("sales", "tool_calls" if count else "stop", USAGE)]


def without_extension(chunk: Any) -> Any:
    """What a proxy leaves that keeps only what it knows."""
    chunk = {key: value for key, value in chunk.items() if key not in ("handoff", "event")}
    for choice in chunk["choices"]:
        choice["delta"].pop("reasoning_content", None)
    return chunk


@SLOWLY
@given(turns(), OPTIONS)
def test_the_sdk_reads_the_same_answer_with_and_without(
    events: list[Event], with_events: AnswerOptions
) -> None:
    official = AnswerOptions(
        id="chatcmpl-1",
        created=1700000000,
        model="acme-support",
        include_usage=with_events.include_usage,
    )

    reported = read(stream(*events, options=with_events)).to_dict()
    expected = read(stream(*events, options=official)).to_dict()

    reported["choices"][0]["message"].pop("reasoning_content", None)  # type: ignore[index]
    assert reported == expected


@SLOWLY
@given(turns(), OPTIONS)
def test_every_chunk_is_the_official_one_but_for_the_extension(
    events: list[Event], with_events: AnswerOptions
) -> None:
    found = chunks(stream(*events, options=with_events))

    assert ["role" in chunk["choices"][0]["delta"] for chunk in found if chunk["choices"]] == [True] + [
        False
    ] * (len(found) - 1 - with_events.include_usage)
    for chunk in found:
        ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)
        rest = ChatCompletionChunk.model_validate_json(json.dumps(without_extension(chunk)), strict=True)
        assert not rest.model_extra
        assert not any(choice.model_extra or choice.delta.model_extra for choice in rest.choices)


@SLOWLY
@given(turns(), OPTIONS)
def test_the_stream_has_the_same_events_as_the_completion(
    events: list[Event], with_events: AnswerOptions
) -> None:
    found = chunks(stream(*events, options=with_events))
    whole = ChatCompletion.model_validate_json(encode(completion(with_events, events)), strict=True)

    finish = next(chunk for chunk in found if chunk["choices"] and chunk["choices"][0]["finish_reason"])
    assert (whole.model_extra or {}).get("handoff") == finish.get("handoff")
    reported = "".join(
        choice["delta"].get("reasoning_content", "") for chunk in found for choice in chunk["choices"]
    )
    assert (whole.choices[0].message.model_extra or {}).get("reasoning_content", "") == reported


@SLOWLY
@given(turns(), OPTIONS)
def test_a_resumed_stream_continues_after_the_last_seen_frame(
    events: list[Event], with_events: AnswerOptions
) -> None:
    whole = frames(stream(*events, options=with_events))

    for number, (seen, _) in enumerate(whole, 1):
        if seen is not None:
            assert frames(stream(*events, options=with_events, after=sse.position(seen))) == whole[number:]


def test_text_deltas_can_be_skipped() -> None:
    first, second = HandoffExtensionEncoder("all"), HandoffExtensionEncoder("all")
    for event in TURN[:-1]:
        first.encode(event)
    for event in (*TURN[:9], *TURN[10:-1]):
        second.encode(event)

    assert first.summary(DONE) == second.summary(DONE)
