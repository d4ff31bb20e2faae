"""``ResponsesReader``, event by event: deltas, repetitions, limits, usage, provider state and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import UpstreamFailed, UpstreamIncomplete, UpstreamProtocolError, UpstreamResponseTooLarge
from proxy.events import ReasoningDelta, RefusalDelta, TextDelta
from proxy.messages import ProviderState, Usage
from proxy.providers.model import Finished, ModelDelta, ToolCallPiece
from proxy.providers.openai.responses_stream import ResponsesReader


def reader(max_answer_bytes: int = 1000, max_line_bytes: int = 1000) -> ResponsesReader:
    return ResponsesReader(provider="p", max_answer_bytes=max_answer_bytes, max_line_bytes=max_line_bytes)


def sse(*events: Any) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events)


def done(*output: Any, **more: Any) -> dict[str, Any]:
    """The terminal event."""
    status = more.pop("status", "completed")
    return {"type": f"response.{status}", "response": {"status": status, "output": list(output), **more}}


def read(*events: Any) -> list[ModelDelta]:
    return [*reader().feed(sse(*events))]


TEXT = "response.output_text.delta"
ARGUMENTS = "response.function_call_arguments.delta"
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
ADDED = {"type": "response.output_item.added", "output_index": 0, "item": {**CALL, "arguments": ""}}


@pytest.mark.parametrize(
    ("events", "deltas"),
    [
        pytest.param([{"type": TEXT, "delta": "Hi\0"}], [TextDelta("Hi\ufffd")], id="text"),
        pytest.param([{"type": TEXT, "delta": ""}, {"type": TEXT, "delta": 7}], [], id="no text"),
        pytest.param(
            [
                {"type": "response.refusal.delta", "delta": "no"},
                {"type": "response.refusal.delta", "delta": ""},
            ],
            [RefusalDelta("no")],
            id="refusal",
        ),
        pytest.param(
            [
                {"type": "response.reasoning_summary_text.delta", "delta": "a"},
                {"type": "response.reasoning_text.delta", "delta": "b"},
                {"type": "response.reasoning_text.delta", "delta": ""},
            ],
            [ReasoningDelta("a"), ReasoningDelta("b")],
            id="reasoning",
        ),
        pytest.param(
            [
                {"type": "response.reasoning_summary_part.added", "summary_index": 1},
                {"type": "response.reasoning_summary_text.delta", "delta": "a"},
                {"type": "response.reasoning_summary_part.added", "summary_index": 0},
                {"type": "response.reasoning_summary_part.added", "summary_index": 1, "output_index": 1},
                {"type": "response.reasoning_summary_part.added", "summary_index": 1},
            ],
            [ReasoningDelta("a"), ReasoningDelta("\n\n")],
            id="a blank line before further parts of the same item",
        ),
        pytest.param(
            [ADDED, {"type": ARGUMENTS, "delta": '{"a"'}, {"type": ARGUMENTS, "delta": ": 1}"}],
            [ToolCallPiece(0, '{"a"', "f", "c1"), ToolCallPiece(0, ": 1}")],
            id="a call",
        ),
        pytest.param(
            [
                ADDED,
                {"type": ARGUMENTS, "delta": '{"a": 1}'},
                {"type": "response.output_item.done", "item": CALL},
                done(CALL),
            ],
            [ToolCallPiece(0, '{"a": 1}', "f", "c1"), Finished("tool_calls", None)],
            id="a call that is repeated by its end",
        ),
        pytest.param(
            [{"type": "response.output_item.done", "item": CALL}],
            [ToolCallPiece(0, '{"a": 1}', "f", "c1")],
            id="a call that only its end has",
        ),
        pytest.param(
            [done({**CALL, "call_id": 7}, {**CALL, "name": "g"}, {**CALL, "name": 5, "arguments": ""})],
            [
                ToolCallPiece(0, '{"a": 1}', "f"),
                ToolCallPiece(1, '{"a": 1}', "g", "c1"),
                Finished("tool_calls", None),
            ],
            id="two calls of the terminal event",
        ),
        pytest.param(
            [
                {"type": TEXT, "delta": "Hi", "output_index": 1},
                done({"type": "message", "content": [{"text": "A"}]}),
            ],
            [TextDelta("Hi"), TextDelta("A"), Finished("stop", None)],
            id="an item that was not streamed",
        ),
        pytest.param(
            [{"type": TEXT, "delta": "Hi"}, done({"type": "message", "content": [{"text": "Hi"}]})],
            [TextDelta("Hi"), Finished("stop", None)],
            id="an item that was streamed",
        ),
        pytest.param(
            [
                done(
                    {
                        "type": "message",
                        "content": ["x", {"text": ""}, {"text": "A"}, {"refusal": "no"}, {"refusal": ""}],
                    },
                    {"type": "message", "content": "x"},
                    "x",
                    {"type": "other", "content": [{"text": "B"}]},
                )
            ],
            [TextDelta("A"), RefusalDelta("no"), Finished("stop", None)],
            id="parts of a message",
        ),
        pytest.param(
            [done({"type": "reasoning", "summary": [{"text": "a"}, {"text": 1}, 2, {"text": "b"}]})],
            [ReasoningDelta("a\n\nb"), Finished("stop", None)],
            id="summaries of a whole item",
        ),
        pytest.param(
            [done({"type": "reasoning", "summary": [], "content": [{"text": "c"}]})],
            [ReasoningDelta("c"), Finished("stop", None)],
            id="reasoning of a whole item",
        ),
        pytest.param(
            [done({"type": "reasoning", "summary": 1})], [Finished("stop", None)], id="no reasoning"
        ),
        pytest.param([{"type": "response.new"}, {"type": 7}], [], id="unknown events"),
        pytest.param(
            [done(status="incomplete", incomplete_details={"reason": "content_filter"})],
            [Finished("content_filter", None)],
            id="filtered",
        ),
        pytest.param(
            [done({"type": "message", "content": []}, status="incomplete", incomplete_details="x")],
            [Finished("length", None)],
            id="cut",
        ),
        pytest.param(
            [done({**CALL}, status="incomplete")],
            [ToolCallPiece(0, '{"a": 1}', "f", "c1"), Finished("length", None)],
            id="cut after a whole call",
        ),
        pytest.param(
            [done(), {"type": TEXT, "delta": "late"}],
            [Finished("stop", None)],
            id="events after the terminal one",
        ),
        pytest.param(
            [{"type": TEXT, "delta": "Hi", "output_index": "x"}], [TextDelta("Hi")], id="an odd index"
        ),
    ],
)
def test_events_become_deltas(events: list[Any], deltas: list[ModelDelta]) -> None:
    assert read(*events) == deltas


@pytest.mark.parametrize(
    ("given", "usage"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"input_tokens": 3}, Usage(prompt=3)),
        ({"output_tokens": 4}, Usage(completion=4)),
        ({"input_tokens": True, "output_tokens": -1}, None),
        ({"input_tokens": 2**53 - 1, "output_tokens": 2**53}, Usage(prompt=2**53 - 1)),
        ({"input_tokens": 0, "output_tokens": 2.0}, Usage(completion=2)),
        (
            {
                "input_tokens": 10,
                "output_tokens": 8,
                "input_tokens_details": {"cached_tokens": 6},
                "output_tokens_details": {"reasoning_tokens": 5},
            },
            Usage(prompt=10, completion=8, cached=6, reasoning=5),
        ),
        (
            {
                "input_tokens": 1,
                "output_tokens": 2,
                "input_tokens_details": {"cached_tokens": 6},
                "output_tokens_details": {"reasoning_tokens": 5},
            },
            Usage(prompt=1, completion=2, cached=1, reasoning=2),
        ),
        (
            {"input_tokens": 1, "output_tokens": 2, "input_tokens_details": 3, "output_tokens_details": {}},
            Usage(prompt=1, completion=2),
        ),
    ],
)
def test_usage_is_read_within_its_bounds(given: object, usage: Usage | None) -> None:
    assert read(done(usage=given)) == [Finished("stop", usage)]


def test_log_probabilities_have_bytes() -> None:
    token = {"token": "é", "logprob": -1.5, "bytes": None}
    other = {"token": "a", "logprob": -2, "bytes": [97]}
    (delta,) = read(
        {"type": TEXT, "delta": "é", "logprobs": [{**token, "top_logprobs": [other]}, 7, {"token": 3}]}
    )

    assert delta == TextDelta(
        "é",
        [
            {"token": "é", "logprob": -1.5, "bytes": [195, 169], "top_logprobs": [other]},
            {"token": 3, "logprob": None, "bytes": None, "top_logprobs": []},
        ],
    )
    assert read(
        {"type": TEXT, "delta": "x", "logprobs": []}, {"type": TEXT, "delta": "y", "logprobs": 7}
    ) == [
        TextDelta("x"),
        TextDelta("y"),
    ]
    part = {"text": "é", "logprobs": [token]}
    assert read(done({"type": "message", "content": [part]}))[0] == TextDelta(
        "é", [{"token": "é", "logprob": -1.5, "bytes": [195, 169], "top_logprobs": []}]
    )


REASONING = {"type": "reasoning", "encrypted_content": "secret", "summary": []}
BARE = {"type": "reasoning", "summary": []}


@pytest.mark.parametrize(
    ("output", "items"),
    [
        ([REASONING, BARE, CALL], [REASONING, {"type": "function_call"}]),
        ([BARE, CALL], None),
        ([{"type": "message", "phase": "final", "content": []}], [{"type": "message", "phase": "final"}]),
        ([BARE, {"type": "message", "phase": 7, "content": []}], None),
        ([REASONING, {"type": "message", "content": []}], [REASONING, {"type": "message"}]),
    ],
)
def test_state_has_the_items_that_the_provider_expects_back(
    output: list[Any], items: list[Any] | None
) -> None:
    finished = read(done(*output))[-1]

    assert isinstance(finished, Finished)
    assert finished.state == (ProviderState("p", items=items) if items is not None else None)


def test_state_is_in_the_order_of_the_output() -> None:
    first = {
        "type": "response.output_item.done",
        "output_index": 1,
        "item": {"type": "message", "content": []},
    }

    finished = read(first, done(REASONING, {"type": "message", "content": []}))[-1]

    assert isinstance(finished, Finished)
    assert finished.state == ProviderState("p", items=[REASONING, {"type": "message"}])


@pytest.mark.parametrize(
    ("events", "label"),
    [
        pytest.param([done("x", status="completed") | {"response": 7}], "protocol", id="no response"),
        pytest.param([done(output=7)], "broken", id="no output"),
        pytest.param([done(status="cancelled")], "broken", id="cancelled"),
        pytest.param([{}], "protocol", id="no type"),
        pytest.param([[]], "protocol", id="no object"),
        pytest.param([{"type": None, "error": {}}], "protocol", id="an empty error"),
    ],
)
def test_a_response_without_an_answer_is_an_error(events: list[Any], label: str) -> None:
    with pytest.raises(UpstreamFailed) as error:
        read(*events)
    assert error.value.label == label


@pytest.mark.parametrize(
    "event",
    [
        {"type": "error", "code": "rate_limit_exceeded", "message": "slow"},
        {"error": {"code": "rate_limit_exceeded", "message": "slow"}},
        done(error={"code": "rate_limit_exceeded", "message": "slow"}),
        done(status="failed", error={"code": "rate_limit_exceeded", "message": "slow"}),
    ],
)
def test_an_error_of_the_provider_follows_the_deltas_before_it(event: Any) -> None:
    alone = reader()
    with pytest.raises(UpstreamFailed) as raised:
        alone.feed(sse(event))
    behind = reader()

    assert behind.feed(sse({"type": TEXT, "delta": "Hi"}, event)) == [TextDelta("Hi")]

    assert alone.failure is None
    assert behind.failure is not None
    assert (type(behind.failure), behind.failure.label) == (type(raised.value), raised.value.label)
    assert (behind.is_finished, behind.has_said) == (False, True)
    assert behind.end() == []


@pytest.mark.parametrize(
    ("event", "is_over"),
    [
        ({"type": TEXT, "delta": "x" * 10}, False),
        ({"type": TEXT, "delta": "x" * 11}, True),
        ({"type": "response.refusal.delta", "delta": "x" * 11}, True),
        ({"type": "response.reasoning_text.delta", "delta": "x" * 11}, True),
        ({"type": ARGUMENTS, "delta": "x" * 11}, True),
        (done({"type": "message", "content": [{"text": "x" * 11}]}), True),
        (done({"type": "message", "content": [{"refusal": "x" * 11}]}), True),
        (done({"type": "reasoning", "summary": [{"text": "x" * 11}]}), True),
        (done({"type": "reasoning", "encrypted_content": "x" * 11}), True),
        (done({"type": "reasoning", "encrypted_content": "x" * 10}), False),
    ],
)
def test_an_answer_is_limited(event: Any, is_over: bool) -> None:
    limited = reader(max_answer_bytes=10)

    if is_over:
        with pytest.raises(UpstreamResponseTooLarge) as error:
            limited.feed(sse(event))
        assert error.value.label == "too_much"
    else:
        assert limited.feed(sse(event))


def test_pieces_together_and_lines_are_limited() -> None:
    limited = reader(max_answer_bytes=10)
    assert limited.feed(sse({"type": TEXT, "delta": "x" * 6}))
    with pytest.raises(UpstreamResponseTooLarge):
        limited.feed(sse({"type": TEXT, "delta": "x" * 5}))

    with pytest.raises(UpstreamResponseTooLarge) as error:
        reader(max_line_bytes=20).feed(b"data: " + b"x" * 20)
    assert error.value.label == "too_much"


def test_a_stream_without_a_terminal_event_is_incomplete() -> None:
    with pytest.raises(UpstreamIncomplete) as error:
        reader().end()
    assert (error.value.label, error.value.is_retryable) == ("incomplete", True)

    cut = reader()
    assert cut.feed(sse({"type": TEXT, "delta": "Hi"})[:-2]) == []
    assert cut.end() == [TextDelta("Hi")]
    assert isinstance(cut.failure, UpstreamIncomplete)
    assert (cut.failure.label, cut.failure.is_retryable) == ("incomplete", True)

    whole = reader()
    assert whole.feed(b": ping\n\ndata: [DONE]\n\ndata:  \n\n" + sse(done())[:-2]) == []
    assert (whole.is_finished, whole.has_said, whole.has_reason) == (False, False, False)
    assert whole.end() == [Finished("stop", None)]
    assert (whole.is_finished, whole.has_said, whole.failure) == (True, True, None)


@pytest.mark.parametrize(
    "event", [{"type": TEXT, "delta": "x"}, {"type": "response.refusal.delta", "delta": "x"}, ADDED]
)
def test_it_has_output_after_the_first_piece(event: Any) -> None:
    one = reader()
    one.feed(sse({"type": "response.created"}))
    assert not one.has_said

    one.feed(sse(event))

    assert one.has_said


def test_a_whole_answer_is_read() -> None:
    body = {"object": "response", **done({"type": "message", "content": [{"text": "Hi"}]})["response"]}
    without_label = {key: value for key, value in body.items() if key != "object"}

    for one in (body, without_label):
        assert reader().read_whole(json.dumps(one).encode()) == [TextDelta("Hi"), Finished("stop", None)]
    for bad in (b"{", b"[" * 100_000, b"[]", json.dumps({**body, "object": "chat.completion"}).encode()):
        with pytest.raises(UpstreamProtocolError) as error:
            reader().read_whole(bad)
        assert error.value.label == "protocol"


def test_events_that_are_not_strict_json_are_read() -> None:
    assert reader().feed(b'data: {"type": "response.output_text.delta", "delta": "a\tb", "x": NaN}\n\n') == [
        TextDelta("a\tb")
    ]
    assert reader().feed(b'data: {"type": "response.output_text.delta", "delta": "a\\ud83d"}\n\n') == [
        TextDelta("a\ufffd")
    ]
    with pytest.raises(UpstreamProtocolError) as error:
        reader().feed(b"data: {\n\n")
    assert error.value.label == "protocol"
