"""Input and output of the resolver's rules, and the search for the stored turn whose transcript a request contains."""

from __future__ import annotations

from collections.abc import Coroutine, Sequence
from typing import Any

from msgspec import Struct

from proxy.approvals.yes_no import plain_decision
from proxy.auth import may_access
from proxy.conversations.alignment import is_aligned
from proxy.conversations.fingerprints import Transcript, last_answer_of, scope_of
from proxy.conversations.known_beginnings import MIN_MESSAGES, KnownBeginnings
from proxy.conversations.steps import Step
from proxy.messages import AssistantMessage, Item, Message, ToolMessage, UserMessage, text_of
from proxy.turns.contract import Team
from proxy.turns.records import Branch, ChainTurn, Conversation, TurnMatch
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Match, TurnRequest

MAX_INPUTS = 16
"""Number of positions in a list, from its end, at which the input of a turn can end."""


class ResolverQuery:
    """A request, with the parts that several rules need. Nothing changes it."""

    __slots__ = (
        "_beginnings",
        "_fingerprints",
        "conversation",
        "last_assistant",
        "messages",
        "new_messages",
        "now",
        "request",
        "scope",
        "skips_running",
        "team",
        "turns",
    )

    def __init__(
        self,
        request: TurnRequest,
        team: Team,
        turns: TurnRepository,
        conversation: Conversation | None,
        now: float = 0.0,
        skips_running: bool = False,
        owner: str | None = None,
        beginnings: KnownBeginnings | None = None,
    ) -> None:
        """``conversation`` is the one that the request names; None if it names none, or if it does not exist yet.

        With ``skips_running``, the request neither follows nor repeats a running turn. ``owner`` is the end user of the
        fingerprints that are searched; None for that of the conversation, or of the request. ``beginnings`` are the
        fingerprints of earlier requests.
        """
        self.request = request
        self.team = team
        self.turns = turns
        self.conversation = conversation
        self.now = now
        self.skips_running = skips_running
        messages = request.turn_messages
        last = len(messages) - 1
        while last >= 0 and type(messages[last]) is not AssistantMessage:
            last -= 1
        self.messages: Sequence[Message] = messages
        """The messages of the request without instructions."""
        self.last_assistant = last
        """The index of the last assistant message in ``messages``; -1 if there is none."""
        self.new_messages: Sequence[Message] = messages[last + 1 :]
        """The messages after the last assistant message."""
        # A request without an end user may continue the conversation of one, and one of an end user that of none.
        end_user = request.end_user if conversation is None else conversation.end_user
        self.scope = scope_of(request.caller, team.name, end_user if owner is None else owner)
        """The start of all fingerprints of this caller, team and end user; of a named conversation, its end user."""
        # Texts of a conversation that is not stored are not cached either.
        self._beginnings = beginnings if request.is_stored else None
        self._fingerprints: _Fingerprints | None = None

    def of_no_end_user(self) -> ResolverQuery | None:
        """Return the same query for turns with the fingerprints of no end user; None if it would find nothing else.

        A conversation without an end user belongs to the first one that continues it. The fingerprints of the branches
        that it has then do not change.
        """
        if self.conversation is None or not self.conversation.end_user or self.last_assistant < 0:
            return None
        return ResolverQuery(
            self.request,
            self.team,
            self.turns,
            self.conversation,
            self.now,
            self.skips_running,
            owner="",
            beginnings=self._beginnings,
        )

    @property
    def transcript(self) -> Transcript:
        """The transcript of all ``messages``."""
        return self._all_fingerprints()[0]

    @property
    def boundaries(self) -> Sequence[tuple[int, bytes]]:
        """The index and the fingerprint of each assistant message that has one."""
        return self._all_fingerprints()[1]

    @property
    def inputs(self) -> Sequence[tuple[int, bytes]]:
        """The index and the digest of the last ``MAX_INPUTS`` messages at which the input of a turn can end.

        The last message is not one of them. Empty for a team without tools: only turns that ran tools are found by it.
        """
        return self._all_fingerprints()[2]

    def _all_fingerprints(self) -> _Fingerprints:
        # One pass over the messages: hashing a long list is a large part of a request.
        if self._fingerprints is not None:
            return self._fingerprints
        ends = _input_ends(self.messages) if self.team.has_tools else ()
        # What is known has no digests of inputs, so it has to end before the first of them.
        limit = ends[0] + 1 if ends else len(self.messages)
        beginnings = self._beginnings if limit >= MIN_MESSAGES else None
        known = beginnings.find(self.scope, self.messages, limit) if beginnings is not None else None
        boundaries = [*known.boundaries] if known is not None else []
        begin = len(known.texts) if known is not None else 0
        transcript = Transcript(boundaries[-1][1] if boundaries else self.scope)
        inputs: list[tuple[int, bytes]] = []
        for end in ends:
            boundaries += transcript.extend(self.messages[begin : end + 1], first=begin)
            inputs.append((end, transcript.input_fingerprint()))
            begin = end + 1
        # A slice is a list that does not state any more that it has only text.
        boundaries += transcript.extend(self.messages[begin:] if begin else self.messages, first=begin)
        if beginnings is not None:
            beginnings.add(self.scope, self.messages, limit, boundaries, known)
        self._fingerprints = transcript, boundaries, inputs
        return self._fingerprints

    @property
    def last_answer(self) -> bytes | None:
        """The digest of the text of the last assistant message; None if there is no text."""
        return last_answer_of(self.scope, text_of(self.messages[self.last_assistant]))

    @property
    def head(self) -> int | None:
        """The key of the newest turn of the named conversation; None if it has no turns."""
        return self.conversation.head if self.conversation is not None else None

    @property
    def conversation_key(self) -> int | None:
        """The key of the named conversation, to search only its turns; None searches all."""
        return self.conversation.key if self.conversation is not None else None

    @property
    def named_agent(self) -> str | None:
        """The ``name`` of the last assistant message, if it is an agent of the team."""
        last = self.messages[self.last_assistant] if self.last_assistant >= 0 else None
        name = last.name if isinstance(last, AssistantMessage) else None
        return name if name in self.team.agents else None

    def may_read(self, turn: ChainTurn) -> bool:
        """Whether the end user of the request may read the turn."""
        return may_access(self.request.end_user, turn.end_user)


