"""A response as a stream of typed events, and as one object."""

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
    """Turns a turn's entries into the frames of its stream, one encoder for one reader.

    It has to be given every entry from the first. A reader that goes on later says which ``sequence_number`` it has
    seen last: the frames up to there are counted and not returned.
    """

    def __init__(self, options: ResponseOptions, *, after: int = -1) -> None:
        self._output = Output(options)
        self._after = after

    def encode(self, entry: Entry) -> bytes:
        """Return the frames of one entry, whole; often none."""
        event, output = entry.event, self._output
        if type(event) is TextDelta and event.logprobs is None and output.text_place:
            # The hot path: one frame, of which only the text and its number are new.
            number, text = output.more_text(event.text)
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
    """Gathers the entries of a turn into one Response."""

    def __init__(self, options: ResponseOptions) -> None:
        self._output = Output(options)

    def take(self, entry: Entry) -> None:
        """Take the next entry."""
        event = entry.event
        if type(event) is TextDelta and event.logprobs is None and self._output.text_place:
            self._output.more_text(event.text)
        else:
            self._output.add(event, entry.time)

    def answer(self) -> Body | Failed:
        """Return what the turn came to; only after its closing event."""
        return self._output.failure or self.response()

    def response(self) -> Body:
        """Return the Response, which tells a failure as well; only after the closing event."""
        if self._output.response is None:
            raise ValueError("the turn is not over")
        return self._output.response


def response_of(options: ResponseOptions, entries: Iterable[Entry]) -> Body:
    """Return the Response of a whole turn."""
    builder = ResponseBuilder(options)
    for entry in entries:
        builder.take(entry)
    return builder.response()
