"""Start, measure and terminate the processes of a benchmark."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.scripts import SCRIPTS, TRANSFER

ROOT = Path(__file__).parent.parent

_TEAM_FILE = """\
models:
{models}
teams:
{teams}
  handoff:
    entry: greeter
    agents:
      greeter:
        model: transferring
        instructions: You greet people, find out what they want, and direct them to who can help.
        handoffs: [{{to: talker, when: the user wants to talk, tool: {transfer}}}]
      talker:
        model: talking
        instructions: You talk with people.
        handoffs: [{{to: greeter, when: the user wants anything else, tool: transfer_back}}]
"""
_MODEL = '  {name}: {{model: {name}, base_url: "http://127.0.0.1:{port}/v1", api_key: bench, wire: {wire}}}'
_TEAM = "  {name}: {{entry: helper, agents: {{helper: {{model: {model}, instructions: You help people.}}}}}}"


@dataclass(frozen=True, slots=True)
class Served:
    """A server process on a port."""

    name: str
    port: int
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time of the process so far: user and system, all threads."""
        # CPU clock id of another process, as clock_getcpuclockid(3) computes it; /proc has a resolution of 10 ms only.
        return time.clock_gettime((~self.pid << 3) | 2)

    def resident_bytes(self) -> int:
        """Resident memory of the process."""
        # Not statm, whose counters of each core are added up late: they can be off by several MiB.
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:")) * 1024


@dataclass(frozen=True, slots=True)
class Field:
    """The servers that are compared, and their upstream."""

    upstream: Served
    baseline: Served
    reference: Served
    proxy: Served

    @property
    def servers(self) -> tuple[Served, Served, Served]:
        """The compared servers."""
        return self.baseline, self.reference, self.proxy


@asynccontextmanager
async def field(folder: Path, models: Sequence[str]) -> AsyncIterator[Field]:
    """Start all processes; ``folder`` is for the data, the team file and the logs."""
    _allow_many_files()
    if (cores := _cores()) is not None:
        os.sched_setaffinity(0, cores[1])
    async with AsyncExitStack() as stack:

        async def start(
            name: str, command: Sequence[str], port: int, environment: Mapping[str, str]
        ) -> Served:
            return await stack.enter_async_context(started_process(name, command, port, environment, folder))

        ports = free_ports(4)
        upstream = await start("upstream", ["bench.upstream", str(ports[0])], ports[0], {})
        baseline = await start("baseline", ["bench.baseline", str(ports[1]), str(ports[0])], ports[1], {})
        reference = await start("reference", ["bench.reference", str(ports[2]), str(ports[0])], ports[2], {})
        proxy = await stack.enter_async_context(proxy_process(folder, models, ports[0], ports[3]))
        yield Field(upstream, baseline, reference, proxy)


@asynccontextmanager
async def proxy_process(
    folder: Path,
    models: Sequence[str],
    upstream_port: int,
    port: int,
    environment: Mapping[str, str] | None = None,
    *,
    tree: Path = ROOT,
    more_teams: int = 0,
    under: Sequence[str] = (),
) -> AsyncIterator[Served]:
    """Start handoff-proxy of the checkout ``tree`` with its data in ``folder``; ``under`` is a command that runs it."""
    (folder / "teams.yaml").write_text(team_file(models, upstream_port, more_teams=more_teams))
    paths = {"PROXY_DATA_DIR": str(folder / "data"), "PROXY_TEAMS": str(folder / "teams.yaml")}
    command = ["proxy.cli", "serve", "--port", str(port)]
    variables = {**paths, **(environment or {})}
    async with started_process(
        "handoff-proxy", command, port, variables, folder, tree=tree, under=under
    ) as served:
        yield served


def migrate(folder: Path, environment: Mapping[str, str]) -> None:
    """Migrate the database of ``environment``."""
    variables = {"PYTHONPATH": str(ROOT), "PROXY_DATA_DIR": str(folder), **environment}
    command = [sys.executable, "-m", "proxy.cli", "migrate"]
    subprocess.run(command, env=variables, cwd=folder, check=True, capture_output=True)


def team_file(models: Sequence[str], upstream_port: int, *, more_teams: int = 0) -> str:
    """Return a team file with a team of one agent per model of the upstream, and the team ``handoff`` of two agents.

    ``more_teams`` are teams with the first model.
    """
    more = [_TEAM.format(name=f"more{number}", model=models[0]) for number in range(more_teams)]
    return _TEAM_FILE.format(
        models="\n".join(
            _MODEL.format(
                name=name, port=upstream_port, wire="responses" if SCRIPTS[name].is_responses else "chat"
            )
            for name in models
        ),
        teams="\n".join([*(_TEAM.format(name=name, model=name) for name in models), *more]),
        transfer=TRANSFER,
    )


@asynccontextmanager
async def started_process(
    name: str,
    command: Sequence[str],
    port: int,
    environment: Mapping[str, str],
    folder: Path,
    *,
    tree: Path = ROOT,
    under: Sequence[str] = (),
) -> AsyncIterator[Served]:
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *under,
            sys.executable,
            "-m",
            *command,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tree), **environment},
            stdout=output,
            stderr=output,
        )
    if (cores := _cores()) is not None:
        os.sched_setaffinity(process.pid, cores[1] if name == "upstream" else cores[0])
    try:
        await _until_ready(process, port, log, is_slow=bool(under))
        yield Served(name, port, process.pid)
    finally:
        await _end(process)


async def _until_ready(
    process: asyncio.subprocess.Process, port: int, log: Path, *, is_slow: bool = False
) -> None:
    async with asyncio.timeout(30 if not is_slow else 300):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                if process.returncode is not None:
                    raise RuntimeError(_end_of(log)) from None
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def _end_of(log: Path) -> str:
    return log.read_text()[-2000:]


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(5):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def move_to_core(server: Served, number: int) -> None:
    """Run a process on one core: 0 is that of the servers, the others are those of the load generator."""
    if (cores := _cores()) is None:
        return
    own = [*cores[0], *sorted(cores[1])]
    for thread in Path(f"/proc/{server.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {own[number % len(own)]})


@cache
def _cores() -> tuple[set[int], set[int]] | None:
    """Return the core of the servers, and those of the load generator and the upstream; None if there is only one."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    first, *others = sorted(os.sched_getaffinity(0))
    return ({first}, set(others)) if others else None


class ForeignLoad:
    """The CPU time that other processes of the machine use, from creation on."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def share(self, servers: Sequence[Served], before: float) -> float:
        """Return it as a share of all cores.

        ``servers`` are the running processes of the benchmark, which had used ``before`` seconds when this was created.
        """
        own = _own_seconds() - self._own + sum(server.cpu_seconds() for server in servers) - before
        busy = _busy_seconds() - self._busy
        return max(busy - own, 0.0) / (time.monotonic() - self._began) / (os.cpu_count() or 1)


def _own_seconds() -> float:
    # Of processes that have ended only.
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def _busy_seconds() -> float:
    # proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal.
    values = [int(value) for value in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(values) - values[3] - values[4]) / os.sysconf("SC_CLK_TCK")


def free_ports(count: int) -> list[int]:
    listening = [socket.socket() for _ in range(count)]
    try:
        for one in listening:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in listening]
    finally:
        for one in listening:
            one.close()


def _allow_many_files() -> None:
    """Raise the limit of open files: each waiting stream needs two sockets in a server."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
