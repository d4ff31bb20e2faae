"""Streams that deviate from the format, each for an answer of text or of one tool call, as real providers send them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fakes.replies import JSON, SSE, Reply, Step, Stop, chunk, raw


@dataclass(frozen=True)
class Content:
    """What a model answers: text, or a call with these arguments."""

    text: str = ""
    name: str = ""
    arguments: Mapping[str, Any] | None = None

    @property
    def call(self) -> dict[str, Any]:
        function = {"name": self.name, "arguments": json.dumps(self.arguments)}
        return {"index": 0, "id": "call_x", "type": "function", "function": function}

    @property
    def message(self) -> dict[str, Any]:
        if self.text:
            return {"role": "assistant", "content": self.text}
        return {"role": "assistant", "content": None, "tool_calls": [self.call]}

    @property
    def deltas(self) -> list[dict[str, Any]]:
        """In two pieces."""
        if self.text:
            half = len(self.text) // 2
            return [{"content": self.text[:half]}, {"content": self.text[half:]}]
        return [{"tool_calls": [piece]} for piece in self.pieces()]

    def pieces(self, *before: Any) -> list[dict[str, Any]]:
        """The call with its name, ``before`` as first arguments, and then the real ones."""
        function = {"name": self.name, "arguments": before[0] if before else ""}
        return [
            {**self.call, "function": function},
            {"index": 0, "function": {"arguments": self.call["function"]["arguments"]}},
        ]

    @property
    def reason(self) -> str:
        return "stop" if self.text else "tool_calls"


Deviation = Callable[[Content], Reply]


def stream(*payloads: Mapping[str, Any] | Step, done: bool = True, content_type: str = SSE) -> Reply:
    steps: list[Step] = [_event(one) if isinstance(one, Mapping) else one for one in payloads]
    return raw(*steps, *([b"data: [DONE]\n\n"] if done else []), content_type=content_type)


def _event(payload: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def _chunks(content: Content, finish: str | None = None) -> list[dict[str, Any]]:
    return [*(chunk(delta) for delta in content.deltas), chunk(finish=finish or content.reason)]


def _open_after_reason(content: Content) -> Reply:
    return stream(*_chunks(content), Stop.HANG, done=False)


def _comments_after_reason(content: Content) -> Reply:
    return stream(*_chunks(content), b": alive\n\n", b": alive\n\n", Stop.HANG, done=False)


def _cut_in_done(content: Content) -> Reply:
    return stream(*_chunks(content), b"data: [DO", Stop.CUT, done=False)


def _cut_in_usage(content: Content) -> Reply:
    return stream(*_chunks(content), b'data: {"choices": [], "usage": {"prompt', Stop.CUT, done=False)


def _message_instead(content: Content) -> Reply:
    choice = {"index": 0, "message": content.message, "finish_reason": content.reason}
    return stream({"object": "chat.completion", "choices": [choice]})


def _message_with_call(content: Content) -> Reply:
    *before, last = _chunks(content)
    choice = {**last["choices"][0], "message": content.message}
    return stream(*before, {**last, "choices": [choice]})


def _reason_on_every_frame(content: Content) -> Reply:
    return stream(*(chunk(delta, content.reason) for delta in content.deltas), chunk(finish=content.reason))


def _null_reasons(content: Content) -> Reply:
    return stream(*(chunk(delta, "null") for delta in content.deltas), chunk(finish=content.reason))


def _reasoning(content: Content) -> Reply:
    pieces = ("<th", "ink>Hid", "den</thi", "nk>\n", "\n")
    return stream(*(chunk({"content": piece}) for piece in pieces), *_chunks(content))


def _white_space_first(content: Content) -> Reply:
    if content.text:
        return stream(*_chunks(content))
    return stream(chunk({"reasoning_content": "Hidden"}), chunk({"content": "\n\n"}), *_chunks(content))


def _json_as_stream(content: Content) -> Reply:
    return _whole(content, SSE)


def _json_as_text(content: Content) -> Reply:
    return _whole(content, "text/plain")


def _whole(content: Content, content_type: str) -> Reply:
    choice = {"index": 0, "message": content.message, "finish_reason": content.reason}
    body = {"object": "chat.completion", "choices": [choice]}
    return raw(json.dumps(body).encode(), content_type=content_type)


def _stream_as_json(content: Content) -> Reply:
    return stream(*_chunks(content), content_type=JSON)


def _split_surrogates(content: Content) -> Reply:
    """Each character beyond the BMP in two chunks."""
    if not content.text:
        return stream(*_chunks(content))
    steps: list[Step] = []
    for character in content.text:
        escaped = json.dumps(character)[1:-1]
        halves = (escaped[:6], escaped[6:]) if len(escaped) == 12 else (escaped,)
        steps += [_event(chunk({"content": "*"})).replace(b"*", half.encode()) for half in halves]
    return stream(*steps, chunk(finish="stop"))


def _other_member(member: str, value: str) -> Deviation:
    def deviate(content: Content) -> Reply:
        return stream(chunk({member: value}), *_chunks(content))

    return deviate


def _arguments(*before: Any) -> Deviation:
    def deviate(content: Content) -> Reply:
        if content.text:
            return stream(*_chunks(content))
        pieces = [chunk({"tool_calls": [piece]}) for piece in content.pieces(*before)]
        return stream(*pieces, chunk(finish="tool_calls"))

    return deviate


def _repeated_call(content: Content) -> Reply:
    """The whole call once more, in the chunk with the finish reason."""
    if content.text:
        return stream(*_chunks(content))
    return stream(
        *(chunk(delta) for delta in content.deltas), chunk({"tool_calls": [content.call]}, "tool_calls")
    )


def _function_call(content: Content) -> Reply:
    """The deprecated form, in pieces."""
    if content.text:
        return stream(*_chunks(content))
    functions = [piece["function"] for piece in content.pieces()]
    return stream(*(chunk({"function_call": one}) for one in functions), chunk(finish="function_call"))


def _function_call_in_message(content: Content) -> Reply:
    """The deprecated form in a whole message."""
    if content.text:
        return _whole(content, JSON)
    message = {"role": "assistant", "content": None, "function_call": content.call["function"]}
    choice = {"index": 0, "message": message, "finish_reason": "function_call"}
    return raw(json.dumps({"object": "chat.completion", "choices": [choice]}).encode(), content_type=JSON)


def _function_call_and_tool_call(content: Content) -> Reply:
    """A call in both forms, in one delta."""
    if content.text:
        return stream(*_chunks(content))
    both = {"tool_calls": [content.call], "function_call": content.call["function"]}
    return stream(chunk(both), chunk(finish="tool_calls"))


def _name_in_pieces(content: Content) -> Reply:
    if content.text:
        return stream(*_chunks(content))
    start, end = content.name[:4], content.name[4:]
    first = {**content.call, "function": {"name": start, "arguments": ""}}
    second = {"index": 0, "function": {"name": end}}
    third = {"index": 0, "function": {"arguments": content.call["function"]["arguments"]}}
    return stream(
        *(chunk({"tool_calls": [one]}) for one in (first, second, third)), chunk(finish="tool_calls")
    )


DEVIATIONS: Sequence[tuple[str, Deviation]] = (
    ("open after the reason", _open_after_reason),
    ("comments after the reason", _comments_after_reason),
    ("cut in [DONE]", _cut_in_done),
    ("cut in the usage", _cut_in_usage),
    ("a whole message instead of deltas", _message_instead),
    ("a whole message with the last delta", _message_with_call),
    ("a reason on every frame", _reason_on_every_frame),
    ("'null' as reason", _null_reasons),
    ("think tags", _reasoning),
    ("surrogate pairs in two chunks", _split_surrogates),
    ("white space before a call", _white_space_first),
    ("JSON as event stream", _json_as_stream),
    ("JSON as text", _json_as_text),
    ("event stream as JSON", _stream_as_json),
    ("arguments begin with {}", _arguments("{}")),
    ("arguments begin with null", _arguments("null")),
    ("arguments begin with []", _arguments("[]")),
    ("arguments begin with two quotes", _arguments('""')),
    ("name in pieces", _name_in_pieces),
    ("the whole call again", _repeated_call),
    ("a function_call", _function_call),
    ("a function_call in a whole message", _function_call_in_message),
    ("a call in both forms", _function_call_and_tool_call),
    ("unknown members", _other_member("annotations", "x")),
)
"""An answer of this content is complete with each of them."""
FAILURES = (
    "network_error",
    "error",
    "abort",
    "insufficient_system_resource",
    "malformed_function_call",
)
