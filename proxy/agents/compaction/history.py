"""What an agent sees of a conversation before any compaction: all of it, or what its handoff lets it see.

An agent that was handed over to with ``history: none`` or ``since_handoff`` sees a part of the items. Compactions made
for it have the scope of that handoff, and count for no other agent. So do those of a member, an agent with its own
code, which sees the items in another form than a model.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from proxy.messages import AssistantMessage, HandoffRecord, Item, ToolMessage, UserMessage
from proxy.turns.plain_items import PlainItems

_SUMMARY = "Summary of the conversation before the handover:\n\n"
_HANDED_OVER = "{source} hands this task over to you."


class History(Struct, frozen=True):
    """The items before the turn and those of the turn that an agent sees; ``scope`` is "" for all items."""

    context: Sequence[Item]
    own: Sequence[Item]
    scope: str = ""
    is_mixed: bool = False
    """Whether some agents see only a part, so that sizes reported for one agent say nothing about another."""
    has_marks: bool = True
    """Whether the items can have compactions."""

    @property
    def items(self) -> list[Item]:
        """All items in order."""
        return [*self.context, *self.own]


def history_of(agent: str, context: Sequence[Item], own: Sequence[Item], *, view: str = "") -> History:
    """Return what the agent sees; ``view`` is the scope of its form of the items, "" for that of models."""
    if not view and not has_marks(context) and not has_marks(own):
        return History(context, own, has_marks=False)
    items = [*context, *own]
    marked = [at for at, item in enumerate(items) if item.handoff is not None or item.compaction is not None]
    records = [at for at in marked if items[at].handoff is not None]
    if not records:
        compactions = [compaction for at in marked if (compaction := items[at].compaction) is not None]
        if not view and not any(compaction.scope for compaction in compactions):
            return History(context, own)
        return History(_of_scope(context, view), _of_scope(own, view), view, is_mixed=True)
    is_mixed = any(item.handoff is not None and item.handoff.history != "all" for item in items)
    for at in reversed(records):
        record = items[at].handoff
        if record is not None and record.target == agent:
            if record.history != "all":
                return _part(items, at, record, len(context), view)
            break
    return History(_of_scope(context, view), _of_scope(own, view), view, is_mixed or bool(view))


def has_marks(items: Sequence[Item]) -> bool:
    """Whether some of the items have a handoff or a compaction."""
    if type(items) is PlainItems or not items:
        return False
    return bool([item for item in items if item.handoff is not None or item.compaction is not None])


def member_history(
    agent: str, context: Sequence[Item], own: Sequence[Item], *, has_only_text: bool
) -> History:
    """Return what a member sees: all items, or those with text of users and agents, and its own."""
    history = history_of(agent, context, own, view=f"@{agent}")
    if not has_only_text:
        return history

    def shown(items: Sequence[Item]) -> list[Item]:
        return [
            item
            for item in items
            if item.visible or item.agent == agent or isinstance(item.message, UserMessage)
        ]

    return History(shown(history.context), shown(history.own), history.scope, is_mixed=True)


def _part(items: Sequence[Item], at: int, record: HandoffRecord, before: int, view: str) -> History:
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
    scope += view
    context = [*head, *_of_scope(items[start:before], scope)]
    return History(context, _of_scope(items[max(start, before) :], scope), scope, is_mixed=True)


def _handover(record: HandoffRecord) -> str:
    parts = [_HANDED_OVER.format(source=record.source), record.reason, record.data]
    return "\n\n".join(part for part in parts if part)


def _of_scope(items: Sequence[Item], scope: str) -> list[Item]:
    """Return the items without compactions of other scopes. One that the client has sent stands for all before it."""
    return [
        item
        for item in items
        if item.compaction is None or item.compaction.scope == scope or item.agent is None
    ]


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
