"""Turns the bytes of an OpenAI answer, streamed or whole, into the deltas of the model port.

What is well formed passes quickly; what is odd but clear is mended; what could be taken for something else is
an error.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec
from msgspec import Struct

from proxy.errors import UpstreamFailed, UpstreamIncomplete, UpstreamProtocolError, UpstreamTooMuch
from proxy.events import ReasoningDelta, RefusalDelta, TextDelta
from proxy.messages import FinishReason, Usage
from proxy.providers.http.sse import EventReader
from proxy.providers.model import Finished, ModelDelta, UsagePiece
from proxy.providers.openai.errors import error_event
from proxy.providers.openai.provider_state import StateCollector
from proxy.providers.openai.tool_call_assembler import CallAssembler, CallDelta, Ending
from proxy.providers.sanitize import clean, without_nul
from proxy.providers.think_tags import ThoughtSplitter

_LARGEST = 2**53 - 1
_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    # Names of other families, in lower case.
    "max_tokens": "length",
    "max_output_tokens": "length",
    "max_length": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "sensitive": "content_filter",
    "safety": "content_filter",
    "prohibited_content": "content_filter",
    "blocklist": "content_filter",
    "recitation": "content_filter",
    "spii": "content_filter",
}
_FAILURES: Final = frozenset(
    {
        "abort",
        "aborted",
        "error",
        "insufficient_system_resource",
        "malformed_function_call",
        "network_error",
        "server_error",
    }
)
"""Finish reasons of an answer that failed at the provider (Zhipu, OpenRouter, vLLM, DeepSeek, Gemini)."""
_NO_REASONS: Final = frozenset({"", "null", "none", "finish_reason_unspecified"})


_STATE: Final = ("reasoning_details", "extra_content", "thinking_blocks", "provider_specific_fields")
"""Members of a message that are provider state only."""


class _Delta(Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    reasoning_details: Any = None
    extra_content: Any = None
    thinking_blocks: Any = None
    provider_specific_fields: Any = None
    tool_calls: list[CallDelta] | None = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: Any = None
    logprobs: Any = None
    index: Any = 0
    usage: Any = None
    error: Any = None


class _Chunk(Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    x_groq: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class AnswerReader:
    """Reads one answer. ``feed`` and ``end`` give its deltas; the last of all is ``Finished``."""

    def __init__(
        self, *, max_answer_bytes: int, max_line_bytes: int = 1024 * 1024, provider: str = ""
    ) -> None:
        """``provider`` is what state that has to be returned is bound to."""
        self._events = EventReader(max_line_bytes=max_line_bytes)
        self._calls = CallAssembler()
        self._state = StateCollector(provider)
        self._max_answer_bytes = max_answer_bytes
        self._size = 0
        self._reason: str | None = None
        self._usage: Any = None
        self._has_choice = False
        self._is_settled = False
        self._has_early_reason = False
        """Whether content followed a finish reason: this provider's reasons do not end an answer by themselves."""
        self._received: dict[str, list[str]] = {}
        """The pieces of each text member, to compare a cumulative ``message`` with."""
        self._message_calls: list[CallDelta] | None = None
        """The calls of the latest whole ``message``; used if no call arrived in deltas."""
        self._thoughts: ThoughtSplitter | None = ThoughtSplitter()
        self._space: list[TextDelta] = []
        """White space before the first text; dropped if only calls follow."""
        self._has_text = False
        self._has_state = False
        self._halves: dict[str, str] = {}
        """By member: the first half of a surrogate pair whose second half is in a later chunk."""
        self.failure: UpstreamFailed | None = None
        """To be raised after the deltas that came with it, so that what was said before is not lost."""
        self.has_said = False
        """Whether anything of the answer came, even if it is held back."""
        self.is_finished = False

    @property
    def has_reason(self) -> bool:
        """Whether a finish reason ended the answer, so that only usage can follow."""
        return self._is_settled

    def feed(self, received: bytes) -> list[ModelDelta]:
        """Return the deltas of the events that these bytes complete; what follows ``[DONE]`` is dropped.

        Raises:
            UpstreamFailed: The provider told of an error, or what came cannot be read. With deltas before it, it
                is kept as ``failure`` instead.
        """
        deltas: list[ModelDelta] = []
        try:
            for name, data in self._events.feed(received):
                if not name and data[:1] == b"{":
                    self._chunk(_decoded(data), deltas)
                    continue
                self._event(name, data, deltas)
                if self.is_finished:
                    return deltas
            if self._events.is_over_limit:
                raise UpstreamTooMuch("too_much")
        except UpstreamFailed as failure:
            if self._is_settled and isinstance(failure, UpstreamProtocolError):
                self._finish(deltas)
                return deltas
            if not deltas:
                raise
            self.failure = failure
        return deltas

    def end(self) -> list[ModelDelta]:
        """Return the last deltas of a stream that is over.

        Raises:
            UpstreamIncomplete: It ended without saying that the answer is finished.
        """
        deltas: list[ModelDelta] = []
        try:
            for name, data in self._events.end():
                self._event(name, data, deltas)
        except UpstreamProtocolError:
            # Half a chunk: the stream was cut rather than written wrongly. Behind a finish reason only usage is lost.
            if not self._is_settled:
                raise UpstreamIncomplete("incomplete", is_retryable=True) from None
        if not self.is_finished:
            if self._reason is None:
                raise UpstreamIncomplete("incomplete", is_retryable=True)
            self._finish(deltas)
        return deltas

    def read_whole(self, body: bytes) -> list[ModelDelta]:
        """Return the deltas of an answer that came as one JSON object, or as one JSON object per line.

        Raises:
            UpstreamProtocolError: It is not an answer; an error under a good status counts as that too.
        """
        deltas: list[ModelDelta] = []
        for chunk in _decoded_whole(body):
            if chunk.error:
                raise UpstreamProtocolError("protocol")
            self._chunk(chunk, deltas)
        if not self._has_choice:
            raise UpstreamProtocolError("protocol")
        self._finish(deltas)
        return deltas

    def _event(self, name: bytes, data: bytes, deltas: list[ModelDelta]) -> None:
        if not data.startswith(b"{"):
            data = data.strip()
            if data == b"[DONE]":
                self._finish(deltas)
                return
            if not data:
                return
        if name == b"error":
            raise error_event(data)
        self._chunk(_decoded(data), deltas)

    def _chunk(self, chunk: _Chunk, deltas: list[ModelDelta]) -> None:
        if chunk.error:
            raise error_event(chunk.error)
        if chunk.usage:
            self._usage = chunk.usage
        if not chunk.choices:
            if isinstance(chunk.x_groq, dict):
                self._usage = chunk.x_groq.get("usage") or self._usage
            return
        for choice in chunk.choices:
            # Nobody asked for a second choice, but one may come.
            if choice.index in (0, None):
                self._choice(choice, deltas)
        if chunk.usage and self.has_said and self._reason is None:
            usage = clean_usage(chunk.usage)
            if usage is not None:
                deltas.append(UsagePiece(usage))

    def _choice(self, choice: _Choice, deltas: list[ModelDelta]) -> None:
        if choice.error:
            raise error_event(choice.error)
        is_first = not self._has_choice
        self._has_choice = True
        size = self._size
        if choice.delta is not None:
            self._delta(choice.delta, choice.logprobs, deltas)
        if choice.message is not None:
            self._message(choice.message, choice.logprobs, deltas)
        has_content = self._size > size
        if choice.usage:
            self._usage = choice.usage
        if has_content and self._reason is not None:
            self._has_early_reason = True
        reason = choice.finish_reason
        if not isinstance(reason, str) or reason.lower() in _NO_REASONS:
            if has_content:
                self._is_settled = False
            return
        self._reason = reason.lower()
        if self._reason in _FAILURES:
            raise UpstreamFailed("error_event", is_retryable=True)
        # A provider that sends a reason with every frame has ended only when a frame holds nothing else. The first
        # frame, which announces the role, is not an end either.
        self._is_settled = not (has_content and self._has_early_reason) and (self.has_said or not is_first)

    def _delta(self, delta: _Delta, logprobs: Any, deltas: list[ModelDelta]) -> None:
        reasoning = delta.reasoning_content or delta.reasoning
        text = self._taken("reasoning", reasoning) if reasoning and isinstance(reasoning, str) else ""
        if (
            delta.reasoning_content
            or delta.reasoning_details
            or delta.extra_content
            or delta.thinking_blocks
            or delta.provider_specific_fields
        ):
            self._has_state = True
            self._state.add(
                text if delta.reasoning_content else None,
                delta.reasoning_details,
                delta.thinking_blocks,
                extra_content=delta.extra_content,
                provider_specific_fields=delta.provider_specific_fields,
            )
        if text:
            deltas.append(ReasoningDelta(text))
        content = delta.content
        if content:
            if type(content) is str:
                if text := self._taken("content", content):
                    self._text(text, logprobs and _token_list(logprobs, "content"), deltas)
            elif isinstance(content, list):
                self._parts(content, deltas)
        refusal = delta.refusal
        if refusal and isinstance(refusal, str) and (text := self._taken("refusal", refusal)):
            deltas.append(RefusalDelta(text, _token_list(logprobs, "refusal")))
        if delta.tool_calls:
            self._calls_of(delta.tool_calls, deltas)

    def _message(self, message: _Delta, logprobs: Any, deltas: list[ModelDelta]) -> None:
        """Read a whole message: all of the answer, or all of it so far.

        Only what the deltas did not bring is new. Its calls wait for the end, so that none is taken twice.
        """
        rest = _Delta(
            content=self._beyond("content", message.content),
            reasoning_content=message.reasoning_content
            and self._beyond("reasoning", message.reasoning_content),
            reasoning=None if message.reasoning_content else self._beyond("reasoning", message.reasoning),
            refusal=self._beyond("refusal", message.refusal),
        )
        if not self._has_state:
            for name in _STATE:
                setattr(rest, name, getattr(message, name))
        self._delta(rest, logprobs, deltas)
        if message.tool_calls and not self._calls.has_calls:
            self.has_said = True
            self._size += 1
            self._message_calls = message.tool_calls

    def _beyond(self, member: str, whole: Any) -> Any:
        received = self._received.get(member)
        if not received or not whole:
            return whole
        before = "".join(received)
        self._received[member] = [before]
        return whole[len(before) :] if isinstance(whole, str) and whole.startswith(before) else None

    def _taken(self, member: str, text: str) -> str:
        """Count and keep a piece of a text member; return it as whole characters."""
        self.has_said = True
        text = self._bounded(text)
        self._received.setdefault(member, []).append(text)
        if text.isascii() and not self._halves:
            return text
        return self._joined(member, text)

    def _joined(self, member: str, text: str) -> str:
        """Join a surrogate pair that two chunks share; a half without its other half is replaced."""
        text = self._halves.pop(member, "") + text
        if "\ud800" <= text[-1] <= "\udbff":
            self._halves[member] = text[-1]
            text = text[:-1]
        return clean(text)

    def _text(self, text: str, logprobs: Any, deltas: list[ModelDelta]) -> None:
        pieces: list[ModelDelta] = [TextDelta(text, logprobs)]
        if self._thoughts is not None:
            found = self._thoughts.read(text)
            if found != [TextDelta(text)]:
                pieces = found
            if self._thoughts.is_plain:
                self._thoughts = None
        if self._has_text:
            deltas.extend(pieces)
            return
        has_text = False
        for piece in pieces:
            if type(piece) is not TextDelta:
                deltas.append(piece)
            elif has_text or piece.text.strip():
                has_text = True
                self._release_space(deltas)
                deltas.append(piece)
            else:
                self._space.append(piece)

    def _release_space(self, deltas: list[ModelDelta]) -> None:
        self._has_text = True
        deltas.extend(self._space)
        self._space.clear()

    def _calls_of(self, calls: list[CallDelta], deltas: list[ModelDelta]) -> None:
        self.has_said = True
        # A frame with a call is content, even if its arguments are empty.
        self._size += 1
        # Qwen and others write blank lines between reasoning and a call.
        self._space.clear()
        for call in calls:
            self._count(call)
            deltas.extend(self._calls.add(call))

    def _parts(self, parts: list[Any], deltas: list[ModelDelta]) -> None:
        """Read content that came as a list: text parts, and thinking parts that hold text parts (Mistral)."""
        for part in parts:
            if not isinstance(part, dict):
                continue
            if isinstance(text := part.get("text"), str) and text and (text := self._taken("content", text)):
                self._text(text, None, deltas)
            thoughts = part.get("thinking")
            for thought in thoughts if isinstance(thoughts, list) else ():
                if isinstance(thought, dict) and isinstance(text := thought.get("text"), str) and text:
                    self.has_said = True
                    deltas.append(ReasoningDelta(self._bounded(text)))

    def _bounded(self, text: str) -> str:
        self._size += len(text)
        if self._size > self._max_answer_bytes:
            raise UpstreamTooMuch("too_much")
        return without_nul(text)

    def _count(self, call: CallDelta) -> None:
        arguments = call.function.arguments if call.function is not None else None
        # A piece counts for more than its text: calls of many empty pieces would cost memory too.
        self._size += len(arguments) if isinstance(arguments, str) else 0
        if self._size > self._max_answer_bytes:
            raise UpstreamTooMuch("too_much")

    def _finish(self, deltas: list[ModelDelta]) -> None:
        if not self._has_choice:
            raise UpstreamProtocolError("protocol")
        self._release_held(deltas)
        reason = _REASONS.get(self._reason or "")
        ending: Ending = "whole"
        if reason is None:
            ending = "untold"
        elif reason in ("length", "content_filter"):
            ending = "cut_short"
        deltas.extend(self._calls.finish(ending))
        if self._calls.has_calls and ending != "cut_short":
            # With a named tool choice the official API says ``stop``, others say so always.
            reason = "tool_calls"
        elif reason is None or (reason == "tool_calls" and not self._calls.has_calls):
            reason = "stop"
        if not self._calls.has_calls:
            self._release_space(deltas)
        self.is_finished = True
        state = self._state.state(self._calls.states(), has_calls=self._calls.has_calls)
        deltas.append(Finished(reason, clean_usage(self._usage), state=state))

    def _release_held(self, deltas: list[ModelDelta]) -> None:
        """Add what waited for more: half a character, a possible tag, and the calls of a whole message."""
        if self._halves.pop("reasoning", ""):
            deltas.append(ReasoningDelta("\ufffd"))
        if self._halves.pop("content", ""):
            self._text("\ufffd", None, deltas)
        if self._halves.pop("refusal", ""):
            deltas.append(RefusalDelta("\ufffd"))
        for piece in self._thoughts.end() if self._thoughts is not None else ():
            if isinstance(piece, TextDelta) and not piece.text.strip():
                self._space.append(piece)
            else:
                deltas.append(piece)
        if self._message_calls is not None and not self._calls.has_calls:
            for position, call in enumerate(self._message_calls):
                call.index = position
            self._calls_of(self._message_calls, deltas)


