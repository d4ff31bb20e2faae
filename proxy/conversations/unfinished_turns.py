"""Turns that were stopped, lost or failed after their tools ran: they are history as far as they came.

A client shows a beginning of such an answer, or nothing of it, so no fingerprint matches. These turns are found by
their input (``Transcript.input_fingerprint``), and the shown text has to be a beginning of the stored text. The same
holds for a completed turn whose client left before its end.

A repetition of the request of such a turn continues behind its last tool result, so that no tool runs again.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from proxy.conversations.fingerprints import Transcript, hashed_answer, user_text
from proxy.conversations.resolver_query import ResolverQuery, RuleMatch
from proxy.conversations.steps import Step, finished_part
from proxy.conversations.visible_messages import visible_messages
from proxy.messages import AssistantMessage, is_instruction, text_of
from proxy.turns.records import Branch, ChainTurn, InputMatch, TurnRecord, is_unattended

MIN_BEGINNING = 4
"""Bytes of an unfinished answer, without white space, that a client has to show if it shows any."""
REPEAT_SECONDS = 600.0
"""Age up to which a turn that began a conversation without an id is repeated by a request with the same body."""


class RunningMatch(Struct, frozen=True):
    """The request follows or repeats a running turn. Its client has left, or the server has not noticed that yet."""

    turn_id: str


class Repetition(Struct, frozen=True):
    """The request repeats that of an earlier turn.

    With ``step``, the new turn continues behind it. Without, the earlier turn is complete, and its answer was not read.
    If neither its content nor its answer is stored, ``first_attempt`` is the id whose call keys the new turn uses.
    """

    turn_id: str
    step: Step | None = None
    first_attempt: str | None = None


async def find_partly_shown(query: ResolverQuery, *, after: int) -> RuleMatch | RunningMatch | None:
    """Return the newest turn whose input is in the list with a beginning of its answer, or none of it, behind it.

    The first ``after`` messages belong to a known turn. Messages have to follow the input.
    """
    positions = [place for place in query.inputs if place[0] >= after]
    if not positions:
        return None
    found = await query.turns.find_by_input(
        [fingerprint for _, fingerprint in positions], conversation=query.conversation_key
    )
    for index, fingerprint in reversed(positions):
        at_position = [match for match in found if match.input_fingerprint == fingerprint]
        match = await _matching(query, index, at_position)
        if match is not None:
            return match
    return None


def may_repeat(query: ResolverQuery, conversation_id: str | None) -> bool:
    """Whether the request can repeat that of an earlier turn of the conversation (None: a new one)."""
    team = query.team
    return bool(query.new_messages) and (team.has_effects if conversation_id is None else team.has_tools)


async def find_repetition(
    query: ResolverQuery, parent: ChainTurn | None, transcript: Transcript, conversation_id: str | None
) -> Repetition | RunningMatch | None:
    """Return the turn whose request this one repeats; the other arguments are of the new turn.

    Only for a request that ``may_repeat``.

    A client that sends only new messages repeats the input of the newest turn.
    """
    if parent is not None and _repeats(parent, query):
        record = await query.turns.turn(query.request.caller, parent.id)
        if not parent.is_complete:
            return _continuation(record)
        if record is not None and _is_unread(record) and _has_same_body(query, record):
            return Repetition(record.id)
    if parent is not None and parent.is_head and query.request.is_stored:
        # An unfinished turn behind the head would be the head itself. This saves most conversations a query.
        return None
    found = await query.turns.find_by_input([transcript.input_fingerprint()])
    if conversation_id is not None:
        found = [match for match in found if match.conversation_id == conversation_id]
    else:
        found = [match for match in found if _is_same_request(query, match)]
    if not found:
        return None
    match = found[0]
    if match.status == "running":
        if query.skips_running:
            return None
        # In a conversation, a running turn with a client is a conflict, which the store detects.
        is_left = is_unattended(match.cancel_at, match.reader_until, query.now)
        return RunningMatch(match.id) if is_left or conversation_id is None else None
    if match.status == "completed":
        if not _is_unread(match):
            return None
        if _has_same_body(query, match):
            return Repetition(match.id)
    return _continuation(await query.turns.turn(query.request.caller, match.id))


def _continuation(record: TurnRecord | None) -> Repetition | None:
    if record is None:
        return None
    if not record.is_stored:
        first_attempt = record.first_attempt or record.id
        return Repetition(record.id, first_attempt=first_attempt) if record.ran_effects else None
    step = finished_part(record) if record.is_history else None
    return Repetition(record.id, step) if step is not None else None


async def _matching(
    query: ResolverQuery, index: int, found: Sequence[InputMatch]
) -> RuleMatch | RunningMatch | None:
    """Return the newest of the turns that fits what the list shows behind its input; None also if it is not certain."""
    following = query.messages[index + 1]
    shown = b""
    if isinstance(following, AssistantMessage):
        if following.tool_calls or following.function_call:
            return None
        shown = hashed_answer(text_of(following))
    fitting: list[tuple[InputMatch, Branch]] = []
    for match in found:
        if match.status == "running":
            if not query.skips_running:
                return RunningMatch(match.id)
            continue
        if not match.is_history or (match.status == "completed" and match.left_at is None and not shown):
            continue
        branch = await query.turns.branch(match.turn)
        if branch is not None and query.may_read(branch.last) and _is_beginning(shown, branch.last, match):
            fitting.append((match, branch))
    if not fitting or len({match.conversation for match, _ in fitting}) > 1:
        return None
    match, branch = fitting[0]
    request = query.request
    length = index + 2 if isinstance(following, AssistantMessage) else index + 1
    rule = "fingerprint" if request.conversation_id is None else request.id_source
    conversation_id = request.conversation_id or match.conversation_id
    return RuleMatch(rule, conversation_id, branch, length, is_partly_shown=True)


def _is_beginning(shown: bytes, turn: ChainTurn, match: InputMatch) -> bool:
    """Whether the shown text is a beginning of the stored answer.

    Of an unfinished turn, a client may have more, and may add a remark that it was stopped.
    """
    answers = [m for m in visible_messages([turn]) if isinstance(m, AssistantMessage)]
    stored = hashed_answer("".join(text_of(message) for message in answers))
    if match.status == "completed":
        return stored.startswith(shown)
    return stored[:MIN_BEGINNING].startswith(shown[: min(MIN_BEGINNING, len(stored))])


def _repeats(turn: ChainTurn, query: ResolverQuery) -> bool:
    """Whether the request has only new messages, and they are those of this turn."""
    if query.last_assistant >= 0 and not query.request.is_addition:
        return False
    stored = [item.message for item in turn.items if item.agent is None]
    wanted = [(type(m), user_text(text_of(m))) for m in stored if not is_instruction(m)]
    return bool(wanted) and wanted == [(type(m), user_text(text_of(m))) for m in query.messages]


def _is_unread(turn: InputMatch | TurnRecord) -> bool:
    """Whether no client got the answer of a completed turn that ran a tool with effects."""
    return turn.left_at is not None and turn.ran_effects


def _has_same_body(query: ResolverQuery, match: InputMatch | TurnRecord) -> bool:
    digest = query.request.body_digest
    return digest is not None and match.body_digest == digest


def _is_same_request(query: ResolverQuery, match: InputMatch) -> bool:
    """Whether a request that begins a conversation repeats the beginning of another one.

    Different people can begin with the same words, so only a turn that ran a tool with effects is repeated, or one
    that continues without a client and can run one.
    """
    is_detached = (
        match.status == "running"
        and match.left_at is not None
        and match.cancel_at is None
        and (match.reader_until is None or match.reader_until < query.now)
    )
    return (
        (match.ran_effects or is_detached)
        and match.parent is None
        and _has_same_body(query, match)
        and query.now - match.created_at <= REPEAT_SECONDS
    )
