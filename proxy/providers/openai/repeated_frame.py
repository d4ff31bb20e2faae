"""The events of a streamed text, of which only the text changes from one to the next.

Most providers send the same bytes around each piece of text. Once such an event was parsed, another one with the same
bytes has the same meaning apart from its text, so it is not parsed again. What is compared:

- The event is one line of data, maybe behind a line with its name.
- The bytes around its text are the same. OpenAI numbers the events of the Responses API, and pads events to hide the
  length of their text (API reference, ``sequence_number`` and ``obfuscation``). Neither has a meaning here: another
  number before the text, and other padding behind it, are the same event.
- The text is not empty, and has neither quotation marks nor backslashes nor control characters (``plain_text``): it is
  the whole JSON string (RFC 8259, section 7), and nothing of it is escaped.

What changes is cut out of all lines of a read at once. Whether the lines have anything else is decided by a comparison
with the bytes that an event with these values has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from io import BytesIO
from itertools import repeat
from operator import eq, itemgetter

from msgspec import Struct

MAX_REPEATED = 256 * 1024
"""Bytes of a read up to which it is compared with the frame; less than the limit of a line."""
_BACKSLASH, _LF = b"\\\n"
_NUMBER = b'"sequence_number":'
_PADDING = b'"obfuscation":"'


class RepeatedData(Struct, frozen=True):
    """The bytes around what changes in the data of an event."""

    parts: tuple[bytes, ...]
    """The bytes before, between and behind the number, the text and the padding."""
    has_number: bool = False
    has_padding: bool = False

    @classmethod
    def of(cls, data: bytes, key: bytes) -> RepeatedData | None:
        """Return the bytes around the text in the data of an event; None if they cannot be determined.

        ``key`` is the member with the text, with its quotation marks. The data is valid JSON and has this member.
        """
        # With one such key, and without escapes, its value is the text. The data may not have several lines.
        if data.count(key) != 1 or _BACKSLASH in data or _LF in data:
            return None
        start = data.find(b'"', data.find(key) + len(key)) + 1
        head, tail = data[:start], data[data.find(b'"', start) :]
        # Not with ``in``, which is slow between two ``bytes``: it tries first whether the left one is a number.
        if head.find(_NUMBER) < 0 and tail.find(_PADDING) < 0:
            return cls((head, tail))
        before, number, head = head.rpartition(_NUMBER)
        middle, padding, tail = tail.partition(_PADDING)
        numbered = (before + number, head.lstrip(b"0123456789")) if number else (head,)
        padded = (middle + padding, tail[tail.find(b'"') :]) if padding else (middle,)
        return cls((*numbered, *padded), bool(number), bool(padding))

    def within(self, before: bytes, behind: bytes) -> RepeatedData:
        """Return the same with these bytes around the data."""
        first, *middle, last = self.parts
        return RepeatedData((before + first, *middle, last + behind), self.has_number, self.has_padding)

    def encoded(self, lines: Sequence[bytes]) -> Sequence[bytes] | None:
        """Return the texts of these lines as they are there; None if a line has anything else."""
        first, last = self.parts[0], self.parts[-1]
        # Not mutated: without this shortcut the texts are found as other values are, with the same result.
        if len(self.parts) == 2:  # pragma: no mutate
            texts = [*map(itemgetter(slice(len(first), -len(last))), lines)]
            return texts if first + (last + first).join(texts) + last == b"".join(lines) else None
        values = self._values(lines)
        if first + (last + first).join(self._inner(values)) + last != b"".join(lines):
            return None
        return self._texts_of(values)

    def leading_texts(self, lines: Sequence[bytes]) -> list[str]:
        """Return the texts of the first of these lines, up to the first one with anything else."""
        first, last = self.parts[0], self.parts[-1]
        if not lines[0].startswith(first):
            return []
        # Behind the texts of a whole answer there is its end. One comparison of all texts costs less than one for each.
        count = len(lines)
        while count and not lines[count - 1].endswith(last):
            count -= 1
        encoded = self.encoded(lines[:count]) if count else None
        if encoded is None:
            encoded = self._leading(lines)
        return (plain_texts(encoded) or leading_plain_texts(encoded)) if encoded else []

    def _leading(self, lines: Sequence[bytes]) -> Sequence[bytes] | None:
        first, last = self.parts[0], self.parts[-1]
        values = self._values(lines)
        expected = map(b"".join, zip(repeat(first), self._inner(values), repeat(last)))
        count = [*map(eq, lines, expected), False].index(False)
        return self._texts_of([found[:count] for found in values]) if count else None

    def _values(self, lines: Iterable[bytes]) -> list[Sequence[bytes]]:
        """Return what is between the parts, one list for each place; anything if a line has other bytes."""
        first, *others, last = self.parts
        at = len(first)
        values: list[Sequence[bytes]] = []
        for part in others:
            # No value has the first byte of the part behind it.
            rests = map(itemgetter(slice(at, None)), lines)
            found, _, lines = zip(*map(bytes.partition, rests, repeat(part[:1])), strict=True)
            values.append(found)
            at = len(part) - 1
        values.append([*map(itemgetter(slice(at, -len(last))), lines)])
        return values

    def _inner(self, values: list[Sequence[bytes]]) -> Iterable[bytes]:
        """Return the lines with these values, without their first and last part."""
        if len(values) == 1:
            return values[0]
        pieces: list[Iterable[bytes]] = [values[0]]
        for part, found in zip(self.parts[1:], values[1:], strict=False):
            pieces += repeat(part), found
        return map(b"".join, zip(*pieces, strict=False))

    def _texts_of(self, values: list[Sequence[bytes]]) -> Sequence[bytes] | None:
        """Return the texts; None if a number or the padding is anything else."""
        if self.has_number and (b"" in values[0] or not b"".join(values[0]).isdigit()):
            return None
        if self.has_padding and (padding := b"".join(values[-1])) and not padding.isalnum():
            return None
        return values[self.has_number]


class RepeatedFrame:
    """The bytes around what changes in an event."""

    __slots__ = ("_name_line", "line", "line_count")

    def __init__(self, name: bytes, data: RepeatedData) -> None:
        """``name`` is that of the event, empty if it has none."""
        self._name_line = b"event: %b\n" % name if name else b""
        self.line = data.within(b"data: ", b"\n")
        self.line_count = 3 if name else 2
        """Lines of an event, with the blank one."""

    @property
    def head(self) -> bytes:
        """The bytes before the first value that changes."""
        return self._name_line + self.line.parts[0]

    @property
    def tail(self) -> bytes:
        """The bytes behind the last one."""
        return self.line.parts[-1] + b"\n"

    @property
    def has_text_only(self) -> bool:
        """Whether nothing changes but the text."""
        return len(self.line.parts) == 2

    @property
    def size_without_data(self) -> int:
        """Bytes of an event besides the line with its data."""
        return len(self._name_line) + len(b"\n")

    @property
    def size(self) -> int:
        """Bytes of an event without what changes."""
        return sum(map(len, self.line.parts)) + self.size_without_data

    def data_lines(self, lines: Sequence[bytes]) -> Sequence[bytes]:
        """Return the lines with the data; empty if others are not those of successive events, or there are none."""
        count = self.line_count
        found = lines[count - 2 :: count]
        is_whole = len(lines) == count * len(found) and lines[count - 1 :: count].count(b"\n") == len(found)
        has_names = not self._name_line or lines[::count].count(self._name_line) == len(found)
        return found if is_whole and has_names else ()

    def texts(self, received: bytes) -> list[str] | None:
        """Return the texts of the events in ``received``; None if it has anything else, or an incomplete event."""
        if len(received) > MAX_REPEATED:
            return None
        lines = self.data_lines(BytesIO(received).readlines())
        encoded = self.line.encoded(lines) if lines else None
        return plain_texts(encoded) if encoded is not None else None


def plain_text(encoded: bytes) -> str | None:
    """Return the text of a JSON string without its quotation marks; None if it is empty, or could have escapes.

    Nor has the text characters that are escaped in responses (line separators, see ``wire.events.sse``), so that the
    string can be sent as it is.
    """
    try:
        text = encoded.decode()
    except UnicodeDecodeError:
        return None
    return text if text and '"' not in text and "\\" not in text and text.isprintable() else None


def plain_texts(encoded: Sequence[bytes]) -> list[str] | None:
    """Return the texts of several such strings; None if ``plain_text`` has none for one of them."""
    try:
        # A text has no quotation marks, so they separate the texts.
        joined = b'"'.join(encoded).decode()
    except UnicodeDecodeError:
        return None
    texts = joined.split('"')
    is_plain = len(texts) == len(encoded) and all(texts) and "\\" not in joined and joined.isprintable()
    return texts if is_plain else None


def leading_plain_texts(encoded: Sequence[bytes]) -> list[str]:
    """Return the texts of the first of several such strings, up to one for which ``plain_text`` has none."""
    texts: list[str] = []
    for one in encoded:
        text = plain_text(one)
        if text is None:
            break
        texts.append(text)
    return texts
