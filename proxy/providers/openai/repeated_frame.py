"""The events of a streamed text, of which only the text changes from one to the next.

Most providers send the same bytes around each piece of text. Once such an event was parsed, another one with the same
bytes has the same meaning apart from its text, so it is not parsed again. What is compared:

- The event is one line, ``data: ``, the JSON up to the first quotation mark of the text, the text, and the rest.
- The text between is not empty, and has neither quotation marks nor backslashes nor control characters
  (``plain_text``): it is the whole JSON string (RFC 8259, section 7), and nothing of it is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from proxy.providers.openai.stream_chunk import Chunk

SEARCHES = 8
"""Attempts to find a repeated frame, without a use of one in between. Some providers change every event."""
MAX_REPEATED = 256 * 1024
"""Bytes of a read up to which it is compared with the frame; less than the limit of a line."""
_LINE, _END = b"data: ", b"\n\n"
KEY = b'"content"'
"""The member that has the text of a chunk."""
_NUMBER = b'"sequence_number":'
_PADDING = b'"obfuscation":"'


class RepeatedFrame(Struct, frozen=True):
    """The bytes around the text of an event."""

    head: bytes
    """The bytes before the text."""
    tail: bytes
    """The bytes behind it, with the end of the event."""
    max_bytes: int
    """The size up to which a network read is examined."""

    @property
    def size(self) -> int:
        """Bytes of an event without its text."""
        return len(self.head) + len(self.tail)

    @classmethod
    def of(cls, data: bytes, text: str, max_bytes: int) -> RepeatedFrame | None:
        """Return the frame of an event with this data and text (``delta.content``); None if it cannot be determined."""
        # With one such key, and without escapes, its value is the text. The data may not have several lines.
        if b"\\" in data or b"\n" in data or data.count(KEY) != 1:
            return None
        before, after = data.split(KEY)
        start = len(before) + len(KEY) + len(after) - len(after.lstrip(b": ")) + 1
        encoded = text.encode("utf-8", "replace")
        if not data.startswith(b'"%b"' % encoded, start - 1):
            return None
        head, tail = _LINE + data[:start], data[start + len(encoded) :] + _END
        try:
            (tail + head).decode()
        except UnicodeDecodeError:
            return None
        return cls(head, tail, max_bytes)

    def texts(self, received: bytes) -> list[str] | None:
        """Return the texts of the events in ``received``; None if it has anything else, or an incomplete event."""
        head, tail = self.head, self.tail
        if not (received.startswith(head) and received.endswith(tail)):
            return None
        if not len(head) + len(tail) < len(received) <= self.max_bytes:
            return None
        return plain_texts(received[len(head) : -len(tail)].split(tail + head))

    def leading_texts(self, data: Sequence[bytes]) -> list[str]:
        """Return the texts of the first of these events, up to the first one with anything else."""
        head, tail = self.head.removeprefix(_LINE), self.tail.removesuffix(_END)
        # Data has no carriage return, which ends a line.
        joined = b"\r".join((*data, b""))
        if not joined.startswith(head):
            return []
        *encoded, rest = joined[len(head) :].split(tail + b"\r" + head)
        last, is_whole, _ = rest.partition(tail + b"\r")
        if is_whole:
            encoded.append(last)
        return plain_texts(encoded) or leading_plain_texts(encoded)


class VaryingFrame:
    """The bytes around the text of an event with a number before it and padding behind it, which also change.

    OpenAI numbers the events of the Responses API, and pads events to hide the length of their text (API reference,
    ``sequence_number`` and ``obfuscation``). Neither has a meaning here.
    """

    __slots__ = ("_has_number", "_has_padding", "_head", "_max_bytes", "_middle", "_start", "_tail", "size")

    def __init__(
        self, parts: tuple[bytes, bytes, bytes, bytes], max_bytes: int, *, has_number: bool, has_padding: bool
    ) -> None:
        """``parts`` are before the number, the text, the padding, and at the end; empty where there is none."""
        self._start, self._head, self._middle, self._tail = parts
        self.size = sum(map(len, parts))
        """Bytes of an event without what changes."""
        self._has_number = has_number
        self._has_padding = has_padding
        self._max_bytes = max_bytes

    @classmethod
    def of(cls, name: bytes, data: bytes, text: str, key: bytes, max_bytes: int) -> VaryingFrame | None:
        """Return the frame of an event, in which ``key`` with its quotation marks is the member with the text."""
        if b"\\" in data or b"\n" in data or data.count(key) != 1:
            return None
        if data.count(_PADDING) > 1 or data.count(_NUMBER) > 1:
            return None
        encoded = text.encode("utf-8", "replace")
        before, found, behind = data.partition(b'%b:"%b"' % (key, encoded))
        if not found:
            return None
        start, has_number, head = before.rpartition(_NUMBER)
        head = (head.lstrip(b"0123456789") if has_number else before) + key + b':"'
        middle, has_padding, tail = behind.partition(_PADDING)
        prefix = b"event: %b\ndata: " % name if name else b"data: "
        if has_padding:
            middle, tail = b'"' + middle + _PADDING, b'"' + tail.partition(b'"')[2] + b"\n\n"
        else:
            middle, tail = b'"' + behind + b"\n\n", b""
        first, second = (prefix + start + _NUMBER, head) if has_number else (b"", prefix + head)
        parts = (first, second, middle, tail)
        return cls(parts, max_bytes, has_number=bool(has_number), has_padding=bool(has_padding))

    def encoded(self, received: bytes, at: int, end: int) -> list[bytes] | None:
        """Return the texts of the events in a part of ``received`` as they are there; None if it has anything else."""
        start, head, middle, tail = self._start, self._head, self._middle, self._tail
        found: list[bytes] = []
        while at < end:
            if self._has_number:
                if not received.startswith(start, at):
                    return None
                at += len(start)
                stop = received.find(b",", at)
                if not received[at:stop].isdigit():
                    return None
                at = stop
            if not received.startswith(head, at):
                return None
            at += len(head)
            stop = received.find(b'"', at)
            if not received.startswith(middle, stop):
                return None
            found.append(received[at:stop])
            at = stop + len(middle)
            if self._has_padding:
                stop = received.find(b'"', at)
                padding = received[at:stop]
                if not received.startswith(tail, stop) or (padding and not padding.isalnum()):
                    return None
                at = stop + len(tail)
        return found if at == end and found else None

    def texts(self, received: bytes) -> list[str] | None:
        """Return the texts of the events in ``received``; None if it has anything else, or an incomplete event."""
        if len(received) > self._max_bytes:
            return None
        encoded = self.encoded(received, 0, len(received))
        return plain_texts(encoded) if encoded is not None else None

    def leading_texts(self, data: Sequence[bytes]) -> list[str]:
        """Return the texts of the first of these events, which have no name, up to the first one with anything else."""
        encoded: list[bytes] = []
        for one in data:
            found = self.encoded(b"%b%b%b" % (_LINE, one, _END), 0, len(one) + len(_LINE) + len(_END))
            if found is None or len(found) != 1:
                break
            encoded += found
        return leading_plain_texts(encoded)


Frame = RepeatedFrame | VaryingFrame


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
    if b"" in encoded or plain_text(b"".join(encoded)) is None:
        return None
    try:
        return [*map(bytes.decode, encoded)]
    except UnicodeDecodeError:
        return None


def leading_plain_texts(encoded: Sequence[bytes]) -> list[str]:
    """Return the texts of the first of several such strings, up to one for which ``plain_text`` has none."""
    texts: list[str] = []
    for one in encoded:
        text = plain_text(one)
        if text is None:
            break
        texts.append(text)
    return texts


def frame_of(data: bytes, text: str, max_bytes: int) -> Frame | None:
    """Return the frame of a chunk with this text (``delta.content``)."""
    if _PADDING in data:
        return VaryingFrame.of(b"", data, text, KEY, max_bytes)
    return RepeatedFrame.of(data, text, max_bytes)


def has_only_text(chunk: Chunk) -> bool:
    """Whether the chunk has a piece of ``content`` and nothing else that has a meaning."""
    if chunk.error or chunk.usage or chunk.handoff is not None or chunk.choices is None:
        return False
    if len(chunk.choices) != 1:
        return False
    (choice,) = chunk.choices
    if choice.index or choice.message or choice.logprobs is not None or choice.usage or choice.error:
        return False
    delta = choice.delta
    if choice.finish_reason is not None or delta is None or type(delta.content) is not str:
        return False
    # ``content`` is the first member.
    return bool(delta.content) and not any(astuple(delta)[1:])
