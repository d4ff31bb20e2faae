"""A shop on a port, and the provider behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fakes.upstream import FakeUpstream
from tests.serving import Served, serve


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as made:
        yield made


@pytest.fixture
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with serve(tmp_path, upstream.base_url) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def open_shop(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Served, FakeUpstream]]:
    """One shop for a whole module, for tables of requests; its tests have to run in the module's loop."""
    async with (
        FakeUpstream() as upstream,
        serve(tmp_path_factory.mktemp("shop"), upstream.base_url) as served,
    ):
        yield served, upstream
