"""Encode the events of a turn as a stream of Responses API events, or as one Response object."""

from __future__ import annotations

from collections.abc import Iterable

from proxy.events import Entry, Failed, TextDelta
from proxy.wire.chat.response_models import encode
from proxy.wire.events import sse
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

    def encode(self, entry: Entry) -> bytes:
        """Return the complete frames of one entry; often empty."""
        event, output = entry.event, self._output
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
