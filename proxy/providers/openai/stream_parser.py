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
from proxy.messages import FinishReason, Usage
from proxy.providers.http.sse import EventReader
from proxy.providers.model import (
    Finished,
    ModelDelta,
    ReasoningPiece,
    RefusalPiece,
    TextPiece,
    UsagePiece,
)
from proxy.providers.openai.errors import error_event
from proxy.providers.openai.provider_state import StateCollector
from proxy.providers.openai.tool_call_assembler import CallAssembler, CallDelta, Ending
from proxy.providers.sanitize import clean, without_nul

_LARGEST = 2**53 - 1
_REASONS: Final[dict[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}


class _Delta(Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    refusal: Any = None
    reasoning_details: Any = None
    extra_content: Any = None
    tool_calls: list[CallDelta] | None = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: Any = None
    logprobs: Any = None
    index: Any = 0
    usage: Any = None


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
        self.failure: UpstreamFailed | None = None
        """To be raised after the deltas that came with it, so that what was said before is not lost."""
        self.has_said = False
        """Whether anything of the answer came, even if it is held back."""
        self.is_finished = False

    @property
    def has_reason(self) -> bool:
        """Whether a finish reason came, so that only usage can follow."""
        return self._reason is not None

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
            # Half a chunk: the stream was cut rather than written wrongly.
            raise UpstreamIncomplete("incomplete", is_retryable=True) from None
        if not self.is_finished:
            if self._reason is None:
                raise UpstreamIncomplete("incomplete", is_retryable=True)
            self._finish(deltas)
        return deltas

    def read_whole(self, body: bytes) -> list[ModelDelta]:
        """Return the deltas of an answer that came as one JSON object.

        Raises:
            UpstreamProtocolError: It is not an answer; an error under a good status counts as that too.
        """
        deltas: list[ModelDelta] = []
        chunk = _decoded(body)
        if chunk.error or not chunk.choices:
            raise UpstreamProtocolError("protocol")
        for choice in chunk.choices:
            for position, call in enumerate((choice.message and choice.message.tool_calls) or ()):
                call.index = position
        self._chunk(chunk, deltas)
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
        self._has_choice = True
        delta = choice.delta or choice.message
        if delta is not None:
            size = len(deltas)
            reasoning = delta.reasoning_content or delta.reasoning
            if reasoning or delta.reasoning_details or delta.extra_content:
                self._state.add(delta.reasoning_content, delta.reasoning_details, delta.extra_content)
            if reasoning and isinstance(reasoning, str):
                deltas.append(ReasoningPiece(self._bounded(reasoning)))
            content = delta.content
            if content:
                if type(content) is str:
                    logprobs = choice.logprobs
                    deltas.append(
                        TextPiece(self._bounded(content), logprobs and _token_list(logprobs, "content"))
                    )
                elif isinstance(content, list):
                    self._parts(content, deltas)
            if delta.refusal and isinstance(delta.refusal, str):
                told = choice.logprobs and _token_list(choice.logprobs, "refusal")
                deltas.append(RefusalPiece(self._bounded(delta.refusal), told or None))
            if delta.tool_calls:
                self.has_said = True
                for call in delta.tool_calls:
                    self._count(call)
                    deltas.extend(self._calls.add(call))
            if len(deltas) > size:
                self.has_said = True
        if choice.usage:
            self._usage = choice.usage
        if choice.finish_reason and isinstance(choice.finish_reason, str):
            self._reason = choice.finish_reason

    def _parts(self, parts: list[Any], deltas: list[ModelDelta]) -> None:
        """Read content that came as a list: text parts, and thinking parts that hold text parts (Mistral)."""
        for part in parts:
            if not isinstance(part, dict):
                continue
            if isinstance(text := part.get("text"), str) and text:
                deltas.append(TextPiece(self._bounded(text)))
            thoughts = part.get("thinking")
            for thought in thoughts if isinstance(thoughts, list) else ():
                if isinstance(thought, dict) and isinstance(text := thought.get("text"), str) and text:
                    deltas.append(ReasoningPiece(self._bounded(text)))  # noqa: PERF401

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
        self.is_finished = True
        state = self._state.state(self._calls.states()) if self._calls.has_calls else None
        deltas.append(Finished(reason, clean_usage(self._usage), state=state))


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


def _decoded(data: bytes) -> _Chunk:
    try:
        return _decode(data)
    except (ValueError, RecursionError):
        pass
    # msgspec refuses raw control characters, NaN and half surrogate pairs; some models produce them.
    try:
        loose = json.loads(data, strict=False, parse_constant=lambda _: None)
        return _decode(clean(json.dumps(loose, ensure_ascii=False)))
    except (ValueError, RecursionError):
        raise UpstreamProtocolError("protocol") from None
