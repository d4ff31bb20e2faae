"""Run the command ``handoff-proxy`` as a separate process and read its output while it runs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fork_server import ForkedProcess, fork

ROOT = Path(__file__).parent.parent


class Output:
    """Lines of one stream of a process, which notifies waiting tasks of each line."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self.lines: list[str] = []
        self._is_closed = False
        self._changed = asyncio.Condition()
        self.reading = asyncio.create_task(self._read(stream))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.lines.append(line.decode().rstrip("\n"))
            await self._notify()
        self._is_closed = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def line(self, part: str, within: float = 30) -> str:
        """Wait for the first line that contains ``part``, and return it."""
        async with asyncio.timeout(within), self._changed:
            while True:
                for line in self.lines:
                    if part in line:
                        return line
                assert not self._is_closed, f"the output ended without {part!r}:\n{self.text}"
                await self._changed.wait()

    async def more(self) -> None:
        """Wait for another line."""
        async with self._changed:
            assert not self._is_closed, f"the output ended:\n{self.text}"
            await self._changed.wait()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Command:
    """A running ``handoff-proxy``."""

    def __init__(self, process: asyncio.subprocess.Process | ForkedProcess) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.out = Output(process.stdout)
        self.err = Output(process.stderr)

    async def url(self) -> str:
        """Wait until the server listens, and return its base URL with ``/v1``."""
        return (await self.out.line("listens on")).rpartition(" ")[2]

    @property
    def log(self) -> list[dict[str, Any]]:
        """Return the JSON log lines so far, without the lines of the event logger, which have another format."""
        return [json.loads(line) for line in self.err.lines if line.startswith("{")]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self, within: float = 30) -> int:
        """Wait for the exit of the process and the end of its output; return the exit code."""
        async with asyncio.timeout(within):
            await asyncio.gather(self.out.reading, self.err.reading)
            return await self.process.wait()


@asynccontextmanager
async def command(
    *arguments: str, folder: Path, environment: dict[str, str] | None = None, is_forked: bool = True
) -> AsyncIterator[Command]:
    """Run the command in ``folder`` with only the given settings; kill it at the end if it still runs.

    With ``is_forked``, it is a child of the fork server, which starts faster than a program.
    """
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PROXY_DATA_DIR": str(folder / "data"),
        **(environment or {}),
    }
    start = fork if is_forked else program
    process = await start("proxy.cli", *arguments, folder=folder, environment=variables)
    running = Command(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await running.ended()


async def program(
    module: str, *arguments: str, folder: Path, environment: Mapping[str, str]
) -> asyncio.subprocess.Process:
    """Run the module as a separate program."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments,
        cwd=folder,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
