"""Pass the batches of a streamed answer on in the call of the event loop that receives their bytes.

The task that reads the answer waits for the end meanwhile. Without this, each network read wakes the task, which costs
one more iteration of the event loop and the resumption of all its coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import copy_context
from functools import partial

from proxy.events import TextBatch
from proxy.providers.http.connection import HIGH_WATER, Response
from proxy.providers.model import ModelDelta, Take
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.timeouts import Alarm


class BatchDelivery:
    """Reads a response until its end, a failure, a finish reason, or until ``take`` returns False."""

    def __init__(
        self,
        response: Response,
        reader: AnswerReader | ResponsesReader,
        take: Take,
        alarm: Alarm,
        idle: float,
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
        self.untaken: Sequence[ModelDelta] = ()
        """The batch that was read and not passed to ``take``, because something other than text follows it."""

    async def run(self) -> bool:
        """Return whether the rest has to be read as usual; False after ``take`` returned False.

        Raises:
            UpstreamFailed: The provider reported an error, or the data is invalid.
        """
        self._response.on_news = partial(self._context.run, self._read)
        self._alarm.set(self._loop.time() + self._idle)
        try:
            self._read()
            return await self._end
        finally:
            self._response.on_news = None
            self._alarm.pause()
            if self._end.done() and not self._end.cancelled():
                # A task that was cancelled in the meantime does not retrieve it.
                self._end.exception()

    def _read(self) -> None:
        end, response, reader = self._end, self._response, self._reader
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
        except Exception as error:  # noqa: BLE001 - raised in the task that reads the answer
            end.set_exception(error)
