"""A team whose tools count their runs, and requests that are cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2

from tests.fakes.upstream import FakeUpstream
from tests.server import Served, serve

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  shop:
    entry: desk
    agents:
      desk:
        instructions: You are desk.
        tools:
          - tests.fakes.counted_tools:look_up
          - tests.fakes.counted_tools:refund
          - {{name: "tests.fakes.counted_tools:release", approval: required}}
"""


def team_file(folder: Path, upstream: str) -> Path:
    """Write the team file and return its path."""
    file = folder / "counted.yaml"
    file.write_text(TEAM.format(upstream=upstream))
    return file


@asynccontextmanager
async def shop(folder: Path, upstream: FakeUpstream, **changes: Any) -> AsyncIterator[Served]:
    """Serve the team ``shop``."""
    async with serve(folder, teams=team_file(folder, upstream.base_url), **changes) as served:
        yield served


@asynccontextmanager
async def http(served: Served) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client without retries."""
    headers = {"Authorization": "Bearer test-key"}
    # ``verify=False``: loading the certificates takes longer than the test.
    async with httpx2.AsyncClient(
        base_url=served.base_url, headers=headers, timeout=20, verify=False
    ) as client:
        yield client


async def read_and_cut(
    served: Served,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
    *,
    shown: str | None = None,
    reached: asyncio.Event | None = None,
) -> None:
    """Stream a response, and close the connection when it has the text ``shown``, or when ``reached`` is set."""

    async def read() -> None:
        async with (
            http(served) as client,
            client.stream("POST", "/chat/completions", json=body, headers=headers) as stream,
        ):
            got = ""
            async for piece in stream.aiter_text():
                got += piece
                if shown is not None and shown in got:
                    return
        raise AssertionError(f"the stream has ended: {got}")

    reading = asyncio.create_task(read())
    if reached is not None:
        await reached.wait()
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    else:
        await reading
