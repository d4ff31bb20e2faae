"""Fakes for the native APIs that AutoGen's components use: Anthropic's Messages API and Ollama's ``/api/chat``.

Each is an ``answer`` function for ``FakeUpstream`` that makes the calls of its plan in turn, counted by the calls in
the history, and then answers with text. Requests are validated by the rules of the API references:
https://docs.claude.com/en/api/messages and https://github.com/ollama/ollama/blob/main/docs/api.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.fakes.providers.chat import ANSWER, PLAN, Plan
from tests.fakes.replies import JSON, Reply, Step, error, raw
from tests.fakes.upstream import Received

Message = Mapping[str, Any]
_MESSAGES_FIELDS = frozenset(
    (
        "model",
        "messages",
        "max_tokens",
        "system",
        "temperature",
        "top_p",
        "top_k",
        "stop_sequences",
        "stream",
        "metadata",
        "thinking",
        "tools",
        "tool_choice",
        "service_tier",
    )
)
_CHAT_FIELDS = frozenset(("model", "messages", "tools", "think", "format", "options", "stream", "keep_alive"))
_NAME = re.compile("[a-zA-Z0-9_-]{1,64}")


class NativeProvider:
    """A model behind another API than OpenAI's. ``rejections`` has what it answered with an error."""

    path: str

    def __init__(self, plan: Plan = PLAN, *, text: str = "", finish: str = "") -> None:
        """``text`` is streamed before each call; ``finish`` replaces the finish reason of a text."""
        self.rejections: list[str] = []
        self.requests: list[Any] = []
        self._plan = plan
        self._text = text
        self._finish = finish

    def __call__(self, received: Received) -> Reply:
        if received.path != self.path:
            return self._reject(404, f"no path {received.path}")
        body = received.body
        self.requests.append(body)
        for problem in self.problems(body, received.headers):
            return self._reject(400, problem)
        created = self.calls_made(body["messages"])
        if created >= len(self._plan) or not self.may_call(body):
            return self.reply(body, ANSWER, None, created)
        return self.reply(body, self._text, self._plan[created], created)

    def problems(self, body: Any, headers: Mapping[str, str]) -> Iterator[str]:
        """Yield what the API rejects in a request."""
        raise NotImplementedError

    def calls_made(self, messages: Sequence[Message]) -> int:
        """Return the number of calls in the history."""
        raise NotImplementedError

    def may_call(self, body: Any) -> bool:
        return bool(body.get("tools"))

    def reply(self, body: Any, text: str, call: tuple[str, Mapping[str, Any]] | None, number: int) -> Reply:
        """Return an answer with the text, and the call behind it."""
        raise NotImplementedError

    def error_body(self, what: str) -> Any:
        """Return the body of an error response."""
        raise NotImplementedError

    def _reject(self, status: int, what: str) -> Reply:
        self.rejections.append(what)
        return error(status, self.error_body(what))


class AnthropicMessages(NativeProvider):
    """Anthropic's Messages API."""

    path = "/v1/messages"

    def problems(self, body: Any, headers: Mapping[str, str]) -> Iterator[str]:
        if "x-api-key" not in headers or "anthropic-version" not in headers:
            yield "headers: x-api-key and anthropic-version are required"
        for name in body.keys() - _MESSAGES_FIELDS:
            yield f"{name}: Extra inputs are not permitted"
        if not isinstance(body.get("max_tokens"), int):
            yield "max_tokens: Field required"
        if "temperature" in body and "top_p" in body:
            yield "`temperature` and `top_p` cannot both be specified for this model."
        if "system" in body and not str(body["system"]).strip():
            yield "system: text content blocks must contain non-whitespace text"
        yield from _tool_problems(body)
        yield from _message_problems(body["messages"])

    def calls_made(self, messages: Sequence[Message]) -> int:
        return sum(block["type"] == "tool_use" for message in messages for block in _blocks(message))

    def may_call(self, body: Any) -> bool:
        return super().may_call(body) and body.get("tool_choice", {}).get("type") != "none"

    def reply(self, body: Any, text: str, call: tuple[str, Mapping[str, Any]] | None, number: int) -> Reply:
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
        if call is not None:
            blocks.append(
                {"type": "tool_use", "id": f"toolu_{number:02}", "name": call[0], "input": dict(call[1])}
            )
        reason = "tool_use" if call is not None else self._finish or "end_turn"
        about = {"id": "msg_1", "type": "message", "role": "assistant", "model": body["model"]}
        if not body.get("stream"):
            usage = {"input_tokens": 20, "output_tokens": 5}
            whole = {**about, "content": blocks, "stop_reason": reason, "stop_sequence": None, "usage": usage}
            return raw(json.dumps(whole).encode(), content_type=JSON)
        start = {**about, "content": [], "stop_reason": None, "stop_sequence": None}
        start["usage"] = {"input_tokens": 20, "output_tokens": 1}
        ending = {"delta": {"stop_reason": reason, "stop_sequence": None}, "usage": {"output_tokens": 5}}
        return raw(
            _named("message_start", message=start),
            _named("ping"),
            *(event for index, block in enumerate(blocks) for event in _block_events(index, block)),
            _named("message_delta", **ending),
            _named("message_stop"),
        )

    def error_body(self, what: str) -> Any:
        return {"type": "error", "error": {"type": "invalid_request_error", "message": what}}


