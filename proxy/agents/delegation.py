"""Delegates: agents and teams that an agent calls as a tool, with a task, and whose answer is the result.

A delegate runs in the turn of its caller, with separate context, limits and time limit. What it uses also counts
for the turn. If one of its calls needs approval, it pauses: its work so far is stored with the result of the call, and
the turn after the decision resumes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence

from msgspec import Struct

from proxy.agents.agent import Delegation
from proxy.agents.turn_state import DelegateJob, DelegatePause, TurnState
from proxy.errors import ToolError, TurnFailed
from proxy.events import DelegateEvent, Event, Handoff, Started
from proxy.messages import (
    AssistantMessage,
    DelegateRecord,
    FunctionTool,
    Item,
    Parameters,
    ToolCall,
    ToolMessage,
    UserMessage,
    text_of,
)
from proxy.tools.port import ToolContext
from proxy.turns.recorder import Recorder
from proxy.turns.turn import ApprovalContinuation, ApprovedCallLog, ContinuationCall, Turn

WAITING_FOR_APPROVAL = (
    "not finished yet: a call of this delegate needs the user's approval, and the user is being asked now. It "
    "continues only if the user says yes; anything else means no."
)
"""The result of a delegate that waits for approval; it stays the result if the calls are never approved."""
REPEAT_LATER = (
    "error: not finished: this delegate needs the user's approval, and other calls have to be answered first; repeat "
    "it then"
)
_INCOMPLETE = "\n\n[The answer is incomplete: a limit was reached.]"


class Resumed(Struct, frozen=True):
    """What a delegate continues with: its work so far, and the calls that were decided."""

    record: DelegateRecord
    calls: Sequence[ContinuationCall]
    runs: ApprovedCallLog | None


def delegate_tool_spec(name: str, target: str, when: str, description: str) -> FunctionTool:
    """Return the tool that gives ``target`` a task."""
    sentences = [f"Give {target} a task and get its answer.", description.strip(), when.strip()]
    return FunctionTool(
        name,
        " ".join(sentence for sentence in sentences if sentence),
        {
            "type": "object",
            "properties": {
                "task": {
                    "type": "string",
                    "description": f"The complete task, with everything that {target} needs to know.",
                }
            },
            "required": ["task"],
            "additionalProperties": False,
        },
    )


class DelegateTool:
    """A delegate as the tool of one call."""

    has_effects = False
    """Effects of the delegate's own tools are recorded when these run."""

    def __init__(
        self,
        delegation: Delegation,
        state: TurnState,
        call_id: str,
        before: Sequence[Item],
        resumed: Resumed | None = None,
    ) -> None:
        """``before`` are the items of the conversation before the call."""
        self.spec = delegation.spec
        self._delegation = delegation
        self._state = state
        self._call_id = call_id
        self._before = before
        self._resumed = resumed

    async def call(self, arguments: dict[str, object], context: ToolContext) -> str:
        """Run the delegate and return its answer.

        Raises:
            ToolError: The delegate failed.
        """
        task = arguments.get("task")
        if not isinstance(task, str) or not task.strip():
            raise ToolError("'task' has to be a text that is not empty")
        run_delegate = self._state.run_delegate
        assert run_delegate is not None
        turn = self._turn(task, context.call_key)
        name = self._delegation.name
        recorder = Recorder(_DelegateSink(self._state, turn, self._call_id, name))
        try:
            outcome = await run_delegate(DelegateJob(self._delegation, turn, recorder, self._state))
        except TurnFailed as failure:
            raise ToolError(f"{name} failed: {failure.message}") from None
        finally:
            recorder.close_open_calls()
        if outcome.approvals:
            approvals = [request.id for request in outcome.approvals]
            record = DelegateRecord(turn.agent, list(turn.items), approvals)
            self._state.pauses[self._call_id] = DelegatePause(self._call_id, outcome.approvals, record)
            return WAITING_FOR_APPROVAL
        text = _answer_of(turn.items)
        if not text:
            reason = " before a limit was reached" if outcome.finish_reason == "length" else ""
            raise ToolError(f"{name} gave no answer{reason}")
        return text + (_INCOMPLETE if outcome.finish_reason == "length" else "")

    def _turn(self, task: str, call_key: str) -> Turn:
        parent, delegation = self._state.turn, self._delegation
        context = [*(self._before if delegation.has_conversation else ()), Item(UserMessage(content=task))]
        turn = Turn(
            id=f"{parent.id}/{self._call_id}",
            conversation_id=parent.conversation_id,
            caller=parent.caller,
            agent="",
            context=context,
            overlay=parent.overlay if delegation.has_conversation else (),
            call_scope=call_key,
            may_ask=parent.may_ask and parent.response_format is None,
            context_mode=parent.context_mode,
            compact_threshold=parent.compact_threshold,
            compactions=parent.compactions if delegation.has_conversation else None,
            end_user=parent.end_user,
            # The end user is the same. What the caller set for the answer of the turn does not apply to a delegate.
            parameters=Parameters(
                safety_identifier=parent.parameters.safety_identifier,
                prompt_cache_key=parent.parameters.prompt_cache_key,
            ),
        )
        if (resumed := self._resumed) is not None:
            turn.agent = resumed.record.agent
            turn.items = list(resumed.record.items)
            turn.continuation = ApprovalContinuation(calls=resumed.calls, runs=resumed.runs)
        return turn


