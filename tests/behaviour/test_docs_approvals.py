"""docs/approvals.md has the output of its programs with the team file that it mentions."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from proxy.approvals.repository import MAX_ATTEMPTS
from proxy.wire.approvals import MAX_REASON, MAX_SHOWN, ApprovalBody
from tests.server import Served, serve

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "approvals.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = [
    (text, BLOCKS[number + 1][1]) for number, (language, text) in enumerate(BLOCKS) if language == "python"
]
TEAMS = ROOT / "docs" / "examples" / "approvals.yaml"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path, teams=TEAMS) as created:
        yield created


def printed(program: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(program, "docs/approvals.md", "exec"), {"__name__": "__main__"})
    return re.sub(r"Approval [0-9a-f]{6}:", "Approval 7f3a9c:", output.getvalue())


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(len(PROGRAMS)))
async def test_the_programs_print_the_documented_output(program: str, output: str, served: Served) -> None:
    assert await asyncio.to_thread(printed, program.replace("http://127.0.0.1:8000", served.url)) == output


def test_the_team_file_has_the_documented_tools() -> None:
    shown = next(yaml.safe_load(text)["tools"] for language, text in BLOCKS if language == "yaml")
    (team,) = yaml.safe_load(TEAMS.read_text("utf-8"))["teams"].values()

    assert [agent["tools"] for agent in team["agents"].values()] == [shown]
    assert str(TEAMS.relative_to(ROOT)) in next(text for language, text in BLOCKS if language == "sh")


def test_the_example_has_all_keys_of_an_approval() -> None:
    shown = next(json.loads(text) for language, text in BLOCKS if language == "json")

    assert tuple(shown) == ApprovalBody.__struct_fields__


def test_the_page_has_the_limits() -> None:
    assert (MAX_REASON, MAX_SHOWN, MAX_ATTEMPTS) == (1000, 1000, 3)
    assert "`reason` of up to 1,000 characters" in PAGE
    assert "truncated to 1,000 characters" in PAGE
    assert "at most three times" in " ".join(PAGE.split())


def test_links_have_targets() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", PAGE)

    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
