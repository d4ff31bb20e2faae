"""The order in which pieces of streamed tool calls are passed on, and the errors of cut or misplaced ones."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.errors import UpstreamIncomplete, UpstreamProtocolError, UpstreamResponseTooLarge
from proxy.providers.model import ToolCallPiece
from proxy.providers.openai.stream_chunk import CallDelta, FunctionDelta
from proxy.providers.openai.tool_call_assembler import MAX_CALLS, CallAssembler, Ending


def delta(index: Any, name: Any = None, arguments: Any = None, id: Any = None, **more: Any) -> CallDelta:
    return CallDelta(index, id, FunctionDelta(name, arguments), **more)


def added(*deltas: CallDelta) -> list[list[ToolCallPiece]]:
    """What each delta lets pass, then what the end does."""
    assembler = CallAssembler()
    return [*map(assembler.add, deltas), assembler.finish("whole")]


@pytest.mark.parametrize(
    "pieces",
    [['{"path": "C:\\', '" b"}'], ['{"path": "C:', "\\", '"', ' b"}'], ['{"path": "C:\\\\', '"}']],
    ids=["quotation mark is escaped", "one character each", "backslash is escaped"],
)
def test_backslash_at_the_end_of_a_piece_escapes_the_next_piece(pieces: list[str]) -> None:
    assembler = CallAssembler()
    first = assembler.add(CallDelta(0, "call_1", FunctionDelta("open", pieces[0])))
    for piece in pieces[1:]:
        first += assembler.add(CallDelta(0, None, FunctionDelta(None, piece)))

    second = assembler.add(CallDelta(1, "call_2", FunctionDelta("close", '{"now": true}')))

    assert "".join(piece.arguments for piece in first) == "".join(pieces)
    assert second == [ToolCallPiece(1, '{"now": true}', "close", "call_2")]


@pytest.mark.parametrize(
    ("deltas", "expected"),
    [
        pytest.param(
            [delta(0, "f", id="c"), delta(0, None, '{"a"'), delta(0, None, ": 1}")],
            [[], [ToolCallPiece(0, '{"a"', "f", "c")], [ToolCallPiece(0, ": 1}")], []],
            id="a name waits for arguments",
        ),
        pytest.param([delta(0, "f", id="c")], [[], [ToolCallPiece(0, "", "f", "c")]], id="no arguments"),
        pytest.param(
            [delta(0, "f", "{}"), delta(1, "g", '{"b": 2}')],
            [[], [], [ToolCallPiece(0, "{}", "f"), ToolCallPiece(1, '{"b": 2}', "g")]],
            id="a placeholder waits for the end",
        ),
        pytest.param(
            [delta(0, "f", "null")], [[], [ToolCallPiece(0, "{}", "f")]], id="null stands for no arguments"
        ),
        pytest.param(
            [delta(0, "f", "{}"), delta(0, None, '{"a": 1}')],
            [[], [ToolCallPiece(0, '{"a": 1}', "f")], []],
            id="arguments replace a placeholder",
        ),
        pytest.param(
            [delta(0, "f", "{}"), delta(0, "f", '{"a": 1}')],
            [[], [ToolCallPiece(0, '{"a": 1}', "f")], []],
            id="arguments replace a placeholder, with the name again",
        ),
        pytest.param(
            [delta(0, "look"), delta(0, "_up"), delta(0, None, '{"a": 1}')],
            [[], [], [ToolCallPiece(0, '{"a": 1}', "look_up")], []],
            id="a name in pieces",
        ),
        pytest.param(
            [delta(0, "look"), delta(0, "look_up"), delta(0, None, '{"a": 1}')],
            [[], [], [ToolCallPiece(0, '{"a": 1}', "look_up")], []],
            id="a name again and longer",
        ),
        pytest.param(
            [delta(0, "f", '{"a": '), delta(0, "f", "1}")],
            [[ToolCallPiece(0, '{"a": ', "f")], [ToolCallPiece(0, "1}")], []],
            id="the name with every piece",
        ),
        pytest.param(
            [delta(0, "f", '{"a": '), delta(1, "g", '{"b": 2}'), delta(0, None, "1}")],
            [
                [ToolCallPiece(0, '{"a": ', "f")],
                [],
                [ToolCallPiece(0, "1}"), ToolCallPiece(1, '{"b": 2}', "g")],
                [],
            ],
            id="the second call waits for the first",
        ),
        pytest.param(
            [delta(0, "f", '{"a": '), delta(1, "g", '{"b": 2}'), delta(0, None, '"é"}')],
            [
                [ToolCallPiece(0, '{"a": ', "f")],
                [],
                [ToolCallPiece(0, '"é"}'), ToolCallPiece(1, '{"b": 2}', "g")],
                [],
            ],
            id="the second call waits for text that is not ASCII",
        ),
        pytest.param(
            [delta(0, "f", '{"a": '), delta(1, "g", "["), delta(2, "h", '{"c": 3}'), delta(0, None, "1}")],
            [
                [ToolCallPiece(0, '{"a": ', "f")],
                [],
                [],
                [ToolCallPiece(0, "1}")],
                [ToolCallPiece(1, "{}", "g"), ToolCallPiece(2, '{"c": 3}', "h")],
            ],
            id="a placeholder between two calls",
        ),
        pytest.param(
            [delta(None, "f", '{"a": 1}', "c1"), delta(None, "g", '{"b": 2}', "c2")],
            [[ToolCallPiece(0, '{"a": 1}', "f", "c1")], [ToolCallPiece(1, '{"b": 2}', "g", "c2")], []],
            id="ids and no numbers",
        ),
        pytest.param(
            [delta(None, "f", '{"a": ', "c1"), delta(None, "", "1}", "c2")],
            [[ToolCallPiece(0, '{"a": ', "f", "c1")], [ToolCallPiece(0, "1}")], []],
            id="another id with every piece",
        ),
        pytest.param(
            [
                delta(None, "f", '{"a": ', "c1"),
                delta(None, "g", '{"b": ', "c2"),
                delta(None, None, "1}", "c1"),
                delta(None, None, "2}"),
            ],
            [
                [ToolCallPiece(0, '{"a": ', "f", "c1")],
                [],
                [ToolCallPiece(0, "1}"), ToolCallPiece(1, '{"b": ', "g", "c2")],
                [ToolCallPiece(1, "2}")],
                [],
            ],
            id="pieces of two ids, the last without id",
        ),
        pytest.param(
            [delta(None, "f", '{"a": 1}'), delta(None, "f", '{"a": 2}')],
            [[ToolCallPiece(0, '{"a": 1}', "f")], [ToolCallPiece(1, '{"a": 2}', "f")], []],
            id="the same function twice without numbers",
        ),
        pytest.param(
            [delta(0, "f", '{"a": 1}'), delta(0, "g", '{"b": 2}')],
            [[ToolCallPiece(0, '{"a": 1}', "f")], [ToolCallPiece(1, '{"b": 2}', "g")], []],
            id="one number for all calls",
        ),
        pytest.param(
            [delta(0, "f", '{"a": ', "c1"), delta(0, "f", '{"b": 2}', "c2"), delta(0, None, " ")],
            [[ToolCallPiece(0, '{"a": ', "f", "c1")], [], [], [ToolCallPiece(1, '{"b": 2} ', "f", "c2")]],
            id="one number for all calls and another id",
        ),
        pytest.param(
            [delta(0, "f", '{"a": 1}', "c1"), delta(0, "f", " ", "c1"), delta(0, "f", '{"a": 2}', "c1")],
            [
                [ToolCallPiece(0, '{"a": 1}', "f", "c1")],
                [ToolCallPiece(0, " ")],
                [ToolCallPiece(1, '{"a": 2}', "f", "c1")],
                [],
            ],
            id="one number and one id for two calls of a function",
        ),
        pytest.param(
            [delta(7, "f"), CallDelta(7, "late"), delta(7, None, '{"a": 1}')],
            [[], [], [ToolCallPiece(0, '{"a": 1}', "f", "late")], []],
            id="an id that comes later, and a first number over 0",
        ),
        pytest.param(
            [delta(0, "f", {"a": 1})],
            [[ToolCallPiece(0, '{"a":1}', "f")], []],
            id="arguments that are an object",
        ),
        pytest.param(
            [delta(0, "f\ud800\0", '{"a": "\0"}', "c\0")],
            [[ToolCallPiece(0, '{"a": "\ufffd"}', "f\ufffd\ufffd", "c\ufffd")], []],
            id="characters that are no text",
        ),
        pytest.param(
            [delta(0, "f", '{"a": "'), delta(0, None, "\ud83d"), delta(0, None, '\ude80"}')],
            [[ToolCallPiece(0, '{"a": "', "f")], [], [ToolCallPiece(0, '🚀"}')], []],
            id="a surrogate pair in two pieces",
        ),
        pytest.param(
            [delta(0, "f", '{"a": "'), delta(0, None, "x\0y"), delta(0, None, ""), delta(0, None, '"}')],
            [
                [ToolCallPiece(0, '{"a": "', "f")],
                [ToolCallPiece(0, "x\ufffdy")],
                [],
                [ToolCallPiece(0, '"}')],
                [],
            ],
            id="a null character and an empty piece",
        ),
        pytest.param(
            [CallDelta(None), CallDelta(), delta("0", 7, None)], [[], [], [], []], id="pieces without content"
        ),
    ],
)
def test_pieces_are_passed_on_in_the_order_of_calls(
    deltas: list[CallDelta], expected: list[list[ToolCallPiece]]
) -> None:
    assert added(*deltas) == expected


def test_provider_state_of_each_call_is_returned_by_position() -> None:
    assembler = CallAssembler()
    assert (assembler.has_calls, assembler.states()) == (False, [])
    assembler.add(delta(0, "f", '{"a": 1}', "c1"))
    assert (assembler.has_calls, assembler.states()) == (True, [])

    assembler.add(CallDelta(0, extra_content={"s": 1}))
    assembler.add(delta(1, "g", '{"b": 2}', "c2", provider_specific_fields={"t": 2}))
    assembler.add(delta(2, "h", '{"c": 3}', "call_1__thought__abc"))

    assert assembler.states() == [
        {"extra_content": {"s": 1}},
        {"provider_specific_fields": {"t": 2}},
        {"id": "call_1__thought__abc"},
    ]


def test_provider_state_next_to_further_arguments_is_not_lost() -> None:
    assembler = CallAssembler()
    assembler.add(delta(0, "f", '{"a": '))

    passed = assembler.add(delta(0, None, "1}", extra_content={"s": 1}, provider_specific_fields={"t": 2}))

    assert passed == [ToolCallPiece(0, "1}")]
    assert assembler.states() == [{"extra_content": {"s": 1}, "provider_specific_fields": {"t": 2}}]


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param([delta(None, None, "{}")], id="arguments of no call"),
        pytest.param(
            [delta(0, "f", '{"a": 1}'), delta(1, "g", '{"b": '), delta(0, None, "x")],
            id="arguments of a whole call",
        ),
    ],
)
def test_misplaced_arguments_are_a_protocol_error(deltas: list[CallDelta]) -> None:
    assembler = CallAssembler()
    *before, last = deltas
    for one in before:
        assembler.add(one)

    with pytest.raises(UpstreamProtocolError) as error:
        assembler.add(last)

    assert error.value.label == "protocol"


def test_white_space_after_a_whole_call_is_ignored() -> None:
    assert added(delta(0, "f", '{"a": 1}'), delta(1, "g", '{"b": 2}'), delta(0, None, " \n")) == [
        [ToolCallPiece(0, '{"a": 1}', "f")],
        [ToolCallPiece(1, '{"b": 2}', "g")],
        [],
        [],
    ]


def test_a_call_without_a_name_is_a_protocol_error_at_the_end() -> None:
    assembler = CallAssembler()
    assembler.add(delta(0, None, '{"a": 1}', "c"))

    with pytest.raises(UpstreamProtocolError) as error:
        assembler.finish("whole")

    assert error.value.label == "protocol"


def test_calls_over_the_limit_are_an_error() -> None:
    assembler = CallAssembler()
    for number in range(MAX_CALLS):
        assembler.add(delta(number, "f", '{"a": 1}'))

    with pytest.raises(UpstreamResponseTooLarge) as error:
        assembler.add(delta(MAX_CALLS, "f", '{"a": 1}'))

    assert (MAX_CALLS, error.value.label) == (256, "too_much")


@pytest.mark.parametrize(
    ("arguments", "ending", "is_retryable"),
    [
        ('{"a": 1}', "whole", None),
        ('{"a": ', "whole", None),
        ("", "whole", None),
        ('{"a": 1}', "unknown", None),
        ('{"a": ', "unknown", True),
        ("", "unknown", None),
        ('{"a": 1}', "cut_short", None),
        ('{"a": ', "cut_short", False),
        ("", "cut_short", False),
    ],
)
def test_cut_arguments_are_an_error_unless_the_provider_reports_whole_calls(
    arguments: str, ending: Ending, is_retryable: bool | None
) -> None:
    assembler = CallAssembler()
    assembler.add(delta(0, "f", arguments))

    if is_retryable is None:
        assembler.finish(ending)
        assert assembler.has_calls
        return
    with pytest.raises(UpstreamIncomplete) as error:
        assembler.finish(ending)
    assert (error.value.label, error.value.is_retryable) == ("incomplete", is_retryable)


def test_a_call_that_is_sent_again_is_one_call() -> None:
    assembler = CallAssembler()
    calls = [
        CallDelta(0, "a", FunctionDelta("f", '{"x": 1}')),
        CallDelta(1, "b", FunctionDelta("f", '{"x": 1}')),
        CallDelta(0, "a", FunctionDelta("f", '{"x":1}')),
        CallDelta(None, "b", FunctionDelta("f", '{"x": 1}')),
        CallDelta(0, "a", FunctionDelta("f", '{"x": 2}')),
    ]
    pieces = [piece for call in calls for piece in assembler.add(call)] + assembler.finish("whole")

    assert [(piece.index, piece.call_id, piece.arguments) for piece in pieces] == [
        (0, "a", '{"x": 1}'),
        (1, "b", '{"x": 1}'),
        (2, "a", '{"x": 2}'),
    ]