class _DelegateSink:
    """Emits the events of a delegate as events of its caller's turn, and reports effects of its tools there."""

    def __init__(self, state: TurnState, turn: Turn, call_id: str, agent: str) -> None:
        self._state = state
        self._turn = turn
        self._call_id = call_id
        self._agent = agent
        self._running_effects = 0

    def emit(self, event: Event) -> None:
        """Emit an event inside of the delegate's event."""
        self._report_effects()
        self._state.sink.emit(self._wrapped(event))

    def emit_batch(self, events: Sequence[Event]) -> bool:
        """Emit events, each inside of an event of the delegate."""
        self._report_effects()
        return self._state.sink.emit_batch([self._wrapped(event) for event in events])

    def open_relay(self) -> None:
        """Return None: the text of a delegate is not that of the answer."""
        return

    def _report_effects(self) -> None:
        parent = self._state.turn
        parent.ran_effects = parent.ran_effects or self._turn.ran_effects
        parent.running_effects += self._turn.running_effects - self._running_effects
        self._running_effects = self._turn.running_effects

    def _wrapped(self, event: Event) -> DelegateEvent:
        if isinstance(event, Started):
            self._agent = event.agent
        wrapped = DelegateEvent(self._call_id, self._agent, event)
        if isinstance(event, Handoff):
            self._agent = event.target
        return wrapped

    def drain(self) -> Awaitable[None]:
        """Wait as the sink of the caller does."""
        return self._state.sink.drain()

    def attended(self) -> Awaitable[None]:
        """Wait as the sink of the caller does."""
        return self._state.sink.attended()


def _answer_of(items: Sequence[Item]) -> str:
    for item in reversed(items):
        if isinstance(item.message, AssistantMessage) and item.visible and not item.message.tool_calls:
            return text_of(item.message).strip()
    return ""


def items_before_call(items: Sequence[Item], call_id: str) -> Sequence[Item]:
    """Return the items before the message that has the call; all if no message has it."""
    for at in range(len(items) - 1, -1, -1):
        message = items[at].message
        if isinstance(message, AssistantMessage) and any(
            call.id == call_id for call in message.tool_calls or ()
        ):
            return items[:at]
    return items


def record_of(items: Sequence[Item], approval_id: str) -> Item | None:
    """Return the newest result of a delegate that waits for the approval."""
    return next(
        (
            item
            for item in reversed(items)
            if item.delegate is not None and approval_id in item.delegate.approvals
        ),
        None,
    )


def delegated_call(items: Sequence[Item], result: Item) -> ToolCall | None:
    """Return the call of a delegate whose result this is."""
    if not isinstance(result.message, ToolMessage):
        return None
    for item in reversed(items):
        message = item.message
        for call in (message.tool_calls or ()) if isinstance(message, AssistantMessage) else ():
            if call.id == result.message.tool_call_id and isinstance(call, ToolCall):
                return call
    return None
