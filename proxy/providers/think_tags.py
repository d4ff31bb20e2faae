"""Separates reasoning from answer text where a model writes it as ``<think>…</think>`` at the start of the text.

AutoGen's clients do so for every model; on the OpenAI wire it comes from Qwen and other models that are served without
a reasoning parser.
"""

from __future__ import annotations

from proxy.events import ReasoningDelta, TextDelta
from proxy.providers.model import ModelDelta
from proxy.providers.sanitize import clean

_OPENING = "<think>"
_CLOSING = "</think>"


class ThoughtSplitter:
    """Splits the text of one answer. A tag that the stream cut in two is held back until the rest of it arrived."""

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""

    @property
    def is_plain(self) -> bool:
        """Whether everything from here on is text, so that ``read`` need not be called any more."""
        return self._state == "speaking"

    def read(self, piece: str) -> list[ModelDelta]:
        """Return the text and the reasoning that are certain after this piece."""
        text = self._held + clean(piece)
        self._held = ""
        if self._state == "start":
            # Some chat templates put a line end before the tag.
            start = text.lstrip()
            if len(start) < len(_OPENING) and _OPENING.startswith(start):
                self._held = text
                return []
            self._state = "thinking" if start.startswith(_OPENING) else "speaking"
            text = start.removeprefix(_OPENING) if self._state == "thinking" else text
        deltas: list[ModelDelta] = []
        if self._state == "thinking":
            thought, mark, text = text.partition(_CLOSING)
            if mark:
                self._state = "between"
            else:
                self._held = _possible_start(thought, _CLOSING)
                thought = thought.removesuffix(self._held)
            if thought:
                deltas.append(ReasoningDelta(thought))
        if self._state == "between":
            # The line ends between reasoning and answer belong to neither.
            text = text.lstrip()
            if text:
                self._state = "speaking"
        if text:
            deltas.append(TextDelta(text))
        return deltas

    def end(self) -> list[ModelDelta]:
        """Return what was held back as a possible tag."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [ReasoningDelta(held) if self._state == "thinking" else TextDelta(held)]


def _possible_start(text: str, mark: str) -> str:
    """Return the end of ``text`` that ``mark`` may begin with."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return text[-size:]
    return ""
