"""Run one member in a turn: an agent with its own code (``members.port``).

The member runs in a separate task, so that a call which the client or a person has to answer ends the turn wherever
the member's code is. The next turn of the exchange runs the member again (``member_exchange``). Text and events are
dropped until the member has read all results of earlier turns, which have emitted them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.agent_loop import (
    AgentAnswered,
    AgentHandedOff,
    AgentOutcome,
    ApprovalPending,
    ToolResultsPending,
)
from proxy.agents.approval_question import WAITING, request_approvals
from proxy.agents.call import Call, clean_name, new_call_id, wire_call
from proxy.agents.compaction.compactor import exceeded
from proxy.agents.member_channel import MemberChannel
from proxy.agents.member_exchange import Exchange, arguments_of, exchange_of
from proxy.agents.member_view import fitted_exchange, next_input_tokens
from proxy.agents.model_request import visible_client_tools
from proxy.agents.prompt import assistant_message, messages_for
from proxy.agents.spans import record_handoff
from proxy.agents.tool_calls import append_tool_result
from proxy.agents.turn_state import TurnState
from proxy.errors import (
    AgentFailed,
    ContextLengthExceeded,
    MemberFailed,
    ResponseFormatNotMet,
    ToolError,
    UpstreamFailed,
)
from proxy.events import ClientToolArguments, ClientToolCall, Handoff
from proxy.members.port import HandOver, Member, MemberContext
from proxy.members.state import newest_state, stored_state
from proxy.messages import FunctionTool, HandoffRecord, Item, is_instruction, text_of
from proxy.providers.capabilities import Abilities
from proxy.tools.handoff_tools import handoff_reason, handoff_result

logger = logging.getLogger(__name__)

STOP_GRACE = 1.0
"""Seconds for a member to end after it was cancelled; then it is abandoned."""
_abandoned: set[asyncio.Task[HandOver | None]] = set()
"""The event loop has only weak references to tasks (``asyncio.create_task``)."""


class MemberLoop:
    """Runs one member; one instance serves all turns."""

    def __init__(self, agent: Agent, member: Member) -> None:
        self.agent = agent
        self._member = member

    @property
    def abilities(self) -> Abilities:
        """Everything: the member receives parameters and content as they are, and reports what it does not use."""
        return Abilities()

    def client_tools(
        self, client_tools: Sequence[FunctionTool], max_client_tools: int
    ) -> Sequence[FunctionTool]:
        """Return the client tools that the member may call."""
        return visible_client_tools(self.agent, client_tools, max_client_tools)

    def collisions(self, client_tools: Sequence[FunctionTool], max_client_tools: int) -> list[str]:
        """Return no names: a member has no tools of the proxy."""
        return []

    async def run(self, state: TurnState) -> AgentOutcome:
        """Run the member until it has answered, handed over, or called something that the client or a person decides.

        Raises:
            AgentFailed: Its code raised an exception, or yielded a value that is not an event.
            ResponseFormatNotMet: The answer does not match ``response_format``.
            UpstreamFailed: It cannot answer in the form that the request requires.
            StoreUnavailable: The start of an approved call could not be recorded, so it was not run.
        """
        if state.is_at_limit():
            return AgentAnswered("length")
        state.turn.resumed = None
        # The code of a member can have effects.
        await state.turn.wait_for_begin()
        if state.turn.steps is not None and self._member.has_effects:
            # What the member's code has done is not known until it ends, so it must not run again.
            await state.turn.steps.suspend()
        channel = self._channel(state)
        await channel.apply_decisions()
        shown = await fitted_exchange(self.agent, state, channel.exchange, self._client_tools(state))
        state.turn.ran_effects = state.turn.ran_effects or self._member.has_effects
        context = self._context(state, channel, shown)
        try:
            hand_over = await self._run_until_paused(channel, self._consume(context, channel))
        except ContextLengthExceeded as failure:
            if channel.has_emitted:
                raise exceeded(failure) from None
            channel = self._channel(state)
            tools = self._client_tools(state)
            shown = await fitted_exchange(self.agent, state, channel.exchange, tools, failure)
            context = self._context(state, channel, shown)
            hand_over = await self._repeat(channel, context)
        if channel.pending:
            return self._pause(state, channel, context)
        if hand_over is not None:
            return await self._hand_off(state, context, hand_over)
        text = "".join(state.turn.draft)
        required = state.turn.response_format
        if (
            required is not None
            and channel.output.finish_reason == "stop"
            and not await required.is_met_by(text)
        ):
            raise ResponseFormatNotMet
        self._append(state, context, ())
        return AgentAnswered(channel.output.finish_reason)

    def input_tokens(self, state: TurnState) -> int:
        """Return the estimated size of what the member gets next."""
        return next_input_tokens(self.agent, state, self._client_tools(state))

    def _channel(self, state: TurnState) -> MemberChannel:
        exchange = exchange_of(self.agent.name, state.turn)
        return MemberChannel(self.agent, state, exchange, self._client_tools(state))

    async def _repeat(self, channel: MemberChannel, context: MemberContext) -> HandOver | None:
        """Run the member once more, with a shortened conversation.

        Raises:
            ContextLengthExceeded: It is still too long.
        """
        try:
            return await self._run_until_paused(channel, self._consume(context, channel))
        except ContextLengthExceeded as failure:
            raise exceeded(failure) from None

    # --- the run ---

    async def _consume(self, context: MemberContext, channel: MemberChannel) -> HandOver | None:
        await channel.ready()
        messages = messages_for("", (), context.items, ())
        events = self._member.run(messages, context)
        try:
            async for yielded in events:
                if channel.is_cancelled:
                    # It has caught its cancellation.
                    break
                event = channel.output.checked(yielded)
                if isinstance(event, HandOver):
                    return event
                channel.output.handle(event)
                if channel.output.is_stopped:
                    break
                await channel.ready(event)
        except SystemExit:
            # It would end the event loop, and with it the server.
            logger.exception("member failed", extra={"agent": self.agent.name})
            raise MemberFailed(self.agent.name) from None
        finally:
            # Not every iterator is a generator with ``aclose``.
            close = getattr(events, "aclose", None)
            if close is not None:
                await close()
        return None

    async def _run_until_paused(
        self, channel: MemberChannel, run: Coroutine[None, None, HandOver | None]
    ) -> HandOver | None:
        """Run the member until it ends, or has called something that this turn cannot answer."""
        task = asyncio.create_task(run, name=f"member {self.agent.name}")
        paused = asyncio.create_task(channel.paused.wait(), name=f"pause of {self.agent.name}")
        try:
            await asyncio.wait((task, paused), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await channel.settle()
        finally:
            paused.cancel()
            channel.cancel()
            if not task.done():
                await self._stop(task)
            channel.stop()
        channel.release()
        if channel.pending:
            if task.done() and not task.cancelled():
                # The turn ends with the calls, whatever the code does then.
                task.exception()
            return None
        return self._result(task)

    def _result(self, task: asyncio.Task[HandOver | None]) -> HandOver | None:
        try:
            return task.result()
        except (AgentFailed, UpstreamFailed):
            raise
        except asyncio.CancelledError:
            # A CancelledError that a library raised by itself must not look like a cancelled turn.
            logger.warning("member cancelled itself", extra={"agent": self.agent.name})
        except BaseException:
            logger.exception("member failed", extra={"agent": self.agent.name})
        raise MemberFailed(self.agent.name)

    async def _stop(self, task: asyncio.Task[HandOver | None]) -> None:
        task.cancel()
        try:
            await asyncio.wait((task,), timeout=STOP_GRACE)
        finally:
            if not task.done():
                logger.warning("member ignored cancellation", extra={"agent": self.agent.name})
                _abandoned.add(task)
                task.add_done_callback(_abandoned.discard)

    def _context(self, state: TurnState, channel: MemberChannel, shown: Exchange) -> MemberContext:
        """Return the context of a run; ``shown`` is what the member gets of the exchange."""
        exchange = channel.exchange
        turn = state.turn
        can_hand_off = state.handoffs < state.limits.max_handoffs
        targets = list(self.agent.handoff_targets.values()) if can_hand_off else []
        source, reason = state.handed_over
        instructions = [item.message for item in turn.context if is_instruction(item.message)]
        return MemberContext(
            turn_id=turn.id,
            conversation_id=turn.conversation_id,
            caller=turn.caller,
            end_user=turn.end_user,
            team=state.team,
            agent=self.agent.name,
            items=_without_instructions(shown.items),
            later_items=shown.later,
            instructions="\n\n".join(filter(None, map(text_of, (*instructions, *turn.overlay)))),
            parameters=turn.parameters,
            tools=self._client_tools(state),
            handoffs={one.agent: one.when for one in targets},
            handoff_tools=[(one.spec, one.agent) for one in targets],
            handed_over_by=source,
            handoff_reason=reason,
            handoff_input=_handoff_data(self.agent.name, turn.items),
            state=newest_state(self.agent.name, (*exchange.items, *exchange.later)),
            channel=channel,
        )

    def _client_tools(self, state: TurnState) -> Sequence[FunctionTool]:
        if state.turn.tool_choice == "none":
            return ()
        return self.client_tools(state.turn.client_tools, state.max_client_tools)

    # --- its end ---

    def _pause(self, state: TurnState, channel: MemberChannel, context: MemberContext) -> AgentOutcome:
        """End the turn with the calls of client tools, or, if there are none, with the question for approval."""
        of_client = [call for call in channel.pending if call.kind == "client"]
        if of_client and not state.turn.parallel_tool_calls:
            del of_client[1:]
        calls = [
            Call(new_call_id(), one.name, one.kind, arguments=[one.arguments])
            for one in of_client or channel.pending
        ]
        if of_client:
            for call in calls:
                state.sink.emit(ClientToolCall(state.client_calls, call.id, call.name))
                state.sink.emit(ClientToolArguments(state.client_calls, "".join(call.arguments)))
                state.client_calls += 1
        self._append(state, context, calls)
        if of_client:
            return ToolResultsPending(tuple(call.id for call in calls))
        for call in calls:
            append_tool_result(state, self.agent, call.id, WAITING)
        return ApprovalPending(request_approvals(self.agent, state, calls))

    async def _hand_off(
        self, state: TurnState, context: MemberContext, hand_over: HandOver
    ) -> AgentHandedOff:
        name, target = next(
            ((name, one) for name, one in self.agent.handoff_targets.items() if one.agent == hand_over.to),
            ("", None),
        )
        if target is None or hand_over.to not in context.handoffs:
            facts = {
                "agent": self.agent.name,
                "target": clean_name(str(hand_over.to)),
                "possible": ", ".join(context.handoffs),
            }
            logger.warning("member handed over to an unknown agent", extra=facts)
            raise MemberFailed(self.agent.name)
        given = {"reason": hand_over.reason} if hand_over.reason else {}
        if target.input is not None:
            given = dict(hand_over.input or {})
            try:
                await target.input.check(given)
            except ToolError:
                # The message of the error has values of the data.
                facts = {"agent": self.agent.name, "target": target.agent}
                logger.warning("member handed over with invalid data", extra=facts)
                raise MemberFailed(self.agent.name) from None
        arguments = msgspec.json.encode(given).decode()
        data = arguments if target.input is not None else ""
        call = Call(new_call_id(), name, "handoff", arguments=[arguments])
        self._append(state, context, [call])
        reason = "" if data else handoff_reason(arguments)
        record = None
        if state.records_handoffs:
            summary = ""
            if target.history == "summary" and state.compactor is not None:
                summary = await state.compactor.handoff_summary(self.agent, state)
            record = HandoffRecord(
                self.agent.name, target.agent, target.history, target.returns, reason, data, summary
            )
        append_tool_result(state, self.agent, call.id, handoff_result(target.agent, data), handoff=record)
        state.handoffs += 1
        state.turn.agent = target.agent
        state.turn.ran_tools = True
        state.handed_over = self.agent.name, reason
        state.sink.emit(Handoff(self.agent.name, target.agent, reason))
        record_handoff(self.agent.name, target.agent)
        await state.save_step()
        return AgentHandedOff(target.agent)

    def _append(self, state: TurnState, context: MemberContext, calls: Sequence[Call]) -> None:
        text = "".join(state.turn.draft)
        message = assistant_message(text, "", [wire_call(call) for call in calls])
        is_visible = bool(text or not calls or any(call.kind == "client" for call in calls))
        stored = stored_state(self.agent.name, context.state)
        state.turn.items.append(Item(message, agent=self.agent.name, visible=is_visible, state=stored))
        state.turn.draft.clear()


def _handoff_data(agent: str, items: Sequence[Item]) -> dict[str, Any] | None:
    """Return the structured data of the last handoff to the member in this turn."""
    records = [item.handoff for item in items if item.handoff is not None and item.handoff.target == agent]
    return arguments_of(records[-1].data) if records and records[-1].data else None


def _without_instructions(items: Sequence[Item]) -> list[Item]:
    return [item for item in items if not is_instruction(item.message)]
