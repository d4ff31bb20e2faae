"""Takes reasoning out of the text of AutoGen's clients, which put it there in ``<think>`` at the very beginning."""

from __future__ import annotations

from proxy.providers.model import ModelDelta, ReasoningPiece, TextPiece
from proxy.providers.sanitize import clean


class ThoughtSplitter:
    """Splits one answer. A mark that was cut in two by the stream is held back until the rest of it came."""

    def __init__(self) -> None:
        self._state = "start"
        self._held = ""

    def read(self, piece: str) -> list[ModelDelta]:
        """Return what the piece says, and thinks."""
        text = self._held + clean(piece)
        self._held = ""
        if self._state == "start":
            if len(text) < len("<think>") and "<think>".startswith(text):
                self._held = text
                return []
            self._state = "thinking" if text.startswith("<think>") else "speaking"
            text = text.removeprefix("<think>")
        if self._state == "speaking":
            return [TextPiece(text)] if text else []
        thought, mark, spoken = text.partition("</think>")
        if not mark:
            self._held = _possible_start(thought, "</think>")
            thought = thought.removesuffix(self._held)
        else:
            self._state = "speaking"
        deltas: list[ModelDelta] = [ReasoningPiece(thought)] if thought else []
        return [*deltas, TextPiece(spoken)] if spoken else deltas

    def end(self) -> list[ModelDelta]:
        """Return what was held back as a possible mark."""
        held, self._held = self._held, ""
        if not held:
            return []
        return [ReasoningPiece(held) if self._state == "thinking" else TextPiece(held)]


def _possible_start(text: str, mark: str) -> str:
    """Return the end of ``text`` that ``mark`` may begin with."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return text[-size:]
    return ""
