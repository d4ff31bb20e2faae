"""Families with rules for the form of a request: Anthropic, Bedrock behind a gateway, Groq, LM Studio, Mistral."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tests.fakes.providers.chat import Body, ChatProvider, calling, is_id, open_calls
from tests.fakes.replies import JSON, Reply, error, raw


class Anthropic(ChatProvider):
    """One system message, first; results directly behind their calls; no empty text; no assistant message last."""

    def rejection(self, body: Body) -> Reply | None:
        wrong = next(self._wrong(body), None)
        if wrong is None:
            return None
        self.rejections.append(wrong)
        told = {"type": "error", "error": {"type": "invalid_request_error", "message": wrong}}
        return raw(json.dumps(told).encode(), status=400, content_type=JSON)

    def _wrong(self, body: Body) -> Iterator[str]:
        messages = body["messages"]
        roles = [message["role"] for message in messages]
        if any(role in ("system", "developer") for role in roles[1:]) or roles[0] == "developer":
            yield "messages: Unexpected role 'system'. Only the first message can have it."
        if roles[-1] == "assistant":
            yield "This model does not support assistant message prefill."
        if (wrong := open_calls(messages)) is not None:
            yield f"tool_use ids were found without tool_result blocks immediately after: {wrong}"
        for message in messages:
            if message.get("content") == "" or (not message.get("content") and not message.get("tool_calls")):
                yield "messages: text content blocks must be non-empty"
            for call in message.get("tool_calls") or ():
                if not is_id(call["id"], r"[A-Za-z0-9_-]+"):
                    yield "messages.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'"


class Bedrock(ChatProvider):
    """A gateway before Bedrock: a history with calls needs ``tools``."""

    def rejection(self, body: Body) -> Reply | None:
        if calling(body) and not body.get("tools"):
            self.rejections.append("tools")
            message = (
                "litellm.UnsupportedParamsError: Bedrock doesn't support tool calling without `tools=` param."
            )
            return error(400, code="400", message=message)
        return None


class Groq(ChatProvider):
    """``tool_use_failed`` for the first call; tools exclude ``response_format``."""

    path = "/openai/v1/chat/completions"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.failed_generations = 0

    def rejection(self, body: Body) -> Reply | None:
        if body.get("tools") and (body.get("response_format") or {}).get("type", "text") != "text":
            self.rejections.append("response_format")
            return error(
                400,
                message="json mode cannot be combined with tool/function calling",
                code="invalid_request_error",
            )
        if body.get("tools") and not self.failed_generations:
            self.failed_generations += 1
            told = {
                "message": "Failed to call a function. Please adjust your prompt.",
                "type": "invalid_request_error",
                "code": "tool_use_failed",
                "failed_generation": "<function=transfer",
            }
            return raw(json.dumps({"error": told}).encode(), status=400, content_type=JSON)
        return None


class LMStudio(ChatProvider):
    """Schemas of objects need ``properties``."""

    def rejection(self, body: Body) -> Reply | None:
        for index, tool in enumerate(body.get("tools") or ()):
            for schema in objects(tool["function"].get("parameters")):
                if "properties" not in schema:
                    self.rejections.append("properties")
                    path = f"tools.{index}.function.parameters.properties"
                    return raw(
                        json.dumps({"error": f"Invalid '{path}': Required"}).encode(),
                        status=400,
                        content_type=JSON,
                    )
        return None


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema of an object in a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


_MISTRAL_FIELDS = {
    *("model", "messages", "stream", "temperature", "top_p", "max_tokens", "stop", "random_seed", "n"),
    *("response_format", "tools", "tool_choice", "parallel_tool_calls", "presence_penalty"),
    *("frequency_penalty", "prediction", "safe_prompt", "prompt_mode", "metadata"),
}
_MISTRAL_MESSAGE = {"role", "content", "tool_calls", "tool_call_id", "name", "prefix"}


class Mistral(ChatProvider):
    """Call ids of nine characters, known fields only, and an order of roles."""

    def call_id(self, number: int) -> str:
        return f"D681PevK{number}"

    def rejection(self, body: Body) -> Reply | None:
        if unknown := sorted(body.keys() - _MISTRAL_FIELDS):
            return self._extra_forbidden(["body", unknown[0]], body[unknown[0]])
        for index, message in enumerate(body["messages"]):
            known = _MISTRAL_MESSAGE - ({"name"} if message["role"] in ("user", "assistant") else set())
            if unknown := sorted(message.keys() - known):
                loc = ["body", "messages", index, message["role"], unknown[0]]
                return self._extra_forbidden(loc, message[unknown[0]])
            if message["role"] == "developer":
                return self._coded("Unexpected role 'developer'", 3001)
            for call_id in [message.get("tool_call_id"), *(c["id"] for c in message.get("tool_calls") or ())]:
                if call_id is not None and not is_id(call_id, r"[A-Za-z0-9]{9}"):
                    what = f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9."
                    return self._coded(what, 3280)
        roles = [message["role"] for message in body["messages"]]
        for before, role in pairwise(roles):
            if (before, role) == ("tool", "user"):
                return self._coded("Unexpected role 'user' after role 'tool'", 3230)
            if role == "system" and before != "system":
                return self._coded(f"Unexpected role 'system' after role '{before}'", 3230)
        if roles[-1] not in ("user", "tool"):
            what = f"Expected last role User or Tool (or Assistant with prefix True) for serving but got {roles[-1]}"
            return self._coded(what, 3230)
        return None

    def _extra_forbidden(self, loc: list[Any], given: Any) -> Reply:
        self.rejections.append(str(loc[-1]))
        detail = [
            {"type": "extra_forbidden", "loc": loc, "msg": "Extra inputs are not permitted", "input": given}
        ]
        return raw(json.dumps({"detail": detail}).encode(), status=422, content_type=JSON)

    def _coded(self, message: str, code: int) -> Reply:
        self.rejections.append(message)
        told = {
            "object": "error",
            "message": message,
            "type": "invalid_request_error",
            "param": None,
            "code": str(code),
        }
        return raw(json.dumps(told).encode(), status=400, content_type=JSON)
