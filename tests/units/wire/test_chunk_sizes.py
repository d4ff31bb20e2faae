"""Size lines of HTTP chunks."""

from __future__ import annotations

import pytest

from proxy.wire.chunk_sizes import SizeLines, lines_of_chunks, size_lines

SIZES = [*range(1, 5000), 65_535, 65_536, 1_000_000]


def test_a_size_line_is_hexadecimal() -> None:
    assert [size_lines[size] for size in SIZES] == [f"{size:x}\r\n".encode() for size in SIZES]


def test_a_size_line_is_that_of_a_part_and_the_rest() -> None:
    lines = SizeLines(17)

    assert [lines[size] for size in SIZES] == [size_lines[size + 17] for size in SIZES]


def test_only_lines_of_small_chunks_are_held() -> None:
    lines = SizeLines()

    assert [lines[size] for size in SIZES] == [lines[size] for size in SIZES]
    assert 2000 < len(lines) < 2100


def test_the_line_of_a_chunk_follows_from_its_length() -> None:
    for size in SIZES:
        line = size_lines[size]
        assert lines_of_chunks[len(line) + size + 2] == line


@pytest.mark.parametrize("length", [-1, 0, 4, 5, 21, 262, 4103])
def test_some_lengths_are_not_those_of_a_chunk(length: int) -> None:
    assert lines_of_chunks[length] == b""
    assert all(len(size_lines[size]) + size + 2 != length for size in range(1, 5000))
