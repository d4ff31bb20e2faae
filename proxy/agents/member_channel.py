"""What a running member does in its turn: calls that the client or a person answers, their results, and its events."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.approval_question import without_question
from proxy.agents.call import Call, clean_name, new_call_id, wire_call
from proxy.agents.member_exchange import NOT_RUN, REFUSED, Exchange, arguments_of
from proxy.agents.member_output import MemberOutput
from proxy.agents.member_values import checked_text
from proxy.agents.prompt import assistant_message
from proxy.agents.tool_calls import append_tool_result
from proxy.agents.turn_state import EVENT_TEXT_LIMIT, TurnState
from proxy.errors import ToolError
from proxy.events import (
    Event,
    ReasoningDelta,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    innermost,
)
from proxy.members.port import (
    Answer,
    MemberEvent,
    ModelUsed,
    NotApproved,
    TeamEvent,
    ToolEnded,
)
from proxy.messages import AssistantMessage, FunctionTool, Item, ToolCall, UserMessage
from proxy.turns.turn import RUN_UNKNOWN, ApprovedCallLog, ContinuationCall

_SLICE = 0.01
"""Seconds that a member may run before other tasks do. Code that never waits would block the event loop."""
_ROUNDS = 20
"""Iterations of the event loop in which a member can make further calls next to the one that ends the turn."""


class PendingCall(msgspec.Struct, frozen=True):
    """A call that ends the turn; ``arguments`` is JSON text."""

    kind: Literal["client", "approval"]
    name: str
    arguments: str


class MemberChannel:
    """Implements ``members.port.Channel`` for one run."""

    def __init__(
        self, agent: Agent, state: TurnState, exchange: Exchange, client_tools: Sequence[FunctionTool]
    ) -> None:
        self._agent = agent
        self._state = state
        self.exchange = exchange
        self._client_tools = {tool.name for tool in client_tools}
        self.output = MemberOutput(agent, state, self._emit)
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._unread = list(exchange.answers)
        self._approved: list[tuple[ContinuationCall, Call]] = []
        """Calls that a person has approved and that have not run."""
        self._held: list[Event] = []
        """Events of a part that an earlier turn has emitted already."""
        self._runs: ApprovedCallLog | None = None
        self._waiting: list[asyncio.Future[str]] = []
        self._has_waited_at = time.monotonic()
        self.pending: list[PendingCall] = []
        self.paused = asyncio.Event()
        self.has_emitted = False
        """Whether text or events have been emitted, so that the run cannot be repeated."""
        self.is_cancelled = False

    # --- members.port.Channel ---

    def report(self, text: str) -> None:
        """Report progress, from any thread.

        Raises:
            AgentFailed: The member has reported too much.
        """
        line = " ".join(text.split())
        if not line or self.is_cancelled:
            return
        self.output.count(line)
        event = ReasoningDelta(f"{checked_text(line)}\n")
        if threading.get_ident() == self._thread:
            self._emit(event)
        else:
            self._loop.call_soon_threadsafe(self._emit_report, event)

    def _emit_report(self, event: ReasoningDelta) -> None:
        if not self.is_cancelled:
            self._emit(event)

    def answers(self) -> Sequence[Answer]:
        """Return the results that have not been read."""
        unread, self._unread = self._unread, []
        self._release_if_read()
        return unread

    def resume(self) -> None:
        """Drop the results of calls that the member made before it stored its newest state."""
        newest = self.exchange.newest_answers
        del self._unread[: len(self.exchange.answers) - len(newest)]
        self._release_if_read()

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Return the result of an earlier turn, or end the turn with the call."""
        text = _json(arguments)
        answer = self._take(name, text)
        if answer is not None:
            return answer.result
        if name not in self._client_tools:
            raise ToolError(f"there is no tool named {clean_name(name)!r}")
        return await self._pause(PendingCall("client", name, text))

    async def run_approved(
        self, name: str, arguments: Mapping[str, Any], function: Callable[[], Awaitable[object] | object]
    ) -> str:
        """Return the result of an earlier run, run the approved function, or end the turn with the question."""
        name, text = clean_name(name), _json(arguments)
        answer = self._take(name, text)
        if answer is not None:
            if answer.result in NOT_RUN:
                raise NotApproved(answer.result)
            return answer.result
        for at, (source, call) in enumerate(self._approved):
            if call.name == name and _same(source.arguments, text):
                del self._approved[at]
                self._release_if_read()
                return await self._run(source, call, function)
        asked = Call("", name, "approval", arguments=[text])
        reasons = without_question(self._state, [asked], has_client_calls=False)
        if reasons:
            raise ToolError(reasons[""].removeprefix("error: "))
        return await self._pause(PendingCall("approval", name, text))

    # --- the run ---

    async def apply_decisions(self) -> None:
        """Take over the decisions with which the turn begins.

        Raises:
            StoreUnavailable: The start of an approved call could not be recorded.
        """
        turn = self._state.turn
        continuation, turn.continuation = turn.continuation, None
        if continuation is None:
            return
        calls = [(source, Call(new_call_id(), source.name, "server", arguments=[source.arguments]))
                 for source in continuation.calls]  # fmt: skip
        ids = {source.approval_id: call.id for source, call in calls}
        for decided in continuation.decided:
            call_id = ids.get(decided.approval_id, decided.call_id)
            self._state.sink.emit(msgspec.structs.replace(decided, call_id=call_id))
        if continuation.note:
            turn.items.append(Item(UserMessage(continuation.note), agent=self._agent.name, visible=False))
        runs = self._runs = continuation.runs
        for source, call in calls:
            if source.result is not None:
                self._answer(call, source.result)
            elif runs is not None and await runs.begin(source.approval_id):
                self._approved.append((source, call))
            else:
                self._answer(call, RUN_UNKNOWN)
        for decided in continuation.decided:
            if decided.decision == "refuse" and (asked := self._call_of(decided.call_id)) is not None:
                call = Call(
                    new_call_id(), asked.function.name, "server", arguments=[asked.function.arguments]
                )
                self._answer(call, REFUSED)

    async def ready(self, event: MemberEvent | None = None) -> None:
        """Wait while the clients are slow, and between two steps of the member while no client is there."""
        is_step = isinstance(event, ToolEnded | ModelUsed) or (
            isinstance(event, TeamEvent) and isinstance(innermost(event.event), ToolCompleted | ToolFailed)
        )
        if event is None or is_step:
            await self._state.sink.attended()
        await self._state.sink.drain()
        if time.monotonic() - self._has_waited_at > _SLICE:
            await asyncio.sleep(0)
            self._has_waited_at = time.monotonic()

    async def settle(self) -> None:
        """Let the member make further calls next to the one that ends the turn."""
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)

    def cancel(self) -> None:
        """Drop what the member yields and reports from now on."""
        self.is_cancelled = True

    def stop(self) -> None:
        """End the run: nothing waits any more."""
        self.cancel()
        for waiting in self._waiting:
            waiting.cancel()

    def release(self) -> None:
        """Emit what was held back: the run did not read all results, so it was not the same as before."""
        self.output.close_inner_tools()
        self._unread.clear()
        self._approved.clear()
        held, self._held = self._held, []
        for event in held:
            self._emit(event)

    # --- parts ---

    def _emit(self, event: Event) -> None:
        if self._unread or self._approved:
            self._held.append(event)
            return
        self.has_emitted = True
        if isinstance(event, TextDelta):
            self._state.turn.draft.append(event.text)
        self._state.sink.emit(event)

    def _release_if_read(self) -> None:
        if not (self._unread or self._approved):
            self._held.clear()

    def _take(self, name: str, arguments: str) -> Answer | None:
        wanted = arguments_of(arguments)
        for at, answer in enumerate(self._unread):
            if answer.name == name and answer.arguments == wanted:
                del self._unread[at]
                self._release_if_read()
                return answer
        return None

    async def _pause(self, call: PendingCall) -> str:
        if self.is_cancelled:
            # Code that has caught its cancellation, or that runs behind its end.
            raise asyncio.CancelledError
        self.pending.append(call)
        self.paused.set()
        waiting: asyncio.Future[str] = self._loop.create_future()
        self._waiting.append(waiting)
        return await waiting

    async def _run(
        self, source: ContinuationCall, call: Call, function: Callable[[], Awaitable[object] | object]
    ) -> str:
        state = self._state
        assert self._runs is not None
        state.turn.ran_effects = True
        arguments = source.arguments[:EVENT_TEXT_LIMIT]
        state.sink.emit(ToolStarted(call.id, call.name, arguments, self._agent.name))
        began = time.monotonic()
        try:
            found = function()
            result = _text(await found if inspect.isawaitable(found) else found)
        except (Exception, SystemExit) as error:
            failed = error.message if isinstance(error, ToolError) else "error: the tool failed"
            state.sink.emit(ToolFailed(call.id, call.name, failed, time.monotonic() - began))
            self._record(call, failed)
            await self._runs.end(source.approval_id, failed)
            raise
        state.sink.emit(
            ToolCompleted(call.id, call.name, result[:EVENT_TEXT_LIMIT], time.monotonic() - began)
        )
        self._record(call, result)
        await self._runs.end(source.approval_id, result)
        return result

    def _answer(self, call: Call, result: str) -> None:
        self._record(call, result)
        self._unread.append(Answer(call.name, arguments_of("".join(call.arguments)), result))

    def _record(self, call: Call, result: str) -> None:
        message = assistant_message("", "", [wire_call(call)])
        self._state.turn.items.append(Item(message, agent=self._agent.name, visible=False))
        append_tool_result(self._state, self._agent, call.id, result)

    def _call_of(self, call_id: str) -> ToolCall | None:
        for item in reversed(self._state.turn.context):
            if isinstance(item.message, AssistantMessage):
                for call in item.message.tool_calls or ():
                    if call.id == call_id and isinstance(call, ToolCall):
                        return call
        return None


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _same(one: str, other: str) -> bool:
    return arguments_of(one) == arguments_of(other)


def _text(result: object) -> str:
    return checked_text(result) if isinstance(result, str) else _json(result)
