"""Pass the batches of a streamed answer on in the call of the event loop that receives their bytes.

The task that reads the answer waits for the end meanwhile. Without this, each network read wakes the task, which costs
one more iteration of the event loop and the resumption of all its coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import copy_context

from proxy.events import TextBatch
from proxy.providers.http.connection import HIGH_WATER, Response
from proxy.providers.model import ModelDelta, Take
from proxy.providers.openai.chunk_relay import chunk_relay
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import Alarm
from proxy.turns.text_relay import OpenRelay, TextRelay

_RELAYED_BYTES = 64 * 1024
"""Bytes that a relay passes on until the log gets their text."""
_ATTEMPTS = 8
"""To open a relay, without success: turns that are logged for other workers, for example, never have one."""


class BatchDelivery:
    """Reads a response until its end, a failure, a finish reason, or until ``take`` returns False."""

    def __init__(
        self,
        response: Response,
        reader: AnswerReader | ResponsesReader,
        take: Take,
        alarm: Alarm,
        idle: float,
        open_relay: OpenRelay | None = None,
    ) -> None:
        """``alarm`` rings after ``idle`` seconds without data."""
        self._response = response
        self._reader = reader
        self._take = take
        self._alarm = alarm
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._end: asyncio.Future[bool] = self._loop.create_future()
        self._bytes_left = HIGH_WATER
        """Then the task reads once: a fast provider must not occupy the event loop."""
        # The context of the loop's calls is that of the task which opened the connection, maybe for another request.
        self._context = copy_context()
        self._open_relay = open_relay
        self._relay: TextRelay | None = None
        self._attempts_left = _ATTEMPTS
        self.untaken: Sequence[ModelDelta] = ()
        """The batch that was read and not passed to ``take``, because something other than text follows it."""

    def start(self) -> asyncio.Future[bool]:
        """Begin to pass batches on. ``stop`` has to follow when the future is done, or not waited for any more.

        Its result is whether the rest has to be read by iteration; False after ``take`` returned False. Its exception
        is ``UpstreamFailed`` if the provider reported an error, or the data is invalid.
        """
        self._response.observes_chunks = self._open_relay is not None
        self._response.on_news = self._read_in_context
        self._alarm.set(self._loop.time() + self._idle)
        self._read()
        return self._end

    def stop(self) -> None:
        """Pass nothing more on."""
        self._close_relay()
        self._open_relay = None
        self._response.on_news = None
        self._response.observes_chunks = self._response.is_between_chunks = False
        self._alarm.pause()
        if self._end.done() and not self._end.cancelled():
            # A task that was cancelled in the meantime does not retrieve it.
            self._end.exception()

    def _read_in_context(self) -> None:
        self._context.run(self._read)

    def _read(self) -> None:
        end, response, reader = self._end, self._response, self._reader
        self._close_relay()
        if end.done():
            # The task has not run yet; it finds the data in the response.
            return
        if response.is_over:
            end.set_result(True)
            return
        try:
            received = response.read_now()
            deltas = reader.feed(received) if received else ()
            # A batch of texts only changes nothing else.
            if type(deltas) is not TextBatch and (
                reader.has_reason or reader.is_finished or reader.failure is not None
            ):
                self.untaken = deltas
                end.set_result(True)
            elif deltas and not self._take(deltas):
                end.set_result(False)
            elif self._bytes_left <= len(received):
                end.set_result(True)
            else:
                self._bytes_left -= len(received)
                self._alarm.deadline = self._loop.time() + self._idle
                if received and response.is_between_chunks:
                    self._relay_next()
        except Exception as error:  # noqa: BLE001 - raised in the task that reads the answer
            end.set_exception(error)

    def _relay_next(self) -> None:
        """Let the next reads be passed on directly, if they can only have text and the turn has one reader."""
        frame, reader = self._reader.repeated_frame, self._reader
        if frame is None or self._open_relay is None:
            return
        self._attempts_left -= 1
        relay = self._relay = self._open_relay()
        if not self._attempts_left:
            self._response.observes_chunks = self._response.is_between_chunks = False
        if relay is None:
            return

        def record(texts: Sequence[str], times: Sequence[float]) -> None:
            self._attempts_left = _ATTEMPTS
            self._response.observes_chunks = True
            self._bytes_left -= sum(map(len, texts)) + frame.size * len(texts)
            reader.add_texts(texts)

        relay.add_record(record)
        relay.detach = self._detach
        most = min(_RELAYED_BYTES, self._bytes_left, reader.bytes_left)
        process = chunk_relay(frame, relay, self._alarm, self._idle, most, self._response.receive)
        self._response.process_directly(process)

    def _detach(self) -> None:
        self._relay = None
        self._response.process_directly(None)

    def _close_relay(self) -> None:
        if self._relay is not None:
            self._relay.close()
