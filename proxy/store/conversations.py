"""``ConversationRepository`` in a SQL database."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

from sqlalchemy import Connection

from proxy.conversations.fingerprints import fingerprint_behind
from proxy.conversations.repository import (
    CompletionQuery,
    ConversationQuery,
    ConversationSummary,
    Rest,
    StoredItem,
)
from proxy.errors import ConversationBusy
from proxy.messages import ForeignItem, Item, OpenCalls
from proxy.store.engine.database import Database
from proxy.store.engine.group_commit import OtherWrite
from proxy.store.engine.writer import Writer
from proxy.store.sql.conversation_changes import Addition, ConversationChanges, Done
from proxy.store.sql.conversation_list import Outlines
from proxy.store.sql.conversation_queries import ConversationQueries
from proxy.store.sql.dialects import statements
from proxy.store.sql.retention import Old, Retention, batches
from proxy.store.sql.stored_completions import Completions
from proxy.store.sql.turn_polling import TurnPolling
from proxy.store.sql.turn_queries import TurnQueries
from proxy.turns.records import Branch, Conversation, Page, TurnRecord

R = TypeVar("R")

ATTEMPTS = 5
"""Number of attempts to append items when other writes change the conversation concurrently."""


class SqlLibrary:
    """``ConversationRepository`` in a SQL database.

    It shares the database and the writer of a ``SqlHistory``, which closes them.
    """

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer
        self._reading = statements(TurnQueries, database.dialect)
        self._completions = statements(Completions, database.dialect)
        self._conversations = statements(ConversationQueries, database.dialect)
        self._changes = statements(ConversationChanges, database.dialect)
        self._polling = statements(TurnPolling, database.dialect)
        self._outlines = statements(Outlines, database.dialect)
        self._retention = statements(Retention, database.dialect)

    # --- stored completions ---

    async def list_completions(self, caller: str, query: CompletionQuery) -> Page[TurnRecord] | None:
        return await self._database.read(lambda on: self._completions.page(on, caller, query))

    async def update_completion(
        self, caller: str, completion_id: str, metadata: Mapping[str, str]
    ) -> TurnRecord | None:
        return await self._write(lambda on: self._completions.update(on, caller, completion_id, metadata))

    async def delete_completion(self, caller: str, completion_id: str) -> bool:
        done = await self._change(
            lambda on: "done" if self._completions.delete(on, caller, completion_id) else "missing"
        )
        return done == "done"

    async def delete_response(self, caller: str, turn_id: str) -> bool:
        done = await self._change(
            lambda on: "done" if self._completions.forget(on, caller, turn_id) else "missing"
        )
        return done == "done"

    # --- conversations ---

    async def create_conversation(
        self,
        caller: str,
        conversation_id: str,
        *,
        metadata: Mapping[str, str],
        items: Sequence[Item | ForeignItem],
        now: float,
        end_user: str = "",
    ) -> Conversation:
        first = _addition(None, None, items)
        return await self._write(
            lambda on: self._changes.create(on, caller, end_user, conversation_id, metadata, first, now)
        )

    async def list_conversations(self, caller: str, query: ConversationQuery) -> Page[Conversation] | None:
        return await self._database.read(lambda on: self._conversations.page(on, caller, query))

    async def outlines(self, keys: Sequence[int]) -> Mapping[int, ConversationSummary]:
        return await self._database.read(lambda on: self._outlines.outlines(on, keys))

    async def excerpts(self, keys: Sequence[int], words: str) -> Mapping[int, str]:
        return await self._database.read(lambda on: self._outlines.excerpts(on, keys, words))

    async def tree(self, caller: str, conversation_id: str) -> Sequence[TurnRecord]:
        return await self._database.read(lambda on: self._outlines.tree(on, caller, conversation_id))

    async def update_conversation(
        self, caller: str, conversation_id: str, metadata: Mapping[str, str]
    ) -> Conversation | None:
        return await self._write(lambda on: self._changes.update(on, caller, conversation_id, metadata))

    async def delete_conversation(self, caller: str, conversation_id: str, *, now: float) -> bool:
        return await self._is_done(lambda on: self._changes.delete(on, caller, conversation_id, now))

    async def items(self, caller: str, conversation_id: str) -> Sequence[StoredItem] | None:
        return await self._database.read(lambda on: self._conversations.items(on, caller, conversation_id))

    async def turn_ids(self, caller: str, conversation_id: str) -> Sequence[str]:
        return await self._database.read(lambda on: self._conversations.turn_ids(on, caller, conversation_id))

    async def turns_behind(
        self, caller: str, conversation_id: str, after: int, *, limit: int
    ) -> Sequence[tuple[int, str]]:
        return await self._database.read(
            lambda on: self._polling.behind(on, caller, conversation_id, after, limit)
        )

    async def turn_key(self, caller: str, conversation_id: str, turn_id: str) -> int | None:
        return await self._database.read(lambda on: self._polling.key(on, caller, conversation_id, turn_id))

    async def add_items(
        self, caller: str, conversation_id: str, items: Sequence[Item | ForeignItem], *, now: float
    ) -> Sequence[StoredItem] | None:
        for _ in range(ATTEMPTS):
            # Read long conversations outside the write transaction; only the head is compared under the lock.
            conversation, branch = await self._database.read(
                lambda on: self._end_of(on, caller, conversation_id)
            )
            if conversation is None:
                return None
            if not items:
                return []
            new = _addition(conversation.head, branch, items)
            match await self._append(caller, conversation_id, new, now):
                case "done":
                    return [
                        StoredItem(new.turn_id, position, item, new.pending)
                        for position, item in enumerate(items)
                    ]
                case "missing":
                    return None
                case "busy":
                    raise ConversationBusy
                case "moved":
                    continue
        raise ConversationBusy

    async def delete_item(
        self,
        caller: str,
        conversation_id: str,
        turn_id: str,
        position: int,
        *,
        now: float,
        rest: Rest | None = None,
    ) -> bool:
        if turn_id not in await self.turn_ids(caller, conversation_id):
            return False
        return await self._is_done(
            lambda on: self._changes.delete_item(on, caller, turn_id, position, rest, now)
        )

    # --- retention ---

    async def remove_older(self, before: float) -> int:
        removed = 0
        last: int | None = 0
        while last is not None:
            old, last = await self._next_old(before, last)
            for keys in batches(old):
                removed += await self._delete_old(before, keys)
        return removed

    async def _append(self, caller: str, conversation_id: str, new: Addition, now: float) -> Done:
        return await self._change(lambda on: self._changes.add(on, caller, conversation_id, new, now))

    async def _next_old(self, before: float, after: int) -> tuple[Sequence[Old], int | None]:
        return await self._database.read(lambda on: self._retention.find(on, before, after))

    async def _delete_old(self, before: float, keys: Sequence[int]) -> int:
        return await self._write(lambda on: self._retention.delete(on, before, keys))

    def _end_of(
        self, connection: Connection, caller: str, conversation_id: str
    ) -> tuple[Conversation | None, Branch | None]:
        conversation = self._reading.conversation(connection, caller, conversation_id)
        if conversation is None or conversation.head is None:
            return conversation, None
        return conversation, self._reading.branch(connection, conversation.head)

    async def _write(self, function: Callable[[Connection], R]) -> R:
        return cast(R, await self._writer.write(OtherWrite(function)))

    async def _is_done(self, function: Callable[[Connection], Done]) -> bool:
        done = await self._change(function)
        if done == "busy":
            raise ConversationBusy
        return done == "done"

    async def _change(self, function: Callable[[Connection], Done]) -> Done:
        """Run a change that refuses by what it returns: an error would undo what others write in the group.

        The writer runs it again when it does not know whether it was committed; what is missing then was deleted by
        the first run.
        """
        was_done = False

        def change(connection: Connection) -> Done:
            nonlocal was_done
            done = function(connection)
            if done == "missing" and was_done:
                return "done"
            was_done = was_done or done == "done"
            return done

        return await self._write(change)


def _addition(head: int | None, branch: Branch | None, items: Sequence[Item | ForeignItem]) -> Addition:
    said = [item.message for item in items if isinstance(item, Item)]
    before = [item.message for item in branch.items] if branch is not None else []
    calls = OpenCalls()
    for message in before + said:
        calls.observe(message)
    return Addition(
        turn_id=f"items_{secrets.token_hex(16)}",
        head=head,
        agent=branch.last.agent if branch is not None else "",
        items=items,
        fingerprint=fingerprint_behind(branch, said),
        pending=tuple(calls.ids),
    )
