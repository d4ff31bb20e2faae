"""Which conversation a request goes on with, from which of its turns, and which agent has the floor there.

The rules, in order: the turn that the client names; the conversation that it names; the ids of tool calls it answers;
the fingerprint of what it shows; the name on its last assistant message; the entry agent. A list that holds assistant
messages is the truth about what was said: the stored tree only adds what a list cannot hold (who has the floor,
transfers, the server's tool results).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from proxy.approvals.decisions import Question, Resumption, resumption, unknown_approval
from proxy.approvals.repository import Approvals
from proxy.approvals.yes_no import plain_decision
from proxy.conversations.fingerprints import Transcript, last_answer_of, newest_known, scope_of, words_of
from proxy.conversations.function_calls import (
    answers,
    as_result_of,
    is_function_result,
    shown_call,
    waiting_call,
)
from proxy.conversations.steps import Step, split_step, step_at
from proxy.conversations.tool_results import answered_in, called_in, check_calls, check_results
from proxy.errors import ConversationBusy, ConversationNotFound, InvalidRequest
from proxy.messages import (
    AssistantMessage,
    DeveloperMessage,
    Item,
    Message,
    SystemMessage,
    ToolCall,
    UserMessage,
    is_instruction,
    text_of,
)
from proxy.turns.contract import Team
from proxy.turns.repository import ChainTurn, Conversation, History, Place, TurnRecord
from proxy.turns.request import ROOT, Ask, Clock, Match
from proxy.wire.chat.message_validation import misplaced_result
from proxy.wire.responses.ids import response_id

FIRST, FURTHER = 8, 512
"""Boundaries of a list that are looked up at first, from the end; and at once, when none of those is known."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """Where a turn begins.

    ``context`` is what the agents know before ``input``, the new part of what the client said, and holds no
    instructions; those that the client wants to stay are in ``input``. ``conversation_id`` is None for a new
    conversation. ``transcript`` stands behind the input, ready for the answer.
    """

    conversation_id: str | None
    match: Match
    parent: int | None
    agent: str
    context: Sequence[Item]
    input: Sequence[Item]
    overlay: Sequence[SystemMessage | DeveloperMessage]
    transcript: Transcript
    scope: bytes
    is_paused: bool = False
    """The turn before asks for approval."""
    is_kept: bool = True
    """All that the agents know before the input is in the store."""
    resumption: Resumption | None = None
    step: Step | None = None
    """The turn follows this part of a turn, which has to be stored first; ``parent`` is the turn before that one."""

    @property
    def said(self) -> Sequence[Item]:
        """The input without instructions."""
        return [item for item in self.input if not is_instruction(item.message)]


@dataclass(frozen=True, slots=True)
class NotOfConversation:
    """The list has nothing to do with the conversation that it names."""


@dataclass(frozen=True, slots=True)
class _Found:
    """A point in stored history: a turn whose items are used, or only an agent."""

    agent: str | None
    place: Place | None = None
    upto: int = 0
    """So many messages of the list are held by the place's chain."""
    is_last_answer: bool = False


class Recall:
    """Reads the history to answer these questions; writes nothing."""

    def __init__(self, history: History, approvals: Approvals, clock: Clock) -> None:
        self._history = history
        self._approvals = approvals
        self._clock = clock

    async def recall(self, ask: Ask, team: Team) -> Recalled | NotOfConversation:
        """Return where the asked turn begins.

        Raises:
            ConversationNotFound: The id names a conversation of another end user, or none where one has to be.
            ConversationBusy: The turn to go on from is still under way.
            InvalidRequest: Tool results that nobody waits for, or not all that are waited for; no such turn to go on
                from; or decisions about something that the turn before does not ask.
        """
        recalled = await self._place(ask, team)
        if isinstance(recalled, Recalled) and recalled.is_paused and recalled.parent is not None:
            approvals = await self._approvals.of_turn(recalled.parent)
            said = [item.message for item in recalled.said]
            found = resumption(Question(approvals, round(self._clock(), 3)), said, ask.verdicts)
            return replace(recalled, resumption=found)
        if ask.verdicts:
            raise unknown_approval(ask.verdicts[0].approval_id)
        return recalled

    async def _place(self, ask: Ask, team: Team) -> Recalled | NotOfConversation:
        overlay = [message for message in ask.messages if is_instruction(message)]
        said = [message for message in ask.messages if not is_instruction(message)]
        reader = _Reading(self._history, ask, team, overlay, said)
        if ask.parent == ROOT:
            return await reader.from_root()
        if ask.parent is not None:
            return await reader.by_parent(ask.parent)
        if ask.conversation_id is not None:
            return await reader.by_id(ask.conversation_id)
        return await reader.by_list()


