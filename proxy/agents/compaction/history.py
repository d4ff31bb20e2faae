"""What an agent sees of a conversation before any compaction: all of it, or what its handoff lets it see.

An agent that was handed over to with ``history: none`` or ``since_handoff`` sees a part of the items. Compactions made
for it have the scope of that handoff, and count for no other agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proxy.messages import AssistantMessage, HandoffRecord, Item, ToolMessage, UserMessage

_SUMMARY = "Summary of the conversation before the handover:\n\n"
_HANDED_OVER = "{source} hands this task over to you."


@dataclass(frozen=True, slots=True)
class History:
    """The items before the turn and those of the turn that an agent sees; ``scope`` is "" for all items."""

    context: Sequence[Item]
    own: Sequence[Item]
    scope: str = ""
    is_mixed: bool = False
    """Whether some agents see only a part, so that sizes reported for one agent say nothing about another."""

    @property
    def items(self) -> list[Item]:
        """All items in order."""
        return [*self.context, *self.own]


def history_of(agent: str, context: Sequence[Item], own: Sequence[Item]) -> History:
    """Return what the agent sees."""
    items = [*context, *own]
    records = [at for at, item in enumerate(items) if item.handoff is not None]
    if not records:
        return History(context, own)
    is_mixed = any(item.handoff is not None and item.handoff.history != "all" for item in items)
    for at in reversed(records):
        record = items[at].handoff
        if record is not None and record.target == agent:
            if record.history != "all":
                return _part(items, at, record, len(context))
            break
    return History(_of_scope(context, ""), _of_scope(own, ""), "", is_mixed)


def _part(items: Sequence[Item], at: int, record: HandoffRecord, before: int) -> History:
    """Return the part of the items that the handoff, whose result is at this position, lets its target see."""
    scope = _call_id(items[at])
    if record.history == "none":
        start, head = at + 1, [Item(UserMessage(content=_handover(record)))]
    else:
        call = _call_place(items, at)
        users = [
            place
            for place in range(call)
            if isinstance(items[place].message, UserMessage) and items[place].compaction is None
        ]
        start = users[-1] if users else call
        head = [Item(UserMessage(content=_SUMMARY + record.summary))] if record.summary else []
    context = [*head, *_of_scope(items[start:before], scope)]
    return History(context, _of_scope(items[max(start, before) :], scope), scope, is_mixed=True)


def _handover(record: HandoffRecord) -> str:
    parts = [_HANDED_OVER.format(source=record.source), record.reason, record.data]
    return "\n\n".join(part for part in parts if part)


def _of_scope(items: Sequence[Item], scope: str) -> list[Item]:
    return [item for item in items if item.compaction is None or item.compaction.scope == scope]


def _call_id(item: Item) -> str:
    return item.message.tool_call_id if isinstance(item.message, ToolMessage) else ""


def _call_place(items: Sequence[Item], at: int) -> int:
    call_id = _call_id(items[at])
    for place in range(at - 1, -1, -1):
        message = items[place].message
        if isinstance(message, AssistantMessage) and any(c.id == call_id for c in message.tool_calls or ()):
            return place
    return at


def return_target(items: Sequence[Item], agent: str) -> str | None:
    """Return the agent that gets control back after ``agent`` has answered; None if it keeps it."""
    for item in reversed(items):
        record = item.handoff
        if record is None:
            continue
        if record.target == agent:
            return record.source if record.returns else None
        if not (record.source == agent and record.returns):
            return None
        # The agent handed over and has control again: an earlier handoff made it active.
    return None
