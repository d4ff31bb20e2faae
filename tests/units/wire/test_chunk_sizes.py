"""Size lines of HTTP chunks."""

from __future__ import annotations

import pytest

from proxy.wire.chunk_sizes import line_of_chunk, size_line

SIZES = [*range(1, 5000), 65_535, 65_536, 1_000_000]


def test_a_size_line_is_hexadecimal() -> None:
    assert [size_line(size) for size in SIZES] == [f"{size:x}\r\n".encode() for size in SIZES]


def test_the_line_of_a_chunk_follows_from_its_length() -> None:
    for size in SIZES:
        line = size_line(size)
        assert line_of_chunk(len(line) + size + 2) == line


@pytest.mark.parametrize("length", [-1, 0, 4, 5, 21, 262, 4103])
def test_some_lengths_are_not_those_of_a_chunk(length: int) -> None:
    assert line_of_chunk(length) == b""
    assert all(len(size_line(size)) + size + 2 != length for size in range(1, 5000))
