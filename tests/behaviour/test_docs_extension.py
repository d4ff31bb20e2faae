"""docs/extension.md has the output of its programs and a chunk that the server sends."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from proxy.wire.chat.extension_objects import ExtensionEvent, Summary
from tests.server import Served, serve

PAGE = (Path(__file__).parents[2] / "docs" / "extension.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
PROGRAMS = [
    (text, BLOCKS[number + 1][1]) for number, (language, text) in enumerate(BLOCKS) if language == "python"
]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serve(tmp_path) as created:
        yield created


def printed(program: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(program, "docs/extension.md", "exec"), {"__name__": "__main__"})
    return output.getvalue()


@pytest.mark.parametrize(("program", "output"), PROGRAMS, ids=range(len(PROGRAMS)))
async def test_the_programs_print_the_documented_output(program: str, output: str, served: Served) -> None:
    assert await asyncio.to_thread(printed, program.replace("http://127.0.0.1:8000", served.url)) == output


async def test_the_server_sends_the_documented_chunk(served: Served) -> None:
    shown = next(json.loads(text) for language, text in BLOCKS if language == "json")
    message: Any = {"role": "user", "content": "My rocket-powered unicycle exploded. I want my money back."}
    stream = await served.client().chat.completions.create(
        model="acme-support", stream=True, messages=[message]
    )

    found = [chunk.to_dict() async for chunk in stream]

    sent = next(chunk for chunk in found if "handoff" in chunk)
    assert {key: sent[key] for key in shown} == {**shown, "id": sent["id"], "created": sent["created"]}


def test_the_tables_have_every_type_and_key() -> None:
    documented = set(re.findall(r"`([\w.]+)`", PAGE))

    for schema in (ExtensionEvent, Summary):
        assert {field.encode_name for field in msgspec.structs.fields(schema)} <= documented
