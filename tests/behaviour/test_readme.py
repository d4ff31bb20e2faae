"""Run the code of README.md: its Python, curl commands and team, and compare the output.

The same for the Python code of ``docs/agents-over-http.md``, ``docs/conversations.md``, ``docs/history.md``,
``docs/long-conversations.md``, ``docs/responses.md`` and the pages of LangChain and the SDKs.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import shlex
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from proxy.settings import Settings, variables_of
from tests.fakes.team_files import check
from tests.server import Served, serve

ROOT = Path(__file__).parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the text block after it, if there is one, as its expected output."""

    language: str
    text: str
    line: int
    output: str | None


def blocks(language: str, name: str = "README.md") -> list[Block]:
    page = (ROOT / name).read_text("utf-8")
    found = [
        (match, page[: match.start()].count("\n") + 1)
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ]
    result = []
    for (match, line), following in zip(found, [*found[1:], None], strict=True):
        output = None
        if following and following[0][1] == "text" and page[match.end() : following[0].start()] == "\n\n":
            output = following[0][2]
        if match[1] == language:
            result.append(Block(language, match[2], line, output))
    return result


def pythons() -> list[Any]:
    pages = (
        "README.md",
        "docs/agents-over-http.md",
        "docs/conversations.md",
        "docs/frontends/langchain.md",
        "docs/frontends/sdks.md",
        "docs/history.md",
        "docs/long-conversations.md",
        "docs/responses.md",
    )
    return [
        pytest.param(block, id=f"{page} line {block.line}")
        for page in pages
        for block in blocks("python", page)
    ]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as created:
        yield created


@pytest.mark.parametrize("block", pythons())
async def test_python_prints_the_documented_output(block: Block, served: Served) -> None:
    code = compile(block.text.replace("http://127.0.0.1:8000", served.url), "README.md", "exec")
    if "langchain_openai" in block.text and find_spec("langchain_openai") is None:
        return  # not a dependency of the tests; that it is Python was seen
    assert served.url in block.text.replace("http://127.0.0.1:8000", served.url)

    assert await asyncio.to_thread(printed, code) == block.output


def printed(code: Any) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, {"__name__": "__main__"})
    return said.getvalue()


def curls() -> list[Any]:
    commands = []
    for block in (*blocks("sh"), *blocks("sh", "docs/frontends/sdks.md")):
        joined = re.sub(r"\\\n\s*", "", block.text)
        for line in joined.splitlines():
            if line.startswith("curl "):
                content = shlex.split(line)
                commands.append(pytest.param(content, id=" ".join(content)[:60]))
    return commands


@pytest.mark.parametrize("content", curls())
async def test_curl_commands_succeed(content: list[str], served: Served) -> None:
    headers: dict[str, str] = {}
    url, body = "", None
    rest = iter(content[1:])
    for word in rest:
        match word:
            case "-H":
                name, _, value = next(rest).partition(": ")
                headers[name] = value
            case "-d":
                body = next(rest)
            case "-N":
                pass
            case _:
                assert not url
                url = word
    assert url.startswith("localhost:8000/")

    async with (
        aiohttp.ClientSession() as session,
        session.request(
            "POST" if body else "GET", url.replace("localhost:8000", served.url), data=body, headers=headers
        ) as response,
    ):
        text = await response.text()

    assert response.status == 200, text
    if headers.get("x-handoff-events") == "none":
        assert '"handoff"' not in text
    if "-N" in content:
        assert text.endswith("data: [DONE]\n\n")
        assert "rocket-powered unicycle" in "".join(
            json.loads(frame[6:])["choices"][0]["delta"].get("content") or ""
            for frame in text.split("\n")
            if frame.startswith("data: {")
        )


def test_the_team_file_is_valid(tmp_path: Path) -> None:
    (team,) = [block.text for block in blocks("yaml") if block.text.startswith("teams:")]
    (tmp_path / "teams.yaml").write_text(team)

    report = check(tmp_path / "teams.yaml")

    assert (report.problems, report.notices) == ((), ())


def test_yaml_and_json_are_well_formed() -> None:
    assert all(yaml.safe_load(block.text) for block in blocks("yaml"))
    (librechat,) = blocks("yaml", "docs/frontends/librechat.md")
    assert yaml.safe_load(librechat.text)["endpoints"]["custom"][0]["titleModel"] == "acme-support/side"
    (opencode,) = blocks("json", "docs/frontends/opencode.md")
    assert json.loads(opencode.text)["small_model"] == "teams/acme-support/side"


def test_all_mentioned_variables_exist() -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    known = {name for field in Settings.model_fields.values() for name in variables_of(field)}

    assert set(re.findall(r"\bPROXY_[A-Z_]+", page)) <= known


def test_the_index_lists_every_page() -> None:
    listed = set(re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text("utf-8")))

    assert listed == {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_targets(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target
