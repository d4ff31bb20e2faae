"""Convert the events of a turn to output items and stream events of the Responses API.

Stream events are numbered (``sequence_number`` from 0). They depend only on the events of the turn, so that the numbers
are the same when the turn is encoded again. Items are in the order of their start. A message continues until another
item starts, so that the texts of successive agents are one message, separated by a blank line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.events import (
    AgentSpeaking,
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    ClosingEvent,
    Completed,
    ContextCompacted,
    DelegateEvent,
    Event,
    Failed,
    Handoff,
    MemberTeamEvent,
    ModelCalled,
    ParametersIgnored,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
    started_tools,
)
from proxy.messages import FinishReason
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.handoff_extension import HandoffExtensionEncoder
from proxy.wire.chat.response_models import encode
from proxy.wire.errors import failure_of
from proxy.wire.responses.item_writers import EventSequence, MessageWriter, ReasoningWriter
from proxy.wire.responses.items import (
    ApprovalItem,
    Body,
    CallItem,
    CompactionItem,
    ItemStatus,
    MessageItem,
    OutputItem,
    ServerCallItem,
    json_arguments,
)
from proxy.wire.responses.options import ResponseOptions, Status, error_body, response_body

_INCOMPLETE: dict[FinishReason, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}


class Output:
    """The output of one turn. It needs every event in order."""

    def __init__(self, options: ResponseOptions) -> None:
        self.response: Body | None = None
        """The final Response object; None before the closing event."""
        self.failure: Failed | None = None
        """The failure of a failed turn."""
        self._options = options
        self._extension = (
            HandoffExtensionEncoder(options.events, hides_details=options.hides_details)
            if options.events != "none"
            else None
        )
        self._joints = TextJoiner()
        self._steps = EventSequence(options.id)
        self._message = MessageWriter(self._steps)
        self._reasoning = ReasoningWriter(self._steps, is_summary=options.sums_up_reasoning)
        self._call: CallItem | None = None
        self._server_calls: dict[str, ServerCallItem] = {}
        self._approvals: dict[str, str] = {}
        """Approval ids by the ids of the approved calls."""
        self._model_call_ended = False
        self._ran_tools: list[str] = []

    @property
    def items(self) -> Sequence[OutputItem]:
        """The output items so far."""
        return self._steps.items

    @property
    def event_count(self) -> int:
        """Number of events so far; the next one has it as its ``sequence_number``."""
        return self._steps.count

    @property
    def text_place(self) -> bytes:
        """JSON fields that locate the current text part in its delta events; empty if there is none."""
        return self._message.text_place

    def append_text(self, text: str) -> tuple[int, str]:
        """Append a delta to the current text; return the sequence number of its event, and the delta to send.

        The short way of ``add`` for what comes most often.
        """
        text = self._joints.join(text)
        return self._message.append_text(text), text

    def add(self, event: Event, at: float) -> list[Body]:
        """Add the next event, logged ``at`` seconds since the epoch; return its stream events."""
        if self._extension is not None and type(event) is not TextDelta:
            self._extension.encode(event)
        if self._model_call_ended and not isinstance(event, Completed | Failed | Cancelled):
            # Another event after the end of a model call: its output was complete.
            self._close_call("completed")
            self._model_call_ended = False
        match event:
            case Started():
                self._start()
            case TextDelta():
                self._text_delta(event)
            case RefusalDelta():
                self._open_message()
                self._message.add_refusal(event.text)
            case ReasoningDelta():
                self._message.close("completed")
                self._reasoning.add_text(event.text)
            case ToolStarted():
                self._start_server_call(event)
            case ToolCompleted():
                self._end_server_call(event.call_id, output=event.result)
            case ToolFailed():
                self._end_server_call(event.call_id, error=event.error)
            case Handoff():
                self._handoff(event)
            case ClientToolCall():
                self._start_call(event)
            case ClientToolArguments():
                self._append_arguments(event.arguments)
            case ApprovalRequested():
                self._approval_requested(event)
            case ApprovalDecided():
                if event.decision == "approve":
                    self._approvals[event.call_id] = event.approval_id
            case ParametersIgnored() | AgentSpeaking():
                pass
            case DelegateEvent() | MemberTeamEvent():
                self._ran_tools += started_tools(event)
            case ContextCompacted():
                self._compacted(event)
            case ModelCalled():
                self._joints.pause()
                self._reasoning.close("completed")
                self._model_call_ended = True
            case Completed() | Failed() | Cancelled():
                self._end(event, at)
        return self._steps.drain()

    def _start(self) -> None:
        first: Status = "in_progress"
        if self._options.response.background:
            first = "queued"
        self._steps.add_event("response.created", response=response_body(self._options, first, output=[]))
        if first == "queued":
            self._steps.add_event("response.queued", response=response_body(self._options, first, output=[]))
        running = response_body(self._options, "in_progress", output=[])
        self._steps.add_event("response.in_progress", response=running)

    def _text_delta(self, event: TextDelta) -> None:
        self._open_message()
        logprobs = [_logprob(one) for one in event.logprobs or ()] if self._options.logprobs else []
        self._message.add_text(self._joints.join(event.text), logprobs)

    def _open_message(self) -> None:
        if not self._message.is_open:
            self._reasoning.close("completed")
            self._message.open()

    # --- client tools ---

    def _start_call(self, event: ClientToolCall) -> None:
        self._message.close("completed")
        self._reasoning.close("completed")
        self._close_call("completed")
        self._call = CallItem(self._options.id, len(self.items), event.call_id, event.name)
        self._steps.add_item(self._call)

    def _append_arguments(self, arguments: str) -> None:
        if self._call is not None and arguments:
            self._call.pieces.append(arguments)
            self._steps.add_item_event(self._call, "response.function_call_arguments.delta", delta=arguments)

    def _close_call(self, status: ItemStatus) -> None:
        if self._call is not None and not self._call.pieces and status == "completed":
            # Complete a call without arguments with an object, because clients parse arguments as JSON.
            self._append_arguments("{}")
        call, self._call = self._call, None
        if call is not None:
            arguments = call.arguments
            self._steps.add_item_event(
                call, "response.function_call_arguments.done", name=call.name, arguments=arguments
            )
            call.status = status
            self._steps.finish_item(call)

    # --- what the server does itself ---

    def _start_server_call(self, event: ToolStarted) -> None:
        self._ran_tools.append(event.name)
        if self._options.shows_server_calls:
            shown = "" if self._options.hides_details else event.arguments
            approval = self._approvals.get(event.call_id)
            self._server_calls[event.call_id] = self._begin_server_call(
                event.name, json_arguments(shown), approval_id=approval
            )

    def _handoff(self, event: Handoff) -> None:
        self._joints.pause()
        if self._options.shows_server_calls:
            arguments = {"from": event.source, "to": event.target}
            if event.reason and not self._options.hides_details:
                arguments["reason"] = event.reason
            self._server_calls[""] = self._begin_server_call("handoff", encode(arguments).decode())
            self._end_server_call("", output=event.target, is_shown=True)

    def _compacted(self, event: ContextCompacted) -> None:
        if self._options.shows_compactions and event.summary:
            self._message.close("completed")
            self._reasoning.close("completed")
            item = CompactionItem(self._options.id, len(self.items), event.summary)
            self._steps.add_item(item)
            self._steps.finish_item(item)

    def _approval_requested(self, event: ApprovalRequested) -> None:
        if self._options.asks_for_approval:
            self._message.close("completed")
            shown = "" if self._options.hides_details else event.arguments
            item = ApprovalItem(event.approval_id, len(self.items), event.name, json_arguments(shown))
            self._steps.add_item(item)
            self._steps.finish_item(item)

    def _begin_server_call(
        self, name: str, arguments: str, *, approval_id: str | None = None
    ) -> ServerCallItem:
        self._message.close("completed")
        self._reasoning.close("completed")
        item = ServerCallItem(self._options.id, len(self.items), name, arguments, approval_id)
        self._steps.add_item(item)
        self._steps.add_item_event(item, "response.mcp_call.in_progress")
        self._steps.add_item_event(item, "response.mcp_call_arguments.delta", delta=arguments)
        self._steps.add_item_event(item, "response.mcp_call_arguments.done", arguments=arguments)
        return item

    def _end_server_call(
        self, call_id: str, *, output: str | None = None, error: str | None = None, is_shown: bool = False
    ) -> None:
        item = self._server_calls.pop(call_id, None)
        if item is None:
            return
        is_shown = is_shown or not self._options.hides_details
        if error is None:
            item.status, item.output = "completed", output if is_shown else None
        else:
            item.status, item.error = "failed", error if is_shown else "the call failed"
        self._steps.add_item_event(item, f"response.mcp_call.{item.status}")
        self._steps.finish_item(item)

    # --- the end ---

    def _end(self, closing: ClosingEvent, at: float) -> None:
        match closing:
            case Completed():
                self._complete(closing, at)
            case Failed():
                self._fail(closing)
            case Cancelled(reason="shutting_down"):
                self._fail(failure_of(closing, ran=self._ran_tools))
            case Cancelled():
                self._close_all("incomplete")
                self._finish("response.incomplete", "cancelled", closing)

    def _complete(self, closing: Completed, at: float) -> None:
        incomplete = _INCOMPLETE.get(closing.finish_reason)
        if not any(isinstance(item, MessageItem | CallItem) for item in self.items):
            self._open_message()
            self._message.ensure_text()
        self._close_all("completed" if incomplete is None else "incomplete")
        if incomplete is None:
            self._finish("response.completed", "completed", closing, completed_at=at)
        else:
            self._finish("response.incomplete", "incomplete", closing, incomplete=incomplete)

    def _fail(self, failure: Failed) -> None:
        self.failure = failure
        self._close_all("incomplete")
        self._finish("response.failed", "failed", failure, error=error_body(failure))

    def _close_all(self, status: ItemStatus) -> None:
        self._reasoning.close(status)
        self._message.close(status)
        self._close_call(status)
        if status == "incomplete":
            # The client must not execute any of the calls.
            for item in self.items:
                if isinstance(item, CallItem):
                    item.status = status

    def _finish(self, kind: str, status: Status, closing: ClosingEvent, **more: Any) -> None:
        summary = None
        if self._extension is not None and not isinstance(closing, Failed):
            summary = self._extension.summary(closing)
        self.response = response_body(
            self._options,
            status,
            output=[item.body() for item in self.items],
            usage=closing.usage,
            summary=summary,
            **more,
        )
        self._steps.add_event(kind, response=self.response)


def _logprob(one: dict[str, Any]) -> Body:
    """Convert the log probability of a token; ``bytes`` and ``top_logprobs`` can be null in chat completions only."""
    converted = {"token": one["token"], "bytes": one.get("bytes") or [], "logprob": one["logprob"]}
    top = [
        {"token": other["token"], "bytes": other.get("bytes") or [], "logprob": other["logprob"]}
        for other in one.get("top_logprobs") or ()
    ]
    return {**converted, "top_logprobs": top}
