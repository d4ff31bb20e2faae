"""docs/tutorial.md from the beginning to the end: its files, its commands in a shell, and its outputs."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.behaviour.chat_client import shape_of
from tests.command import ROOT, Command, command
from tests.fakes.upstream import FakeUpstream, calls, text

PAGE = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


class Shell:
    """Runs blocks of shell commands in a folder, with ``handoff-proxy`` of this checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        programs = folder / "bin"
        programs.mkdir()
        (programs / "handoff-proxy").write_text(f'#!/bin/sh\nexec {sys.executable} -m proxy.cli "$@"\n')
        (programs / "handoff-proxy").chmod(0o755)
        self._environment = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    async def run(self, commands: str) -> str:
        """Return the output; the working folder at the end is that of the next commands."""
        process = await asyncio.create_subprocess_exec(
            "bash", "-euc", f"{commands}\npwd >&2", cwd=self.folder, env=self._environment,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, out.decode() + err.decode()
        self.folder = Path(err.decode().splitlines()[-1])
        return out.decode()

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[tuple[Command, str]]:
        async with command("serve", "--port", "0", folder=self.folder) as running:
            yield running, (await running.url()).removesuffix("/v1")


@pytest.mark.timeout(180)  # it starts ten processes
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # the page's program does not close its client
async def test_the_tutorial_works_as_written(tmp_path: Path, upstream: FakeUpstream) -> None:
    shell = Shell(tmp_path)
    steps = iter(BLOCKS)

    def following(language: str) -> str:
        found, content = next(steps)
        assert found == language, content
        return content

    assert "pip install handoff-proxy" in following("sh")  # see tests/wheel

    assert following("sh") == "handoff-proxy serve\n"
    async with shell.serve() as (running, url):
        await running.out.line("OPENAI_MODEL, and restart.")
        assert f"{running.out.text.replace(url, 'http://127.0.0.1:8000')}\n" == following("text")
        answer = await shell.run(following("sh").replace("localhost:8000", url))
        assert '"IssuesAndRepairsAgent"' in answer

    listed = await shell.run(following("sh"))
    assert listed.endswith(following("text"))
    assert shell.folder == tmp_path / "office"
    for language in ("yaml", "python"):
        content = following(language)
        name = content.partition("\n")[0].removeprefix("# ")
        assert (ROOT / "examples" / "travel-desk" / name).read_text() == content
        (shell.folder / name).write_text(content)

    assert await shell.run(following("sh")) == following("text")
    assert following("sh") == "handoff-proxy serve\n"
    async with shell.serve() as (_, url):
        assert "250 EUR" in await shell.run(following("sh").replace("localhost:8000", url))

    wrong = (shell.folder / "team.yaml").read_text().replace("rates:convert", "rates:covert")
    (shell.folder / "wrong.yaml").write_text(wrong)
    assert "did you mean 'convert'" in await shell.run("handoff-proxy check wrong.yaml || true")
    (shell.folder / "wrong.yaml").unlink()

    # The provider of the last step is a fake one; ``check --connect`` makes the first two calls.
    question = {"amount": 250.0, "source": "EUR", "target": "CHF"}
    upstream.reply(calls(("get_time", {})), text("Ready"))
    settings, checked, served = (
        following("sh")
        .replace("http://127.0.0.1:11434/v1", upstream.base_url)
        .rpartition("handoff-proxy check --connect\n")
    )
    assert served == "handoff-proxy serve\n"
    await shell.run(settings)
    assert "ok, " in await shell.run(checked)
    upstream.reply(calls(("transfer_to_exchange", {})), calls(("convert", question)), text("235 CHF"))
    async with shell.serve() as (_, url):
        program = following("python").replace("http://127.0.0.1:8000", url)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            await asyncio.to_thread(exec, compile(program, "docs/tutorial.md", "exec"), {})

    assert printed.getvalue() == "235 CHF\n"
    assert shape_of(upstream)[-1] == "result"
    assert upstream.requests[-1].body["messages"][-1]["content"] == '{"amount":235.0,"currency":"CHF"}'
    assert next(steps, None) is None
