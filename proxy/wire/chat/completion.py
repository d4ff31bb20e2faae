"""Encode the events of a turn as one chat completion, and the options of encoders."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct, field

from proxy.events import (
    AgentSpeaking,
    ApprovalDecided,
    ApprovalRequested,
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    ContextCompacted,
    DelegateEvent,
    Entry,
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
from proxy.messages import EventsMode, FinishReason, FunctionCall, Message, ToolCall
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.handoff_extension import HandoffExtensionEncoder
from proxy.wire.chat.response_models import (
    AnswerMessage,
    Choice,
    Completion,
    Logprobs,
    usage_body,
)
from proxy.wire.errors import failure_of


class AnswerOptions(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Options of an encoder, stored with the turn so that its response can be encoded again."""

    id: str
    created: int
    model: str
    include_usage: bool = False
    uses_functions: bool = False
    """Tool calls use the deprecated ``function_call``."""
    logprobs: bool = False
    service_tier: str | None = None
    """Value of ``service_tier``; None omits the key."""
    system_fingerprint: str | None = None
    events: EventsMode = "none"
    """Mode of the handoff extension."""
    hides_details: bool = False
    """Omit content of models and tools from the extension."""
    has_status: bool = False
    """Add status events for Open WebUI."""
    sent: int = 0
    """Number of messages in the request; set for stored completions only, as is ``instructions``."""
    instructions: Sequence[tuple[int, Message]] = ()
    """System and developer messages of the request with their indexes; conversations do not store them."""


EXTENSION_ONLY = frozenset(
    (
        Started,
        ReasoningDelta,
        ParametersIgnored,
        ContextCompacted,
        ToolCompleted,
        ToolFailed,
        ApprovalRequested,
        ApprovalDecided,
        AgentSpeaking,
    )
)
"""Events that the OpenAI API has no place for."""
encode_options = msgspec.json.Encoder().encode
decode_options = msgspec.json.Decoder(AnswerOptions).decode


def extension_encoder(options: AnswerOptions) -> HandoffExtensionEncoder | None:
    """Return the encoder of the handoff extension; None if it is switched off."""
    if options.events == "none":
        return None
    return HandoffExtensionEncoder(
        options.events, hides_details=options.hides_details, has_status=options.has_status
    )


def finish_reason_for(reason: FinishReason, options: AnswerOptions) -> FinishReason:
    """Return the finish reason, ``function_call`` for a request with the deprecated ``functions``."""
    return "function_call" if options.uses_functions and reason == "tool_calls" else reason


class CompletionBuilder(Struct):
    """Builds one completion from the events of a turn."""

    options: AnswerOptions
    _extension: HandoffExtensionEncoder | None = None
    _joints: TextJoiner = field(default_factory=TextJoiner)
    _reasoning: list[str] = []
    _text: list[str] = []
    _refusal: list[str] = []
    _logprobs: list[Any] = []
    _refusal_logprobs: list[Any] = []
    _calls: dict[int, tuple[str, str, list[str]]] = {}
    _ran_tools: list[str] = []
    _answer: Completion | Failed | None = None

    def __post_init__(self) -> None:
        self._extension = extension_encoder(self.options)

    def add(self, entry: Entry) -> None:
        """Add the next entry of a log."""
        event = entry.event
        # The most frequent events first: a pattern that does not match takes longer than a function call.
        if type(event) is TextDelta:
            self._text.append(self._joints.join(event.text))
            if event.logprobs is not None:
                self._logprobs.extend(event.logprobs)
            return
        if type(event) is Completed:
            self._answer = self._completion(finish_reason_for(event.finish_reason, self.options), event)
            return
        if self._extension is not None:
            note = self._extension.encode(event)
            if note is not None and note.reasoning:
                self._reasoning.append(note.reasoning)
        if type(event) is ModelCalled:
            self._joints.is_paused = True
            return
        if type(event) in EXTENSION_ONLY:
            return
        match event:
            case Handoff():
                self._joints.pause()
            case RefusalDelta():
                self._refusal.append(event.text)
                if event.logprobs is not None:
                    self._refusal_logprobs.extend(event.logprobs)
            case ClientToolCall():
                self._calls[event.index] = (event.call_id, event.name, [])
            case ClientToolArguments():
                self._calls[event.index][2].append(event.arguments)
            case ToolStarted() | DelegateEvent() | MemberTeamEvent():
                self._ran_tools += started_tools(event)
            case (
                TextDelta()
                | Completed()
                | ModelCalled()
                | Started()
                | ReasoningDelta()
                | ParametersIgnored()
                | ContextCompacted()
                | ToolCompleted()
                | ToolFailed()
                | ApprovalRequested()
                | ApprovalDecided()
                | AgentSpeaking()
            ):
                pass
            case Failed():
                self._answer = event
            case Cancelled():
                if event.reason == "requested":
                    self._calls.clear()  # a truncated tool call must not look complete
                    self._answer = self._completion("stop", event)
                else:
                    self._answer = failure_of(event, ran=self._ran_tools)

    def answer(self) -> Completion | Failed:
        """Return the completion or the failure of the turn.

        Raises:
            ValueError: The closing event is missing.
        """
        if self._answer is None:
            raise ValueError("the turn has no closing event")
        return self._answer

    def clear(self) -> None:
        """Drop the completion and what it was built from."""
        self._answer = None
        for content in (self._text, self._reasoning, self._refusal, self._logprobs, self._refusal_logprobs):
            content.clear()
        self._calls.clear()

    def _completion(self, reason: FinishReason, closing: Completed | Cancelled) -> Completion:
        options = self.options
        summary = self._extension.summary(closing) if self._extension is not None else None
        return Completion(
            id=options.id,
            created=options.created,
            model=options.model,
            choices=[
                Choice(0, self._message(), self._logprobs_body() if options.logprobs else None, reason),
            ],
            usage=usage_body(closing.usage),
            handoff=summary or UNSET,
            service_tier=options.service_tier or UNSET,
            system_fingerprint=options.system_fingerprint or UNSET,
        )

    def _logprobs_body(self) -> Logprobs | None:
        """Return the log probabilities; None if the provider sent none."""
        if not (self._logprobs or self._refusal_logprobs):
            return None
        return Logprobs(self._logprobs or None, self._refusal_logprobs or None)

    def _tool_calls(self) -> list[ToolCall]:
        return [
            ToolCall(id=call_id, function=FunctionCall(name, "".join(arguments) or "{}"))
            for _, (call_id, name, arguments) in sorted(self._calls.items())
        ]

    def _message(self) -> AnswerMessage:
        refusal = "".join(self._refusal) or None
        reasoning = "".join(self._reasoning) or UNSET
        text = "".join(self._text)
        if not self._calls:
            return AnswerMessage(
                content=text or (None if refusal else ""), refusal=refusal, reasoning_content=reasoning
            )
        calls = self._tool_calls()
        is_deprecated = self.options.uses_functions
        return AnswerMessage(
            content=text or None,
            refusal=refusal,
            reasoning_content=reasoning,
            tool_calls=UNSET if is_deprecated else calls,
            function_call=calls[0].function if is_deprecated else UNSET,
        )


def completion(options: AnswerOptions, events: Iterable[Event]) -> Completion | Failed:
    """Return the completion of a complete turn, or its failure."""
    builder = CompletionBuilder(options)
    for position, event in enumerate(events, 1):
        builder.add(Entry(position, event))
    return builder.answer()
