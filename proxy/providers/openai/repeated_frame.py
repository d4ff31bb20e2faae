"""The events of a streamed text, of which only the text changes from one to the next.

Most providers send the same bytes around each piece of text. Once such an event was parsed, another one with the same
bytes has the same meaning apart from its text, so it is not parsed again. What is compared:

- The event is one line, ``data: ``, the JSON up to the first quotation mark of the text, the text, and the rest.
- The text between has neither quotation marks nor backslashes nor control characters: it is the whole JSON string
  (RFC 8259, section 7), and nothing of the text is escaped.
"""

from __future__ import annotations

from proxy.providers.openai.stream_chunk import Chunk

_KEY = b'"content"'


class RepeatedFrame:
    """The bytes around the text of an event."""

    __slots__ = ("_fixed", "_max_bytes", "head", "tail")

    def __init__(self, head: bytes, tail: bytes, max_bytes: int) -> None:
        """``max_bytes`` is the size up to which a network read is examined."""
        self.head = head
        """The bytes before the text."""
        self.tail = tail
        """The bytes behind it, with the end of the event."""
        self._fixed = len(head) + len(tail)
        self._max_bytes = max_bytes

    @classmethod
    def of(cls, data: bytes, text: str, max_bytes: int) -> RepeatedFrame | None:
        """Return the frame of an event with this data and text (``delta.content``); None if it cannot be determined."""
        # With one such key, and without escapes, its value is the text.
        if b"\\" in data or data.count(_KEY) != 1:
            return None
        before, after = data.split(_KEY)
        start = len(before) + len(_KEY) + len(after) - len(after.lstrip(b": ")) + 1
        encoded = text.encode("utf-8", "replace")
        if not data.startswith(b'"%b"' % encoded, start - 1):
            return None
        head, tail = b"data: " + data[:start], data[start + len(encoded) :] + b"\n\n"
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
        if not self._fixed < len(received) <= self._max_bytes:
            return None
        try:
            middle = received[len(head) : -len(tail)].decode()
        except UnicodeDecodeError:
            return None
        # One text is the usual case: what is between two has quotation marks.
        texts = [middle]
        if '"' in middle:
            texts = middle.split((tail + head).decode())
            middle = "".join(texts)
            if '"' in middle or "" in texts:
                return None
        return texts if "\\" not in middle and middle.isprintable() else None


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
    others = (getattr(delta, name) for name in delta.__struct_fields__ if name != "content")
    return bool(delta.content) and not any(others)
