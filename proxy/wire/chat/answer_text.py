"""Join the texts of a turn to the message text that the client receives.

The texts of successive model calls (of several agents, or before and after tool calls) are separated by a blank line.
It is inserted when the next text starts, so that a message neither starts nor ends with it. Encoders, the stored
transcript and fingerprints use this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from proxy.events import Event, Handoff, ModelCalled, TextDelta


class TextJoiner:
    """Inserts separators between the texts of a turn, delta by delta."""

    __slots__ = ("_is_joint", "_tail")

    def __init__(self) -> None:
        self._tail = ""
        self._is_joint = False

    @property
    def has_text(self) -> bool:
        """Whether there was any text."""
        return bool(self._tail)

    @property
    def is_paused(self) -> bool:
        """Whether a separator may precede the next text."""
        return self._is_joint

    def pause(self) -> None:
        """Mark the end of a text: the end of a model call, or a handoff."""
        self._is_joint = True

    def join(self, text: str) -> str:
        """Return the delta for the client: the text, preceded by the separator if a new text starts."""
        if self._is_joint:
            self._is_joint = False
            if self._tail:
                text = "\n\n"[min(len(self._tail) - len(self._tail.rstrip("\n")), 2) :] + text
        self._tail = text[-2:] if len(text) > 1 else (self._tail + text)[-2:]
        return text

    def join_all(self, texts: Sequence[str]) -> list[str]:
        """Return what ``join`` returns for each of the texts, of which there is at least one."""
        first, *others = texts
        joined = [self.join(first), *others]
        self._tail = (self._tail + "".join(others[-2:]))[-2:]
        return joined


def visible_text(events: Iterable[Event]) -> str:
    """Return the message text of a turn; ``""`` if there is none."""
    joints = TextJoiner()
    pieces = []
    for event in events:
        if type(event) is TextDelta:
            pieces.append(joints.join(event.text))
        elif type(event) is ModelCalled or type(event) is Handoff:
            joints.pause()
    return "".join(pieces)
