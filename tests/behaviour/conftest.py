"""Fixtures: a fake provider, servers for the teams ``shop`` and ``bank``, and a runner for commands."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from proxy.cli import main
from proxy.settings import Settings, variables_of
from tests.behaviour.bank import Customer, bank
from tests.fakes.upstream import FakeUpstream
from tests.server import Served, serve


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as started:
        yield started


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with serve(tmp_path, upstream.base_url) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    """A server with the team ``shop`` for a whole module; its tests must run in the module's event loop."""
    async with (
        FakeUpstream() as upstream,
        serve(tmp_path_factory.mktemp("shop"), upstream.base_url) as served,
    ):
        yield served, upstream


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """Run a command in this process, in an empty folder, with only the given settings."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    for field in Settings.model_fields.values():
        for name in variables_of(field):
            monkeypatch.delenv(name, raising=False)
    # The default port can be in use by a server of this machine.
    monkeypatch.setenv("PROXY_PORT", "0")
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(main, arguments, env=environment)

    yield invoke
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_bank(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    """A server with the team ``bank`` for a whole module; its tests must run in the module's event loop."""
    async with FakeUpstream() as upstream, bank(tmp_path_factory.mktemp("bank"), upstream) as served:
        yield served, upstream


@pytest.fixture
def customer(open_bank: tuple[Served, FakeUpstream]) -> Customer:
    return Customer(open_bank[0], open_bank[1].forget())
