"""Text members of a streamed answer: split surrogate pairs, reasoning between think tags, leading white space."""

from __future__ import annotations

from typing import Any

from proxy.events import ReasoningDelta, TextDelta
from proxy.providers.model import ModelDelta
from proxy.providers.sanitize import clean
from proxy.providers.think_tags import ThinkTagSplitter


class TextMember:
    """One member of the deltas of an answer."""

    __slots__ = ("half", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        """Everything that came, to compare a cumulative ``message`` with."""
        self.half = ""
        """The first half of a surrogate pair whose second half is in a later chunk."""

    def take(self, text: str) -> str:
        """Add a piece; return it as whole characters, without NUL."""
        self.pieces.append(text)
        if text.isascii() and not self.half and "\x00" not in text:
            return text
        text = self.half + text
        self.half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
        return clean(text.removesuffix(self.half))

    def beyond(self, whole: Any) -> Any:
        """Return what a cumulative text adds to the pieces; None if it is another text."""
        if not self.pieces or not whole:
            return whole
        before = "".join(self.pieces)
        self.pieces = [before]
        return whole[len(before) :] if isinstance(whole, str) and whole.startswith(before) else None

    def end(self) -> str:
        """Return what replaces a half without its other half."""
        half, self.half = self.half, ""
        return "\ufffd" if half else ""


class AnswerText(TextMember):
    """The member ``content``."""

    __slots__ = ("_has_text", "_space", "_splitter", "is_plain")

    def __init__(self, *, starts_in_reasoning: bool = False) -> None:
        """``starts_in_reasoning``: the model writes ``</think>`` without the opening tag."""
        super().__init__()
        self._splitter: ThinkTagSplitter | None = ThinkTagSplitter(starts_in_reasoning=starts_in_reasoning)
        self._space: list[ModelDelta] = []
        """White space before the first text; dropped if only calls follow."""
        self._has_text = False
        self.is_plain = False
        """Whether each further piece of whole ASCII characters is a delta as it is."""

    def add(self, text: str, logprobs: Any, deltas: list[ModelDelta]) -> None:
        """Add a piece that is not empty, and the deltas that it makes certain."""
        if not (text := self.take(text)):
            self.is_plain = False
            return
        pieces: list[ModelDelta] = [TextDelta(text, logprobs)]
        if self._splitter is not None:
            found = self._splitter.read(text)
            if found != [TextDelta(text)]:
                pieces = found
            if self._splitter.is_plain:
                self._splitter = None
        self._append(pieces, deltas)
        self.is_plain = self._has_text and self._splitter is None and not self.half

    def drop_space(self) -> None:
        """Drop white space before a call: Qwen and others write blank lines between reasoning and a call."""
        self._space.clear()

    def finish(self, deltas: list[ModelDelta], *, has_calls: bool) -> None:
        """Add what was held back: half a character, a possible tag, white space if no call follows."""
        self.is_plain = False
        if half := self.end():
            self._append([TextDelta(half)], deltas)
        if self._splitter is not None:
            self._append(self._splitter.end(), deltas)
        if not has_calls:
            deltas.extend(self._space)
        self._space.clear()

    def has_unopened_reasoning(self) -> bool:
        """Whether the text so far has a closing think tag without an opening one, as a chat template leaves it."""
        return ThinkTagSplitter.is_unopened("".join(self.pieces))

    def _append(self, pieces: list[ModelDelta], deltas: list[ModelDelta]) -> None:
        if self._has_text:
            deltas.extend(pieces)
            return
        for piece in pieces:
            if isinstance(piece, ReasoningDelta) or self._has_text:
                deltas.append(piece)
            elif isinstance(piece, TextDelta) and piece.text.strip():
                self._has_text = True
                deltas.extend(self._space)
                self._space.clear()
                deltas.append(piece)
            else:
                self._space.append(piece)
