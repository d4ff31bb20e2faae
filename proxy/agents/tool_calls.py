"""Calls of server tools: run them within their limits, and repeat those that a person has approved."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.approval_question import spec_with_approval
from proxy.agents.call import Call, clean_name, new_call_id, wire_call
from proxy.agents.delegation import DelegateTool, Resumed, delegated_call, items_before_call, record_of
from proxy.agents.prompt import assistant_message, state_of_repeated
from proxy.agents.turn_state import EVENT_TEXT_LIMIT, TOO_MANY_CALLS, DelegatePause, TurnState
from proxy.events import ToolCompleted, ToolFailed, ToolStarted
from proxy.messages import DelegateRecord, HandoffRecord, Item, ToolMessage, UserMessage
from proxy.tools.execution import CallResult, PreparedCall, run_calls
from proxy.tools.port import Tool, ToolContext
from proxy.tracing import Attribute, current_span
from proxy.turns.turn import (
    CALL_UNKNOWN,
    RUN_UNKNOWN,
    ApprovalContinuation,
    ApprovedCallLog,
    ContinuationCall,
)


def unknown_tool(name: str) -> str:
    """Return the result of a call of a tool that does not exist."""
    return f"error: there is no tool named {clean_name(name)!r}"


def append_tool_result(
    state: TurnState,
    agent: Agent,
    call_id: str,
    result: str,
    delegate: DelegateRecord | None = None,
    *,
    handoff: HandoffRecord | None = None,
) -> None:
    """Append the result of a call to the items of the turn; ``delegate`` is the record of one that waits."""
    message = ToolMessage(call_id, result)
    state.turn.items.append(
        Item(message, agent=agent.name, visible=False, delegate=delegate, handoff=handoff)
    )


class ServerCalls:
    """The calls of one agent's tools. Stateless, like ``AgentLoop``."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.specs = {
            name: spec_with_approval(tool.spec) if name in agent.approvals else tool.spec
            for name, tool in agent.tools.items()
        }
        """The tool descriptions for the model, by name."""
        self.delegation_specs = [delegation.spec for delegation in agent.delegations.values()]

    async def run(self, state: TurnState, calls: Sequence[Call]) -> dict[str, str]:
        """Run the calls of server tools that need no approval; return their results by call id."""
        runnable: list[tuple[Call, PreparedCall]] = []
        rejected: dict[str, str] = {}
        for index, call in enumerate(calls):
            if call.kind != "server":
                continue
            if call.is_resumed and (result := self._result_of_resumed(state, call)) is not None:
                rejected[call.id] = result
                continue
            if not state.can_run_tool():
                rejected[call.id] = TOO_MANY_CALLS
                continue
            state.add_tool_call()
            key = f"{state.turn.call_scope or state.turn.id}:{state.model_calls}:{index}"
            runnable.append((call, self._prepare(state, call, key)))
        return rejected | await self._run(state, runnable)

    def _result_of_resumed(self, state: TurnState, call: Call) -> str | None:
        """Return the result of a call that another worker may have run; None if it can be run again."""
        tool = self.agent.tools.get(call.name)
        # The tools of a delegate can have had effects.
        is_delegate = call.name in self.agent.delegations
        if tool is None and not is_delegate:
            return unknown_tool(call.name)
        if tool is not None and not tool.has_effects:
            return None
        arguments = "".join(call.arguments)[:EVENT_TEXT_LIMIT]
        state.turn.ran_effects = state.turn.ran_tools = True
        state.turn.call_results[call.id] = RUN_UNKNOWN
        state.add_tool_call()
        state.sink.emit(ToolStarted(call.id, call.name, arguments, self.agent.name))
        state.sink.emit(ToolFailed(call.id, call.name, RUN_UNKNOWN, 0.0))
        return RUN_UNKNOWN

    async def apply_decisions(
        self, state: TurnState, continuation: ApprovalContinuation
    ) -> Sequence[DelegatePause]:
        """Repeat the calls of an earlier turn under new ids, with the results that the decisions lead to.

        Calls of a delegate resume it. Return the delegates that wait for approvals again.

        Raises:
            StoreUnavailable: The start of an approved call could not be recorded, so it was not run.
        """
        repeated = self._repeated(state, continuation)
        ids = {source.approval_id: one.call.id for one in repeated for source in one.sources}
        for decided in continuation.decided:
            call_id = ids.get(decided.approval_id, decided.call_id)
            state.sink.emit(msgspec.structs.replace(decided, call_id=call_id))
            current_span().add_event(
                "approval decided",
                {
                    Attribute.APPROVAL: decided.approval_id,
                    Attribute.TOOL: decided.name,
                    Attribute.DECISION: decided.decision,
                },
            )
        if continuation.note:
            state.turn.items.append(
                Item(UserMessage(continuation.note), agent=self.agent.name, visible=False)
            )
        if not repeated:
            return ()
        message = assistant_message("", "", [wire_call(one.call) for one in repeated])
        provider_state = state_of_repeated(message, [*state.turn.context, *state.turn.items])
        state.turn.items.append(Item(message, agent=self.agent.name, visible=False, state=provider_state))
        results = await self._run_approved(state, repeated, continuation.runs)
        pauses = [state.pauses.pop(one.call.id) for one in repeated if one.call.id in state.pauses]
        records = {pause.call_id: pause.record for pause in pauses}
        for one in repeated:
            result = results.get(one.call.id, unknown_tool(one.call.name))
            append_tool_result(state, self.agent, one.call.id, result, records.get(one.call.id))
        return pauses

    def _repeated(self, state: TurnState, continuation: ApprovalContinuation) -> list[_Repeated]:
        """Return the calls to repeat: those of the agent itself, and one for each delegate that waits."""
        items = [*state.turn.context, *state.turn.items]
        repeated: list[_Repeated] = []
        by_delegate: dict[str, _Repeated] = {}
        for source in continuation.calls:
            waiting = record_of(items, source.approval_id)
            call = delegated_call(items, waiting) if waiting is not None else None
            if waiting is None or call is None:
                own = Call(new_call_id(), source.name, "server", arguments=[source.arguments])
                repeated.append(_Repeated(own, [source]))
            elif call.id in by_delegate:
                by_delegate[call.id].sources.append(source)
            else:
                function = call.function
                again = Call(new_call_id(), function.name, "server", arguments=[function.arguments])
                before = items_before_call(items, call.id)
                by_delegate[call.id] = _Repeated(again, [source], waiting.delegate, before)
                repeated.append(by_delegate[call.id])
        return repeated

    async def _run_approved(
        self, state: TurnState, repeated: Sequence[_Repeated], runs: ApprovedCallLog | None
    ) -> dict[str, str]:
        results: dict[str, str] = {}
        runnable: list[tuple[Call, PreparedCall]] = []
        for one in repeated:
            call = one.call
            if one.record is not None:
                delegation = self.agent.delegations.get(call.name)
                if delegation is not None and state.run_delegate is not None:
                    resumed = Resumed(one.record, one.sources, runs)
                    tool = DelegateTool(delegation, state, call.id, one.before, resumed)
                    runnable.append((call, self._prepared(state, call, call.id, tool, delegation.seconds)))
                continue
            source = one.sources[0]
            if source.result is not None:
                results[call.id] = source.result
            if source.result is not None or runs is None or call.name not in self.agent.tools:
                continue
            await state.sink.attended()
            if not await runs.begin(source.approval_id):
                results[call.id] = RUN_UNKNOWN
                continue
            state.add_tool_call()
            # The key is the approval id, so that it is the same in every attempt to run the call.
            runnable.append((call, self._prepare(state, call, source.approval_id)))

        async def record_end(index: int, result: CallResult) -> None:
            assert runs is not None
            if not isinstance(runnable[index][1].tool, DelegateTool):
                await runs.end(runnable[index][1].context.call_key, result.text)

        return results | await self._run(state, runnable, record_end)

    # --- execution ---

    async def _run(
        self,
        state: TurnState,
        runnable: Sequence[tuple[Call, PreparedCall]],
        after: Callable[[int, CallResult], Awaitable[None]] | None = None,
    ) -> dict[str, str]:
        """Run calls in parallel and return their results by call id; ``after`` is awaited for each finished call."""
        if not runnable:
            return {}
        turn = state.turn
        await state.sink.attended()
        # Approved calls have their own log.
        is_logged = after is not None
        effects = [call.id for call, prepared in runnable if prepared.tool.has_effects]
        if effects:
            if not is_logged:
                turn.ran_tools = True
                turn.call_results.update(dict.fromkeys(effects, CALL_UNKNOWN))
                if turn.progress is not None:
                    await turn.progress.store(turn.agent, turn.items_so_far())
            turn.ran_effects = True
            # The client can have left during that write, and a repetition of its request may have begun before the
            # write was visible.
            await state.sink.attended()

        def on_started(index: int) -> None:
            call, prepared = runnable[index]
            turn.running_effects += prepared.tool.has_effects
            arguments = prepared.arguments[:EVENT_TEXT_LIMIT]
            state.sink.emit(ToolStarted(call.id, call.name, arguments, self.agent.name))

        def on_done(index: int, result: CallResult) -> None:
            call, prepared = runnable[index]
            turn.running_effects -= prepared.tool.has_effects
            turn.call_results[call.id] = result.text
            turn.ran_tools = turn.ran_tools or not is_logged
            ended = ToolFailed if result.is_error else ToolCompleted
            state.sink.emit(ended(call.id, call.name, result.text[:EVENT_TEXT_LIMIT], result.seconds))

        results = await run_calls(
            [prepared for _, prepared in runnable],
            max_parallel=self.agent.max_parallel_tools,
            on_started=on_started,
            on_done=on_done,
            after=after,
        )
        if not is_logged and turn.progress is not None:
            turn.progress.note(turn.agent, turn.items_so_far())
        return {call.id: result.text for (call, _), result in zip(runnable, results, strict=True)}

    def _prepare(self, state: TurnState, call: Call, key: str) -> PreparedCall:
        if (delegation := self.agent.delegations.get(call.name)) is not None:
            items = [*state.turn.context, *state.turn.items]
            tool = DelegateTool(delegation, state, call.id, items_before_call(items, call.id))
            return self._prepared(state, call, key, tool, delegation.seconds)
        tool_of_agent = self.agent.tools[call.name]
        return self._prepared(state, call, key, tool_of_agent, self.agent.tool_call_timeout)

    def _prepared(
        self, state: TurnState, call: Call, key: str, tool: Tool, time_limit: float
    ) -> PreparedCall:
        turn = state.turn
        context = ToolContext(
            call_key=key,
            turn_id=turn.public_id,
            conversation_id=turn.conversation_id,
            caller=turn.caller,
            agent=self.agent.name,
            data_dir=state.data_dir,
        )
        return PreparedCall(
            tool=tool,
            arguments="".join(call.arguments),
            context=context,
            call_id=call.id,
            time_limit=time_limit,
            max_result_bytes=state.max_tool_result_bytes,
        )


@dataclass(slots=True)
class _Repeated:
    """A call that is repeated. For the call of a delegate, ``sources`` are the decided calls of that delegate."""

    call: Call
    sources: list[ContinuationCall]
    record: DelegateRecord | None = None
    before: Sequence[Item] = ()
