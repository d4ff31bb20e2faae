"""Build the values of a new turn: the row that the store writes, and the turn that the team runs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from proxy.approvals.decisions import StoredApprovedCallLog
from proxy.approvals.repository import Approvals
from proxy.conversations.resolver import ResolvedTurn
from proxy.messages import DeveloperMessage, Item, SystemMessage
from proxy.turns.contract import ServedTeam
from proxy.turns.ids import new_id
from proxy.turns.plain_items import joined_items
from proxy.turns.records import NewTurn
from proxy.turns.request import TurnRequest
from proxy.turns.turn import Turn
from proxy.wire.chat.response_models import encode

new_turn_id = partial(new_id, "chatcmpl-")
"""Returns a new turn id, which is also the id of its chat completion."""


def new_turn(
    request: TurnRequest,
    team: ServedTeam,
    resolved: ResolvedTurn,
    *,
    worker: str,
    lease_until: float,
    now: float,
    slot: int = 0,
) -> NewTurn:
    """Return the row of a turn that begins ``now``."""
    # With more than 15 keyword arguments, a call builds a dictionary of them.
    return NewTurn(
        new_turn_id(),
        request.caller,
        request.end_user,
        resolved.conversation_id or new_id("conv_"),
        team.name,
        request.model,
        resolved.parent,
        resolved.agent,
        input=resolved.input,
        is_stored=request.is_stored,
        is_listed=request.is_listed,
        metadata=request.metadata,
        options=encode(request.options),
        worker=worker,
        lease_until=lease_until,
        created_at=now,
        idempotency_key=request.idempotency_key,
        body_digest=request.body_digest,
        snapshot=team.snapshot,
        slot=slot,
        # Parallel turns of a frontend's chat are branches.
        is_at_head=resolved.is_at_head and not slot,
        # Without tools, no turn is looked for by its input.
        input_fingerprint=resolved.transcript.input_fingerprint() if team.has_tools else None,
        first_attempt=resolved.first_attempt,
    )


def turn_of(request: TurnRequest, new: NewTurn, resolved: ResolvedTurn, approvals: Approvals) -> Turn:
    """Return the turn to run."""
    turn = requested_turn(
        request,
        new.id,
        new.conversation_id,
        agent=resolved.agent,
        context=joined_items(resolved.context, resolved.new_messages),
        overlay=resolved.overlay,
        may_ask=request.is_stored and resolved.is_stored_whole,
        call_scope=resolved.first_attempt or new.id,
    )
    resumption = resolved.resumption
    if resumption is not None:
        turn.continuation = replace(resumption.continuation, runs=StoredApprovedCallLog(approvals, new.id))
    return turn


def requested_turn(
    request: TurnRequest,
    turn_id: str,
    conversation_id: str,
    *,
    agent: str,
    context: Sequence[Item],
    overlay: Sequence[SystemMessage | DeveloperMessage],
    may_ask: bool = False,
    call_scope: str = "",
) -> Turn:
    """Return a turn of ``agent`` with the caller, the parameters and the tools of the request."""
    # At most 15 keyword arguments, as in ``new_turn``.
    return Turn(
        turn_id,
        conversation_id,
        request.caller,
        agent,
        context,
        overlay,
        request.parameters,
        end_user=request.end_user,
        may_ask=may_ask,
        call_scope=call_scope,
        response_format=request.response_format,
        client_tools=request.tools,
        tool_choice=request.tool_choice,
        parallel_tool_calls=request.parallel_tool_calls,
        is_streamed=request.is_streamed,
        is_strict=request.is_strict,
        max_tool_calls=request.max_tool_calls,
        context_mode=request.context_mode,
        compact_threshold=request.compact_threshold,
    )
