"""The model is called while the commit that begins the turn is written; everything else waits for that commit."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import openai
import pytest

from tests.behaviour.chat_client import Caller, shape_of, user
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve_process

CHAT = {"X-Conversation-Id": "chat-1"}


@contextmanager
def locked_database(folder: Path) -> Iterator[None]:
    """Let no other connection write to the database of a server."""
    file = folder / "data" / "handoff-proxy.sqlite"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


async def test_nothing_is_sent_before_the_turn_is_stored(
    served: Served, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    client = served.client()

    with locked_database(tmp_path):
        opening = asyncio.create_task(
            client.chat.completions.create(model="shop", messages=[user("Hi")], stream=True)
        )
        await upstream.received(1)
        done, _ = await asyncio.wait([opening], timeout=0.3)
        assert not done
    chunks = [chunk async for chunk in await opening]

    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hello"


async def test_after_a_kill_before_the_turn_is_stored_nothing_of_it_remains(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Early"), text("Hello"))
    async with serve_process(tmp_path, upstream.base_url) as (served, process):
        with locked_database(tmp_path):
            pending = asyncio.create_task(Caller(served).ask([user("Hi")], headers=CHAT))
            await upstream.received(1)
            process.send_signal(signal.SIGKILL)
            await process.wait()
            with pytest.raises(openai.APIConnectionError):
                await pending

    async with serve_process(tmp_path, upstream.base_url) as (served, _):
        assert await Caller(served).ask([user("Me too")], headers=CHAT) == "Hello"

    assert shape_of(upstream)[-1] == "user:Me too"
    assert "user:Hi" not in shape_of(upstream)
