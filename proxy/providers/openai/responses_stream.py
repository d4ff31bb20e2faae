"""Reads an answer of the Responses API, streamed or whole, into the deltas of the model port.

Content that several events repeat is read once: text that came as deltas is not repeated by the item or the response
that closes it. Reference: https://platform.openai.com/docs/api-reference/responses-streaming
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import msgspec
from msgspec import Struct

from proxy.errors import UpstreamFailed, UpstreamIncomplete, UpstreamProtocolError, UpstreamResponseTooLarge
from proxy.events import ReasoningDelta, RefusalDelta, TextBatch, TextDelta
from proxy.messages import FinishReason, ProviderState, Usage
from proxy.providers.http.sse import EventReader, Events
from proxy.providers.model import Finished, ModelDelta
from proxy.providers.openai.errors import error_event
from proxy.providers.openai.frame_search import FrameSearch
from proxy.providers.openai.provider_state import bounded_state
from proxy.providers.openai.repeated_frame import RepeatedFrame
from proxy.providers.openai.stream_chunk import CallDelta, FunctionDelta
from proxy.providers.openai.tool_call_assembler import CallAssembler, Ending
from proxy.providers.sanitize import clean, without_nul

_LARGEST = 2**53 - 1


class _Event(Struct, gc=False):
    type: Any = None
    delta: Any = None
    output_index: Any = 0
    summary_index: Any = 0
    logprobs: Any = None
    item: Any = None
    response: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class ResponsesReader:
    """Reads one answer. ``feed`` and ``end`` return its deltas; the last of all is ``Finished``.

    The same interface as ``AnswerReader``, which reads chat completions.
    """

    def __init__(self, *, provider: str, max_answer_bytes: int, max_line_bytes: int = 1024 * 1024) -> None:
        self._events = EventReader(max_line_bytes=max_line_bytes)
        self._provider = provider
        self._calls = CallAssembler()
        self._max_answer_bytes = max_answer_bytes
        self._size = 0
        self._streamed: set[tuple[str, int]] = set()
        """Kinds of content and output indexes of which deltas came."""
        self._named: set[int] = set()
        """Output indexes of calls whose name was read."""
        self._done: set[int] = set()
        """Output indexes of items that were read to their end."""
        self._order: dict[int, dict[str, Any]] = {}
        """Reasoning items, and where text and calls stand among them, by output index."""
        self.failure: UpstreamFailed | None = None
        """To be raised after the deltas that came with it, so that what came before is not lost."""
        self.has_said = False
        """Whether anything of the answer came, even if it is held back."""
        self.has_reason = False
        self.may_continue = False
        """Never: the terminal event carries reason and usage at once."""
        self.is_finished = False
        self.repeated_frame: RepeatedFrame | None = None
        """The frame of a text, if nothing else of the answer is needed to read the next ones."""
        self._last: tuple[_Event, bytes, bytes] | None = None
        """The last event of the bytes that are parsed, its name and its data."""
        self._search = FrameSearch(b'"delta"')

    @property
    def bytes_left(self) -> int:
        """How many bytes of text the answer can still have."""
        return self._max_answer_bytes - self._size

    def add_texts(self, texts: Sequence[str]) -> None:
        """Add texts of repeated frames that a relay has passed on."""
        self._size += sum(map(len, texts))
        self._search.note_use()

    def feed(self, received: bytes) -> Sequence[ModelDelta]:
        """Return the deltas of the events that these bytes complete; what follows the terminal event is dropped.

        Raises:
            UpstreamFailed: The provider reported an error, or what came cannot be read. With deltas before it, it
                is stored as ``failure`` instead.
        """
        if (
            self.repeated_frame is not None
            and len(received) <= self.bytes_left
            and (texts := self.repeated_frame.texts(received)) is not None
        ):
            self.add_texts(texts)
            return TextBatch.of(texts)
        self._last = None
        deltas = self._read(self._events.feed(received))
        self.repeated_frame = self._frame_of_next()
        self._last = None
        return deltas

    def _frame_of_next(self) -> RepeatedFrame | None:
        """Return the frame that the next events may have; None if they need the parser."""
        if self._last is None or not self._events.is_between_events:
            return None
        if self.is_finished or self.failure is not None:
            return None
        event, name, data = self._last
        if event.type != "response.output_text.delta" or event.logprobs or not isinstance(event.delta, str):
            return None
        return self._search.frame(name) if event.delta and self._search.search(data) is not None else None

    def end(self) -> list[ModelDelta]:
        """Return the last deltas of a stream that is over.

        Raises:
            UpstreamIncomplete: It ended without a terminal event.
        """
        deltas = self._read(self._events.end())
        if not self.is_finished and self.failure is None:
            failure = UpstreamIncomplete("incomplete", is_retryable=True)
            if not deltas:
                raise failure
            self.failure = failure
        return deltas

    def read_whole(self, body: bytes) -> list[ModelDelta]:
        """Return the deltas of an answer that came as one JSON object.

        Raises:
            UpstreamFailed: It is an error, or no answer.
        """
        try:
            response = msgspec.json.decode(body)
        except (ValueError, RecursionError):
            raise UpstreamProtocolError("protocol") from None
        if isinstance(response, dict) and response.get("object") not in ("response", None):
            raise UpstreamProtocolError("protocol")
        deltas: list[ModelDelta] = []
        self._terminal(response, deltas)
        return deltas

    def _read(self, events: Events) -> list[ModelDelta]:
        deltas: list[ModelDelta] = []
        names, payloads = events
        try:
            for name, data in zip(names or repeat(b""), payloads, strict=False):
                data = data.strip()
                if not data or data == b"[DONE]":
                    continue
                event = _decoded(data)
                self._event(event, data, deltas)
                self._last = event, name, data
                if self.is_finished:
                    return deltas
            if self._events.is_over_limit:
                raise UpstreamResponseTooLarge("too_much")
        except UpstreamFailed as failure:
            if not deltas:
                raise
            self.failure = failure
        return deltas

    def _event(self, event: _Event, data: bytes, deltas: list[ModelDelta]) -> None:
        index = event.output_index if isinstance(event.output_index, int) else 0
        delta = event.delta if isinstance(event.delta, str) else ""
        match event.type:
            case "response.output_text.delta":
                if delta:
                    self._streamed.add(("message", index))
                    self.has_said = True
                    deltas.append(TextDelta(self._bounded(delta), _logprobs(event.logprobs)))
            case "response.function_call_arguments.delta":
                if delta:
                    self._streamed.add(("function_call", index))
                    self._call(index, None, "", delta, deltas)
            case "response.reasoning_summary_text.delta" | "response.reasoning_text.delta":
                if delta:
                    self._streamed.add(("reasoning", index))
                    self.has_said = True
                    deltas.append(ReasoningDelta(self._bounded(delta)))
            case "response.reasoning_summary_part.added":
                if event.summary_index and ("reasoning", index) in self._streamed:
                    deltas.append(ReasoningDelta("\n\n"))
            case "response.refusal.delta":
                if delta:
                    self._streamed.add(("message", index))
                    self.has_said = True
                    deltas.append(RefusalDelta(self._bounded(delta)))
            case "response.output_item.added":
                if isinstance(event.item, dict) and event.item.get("type") == "function_call":
                    self._name(index, event.item, deltas)
            case "response.output_item.done":
                self._item(index, event.item, deltas)
            case "response.completed" | "response.incomplete" | "response.failed" | "response.cancelled":
                self._terminal(event.response, deltas)
            case "error":
                raise error_event(msgspec.json.decode(data))
            case None:
                # An error object without a type is what gateways send in the middle of a stream.
                whole = msgspec.json.decode(data)
                if isinstance(whole, dict) and whole.get("error"):
                    raise error_event(whole)
                raise UpstreamProtocolError("protocol")
            case _:
                # Many events repeat the content of others, and the API adds new ones.
                pass

    def _item(self, index: int, item: object, deltas: list[ModelDelta]) -> None:
        """Read a whole item: what of it did not come as deltas, and what has to be returned with the calls."""
        if not isinstance(item, dict) or index in self._done:
            return
        self._done.add(index)
        kind = item.get("type")
        is_streamed = (kind, index) in self._streamed
        if kind == "message":
            self._order[index] = {"type": "message"}
            if isinstance(phase := item.get("phase"), str):
                self._order[index]["phase"] = phase
            if not is_streamed:
                self._message(item, deltas)
        elif kind == "reasoning":
            self._order[index] = item
            self._count(item.get("encrypted_content"))
            if not is_streamed:
                texts = [_texts(item.get(member)) for member in ("summary", "content")]
                if text := "\n\n".join(texts[0] or texts[1]):
                    deltas.append(ReasoningDelta(self._bounded(text)))
        elif kind == "function_call":
            self._order[index] = {"type": "function_call"}
            self._name(index, item, deltas)
            arguments = item.get("arguments")
            if not is_streamed and isinstance(arguments, str) and arguments:
                self._call(index, None, "", arguments, deltas)

    def _message(self, item: dict[str, Any], deltas: list[ModelDelta]) -> None:
        parts = item.get("content")
        for part in parts if isinstance(parts, list) else ():
            if not isinstance(part, dict):
                continue
            if isinstance(text := part.get("text"), str) and text:
                deltas.append(TextDelta(self._bounded(text), _logprobs(part.get("logprobs"))))
            elif isinstance(refusal := part.get("refusal"), str) and refusal:
                deltas.append(RefusalDelta(self._bounded(refusal)))

    def _name(self, index: int, item: dict[str, Any], deltas: list[ModelDelta]) -> None:
        name, call_id = item.get("name"), item.get("call_id")
        if index in self._named or not isinstance(name, str):
            return
        self._named.add(index)
        self._call(index, call_id if isinstance(call_id, str) else None, name, "", deltas)

    def _call(
        self, index: int, call_id: str | None, name: str, arguments: str, deltas: list[ModelDelta]
    ) -> None:
        self.has_said = True
        self._count(arguments)
        deltas.extend(self._calls.add(CallDelta(index, call_id, FunctionDelta(name, arguments))))

    def _terminal(self, response: object, deltas: list[ModelDelta]) -> None:
        if not isinstance(response, dict):
            raise UpstreamProtocolError("protocol")
        status = response.get("status")
        if response.get("error") or status == "failed":
            raise error_event(response.get("error") or {})
        output = response.get("output")
        if status not in ("completed", "incomplete") or not isinstance(output, list):
            raise UpstreamFailed("broken", is_retryable=True)
        for index, item in enumerate(output):
            self._item(index, item, deltas)
        self.has_said = True
        reason: FinishReason = "stop"
        ending: Ending = "whole"
        if status == "incomplete":
            details = response.get("incomplete_details")
            why = details.get("reason") if isinstance(details, dict) else None
            reason = "content_filter" if why == "content_filter" else "length"
            ending = "cut_short"
        deltas.extend(self._calls.finish(ending))
        if self._calls.has_calls and ending == "whole":
            reason = "tool_calls"
        self.is_finished = True
        deltas.append(Finished(reason, _usage(response.get("usage")), state=self._state()))

    def _state(self) -> ProviderState | None:
        items = [self._order[index] for index in sorted(self._order)]
        if not any(item.get("encrypted_content") or item.get("phase") for item in items):
            return None
        # Without its content a reasoning item refers to something that the provider did not store.
        sent = [item for item in items if item["type"] != "reasoning" or item.get("encrypted_content")]
        return bounded_state(ProviderState(self._provider, items=sent))

    def _bounded(self, text: str) -> str:
        self._count(text)
        return without_nul(text)

    def _count(self, text: object) -> None:
        self._size += len(text) if isinstance(text, str) else 0
        if self._size > self._max_answer_bytes:
            raise UpstreamResponseTooLarge("too_much")


def _texts(parts: object) -> list[str]:
    if not isinstance(parts, list):
        return []
    return [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]


def _logprobs(tokens: object) -> list[Any] | None:
    """Return the log probabilities in the form of chat completions, which has the bytes of each token."""
    if not isinstance(tokens, list) or not tokens:
        return None
    return [
        {**_token(token), "top_logprobs": [_token(other) for other in token.get("top_logprobs") or ()]}
        for token in tokens
        if isinstance(token, dict)
    ]


def _token(token: dict[str, Any]) -> dict[str, Any]:
    text = token.get("token")
    octets = token.get("bytes")
    if octets is None and isinstance(text, str):
        octets = list(text.encode(errors="replace"))
    return {"token": text, "logprob": token.get("logprob"), "bytes": octets}


def _usage(given: object) -> Usage | None:
    if not isinstance(given, dict):
        return None
    prompt, completion = _number(given, "input_tokens"), _number(given, "output_tokens")
    if prompt is None and completion is None:
        return None
    cached = _number(given.get("input_tokens_details"), "cached_tokens") or 0
    reasoning = _number(given.get("output_tokens_details"), "reasoning_tokens") or 0
    return Usage(
        prompt=prompt or 0,
        completion=completion or 0,
        cached=min(cached, prompt or 0),
        reasoning=min(reasoning, completion or 0),
    )


def _number(holder: object, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
        return None
    return int(value)


def _decoded(data: bytes) -> _Event:
    try:
        return _decode(data)
    except (ValueError, RecursionError):
        pass
    # msgspec rejects raw control characters, NaN and half surrogate pairs; some models produce them.
    try:
        loose = json.loads(data, strict=False, parse_constant=lambda _: None)
        return _decode(clean(json.dumps(loose, ensure_ascii=False)))
    except (ValueError, RecursionError):
        raise UpstreamProtocolError("protocol") from None
