"""Resolver rules for the named conversation, the transcript in the message list, and the agent that it names."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from proxy.approvals.yes_no import plain_decision
from proxy.conversations.fingerprints import agent_by_user_messages, is_first_input
from proxy.conversations.resolver_query import (
    ResolverQuery,
    RuleMatch,
    Search,
    UnrelatedMessages,
    find_transcript,
)
from proxy.conversations.shortened_lists import END_ITEMS, items_of_shortened, may_be_end
from proxy.conversations.summaries import is_summarized
from proxy.conversations.unfinished_turns import RunningMatch, find_partly_shown
from proxy.turns.records import Branch, TurnMatch
from proxy.turns.request import Match


def empty_conversation(query: ResolverQuery) -> Search | None:
    """Start a named conversation that has no turns.

    The agent is still found by the transcript: clients add a conversation id to conversations that began without one.
    """
    if query.request.conversation_id is None or query.head is not None:
        return None
    return _empty_conversation(query)


async def _empty_conversation(query: ResolverQuery) -> RuleMatch:
    request = query.request
    found = await find_transcript(query, None, with_branch=False)
    agent = found.agent if found is not None else query.named_agent
    return RuleMatch(request.id_source, request.conversation_id, agent=agent)


def added_messages(query: ResolverQuery) -> Search | None:
    """Continue from the head of the named conversation if all messages of the request are new."""
    head = query.head
    return _added_messages(query, head) if head is not None and query.request.is_addition else None


async def _added_messages(query: ResolverQuery, head: int) -> RuleMatch:
    branch = await query.turns.branch(head)
    return RuleMatch(query.request.id_source, query.request.conversation_id, branch)


async def known_transcript(query: ResolverQuery) -> RuleMatch | RunningMatch | None:
    """Continue from the turn whose transcript or answer is in the list, within the conversation if one is named.

    The answer of an unfinished turn can be partly in the list.
    """
    request = query.request
    found = await find_transcript(query, query.conversation)
    after = found.length if found is not None else 0
    partly_shown = await find_partly_shown(query, after=after)
    if partly_shown is not None:
        return partly_shown
    if found is None:
        return None
    rule: Match = "last-answer" if found.is_last_answer else "fingerprint"
    if request.conversation_id is not None:
        rule = request.id_source
    if found.latest is not None and (shortened := await _shortened(query, found.latest, rule)) is not None:
        return shortened
    if found.place is None:
        return RuleMatch(rule, request.conversation_id, agent=found.agent)
    branch = found.branch or await query.turns.branch(found.place.turn)
    if branch is None:
        # Deleted since.
        return None
    conversation_id = request.conversation_id or found.place.conversation_id
    return RuleMatch(rule, conversation_id, branch, found.length, agent=found.agent)


async def _shortened(query: ResolverQuery, place: TurnMatch, rule: Match) -> RuleMatch | None:
    """Continue from the turn if the list is the end of its transcript, without older messages."""
    length = query.last_assistant + 1
    shown = query.messages[:length]
    if not may_be_end(await query.turns.last_items(place.turn, limit=END_ITEMS), shown):
        return None
    chain = await query.turns.chain(place.turn)
    if not chain or not query.may_read(chain[-1]):
        return None
    context = items_of_shortened(chain, shown, query.request.items_of(shown))
    if context is None:
        return None
    conversation_id = query.request.conversation_id or place.conversation_id
    return RuleMatch(rule, conversation_id, Branch.of(chain), length, agent=place.agent, context=context)


def summarized(query: ResolverQuery) -> Search | None:
    """Continue with the active agent after the client has replaced the conversation by a summary of it.

    The list starts a branch with the summary as its history: the client sends it to keep the context short.
    """
    head = query.head
    if head is None or not is_summarized(query.messages, query.request.system_messages):
        return None
    return _summarized(query, head)


async def _summarized(query: ResolverQuery, head: int) -> RuleMatch | None:
    request = query.request
    branch = await query.turns.branch(head)
    if branch is None:
        return None
    is_decision = request.approval_decisions or plain_decision(query.new_messages)
    if branch.last.is_paused and is_decision and query.may_read(branch.last):
        return RuleMatch(request.id_source, request.conversation_id, branch, query.last_assistant + 1)
    return RuleMatch(request.id_source, request.conversation_id, agent=branch.last.agent)


def known_user_messages(
    query: ResolverQuery,
) -> Coroutine[Any, Any, RuleMatch | UnrelatedMessages] | None:
    """Start a branch of the named conversation if the list has its first user messages but other answers."""
    head = query.head
    return _known_user_messages(query, head) if head is not None and query.last_assistant >= 0 else None


async def _known_user_messages(query: ResolverQuery, head: int) -> RuleMatch | UnrelatedMessages:
    chain = await query.turns.chain(head)
    is_known, agent = agent_by_user_messages(chain, query.messages)
    # There is no turn if the conversation was deleted a moment ago: then it starts again.
    if chain and not is_known:
        return UnrelatedMessages()
    return RuleMatch(query.request.id_source, query.request.conversation_id, agent=agent)


def conversation_head(query: ResolverQuery) -> Search | None:
    """Continue from the head of the named conversation with a list that has no assistant messages.

    Such a list starts the conversation again if it repeats the first input (a regenerated first answer), or if it is
    from a frontend that always sends the complete list.
    """
    head = query.head
    return _conversation_head(query, head) if head is not None else None


async def _conversation_head(query: ResolverQuery, head: int) -> RuleMatch:
    request = query.request
    chain = await query.turns.chain(head)
    is_deleted = not chain
    if is_deleted or request.id_source == "frontend-header" or is_first_input(chain[0], query.messages):
        return RuleMatch(request.id_source, request.conversation_id)
    return RuleMatch(request.id_source, request.conversation_id, Branch.of(chain))


def agent_name(query: ResolverQuery) -> RuleMatch | None:
    """Start a conversation with the agent that the last assistant message has as its ``name``."""
    return RuleMatch("agent-name", None, agent=query.named_agent) if query.named_agent else None


def entry_agent(query: ResolverQuery) -> RuleMatch:
    """Start a conversation with the entry agent."""
    return RuleMatch("entry", None)
