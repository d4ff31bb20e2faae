"""Resolve which conversation, parent turn and agent a request continues.

``RULES`` are tried in order: explicit parent, pending tool calls, conversation id, transcript fingerprint, agent name
on the last assistant message. If none matches, the entry agent starts a new conversation. The message list of a client
defines the transcript; the store only adds the parts that a message list cannot contain: the active agent, handoffs,
and results of server tools.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from proxy.approvals.decisions import ApprovalBatch, Resumption, resumption
from proxy.approvals.repository import Approvals
from proxy.auth import may_access
from proxy.conversations.conversation_rules import (
    added_messages,
    agent_name,
    conversation_head,
    empty_conversation,
    entry_agent,
    known_transcript,
    known_user_messages,
    summarized,
)
from proxy.conversations.fingerprints import Transcript, scope_of, transcript_after, user_text
from proxy.conversations.known_beginnings import KnownBeginnings
from proxy.conversations.parent_rules import parent_turn, root
from proxy.conversations.resolver_query import ResolverQuery, RuleMatch, UnrelatedMessages
from proxy.conversations.steps import Step
from proxy.conversations.tool_call_rules import function_result, tool_results, unanswered_calls
from proxy.conversations.unfinished_turns import Repetition, RunningMatch, find_repetition, may_repeat
from proxy.errors import ConversationNotFound
from proxy.message_lists import has_instructions
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    Item,
    Message,
    SystemMessage,
    UserMessage,
    is_instruction,
    text_of,
)
from proxy.request_errors import ApprovalNotRequested
from proxy.turns.contract import Team
from proxy.turns.plain_items import PlainItems, messages_of
from proxy.turns.records import Branch, Conversation
from proxy.turns.repository import TurnRepository
from proxy.turns.request import ROOT, Clock, Match, TurnRequest

Found = RuleMatch | UnrelatedMessages | RunningMatch
_FOUND: Final = (RuleMatch, UnrelatedMessages, RunningMatch)
# Plain functions: most rules do not apply to a request, and a coroutine to find that out takes longer than the rule.
Rule = Callable[[ResolverQuery], Found | Coroutine[Any, Any, Found | None] | None]
RULES: Sequence[Rule] = (
    root,
    parent_turn,
    function_result,
    tool_results,
    unanswered_calls,
    empty_conversation,
    added_messages,
    known_transcript,
    summarized,
    known_user_messages,
    conversation_head,
    agent_name,
    entry_agent,
)
"""The rules in order; each returns None if it does not apply, and a coroutine if it has to read from the store."""


class ResolvedTurn(Struct, frozen=True):
    """Resolved starting point of a turn: conversation, parent turn, agent, context and new input.

    ``conversation_id`` is None for a new conversation. ``context`` has no instructions; ``input`` has those that become
    part of the conversation. ``transcript`` includes the input, so that the answer can be added to it.
    """

    conversation_id: str | None
    match: Match
    parent: int | None
    agent: str
    context: Sequence[Item]
    input: Sequence[Item]
    new_messages: Sequence[Item]
    """The input without instructions."""
    overlay: Sequence[SystemMessage | DeveloperMessage]
    transcript: Transcript
    scope: bytes
    is_running: bool = False
    """Whether the named conversation had a running turn when it was read."""
    is_at_head: bool = False
    """Whether the parent was the head of the named conversation, or that had no turns."""
    is_paused: bool = False
    """Whether the parent turn ended with a batch for approval."""
    is_stored_whole: bool = True
    """Whether the store has the content of all turns of the branch."""
    resumption: Resumption | None = None
    continued: str = ""
    """Text of the assistant message at the end of the list, to which the client appends the answer. Then ``transcript``
    ends before that message."""
    step: Step | None = None
    """The turn follows this part of a turn, which has to be stored first; ``parent`` is the parent of that turn."""
    first_attempt: str | None = None
    """Id of an earlier turn with the same request, whose call keys this turn uses."""


Resolution = ResolvedTurn | UnrelatedMessages | RunningMatch | Repetition


class ConversationResolver:
    """Applies the rules to a request, and decisions on approvals to the result. Reads from the store only."""

    def __init__(self, turns: TurnRepository, approvals: Approvals, clock: Clock) -> None:
        self._turns = turns
        self._approvals = approvals
        self._clock = clock
        self._beginnings = KnownBeginnings()

    async def resolve(self, request: TurnRequest, team: Team, *, skips_running: bool = False) -> Resolution:
        """Return the starting point of the requested turn; a ``Repetition`` is of a complete turn.

        With ``skips_running``, the result is no ``RunningMatch``.

        Raises:
            ConversationNotFound: The conversation belongs to another end user, or has to exist and does not.
            ConversationBusy: The parent turn is running.
            RejectedRequest: There is no such parent turn, tool results are missing or unknown, or a decision is on an
                approval that the parent turn did not request.
        """
        begun = _new_conversation(request, team)
        if begun is not None:
            return begun
        conversation: Conversation | None = None
        if request.conversation_id is not None:
            conversation = await self._named_conversation(request, request.conversation_id)
        query = ResolverQuery(
            request,
            team,
            self._turns,
            conversation,
            self._clock(),
            skips_running,
            beginnings=self._beginnings,
        )
        resolved = await self._first_match(query)
        if _has_no_parent(resolved) and (earlier := query.of_no_end_user()) is not None:
            found = await self._first_match(earlier)
            resolved = resolved if _has_no_parent(found) else found
        if isinstance(resolved, ResolvedTurn):
            if resolved.is_paused and resolved.parent is not None:
                approvals = await self._approvals.of_turn(resolved.parent)
                messages = [item.message for item in resolved.new_messages]
                batch = ApprovalBatch(approvals, round(self._clock(), 3))
                return replace(resolved, resumption=resumption(batch, messages, request.approval_decisions))
        elif not isinstance(resolved, UnrelatedMessages):
            return resolved
        if request.approval_decisions:
            raise ApprovalNotRequested(request.approval_decisions[0].approval_id)
        return resolved

    async def _named_conversation(self, request: TurnRequest, conversation_id: str) -> Conversation | None:
        if request.parent not in (None, ROOT):
            return None
        known = await self._turns.find_conversation(request.caller, conversation_id)
        if known is not None and not may_access(request.end_user, known.end_user):
            raise ConversationNotFound(conversation_id)
        if known is None and request.must_exist and request.parent is None:
            raise ConversationNotFound(conversation_id)
        return known

    async def _first_match(self, query: ResolverQuery) -> Resolution:
        """Return what the first rule that applies has found, unless the request repeats that of an earlier turn."""
        match: Found | None = None
        for rule in RULES:
            found = rule(query)
            if found is None:
                continue
            match = found if isinstance(found, _FOUND) else await found
            if match is not None:
                break
        assert match is not None, "the last rule matches every request"
        if not isinstance(match, RuleMatch):
            return match
        resolved = _resolved(query, match)
        if match.step is not None or resolved.continued:
            return resolved
        if not may_repeat(query, match.conversation_id):
            return resolved
        last = match.branch.last if match.branch is not None else None
        repeated = await find_repetition(query, last, resolved.transcript, match.conversation_id)
        if repeated is None:
            return resolved
        if isinstance(repeated, RunningMatch):
            return repeated
        step = repeated.step
        if step is None:
            attempt = repeated.first_attempt
            return replace(resolved, first_attempt=attempt) if attempt else repeated
        parent = step.record.parent
        return _resolved_behind(
            resolved, step, await self._turns.branch(parent) if parent is not None else None
        )


def _new_conversation(request: TurnRequest, team: Team) -> ResolvedTurn | None:
    """Return the starting point of a list of one user message that names nothing; None for any other request.

    No rule but the last one can apply to it. A team whose tools have effects may have run them for this message before.
    """
    messages = request.turn_messages
    message = messages[0] if len(messages) == 1 else None
    if type(message) is not UserMessage:
        return None
    names_any = (
        request.conversation_id is not None or request.parent is not None or request.approval_decisions
    )
    if names_any or team.has_effects:
        return None
    transcript = Transcript(scope := scope_of(request.caller, team.name, request.end_user))
    transcript.add_user(user_text(text_of(message)))
    items, instructions = request.items_of(messages), request.system_messages
    return ResolvedTurn(
        None,
        match="entry",
        parent=None,
        agent=team.entry,
        context=(),
        input=_input(request, items, instructions),
        new_messages=items,
        overlay=_overlay(request, instructions),
        transcript=transcript,
        scope=scope,
    )


def _has_no_parent(resolution: Resolution) -> bool:
    """Whether no turn of the conversation was found that the request continues."""
    return isinstance(resolution, UnrelatedMessages) or (
        isinstance(resolution, ResolvedTurn) and resolution.parent is None
    )


def _resolved_behind(resolved: ResolvedTurn, step: Step, branch: Branch | None) -> ResolvedTurn:
    """Return the starting point of a turn without input that continues behind a step; ``branch`` ends before it."""
    before = branch.items if branch is not None else ()
    context = [*before, *step.record.input, *step.items]
    return replace(
        resolved,
        conversation_id=step.record.conversation_id,
        parent=step.record.parent,
        agent=step.agent,
        context=[item for item in context if not is_instruction(item.message)],
        input=(),
        new_messages=(),
        is_paused=False,
        step=step,
    )


def _resolved(query: ResolverQuery, match: RuleMatch) -> ResolvedTurn:
    """Build the context and the input of the turn that a rule selected."""
    request, branch, step = query.request, match.branch, match.step
    new = match.new
    if new is None:
        # A slice is a list that does not state any more that it has only text.
        new = query.messages[match.shown :] if match.shown else query.messages
    new_items = request.items_of(new)
    parent: int | None = None
    agent = match.agent
    context: Sequence[Item] = match.context or ()
    overlay = added = request.system_messages
    is_paused, is_stored_whole = False, True
    if branch is not None:
        last = branch.last
        parent = last.turn if step is None else step.record.parent
        agent = agent or last.agent
        is_paused, is_stored_whole = last.is_paused, branch.is_stored
        stored, others = _without_instructions(branch.items)
        if stored:
            added = [message for message in added if message not in stored]
        # A list that contains the earlier messages contains the instructions too.
        if query.last_assistant < 0 or request.is_addition or request.parent is not None:
            overlay = [*stored, *added]
        if match.context is None:
            shown = query.messages[: match.shown] if not is_stored_whole else ()
            context = request.items_of(shown) if shown else others
    # The last message can be an answer only if none is new.
    continued = "" if query.new_messages else _continued(query)
    if continued:
        transcript = Transcript(query.scope)
        transcript.extend(query.messages[:-1])
    elif branch is None or match.is_partly_shown:
        transcript = query.transcript
    else:
        transcript = transcript_after(branch, query.scope, new)
    # With more than 15 keyword arguments, a call builds a dictionary of them.
    return ResolvedTurn(
        match.conversation_id,
        match=match.rule,
        parent=parent,
        agent=agent if agent is not None and agent in query.team.agents else query.team.entry,
        context=context,
        input=_input(request, new_items, added),
        new_messages=new_items,
        overlay=_overlay(request, overlay),
        transcript=transcript,
        scope=query.scope,
        is_running=query.conversation is not None and query.conversation.is_running,
        is_at_head=match.conversation_id is not None and step is None and parent == query.head,
        is_paused=is_paused,
        is_stored_whole=is_stored_whole,
        continued=continued,
        step=step,
    )


def _overlay(
    request: TurnRequest, stored: Sequence[SystemMessage | DeveloperMessage]
) -> Sequence[SystemMessage | DeveloperMessage]:
    """Return the instructions of the list and of the conversation behind those of this turn only."""
    own = request.instructions
    return [SystemMessage(content=own), *stored] if own else stored


def _without_instructions(
    items: Sequence[Item],
) -> tuple[Sequence[SystemMessage | DeveloperMessage], Sequence[Item]]:
    """Return the instructions among the items of a branch, and the other items."""
    # A branch has thousands of items, and hardly one has instructions.
    if not has_instructions(messages_of(items)):
        return (), items
    instructions = [message for item in items if is_instruction(message := item.message)]
    return instructions, [item for item in items if not is_instruction(item.message)]


def _continued(query: ResolverQuery) -> str:
    """Return the text of the assistant message at the end of a complete list; ``""`` if another message is last."""
    request, last = query.request, query.messages[-1] if query.messages else None
    if type(last) is not AssistantMessage or last.tool_calls or last.function_call:
        return ""
    return "" if request.is_addition or request.parent is not None else text_of(last)


def _input(request: TurnRequest, new: Sequence[Item], instructions: Sequence[Message]) -> Sequence[Item]:
    """Return the new messages, with instructions in their place if these become part of the conversation."""
    if not (instructions and request.keeps_instructions):
        return new
    if type(new) is PlainItems:
        wanted = {*map(id, new.messages), *map(id, instructions)}
        return PlainItems([message for message in request.messages if id(message) in wanted])
    stored = {id(item.message): item for item in (*new, *map(Item, instructions))}
    return [stored[id(message)] for message in request.messages if id(message) in stored]
