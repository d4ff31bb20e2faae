"""Search for the frame that the texts of an answer repeat."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from proxy.providers.openai.repeated_frame import RepeatedData, RepeatedFrame

_SEARCHES = 8
"""Attempts to find a repeated frame, without a use of one in between. Some providers change every event."""
MOST_COMPARED = 64
"""Events behind a text that are compared with its frame at once: each comparison copies them."""


class FrameSearch(Struct):
    """The frame of the texts of one answer, as far as it is known."""

    key: bytes
    """The member of an event that has the text, with its quotation marks."""
    _data: RepeatedData | None = None
    _frame: RepeatedFrame | None = None
    _left: int = _SEARCHES

    def note_use(self) -> None:
        """Note that texts were read without a parser."""
        self._left = _SEARCHES

    def search(self, data: bytes) -> RepeatedData | None:
        """Return what repeats if the data, that of an event with a text and nothing else, is followed by another text.

        None if it cannot be determined, or if too many searches had no result that was of use.
        """
        if not self._left:
            return None
        self._left -= 1
        found = RepeatedData.of(data, self.key)
        if found is not None:
            self._data, self._frame = found, None
        return found

    def frame(self, name: bytes = b"") -> RepeatedFrame | None:
        """Return the frame that was found last, for events with a name; None if there is none."""
        if self._frame is None and self._data is not None:
            self._frame = RepeatedFrame(name, self._data)
        return self._frame

    def texts_behind(self, data: bytes, following: Sequence[bytes]) -> list[str]:
        """Return the texts of the first events that differ from the one before in their text only.

        ``data`` is that of the event before, which has a text and nothing else, and ``following`` the data of at most
        ``MOST_COMPARED`` events behind it. None of them has a name.
        """
        if not following:
            self.search(data)
            return []
        # The usual short answer: one text and the end, which has no such member. There is nothing to compare.
        if following[0].find(self.key) < 0:
            return []
        texts = self._data.leading_texts(following) if self._data is not None else []
        if not texts and (found := self.search(data)) is not None:
            texts = found.leading_texts(following)
        if texts:
            self._left = _SEARCHES
        return texts
