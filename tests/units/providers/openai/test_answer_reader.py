"""``AnswerReader``, chunk by chunk: state, limits, log probabilities, reasons, usage and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.errors import UpstreamFailed, UpstreamIncomplete, UpstreamProtocolError, UpstreamResponseTooLarge
from proxy.events import ReasoningDelta, RefusalDelta, TextDelta
from proxy.messages import ProviderState, Usage
from proxy.providers.model import Finished, ModelDelta, ToolCallPiece, UsagePiece
from proxy.providers.openai.stream_parser import AnswerReader

USAGE = {"prompt_tokens": 3, "completion_tokens": 2}


def reader(max_answer_bytes: int = 1000, max_line_bytes: int = 1000) -> AnswerReader:
    return AnswerReader(max_answer_bytes=max_answer_bytes, max_line_bytes=max_line_bytes, provider="p")


def sse(*chunks: Any) -> bytes:
    return b"".join(
        b"data: %b\n\n" % (one if isinstance(one, bytes) else json.dumps(one).encode()) for one in chunks
    )


def choice(delta: Any = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": delta or {}, **more}]}


STOP = choice(finish_reason="stop")
DONE = b"[DONE]"


def read(*chunks: Any) -> list[ModelDelta]:
    one = reader()
    return [*one.feed(sse(*chunks)), *([] if one.is_finished else one.end())]


def finished_of(*chunks: Any) -> Finished:
    last = read(*chunks, STOP)[-1]
    assert isinstance(last, Finished)
    return last


def tool_call(arguments: Any, name: str | None = "f", **more: Any) -> dict[str, Any]:
    return {"index": 0, "id": "c", "function": {"name": name, "arguments": arguments}, **more}


@pytest.mark.parametrize(
    ("chunks", "deltas"),
    [
        pytest.param(
            [choice({"content": "a\0"}), STOP], [TextDelta("a\ufffd"), Finished("stop", None)], id="text"
        ),
        pytest.param(
            [
                choice({"reasoning_content": "a\0"}),
                choice({"reasoning": "b"}),
                choice({"reasoning": 7}),
                STOP,
            ],
            [
                ReasoningDelta("a\ufffd"),
                ReasoningDelta("b"),
                Finished("stop", None, state=None),
            ],
            id="reasoning",
        ),
        pytest.param(
            [choice({"refusal": "no"}), choice({"refusal": 7}), STOP],
            [RefusalDelta("no"), Finished("stop", None)],
            id="refusal",
        ),
        pytest.param(
            [
                choice(
                    {
                        "content": [
                            {"text": "a"},
                            {"text": ""},
                            {"text": 7},
                            "x",
                            {"thinking": [{"text": "b"}, 7, {}]},
                            {"thinking": 7},
                            {"text": "c"},
                        ]
                    }
                ),
                STOP,
            ],
            [TextDelta("a"), ReasoningDelta("b"), TextDelta("c"), Finished("stop", None)],
            id="parts",
        ),
        pytest.param([choice({"content": 7}), STOP], [Finished("stop", None)], id="content that is no text"),
        pytest.param(
            [{"choices": [{"index": 1, "delta": {"content": "b"}}, {"delta": {"content": "a"}}]}, STOP],
            [TextDelta("a"), Finished("stop", None)],
            id="a second choice",
        ),
        pytest.param(
            [
                choice({"content": "a"}),
                STOP,
                {"choices": [], "usage": USAGE},
                DONE,
                choice({"content": "late"}),
            ],
            [TextDelta("a"), Finished("stop", Usage(prompt=3, completion=2))],
            id="usage at the end, and what follows the end",
        ),
        pytest.param(
            [choice({"content": "a"}), STOP, {"x_groq": {"usage": USAGE}}, {"x_groq": {}}, {"x_groq": 7}],
            [TextDelta("a"), Finished("stop", Usage(prompt=3, completion=2))],
            id="usage of Groq",
        ),
        pytest.param(
            [choice({"content": "a"}), choice(finish_reason="stop", usage=USAGE)],
            [TextDelta("a"), Finished("stop", Usage(prompt=3, completion=2))],
            id="usage of the choice",
        ),
        pytest.param(
            [
                {**choice({"content": "a"}), "usage": USAGE},
                {**choice({}), "usage": 7},
                {**STOP, "usage": USAGE},
            ],
            [
                TextDelta("a"),
                UsagePiece(Usage(prompt=3, completion=2)),
                Finished("stop", Usage(prompt=3, completion=2)),
            ],
            id="usage with every chunk",
        ),
        pytest.param(
            [{**choice({"role": "assistant"}), "usage": USAGE}, choice({"content": "a"}), STOP],
            [TextDelta("a"), Finished("stop", Usage(prompt=3, completion=2))],
            id="usage before the text",
        ),
        pytest.param(
            [choice({"tool_calls": [tool_call('{"a": 1}')]}), choice(finish_reason="tool_calls")],
            [ToolCallPiece(0, '{"a": 1}', "f", "c"), Finished("tool_calls", None)],
            id="a call",
        ),
        pytest.param(
            [
                choice({"function_call": {"name": "f"}}),
                choice({"function_call": {}}),
                choice({"function_call": None}),
                choice({"function_call": "f"}),
                choice({"function_call": {"arguments": '{"a": '}}),
                choice({"function_call": {"arguments": "1}"}}),
                choice(finish_reason="function_call"),
            ],
            [ToolCallPiece(0, '{"a": ', "f"), ToolCallPiece(0, "1}"), Finished("tool_calls", None)],
            id="a function_call",
        ),
        pytest.param(
            [
                choice({"tool_calls": [tool_call('{"a": 1}')]}),
                choice({"function_call": {"name": "f", "arguments": '{"a": 1}'}}),
                STOP,
            ],
            [ToolCallPiece(0, '{"a": 1}', "f", "c"), Finished("tool_calls", None)],
            id="a function_call that repeats a call",
        ),
        pytest.param(
            [
                {"choices": [{"message": {"function_call": {"name": "f", "arguments": {"b": 2}}}}]},
                STOP,
            ],
            [ToolCallPiece(0, '{"b":2}', "f"), Finished("tool_calls", None)],
            id="a function_call of a whole message",
        ),
        pytest.param(
            [
                {
                    "choices": [
                        {"message": {"content": "a", "tool_calls": [tool_call("{}"), tool_call('{"b": 2}')]}}
                    ]
                },
                STOP,
            ],
            [
                TextDelta("a"),
                ToolCallPiece(0, "{}", "f", "c"),
                ToolCallPiece(1, '{"b": 2}', "f", "c"),
                Finished("tool_calls", None),
            ],
            id="calls of a whole message",
        ),
        pytest.param(
            [
                choice({"reasoning": "r", "content": "ab", "refusal": "n"}),
                {"choices": [{"message": {"reasoning": "rs", "content": "abc", "refusal": "no"}}]},
                STOP,
            ],
            [
                ReasoningDelta("r"),
                TextDelta("ab"),
                RefusalDelta("n"),
                ReasoningDelta("s"),
                TextDelta("c"),
                RefusalDelta("o"),
                Finished("stop", None),
            ],
            id="a message that has more than the deltas",
        ),
        pytest.param(
            [choice({"content": "a\ud83d"}), choice({"content": "\ude80b"}), STOP],
            [TextDelta("a"), TextDelta("🚀b"), Finished("stop", None)],
            id="half a character",
        ),
        pytest.param(
            [choice({"reasoning": "a\ud83d"}), choice({"refusal": "b\ud83d"}), STOP],
            [
                ReasoningDelta("a"),
                RefusalDelta("b"),
                ReasoningDelta("\ufffd"),
                RefusalDelta("\ufffd"),
                Finished("stop", None),
            ],
            id="half a character at the end",
        ),
        pytest.param(
            [b' {"choices": [{"delta": {"content": "a"}}]}', b" ", b"", STOP],
            [TextDelta("a"), Finished("stop", None)],
            id="blanks before the data",
        ),
    ],
)
def test_chunks_become_deltas(chunks: list[Any], deltas: list[ModelDelta]) -> None:
    found = read(*chunks)
    last = found[-1]
    assert isinstance(last, Finished)
    assert [*found[:-1], Finished(last.reason, last.usage)] == deltas


def test_log_probabilities_stay_with_text_and_refusal() -> None:
    tokens = [{"token": "a", "logprob": -1}]
    logprobs = {"content": tokens, "refusal": [{"token": "n"}]}

    assert read(choice({"content": "a", "refusal": "n"}, logprobs=logprobs), STOP)[:2] == [
        TextDelta("a", tokens),
        RefusalDelta("n", [{"token": "n"}]),
    ]
    assert read(choice({"content": "a"}, logprobs={"content": []}), STOP)[0] == TextDelta("a")
    whole = {"choices": [{"message": {"content": "a"}, "logprobs": logprobs, "finish_reason": "stop"}]}
    assert reader().read_whole(json.dumps(whole).encode())[0] == TextDelta("a", tokens)


@pytest.mark.parametrize(
    "member", ["reasoning_details", "extra_content", "thinking_blocks", "provider_specific_fields"]
)
@pytest.mark.parametrize("form", ["delta", "message"])
def test_each_state_member_is_returned_once(member: str, form: str) -> None:
    value: Any = [{"type": "x"}] if member in ("reasoning_details", "thinking_blocks") else {"k": "v"}
    call = {"tool_calls": [tool_call('{"a": 1}')]}

    state = finished_of(
        {"choices": [{form: {member: value}}]}, choice(call), {"choices": [{"message": {member: value}}]}
    ).state

    assert state == ProviderState("p", members={member: value})


def test_reasoning_content_is_state_of_an_answer_with_calls() -> None:
    call = choice({"tool_calls": [tool_call('{"a": 1}', extra_content={"s": 1})]})

    state = finished_of(choice({"reasoning_content": "a"}), choice({"reasoning_content": "b"}), call).state

    assert state == ProviderState(
        "p", members={"reasoning_content": "ab"}, calls=[{"extra_content": {"s": 1}}]
    )


@pytest.mark.parametrize(
    ("delta", "is_over"),
    [
        ({"content": "x" * 10}, False),
        ({"content": "x" * 11}, True),
        ({"reasoning": "x" * 10}, False),
        ({"reasoning": "x" * 11}, True),
        ({"refusal": "x" * 11}, True),
        ({"content": [{"text": "x" * 11}]}, True),
        ({"content": [{"thinking": [{"text": "x" * 11}]}]}, True),
        ({"tool_calls": [tool_call("x" * 9)]}, False),
        ({"tool_calls": [tool_call("x" * 10)]}, True),
        ({"tool_calls": [tool_call(None)] * 11}, True),
        ({"content": "x" * 6, "refusal": "x" * 5}, True),
    ],
)
def test_an_answer_is_limited(delta: Any, is_over: bool) -> None:
    limited = reader(max_answer_bytes=10)

    if not is_over:
        limited.feed(sse(choice(delta)))
        assert limited.failure is None
        assert limited.has_said
        return
    try:
        limited.feed(sse(choice(delta)))
        failure: UpstreamFailed | None = limited.failure
    except UpstreamFailed as raised:
        failure = raised
    assert isinstance(failure, UpstreamResponseTooLarge)
    assert failure.label == "too_much"


def test_a_line_is_limited() -> None:
    with pytest.raises(UpstreamResponseTooLarge) as error:
        reader(max_line_bytes=20).feed(b"data: " + b"x" * 20)
    assert error.value.label == "too_much"


@pytest.mark.parametrize(
    "delta", [{"content": "a"}, {"reasoning": "a"}, {"refusal": "a"}, {"tool_calls": [tool_call("")]}]
)
def test_it_has_output_after_the_first_piece(delta: Any) -> None:
    one = reader()
    one.feed(sse(choice({"role": "assistant"})))
    assert (one.has_said, one.has_reason, one.is_finished) == (False, False, False)

    one.feed(sse(choice(delta)))
    assert (one.has_said, one.has_reason, one.is_finished) == (True, False, False)

    one.feed(sse(STOP))
    assert (one.has_reason, one.is_finished) == (True, False)

    one.end()
    assert one.is_finished


def test_calls_of_a_whole_message_count_as_output() -> None:
    one = reader()
    one.feed(sse({"choices": [{"message": {"tool_calls": [tool_call("{}")]}}]}))
    assert one.has_said


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"code": "rate_limit_exceeded", "message": "slow"}},
        {"choices": [{"error": {"code": "rate_limit_exceeded", "message": "slow"}}]},
        {"choices": [{"finish_reason": "ERROR"}]},
    ],
)
def test_an_error_follows_the_deltas_before_it(chunk: Any) -> None:
    with pytest.raises(UpstreamFailed) as raised:
        reader().feed(sse(chunk))
    behind = reader()

    assert behind.feed(sse(choice({"content": "a"}), chunk)) == [TextDelta("a")]

    assert behind.failure is not None
    assert (behind.failure.label, behind.failure.is_retryable) == (
        raised.value.label,
        raised.value.is_retryable,
    )


def test_a_named_error_event_is_an_error() -> None:
    with pytest.raises(UpstreamFailed):
        reader().feed(b'event: error\ndata: {"message": "no"}\n\n')
    assert reader().feed(b'event: x\ndata: {"choices": [{"delta": {"content": "a"}}]}\n\n') == [
        TextDelta("a")
    ]


def test_a_stream_without_a_reason_is_incomplete() -> None:
    for stream in (b"", sse(choice({"content": "a"})), sse(choice({"content": "a"})) + b'data: {"choi'):
        cut = reader()
        cut.feed(stream)
        with pytest.raises(UpstreamIncomplete) as error:
            cut.end()
        assert (error.value.label, error.value.is_retryable) == ("incomplete", True)


def test_half_a_chunk_after_a_reason_only_loses_usage() -> None:
    cut = reader()
    assert cut.feed(sse(choice({"content": "a"}), STOP) + b'data: {"usa') == [TextDelta("a")]

    assert cut.end() == [Finished("stop", None)]


def test_a_bad_chunk_after_a_reason_ends_the_answer() -> None:
    one = reader()

    assert one.feed(sse(choice({"content": "a"}), STOP, b"{bad")) == [TextDelta("a"), Finished("stop", None)]
    assert one.is_finished
    with pytest.raises(UpstreamProtocolError) as error:
        reader().feed(sse(b"{bad"))
    assert error.value.label == "protocol"


def test_the_end_without_a_choice_is_a_protocol_error() -> None:
    with pytest.raises(UpstreamProtocolError) as error:
        reader().feed(sse(DONE))
    assert error.value.label == "protocol"


def test_whole_answers_are_one_object_or_one_per_line() -> None:
    first, second = (
        json.dumps(
            {"choices": [{"message": {"content": text}, "finish_reason": reason}], "usage": USAGE}
        ).encode()
        for text, reason in (("a", None), ("ab", "stop"))
    )

    assert reader().read_whole(second) == [TextDelta("ab"), Finished("stop", Usage(prompt=3, completion=2))]
    assert [d for d in reader().read_whole(first + b"\n\n" + second) if not isinstance(d, UsagePiece)] == [
        TextDelta("a"),
        TextDelta("b"),
        Finished("stop", Usage(prompt=3, completion=2)),
    ]
    for bad in (
        b"",
        b"{",
        b"{\n{",
        b"{}",
        b'{"choices": []}',
        b"[" * 100_000,
    ):
        with pytest.raises(UpstreamProtocolError) as error:
            reader().read_whole(bad)
        assert error.value.label == "protocol"


def test_an_error_as_a_whole_answer_is_raised() -> None:
    with pytest.raises(UpstreamFailed):
        reader().read_whole(b'{"error": {"message": "no"}}')


def test_calls_of_a_whole_message_are_separate_without_ids_and_arguments() -> None:
    function = {"function": {"name": "f", "arguments": ""}}

    assert read({"choices": [{"message": {"tool_calls": [function, function]}}]}, STOP) == [
        ToolCallPiece(0, "", "f"),
        ToolCallPiece(1, "", "f"),
        Finished("tool_calls", None),
    ]


def test_half_characters_in_state_and_log_probabilities_are_replaced() -> None:
    call = tool_call('{"a": 1}', extra_content={"s": "\ud83d"}, provider_specific_fields={"t": "é\ud83d"})
    delta = {"content": "a", "thinking_blocks": [{"x": "\ud83d"}], "tool_calls": [call]}

    found = read(choice(delta, logprobs={"content": [{"token": "\ud83d"}]}), STOP)

    assert found[0] == TextDelta("a", [{"token": "\ufffd"}])
    last = found[-1]
    assert isinstance(last, Finished)
    assert last.state == ProviderState(
        "p",
        members={"thinking_blocks": [{"x": "\ufffd"}]},
        calls=[{"extra_content": {"s": "\ufffd"}, "provider_specific_fields": {"t": "é\ufffd"}}],
    )


def test_half_a_character_at_the_end_of_a_whole_answer_is_replaced() -> None:
    body = b'{"choices": [{"message": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}'

    assert reader().read_whole(body) == [TextDelta("a"), TextDelta("\ufffd"), Finished("stop", None)]
