"""A shop on a port, and the provider behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

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
