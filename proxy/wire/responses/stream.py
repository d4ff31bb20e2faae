"""Encode the events of a turn as a stream of Responses API events, or as one Response object."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.errors import TurnTakenOver
from proxy.events import TAKEOVER_POSITIONS, Entry, Failed, TextDelta
from proxy.messages import Usage
from proxy.wire.chat.response_models import encode
from proxy.wire.errors import failed_event
from proxy.wire.events import sse
from proxy.wire.events.takeover import CLOSING_POSITION
from proxy.wire.responses.options import Body, ResponseOptions
from proxy.wire.responses.output import Output

_DELTA = (
    b"event: response.output_text.delta\n"
    b'data: {"type":"response.output_text.delta","sequence_number":%d,%b,"delta":%b,"logprobs":[]}\n\n'
)


class ResponseEncoder:
    """Encodes the entries of a turn as SSE frames for one reader.

    It needs every entry from the first. For a reader that reconnects, frames up to the ``sequence_number`` ``after``
    are counted but not returned.
    """

    def __init__(self, options: ResponseOptions, *, after: int = -1) -> None:
        self._output = Output(options)
        self._after = after
        # A reader that has no events cannot have lost ones.
        self._takeover = TAKEOVER_POSITIONS if after >= 0 else CLOSING_POSITION
        self._is_over = False

    def encode(self, entry: Entry) -> bytes:
        """Return the complete frames of one entry; often empty."""
        event, output = entry.event, self._output
        if entry.position >= self._takeover and self._has_lost_events(entry.position):
            return self._failure(entry)
        if type(event) is TextDelta and event.logprobs is None and output.text_place:
            # Fast path: one frame in which only the text and the sequence number vary.
            number, text = output.append_text(event.text)
            if number <= self._after:
                return b""
            data = encode(text)
            return _DELTA % (number, output.text_place, data if data.isascii() else sse.one_line(data))
        return b"".join(
            sse.named(step["type"], encode(step))
            for step in output.add(event, entry.time)
            if step["sequence_number"] > self._after
        )

    def _has_lost_events(self, position: int) -> bool:
        """Whether the reader has events of an earlier worker which the turn does not have any more."""
        if self._is_over or position >= CLOSING_POSITION:
            return self._is_over
        self._takeover = (position // TAKEOVER_POSITIONS + 1) * TAKEOVER_POSITIONS
        return self._after >= self._output.event_count

    def _failure(self, entry: Entry) -> bytes:
        """End the stream with an error; return nothing for the entries after that."""
        if self._is_over:
            return b""
        self._is_over, self._takeover, self._after = True, 0, -1
        failed = failed_event(TurnTakenOver(), Usage(), ran_effects=True)
        steps = self._output.add(failed, entry.time)
        return b"".join(sse.named(step["type"], encode(step)) for step in steps)


class ResponseBuilder:
    """Builds one Response object from the entries of a turn."""

    def __init__(self, options: ResponseOptions) -> None:
        self._options = options
        self._output = Output(options)

    def clear(self) -> None:
        """Drop the response and what it was built from."""
        self._output = Output(self._options)

    def add(self, entry: Entry) -> None:
        """Add the next entry."""
        event = entry.event
        if type(event) is TextDelta and event.logprobs is None and self._output.text_place:
            self._output.append_text(event.text)
        else:
            self._output.add(event, entry.time)

    def answer(self) -> Body | Failed:
        """Return the Response object or the failure of the turn; requires the closing event."""
        return self._output.failure or self.response()

    def response(self) -> Body:
        """Return the Response object, also of a failed turn.

        Raises:
            ValueError: The closing event is missing.
        """
        if self._output.response is None:
            raise ValueError("the turn has no closing event")
        return self._output.response


def response_of(options: ResponseOptions, entries: Iterable[Entry]) -> Body:
    """Return the Response object of a complete turn."""
    builder = ResponseBuilder(options)
    for entry in entries:
        builder.add(entry)
    return builder.response()
