"""The model of a provider's answer: for tests of answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from proxy.errors import UpstreamFailed
from proxy.providers.model import ModelRequest
from proxy.providers.openai.answer import Accepted
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import AlarmClock

Send = Callable[[ModelRequest], Awaitable[Accepted]]


class FakeAnsweringModel:
    """Sends requests with a function, and marks failures."""

    provider = ""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.alarm_clock = AlarmClock()

    def send(self, request: ModelRequest) -> Awaitable[Accepted]:
        """Send the request with the function."""
        return self._send(request)

    def describe(self, failure: UpstreamFailed, request: ModelRequest) -> None:
        """Mark the failure."""
        failure.facts["host"] = "described"

    def finish(self, reader: AnswerReader | ResponsesReader) -> None:
        """Do nothing."""
