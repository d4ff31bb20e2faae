"""Parser of chat completions, streamed or whole: bytes of the provider become deltas of the model port.

Well-formed chunks take a short path. Deviations whose meaning is clear are corrected; the others are errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import Any

from msgspec import Struct, field
from msgspec.structs import astuple

from proxy.errors import UpstreamFailed, UpstreamIncomplete, UpstreamProtocolError, UpstreamResponseTooLarge
from proxy.events import ReasoningDelta, RefusalDelta, TextBatch, TextDelta
from proxy.providers.http.sse import EventReader
from proxy.providers.model import Finished, ModelDelta, RemoteEvent, UsagePiece
from proxy.providers.openai.answer_text import AnswerText, TextMember
from proxy.providers.openai.chat_usage import clean_usage
from proxy.providers.openai.errors import error_event
from proxy.providers.openai.finish_reasons import FAILURES, NO_REASONS, ending_of, finish_reason
from proxy.providers.openai.frame_search import MOST_COMPARED, FrameSearch
from proxy.providers.openai.provider_state import StateCollector
from proxy.providers.openai.repeated_frame import RepeatedFrame
from proxy.providers.openai.stream_chunk import (
    MEMBERS_READ,
    STATE_MEMBERS,
    CallDelta,
    Chunk,
    ChunkChoice,
    ChunkDelta,
    decode,
    decode_known,
    decoded,
    is_piece,
    legacy_call,
    only_call,
    only_delta,
    only_text,
    repaired,
    token_list,
    whole_chunks,
)
from proxy.providers.openai.tool_call_assembler import CallAssembler
from proxy.providers.openai.unknown_members import CallMembers, UnknownMembers
from proxy.providers.think_tags import ThinkTagSplitter


class AnswerReader(Struct, kw_only=True, eq=False):
    """Reads one answer. ``feed`` and ``end`` give its deltas; the last of all is ``Finished``."""

    max_answer_bytes: int
    max_line_bytes: int = 1024 * 1024
    provider: str = ""
    """The name of the model at its provider (``provider_of``): only the same one gets its state back."""
    starts_in_reasoning: bool = False
    """The text of this model begins with reasoning, up to ``</think>``."""
    failure: UpstreamFailed | None = None
    """Raised after the deltas that arrived with it, so that these are not lost."""
    has_said: bool = False
    """Whether anything of the answer came, even if it is held back."""
    has_reason: bool = False
    """Whether a finish reason ended the answer, so that only usage can follow."""
    is_finished: bool = False
    repeated_frame: RepeatedFrame | None = None
    """The frame of a text, if nothing else of the answer is needed to read the next ones."""
    _events: EventReader = field(default_factory=EventReader)
    # Created when they are needed: most answers have neither calls nor state.
    _calls: CallAssembler | None = None
    _state: StateCollector | None = None
    _size: int = 0
    _reason: str | None = None
    _usage: Any = None
    _has_choice: bool = False
    _has_early_reason: bool = False
    """Whether content followed a finish reason: this provider's reasons do not end an answer by themselves."""
    _has_first_reason: bool = False
    """Whether the only text so far came in one chunk with a finish reason."""
    _has_only_whole: bool = True
    """Whether no text can have half of a surrogate pair: msgspec rejects it, and only ``repaired`` accepts it."""
    _has_only_known: bool = True
    """Whether no chunk can have unknown members: all were decoded with ``decode_known``."""
    _is_ordinary: bool = False
    """Whether the answer has begun, and has neither a finish reason nor unknown members so far."""
    _content: AnswerText = field(default_factory=AnswerText)
    _reasoning: TextMember = field(default_factory=TextMember)
    _refusal: TextMember = field(default_factory=TextMember)
    _message_calls: list[CallDelta] | None = None
    """The calls of the latest whole ``message``; used if no call arrived in deltas."""
    _has_state: bool = False
    _unknown: UnknownMembers = field(default_factory=UnknownMembers)
    _unknown_of_calls: CallMembers = ()
    """Of the calls in the latest whole ``message``."""
    _has_legacy_call: bool = False
    """Whether the call arrives as ``function_call``."""
    _search: FrameSearch = field(default_factory=partial(FrameSearch, b'"content"'))

    def __post_init__(self) -> None:
        self._events.max_line_bytes = self.max_line_bytes
        self._content.starts_in_reasoning = self.starts_in_reasoning

    @property
    def has_unopened_reasoning(self) -> bool:
        """Whether the text of the finished answer has reasoning up to ``</think>``, without the opening tag."""
        return ThinkTagSplitter.is_unopened("".join(self._content.pieces))

    @property
    def bytes_left(self) -> int:
        """How many bytes of text the answer can still have."""
        return self.max_answer_bytes - self._size

    def add_texts(self, texts: Sequence[str]) -> None:
        """Add texts of repeated frames that a relay has passed on."""
        self._size += sum(map(len, texts))
        self._content.pieces += texts
        self._search.note_use()

    @property
    def may_continue(self) -> bool:
        """Whether the reason came with the first text: it ends a short answer, or this provider sends one always."""
        return self._has_first_reason

    def feed(self, received: bytes) -> Sequence[ModelDelta]:
        """Return the deltas of the events that these bytes complete; what follows ``[DONE]`` is dropped.

        Raises:
            UpstreamFailed: The provider reported an error, or the data is invalid. After deltas it is
                stored as ``failure`` instead.
        """
        # Not mutated: without this shortcut ``_parse`` reads the events, with the same result.
        if (
            (repeated := self.repeated_frame) is not None
            # Bytes, of which a text has at least as many as characters.
            and len(received) <= self.bytes_left
            and (texts := repeated.texts(received)) is not None
        ):  # pragma: no mutate
            self.add_texts(texts)
            return TextBatch.of(texts)
        deltas = self._parse(received)
        is_plain = self._content.is_plain and self._has_only_whole and self._is_ordinary
        self.repeated_frame = self._search.frame() if is_plain and self._events.is_between_events else None
        return deltas

    def _parse(self, received: bytes) -> list[ModelDelta]:
        deltas: list[ModelDelta] = []
        names, payloads = self._events.feed(received)
        count, at = len(payloads), 0
        try:
            while at < count:
                data, name = payloads[at], names[at] if names else b""
                at += 1
                # Not mutated: without this shortcut ``_event`` reads the chunk, with the same result.
                if name or data[:1] != b"{":  # pragma: no mutate
                    self._event(name, data, deltas)
                    if self.is_finished:
                        return deltas
                    continue
                try:
                    chunk = decode_known(data) if self._has_only_known else decode(data)
                except (ValueError, RecursionError):
                    chunk = self._decode_unusual(data)
                # Not mutated either: ``_chunk`` reads all of them with the same result.
                delta = only_delta(chunk) if self._is_ordinary else None  # pragma: no mutate
                text = only_text(delta) if delta is not None else ""
                if not text:
                    if delta is None or not self._has_read_arguments(delta, deltas):
                        self._chunk(chunk, data, deltas)
                    continue
                self._add_text(text, None, deltas)
                if self._content.is_plain and self._has_only_whole:
                    # Between events with names, nothing is compared.
                    following = [] if names else payloads[at : at + MOST_COMPARED]
                    if texts := self._search.texts_behind(data, following):
                        at += self._add_repeated(texts, deltas)
            if self._events.is_over_limit:
                raise UpstreamResponseTooLarge("too_much")
        except UpstreamFailed as failure:
            if self.has_reason and isinstance(failure, UpstreamProtocolError):
                self._finish(deltas)
                return deltas
            if not deltas:
                raise
            self.failure = failure
        return deltas

    def _decode_unusual(self, data: bytes) -> Chunk:
        """Decode a chunk that has unknown members, or that msgspec rejects."""
        self._has_only_known = False
        try:
            return decode(data)
        except (ValueError, RecursionError):
            self._has_only_whole = False
            return repaired(data)

    def _has_read_arguments(self, delta: ChunkDelta, deltas: list[ModelDelta]) -> bool:
        """Read a delta with a further piece of the arguments of a call; False if it has anything else."""
        if self._calls is None or self._content.space or (call := only_call(delta)) is None:
            return False
        pieces = self._calls.further_arguments(call)
        if pieces is None or call.function is None:
            return False
        self._count(1 + len(call.function.arguments))
        deltas += pieces
        return True

    def _add_repeated(self, texts: Sequence[str], deltas: list[ModelDelta]) -> int:
        """Add the texts of the next events, and return their number; 0 if the answer is too long with them."""
        size = self._size + sum(map(len, texts))
        if size > self.max_answer_bytes:
            return 0
        self._size = size
        self._content.pieces += texts
        deltas.extend(map(TextDelta, texts))
        return len(texts)

    def end(self) -> list[ModelDelta]:
        """Return the last deltas of a stream that is over.

        Raises:
            UpstreamIncomplete: It ended without saying that the answer is finished.
        """
        deltas: list[ModelDelta] = []
        try:
            names, payloads = self._events.end()
            for name, data in zip(names or repeat(b""), payloads, strict=False):
                self._event(name, data, deltas)
        except UpstreamProtocolError:
            # Half a chunk: the stream was cut rather than written wrongly. Behind a finish reason only usage is lost.
            if not self.has_reason:
                raise UpstreamIncomplete("incomplete", is_retryable=True) from None
        if not self.is_finished:
            if self._reason is None:
                raise UpstreamIncomplete("incomplete", is_retryable=True)
            self._finish(deltas)
        return deltas

    def read_whole(self, body: bytes) -> list[ModelDelta]:
        """Return the deltas of an answer that came as one JSON object, or as one JSON object per line.

        Raises:
            UpstreamFailed: It is not an answer, or an error with status 200.
        """
        deltas: list[ModelDelta] = []
        self._has_only_whole = self._has_only_known = False
        for chunk, data in whole_chunks(body):
            self._chunk(chunk, data, deltas)
        if not self._has_choice:
            raise UpstreamProtocolError("protocol")
        self._finish(deltas)
        return deltas

    def _event(self, name: bytes, data: bytes, deltas: list[ModelDelta]) -> None:
        if data[:1] != b"{":
            data = data.strip()
            if data == b"[DONE]":
                self._finish(deltas)
                return
            if not data:
                return
        if name == b"error":
            raise error_event(data)
        # An event with a name, or with blanks before its data; it is rare.
        self._has_only_whole = self._has_only_known = False
        self._chunk(decoded(data), data, deltas)

    def _chunk(self, chunk: Chunk, data: bytes, deltas: list[ModelDelta]) -> None:
        if chunk.error:
            raise error_event(chunk.error)
        if chunk.handoff and isinstance(chunk.handoff, dict):
            deltas.append(RemoteEvent(chunk.handoff))
        usage = chunk.usage
        if usage:
            self._usage = usage
        choices = chunk.choices
        if not choices:
            if isinstance(chunk.x_groq, dict):
                self._usage = chunk.x_groq.get("usage") or self._usage
            return
        for choice in choices:
            # A provider may send a second choice, although one was requested.
            if not choice.index:
                self._choice(choice, data, deltas)
        if usage and self.has_said and self._reason is None and (cleaned := clean_usage(usage)) is not None:
            deltas.append(UsagePiece(cleaned))

    def _choice(self, choice: ChunkChoice, data: bytes, deltas: list[ModelDelta]) -> None:
        if choice.error:
            raise error_event(choice.error)
        is_first = not self._has_choice
        self._has_choice = True
        size = self._size
        delta = choice.delta
        unknown: CallMembers = ()
        unknown_of_message: CallMembers = ()
        # Not for each piece of a text or of arguments: they have unknown members if the first piece has.
        if not self._has_only_known and (
            is_first or delta is None or self._unknown.has_any or not (delta.content or is_piece(delta))
        ):
            unknown, unknown_of_message = self._unknown.read(data)
        # The first and the last delta have nothing that is read here.
        if delta is not None and any(astuple(delta)[:MEMBERS_READ]):
            self._delta(delta, choice.logprobs, deltas, unknown)
        if choice.message is not None:
            self._unknown_of_calls = unknown_of_message
            self._message(choice.message, choice.logprobs, deltas)
        if choice.usage:
            self._usage = choice.usage
        reason = choice.finish_reason
        if not reason and self._reason is None:
            # Nearly every chunk; what follows is about the end of an answer.
            self._is_ordinary = not self._unknown.has_any
            return
        self._is_ordinary = False
        has_content = self._size > size
        if has_content and self._reason is not None:
            self._has_early_reason = True
        if not isinstance(reason, str) or reason.lower() in NO_REASONS:
            if has_content:
                self.has_reason = False
            return
        self._reason = reason.lower()
        if self._reason in FAILURES:
            raise UpstreamFailed("error_event", is_retryable=True)
        # A provider that sends a reason with every frame has ended only when a frame holds nothing else. The first
        # frame, which announces the role, is not an end either.
        self.has_reason = not (has_content and self._has_early_reason) and (self.has_said or not is_first)
        self._has_first_reason = has_content and size == 0 and not self._has_calls

    def _delta(
        self, delta: ChunkDelta, logprobs: Any, deltas: list[ModelDelta], unknown: CallMembers = ()
    ) -> None:
        if (
            delta.reasoning_content
            or delta.reasoning
            or delta.reasoning_details
            or delta.extra_content
            or delta.thinking_blocks
            or delta.provider_specific_fields
        ):
            self._add_reasoning(delta, deltas)
        content = delta.content
        if content:
            if type(content) is str:
                self._add_text(content, token_list(logprobs, "content") if logprobs else None, deltas)
            elif isinstance(content, list):
                self._parts(content, deltas)
        if delta.tool_calls:
            self._calls_of(delta.tool_calls, deltas, unknown)
        elif (
            delta.function_call
            # Behind tool calls it repeats one of them.
            and (self._has_legacy_call or not self._has_calls)
            and (calls := legacy_call(delta.function_call))
        ):
            self._has_legacy_call = True
            self._calls_of(calls, deltas)
        refusal = delta.refusal
        if refusal and isinstance(refusal, str):
            self._count(len(refusal))
            if text := self._refusal.take(refusal):
                deltas.append(RefusalDelta(text, token_list(logprobs, "refusal")))

    def _add_text(self, text: str, logprobs: Any, deltas: list[ModelDelta]) -> None:
        # ``_count`` without the call: this is the path of nearly every chunk.
        self.has_said = True
        self._size += len(text)
        if self._size > self.max_answer_bytes:
            raise UpstreamResponseTooLarge("too_much")
        content = self._content
        if content.is_plain and self._has_only_whole and "\x00" not in text:
            content.pieces.append(text)
            deltas.append(TextDelta(text, logprobs))
        else:
            content.add(text, logprobs, deltas)

    def _add_reasoning(self, delta: ChunkDelta, deltas: list[ModelDelta]) -> None:
        reasoning = delta.reasoning_content or delta.reasoning
        text = ""
        if reasoning and isinstance(reasoning, str):
            self._count(len(reasoning))
            if self._has_only_whole and "\x00" not in reasoning:
                self._reasoning.pieces.append(reasoning)
                text = reasoning
            else:
                text = self._reasoning.take(reasoning)
        if delta.reasoning_content:
            self._has_state = True
            self._collector().add_reasoning(text)
        if (
            delta.reasoning_details
            or delta.extra_content
            or delta.thinking_blocks
            or delta.provider_specific_fields
        ):
            self._has_state = True
            self._collector().add(
                delta.reasoning_details,
                delta.thinking_blocks,
                extra_content=delta.extra_content,
                provider_specific_fields=delta.provider_specific_fields,
            )
        if text:
            deltas.append(ReasoningDelta(text))

    def _message(self, message: ChunkDelta, logprobs: Any, deltas: list[ModelDelta]) -> None:
        """Read a whole message: all of the answer, or all of it so far.

        Only what the deltas did not bring is new. Its calls wait for the end, so that none is taken twice.
        """
        rest = ChunkDelta(
            content=self._content.beyond(message.content),
            reasoning_content=message.reasoning_content and self._reasoning.beyond(message.reasoning_content),
            reasoning=None if message.reasoning_content else self._reasoning.beyond(message.reasoning),
            refusal=self._refusal.beyond(message.refusal),
        )
        if not self._has_state:
            for name in STATE_MEMBERS:
                setattr(rest, name, getattr(message, name))
        self._delta(rest, logprobs, deltas)
        calls = message.tool_calls or legacy_call(message.function_call)
        if calls and not self._has_calls:
            self.has_said = True
            self._size += 1
            self._message_calls = calls

    def _calls_of(self, calls: list[CallDelta], deltas: list[ModelDelta], unknown: CallMembers = ()) -> None:
        if self._content.space:
            # Dropped before a call: Qwen and others write blank lines between reasoning and a call.
            self._content.space.clear()
        assembler = self._calls = self._calls or CallAssembler()
        for position, call in enumerate(calls):
            arguments = call.function.arguments if call.function is not None else None
            # A piece counts for more than its text: calls of many empty pieces would cost memory too.
            self._count(1 + (len(arguments) if isinstance(arguments, str) else 0))
            deltas.extend(assembler.add(call, unknown[position]) if unknown else assembler.add(call))

    def _parts(self, parts: list[Any], deltas: list[ModelDelta]) -> None:
        """Read content that came as a list: text parts, and thinking parts that hold text parts (Mistral)."""
        for part in parts:
            if not isinstance(part, dict):
                continue
            if isinstance(text := part.get("text"), str) and text:
                self._add_text(text, None, deltas)
            thinking = part.get("thinking")
            for piece in thinking if isinstance(thinking, list) else ():
                if isinstance(piece, dict) and isinstance(text := piece.get("text"), str) and text:
                    self._count(len(text))
                    if whole := self._reasoning.take(text):
                        deltas.append(ReasoningDelta(whole))

    @property
    def _has_calls(self) -> bool:
        return self._calls is not None and self._calls.has_calls

    def _collector(self) -> StateCollector:
        if self._state is None:
            self._state = StateCollector(self.provider)
        return self._state

    def _count(self, size: int) -> None:
        """Count a piece of the answer against the limit."""
        self.has_said = True
        self._size += size
        if self._size > self.max_answer_bytes:
            raise UpstreamResponseTooLarge("too_much")

    def _finish(self, deltas: list[ModelDelta]) -> None:
        if not self._has_choice:
            raise UpstreamProtocolError("protocol")
        self._release_held(deltas)
        calls = self._calls
        if calls is not None:
            deltas.extend(calls.finish(ending_of(self._reason)))
        has_calls = calls is not None and calls.has_calls
        reason = finish_reason(self._reason, has_calls=has_calls)
        self.is_finished = True
        state = None
        if calls is not None or self._state is not None or self._unknown.has_any:
            state = self._collector().state(
                calls.states() if calls is not None else [],
                has_calls=has_calls,
                unknown=self._unknown.joined(),
            )
        deltas.append(Finished(reason, clean_usage(self._usage), state=state))

    def _release_held(self, deltas: list[ModelDelta]) -> None:
        """Add what waited for more: half a character, a possible tag, and the calls of a whole message."""
        if self._reasoning.half:
            deltas.append(ReasoningDelta(self._reasoning.end()))
        calls, content = self._message_calls, self._content
        if content.is_plain:
            # Nearly every text; nothing of it is held.
            content.is_plain = False
        else:
            content.finish(deltas, has_calls=bool(calls) or (self._calls is not None and self._has_calls))
        if self._refusal.half:
            deltas.append(RefusalDelta(self._refusal.end()))
        if calls is not None and not self._has_calls:
            for position, call in enumerate(calls):
                call.index = position
            self._calls_of(calls, deltas, self._unknown_of_calls)
