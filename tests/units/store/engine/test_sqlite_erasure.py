"""What was deleted is not in the files of SQLite any more."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from proxy.messages import AssistantMessage, Item, UserMessage
from proxy.store.turns import open_history
from tests.fakes.turn_records import new_turn, the_end

SECRETS = [b"first secret", b"second secret", b"third secret", b"fourth secret"]


def left_in(folder: Path) -> set[bytes]:
    content = b"".join(file.read_bytes() for file in folder.iterdir())
    return {secret for secret in SECRETS if secret in content}


async def test_deleted_text_is_overwritten(sqlite_database: str) -> None:
    file = Path(sqlite_database.removeprefix("sqlite:///"))
    history = open_history(sqlite_database)
    first, second, third, fourth = (secret.decode() for secret in SECRETS)
    begun = await history.begin(new_turn("one", id="chatcmpl-1", input=[Item(UserMessage(first))]))
    await history.finish(
        the_end(begun.turn, items=[Item(AssistantMessage(second), "sales")], journal=second.encode())
    )
    await history.library.add_items("alice", "one", [Item(UserMessage(third))], now=120.0)
    await history.library.create_conversation("alice", "two", metadata={"about": fourth}, items=[], now=100.0)
    await history.close()
    assert left_in(file.parent) == set(SECRETS)

    history = open_history(sqlite_database)
    await history.library.delete_item("alice", "one", "chatcmpl-1", 1, now=130.0)
    await history.library.delete_conversation("alice", "two", now=130.0)
    await history.close()
    assert left_in(file.parent) == {SECRETS[0], SECRETS[2]}

    history = open_history(sqlite_database)
    assert await history.library.remove_older(1000.0) == 1
    await history.close()
    assert left_in(file.parent) == set()
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM turns").fetchone() == (0,)
