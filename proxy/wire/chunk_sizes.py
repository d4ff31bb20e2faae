"""The size lines of HTTP chunks (RFC 9112, 7.1), formatted once for small chunks."""

from __future__ import annotations

_MOST = 2048
_END = len(b"\r\n")


class _SizeLines(dict[int, bytes]):
    """The line before each number of bytes, formatted when it is read; those of small chunks are retained."""

    def __missing__(self, size: int) -> bytes:
        line = b"%x\r\n" % size
        if size < _MOST:
            self[size] = line
        return line


size_lines = _SizeLines()
size_line = size_lines.__getitem__
known_lines: dict[int, bytes] = {}
"""What ``line_of_chunk`` has returned, to be read without a call."""


def line_of_chunk(length: int) -> bytes:
    """Return the size line of the chunk that has ``length`` bytes together with its framing; an empty one if none has.

    The last chunk of a body, which is empty, has another framing.
    """
    size = length - len(b"%x\r\n" % max(length, 0)) - _END
    if size > 0 and len(size_line(size + 1)) + size + 1 + _END == length:
        # The size has a digit less than the length.
        size += 1
    line = size_line(size) if size > 0 and len(size_line(size)) + size + _END == length else b""
    if length < _MOST:
        known_lines[length] = line
    return line
