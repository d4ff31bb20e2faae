"""Start modules of the project as processes without the 1.2 s of CPU time that their imports take.

The fork server has imported what the command and its server need. It forks a child for each request. The child runs a
module as ``python -m`` does: with its own arguments, environment, folder and standard streams, and with the exit of an
interpreter. Each test process starts its fork server at the first request.

A child differs from a program in its parent, and in variables that Python itself or a library reads at its start or
import (``PYTHON...``, ``OTEL_PYTHON_CONTEXT``). ``PROMETHEUS_MULTIPROC_DIR`` works: its library is not imported before.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
MAX_REQUEST_BYTES = 2**17

PRELOADED = (
    "encodings.idna",
    "proxy.app",
    "proxy.cli_options",
    "proxy.key_admin",
    "proxy.server",
    "proxy.worker",
    "uvicorn.lifespan.off",
    "uvicorn.loops.uvloop",
)
"""Modules that the fork server imports, with theirs. A child runs ``proxy.cli``, which is not imported before."""


class ForkedProcess:
    """A child of the fork server, with the interface of ``asyncio.subprocess.Process``."""

    def __init__(
        self, pid: int, status: socket.socket, streams: Sequence[asyncio.StreamReader | None]
    ) -> None:
        self.pid = pid
        self.stdout, self.stderr = streams
        self.returncode: int | None = None
        self._status = status
        self._exited = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(status, self._read_status)

    def _read_status(self) -> None:
        message = self._status.recv(100)
        self._loop.remove_reader(self._status)
        self._status.close()
        # Without a message, the fork server ended, and its children with it.
        self.returncode = int(message) if message else -signal.SIGKILL
        self._exited.set()

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        await self._exited.wait()
        assert self.returncode is not None
        return self.returncode


async def fork(
    module: str, *arguments: str, folder: Path, environment: Mapping[str, str], has_stdout: bool = True
) -> ForkedProcess:
    """Run the module in a new process; without ``has_stdout``, its standard output is that of this process."""
    status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    status.setblocking(False)
    request = {
        "module": module,
        "arguments": arguments,
        "folder": str(folder),
        "environment": dict(environment),
    }
    null = os.open(os.devnull, os.O_RDONLY)
    out, their_out = os.pipe() if has_stdout else (None, os.dup(1))
    err, their_err = os.pipe()
    sent = (null, their_out, their_err, their_status.fileno())
    try:
        socket.send_fds(_fork_server(), [json.dumps(request).encode()], sent)
    finally:
        their_status.close()
        for descriptor in (null, their_out, their_err):
            os.close(descriptor)
    streams = [await _reader(out) if out is not None else None, await _reader(err)]
    pid = await asyncio.get_running_loop().sock_recv(status, 100)
    assert pid, "the fork server ended"
    return ForkedProcess(int(pid), status, streams)


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    return reader


@cache
def _fork_server() -> socket.socket:
    """Start the fork server of this process, and return the socket for requests. It ends with this process."""
    requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", __name__, str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def stop() -> None:
        requests.close()
        server.wait()

    atexit.register(stop)
    return requests


# --- in the fork server ------------------------------------------------------------------------------------------


class Children:
    """The running children: the status socket of each by the file descriptor of its process."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._running: dict[int, tuple[int, socket.socket]] = {}

    def next_request(self) -> dict[str, Any]:
        """Fork a child for each request, and report its exit. Return only in a child, with its request.

        The messages on the status socket of a child are its id and, when it is no longer in the process table, its
        return code, which is negative for a signal.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._requests, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd in self._running:
                        selector.unregister(key.fd)
                        self._report_exit(key.fd)
                        continue
                    message, descriptors, _, _ = socket.recv_fds(self._requests, MAX_REQUEST_BYTES, 4)
                    if not message:
                        self._stop()
                    child = self._fork(descriptors)
                    if child is None:
                        request: dict[str, Any] = json.loads(message)
                        return request
                    selector.register(child, selectors.EVENT_READ)

    def _fork(self, descriptors: list[int]) -> int | None:
        """Return the file descriptor of the child; None in the child, which then has its own standard streams."""
        *streams, status_descriptor = descriptors
        pid = os.fork()
        if pid == 0:
            self._requests.close()
            for child, (_, status) in self._running.items():
                os.close(child)
                status.close()
            for number, descriptor in enumerate(streams):
                os.dup2(descriptor, number)
        for descriptor in streams:
            os.close(descriptor)
        if pid == 0:
            os.close(status_descriptor)
            return None
        status = socket.socket(fileno=status_descriptor)
        status.send(str(pid).encode())
        child = os.pidfd_open(pid)
        self._running[child] = pid, status
        return child

    def _report_exit(self, child: int) -> None:
        os.close(child)
        pid, status = self._running.pop(child)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with status, suppress(BrokenPipeError):
            status.send(str(code).encode())

    def _stop(self) -> NoReturn:
        for pid, _ in self._running.values():
            os.kill(pid, signal.SIGKILL)
        sys.exit()


def run(request: dict[str, Any]) -> None:
    """Run the module of the request as the program of this process."""
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    tempfile.tempdir = None
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:1] = [request["folder"], *filter(None, paths)]
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def main() -> None:
    requests = socket.socket(fileno=int(sys.argv[1]))
    gc.disable()
    for module in PRELOADED:
        __import__(module)
    gc.enable()
    # A collection in a child would copy the memory that it shares with this process.
    gc.freeze()
    run(Children(requests).next_request())


if __name__ == "__main__":
    main()
