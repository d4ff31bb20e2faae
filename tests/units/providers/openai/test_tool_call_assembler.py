"""The order in which pieces of streamed tool calls are passed on."""

from __future__ import annotations

import pytest

from proxy.providers.model import CallPiece
from proxy.providers.openai.tool_call_assembler import CallAssembler, CallDelta, FunctionDelta


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
    assert second == [CallPiece(1, '{"now": true}', "close", "call_2")]