_Fingerprints = tuple[Transcript, Sequence[tuple[int, bytes]], Sequence[tuple[int, bytes]]]


def _input_ends(messages: Sequence[Message]) -> Sequence[int]:
    """Return the last indexes of messages at which the input of a turn can end, except that of the last message."""
    ends: list[int] = []
    for index in range(len(messages) - 2, -1, -1):
        if isinstance(messages[index], UserMessage | ToolMessage) and isinstance(
            messages[index + 1], UserMessage | AssistantMessage
        ):
            ends.append(index)
            if len(ends) == MAX_INPUTS:
                break
    return ends[::-1]


class RuleMatch(Struct, frozen=True):
    """The starting point that a rule found.

    ``branch`` ends with the parent turn; without it the turn starts the conversation. The first ``shown`` messages of
    the request are part of the branch, ``new`` are the others (by default the rest of the list). ``agent`` is the
    active agent, if it is not that of the last turn of the branch.
    """

    rule: Match
    conversation_id: str | None
    branch: Branch | None = None
    shown: int = 0
    new: Sequence[Message] | None = None
    agent: str | None = None
    is_partly_shown: bool = False
    """Whether the list shows only a part of the last answer of the branch."""
    context: Sequence[Item] | None = None
    """The context, if it is not that of the branch."""
    step: Step | None = None
    """If not None, the last turn of the branch is this part of a turn, which is not stored as a turn yet."""


Search = Coroutine[Any, Any, RuleMatch | None]
"""What a rule returns that reads from the store."""


class UnrelatedMessages(Struct, frozen=True):
    """The messages have nothing in common with the conversation that the request names."""


class TranscriptMatch(Struct, frozen=True):
    """A stored turn that the request contains: its transcript, or only its answer.

    If ``place`` is None, only the agent is certain. ``length`` is the number of messages that the chain of ``place``
    contains.
    """

    agent: str
    place: TurnMatch | None = None
    length: int = 0
    is_last_answer: bool = False
    latest: TurnMatch | None = None
    """The newest turn with the last answer of the list, if the list before it is not that of the turn."""
    branch: Branch | None = None
    """That of ``place``, if it has been read."""


async def find_transcript(
    query: ResolverQuery, conversation: Conversation | None, *, with_branch: bool = True
) -> TranscriptMatch | None:
    """Return the turn with the longest known transcript at the beginning of the messages, or the newest with the last
    answer; with ``conversation``, only its turns are searched. Without ``with_branch``, it has no ``branch``.
    """
    if query.last_assistant < 0:
        return None
    within = conversation.key if conversation else None
    found = await query.turns.find_longest(
        query.boundaries, query.last_answer, conversation=within, with_branch=with_branch
    )
    place, index, latest = found.place, found.index, found.latest
    exact: TranscriptMatch | None = None
    if place is not None:
        exact = (
            TranscriptMatch(place.agent, place, index + 1, branch=found.branch)
            if place.is_unique
            else TranscriptMatch(place.agent)
        )
        if index == query.last_assistant:
            return exact
    trusted = exact.place if exact is not None else None
    if place is not None:
        if conversation is None and trusted is not None:
            within = trusted.conversation
        latest = await _by_last_answer(query, within)
    if latest is None:
        return exact
    if await _is_decision_on(query, latest):
        return TranscriptMatch(latest.agent, latest, query.last_assistant + 1, is_last_answer=True)
    if (conversation is not None or trusted is not None) and await _is_aligned_with(query, latest):
        return TranscriptMatch(latest.agent, latest, query.last_assistant + 1)
    if trusted is None:
        return TranscriptMatch(latest.agent, is_last_answer=True, latest=latest)
    # Older messages were edited but the newest answer was not: the agent that gave it is the active one.
    return TranscriptMatch(latest.agent, trusted, index + 1, latest=latest, branch=found.branch)


async def _by_last_answer(query: ResolverQuery, conversation: int | None) -> TurnMatch | None:
    digest = query.last_answer
    return await query.turns.find_last_answer(digest, conversation=conversation) if digest else None


async def _is_aligned_with(query: ResolverQuery, place: TurnMatch) -> bool:
    """Whether the list is the chain of this turn, although its fingerprint differs (see ``alignment``)."""
    chain = await query.turns.chain(place.turn)
    shown = query.messages[: query.last_assistant + 1]
    return bool(chain) and query.may_read(chain[-1]) and is_aligned(chain, shown)


async def _is_decision_on(query: ResolverQuery, place: TurnMatch) -> bool:
    """Whether the new messages are only a decision on the approvals of this turn, whose question is unique."""
    if not place.is_unique or not (query.request.approval_decisions or plain_decision(query.new_messages)):
        return False
    branch = await query.turns.branch(place.turn)
    return branch is not None and branch.last.is_paused and query.may_read(branch.last)
