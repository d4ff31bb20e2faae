"""Resolver rules for message lists that end with tool calls or their results."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.conversations.fingerprints import Transcript
from proxy.conversations.resolver_query import ResolverQuery, RuleMatch, Search
from proxy.conversations.tool_results import (
    answered_in,
    called_in,
    check_calls,
    check_results,
    function_call_in,
    is_function_result,
    is_result_of,
    pending_call_of,
    with_call_id,
)
from proxy.messages import FunctionMessage, Message, ToolCall, ToolMessage
from proxy.request_errors import FunctionCallNotFound, ToolCallsNotStored
from proxy.turns.records import Branch, TurnMatch

_RESULTS = frozenset((ToolMessage, FunctionMessage))


def function_result(query: ResolverQuery) -> Search | None:
    """Resume the turn whose ``function_call`` has its result at the end of the list.

    These deprecated calls have no id: the turn is that of the call in the list, or the head of the named conversation.
    """
    results = _function_results(query) if _has_results(query) else ()
    return _of_function_result(query, results) if results else None


async def _of_function_result(query: ResolverQuery, results: Sequence[Message]) -> RuleMatch | None:
    call = function_call_in(query.messages[query.last_assistant]) if query.last_assistant >= 0 else None
    place = await _place_of(query, call) if call is not None else None
    if place is not None and not place.is_unique:
        return RuleMatch("last-answer", query.request.conversation_id, agent=place.agent)
    turn = place.turn if place is not None else query.head
    branch = await query.turns.branch(turn) if turn is not None else None
    pending = pending_call_of(branch.last) if branch is not None and query.may_read(branch.last) else None
    if (
        branch is not None
        and pending is not None
        and len(results) == 1
        and is_result_of(results[0], pending, call)
    ):
        return _resumed(query, branch, [with_call_id(pending, message) for message in query.new_messages])
    if call is None:
        raise FunctionCallNotFound(query.request.messages.index(results[0]))
    # A turn without stored content still determines the agent. Without a turn, the list contains the call itself.
    return _resumed(query, branch) if place is not None and branch is not None else None


def tool_results(query: ResolverQuery) -> Search | None:
    """Resume the turn whose tool calls have their results at the end of the list.

    Raises:
        ToolCallNotFound, ToolResultsMissing: A result has no pending call, or a pending call no result.
    """
    if not _has_results(query) or _function_results(query):
        return None
    return _of_tool_results(query, answered_in(query.new_messages))


async def _of_tool_results(query: ResolverQuery, answered: Sequence[str]) -> RuleMatch | None:
    request = query.request
    branch = await _branch_of_calls(query, answered)
    if branch is None:
        # A list from another server can contain both calls and results. Any other id is unknown.
        own = called_in(query.messages[query.last_assistant :]) if query.last_assistant >= 0 else set()
        check_calls(answered, own, request.messages)
        return None
    check_calls(answered, branch.last.pending, request.messages)
    check_results(branch.last.pending, answered)
    return _resumed(query, branch)


def unanswered_calls(query: ResolverQuery) -> Search | None:
    """Continue from the turn whose tool calls are last in the list without results: they count as not executed."""
    if query.last_assistant < 0 or query.request.is_addition or _has_results(query):
        return None
    calls = called_in([query.messages[query.last_assistant]])
    return _of_unanswered(query, sorted(calls)) if calls else None


async def _of_unanswered(query: ResolverQuery, calls: Sequence[str]) -> RuleMatch | None:
    branch = await _branch_of_calls(query, calls)
    return _resumed(query, branch) if branch is not None else None


def _has_results(query: ResolverQuery) -> bool:
    """Whether there are results of calls at the end of the list, in either form."""
    return not _RESULTS.isdisjoint(map(type, query.new_messages))


def _function_results(query: ResolverQuery) -> list[Message]:
    return [message for message in query.new_messages if is_function_result(message)]


async def _place_of(query: ResolverQuery, call: ToolCall) -> TurnMatch | None:
    transcript = Transcript(query.scope)
    transcript.extend(query.messages[: query.last_assistant])
    digest = transcript.call(call.function)
    return await query.turns.find_last_answer(digest, conversation=query.conversation_key)


async def _branch_of_calls(query: ResolverQuery, call_ids: Sequence[str]) -> Branch | None:
    """Return the branch of the newest turn that made one of the calls; None if the end user may not read it."""
    found = await query.turns.find_pending(
        query.request.caller, call_ids, conversation=query.conversation_key
    )
    newest = dict(reversed(found))
    branch = await query.turns.branch(max(newest.values())) if newest else None
    return branch if branch is not None and query.may_read(branch.last) else None


def _resumed(query: ResolverQuery, branch: Branch, new: Sequence[Message] | None = None) -> RuleMatch:
    """Continue from a turn with pending tool calls."""
    if query.last_assistant < 0 and not branch.last.is_stored:
        raise ToolCallsNotStored
    conversation_id = query.request.conversation_id or branch.last.conversation_id
    return RuleMatch("tool-calls", conversation_id, branch, query.last_assistant + 1, new)
