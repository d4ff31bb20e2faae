"""The text of an answer as a client sees it.

Two agents that speak in one turn, or one that speaks before and after its tools, read as one message: a blank line
stands between what one model call said and what the next one says. It is put in when the next text begins, so that
an answer neither begins nor ends with it. Encoders, the stored transcript and fingerprints all go by this module.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxy.events import Event, Handoff, ModelCalled, TextDelta


class Joints:
    """Tells what stands between the texts of a turn, one piece at a time."""

    __slots__ = ("_is_joint", "_tail")

    def __init__(self) -> None:
        self._tail = ""
        self._is_joint = False

    @property
    def has_text(self) -> bool:
        """Whether anything was said."""
        return bool(self._tail)

    def pause(self) -> None:
        """A model call ended, or the floor went to another agent."""
        self._is_joint = True

    def join(self, text: str) -> str:
        """Return the piece as the client sees it, with what has to stand before it."""
        if self._is_joint:
            self._is_joint = False
            if self._tail:
                text = "\n\n"[min(len(self._tail) - len(self._tail.rstrip("\n")), 2) :] + text
        self._tail = text[-2:] if len(text) > 1 else (self._tail + text)[-2:]
        return text


def visible_text(events: Iterable[Event]) -> str:
    """Return the text of a turn's answer; ``""`` when nothing was said."""
    joints = Joints()
    pieces = []
    for event in events:
        if isinstance(event, TextDelta):
            pieces.append(joints.join(event.text))
        elif isinstance(event, ModelCalled | Handoff):
            joints.pause()
    return "".join(pieces)
