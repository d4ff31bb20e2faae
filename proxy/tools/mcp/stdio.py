"""The way to a server that is a program: JSON-RPC, a message a line, over its standard input and output.

The SDK has a transport of its own for this. It keeps a line of any length, and copies it with every chunk that is
added; and what a program writes to its standard error, it writes to ours.
"""

from __future__ import annotations

import asyncio
import os
import signal
from asyncio.subprocess import PIPE, Process, SubprocessStreamProtocol
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import ErrorData, JSONRPCError, jsonrpc_message_adapter

from proxy.tools.mcp.failures import OURS, TOO_MUCH, UNREADABLE
from proxy.tools.mcp.lines import Lines, LongLine, answered_request
from proxy.tools.mcp.setup import Program

_FLUSH = 0.5
_POLL = 0.01
_CHUNK = 64 * 1024
_MAX_SKIPPED = 256 * 1024 * 1024
"""Bytes of a line that is too long after which nobody waits for its end."""
_LAST_WORDS = 2000

_Incoming = SessionMessage | Exception
_stopping: set[asyncio.Task[None]] = set()
"""Programs that are being stopped; kept here so that a cancelled session does not leave one running."""


class Child:
    """A program that runs."""

    def __init__(self, process: Process, transport: asyncio.SubprocessTransport) -> None:
        self._process = process
        self._transport = transport
        self._words = b""
        assert process.stdout is not None
        assert process.stdin is not None
        self.stdout = process.stdout
        self.stdin = process.stdin
        self._listening = asyncio.create_task(self._listen(), name="MCP program's standard error")

    @classmethod
    async def start(cls, program: Program) -> Child:
        """Start a program, as the leader of a group that can be ended as one.

        Raises:
            OSError: It cannot be started.
        """
        loop = asyncio.get_running_loop()
        # What asyncio.create_subprocess_exec does; the transport is needed to let go of pipes that a child of the
        # program's holds on to.
        transport, protocol = await loop.subprocess_exec(
            lambda: SubprocessStreamProtocol(limit=_CHUNK, loop=loop),
            program.command,
            *program.arguments,
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=dict(program.environment),
            cwd=program.folder,
            start_new_session=os.name == "posix",
        )
        return cls(Process(transport, protocol, loop), transport)

    @property
    def last_words(self) -> str:
        """The end of what it wrote to its standard error."""
        return self._words.decode(errors="replace").strip()

    async def stop(self, grace: float) -> None:
        """End it: by closing its input, after ``grace`` seconds by SIGTERM, after half as many more by SIGKILL.

        Signals go to it and to what it started itself.
        """
        with suppress(OSError):
            self.stdin.close()
        if not await self._ends_within(grace):
            self._signal(signal.SIGTERM)
            await self._ends_within(grace / 2)
        # Also when it has ended: what it started itself ends with it.
        self._signal(_KILL)
        await self._ends_within(1)
        await asyncio.wait((self._listening,), timeout=_FLUSH)
        self._transport.close()
        self._listening.cancel()
        await asyncio.wait((self._listening,))

    async def _ends_within(self, seconds: float) -> bool:
        # Process.wait() would also wait for the ends of the pipes, which a child of the program's may hold open.
        loop = asyncio.get_running_loop()
        latest = loop.time() + seconds
        while self._process.returncode is None:
            if loop.time() >= latest:
                return False
            await asyncio.sleep(_POLL)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    async def _listen(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(_CHUNK):
            self._words = (self._words + chunk)[-_LAST_WORDS:]


_KILL = signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM


@asynccontextmanager
async def stdio_streams(
    program: Program,
    *,
    max_bytes: int,
    grace: float,
    on_child: Callable[[Child], None],
    on_end: Callable[[], None],
) -> AsyncGenerator[_Streams]:
    """Give the streams of a session with a program, which runs as long as the block does.

    It has ``grace`` seconds to end by itself. ``on_end`` is called when it says nothing more, or nothing that can be
    followed. A message that is longer than ``max_bytes`` makes an error of the call that it answers.

    Raises:
        OSError: The program cannot be started.
    """
    child = await Child.start(program)
    on_child(child)
    heard, incoming = anyio.create_memory_object_stream[_Incoming](0)
    outgoing, said = anyio.create_memory_object_stream[SessionMessage](0)
    reading = asyncio.create_task(
        _read(child, heard, max_bytes, on_end), name="MCP program's standard output"
    )
    writing = asyncio.create_task(_write(child, said, on_end), name="MCP program's standard input")

    async def stop() -> None:
        incoming.close()
        outgoing.close()
        await asyncio.wait((writing,), timeout=_FLUSH)
        await child.stop(grace)
        for task in (reading, writing):
            task.cancel()
        await asyncio.wait((reading, writing))
        heard.close()
        said.close()

    try:
        yield incoming, outgoing
    finally:
        stopping = asyncio.create_task(stop(), name="MCP program's end")
        _stopping.add(stopping)
        stopping.add_done_callback(_stopping.discard)
        await asyncio.shield(stopping)


_Streams = tuple[MemoryObjectReceiveStream[_Incoming], MemoryObjectSendStream[SessionMessage]]


async def _read(
    child: Child, heard: MemoryObjectSendStream[_Incoming], max_bytes: int, on_end: Callable[[], None]
) -> None:
    lines = Lines(max_bytes)
    is_followed = True
    try:
        while chunk := await child.stdout.read(_CHUNK):
            # Behind the end of the session, what it still writes is read and dropped, so that it is not kept from
            # ending by a pipe that is full.
            for line in lines.feed(chunk) if is_followed else ():
                message = _message(line)
                if message is not None:
                    await heard.send(message)
            if lines.skipped > _MAX_SKIPPED and is_followed:
                is_followed = False
                on_end()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        while await child.stdout.read(_CHUNK):
            pass
    finally:
        heard.close()
        on_end()


async def _write(
    child: Child, said: MemoryObjectReceiveStream[SessionMessage], on_end: Callable[[], None]
) -> None:
    try:
        async with said:
            async for item in said:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                child.stdin.write(f"{text}\n".encode())
                await child.stdin.drain()
    except OSError:
        on_end()


def _message(line: bytes | LongLine) -> _Incoming | None:
    """Return what a line says; None for what is not of the protocol, as some programs write to their output."""
    if isinstance(line, bytes):
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError:
            code = UNREADABLE
    else:
        code = TOO_MUCH
    request = answered_request(line)
    if request is None:
        return None
    return SessionMessage(
        JSONRPCError(jsonrpc="2.0", id=request, error=ErrorData(code=code, message=OURS[code]))
    )
