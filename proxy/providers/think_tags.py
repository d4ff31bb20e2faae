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
_MAX_HELD = 1_000
"""Characters of white space before the tag."""


class ThinkTagSplitter:
    """Splits the text of one answer. A tag that the stream cut in two is held back until the rest of it arrived."""

    def __init__(self, *, starts_in_reasoning: bool = False) -> None:
        """``starts_in_reasoning``: the opening tag is in the prompt, so that the text begins behind it."""
        self._state = "unopened" if starts_in_reasoning else "start"
        self._held = ""
        self._unopened: list[str] = []
        """Text that is reasoning if a closing tag follows, and the answer if not."""

    @staticmethod
    def is_unopened(text: str) -> bool:
        """Whether a text begins with reasoning and a closing tag on a separate line, as chat templates leave it."""
        if _CLOSING not in text:
            return False
        before, _, behind = text.partition(_CLOSING)
        return _OPENING not in before and behind[:1] in ("", "\n") and before.endswith("\n")

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
            is_possible = len(start) < len(_OPENING) and _OPENING.startswith(start)
            # Bounded, because each piece copies what is held: an answer of white space would take quadratic time.
            if is_possible and len(text) <= _MAX_HELD:
                self._held = text
                return []
            if start.startswith(_OPENING):
                self._state, text = "thinking", start.removeprefix(_OPENING)
            else:
                # Of an answer that came whole the missing tag is noticed in time.
                self._state = "thinking" if self.is_unopened(text) else "speaking"
        deltas: list[ModelDelta] = []
        if self._state == "unopened":
            if not self._unopened:
                text = text.lstrip().removeprefix(_OPENING)
            reasoning, mark, _ = text.partition(_CLOSING)
            if mark:
                self._state = "thinking"
                self._unopened.clear()
            else:
                self._held = _possible_start(reasoning, _CLOSING)
                reasoning = reasoning.removesuffix(self._held)
                if reasoning:
                    self._unopened.append(reasoning)
                    deltas.append(ReasoningDelta(reasoning))
                return deltas
        if self._state == "thinking":
            reasoning, mark, text = text.partition(_CLOSING)
            if mark:
                self._state = "between"
            else:
                self._held = _possible_start(reasoning, _CLOSING)
                reasoning = reasoning.removesuffix(self._held)
            if reasoning:
                deltas.append(ReasoningDelta(reasoning))
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
        if self._state == "unopened":
            # No closing tag came, so that all of it was the answer.
            answer = "".join((*self._unopened, held))
            return [TextDelta(answer)] if answer else []
        if not held:
            return []
        return [ReasoningDelta(held) if self._state == "thinking" else TextDelta(held)]


def _possible_start(text: str, mark: str) -> str:
    """Return the end of ``text`` that ``mark`` may begin with."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return text[-size:]
    return ""
