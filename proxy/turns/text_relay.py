"""Pass the text of a model to the only reader of a turn at once, and log it later.

A piece of text that arrives alone finds most of the code and data of its path evicted from the caches of the CPU, and
each function on the path costs microseconds. While nothing but plain text arrives and there is one reader, two
functions run for each read: one finds the text in the bytes of the provider, the other writes it as a part of the
response. The parser, the reply, the log and the encoder get the text when the relay is closed: before anything else
happens in the turn, before its log is read or has another reader, and after 64 KiB.
"""

from __future__ import annotations

from collections.abc import Callable

WriteText = Callable[[bytes], bool]
"""Writes the frame of a text, which is given as a JSON string without its quotation marks.

It returns False without an effect if the client has left or reads too slowly.
"""
Record = Callable[[list[str], list[float]], None]
"""Gets the texts that were passed on, and when, by the clock of the event loop. There is at least one."""
OpenRelay = Callable[[], "TextRelay | None"]
"""Returns a new relay; None if each text has to go through parser, log and encoder."""


class TextRelay:
    """Texts that only the reader has. Each layer that opens a relay adds a function that records them at the end."""

    __slots__ = ("_records", "between", "detach", "is_reader_gone", "texts", "times", "write")

    def __init__(self, write: WriteText, between: bytes, is_reader_gone: Callable[[], bool]) -> None:
        """``between`` separates several texts that are written at once."""
        self.write = write
        self.between = between
        self.is_reader_gone = is_reader_gone
        self.texts: list[str] = []
        self.times: list[float] = []
        self.detach: Callable[[], None] | None = None
        """Stops the source of the text."""
        self._records: list[Record] = []

    def add_record(self, record: Record) -> None:
        """Let a function get the texts. Functions are called in the order in which they were added."""
        self._records.append(record)

    def close(self) -> None:
        """Stop passing on text, and record what was passed on. The second call has no effect."""
        detach, self.detach = self.detach, None
        if detach is not None:
            detach()
        # They refer to their owners, which refer to this object.
        records, self._records = self._records, []
        if self.texts:
            for record in records:
                record(self.texts, self.times)
