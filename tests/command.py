"""The command ``handoff-proxy`` as a process of its own, with its output read as it comes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


class Output:
    """Lines of one stream of a process, which notifies waiting tasks of each line."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self.lines: list[str] = []
        self._is_over = False
        self._news = asyncio.Condition()
        self.reading = asyncio.create_task(self._read(stream))

    async def _read(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self.lines.append(line.decode().rstrip("\n"))
            await self._notify()
        self._is_over = True
        await self._notify()

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def line(self, part: str, within: float = 30) -> str:
        """Wait for the first line that holds ``part``, and return it."""
        async with asyncio.timeout(within), self._news:
            while True:
                for line in self.lines:
                    if part in line:
                        return line
                assert not self._is_over, f"it ended without {part!r}:\n{self.text}"
                await self._news.wait()

    async def more(self) -> None:
        """Wait for another line."""
        async with self._news:
            assert not self._is_over, f"it ended:\n{self.text}"
            await self._news.wait()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


class Command:
    """A running ``handoff-proxy``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.out = Output(process.stdout)
        self.err = Output(process.stderr)

    async def url(self) -> str:
        """Wait until it serves, and return where, with ``/v1``."""
        return (await self.out.line("listens on")).rpartition(" ")[2]

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log so far, all JSON but those of the logger of events, which has a form of its own."""
        return [json.loads(line) for line in self.err.lines if line.startswith("{")]

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def ended(self, within: float = 30) -> int:
        """Wait for its end and the last of its output; return the exit code."""
        async with asyncio.timeout(within):
            await asyncio.gather(self.out.reading, self.err.reading)
            return await self.process.wait()


@asynccontextmanager
async def command(
    *arguments: str, folder: Path, environment: dict[str, str] | None = None
) -> AsyncIterator[Command]:
    """Run it in ``folder``, with no settings but those given and a data folder there; killed if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "proxy.cli", *arguments,
        cwd=folder,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "PROXY_DATA_DIR": str(folder / "data"),
            **(environment or {}),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    running = Command(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGKILL)
        await running.ended()
