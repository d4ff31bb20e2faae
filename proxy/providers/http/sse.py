"""Splits a stream of bytes into server-sent events, however the network cut them.

The rules are those of the HTML standard (section 9.2.6): lines end with CR LF, LF or CR, comments and unknown
fields are skipped, a blank line ends an event. Only ``event`` and ``data`` are of use here; ``id`` and
``retry`` are skipped.
"""

from __future__ import annotations

from msgspec import Struct

Events = tuple[list[bytes], list[bytes]]
"""The names and the data of some events: a name for each event, empty for an ordinary one, or no names if all are such.

Data is not decoded, so a character may not be cut by a split.
"""

_BOM = b"\xef\xbb\xbf"
_STARTS_OF_MARK = (b"", _BOM[:1])
_CR, _LF = b"\r\n"
"""As numbers: a search for one is several times as fast as for a ``bytes`` object of length 1."""


class EventReader(Struct):
    """Takes bytes as they come and gives whole events; holds one unfinished line and one unfinished event."""

    max_line_bytes: int = 1024 * 1024
    is_over_limit: bool = False
    """Whether a line, or the data of one event, was too long; nothing is read from there on."""
    _tail: bytearray = bytearray()
    """The incomplete line. It is searched only after its end arrived, so that an endless line is copied once."""
    _name: bytes = b""
    _data: list[bytes] = []
    _further_bytes: int = 0
    _is_at_start: bool = True
    _ended_with_cr: bool = False

    @property
    def is_between_events(self) -> bool:
        """Whether the bytes so far end with a whole event, so that the next ones begin another."""
        is_within = self._tail or self._data or self._name or self._ended_with_cr
        return not (is_within or self._is_at_start or self.is_over_limit)

    def feed(self, received: bytes) -> Events:
        """Return the events that these bytes complete, in order."""
        if self.is_over_limit:
            return [], []
        if self._is_at_start:
            if self._tail or received[:1] in _STARTS_OF_MARK:
                received = self._without_mark(received)
            else:
                self._is_at_start = False
        if self._ended_with_cr and received:
            self._ended_with_cr = False
            # The LF of a CR LF that the network cut in two.
            received = received.removeprefix(b"\n")
        if _CR in received:
            self._ended_with_cr = received.endswith(b"\r")
            received = received.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if self._tail:
            if _LF not in received:
                self._keep(received)
                return [], []
            received = bytes(self._tail) + received
            self._tail.clear()
        return self._events(received)

    def end(self) -> Events:
        """Return what the stream held when it ended: at most one event that no blank line closed.

        The standard drops such an event; some providers forget the last line ends.
        """
        self._ended_with_cr = False
        line = bytes(self._tail)
        self._tail.clear()
        events: Events = [], []
        self._lines([line, b""], events)
        return events

    def _events(self, received: bytes) -> Events:
        """Read what holds at least one line end, and keep the line that has none."""
        events: Events = [], []
        end = received.rfind(b"\n\n") + 2
        is_between = not (self._data or self._name)
        if is_between and received[:6] == b"data: " and 1 < end <= self.max_line_bytes:
            # Nearly every event is one line of data and a blank one; then the split alone does the work.
            payloads = received[6 : end - 2].split(b"\n\ndata: ")
            # Not mutated: without this shortcut the lines are read one by one, with the same result.
            if _LF not in b"".join(payloads):  # pragma: no mutate
                if end == len(received):
                    return [], payloads
                events = [b""] * len(payloads), payloads
                received = received[end:]
        lines = received.split(b"\n")
        unfinished = lines.pop()
        self._lines(lines, events)
        self._keep(unfinished)
        names, payloads = events
        return names if any(names) else [], payloads

    def _lines(self, lines: list[bytes], events: Events) -> None:
        names, payloads = events
        data = self._data
        for line in lines:
            if len(line) > self.max_line_bytes:
                self.is_over_limit = True
            if self.is_over_limit:
                return
            if line:
                self._field(line)
            elif data:
                names.append(self._name)
                payloads.append(data[0] if len(data) == 1 else b"\n".join(data))
                data.clear()
                self._further_bytes = 0
                self._name = b""
            else:
                self._name = b""

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._add(value)
        elif name == b"event":
            self._name = value

    def _add(self, value: bytes) -> None:
        if self._data:
            self._further_bytes += len(value) + 1
            self.is_over_limit = self._further_bytes > self.max_line_bytes
        self._data.append(value)

    def _keep(self, unfinished: bytes) -> None:
        if len(self._tail) + len(unfinished) > self.max_line_bytes:
            self.is_over_limit = True
        if not self.is_over_limit:
            self._tail += unfinished

    def _without_mark(self, received: bytes) -> bytes:
        """Take a byte order mark off, and hold its bytes back while they could still be one."""
        start = bytes(self._tail) + received
        self._tail.clear()
        # Not mutated: no event is complete within three bytes, so holding back more of them has no effect.
        if len(start) < len(_BOM) and _BOM.startswith(start):  # pragma: no mutate
            self._tail += start
            return b""
        self._is_at_start = False
        return start.removeprefix(_BOM)