def clean_usage(told: object) -> Usage | None:
    """Return the numbers of a ``usage`` object as integers >= 0; None if it holds neither of the two totals."""
    if not isinstance(told, dict):
        return None
    prompt, completion = _count(told, "prompt_tokens"), _count(told, "completion_tokens")
    if prompt is None and completion is None:
        return None
    read, written = told.get("prompt_tokens_details"), told.get("completion_tokens_details")
    cached = _count(read, "cached_tokens") or _count(told, "prompt_cache_hit_tokens") or 0
    return Usage(
        prompt=prompt or 0,
        completion=completion or 0,
        cached=min(cached, prompt or 0),
        reasoning=min(_count(written, "reasoning_tokens") or 0, completion or 0),
        audio_prompt=_count(read, "audio_tokens") or 0,
        audio_completion=_count(written, "audio_tokens") or 0,
        accepted_prediction=_count(written, "accepted_prediction_tokens") or 0,
        rejected_prediction=_count(written, "rejected_prediction_tokens") or 0,
    )


def _count(holder: object, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        return None
    return int(value)


def _token_list(logprobs: object, of: str) -> list[Any] | None:
    tokens = logprobs.get(of) if isinstance(logprobs, dict) else None
    return tokens if isinstance(tokens, list) and tokens else None


def _decoded_whole(body: bytes) -> list[_Chunk]:
    try:
        return [_decoded(body)]
    except UpstreamProtocolError:
        lines = [line for line in body.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
    return [_decoded(line) for line in lines]


def _decoded(data: bytes) -> _Chunk:
    try:
        return _decode(data)
    except (ValueError, RecursionError):
        pass
    # msgspec refuses raw control characters, NaN and half surrogate pairs; some models produce them. The halves stay:
    # the other half may be in the next chunk.
    try:
        loose = json.loads(data, strict=False, parse_constant=lambda _: None)
        chunk = msgspec.convert(loose, _Chunk)
        for choice in chunk.choices or ():
            choice.logprobs = _cleaned(choice.logprobs)
            for part in (choice.delta, choice.message):
                if part is not None:
                    for name in _STATE:
                        setattr(part, name, _cleaned(getattr(part, name)))
                    for call in part.tool_calls or ():
                        call.extra_content = _cleaned(call.extra_content)
                        call.provider_specific_fields = _cleaned(call.provider_specific_fields)
    except (ValueError, RecursionError):
        raise UpstreamProtocolError("protocol") from None
    return chunk


def _cleaned(value: Any) -> Any:
    """Return a JSON value whose text holds whole characters only."""
    return value and json.loads(clean(json.dumps(value, ensure_ascii=False)))
