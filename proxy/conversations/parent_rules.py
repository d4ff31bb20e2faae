"""Resolver rules for requests that name the parent turn, or a step of it."""

from __future__ import annotations

from dataclasses import replace

from proxy.conversations.fingerprints import transcript_after
from proxy.conversations.resolver_query import ResolverQuery, RuleMatch
from proxy.conversations.steps import Step, split_step, step_at
from proxy.conversations.tool_results import answered_in, called_in, check_calls, check_results
from proxy.errors import ConversationBusy, InvalidRequest
from proxy.turns.repository import ChainTurn
from proxy.turns.request import ROOT, Match, TurnRequest
from proxy.wire.responses.ids import response_id


async def root(query: ResolverQuery) -> RuleMatch | None:
    """Start the conversation again if the parent is ``root``."""
    if query.request.parent != ROOT:
        return None
    return RuleMatch("parent-id", query.request.conversation_id)


async def parent_turn(query: ResolverQuery) -> RuleMatch | None:
    """Continue from the turn or step named in ``previous_response_id`` or ``X-Parent-Id``.

    Raises:
        InvalidRequest: There is no such turn, or tool results are missing or unknown.
        ConversationBusy: The turn is running.
    """
    request = query.request
    if request.parent is None:
        return None
    turn_id, position = split_step(request.parent)
    record = await query.turns.turn(request.caller, turn_id)
    if (
        record is None
        or not record.is_stored
        or request.conversation_id not in (None, record.conversation_id)
    ):
        raise _no_parent(request, turn_id)
    if record.status == "running":
        raise ConversationBusy
    step = step_at(record, position) if position is not None else None
    if position is not None and step is None:
        raise _no_parent(request, request.parent)
    if step is not None and not (record.is_history and len(step.items) == len(record.items)):
        return await _after_step(query, step)
    chain = await query.turns.chain(record.turn) if record.is_history else ()
    if not chain or not query.may_read(chain[-1]):
        raise _no_parent(request, turn_id)
    answered, pending = answered_in(query.messages), chain[-1].pending
    check_calls(answered, {*pending, *called_in(query.messages)}, request.messages, request.list_name)
    check_results(pending, answered, request.list_name)
    return RuleMatch(_rule(request), record.conversation_id, chain)


async def _after_step(query: ResolverQuery, step: Step) -> RuleMatch:
    request, record = query.request, step.record
    chain = await query.turns.chain(record.parent) if record.parent is not None else ()
    check_calls(answered_in(query.messages), called_in(query.messages), request.messages, request.list_name)
    transcript = transcript_after(chain, query.scope, (item.message for item in record.input))
    fingerprint = transcript.answer(step.text) if step.text else None
    turn = ChainTurn(
        turn=record.turn,
        agent=step.agent,
        is_stored=True,
        items=[*record.input, *step.items],
        pending=(),
        conversation_id=record.conversation_id,
        end_user=record.end_user,
        fingerprint=fingerprint,
    )
    if not query.may_read(turn):
        raise _no_parent(request, record.id)
    step = replace(step, fingerprint=fingerprint)
    return RuleMatch(_rule(request), record.conversation_id, [*chain, turn], step=step)


def _rule(request: TurnRequest) -> Match:
    return "parent-id" if request.parent_name == "X-Parent-Id" else "previous-response"


def _no_parent(request: TurnRequest, reference: str) -> InvalidRequest:
    if request.parent_name == "X-Parent-Id":
        return InvalidRequest(
            f"Invalid 'X-Parent-Id': no turn '{reference[:64]}' to go on from.",
            param="X-Parent-Id",
            code="invalid_value",
        )
    return InvalidRequest(
        f"Previous response with id '{response_id(reference)[:128]}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )
