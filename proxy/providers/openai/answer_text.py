"""Text members of a streamed answer: split surrogate pairs, reasoning between think tags, leading white space."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from proxy.events import ReasoningDelta, TextDelta
from proxy.providers.model import ModelDelta
from proxy.providers.sanitize import clean
from proxy.providers.think_tags import ThinkTagSplitter


class TextMember(Struct):
    """One member of the deltas of an answer."""

    pieces: list[str] = []
    """Everything that came, to compare a cumulative ``message`` with."""
    half: str = ""
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

    starts_in_reasoning: bool = False
    """The model writes ``</think>`` without the opening tag."""
    is_plain: bool = False
    """Whether each further piece of whole ASCII characters is a delta as it is."""
    _has_text: bool = False
    _is_split: bool = True
    """Whether a tag can be in what follows."""
    _splitter: ThinkTagSplitter | None = None
    """Created for the first piece that needs it."""
    space: list[ModelDelta] = []
    """White space before the first text; dropped if only calls follow."""

    def add(self, text: str, logprobs: Any, deltas: list[ModelDelta]) -> None:
        """Add a piece that is not empty, and the deltas that it makes certain."""
        is_ascii = text.isascii() and "\x00" not in text
        if is_ascii and not (self.pieces or self.starts_in_reasoning or "<" in text or text.isspace()):
            # Nearly every answer begins so: the first piece is text, and no tag can follow.
            self.pieces.append(text)
            self._is_split, self._has_text, self.is_plain = False, True, True
            deltas.append(TextDelta(text, logprobs))
            return
        if not (text := self.take(text)):
            self.is_plain = False
            return
        pieces: list[ModelDelta] = [TextDelta(text, logprobs)]
        if self._is_split:
            found = self._read(text)
            if found != [TextDelta(text)]:
                pieces = found
        self._append(pieces, deltas)
        self.is_plain = self._has_text and not self._is_split and not self.half

    def _read(self, text: str) -> list[ModelDelta]:
        splitter = self._splitter
        if splitter is None:
            splitter = self._splitter = ThinkTagSplitter(starts_in_reasoning=self.starts_in_reasoning)
        found = splitter.read(text)
        if splitter.is_plain:
            self._is_split, self._splitter = False, None
        return found

    def finish(self, deltas: list[ModelDelta], *, has_calls: bool) -> None:
        """Add what was held back: half a character, a possible tag, white space if no call follows."""
        self.is_plain = False
        if self.half:
            self._append([TextDelta(self.end())], deltas)
        if self._splitter is not None:
            self._append(self._splitter.end(), deltas)
        if not has_calls:
            deltas.extend(self.space)
        self.space.clear()

    def _append(self, pieces: list[ModelDelta], deltas: list[ModelDelta]) -> None:
        if self._has_text:
            deltas.extend(pieces)
            return
        for piece in pieces:
            if isinstance(piece, ReasoningDelta) or self._has_text:
                deltas.append(piece)
            elif isinstance(piece, TextDelta) and piece.text.strip():
                self._has_text = True
                deltas.extend(self.space)
                self.space.clear()
                deltas.append(piece)
            else:
                self.space.append(piece)
