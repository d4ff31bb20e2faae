"""Resolver rules for requests that name the parent turn, or a step of it."""

from __future__ import annotations

from msgspec.structs import replace

from proxy.conversations.fingerprints import transcript_after
from proxy.conversations.resolver_query import ResolverQuery, RuleMatch, Search
from proxy.conversations.steps import Step, split_step, step_at
from proxy.conversations.tool_results import answered_in, called_in, check_calls, check_results
from proxy.errors import ConversationBusy
from proxy.messages import UserMessage
from proxy.request_errors import ParentNotFound
from proxy.turns.records import Branch, ChainTurn
from proxy.turns.request import ROOT


def root(query: ResolverQuery) -> RuleMatch | None:
    """Start the conversation again if the parent is ``root``."""
    if query.request.parent != ROOT:
        return None
    return RuleMatch("parent-id", query.request.conversation_id)


def parent_turn(query: ResolverQuery) -> Search | None:
    """Continue from the turn or step named in ``previous_response_id`` or ``X-Parent-Id``.

    Raises:
        ParentNotFound: There is no such turn or step.
        ToolCallNotFound, ToolResultsMissing: A result has no pending call, or a pending call no result and, with
            ``X-Parent-Id``, no user message instead.
        ConversationBusy: The turn is running.
    """
    parent = query.request.parent
    return _parent_turn(query, parent) if parent is not None else None


async def _parent_turn(query: ResolverQuery, parent: str) -> RuleMatch:
    request = query.request
    turn_id, position = split_step(parent)
    record = await query.turns.turn(request.caller, turn_id)
    if (
        record is None
        or not record.is_stored
        or request.conversation_id not in (None, record.conversation_id)
    ):
        raise ParentNotFound(turn_id)
    if record.status == "running":
        raise ConversationBusy
    step = step_at(record, position) if position is not None else None
    if position is not None and step is None:
        raise ParentNotFound(parent)
    if step is not None and not (record.is_history and len(step.items) == len(record.items)):
        return await _after_step(query, step)
    branch = await query.turns.branch(record.turn) if record.is_history else None
    if branch is None or not query.may_read(branch.last):
        raise ParentNotFound(turn_id)
    answered, pending = answered_in(query.messages), branch.last.pending
    check_calls(answered, {*pending, *called_in(query.messages)}, request.messages)
    if answered or request.parent_source == "previous-response" or not _has_user_message(query):
        check_results(pending, answered)
    return RuleMatch(request.parent_source, record.conversation_id, branch)


def _has_user_message(query: ResolverQuery) -> bool:
    """Whether the request has a user message. In place of results, it closes the calls: they were not executed."""
    return any(isinstance(message, UserMessage) for message in query.messages)


async def _after_step(query: ResolverQuery, step: Step) -> RuleMatch:
    request, record = query.request, step.record
    chain = await query.turns.chain(record.parent) if record.parent is not None else ()
    check_calls(answered_in(query.messages), called_in(query.messages), request.messages)
    before = Branch.of(chain) if chain else None
    transcript = transcript_after(before, query.scope, [item.message for item in record.input])
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
        raise ParentNotFound(record.id)
    step = replace(step, fingerprint=fingerprint)
    return RuleMatch(request.parent_source, record.conversation_id, Branch.of([*chain, turn]), step=step)