class OllamaNative(NativeProvider):
    """Ollama's ``/api/chat``: calls without ids, their arguments are objects; results follow in their order."""

    path = "/api/chat"

    def problems(self, body: Any, headers: Mapping[str, str]) -> Iterator[str]:
        for name in body.keys() - _CHAT_FIELDS:
            yield f"unknown field {name}"
        open_calls = 0
        for index, message in enumerate(body["messages"]):
            if message["role"] not in ("system", "user", "assistant", "tool"):
                yield f"messages[{index}]: invalid role {message['role']}"
            if message["role"] == "tool":
                open_calls -= 1
                if open_calls < 0:
                    yield f"results: messages[{index}] has no call"
            elif open_calls:
                yield f"results: {open_calls} missing before messages[{index}]"
            if not message.get("content") and not message.get("tool_calls") and not message.get("images"):
                yield f"messages[{index}]: empty"
            for call in message.get("tool_calls") or ():
                if not isinstance(call["function"]["arguments"], dict):
                    yield "json: cannot unmarshal string into Go struct field of type map"
                open_calls += 1
        if open_calls:
            yield f"results: {open_calls} missing"
        for tool in body.get("tools") or ():
            if tool["function"]["parameters"].get("type") != "object":
                yield "tools: parameters must be an object"

    def calls_made(self, messages: Sequence[Message]) -> int:
        return sum(len(message.get("tool_calls") or ()) for message in messages)

    def reply(self, body: Any, text: str, call: tuple[str, Mapping[str, Any]] | None, number: int) -> Reply:
        about = {"model": body["model"], "created_at": "2026-01-01T00:00:00.000000Z"}
        calls: dict[str, Any] = {}
        if call is not None:
            calls["tool_calls"] = [{"function": {"name": call[0], "arguments": dict(call[1])}}]
        ending = {"done": True, "done_reason": "stop", "prompt_eval_count": 20, "eval_count": 5}
        if call is None and self._finish:
            ending["done_reason"] = self._finish
        if body.get("stream") is False:
            message = {"role": "assistant", "content": text, **calls}
            return raw(json.dumps({**about, "message": message, **ending}).encode(), content_type=JSON)
        half = len(text) // 2
        messages: list[dict[str, Any]] = [{"content": part} for part in (text[:half], text[half:]) if part]
        if calls:
            messages.append({"content": "", **calls})
        lines = [{**about, "message": {"role": "assistant", **one}, "done": False} for one in messages]
        lines.append({**about, "message": {"role": "assistant", "content": ""}, **ending})
        return raw(
            *(json.dumps(line).encode() + b"\n" for line in lines), content_type="application/x-ndjson"
        )

    def error_body(self, what: str) -> Any:
        return {"error": what}


def _tool_problems(body: Any) -> Iterator[str]:
    has_calls = any(block["type"] == "tool_use" for message in body["messages"] for block in _blocks(message))
    if has_calls and not body.get("tools"):
        yield "Requests which include `tool_use` or `tool_result` blocks must define tools"
    if "tool_choice" in body and not body.get("tools"):
        yield "tool_choice: may only be specified while providing `tools`."
    for index, tool in enumerate(body.get("tools") or ()):
        if not _NAME.fullmatch(tool["name"]) or tool["input_schema"].get("type") != "object":
            yield f"tools.{index}: invalid"


def _message_problems(messages: Sequence[Message]) -> Iterator[str]:
    open_calls: list[str] = []
    seen: set[str] = set()
    turns = list(_turns(messages))
    for index, (role, blocks) in enumerate(turns):
        if role != ("user", "assistant")[index % 2]:
            yield f"messages.{index}: Unexpected role {role!r}"
        for place, block in enumerate(blocks):
            if block["type"] == "text" and not block["text"].strip():
                yield "messages: text content blocks must contain non-whitespace text"
            if block["type"] == "tool_result":
                # Results precede text in the message directly behind their calls.
                if block["tool_use_id"] not in open_calls or any(
                    b["type"] != "tool_result" for b in blocks[:place]
                ):
                    yield f"results: unexpected `tool_use_id` {block['tool_use_id']}"
                else:
                    open_calls.remove(block["tool_use_id"])
        if open_calls:
            yield f"results: `tool_use` ids were found without `tool_result` blocks: {open_calls}"
        for block in blocks:
            if block["type"] == "tool_use":
                if not _NAME.fullmatch(block["id"]) or block["id"] in seen:
                    yield f"tool_use.id: {block['id']!r} is invalid or not unique"
                if not isinstance(block["input"], dict):
                    yield "tool_use.input: Input should be a valid dictionary"
                seen.add(block["id"])
                open_calls.append(block["id"])
    if turns[-1][0] == "assistant":
        yield "This model does not support assistant message prefill."


def _turns(messages: Sequence[Message]) -> Iterator[tuple[str, list[Any]]]:
    """The messages as the API sees them: consecutive ones of a role are one."""
    role, blocks = "", list[Any]()
    for message in messages:
        if message["role"] != role and role:
            yield role, blocks
            blocks = []
        role = message["role"]
        blocks = [*blocks, *_blocks(message)]
    yield role, blocks


def _blocks(message: Message) -> Sequence[Any]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _block_events(index: int, block: dict[str, Any]) -> Iterator[Step]:
    if block["type"] == "text":
        empty = {**block, "text": ""}
        name, whole = "text", block["text"]
    else:
        empty = {**block, "input": {}}
        name, whole = "partial_json", json.dumps(block["input"]) if block["input"] else ""
    half = len(whole) // 2
    kind = "text_delta" if name == "text" else "input_json_delta"
    yield _named("content_block_start", index=index, content_block=empty)
    for part in (whole[:half], whole[half:]):
        yield _named("content_block_delta", index=index, delta={"type": kind, name: part})
    yield _named("content_block_stop", index=index)


def _named(kind: str, **more: Any) -> Step:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()
