"""Run one agent in a turn: call the model, execute tool calls, return an ``AgentOutcome``.

The loop is stateless; all state is in ``TurnState``. Rules for a reply with several calls:

- Every call gets exactly one result, under an id that the proxy generated.
- Server tools run first, in parallel.
- A call of a client tool ends the turn; the client sends the result with its next request.
- A call that needs approval ends the turn with a question, unless client tools are pending.
- One handoff takes effect, and none while client tools or approvals are pending.
- A call of an unknown tool, or with arguments that are not JSON, gets an error that the model can correct.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from msgspec import Struct

from proxy.agents.agent import Agent
from proxy.agents.approval_question import WAITING, request_approvals, without_question
from proxy.agents.call import Call, resumed_call, wire_call
from proxy.agents.compaction.context_view import cut_of, view_of
from proxy.agents.compaction.history import history_of
from proxy.agents.delegation import REPEAT_LATER
from proxy.agents.model_reply import ModelReply, call_model
from proxy.agents.model_request import call_size, visible_client_tools
from proxy.agents.prompt import assistant_message
from proxy.agents.spans import record_handoff
from proxy.agents.tool_calls import ServerCalls, append_tool_result, unknown_tool
from proxy.agents.turn_state import DelegatePause, TurnState
from proxy.errors import ResponseFormatNotMet, ToolError
from proxy.events import Handoff
from proxy.messages import DelegateRecord, FinishReason, FunctionTool, HandoffRecord, Item
from proxy.providers.capabilities import Abilities
from proxy.tools.execution import find_argument_error
from proxy.tools.handoff_tools import handoff_reason, handoff_result
from proxy.tools.port import can_become_unavailable, is_offered
from proxy.tracing import is_traced
from proxy.turns.structured_output import ResponseFormat
from proxy.turns.turn import ApprovalRequest


class AgentAnswered(Struct, frozen=True):
    """The agent answered the user."""

    finish_reason: FinishReason


class AgentHandedOff(Struct, frozen=True):
    """Another agent is active."""

    target: str


class ToolResultsPending(Struct, frozen=True):
    """The client has to run tools; ``pending`` are the ids of the calls."""

    pending: tuple[str, ...]


class ApprovalPending(Struct, frozen=True):
    """A person has to approve calls; ``requests`` are in the order of the calls."""

    requests: tuple[ApprovalRequest, ...]


AgentOutcome = AgentAnswered | AgentHandedOff | ToolResultsPending | ApprovalPending


class AgentLoop:
    """Runs one agent; one instance serves all turns."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._server_calls = ServerCalls(agent)
        self._handoff_specs = tuple(target.spec for target in agent.handoff_targets.values())
        # The usual case, computed once: the tools of each call until the limit of handoffs is reached.
        self._fixed_tools: Sequence[FunctionTool] | None = None
        if not (agent.delegations or any(map(can_become_unavailable, agent.tools.values()))):
            self._fixed_tools = (*self._server_calls.specs.values(), *self._handoff_specs)
        self._has_handover_data = any(target.input is not None for target in agent.handoff_targets.values())
        self._has_no_tools = not (agent.tools or agent.handoff_targets or agent.delegations)

    @property
    def abilities(self) -> Abilities:
        """What the agent's model supports now; OpenAI rejects a prediction together with tools."""
        abilities = self.agent.model.abilities
        return abilities if self._has_no_tools else abilities.without("prediction")

    def client_tools(
        self, client_tools: Sequence[FunctionTool], max_client_tools: int
    ) -> Sequence[FunctionTool]:
        """Return the client tools that this agent's model sees, see ``visible_client_tools``."""
        return visible_client_tools(self.agent, client_tools, max_client_tools)

    def collisions(self, client_tools: Sequence[FunctionTool], max_client_tools: int) -> list[str]:
        """Return the names of visible client tools that are also names of the agent's tools or delegates."""
        return [
            tool.name
            for tool in self.client_tools(client_tools, max_client_tools)
            if tool.name in self.agent.tools
            or tool.name in self.agent.handoff_targets
            or tool.name in self.agent.delegations
        ]

    async def run(self, state: TurnState) -> AgentOutcome:
        """Run the agent until it has answered, handed off, or called something that the client or a person decides.

        Raises:
            UpstreamFailed: A model call failed.
            ResponseFormatNotMet: The answer does not match ``response_format``.
            StoreUnavailable: The start of an approved call could not be recorded, so it was not run.
        """
        turn = state.turn
        if turn.continuation is not None or turn.resumed is not None:
            outcome = await self._continue(state)
            if outcome is not None:
                return outcome
        # At a limit the turn ends with what there is, like an answer that the model cut.
        while not state.is_at_limit():
            own_tools = () if self._has_no_tools else self._own_tools(state)
            reply = await call_model(self.agent, state, own_tools)
            calls = reply.calls
            # With finish_reason "length" the arguments of the last call may be truncated: discard all calls.
            if not calls or reply.finish_reason == "length":
                if turn.response_format is not None:
                    await _check_format(turn.response_format, reply)
                return self._answer(state, reply)
            await turn.wait_for_begin()
            self._append_calls(state, reply)
            if any(call.kind == "server" for call in calls):
                await state.save_step(calls)
            outcome = await self._handle_calls(state, calls)
            if outcome is not None:
                return outcome
        return AgentAnswered("length")

    async def _continue(self, state: TurnState) -> AgentOutcome | None:
        """Begin with what an earlier turn, or the worker that ran this one, has left to do; None to call the model."""
        turn = state.turn
        continuation, turn.continuation = turn.continuation, None
        if continuation is not None:
            pauses = await self._server_calls.apply_decisions(state, continuation)
            if pauses:
                return ApprovalPending(request_approvals(self.agent, state, (), pauses))
            await state.save_step()
        resumed, turn.resumed = turn.resumed, None
        if resumed is None or not resumed.calls:
            return None
        return await self._handle_calls(state, [resumed_call(call) for call in resumed.calls])

    def _answer(self, state: TurnState, reply: ModelReply) -> AgentAnswered:
        """Append a reply without calls, or whose calls are discarded, to the messages of the turn; it is the answer."""
        turn, finish_reason = state.turn, reply.finish_reason
        message = assistant_message("".join(reply.text), "".join(reply.refusal))
        # The state of discarded calls belongs to a message that does not exist.
        provider_state = reply.provider_state if not reply.calls else None
        turn.items.append(Item(message, self.agent.name, state=provider_state, tokens=reply.tokens))
        turn.draft.clear()
        return AgentAnswered(finish_reason if finish_reason in ("length", "content_filter") else "stop")

    def _append_calls(self, state: TurnState, reply: ModelReply) -> None:
        """Append a reply with calls to the messages of the turn."""
        text, calls = "".join(reply.text), reply.calls
        message = assistant_message(text, "".join(reply.refusal), [wire_call(call) for call in calls])
        is_visible = bool(text or reply.refusal or any(call.kind == "client" for call in calls))
        state.turn.items.append(
            Item(
                message,
                agent=self.agent.name,
                visible=is_visible,
                state=reply.provider_state,
                tokens=reply.tokens,
            )
        )
        state.turn.draft.clear()

    def input_tokens(self, state: TurnState) -> int:
        """Return the estimated size of the next model call."""
        assert state.compactor is not None
        turn = state.turn
        shown = self.client_tools(turn.client_tools, state.max_client_tools)
        size = call_size(
            self.agent, turn, self._own_tools(state), shown if turn.tool_choice != "none" else ()
        )
        history = history_of(self.agent.name, turn.context, turn.items)
        cut = cut_of(history.items)
        view = view_of(history.context, history.own, cut)
        return state.compactor.estimate(self.agent, history, cut, view, size)

    def _own_tools(self, state: TurnState) -> Sequence[FunctionTool]:
        """Return the tools, delegates and handoffs that the agent may call now."""
        can_hand_off = state.handoffs < state.limits.max_handoffs
        if self._fixed_tools is not None and can_hand_off:
            return self._fixed_tools
        specs = self._server_calls.specs
        tools = [specs[name] for name, tool in self.agent.tools.items() if is_offered(tool)]
        delegates = self._server_calls.delegation_specs if state.can_delegate else ()
        return [*tools, *delegates, *(self._handoff_specs if can_hand_off else ())]

    async def _handle_calls(self, state: TurnState, calls: Sequence[Call]) -> AgentOutcome | None:
        """Handle all calls of a reply; None if the model has to be called again with the results."""
        kinds = {call.kind for call in calls}
        results: dict[str, str] = {}
        pending: tuple[str, ...] = ()
        unapproved: list[Call] = []
        if "server" in kinds:
            results = await self._server_calls.run(state, calls)
        if "client" in kinds:
            pending = tuple(call.id for call in calls if call.kind == "client")
        if "approval" in kinds:
            results |= without_question(state, calls, has_client_calls=bool(pending))
            unapproved = [call for call in calls if call.kind == "approval" and call.id not in results]
        pauses: Sequence[DelegatePause] = ()
        records: Mapping[str, DelegateRecord] = {}
        if state.pauses:
            pauses = [state.pauses.pop(call.id) for call in calls if call.id in state.pauses]
            if pending:
                results |= {pause.call_id: REPEAT_LATER for pause in pauses}
            else:
                records = {pause.call_id: pause.record for pause in pauses}
        can_hand_off = not (pending or unapproved or pauses)
        handoff: Call | None = None
        record: HandoffRecord | None = None
        if can_hand_off and "handoff" in kinds:
            if self._has_handover_data:
                results |= await self._invalid_handovers(calls)
            handoff = next(
                (call for call in calls if call.kind == "handoff" and call.id not in results), None
            )
            if handoff is not None and state.records_handoffs:
                record = await self._handoff_record(state, handoff)
        for call in calls:
            if call.kind != "client":
                result = results.get(call.id)
                if result is None:
                    result = self._result_without_run(call, handoff, can_hand_off=can_hand_off)
                append_tool_result(
                    state,
                    self.agent,
                    call.id,
                    result,
                    records.get(call.id),
                    handoff=record if call is handoff else None,
                )
        if pending:
            return ToolResultsPending(pending)
        if unapproved or pauses:
            return ApprovalPending(request_approvals(self.agent, state, unapproved, pauses))
        outcome = self._hand_off(state, handoff) if handoff is not None else None
        await state.save_step()
        return outcome

    async def _invalid_handovers(self, calls: Sequence[Call]) -> dict[str, str]:
        """Return the errors of handoffs whose data does not match their schema, by call id."""
        errors: dict[str, str] = {}
        for call in calls:
            schema = self.agent.handoff_targets[call.name].input if call.kind == "handoff" else None
            if schema is None:
                continue
            arguments = "".join(call.arguments)
            if error := find_argument_error(arguments):
                errors[call.id] = f"error: not transferred: {error}"
                continue
            try:
                await schema.check(json.loads(arguments or "{}"))
            except ToolError as mismatch:
                errors[call.id] = f"error: not transferred: {mismatch.message}"
        return errors

    async def _handoff_record(self, state: TurnState, call: Call) -> HandoffRecord:
        """Return what is stored of a handoff if a handoff of the team has options."""
        target = self.agent.handoff_targets[call.name]
        arguments = "".join(call.arguments)
        summary = ""
        if target.history == "summary" and state.compactor is not None:
            summary = await state.compactor.handoff_summary(self.agent, state)
        return HandoffRecord(
            self.agent.name,
            target.agent,
            target.history,
            target.returns,
            handoff_reason(arguments) if target.input is None else "",
            arguments if target.input is not None else "",
            summary,
        )

    def _hand_off(self, state: TurnState, call: Call) -> AgentHandedOff:
        target = self.agent.handoff_targets[call.name].agent
        state.handoffs += 1
        state.turn.agent = target
        state.turn.ran_tools = True
        reason = handoff_reason("".join(call.arguments))
        state.handed_over = self.agent.name, reason
        state.sink.emit(Handoff(self.agent.name, target, reason))
        if is_traced():
            record_handoff(self.agent.name, target)
        return AgentHandedOff(target)

    def _result_without_run(self, call: Call, handoff: Call | None, *, can_hand_off: bool) -> str:
        """Return the result of a call that is not run."""
        if call is handoff:
            target = self.agent.handoff_targets[call.name]
            data = "".join(call.arguments) if target.input is not None else ""
            return handoff_result(target.agent, data)
        if call.kind == "approval":
            return WAITING
        if call.kind == "handoff":
            if not can_hand_off:
                return "error: not transferred, because other calls of this reply have to be answered first"
            return "error: not transferred, because only one transfer at a time is possible"
        if call.kind == "surplus":
            return "error: not executed, because only one call at a time is allowed"
        if call.name in self.agent.delegations:
            return "error: no further delegation is possible here; do the task yourself"
        if call.name in self.agent.handoff_targets:
            return "error: no further transfers in this turn; answer the user yourself"
        return unknown_tool(call.name)


async def _check_format(required: ResponseFormat, reply: ModelReply) -> None:
    """Check a complete answer against ``response_format``; the finish reason of any other marks it as incomplete."""
    is_complete = reply.finish_reason in ("stop", "tool_calls") and not reply.refusal
    if is_complete and not await required.is_met_by("".join(reply.text)):
        raise ResponseFormatNotMet
