"""The size lines of HTTP chunks (RFC 9112, 7.1), formatted once for small chunks."""

from __future__ import annotations

_MOST = 2048
_END = len(b"\r\n")


class SizeLines(dict[int, bytes]):
    """The lines before chunks, by the size of a part of the chunk."""

    def __init__(self, rest: int = 0) -> None:
        """``rest`` is the number of bytes that each chunk has besides this part."""
        super().__init__()
        self._rest = rest

    def __missing__(self, size: int) -> bytes:
        line = b"%x\r\n" % (size + self._rest)
        if size < _MOST:
            self[size] = line
        return line


size_lines = SizeLines()
"""The lines before chunks, by size."""


class _KnownLines(dict[int, bytes]):
    def __missing__(self, length: int) -> bytes:
        size = length - len(b"%x\r\n" % max(length, 0)) - _END
        if size > 0 and len(size_lines[size + 1]) + size + 1 + _END == length:
            # The size has a digit less than the length.
            size += 1
        line = size_lines[size] if size > 0 and len(size_lines[size]) + size + _END == length else b""
        if length < _MOST:
            self[length] = line
        return line


lines_of_chunks = _KnownLines()
"""The line of the chunk that has a number of bytes together with its framing; an empty one if no chunk has.

The last chunk of a body, which is empty, has another framing.
"""