class _Reading:
    """One request being looked up."""

    def __init__(
        self,
        history: History,
        ask: Ask,
        team: Team,
        overlay: Sequence[SystemMessage | DeveloperMessage],
        said: Sequence[Message],
    ) -> None:
        self._history = history
        self._ask = ask
        self._team = team
        self._overlay = overlay
        self._said = said
        self._scope = scope_of(ask.caller, team.name, ask.end_user)
        behind = range(len(said) - 1, -1, -1)
        self._last = next((at for at in behind if isinstance(said[at], AssistantMessage)), -1)
        self._transcript: Transcript | None = None
        """All of the list, once it was gone through."""

    # --- the client named a turn ---

    async def by_parent(self, parent: str) -> Recalled:
        turn_id, position = split_step(parent)
        record = await self._history.turn(self._ask.caller, turn_id)
        if record is None or not record.is_stored or self._is_of_another(record):
            raise self._no_parent(turn_id)
        if record.status == "running":
            raise ConversationBusy
        step = step_at(record, position) if position is not None else None
        if position is not None and step is None:
            raise self._no_parent(parent)
        if step is not None and not (record.is_history and len(step.items) == len(record.items)):
            return await self._behind_step(step)
        chain = await self._history.chain(record.turn) if record.is_history else ()
        if not chain or not self._may_read(chain[-1]):
            raise self._no_parent(turn_id)
        answered, pending = answered_in(self._said), chain[-1].pending
        self._check_calls(answered, {*pending, *called_in(self._said)})
        check_results(pending, answered, self._ask.list_name)
        match: Match = "parent-id" if self._ask.parent_name == "X-Parent-Id" else "previous-response"
        return self._go_on(record.conversation_id, match, chain, self._said, shown=())

    async def _behind_step(self, step: Step) -> Recalled:
        record = step.record
        chain = await self._history.chain(record.parent) if record.parent is not None else []
        self._check_calls(answered_in(self._said), called_in(self._said))
        transcript = transcript_behind(chain, self._scope)
        transcript.extend(item.message for item in record.input)
        fingerprint = transcript.answer(step.text) if step.text else None
        shown = ChainTurn(
            turn=record.turn,
            agent=step.agent,
            is_stored=True,
            items=[*record.input, *step.items],
            pending=(),
            conversation_id=record.conversation_id,
            end_user=record.end_user,
            fingerprint=fingerprint,
        )
        if not self._may_read(shown):
            raise self._no_parent(record.id)
        match: Match = "parent-id" if self._ask.parent_name == "X-Parent-Id" else "previous-response"
        found = self._go_on(record.conversation_id, match, [*chain, shown], self._said, shown=())
        return replace(found, parent=record.parent, step=replace(step, fingerprint=fingerprint))

    async def from_root(self) -> Recalled:
        conversation_id = self._ask.conversation_id
        if conversation_id is not None:
            known = await self._history.find_conversation(self._ask.caller, conversation_id)
            self._refuse_anothers(known, conversation_id)
        return self._begin(conversation_id, "parent-id", None)

    def _is_of_another(self, record: TurnRecord) -> bool:
        return self._ask.conversation_id not in (None, record.conversation_id)

    def _no_parent(self, turn_id: str) -> InvalidRequest:
        if self._ask.parent_name == "X-Parent-Id":
            return InvalidRequest(
                f"Invalid 'X-Parent-Id': no turn '{turn_id[:64]}' to go on from.",
                param="X-Parent-Id",
                code="invalid_value",
            )
        return InvalidRequest(
            f"Previous response with id '{response_id(turn_id)[:128]}' not found.",
            param="previous_response_id",
            code="previous_response_not_found",
        )

    def _refuse_anothers(self, known: Conversation | None, conversation_id: str) -> None:
        if known is not None and known.end_user and self._ask.end_user not in ("", known.end_user):
            raise ConversationNotFound(conversation_id)

    # --- the client named a conversation ---

    async def by_id(self, conversation_id: str) -> Recalled | NotOfConversation:
        match: Match = self._ask.id_source
        known = await self._history.find_conversation(self._ask.caller, conversation_id)
        self._refuse_anothers(known, conversation_id)
        if known is None and self._ask.must_exist:
            raise ConversationNotFound(conversation_id)
        resumed = await self._by_results(conversation_id, known)
        if resumed is not None:
            return resumed
        if known is None or known.head is None:
            return self._begin(conversation_id, match, await self._agent_of_list())
        if self._ask.is_addition:
            chain = await self._history.chain(known.head)
            return self._go_on(conversation_id, match, chain, self._said, shown=())
        if self._last >= 0:
            return await self._aligned(conversation_id, known)
        chain = await self._history.chain(known.head)
        if self._ask.id_source == "frontend-header" or self._is_first_again(chain[0]):
            return self._begin(conversation_id, match, None)
        return self._go_on(conversation_id, match, chain, self._said, shown=())

    async def _agent_of_list(self) -> str | None:
        """Return who answers a list that comes under an id of which nothing is known: who had the floor, if it is
        known from before the client named it.
        """
        found = await self._find(None) if self._last >= 0 else None
        return found.agent if found is not None else self._named_agent()

    def _is_first_again(self, first: ChainTurn) -> bool:
        """Whether the list is, word for word, what the conversation began with: its first answer is wanted anew."""
        began = [
            item.message for item in first.items if item.agent is None and not is_instruction(item.message)
        ]
        return bool(began) and [_words(m) for m in began] == [_words(m) for m in self._said]

    async def _aligned(self, conversation_id: str, known: Conversation) -> Recalled | NotOfConversation:
        found = await self._find(known)
        if found is not None and found.place is not None:
            return await self._from(found, conversation_id, self._ask.id_source)
        if found is not None:
            return self._begin(conversation_id, self._ask.id_source, found.agent)
        assert known.head is not None
        is_known, agent = _agent_by_user_words(await self._history.chain(known.head), self._said)
        if not is_known:
            return NotOfConversation()
        return self._begin(conversation_id, self._ask.id_source, agent)

    # --- the client sent only its list ---

    async def by_list(self) -> Recalled:
        resumed = await self._by_results(None, None)
        if resumed is not None:
            return resumed
        found = await self._find(None) if self._last >= 0 else None
        if found is not None:
            match: Match = "last-answer" if found.is_last_answer else "fingerprint"
            if found.place is not None:
                return await self._from(found, found.place.conversation_id, match)
            return self._begin(None, match, found.agent)
        named = self._named_agent()
        return self._begin(None, "agent-name" if named else "entry", named)

    # --- calls of the caller's tools at the end, and their results ---

    async def _by_results(self, conversation_id: str | None, known: Conversation | None) -> Recalled | None:
        fresh = self._said[self._last + 1 :]
        if any(is_function_result(message) for message in fresh):
            return await self._by_function_call(conversation_id, known, fresh)
        answered = answered_in(fresh)
        if answered:
            return await self._by_tool_calls(conversation_id, known, fresh, answered)
        return await self._by_open_calls(conversation_id, known, fresh)

    async def _by_function_call(
        self, conversation_id: str | None, known: Conversation | None, fresh: Sequence[Message]
    ) -> Recalled | None:
        """Resume the turn that made the call which the list shows, or else the conversation's last."""
        results = [message for message in fresh if is_function_result(message)]
        call = shown_call(self._said[self._last]) if self._last >= 0 else None
        place = await self._place_of_call(call, known) if call is not None else None
        if place is not None and self._trusted(place, self._last, known).place is None:
            return self._begin(conversation_id, "last-answer", place.agent)
        turn = place.turn if place is not None else known.head if known is not None else None
        chain = await self._history.chain(turn) if turn is not None else []
        waiting = waiting_call(chain[-1]) if chain and self._may_read(chain[-1]) else None
        if waiting is not None and len(results) == 1 and answers(results[0], waiting, call):
            fresh = [as_result_of(waiting, message) for message in fresh]
            return self._resumed(conversation_id, chain, fresh)
        if call is None:
            raise misplaced_result(self._ask.messages.index(results[0]), "function")
        # Of a turn that kept no content the agent is known; else the list is from elsewhere and answers its own call.
        return self._resumed(conversation_id, chain, fresh) if place is not None else None

    async def _place_of_call(self, call: ToolCall, known: Conversation | None) -> Place | None:
        transcript = Transcript(self._scope)
        transcript.extend(self._said[: self._last])
        mark = transcript.call(call.function)
        return await self._history.find_last_answer(mark, conversation=known.key if known else None)

    def _resumed(
        self, conversation_id: str | None, chain: Sequence[ChainTurn], fresh: Sequence[Message]
    ) -> Recalled:
        """Go on with a turn that waits for results."""
        shown = self._said[: self._last + 1]
        if not shown and not chain[-1].is_stored:
            raise InvalidRequest(
                "Nothing was kept of the calls that these are the results of: send the whole list of messages.",
                param=self._ask.list_name,
            )
        return self._go_on(
            conversation_id or chain[-1].conversation_id, "tool-calls", chain, fresh, shown=shown
        )

    async def _by_tool_calls(
        self,
        conversation_id: str | None,
        known: Conversation | None,
        fresh: Sequence[Message],
        answered: Sequence[str],
    ) -> Recalled | None:
        chain = await self._chain_of_calls(answered, known)
        if not chain:
            # A list from elsewhere may answer calls that it holds itself; any other id is a mistake.
            own = called_in(self._said[self._last :]) if self._last >= 0 else set()
            self._check_calls(answered, own)
            return None
        self._check_calls(answered, chain[-1].pending)
        check_results(chain[-1].pending, answered, self._ask.list_name)
        return self._resumed(conversation_id, chain, fresh)

    async def _by_open_calls(
        self, conversation_id: str | None, known: Conversation | None, fresh: Sequence[Message]
    ) -> Recalled | None:
        """Go on behind the turn whose calls the list shows last and does not answer; they count as not executed."""
        if self._last < 0 or self._adds:
            return None
        shown = called_in(self._said[self._last : self._last + 1])
        chain = await self._chain_of_calls(sorted(shown), known) if shown else ()
        return self._resumed(conversation_id, chain, fresh) if chain else None

    async def _chain_of_calls(
        self, call_ids: Sequence[str], known: Conversation | None
    ) -> Sequence[ChainTurn]:
        """Return the chain of the newest turn that is or was waiting for one of the calls, if the asker may read it."""
        found = await self._history.find_pending(
            self._ask.caller, call_ids, conversation=known.key if known else None
        )
        waiting = dict(reversed(found))
        chain = await self._history.chain(max(waiting.values())) if waiting else ()
        return chain if chain and self._may_read(chain[-1]) else ()

    def _check_calls(self, answered: Sequence[str], known: Collection[str]) -> None:
        check_calls(answered, known, self._ask.messages, self._ask.list_name)

    def _may_read(self, turn: ChainTurn) -> bool:
        return self._ask.end_user in ("", turn.end_user) or not turn.end_user

    # --- looking up what the list shows ---

    async def _find(self, known: Conversation | None) -> _Found | None:
        place, at = await self._longest(self._boundaries(), known)
        exact = self._trusted(place, at, known) if place is not None else None
        if exact is not None and at == self._last:
            return exact
        trusted = exact.place if exact is not None else None
        latest = await self._by_last_answer(known.key if known else trusted.conversation if trusted else None)
        if latest is None:
            return exact
        if await self._decides(latest):
            return _Found(latest.agent, latest, self._last + 1, is_last_answer=True)
        if trusted is None:
            return _Found(latest.agent, is_last_answer=True)
        # Older words were rewritten, the newest answer was not: who gave that one has the floor.
        return _Found(latest.agent, trusted, at + 1)

    async def _decides(self, asked: Place) -> bool:
        """Whether the list answers a question for approval, whose words no other has, with a decision and no more."""
        fresh = self._said[self._last + 1 :]
        if not asked.is_unique or not (self._ask.verdicts or plain_decision(fresh)):
            return False
        chain = await self._history.chain(asked.turn)
        return bool(chain) and chain[-1].is_paused and self._may_read(chain[-1])

    def _trusted(self, place: Place, at: int, known: Conversation | None) -> _Found:
        """Of several turns that look alike only the head of the named conversation is surely the one meant."""
        if place.is_unique or (known is not None and place.turn == known.head):
            return _Found(place.agent, place, at + 1)
        return _Found(place.agent)

    def _boundaries(self) -> list[tuple[int, bytes]]:
        transcript = self._transcript = Transcript(self._scope)
        return [
            (index, fingerprint)
            for index, message in enumerate(self._said)
            if (fingerprint := transcript.add(message)) is not None
        ]

    async def _longest(
        self, boundaries: Sequence[tuple[int, bytes]], known: Conversation | None
    ) -> tuple[Place | None, int]:
        end, size = len(boundaries), FIRST
        while end > 0:
            chunk = boundaries[max(0, end - size) : end]
            places = await self._history.find_places(
                [fingerprint for _, fingerprint in chunk], conversation=known.key if known else None
            )
            by_fingerprint = {place.fingerprint: place for place in places}
            for index, fingerprint in reversed(chunk):
                if fingerprint in by_fingerprint:
                    return by_fingerprint[fingerprint], index
            end, size = end - size, FURTHER
        return None, -1

    def _mark(self) -> bytes | None:
        return last_answer_of(self._scope, text_of(self._said[self._last]))

    async def _by_last_answer(self, conversation: int | None) -> Place | None:
        mark = self._mark()
        return await self._history.find_last_answer(mark, conversation=conversation) if mark else None

    def _named_agent(self) -> str | None:
        last = self._said[self._last] if self._last >= 0 else None
        name = last.name if isinstance(last, AssistantMessage) else None
        return name if name in self._team.agents else None

    # --- putting it together ---

    async def _from(self, found: _Found, conversation_id: str, match: Match) -> Recalled:
        assert found.place is not None
        chain = await self._history.chain(found.place.turn)
        return self._go_on(
            conversation_id,
            match,
            chain,
            self._said[found.upto :],
            shown=self._said[: found.upto],
            agent=found.agent,
        )

    def _go_on(
        self,
        conversation_id: str,
        match: Match,
        chain: Sequence[ChainTurn],
        fresh: Sequence[Message],
        *,
        shown: Sequence[Message],
        agent: str | None = None,
    ) -> Recalled:
        """Begin behind the last turn of a chain; ``shown`` is what the client showed of it."""
        last = chain[-1]
        if shown and not all(turn.is_stored for turn in chain):
            context = [Item(message) for message in shown]
        else:
            context = [item for turn in chain for item in turn.items if not is_instruction(item.message)]
        transcript = transcript_behind(chain, self._scope)
        transcript.extend(fresh)
        return self._recalled(
            conversation_id, match, last.turn, agent or last.agent, context, fresh, transcript, chain
        )

    def _begin(self, conversation_id: str | None, match: Match, agent: str | None) -> Recalled:
        """Begin at the root, with all of the list as input."""
        transcript = self._transcript
        if transcript is None:
            transcript = Transcript(self._scope)
            transcript.extend(self._said)
        return self._recalled(conversation_id, match, None, agent, [], self._said, transcript)

    def _recalled(
        self,
        conversation_id: str | None,
        match: Match,
        parent: int | None,
        agent: str | None,
        context: Sequence[Item],
        fresh: Sequence[Message],
        transcript: Transcript,
        chain: Sequence[ChainTurn] = (),
    ) -> Recalled:
        kept = [message for turn in chain for item in turn.items if is_instruction(message := item.message)]
        new = [message for message in self._overlay if message not in kept]
        # A list that shows what was said shows its instructions too.
        told = self._overlay if self._last >= 0 and not self._adds else [*kept, *new]
        own = self._ask.instructions
        return Recalled(
            conversation_id=conversation_id,
            match=match,
            parent=parent,
            agent=agent if agent is not None and agent in self._team.agents else self._team.entry,
            context=context,
            input=self._input(fresh, new if self._ask.keeps_instructions else ()),
            overlay=[*([SystemMessage(content=own)] if own else ()), *told],
            transcript=transcript,
            scope=self._scope,
            is_paused=bool(chain) and chain[-1].is_paused,
            is_kept=all(turn.is_stored for turn in chain),
        )

    def _input(self, fresh: Sequence[Message], instructions: Sequence[Message]) -> list[Item]:
        """What is kept of the list, in its order."""
        if not instructions:
            return [Item(message) for message in fresh]
        kept = {id(message) for message in (*fresh, *instructions)}
        return [Item(message) for message in self._ask.messages if id(message) in kept]

    @property
    def _adds(self) -> bool:
        return self._ask.is_addition or self._ask.parent is not None


