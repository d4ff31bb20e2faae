"""Repository protocol for stored completions, conversations and their items.

``TurnRepository`` serves turns; nothing here is on the path of a turn. Every implementation passes
``tests/contracts/test_conversation_repository.py``: a method is one transaction, every query contains ``caller``, and
no other database error than ``StoreUnavailable`` is raised. Times are seconds since the epoch.

``end_user`` limits a list to the data that ``auth.may_access`` allows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol, TypeVar

from msgspec import Struct, field

from proxy.messages import ForeignItem, Item, Message, is_instruction, text_of
from proxy.turns.records import Conversation, Page, TurnRecord
from proxy.wire.validation.query_params import ListQuery, Sort

Entry = TypeVar("Entry")
TITLE_LENGTH = 80
"""Maximum number of characters of the first user message in a summary."""
EXCERPT_BEFORE, EXCERPT_BEHIND = 40, 80
"""Characters of an excerpt around the words that it was searched for."""
Rest = Callable[[Message], Message | None]
"""Returns the message without a deleted part; None if nothing remains."""


class StoredItem(Struct, frozen=True):
    """An item of a conversation, with the public id of its turn and its position in the turn (0, 1, …).

    Deletion of other items does not change the position. ``pending`` are the ids of calls of client tools; the other
    calls of the turn are calls of server tools.
    """

    turn_id: str
    position: int
    item: Item | ForeignItem
    pending: tuple[str, ...] = ()


class ConversationSummary(Struct, frozen=True):
    """The entry of a conversation in a list; ``first_words`` is the beginning of the first user message.

    ``team`` and ``agent`` are those of the head, ``""`` without a head. ``turns`` is the number of turns of agents on
    all branches. ``updated_at`` is the end of the last of them, or its beginning while it runs.
    """

    first_words: str
    team: str
    agent: str
    turns: int
    updated_at: float

    @classmethod
    def of(cls, words: str, *, team: str, agent: str, turns: int, updated_at: float) -> ConversationSummary:
        """Return the summary of a conversation; ``words`` is the text of its first user message."""
        line = " ".join(words[:1000].split())
        first = line if len(line) <= TITLE_LENGTH else f"{line[: TITLE_LENGTH - 1].rstrip()}…"
        return cls(first, team, agent, turns, updated_at)


def is_about(words: str, metadata: Mapping[str, str], said: Iterable[Item]) -> bool:
    """Whether the title or a visible message of a conversation contains the words; case is ignored."""
    wanted = words.casefold()
    return wanted in metadata.get("title", "").casefold() or any(
        wanted in text_of(item.message).casefold() for item in said if item.visible
    )


def excerpt_of(words: str, said: Iterable[Item]) -> str:
    """Return the part of the first visible message with the words, in one line; ``""`` if no message has them."""
    wanted = words.casefold()
    for item in said:
        text = text_of(item.message)
        folded = text.casefold()
        at = folded.find(wanted) if item.visible and not is_instruction(item.message) else -1
        if at < 0:
            continue
        if len(folded) != len(text):
            # Case folding can make a character longer, for example ß.
            at = bisect_right(list(accumulate(len(one.casefold()) for one in text)), at)
        start, found, end = max(0, at - EXCERPT_BEFORE), at + len(words), at + len(words) + EXCERPT_BEHIND
        before, behind = text[start:at], text[found:end]
        if start and " " in before:
            before = before.partition(" ")[2]
        if end < len(text) and " " in behind:
            behind = behind.rpartition(" ")[0]
        line = " ".join(f"{before}{text[at:found]}{behind}".split())
        return f"{'…' if start else ''}{line}{'…' if end < len(text) else ''}"
    return ""


class CompletionQuery(Struct, frozen=True):
    """Which stored completions a list has: those of a model, with all of ``metadata``, that the end user may access."""

    page: ListQuery
    model: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    end_user: str = ""


class ConversationQuery(Struct, frozen=True):
    """Which conversations a list has, and its order.

    With ``search``, only those that contain these words (``is_about``); with ``metadata``, only those with all of these
    pairs.
    """

    page: ListQuery
    search: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    sort: Sort = "created_at"
    end_user: str = ""


class ConversationRepository(Protocol):
    """Reads and changes stored data."""

    # --- stored completions: completed turns of requests with ``store: true`` ---

    async def list_completions(self, caller: str, query: CompletionQuery) -> Page[TurnRecord] | None:
        """Return stored completions by time, without their items.

        ``page.after`` may be the id of a deleted completion. The result is None if no turn had this id.
        """
        ...

    async def update_completion(
        self, caller: str, completion_id: str, metadata: Mapping[str, str]
    ) -> TurnRecord | None:
        """Replace the metadata; None if there is no such stored completion."""
        ...

    async def delete_completion(self, caller: str, completion_id: str) -> bool:
        """Delete a stored completion (journal, options, metadata, keys); False if there is none.

        The conversation still has its items, but the turn cannot be found by its id.
        """
        ...

    async def delete_response(self, caller: str, turn_id: str) -> bool:
        """Delete the answer of a finished turn with content, like a completion; False if there is none."""
        ...

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
        """Create a conversation under a new id, optionally with items; it belongs to no team."""
        ...

    async def list_conversations(self, caller: str, query: ConversationQuery) -> Page[Conversation] | None:
        """Return the caller's conversations by creation time, or by the time at which their last turn began.

        None if there is no conversation ``page.after``. A conversation without turns counts with its creation time.
        """
        ...

    async def outlines(self, keys: Sequence[int]) -> Mapping[int, ConversationSummary]:
        """Return the summaries of the conversations with these keys; conversations without turns have none."""
        ...

    async def excerpts(self, keys: Sequence[int], words: str) -> Mapping[int, str]:
        """Return for conversations with these keys where their messages contain the words (``excerpt_of``)."""
        ...

    async def tree(self, caller: str, conversation_id: str) -> Sequence[TurnRecord]:
        """Return all turns of a conversation, on all branches and with any status, oldest first."""
        ...

    async def update_conversation(
        self, caller: str, conversation_id: str, metadata: Mapping[str, str]
    ) -> Conversation | None:
        """Replace the metadata; None if there is no such conversation."""
        ...

    async def delete_conversation(self, caller: str, conversation_id: str, *, now: float) -> bool:
        """Delete the conversation and everything in it; False if there is none.

        Raises:
            ConversationBusy: A turn of it is running.
        """
        ...

    async def items(self, caller: str, conversation_id: str) -> Sequence[StoredItem] | None:
        """Return all items from the root to the head, oldest first; None if there is no conversation."""
        ...

    async def turn_ids(self, caller: str, conversation_id: str) -> Sequence[str]:
        """Return the ids of the turns from the root to the head, oldest first, including turns without items."""
        ...

    async def turns_behind(
        self, caller: str, conversation_id: str, after: int, *, limit: int
    ) -> Sequence[tuple[int, str]]:
        """Return (key, id) of the turns that began after the turn with the key ``after``, oldest first.

        Includes turns of other branches and failed turns. Excludes turns without agents and deleted answers.
        """
        ...

    async def turn_key(self, caller: str, conversation_id: str, turn_id: str) -> int | None:
        """Return the key of a turn of the conversation, even if its answer was deleted; None if there is none."""
        ...

    async def add_items(
        self, caller: str, conversation_id: str, items: Sequence[Item | ForeignItem], *, now: float
    ) -> Sequence[StoredItem] | None:
        """Append items after the head as a separate turn; None if there is no such conversation.

        Without items, nothing is appended.

        Raises:
            ConversationBusy: A turn of it is running.
        """
        ...

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
        """Delete an item, or replace it with what ``rest`` returns; False if there is none.

        If it is an agent's message, the answer of the turn can no longer be retrieved by its id, unless it is a stored
        completion.

        Raises:
            ConversationBusy: A turn of the conversation is running.
        """
        ...

    # --- retention ---

    async def remove_older(self, before: float) -> int:
        """Delete conversations without activity since ``before``; return their number.

        It uses many short transactions, so that turns continue meanwhile. Several workers may call it at the same time.
        """
        ...
