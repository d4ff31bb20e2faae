"""Encode the events of a turn as a stream of chat completion chunks.

The sequence is that of the OpenAI API (API reference, "Chat Completions streaming"): a chunk with the role, the deltas,
a chunk with the finish reason, a chunk with usage if requested, ``[DONE]``. An error event replaces the chunks with
finish reason and usage. Server tool calls are not in it, because a ``tool_calls`` delta asks the client to run the
tool; the handoff extension reports them in separate chunks and on the last chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import attrgetter
from typing import Literal, NamedTuple

from msgspec import UNSET, Struct, UnsetType

from proxy.events import (
    CLOSING,
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
from proxy.messages import FinishReason
from proxy.wire.chat.answer_text import TextJoiner
from proxy.wire.chat.completion import EXTENSION_ONLY, AnswerOptions, extension_encoder, finish_reason_for
from proxy.wire.chat.extension_objects import ExtensionUpdate
from proxy.wire.chat.response_models import (
    CallMore,
    CallPiece,
    CallStart,
    Delta,
    FirstCallPiece,
    Logprobs,
    encode,
    usage_body,
)
from proxy.wire.errors import envelope, failure_of, stream_error
from proxy.wire.events import sse

_event, _text, _logprobs = attrgetter("event"), attrgetter("text"), attrgetter("logprobs")
_ROLE = b'{"role":"assistant","content":null}'
_TEXT_ROLE = b'{"role":"assistant","content":"","refusal":null}'
_REFUSAL_ROLE = b'{"role":"assistant","content":null,"refusal":""}'
"""Deltas of the chunk with the role, before a text, a refusal, or anything else."""


class ChunkEncoder:
    """Encodes the entries of a turn as SSE frames for one reader.

    It needs every entry from the first. The frames of the closing event are the last ones. With ``has_ids``, frames
    have ids, except the last one, ``[DONE]``; for a reader that reconnects, those up to the position ``after`` are
    counted but not returned.
    """

    __slots__ = (
        "_after",
        "_called",
        "_extension",
        "_has_ids",
        "_has_role",
        "_head",
        "_is_flowing",
        "_joints",
        "_needs_content",
        "_open_call",
        "_options",
        "_ran_tools",
        "_refused",
        "_tails",
        "_text_head",
        "_text_tail",
    )

    def __init__(
        self, options: AnswerOptions, *, after: sse.Position = sse.START, has_ids: bool = False
    ) -> None:
        self._options = options
        self._has_ids = has_ids
        self._after = after
        self._joints = TextJoiner()
        self._extension = extension_encoder(options)
        self._has_role = False
        self._is_flowing = False
        """The next text delta needs no preceding frame."""
        self._ran_tools: list[str] = []
        self._refused = False
        self._needs_content = False
        """The chunk with the role had null content; if no other output follows, the content is an empty string."""
        self._open_call: int | None = None
        self._called = False
        self._head = _head(options) + b',"choices":[{"index":0,"delta":'
        self._text_head = self._head + b'{"content":'
        self._tails = _tails(has_usage=options.include_usage, has_logprobs=options.logprobs)
        self._text_tail = self._tails.text_frame

    def encode(self, entry: Entry) -> bytes:
        """Return the complete frames of one entry; often empty."""
        event = entry.event
        if (
            type(event) is TextDelta
            and self._is_flowing
            and event.logprobs is None
            and entry.position > self._after[0]
        ):
            # Fast path: one frame in which only the text varies.
            text = encode(self._joints.join(event.text))
            if not text.isascii():
                text = sse.one_line(text)
            if not self._has_ids:
                return b"data: %b%b%b" % (self._text_head, text, self._text_tail)
            return b"id: %d\ndata: %b%b%b" % (entry.position, self._text_head, text, self._text_tail)
        note = self._extension.encode(event) if self._extension is not None else None
        if type(event) is ModelCalled:
            self._joints.is_paused = True
            return b""
        if note is None and type(event) in EXTENSION_ONLY:
            return b""
        if type(event) is TextDelta:
            self._is_flowing = True
        elif type(event) is Handoff or (note is not None and note.status is not None):
            # After another status the next text delta is preceded by one that names the active agent.
            self._is_flowing = False
        frames = self._answer(event) if note is None else self._noted(note, event)
        if not frames:
            return b""
        written = self._with_ids(frames, entry.position) if self._has_ids else sse.data_frames(frames)
        # All of them have frames.
        return written + sse.DONE if type(event) in CLOSING else written

    def _with_ids(self, frames: Sequence[bytes], position: int) -> bytes:
        """Return the frames of the entry at a position as events, those that the reader does not have."""
        return b"".join(
            sse.frame(data, position, part)
            for part, data in enumerate(frames)
            if (position, part) > self._after
        )

    def encode_batch(self, entries: Sequence[Entry]) -> bytes:
        """Return the frames of successive entries, faster than one by one if all of them are text."""
        if len(entries) == 1:
            return self.encode(entries[0])
        events = [*map(_event, entries)]
        is_flowing = self._is_flowing and not self._has_ids and entries[0].position > self._after[0]
        # First the types: other events have no log probabilities.
        is_text = is_flowing and {*map(type, events)} == {TextDelta}
        if not is_text or [*map(_logprobs, events)].count(None) < len(events):
            return b"".join(map(self.encode, entries))
        texts = self._joints.join_all([*map(_text, events)])
        data = sse.one_line(encode(texts))
        head, tail = b"data: " + self._text_head, self._text_tail
        # Not ``in``, which first tries bytes as a number and raises an error (CPython, bytes_methods.c).
        if data.find(b'\\"') >= 0:
            # What separates two texts can be a part of a text.
            return b"".join(head + sse.one_line(encode(text)) + tail for text in texts)
        # Without the quotation marks at both ends: that of the first text and a comma in it look like a separator.
        middle = data[2:-2].replace(b'","', b'"' + tail + head + b'"')
        return head + b'"' + middle + b'"' + tail

    @property
    def text_frame(self) -> tuple[bytes, bytes] | None:
        """What is before and behind the JSON string of the next text delta; None if it needs ``encode``."""
        if not self._is_flowing or self._has_ids or self._after != sse.START or self._joints.is_paused:
            return None
        return b'data: %b"' % self._text_head, b'"' + self._text_tail

    def skip(self, texts: Sequence[str]) -> None:
        """Record text deltas that were written in the ``text_frame``."""
        self._joints.join_all(texts)

    def _noted(self, note: ExtensionUpdate, event: Event) -> list[bytes]:
        """Return the frames of an event behind those of the extension."""
        frames = [] if self._has_role else [self._role(_TEXT_ROLE if type(event) is TextDelta else _ROLE)]
        frames.append(self._extension_chunk(note))
        return frames + self._answer(event)

    def _answer(self, event: Event) -> list[bytes]:
        """Return the frames of an event that are part of the OpenAI API."""
        # The most frequent events first: a pattern that does not match takes longer than a function call.
        if type(event) is TextDelta:
            text = self._text(event)
            return [text] if self._has_role else [self._role(_TEXT_ROLE), text]
        if type(event) in EXTENSION_ONLY:
            return []
        match event:
            case Completed():
                return self._end(finish_reason_for(event.finish_reason, self._options), event)
            case Handoff():
                self._joints.pause()
            case RefusalDelta():
                self._refused = True
                refusal = self._refusal(event)
                return [refusal] if self._has_role else [self._role(_REFUSAL_ROLE), refusal]
            case ClientToolCall():
                role = [] if self._has_role else [self._role(_ROLE)]
                return [*role, *self._close_call(), *self._call(event)]
            case ClientToolArguments():
                return self._arguments(event)
            case ToolStarted() | DelegateEvent() | MemberTeamEvent():
                self._ran_tools += started_tools(event)
            case (
                TextDelta()
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
                return [envelope(stream_error(event))]
            case Cancelled():
                # A truncated tool call must not look complete.
                if event.reason == "requested" and not self._called:
                    return self._end("stop", event)
                return [envelope(stream_error(failure_of(event, ran=self._ran_tools)))]
        return []

    def _role(self, delta: bytes) -> bytes:
        """Return the chunk with the role, which is the first one; ``delta`` is one of the constants."""
        self._has_role = True
        self._needs_content = delta is not _TEXT_ROLE
        return self._head + delta + self._tails.first

    def _chunk(self, delta: Delta) -> bytes:
        return self._head + encode(delta) + self._tails.frame

    def _text(self, event: TextDelta) -> bytes:
        text = self._joints.join(event.text)
        if event.logprobs is None or not self._options.logprobs:
            return self._text_head + encode(text) + self._tails.text
        return self._with_logprobs(Delta(content=text), Logprobs(event.logprobs))

    def _refusal(self, event: RefusalDelta) -> bytes:
        delta = Delta(refusal=event.text)
        if event.logprobs is None or not self._options.logprobs:
            return self._chunk(delta)
        return self._with_logprobs(delta, Logprobs(None, event.logprobs))

    def _with_logprobs(self, delta: Delta, logprobs: Logprobs) -> bytes:
        return b"".join((self._head, encode(delta), b',"logprobs":', encode(logprobs), self._tails.logprobs))

    def _call(self, event: ClientToolCall) -> list[bytes]:
        self._called = True
        if self._options.uses_functions:
            if event.index > 0:
                return []  # ``function_call`` can represent only one call
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
        """Complete a call without arguments with ``{}``, because clients parse arguments as JSON."""
        if self._open_call is None:
            return []
        index, self._open_call = self._open_call, None
        return self._argument_piece(index, "{}")

    def _end(self, reason: FinishReason, closing: Completed | Cancelled) -> list[bytes]:
        frames = [] if self._has_role else [self._role(_TEXT_ROLE)]
        if self._open_call is not None:
            frames += self._close_call()
        if self._needs_content and not (self._joints.has_text or self._refused or self._called):
            frames.append(self._chunk(Delta(content="")))
        finish = self._head + b"{}" + self._tails.finish % reason.encode()
        summary = self._extension.summary(closing) if self._extension is not None else None
        if summary is not None:
            finish = b'%b,"handoff":%b}' % (finish[:-1], encode(summary))
        frames.append(finish)
        if self._options.include_usage:
            usage = encode(usage_body(closing.usage))
            frames.append(_head(self._options) + b',"choices":[],"usage":' + usage + b"}")
        return frames

    def _extension_chunk(self, note: ExtensionUpdate) -> bytes:
        """Return a chunk without a delta of the message, with the extension next to ``choices``."""
        delta = encode(Delta(reasoning_content=note.reasoning)) if note.reasoning else b"{}"
        event = b',"handoff":%b' % encode(note.event) if note.event is not None else b""
        status = b',"event":%b' % encode(note.status) if note.status is not None else b""
        return b"%b%b%b%b%b}" % (self._head, delta, self._tails.frame[:-1], event, status)


class _Tails(NamedTuple):
    """The ends of chunks."""

    first: bytes
    """Of the chunk with the role."""
    frame: bytes
    text: bytes
    """With the end of the delta."""
    text_frame: bytes
    """With the end of the delta and of the frame."""
    logprobs: bytes
    """After ``logprobs``."""
    finish: bytes
    """With a place for the finish reason."""


@cache
def _tails(*, has_usage: bool, has_logprobs: bool) -> _Tails:
    end = b',"usage":null}' if has_usage else b"}"
    empty = b'{"content":[],"refusal":null}' if has_logprobs else b"null"
    frame = b',"logprobs":null,"finish_reason":null}]' + end
    return _Tails(
        first=b',"logprobs":' + empty + b',"finish_reason":null}]' + end,
        frame=frame,
        text=b"}" + frame,
        text_frame=b"}" + frame + b"\n\n",
        logprobs=b',"finish_reason":null}]' + end,
        finish=b',"logprobs":null,"finish_reason":"%b"}]' + end,
    )


class _Head(Struct, frozen=True, kw_only=True):
    """The common start of all chunks."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    service_tier: str | UnsetType = UNSET
    system_fingerprint: str | UnsetType = UNSET


def _head(options: AnswerOptions) -> bytes:
    """Return the common start of all chunks, without the closing brace."""
    head = _Head(
        id=options.id,
        created=options.created,
        model=options.model,
        service_tier=UNSET if options.service_tier is None else options.service_tier,
        system_fingerprint=UNSET if options.system_fingerprint is None else options.system_fingerprint,
    )
    return encode(head)[:-1]