def _words(message: Message) -> tuple[str, bytes]:
    return type(message).__name__, words_of(text_of(message))


def transcript_behind(chain: Sequence[ChainTurn], scope: bytes) -> Transcript:
    """Return the transcript as it stands behind a chain, from the newest fingerprint on."""
    known = newest_known(chain)
    start = chain[known].fingerprint if known >= 0 else None
    transcript = Transcript(start or scope)
    for turn in chain[known + 1 :]:
        transcript.extend(item.message for item in turn.items if item.agent is None)
    return transcript


def _agent_by_user_words(chain: Sequence[ChainTurn], said: Sequence[Message]) -> tuple[bool, str | None]:
    """Return whether the list begins as the chain does, and who had the floor behind the last turn they share.

    Only the user's words are compared: this finds the point where a client changed or dropped an answer. The last
    user message of the list is the one to be answered now; it is behind no turn.
    """
    shown = [words_of(text_of(m)) for m in said if isinstance(m, UserMessage)]
    agent: str | None = None
    at = 0
    for turn in chain:
        asked = [
            words_of(text_of(item.message))
            for item in turn.items
            if item.agent is None and isinstance(item.message, UserMessage)
        ]
        if shown[at : at + len(asked)] != asked:
            break
        at += len(asked)
        if at >= len(shown):
            break
        agent = turn.agent
    return at > 0, agent
