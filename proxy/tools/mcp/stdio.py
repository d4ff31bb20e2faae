"""stdio transport of MCP: JSON-RPC messages, one per line, over the standard input and output of a child process.

The SDK's stdio transport is not used: it buffers lines of any length, copies the buffer with each chunk, and forwards
the standard error of the program to that of the proxy.
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

from proxy.tools.mcp.failures import INVALID_MESSAGE, MESSAGE_TOO_LARGE, REASONS
from proxy.tools.mcp.lines import LineSplitter, OversizedLine, find_request_id
from proxy.tools.mcp.setup import Program

_FLUSH = 0.5
_POLL = 0.01
_CHUNK = 64 * 1024
_MAX_SKIPPED = 256 * 1024 * 1024
"""Bytes of an oversized line after which the session ends."""
_STDERR_TAIL = 2000

_Incoming = SessionMessage | Exception
_stopping: set[asyncio.Task[None]] = set()
"""Tasks that stop programs. The references ensure that a program is stopped even if its session is cancelled."""


class Child:
    """A running program."""

    def __init__(self, process: Process, transport: asyncio.SubprocessTransport) -> None:
        self._process = process
        self._transport = transport
        self._stderr = b""
        assert process.stdout is not None
        assert process.stdin is not None
        self.stdout = process.stdout
        self.stdin = process.stdin
        self._reading_stderr = asyncio.create_task(self._read_stderr(), name="MCP program's standard error")

    @classmethod
    async def start(cls, program: Program) -> Child:
        """Start a program as the leader of a process group, which can be signalled as a whole.

        Raises:
            OSError: The program cannot be started.
        """
        loop = asyncio.get_running_loop()
        # Equivalent to asyncio.create_subprocess_exec, which does not return the transport. ``stop`` needs it to close
        # pipes that a grandchild process still has open.
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
    def stderr_tail(self) -> str:
        """The end of the standard error."""
        return self._stderr.decode(errors="replace").strip()

    async def stop(self, grace: float) -> None:
        """Stop the program as the MCP specification requires (Lifecycle, "Shutdown"): close its input, then signal.

        SIGTERM follows after ``grace`` seconds, SIGKILL after half as many more, both to the process group.
        """
        with suppress(OSError):
            self.stdin.close()
        if not await self._exits_within(grace):
            self._signal(signal.SIGTERM)
            await self._exits_within(grace / 2)
        # Even if the program has exited: processes that it started can still run.
        self._signal(_KILL)
        await self._exits_within(1)
        await asyncio.wait((self._reading_stderr,), timeout=_FLUSH)
        self._transport.close()
        self._reading_stderr.cancel()
        await asyncio.wait((self._reading_stderr,))

    async def _exits_within(self, seconds: float) -> bool:
        # Process.wait() also waits until the pipes are closed, and a grandchild process can have them open.
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self._process.returncode is None:
            if loop.time() >= deadline:
                return False
            await asyncio.sleep(_POLL)
        return True

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        while chunk := await self._process.stderr.read(_CHUNK):
            self._stderr = (self._stderr + chunk)[-_STDERR_TAIL:]


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
    """Start a program, provide the streams of a session with it, and stop it at the end of the block.

    The program has ``grace`` seconds to exit after its input is closed. ``on_end`` is called when its output ends or
    a line is too long to skip. A response over ``max_bytes`` becomes an error of the call that it answers.

    Raises:
        OSError: The program cannot be started.
    """
    child = await Child.start(program)
    on_child(child)
    received, incoming = anyio.create_memory_object_stream[_Incoming](0)
    outgoing, to_send = anyio.create_memory_object_stream[SessionMessage](0)
    reading = asyncio.create_task(
        _read(child, received, max_bytes, on_end), name="MCP program's standard output"
    )
    writing = asyncio.create_task(_write(child, to_send, on_end), name="MCP program's standard input")

    async def stop() -> None:
        incoming.close()
        outgoing.close()
        await asyncio.wait((writing,), timeout=_FLUSH)
        await child.stop(grace)
        for task in (reading, writing):
            task.cancel()
        await asyncio.wait((reading, writing))
        received.close()
        to_send.close()

    try:
        yield incoming, outgoing
    finally:
        stopping = asyncio.create_task(stop(), name="stop MCP program")
        _stopping.add(stopping)
        stopping.add_done_callback(_stopping.discard)
        await asyncio.shield(stopping)


_Streams = tuple[MemoryObjectReceiveStream[_Incoming], MemoryObjectSendStream[SessionMessage]]


async def _read(
    child: Child, received: MemoryObjectSendStream[_Incoming], max_bytes: int, on_end: Callable[[], None]
) -> None:
    lines = LineSplitter(max_bytes)
    is_parsed = True
    try:
        while chunk := await child.stdout.read(_CHUNK):
            # After the end of the session, output is read and discarded: a full pipe would prevent the program from
            # exiting.
            for line in lines.feed(chunk) if is_parsed else ():
                message = _message(line)
                if message is not None:
                    await received.send(message)
            if lines.skipped > _MAX_SKIPPED and is_parsed:
                is_parsed = False
                on_end()
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        while await child.stdout.read(_CHUNK):
            pass
    finally:
        received.close()
        on_end()


async def _write(
    child: Child, to_send: MemoryObjectReceiveStream[SessionMessage], on_end: Callable[[], None]
) -> None:
    try:
        async with to_send:
            async for item in to_send:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
                child.stdin.write(f"{text}\n".encode())
                await child.stdin.drain()
    except OSError:
        on_end()


def _message(line: bytes | OversizedLine) -> _Incoming | None:
    """Return the message in a line; None for other output, which some programs write to standard output."""
    if isinstance(line, bytes):
        try:
            return SessionMessage(jsonrpc_message_adapter.validate_json(line, by_name=False))
        except ValueError:
            code = INVALID_MESSAGE
    else:
        code = MESSAGE_TOO_LARGE
    request = find_request_id(line)
    if request is None:
        return None
    return SessionMessage(
        JSONRPCError(jsonrpc="2.0", id=request, error=ErrorData(code=code, message=REASONS[code]))
    )
