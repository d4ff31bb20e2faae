"""Profile of the server under load: ``python -m bench.profile`` (or ``make bench-profile``).

py-spy samples the server while it serves plain requests, streams single chunks, and gets long lists. For each load it
writes a flame graph, ``profile-<load>.svg``, and prints how long each layer held the interpreter lock, with the
libraries that it calls. py-spy needs permission to trace processes: root, or ``kernel.yama.ptrace_scope=0``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from bench.client import Connection, connections, request
from bench.loops import run
from bench.measures import greeting, messages_of
from bench.processes import Field, field
from bench.scripts import SCRIPTS

RATE = 250
"""Samples per second."""
_FRAME = re.compile(r"^(?P<function>.*) \((?P<file>[^)]*?)(?::\d+)?\)$")


async def plain(client: Connection) -> None:
    """One plain request."""
    await client.ask(request("plain", greeting(), stream=False), SCRIPTS["plain"].chunks)


async def single(client: Connection) -> None:
    """One stream of single chunks."""
    await client.ask(request("single", greeting(), stream=True), SCRIPTS["single"].chunks)


async def new_list(client: Connection) -> None:
    """A new list of 1,000 messages."""
    messages = [*greeting(), *messages_of(999)[1:]]
    await client.ask(request("history", messages, stream=False), SCRIPTS["history"].chunks)


LOADS: dict[str, tuple[Callable[[Connection], Awaitable[None]], int]] = {
    "plain": (plain, 8),
    "single": (single, 20),
    "list": (new_list, 2),
}


async def profile(folder: Path, seconds: int) -> None:
    """Profile every load and print its table."""
    with tempfile.TemporaryDirectory(prefix="handoff-bench-") as name:
        async with field(Path(name), list(SCRIPTS)) as started:
            for load in LOADS:
                async with _under_load(started, load):
                    stacks = Path(name) / "stacks"
                    await _record(started.proxy.pid, "raw", stacks, seconds)
                    await _record(started.proxy.pid, "flamegraph", folder / f"profile-{load}.svg", seconds)
                print(f"\n{load}\n\n{layers(stacks.read_text())}")


@contextlib.asynccontextmanager
async def _under_load(started: Field, load: str) -> AsyncIterator[None]:
    ask, count = LOADS[load]

    async def repeat(client: Connection) -> None:
        while True:
            await ask(client)

    async with connections(started.proxy.port, count) as clients:
        tasks = [asyncio.create_task(repeat(client)) for client in clients]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _record(pid: int, form: str, output: Path, seconds: int) -> None:
    command = [
        "py-spy",
        "record",
        "--gil",
        "--pid",
        str(pid),
        "--rate",
        str(RATE),
        "--duration",
        str(seconds),
    ]
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / command[0]),
        *command[1:],
        *("--format", form, "--output", str(output)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    written, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"py-spy failed:\n{written.decode()}")


def layers(stacks: str) -> str:
    """Return a table of the layers from stacks in the collapsed format (frames with ``;``, and their samples).

    A sample counts for the innermost frame of the proxy, whatever library it calls.
    """
    samples: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, _, count = line.rpartition(" ")
        samples[_layer(stack.split(";"))] += int(count)
    total = samples.total() or 1
    rows = [f"| {name} | {count / total:.1%} |" for name, count in samples.most_common()]
    return "\n".join(["| layer | share |", "|---|--:|", *rows])


def _layer(frames: list[str]) -> str:
    for frame in reversed(frames):
        found = _FRAME.match(frame)
        if found is not None and found["file"].startswith("proxy/"):
            parts = found["file"].removesuffix(".py").split("/")
            return ".".join(parts[1:3] if len(parts) > 3 else parts[1:2])
    return "other"


def main() -> None:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile", description="Profile the server under load."
    )
    parser.add_argument("--folder", type=Path, default=Path(), help="where the flame graphs are written")
    parser.add_argument("--seconds", type=int, default=8, help="duration of each of the six recordings")
    options = parser.parse_args()
    run(profile(options.folder.resolve(), options.seconds))


if __name__ == "__main__":
    main()
