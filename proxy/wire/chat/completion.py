"""Events of a turn as one chat completion, and what encoders of its answer have to know."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from proxy.events import (
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    Entry,
    Event,
    Failed,
    Handoff,
    ModelCalled,
    ParametersIgnored,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import EventsMode, FinishReason, FunctionCall, Message, ToolCall
from proxy.wire.chat.answer_text import Joints
from proxy.wire.chat.handoff_extension import Narrator
from proxy.wire.chat.response_models import (
    AnswerMessage,
    Choice,
    Completion,
    Logprobs,
    usage_body,
)
from proxy.wire.errors import failure_of


class AnswerOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an encoder has to know beside the events; kept with the turn, so that it can be encoded again."""

    id: str
    created: int
    model: str
    include_usage: bool = False
    uses_functions: bool = False
    """Calls are told in the deprecated form, as ``function_call``."""
    logprobs: bool = False
    service_tier: str | None = None
    """The tier to answer with; None leaves the key out."""
    system_fingerprint: str | None = None
    events: EventsMode = "none"
    """What is told beside the answer."""
    hides_details: bool = False
    """What models and tools wrote is kept out of that."""
    has_status: bool = False
    """Open WebUI's status line is told too."""
    sent: int = 0
    """How many messages the request had; told of stored completions only, like the next."""
    instructions: list[tuple[int, Message]] = []
    """Those of them that are instructions, with their places: a conversation does not keep them."""


encode_options = msgspec.json.Encoder().encode
decode_options = msgspec.json.Decoder(AnswerOptions).decode


def narrator_of(options: AnswerOptions) -> Narrator | None:
    """Return who tells what is told beside the answer."""
    if options.events == "none":
        return None
    return Narrator(options.events, hides_details=options.hides_details, has_status=options.has_status)


def reason_of(reason: FinishReason, options: AnswerOptions) -> FinishReason:
    """Return the reason in the words of the form that was asked for."""
    return "function_call" if options.uses_functions and reason == "tool_calls" else reason


class CompletionBuilder:
    """Gathers the events of a turn into one completion."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._joints = Joints()
        self._narrator = narrator_of(options)
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._logprobs: list[Any] = []
        self._refusal_logprobs: list[Any] = []
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._ran_tools = False
        self._answer: Completion | Failed | None = None

    def take(self, entry: Entry) -> None:
        """Take the next entry of a log."""
        self.add(entry.event)

    def add(self, event: Event) -> None:
        """Take the next event."""
        note = self._narrator.tell(event) if self._narrator is not None else None
        if note is not None and note.reasoning:
            self._reasoning.append(note.reasoning)
        match event:
            case TextDelta():
                self._text.append(self._joints.join(event.text))
                if event.logprobs is not None:
                    self._logprobs.extend(event.logprobs)
            case RefusalDelta():
                self._refusal.append(event.text)
                if event.logprobs is not None:
                    self._refusal_logprobs.extend(event.logprobs)
            case ClientToolCall():
                self._calls[event.index] = (event.call_id, event.name, [])
            case ClientToolArguments():
                self._calls[event.index][2].append(event.arguments)
            case ModelCalled() | Handoff():
                self._joints.pause()
            case ToolStarted():
                self._ran_tools = True
            case (
                Started()
                | ParametersIgnored()
                | ReasoningDelta()
                | ToolCompleted()
                | ToolFailed()
                | ApprovalRequested()
                | ApprovalDecided()
            ):
                pass
            case Completed():
                self._answer = self._completion(reason_of(event.finish_reason, self._options), event)
            case Failed():
                self._answer = event
            case Cancelled():
                if event.reason == "requested":
                    self._calls.clear()  # what was cut off must not look like a whole call
                    self._answer = self._completion("stop", event)
                else:
                    self._answer = failure_of(event, ran_tools=self._ran_tools)

    def answer(self) -> Completion | Failed:
        """Return what the turn came to; only after its closing event."""
        if self._answer is None:
            raise ValueError("the turn is not over")
        return self._answer

    def _completion(self, reason: FinishReason, closing: Completed | Cancelled) -> Completion:
        options = self._options
        summary = self._narrator.summary(closing) if self._narrator is not None else None
        optional = {
            name: value
            for name in ("service_tier", "system_fingerprint")
            if (value := getattr(options, name)) is not None
        }
        return Completion(
            id=options.id,
            created=options.created,
            model=options.model,
            choices=[
                Choice(0, self._message(), self._told_logprobs(), reason),
            ],
            usage=usage_body(closing.usage),
            handoff=summary or UNSET,
            **optional,
        )

    def _told_logprobs(self) -> Logprobs | None:
        """Those that were given; not every provider has them, and none is not the same as none told."""
        if not self._options.logprobs or not (self._logprobs or self._refusal_logprobs):
            return None
        return Logprobs(self._logprobs or None, self._refusal_logprobs or None)

    def _message(self) -> AnswerMessage:
        calls = [
            ToolCall(id=call_id, function=FunctionCall(name, "".join(arguments) or "{}"))
            for _, (call_id, name, arguments) in sorted(self._calls.items())
        ]
        refusal = "".join(self._refusal) or None
        content = "".join(self._text) or (None if calls or refusal else "")
        function_call: FunctionCall | UnsetType = UNSET
        tool_calls: list[ToolCall] | UnsetType = UNSET
        if calls and self._options.uses_functions:
            function_call = calls[0].function
        elif calls:
            tool_calls = calls
        return AnswerMessage(
            content=content,
            refusal=refusal,
            reasoning_content="".join(self._reasoning) or UNSET,
            tool_calls=tool_calls,
            function_call=function_call,
        )


def completion(options: AnswerOptions, events: Iterable[Event]) -> Completion | Failed:
    """Return the completion of a whole turn, or how it failed."""
    builder = CompletionBuilder(options)
    for event in events:
        builder.add(event)
    return builder.answer()
