"""Events of a turn as chat completions: a stream of chunks, or one object.

The stream is, frame by frame, what the official API sends: one chunk with the role, the pieces of the answer, one
with the finish reason, one with the usage when it was asked for, ``[DONE]``. A failure takes the place of the finish
and usage chunks. What the server's own tools do is not in it: a ``tool_calls`` delta asks the caller to run them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

from proxy.events import (
    Cancelled,
    ClientToolArguments,
    ClientToolCall,
    Completed,
    Entry,
    Event,
    Failed,
    Handoff,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    Started,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import FinishReason, FunctionCall, ToolCall, Usage
from proxy.wire import sse
from proxy.wire.answer import Joints
from proxy.wire.errors import envelope, failure_of
from proxy.wire.openai import (
    AnswerMessage,
    CallMore,
    CallPiece,
    CallStart,
    Choice,
    Completion,
    Delta,
    FirstCallPiece,
    Logprobs,
    encode,
    usage_body,
)


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


encode_options = msgspec.json.Encoder().encode
decode_options = msgspec.json.Decoder(AnswerOptions).decode


class ChunkEncoder:
    """Turns a turn's entries into the frames of its stream, one encoder for one reader.

    It has to be given every entry from the first. A reader that goes on later says what it has seen last: the frames
    up to there are counted and not returned. Nothing may be written after the frames of a closing event.
    """

    def __init__(self, options: AnswerOptions, *, after: sse.Position = sse.START) -> None:
        self._options = options
        self._after = after
        self._joints = Joints()
        self._has_role = False
        self._ran_tools = False
        self._open_call: int | None = None
        self._called = False
        tail = b',"usage":null}' if options.include_usage else b"}"
        empty = b'{"content":[],"refusal":null}' if options.logprobs else b"null"
        self._head = _head(options) + b',"choices":[{"index":0,"delta":'
        self._tail = b',"logprobs":null,"finish_reason":null}]' + tail
        self._first_tail = b',"logprobs":' + empty + b',"finish_reason":null}]' + tail
        self._logprobs_tail = b',"finish_reason":null}]' + tail
        self._finish = b',"logprobs":null,"finish_reason":"%b"}]' + tail
        self._text_head = self._head + b'{"content":'
        self._text_tail = b"}" + self._tail + b"\n\n"

    def encode(self, entry: Entry) -> bytes:
        """Return the frames of one entry, whole; often none."""
        event = entry.event
        if (
            type(event) is TextDelta
            and self._has_role
            and event.logprobs is None
            and entry.position > self._after[0]
        ):
            # The hot path: one frame, of which only the text is new.
            text = encode(self._joints.join(event.text))
            if not text.isascii():
                text = sse.one_line(text)
            return b"id: %d\ndata: %b%b%b" % (entry.position, self._text_head, text, self._text_tail)
        frames = self._frames(event)
        written = [
            sse.frame(data, entry.position, part)
            for part, data in enumerate(frames)
            if (entry.position, part) > self._after
        ]
        if isinstance(event, Completed | Failed | Cancelled):
            written.append(sse.DONE)
        return b"".join(written)

    def _frames(self, event: Event) -> list[bytes]:
        match event:
            case TextDelta():
                return [*self._role(content=""), self._text(event)]
            case RefusalDelta():
                return [*self._role(content=None, refusal=""), self._chunk(Delta(refusal=event.text))]
            case ClientToolCall():
                return [*self._role(content=None), *self._close_call(), *self._call(event)]
            case ClientToolArguments():
                return self._arguments(event)
            case ModelCalled() | Handoff():
                self._joints.pause()
            case ToolStarted():
                self._ran_tools = True
            case Started() | ReasoningDelta() | ToolCompleted() | ToolFailed():
                pass
            case Completed():
                return [
                    *self._role(content=""),
                    *self._close_call(),
                    *self._end(_reason(event.finish_reason, self._options), event.usage),
                ]
            case Failed():
                return [envelope(event)]
            case Cancelled():
                # A call that was cut off must not look like a whole one.
                if event.reason == "requested" and not self._called:
                    return [*self._role(content=""), *self._end("stop", event.usage)]
                return [envelope(failure_of(event, ran_tools=self._ran_tools))]
        return []

    def _role(self, *, content: str | None, refusal: str | None = None) -> list[bytes]:
        """The chunk with the role, which comes once and before all others."""
        if self._has_role:
            return []
        self._has_role = True
        delta = {"role": "assistant", "content": content}
        if content is not None or refusal is not None:
            delta["refusal"] = refusal
        return [self._head + encode(delta) + self._first_tail]

    def _chunk(self, delta: Delta) -> bytes:
        return self._head + encode(delta) + self._tail

    def _text(self, event: TextDelta) -> bytes:
        delta = encode(Delta(content=self._joints.join(event.text)))
        if event.logprobs is None or not self._options.logprobs:
            return self._head + delta + self._tail
        logprobs = encode(Logprobs(event.logprobs))
        return b"".join((self._head, delta, b',"logprobs":', logprobs, self._logprobs_tail))

    def _call(self, event: ClientToolCall) -> list[bytes]:
        self._called = True
        if self._options.uses_functions:
            if event.index > 0:
                return []  # the old form has room for one
            self._open_call = 0
            return [self._chunk(Delta(function_call=CallStart(event.name)))]
        self._open_call = event.index
        piece = FirstCallPiece(index=event.index, id=event.call_id, function=CallStart(event.name))
        return [self._chunk(Delta(tool_calls=[piece]))]

    def _arguments(self, event: ClientToolArguments) -> list[bytes]:
        if not event.arguments:
            return []
        self._open_call = None
        return self._argument_piece(event.index, event.arguments)

    def _argument_piece(self, index: int, arguments: str) -> list[bytes]:
        more = CallMore(arguments)
        if self._options.uses_functions:
            return [self._chunk(Delta(function_call=more))] if index == 0 else []
        return [self._chunk(Delta(tool_calls=[CallPiece(index, more)]))]

    def _close_call(self) -> list[bytes]:
        """A call without arguments has to end up with ``{}``, which every client can parse."""
        if self._open_call is None:
            return []
        index, self._open_call = self._open_call, None
        return self._argument_piece(index, "{}")

    def _end(self, reason: FinishReason, usage: Usage) -> list[bytes]:
        frames = [self._head + b"{}" + self._finish % reason.encode()]
        if self._options.include_usage:
            frames.append(_head(self._options) + b',"choices":[],"usage":' + encode(usage_body(usage)) + b"}")
        return frames


def _head(options: AnswerOptions) -> bytes:
    """What all chunks of a stream begin with, without the closing brace."""
    head: dict[str, Any] = {
        "id": options.id,
        "object": "chat.completion.chunk",
        "created": options.created,
        "model": options.model,
    }
    if options.service_tier is not None:
        head["service_tier"] = options.service_tier
    if options.system_fingerprint is not None:
        head["system_fingerprint"] = options.system_fingerprint
    return encode(head)[:-1]


def _reason(reason: FinishReason, options: AnswerOptions) -> FinishReason:
    return "function_call" if options.uses_functions and reason == "tool_calls" else reason


class CompletionBuilder:
    """Gathers the events of a turn into one completion."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._joints = Joints()
        self._text: list[str] = []
        self._refusal: list[str] = []
        self._logprobs: list[Any] = []
        self._calls: dict[int, tuple[str, str, list[str]]] = {}
        self._ran_tools = False
        self._answer: Completion | Failed | None = None

    def add(self, event: Event) -> None:
        """Take the next event."""
        match event:
            case TextDelta():
                self._text.append(self._joints.join(event.text))
                if event.logprobs is not None:
                    self._logprobs.extend(event.logprobs)
            case RefusalDelta():
                self._refusal.append(event.text)
            case ClientToolCall():
                self._calls[event.index] = (event.call_id, event.name, [])
            case ClientToolArguments():
                self._calls[event.index][2].append(event.arguments)
            case ModelCalled() | Handoff():
                self._joints.pause()
            case ToolStarted():
                self._ran_tools = True
            case Started() | ReasoningDelta() | ToolCompleted() | ToolFailed():
                pass
            case Completed():
                self._answer = self._completion(_reason(event.finish_reason, self._options), event.usage)
            case Failed():
                self._answer = event
            case Cancelled():
                if event.reason == "requested":
                    self._calls.clear()  # what was cut off must not look like a whole call
                    self._answer = self._completion("stop", event.usage)
                else:
                    self._answer = failure_of(event, ran_tools=self._ran_tools)

    def answer(self) -> Completion | Failed:
        """Return what the turn came to; only after its closing event."""
        if self._answer is None:
            raise ValueError("the turn is not over")
        return self._answer

    def _completion(self, reason: FinishReason, usage: Usage) -> Completion:
        options = self._options
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
                Choice(0, self._message(), Logprobs(self._logprobs) if options.logprobs else None, reason),
            ],
            usage=usage_body(usage),
            **optional,
        )

    def _message(self) -> AnswerMessage:
        calls = [
            ToolCall(id=call_id, function=FunctionCall(name, "".join(arguments) or "{}"))
            for _, (call_id, name, arguments) in sorted(self._calls.items())
        ]
        refusal = "".join(self._refusal) or None
        content = "".join(self._text) or (None if calls or refusal else "")
        if not calls:
            return AnswerMessage(content=content, refusal=refusal)
        if self._options.uses_functions:
            return AnswerMessage(content=content, refusal=refusal, function_call=calls[0].function)
        return AnswerMessage(content=content, refusal=refusal, tool_calls=calls)


def completion(options: AnswerOptions, events: Iterable[Event]) -> Completion | Failed:
    """Return the completion of a whole turn, or how it failed."""
    builder = CompletionBuilder(options)
    for event in events:
        builder.add(event)
    return builder.answer()
