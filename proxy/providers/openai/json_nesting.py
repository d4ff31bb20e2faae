"""Depth of streamed JSON text."""

from __future__ import annotations

import re

_MARKS = re.compile(r'\\.|\\$|["{}\[\]]', re.DOTALL)


class JsonNesting:
    """Tracks the depth of JSON text piece by piece, and whether its outermost object is closed, in one pass."""

    __slots__ = ("_depth", "_is_escaped", "_is_in_string", "is_closed")

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False
        self.is_closed = False

    def add(self, text: str) -> None:
        """Read the next piece."""
        if self._is_escaped:
            self._is_escaped = False
            text = text[1:]
        for mark in _MARKS.findall(text):
            if mark == '"':
                self._is_in_string = not self._is_in_string
            elif mark[0] == "\\":
                self._is_escaped = len(mark) == 1
            elif not self._is_in_string:
                self._depth += 1 if mark in "{[" else -1
                self.is_closed = self._depth == 0
