"""The programs in ``examples/``, run as a user would."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.command import ROOT, command


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    """The demonstration with an API key."""
    environment = {"PROXY_API_KEYS": "secret"}
    async with command("serve", "--port", "0", folder=tmp_path, environment=environment) as running:
        yield (await running.url()).removesuffix("/v1")


async def run(*arguments: str, url: str, key: str = "secret") -> tuple[int | None, list[str], str]:
    """Return the exit code, the lines of standard output, and standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "examples" / "streaming_client_example.py"), *arguments,
        env={"PATH": os.environ["PATH"], "HANDOFF_PROXY_URL": url, "HANDOFF_PROXY_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    return process.returncode, out.decode().splitlines(), err.decode()


async def test_streaming_client_follows_scripted_and_real_turns_and_reports_errors(url: str) -> None:
    code, lines, _ = await run("test", url=url)
    assert code == 0
    assert lines[0].startswith("[                    ]   0%  PlanningAgent: ")
    progress = [line.split("%")[0][-3:] for line in lines if line.endswith("is working.")]
    assert progress == ["  0", " 25", " 50"]
    assert lines[-3].startswith("[####################] 100%  ReportAgent: ")
    assert lines[-1] == "This answer comes from a script; no model was asked."

    code, lines, _ = await run("Which", "product", "sold", "best?", url=url)
    assert code == 0
    assert any("Executing query_sales" in line for line in lines)

    code, lines, errors = await run(url=url, key="wrong")
    assert (code, lines) == (1, [])
    assert errors.startswith("401: Incorrect API key provided")

    code, _, errors = await run("test", url="http://127.0.0.1:9")
    assert code == 1
    assert errors.startswith("No connection to http://127.0.0.1:9: ")
