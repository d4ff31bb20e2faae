"""Decide approvals over HTTP, and resume the turns that wait for them.

A decision by id is not a chat request. Everything that a request contains besides its messages (instructions, tools,
parameters) is therefore stored with the turn that asks for approval, and the resumed turn uses it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from proxy.approvals.decisions import ApprovalBatch, check_open
from proxy.approvals.repository import Approval, Approvals, ApprovalsMoved, DecisionRecord
from proxy.auth import may_access
from proxy.conversations.fingerprints import scope_of, transcript_after
from proxy.conversations.resolver import ResolvedTurn
from proxy.errors import ApprovalNotFound, ConversationBusy, ProxyError, StoreUnavailable
from proxy.messages import (
    ContextMode,
    DeveloperMessage,
    FunctionTool,
    NamedToolChoice,
    Parameters,
    SystemMessage,
    ToolChoiceMode,
    is_instruction,
)
from proxy.turns.records import TurnRecord
from proxy.turns.repository import TurnRepository
from proxy.turns.request import Clock, TurnRequest
from proxy.turns.structured_output import compile_response_format
from proxy.turns.turn import Turn
from proxy.wire.approvals import ApprovalDecision
from proxy.wire.events.last_event_id import resumed_options

logger = logging.getLogger(__name__)

ATTEMPTS = 10
"""Attempts to apply a decision while concurrent decisions change the approvals of the turn."""

BeginTurn = Callable[[TurnRequest, ResolvedTurn], Awaitable[object]]
"""BeginTurn a turn, unless it waits for further decisions."""
EndUnattended = Callable[[str, str], Awaitable[bool]]
"""Ends the running turn of a conversation, by caller and id, if its client has left; False if there is none."""


class SavedRequestOptions(Struct, frozen=True, omit_defaults=True):
    """The parts of a request besides its messages, stored while a turn waits for approval."""

    overlay: list[SystemMessage | DeveloperMessage] = []
    parameters: Parameters = Parameters()
    client_tools: list[FunctionTool] = []
    tool_choice: ToolChoiceMode | NamedToolChoice | None = None
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    uses_functions: bool = False
    context_mode: ContextMode | None = None
    compact_threshold: int | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SavedRequestOptions).decode


def encode_options_of(turn: Turn, *, uses_functions: bool) -> bytes:
    """Return the options of a turn that asks for approval, as JSON."""
    return _encode(options_of(turn, uses_functions=uses_functions))


def options_of(turn: Turn, *, uses_functions: bool) -> SavedRequestOptions:
    """Return the options of a turn."""
    return SavedRequestOptions(
        overlay=list(turn.overlay),
        parameters=turn.parameters,
        client_tools=list(turn.client_tools),
        tool_choice=turn.tool_choice,
        parallel_tool_calls=turn.parallel_tool_calls,
        max_tool_calls=turn.max_tool_calls,
        uses_functions=uses_functions,
        context_mode=turn.context_mode,
        compact_threshold=turn.compact_threshold,
    )


class ApprovalResumption:
    """Decides approvals and resumes their turns."""

    def __init__(
        self,
        history: TurnRepository,
        approvals: Approvals,
        clock: Clock,
        begin: BeginTurn,
        end_unattended: EndUnattended,
    ) -> None:
        self._history = history
        self._approvals = approvals
        self._clock = clock
        self._begin = begin
        self._end_unattended = end_unattended

    async def decide(self, caller: str, decision: ApprovalDecision, *, end_user: str = "") -> Approval:
        """Store a decision, and resume the turn if it was the last one that was pending. Repetitions have no effect.

        If the resumed turn failed or was interrupted before it had an answer, a repetition starts it again.

        Raises:
            ApprovalNotFound: The caller has no such approval, or it belongs to another end user.
            ApprovalAlreadyDecided, ApprovalExpired: It has another decision, or its conversation has continued.
            ConversationBusy: Another turn of the conversation is running; the decision was not stored.
            ModelNotFound: The team does not exist any more.
        """
        try:
            return await self._decide(caller, decision, end_user)
        except ConversationBusy:
            approval = await self.find(caller, decision.approval_id, end_user=end_user)
            if not await self._end_unattended(caller, approval.conversation_id):
                raise
        return await self._decide(caller, decision, end_user)

    async def _decide(self, caller: str, decision: ApprovalDecision, end_user: str) -> Approval:
        for _ in range(ATTEMPTS):
            approval = await self.find(caller, decision.approval_id, end_user=end_user)
            check_open(approval, is_approved=decision.is_approved)
            if approval.status != "pending" and not await self._must_restart(caller, approval):
                return approval
            decisions = []
            if approval.status == "pending":
                now = round(self._clock(), 3)
                decisions = [DecisionRecord(approval.id, decision.is_approved, "api", now, decision.reason)]
            try:
                await self._resume(caller, approval, decisions)
            except ApprovalsMoved:
                continue
            return await self.find(caller, decision.approval_id, end_user=end_user)
        raise ConversationBusy

    async def find(self, caller: str, approval_id: str, *, end_user: str = "") -> Approval:
        """Return an approval.

        Raises:
            ApprovalNotFound: The caller has no such approval, or it belongs to another end user.
        """
        approval = await self._approvals.find(caller, approval_id)
        if approval is None or not may_access(end_user, approval.end_user):
            raise ApprovalNotFound(approval_id)
        return approval

    async def resume_lost(self) -> None:
        """Start resumed turns again whose worker died. Those that cannot start now are left for the next call."""
        for caller, approval_id in await self._approvals.lost():
            try:
                approval = await self.find(caller, approval_id)
                await self._resume(caller, approval, [])
            except (ApprovalsMoved, ConversationBusy, ApprovalNotFound, StoreUnavailable):
                continue
            except ProxyError as error:
                facts = {"approval_id": approval_id, "code": error.code}
                logger.warning("cannot resume turn after approval", extra=facts)
            except Exception:
                # The heartbeat calls this: one turn must not stop the others.
                logger.exception("failed to resume turn after approval", extra={"approval_id": approval_id})

    async def _must_restart(self, caller: str, approval: Approval) -> bool:
        """Whether the resumed turn ended without a result, and the approval is still the head of its conversation."""
        if approval.resumed_turn_id is None or not approval.is_head:
            return False
        record = await self._history.turn(caller, approval.resumed_turn_id)
        if record is not None and record.status == "running" and record.lease_until < self._clock():
            await self._history.interrupt(now=self._clock())
            record = await self._history.turn(caller, approval.resumed_turn_id)
        return record is not None and record.status != "running" and not record.is_history

    async def _resume(self, caller: str, approval: Approval, decisions: Sequence[DecisionRecord]) -> None:
        record = await self._history.turn(caller, approval.turn_id)
        stored_options = await self._approvals.circumstances(approval.turn)
        branch = await self._history.branch(approval.turn)
        approvals = await self._approvals.of_turn(approval.turn)
        if record is None or stored_options is None or branch is None or not approvals:
            raise ApprovalNotFound(approval.id)
        if approval not in approvals:
            raise ApprovalsMoved
        saved = _decode(stored_options)
        resumption = ApprovalBatch(approvals, self._clock()).without_request(decisions)
        scope = scope_of(caller, record.team, record.end_user)
        resolved = ResolvedTurn(
            conversation_id=record.conversation_id,
            match="same-turn",
            parent=record.turn,
            agent=branch.last.agent,
            context=[item for item in branch.items if not is_instruction(item.message)],
            input=(),
            new_messages=(),
            overlay=saved.overlay,
            transcript=transcript_after(branch, scope),
            scope=scope,
            is_paused=True,
            resumption=resumption,
        )
        request = await request_of(caller, record, saved)
        options = msgspec.Raw(resumed_options(record.options, record.id))
        await self._begin(replace(request, options=options), resolved)


async def request_of(caller: str, record: TurnRecord, saved: SavedRequestOptions) -> TurnRequest:
    """Return the request that resumes a turn, without options for the response."""
    return TurnRequest(
        caller=caller,
        model=record.model,
        messages=(),
        end_user=record.end_user,
        conversation_id=record.conversation_id,
        parameters=saved.parameters,
        response_format=await compile_response_format(saved.parameters.response_format),
        tools=saved.client_tools,
        tool_choice=saved.tool_choice,
        parallel_tool_calls=saved.parallel_tool_calls,
        uses_functions=saved.uses_functions,
        is_listed=record.is_listed,
        metadata=record.metadata,
        on_disconnect="detach",
        in_background=True,
        max_tool_calls=saved.max_tool_calls,
        context_mode=saved.context_mode,
        compact_threshold=saved.compact_threshold,
    )
