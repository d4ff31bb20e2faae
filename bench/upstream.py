"""Fake model provider with minimal overhead: it finds the model name and writes a prepared response."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import cast

from bench.loops import run
from bench.scripts import SCRIPTS, plain, streamed

_MODEL = re.compile(rb'"model":\s*"(\w+)"')
_STREAM = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


class Upstream(asyncio.Protocol):
    """A connection; one request at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop transports do not inherit from asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head = self._received.find(b"\r\n\r\n")
        if head < 0:
            return
        length = _LENGTH.search(self._received, 0, head)
        assert length is not None, "a request without a length"
        if len(self._received) < head + 4 + int(length[1]):
            return
        request = bytes(self._received)
        self._received.clear()
        self._answer(request)

    def _answer(self, request: bytes) -> None:
        found = _MODEL.search(request)
        assert found is not None, "a request without a model"
        model = found[1].decode()
        if not _STREAM.search(request):
            self._transport.write(plain(model))
            return
        self._write(streamed(model), 0, SCRIPTS[model].pause, self._loop.time())

    def _write(self, writes: tuple[bytes, ...], at: int, pause: float, due: float) -> None:
        self._transport.write(writes[at])
        if at + 1 < len(writes):
            due += pause
            self._timer = self._loop.call_at(due, self._write, writes, at + 1, pause, due)


async def main(port: int) -> None:
    """Serve until the process is terminated."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    run(main(int(sys.argv[1])))
