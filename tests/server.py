"""Run the proxy for tests: in the event loop of the test, or as a separate process."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI

from proxy.app import create_app, prepare
from proxy.errors import ConfigurationError
from proxy.providers.retry import RetryPolicy
from proxy.routes.dependencies import Services
from proxy.server import ProxyServer, server_config
from proxy.settings import Settings, load_settings
from proxy.settings_check import create_data_dir, exposure_problems
from proxy.start_check import check_settings
from tests.fork_server import ForkedProcess, fork

TEAM_FILE = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  shop:
    entry: triage
    agents:
      triage:
        instructions: You are triage.
        handoffs:
          - {{to: sales, when: the user wants to buy, tool: transfer_to_sales}}
          - {{to: repairs, when: something is broken, tool: transfer_to_repairs}}
      sales:
        instructions: You are sales.
        tools: [execute_order]
        handoffs: [{{to: triage, when: anything else, tool: transfer_back_to_triage}}]
      repairs:
        instructions: You are repairs.
        tools: [look_up_item, execute_refund]
        handoffs: [{{to: triage, when: anything else, tool: transfer_back_to_triage}}]
"""
"""A team similar to ``acme-support``, with short names and a model at ``upstream``."""

DATABASE = "handoff-proxy.sqlite"
"""Name of the database file in the data folder."""


@dataclass
class Served:
    """A running proxy."""

    url: str
    app: FastAPI | None = None
    clients: list[AsyncOpenAI] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    @property
    def services(self) -> Services:
        assert self.app is not None
        services: Services = self.app.state.services
        return services

    def client(self, key: str = "test-key", **options: Any) -> AsyncOpenAI:
        """Return a client of the official SDK, by default without retries."""
        client = AsyncOpenAI(
            base_url=self.base_url, api_key=key, **{"max_retries": 0, "timeout": 20, **options}
        )
        self.clients.append(client)
        return client

    async def running_turn(self, authorization: str | None = "Bearer test-key") -> str:
        """Return the id of the only running turn of this server, as soon as it is stored.

        A turn can call its model before that, so a call at the upstream does not show that the turn is stored.
        """
        services = self.services
        (turn_id,) = services.turns.running_turns()
        caller = services.keys.caller(authorization)
        async with asyncio.timeout(10):
            while await services.history.turn(caller, turn_id) is None:
                await asyncio.sleep(0.005)
        return turn_id

    async def close_clients(self) -> None:
        for client in self.clients:
            await client.close()


def settings_for(folder: Path, upstream: str | None, **changes: Any) -> Settings:
    """Return settings; with ``upstream``, those of the team file of this module."""
    if upstream is not None and "teams" not in changes:
        teams = folder / "teams.yaml"
        teams.write_text(TEAM_FILE.format(upstream=upstream))
        changes["teams"] = teams
    # Tests that share a server are separated by their keys. A turn that a test leaves running, and whose client the
    # server has not seen leave when it stops, would take the grace time of ten seconds.
    defaults = {"separate_keys": True, "shutdown_grace": 1}
    return load_settings(env_file=None, data_dir=folder / "data", **{**defaults, **changes})


@asynccontextmanager
async def serve(folder: Path, upstream: str | None = None, **changes: Any) -> AsyncIterator[Served]:
    """Serve on a free port in this event loop. Without ``upstream``, the scripted demonstration answers."""
    settings = settings_for(folder, upstream, **changes)
    await asyncio.to_thread(_prepare, settings)
    # Less than the half second and the second before an attempt, which many tests of failures would wait for.
    app = create_app(settings, demo_word_delay=0, retry_policy=RetryPolicy(first_pause=0.02))
    # asyncio sets TCP_NODELAY only if ``proto`` is IPPROTO_TCP; otherwise each response waits 40 ms for an ACK.
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    started = asyncio.Event()
    server = _Server(server_config(app, settings), on_started=started.set)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    running.add_done_callback(lambda _: started.set())
    await started.wait()
    served = Served(f"http://127.0.0.1:{listening.getsockname()[1]}", app)
    try:
        yield served
    finally:
        await served.close_clients()
        server.stop()
        await running


class _Prompt(uvicorn.Server):
    """Stops without the polling intervals of 0.1 s of ``uvicorn.Server``."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._stop_requested = asyncio.Event()

    def stop(self) -> None:
        self.should_exit = True
        self._stop_requested.set()

    async def main_loop(self) -> None:
        tick = 0
        while not await self.on_tick(tick):
            tick += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._stop_requested.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in self.servers:
            listener.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        # A closed transport calls connection_lost in the next iteration of the loop.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for listening in sockets or []:
            listening.close()


class _Server(ProxyServer, _Prompt):
    """``ProxyServer`` with the immediate shutdown of ``_Prompt``."""

    def stop(self) -> None:
        self.handle_exit(signal.SIGTERM, None)


def _prepare(settings: Settings) -> None:
    file = settings.data_dir / DATABASE
    if settings.database_url is not None or file.exists():
        prepare(settings)
        return
    # As ``prepare``, but with a copy of a migrated database, which needs no check of its schema: 5 ms.
    check_settings(settings)
    create_data_dir(settings)
    file.touch(mode=0o600)
    file.write_bytes(_migrated())
    if problems := [*exposure_problems(settings, reads_database=True)]:
        raise ConfigurationError("\n".join(problems))


@cache
def _migrated() -> bytes:
    """Return the bytes of a migrated database; a migration takes 50 ms."""
    with TemporaryDirectory() as folder:
        prepare(load_settings(env_file=None, data_dir=Path(folder)))
        return (Path(folder) / DATABASE).read_bytes()


@asynccontextmanager
async def serve_process(
    folder: Path, upstream: str | None = None, *, environment: Mapping[str, str] | None = None, port: int = 0
) -> AsyncIterator[tuple[Served, ForkedProcess]]:
    """Run ``handoff-proxy serve`` in a forked process; SIGTERM ends it."""
    variables = {
        "PATH": os.environ["PATH"],
        "PROXY_DATA_DIR": str(folder / "data"),
        "PROXY_SHUTDOWN_GRACE": "1",
        **(environment or {}),
    }
    if upstream is not None:
        (folder / "teams.yaml").write_text(TEAM_FILE.format(upstream=upstream))
        variables["PROXY_TEAMS"] = str(folder / "teams.yaml")
    port = port or free_port()
    process = await fork(
        "proxy.cli", "serve", "--port", str(port),
        folder=folder,
        environment={**variables, "PYTHONPATH": str(Path(__file__).parent.parent)},
        has_stdout=False,
    )  # fmt: skip
    log: list[bytes] = []
    reading = asyncio.create_task(_read(process, log))
    served = Served(f"http://127.0.0.1:{port}")
    try:
        await _until_ready(served, process, log)
        yield served, process
    finally:
        await served.close_clients()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        await process.wait()
        await reading


async def _read(process: ForkedProcess, log: list[bytes]) -> None:
    assert process.stderr is not None
    async for line in process.stderr:
        log.append(line)


async def _until_ready(served: Served, process: ForkedProcess, log: list[bytes]) -> None:
    host, port = served.url.removeprefix("http://").split(":")
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except ConnectionRefusedError:
                if process.returncode is not None:
                    raise AssertionError(b"".join(log).decode()) from None
                await asyncio.sleep(0.02)
                continue
            writer.close()
            await writer.wait_closed()
            return


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
