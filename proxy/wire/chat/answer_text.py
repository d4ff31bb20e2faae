"""Join the texts of a turn to the message text that the client receives.

The texts of successive model calls (of several agents, or before and after tool calls) are separated by a blank line.
It is inserted when the next text starts, so that a message neither starts nor ends with it. Encoders, the stored
transcript and fingerprints use this module.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from proxy.events import Event, Handoff, ModelCalled, TextDelta


class TextJoiner(Struct, gc=False):
    """Inserts separators between the texts of a turn, delta by delta."""

    is_paused: bool = False
    """Whether a separator may precede the next text."""
    _tail: str = ""

    @property
    def has_text(self) -> bool:
        """Whether there was any text."""
        return bool(self._tail)

    def pause(self) -> None:
        """Mark the end of a text: the end of a model call, or a handoff."""
        self.is_paused = True

    def join(self, text: str) -> str:
        """Return the delta for the client: the text, preceded by the separator if a new text starts."""
        if self.is_paused:
            self.is_paused = False
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
    texts: list[str] = []
    deltas: list[str] = []
    for event in events:
        if type(event) is TextDelta:
            deltas.append(event.text)
        elif deltas and (type(event) is ModelCalled or type(event) is Handoff):
            texts.append("".join(deltas))
            deltas = []
    if deltas:
        texts.append("".join(deltas))
    if len(texts) < 2:
        # Nothing to separate.
        return texts[0] if texts else ""
    joints = TextJoiner()
    for place, text in enumerate(texts):
        texts[place] = joints.join(text)
        joints.pause()
    return "".join(texts)
