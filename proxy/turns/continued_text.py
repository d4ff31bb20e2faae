"""Answers that a client appends to an earlier assistant message ("Continue Response").

Open WebUI sends the list with the assistant message at its end, and appends the answer to that message without a
separator.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from proxy.events import Event, TextDelta
from proxy.turns.contract import Sink
from proxy.turns.text_relay import TextRelay

_SENTENCE_ENDS = frozenset(".!?:;…)]}\"'”’»`*。！？：；）」』")
_JOINED_BY_SPACE = frozenset(",;-–—")


def separator(before: str, text: str) -> str:
    """Return what has to be between a text and its continuation so that sentences and words stay separate."""
    if not before or not text or before[-1].isspace() or text[0].isspace():
        return ""
    if before[-1] in _SENTENCE_ENDS:
        return "\n\n"
    is_word = before[-1].isalnum() or before[-1] in _JOINED_BY_SPACE
    return " " if is_word and text[0].isalnum() and text[0].isascii() else ""


class ContinuedText:
    """A sink that puts the separator before the first text."""

    def __init__(self, sink: Sink, before: str) -> None:
        self._sink = sink
        self._before = before

    def emit(self, event: Event) -> None:
        """Forward an event."""
        self._sink.emit(self._separated(event))

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Forward events."""
        return self._sink.emit_batch([self._separated(event) for event in events] if self._before else events)

    def open_relay(self) -> TextRelay | None:
        """Return a relay of the sink, behind the first text."""
        return self._sink.open_relay() if not self._before else None

    def _separated(self, event: Event) -> Event:
        if self._before and isinstance(event, TextDelta) and event.text:
            event = TextDelta(separator(self._before, event.text) + event.text, event.logprobs)
            self._before = ""
        return event

    def drain(self) -> Awaitable[None]:
        """Wait as the sink does."""
        return self._sink.drain()

    def attended(self) -> Awaitable[None]:
        """Wait as the sink does."""
        return self._sink.attended()
