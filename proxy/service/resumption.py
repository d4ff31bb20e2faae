"""Goes on with turns that asked for approval, when it is decided by the approval's id: nobody sends a request then.

So all that a request says beside its messages is kept with the turn that asked: the client's instructions, its tools
and its wishes. The turn that goes on answers as if the client had asked it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec import Struct

from proxy.approvals.decisions import ApprovalBatch, check_open
from proxy.approvals.repository import Approval, Approvals, ApprovalsMoved, DecisionRecord
from proxy.auth import may_access
from proxy.conversations.fingerprints import scope_of, transcript_after
from proxy.conversations.resolver import ResolvedTurn
from proxy.errors import ApprovalNotFound, ConversationBusy, ProxyError, StoreUnavailable
from proxy.messages import (
    DeveloperMessage,
    FunctionTool,
    Item,
    NamedToolChoice,
    Parameters,
    SystemMessage,
    ToolChoiceMode,
    is_instruction,
)
from proxy.turns.contract import Turn
from proxy.turns.repository import ChainTurn, TurnRecord, TurnRepository
from proxy.turns.request import Clock, TurnRequest
from proxy.turns.structured_output import compile_response_format
from proxy.wire.approvals import ApprovalDecision
from proxy.wire.events.last_event_id import resumed_options

logger = logging.getLogger(__name__)

ATTEMPTS = 10
"""How often a decision is tried anew when others decided meanwhile."""

Begins = Callable[[TurnRequest, ResolvedTurn], Awaitable[object]]
"""Begins a turn, unless it awaits further decisions."""


class SavedRequestOptions(Struct, frozen=True, omit_defaults=True):
    """What a turn is run with besides what was said."""

    overlay: list[SystemMessage | DeveloperMessage] = []
    parameters: Parameters = Parameters()
    client_tools: list[FunctionTool] = []
    tool_choice: ToolChoiceMode | NamedToolChoice | None = None
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    uses_functions: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SavedRequestOptions).decode


def circumstances_of(turn: Turn, *, uses_functions: bool) -> bytes:
    """Return what is kept of a turn that asks for approval."""
    return _encode(
        SavedRequestOptions(
            overlay=list(turn.overlay),
            parameters=turn.parameters,
            client_tools=list(turn.client_tools),
            tool_choice=turn.tool_choice,
            parallel_tool_calls=turn.parallel_tool_calls,
            max_tool_calls=turn.max_tool_calls,
            uses_functions=uses_functions,
        )
    )


class ApprovalResumption:
    """Decides approvals and begins the turns that follow."""

    def __init__(self, history: TurnRepository, approvals: Approvals, clock: Clock, begin: Begins) -> None:
        self._history = history
        self._approvals = approvals
        self._clock = clock
        self._begin = begin

    async def decide(self, caller: str, decision: ApprovalDecision, *, end_user: str = "") -> Approval:
        """Decide; when nothing else is open, a turn begins. Deciding the same again changes nothing.

        A turn that failed, or died, before it had an answer is begun again then.

        Raises:
            ApprovalNotFound: The caller has no such approval, or it is another end user's.
            ApprovalAlreadyDecided, ApprovalExpired: It has another decision, or its conversation has continued.
            ConversationBusy: Another turn of the conversation is under way; nothing was decided.
            ModelNotFound: Its team is no longer served.
        """
        for _ in range(ATTEMPTS):
            approval = await self.find(caller, decision.approval_id, end_user=end_user)
            check_open(approval, is_approved=decision.is_approved)
            if approval.status != "pending" and not await self._is_to_begin_again(caller, approval):
                return approval
            decisions = []
            if approval.status == "pending":
                now = round(self._clock(), 3)
                decisions = [DecisionRecord(approval.id, decision.is_approved, "api", now, decision.reason)]
            try:
                await self._go_on(caller, approval, decisions)
            except ApprovalsMoved:
                continue
            return await self.find(caller, decision.approval_id, end_user=end_user)
        raise ConversationBusy

    async def find(self, caller: str, approval_id: str, *, end_user: str = "") -> Approval:
        """Return an approval.

        Raises:
            ApprovalNotFound: The caller has no such approval, or it is another end user's.
        """
        approval = await self._approvals.find(caller, approval_id)
        if approval is None or not may_access(end_user, approval.end_user):
            raise ApprovalNotFound(approval_id)
        return approval

    async def take_up_lost(self) -> None:
        """Begin turns again whose worker died; who is not at hand now is left for the next time."""
        for caller, approval_id in await self._approvals.lost():
            try:
                approval = await self.find(caller, approval_id)
                await self._go_on(caller, approval, [])
            except (ApprovalsMoved, ConversationBusy, ApprovalNotFound, StoreUnavailable):
                continue
            except ProxyError as error:
                facts = {"approval_id": approval_id, "code": error.code}
                logger.warning("a turn that waited for approval cannot go on", extra=facts)
            except Exception:
                # Nobody waits for it, and whoever called this has other turns to look after.
                logger.exception("a turn could not be begun again", extra={"approval_id": approval_id})

    async def _is_to_begin_again(self, caller: str, approval: Approval) -> bool:
        """Whether the turn that took the decision up came to nothing, and the conversation is still there."""
        if approval.resumed_turn_id is None or not approval.is_head:
            return False
        record = await self._history.turn(caller, approval.resumed_turn_id)
        if record is not None and record.status == "running" and record.lease_until < self._clock():
            await self._history.interrupt(now=self._clock())
            record = await self._history.turn(caller, approval.resumed_turn_id)
        return record is not None and record.status != "running" and not record.is_history

    async def _go_on(self, caller: str, approval: Approval, decisions: Sequence[DecisionRecord]) -> None:
        record = await self._history.turn(caller, approval.turn_id)
        circumstances = await self._approvals.circumstances(approval.turn)
        chain = await self._history.chain(approval.turn)
        approvals = await self._approvals.of_turn(approval.turn)
        if record is None or circumstances is None or not chain or not approvals:
            raise ApprovalNotFound(approval.id)
        if approval not in approvals:
            raise ApprovalsMoved
        given = _decode(circumstances)
        resumption = ApprovalBatch(approvals, self._clock()).without_request(decisions)
        scope = scope_of(caller, record.team, record.end_user)
        recalled = ResolvedTurn(
            conversation_id=record.conversation_id,
            match="same-turn",
            parent=record.turn,
            agent=chain[-1].agent,
            context=_said(chain),
            input=(),
            new_messages=(),
            overlay=given.overlay,
            transcript=transcript_after(chain, scope),
            scope=scope,
            is_paused=True,
            resumption=resumption,
        )
        await self._begin(_ask(caller, record, given), recalled)


def _said(chain: Sequence[ChainTurn]) -> list[Item]:
    return [item for turn in chain for item in turn.items if not is_instruction(item.message)]


def _ask(caller: str, record: TurnRecord, given: SavedRequestOptions) -> TurnRequest:
    """Return what the client would ask, if it asked."""
    return TurnRequest(
        caller=caller,
        model=record.model,
        messages=(),
        end_user=record.end_user,
        conversation_id=record.conversation_id,
        parameters=given.parameters,
        response_format=compile_response_format(given.parameters.response_format),
        tools=given.client_tools,
        tool_choice=given.tool_choice,
        parallel_tool_calls=given.parallel_tool_calls,
        uses_functions=given.uses_functions,
        is_listed=record.is_listed,
        metadata=record.metadata,
        options=msgspec.Raw(resumed_options(record.options, record.id)),
        on_disconnect="detach",
        in_background=True,
        max_tool_calls=given.max_tool_calls,
    )
