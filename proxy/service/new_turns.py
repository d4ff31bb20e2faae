"""Build the values of a new turn: the row that the store writes, and the turn that the team runs."""

from __future__ import annotations

import secrets
from dataclasses import replace

from proxy.approvals.decisions import Account
from proxy.approvals.repository import Approvals
from proxy.conversations.resolver import ResolvedTurn
from proxy.turns.contract import ServedTeam, Turn
from proxy.turns.repository import NewTurn
from proxy.turns.request import Ask


def new_turn_id() -> str:
    """Return a new turn id, which is also the id of its chat completion."""
    return f"chatcmpl-{secrets.token_hex(16)}"


def new_turn(
    ask: Ask, team: ServedTeam, recalled: ResolvedTurn, *, worker: str, lease_until: float, now: float
) -> NewTurn:
    """Return the row of a turn that begins ``now``."""
    return NewTurn(
        id=new_turn_id(),
        caller=ask.caller,
        end_user=ask.end_user,
        conversation_id=recalled.conversation_id or f"conv_{secrets.token_hex(16)}",
        team=team.name,
        model=ask.model,
        parent=recalled.parent,
        agent=recalled.agent,
        input=recalled.input,
        is_stored=ask.is_stored,
        is_listed=ask.is_listed,
        metadata=ask.metadata,
        options=ask.options,
        worker=worker,
        lease_until=lease_until,
        created_at=now,
        idempotency_key=ask.idempotency_key,
        body_digest=ask.body_digest,
        snapshot=team.snapshot,
    )


def turn_of(ask: Ask, new: NewTurn, recalled: ResolvedTurn, approvals: Approvals) -> Turn:
    """Return the turn to run."""
    resumption = recalled.resumption
    opening = None
    if resumption is not None:
        opening = replace(resumption.opening, runs=Account(approvals, new.id))
    return Turn(
        id=new.id,
        conversation_id=new.conversation_id,
        caller=ask.caller,
        agent=recalled.agent,
        context=[*recalled.context, *recalled.new_messages],
        overlay=recalled.overlay,
        parameters=ask.parameters,
        client_tools=ask.tools,
        tool_choice=ask.tool_choice,
        parallel_tool_calls=ask.parallel_tool_calls,
        max_tool_calls=ask.max_tool_calls,
        is_strict=ask.is_strict,
        may_ask=ask.is_stored and recalled.is_kept,
        opening=opening,
    )
