"""The part of a conversation that belongs to the current run of a member, and the state that it has stored.

A member that calls something which a client or a person answers is run again by a later turn. Its earlier calls are the
items behind those that it was run with first:

    … user | (items of other agents) | call, result | question, user: yes, call, result | …
    exchange.items ------------------^  calls of the member --------------------------->
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from proxy.agents.approval_question import WAITING
from proxy.agents.compaction.history import history_of
from proxy.approvals.decisions import NO_LONGER_OPEN, WAS_REFUSED
from proxy.members.port import Answer
from proxy.members.state import state_of
from proxy.messages import AssistantMessage, Item, ToolCall, ToolMessage, UserMessage, text_of
from proxy.turns.turn import RUN_UNKNOWN, Turn

REFUSED = "not executed: the user refused this call"
NOT_RUN = frozenset((REFUSED, WAS_REFUSED, NO_LONGER_OPEN, RUN_UNKNOWN))
"""Results of approved calls that were not executed, or whose outcome is unknown."""


@dataclass(slots=True)
class Exchange:
    """``items`` are those that the member was run with first, ``later`` those since then, ``answers`` their results.

    ``newest_answers`` are those of the calls with which the member stored its newest state, and of later ones.
    """

    items: Sequence[Item]
    later: Sequence[Item] = ()
    answers: list[Answer] = field(default_factory=list)
    newest_answers: list[Answer] = field(default_factory=list)


def exchange_of(agent: str, turn: Turn) -> Exchange:
    """Return the exchange of the member with this name."""
    history = history_of(agent, turn.context, turn.items)
    # Compactions are for models of the proxy.
    items = [item for item in history.items if item.compaction is None]
    continuation = turn.continuation
    decides = continuation is not None and bool(continuation.calls or continuation.decided)
    start = len(items)
    while start and _belongs(items, start - 1, agent, decides=decides and start == len(items)):
        start -= 1
    later = items[start:]
    return Exchange(items[:start], later, _answers(later), _answers(later[_newest_state(agent, later) :]))


def _newest_state(agent: str, items: Sequence[Item]) -> int:
    """Return where the member stored its newest state first; it stores it again if some calls have no answer yet."""
    newest, start = None, 0
    for at in reversed(range(len(items))):
        state = state_of(agent, items[at])
        if state is not None:
            if newest is not None and state != newest:
                break
            newest, start = state, at
    return start


def _belongs(items: Sequence[Item], at: int, agent: str, *, decides: bool) -> bool:
    """Whether the item is part of the exchange; ``decides``: the last user message decides about an approval."""
    item = items[at]
    if isinstance(item.message, UserMessage) and item.agent is None:
        return decides or _is_decision(items, at, agent)
    if item.agent == agent:
        return not _answers_finally(items, at)
    if item.agent is None:
        # Of a conversation that is not stored, only the client has the calls, without their agent.
        return isinstance(item.message, ToolMessage) or bool(_calls_of(item))
    return False


def _is_decision(items: Sequence[Item], at: int, agent: str) -> bool:
    """Whether a user message answered a question of the member, so that its calls are repeated behind it."""
    if at < 2 or items[at - 1].agent != agent or not _is_waiting(items[at - 2]):
        return False
    repeated = items[at + 1 : at + 3]
    return (
        len(repeated) == 2
        and repeated[0].agent == agent
        and not repeated[0].visible
        and bool(_calls_of(repeated[0]))
        and not _is_waiting(repeated[1])
    )


def _answers_finally(items: Sequence[Item], at: int) -> bool:
    """Whether an item of the member is an answer to the user that ended an earlier exchange, and no question."""
    message = items[at].message
    if not isinstance(message, AssistantMessage) or message.tool_calls:
        return False
    return not (at and _is_waiting(items[at - 1]))


def _is_waiting(item: Item) -> bool:
    return isinstance(item.message, ToolMessage) and text_of(item.message) == WAITING


def _calls_of(item: Item) -> list[ToolCall]:
    calls = item.message.tool_calls if isinstance(item.message, AssistantMessage) else None
    return [call for call in calls or () if isinstance(call, ToolCall)]


def _answers(items: Iterable[Item]) -> list[Answer]:
    """Return the calls that have a result, in the order of the calls: clients can send the results in another one."""
    calls: dict[str, ToolCall] = {}
    answers: dict[str, Answer] = {}
    order: list[str] = []
    for item in items:
        message = item.message
        for call in _calls_of(item):
            calls[call.id] = call
            order.append(call.id)
        if isinstance(message, ToolMessage) and message.tool_call_id in calls and not _is_waiting(item):
            function = calls.pop(message.tool_call_id).function
            arguments = arguments_of(function.arguments)
            answers[message.tool_call_id] = Answer(function.name, arguments, text_of(message))
    return [answers[call_id] for call_id in order if call_id in answers]


def arguments_of(text: str) -> dict[str, Any]:
    """Return the arguments of a call of a member, which are a JSON object."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
