"""Families that want their reasoning back with calls: DeepSeek, Gemini 3, OpenRouter, LiteLLM."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.fakes.providers.chat import SECRET, Body, ChatProvider, open_calls
from tests.fakes.replies import JSON, Reply, chunk, error, raw


class DeepSeek(ChatProvider):
    """``reasoning_content`` of every reply with calls has to come back (V4)."""

    path = "/chat/completions"

    def issue(self, number: int) -> str:
        return f"{SECRET} {number} is long — ends"

    def returned(self, message: Body, call: Body) -> Any:
        return message.get("reasoning_content")

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        first, rest = state[:7], state[7:]
        pieces = [chunk({"reasoning_content": piece}) for piece in (first, rest)]
        return [*pieces, *super().call_chunks(call, state)]

    def state_error(self) -> Reply:
        message = "Missing `reasoning_content` field in the assistant message at message index 1."
        return error(400, code="invalid_request_error", message=message)


class Gemini(ChatProvider):
    """The thought signature of a call has to come back with it; it arrives in a separate chunk.

    Errors are a JSON array.
    """

    path = "/v1beta/openai/chat/completions"

    def issue(self, number: int) -> dict[str, Any]:
        return {"google": {"thought_signature": f"{SECRET}+/{number}=="}}

    def returned(self, message: Body, call: Body) -> Any:
        return call.get("extra_content")

    def accepts(self, returned: Any, issued: Sequence[Any]) -> bool:
        skips = {"google": {"thought_signature": "skip_thought_signature_validator"}}
        return returned == skips or super().accepts(returned, issued)

    def issue_for_text(self, number: int) -> dict[str, Any]:
        return self.issue(number)

    def returned_with_text(self, message: Body) -> Any:
        return message.get("extra_content")

    def text_state_chunks(self, state: Any) -> list[dict[str, Any]]:
        return [chunk({"content": "", "extra_content": state})]

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        extra = {"index": 0, "extra_content": state}
        return [*super().call_chunks(call, state), chunk({"tool_calls": [extra]})]

    def state_error(self) -> Reply:
        return self._error("Function call is missing a thought_signature in functionCall parts.")

    def _error(self, message: str) -> Reply:
        reported = [{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}]
        return raw(json.dumps(reported).encode(), status=400, content_type=JSON)


class OpenRouter(ChatProvider):
    """``reasoning_details`` of replies with calls have to come back whole; they are streamed in pieces by index."""

    path = "/api/v1/chat/completions"

    def issue(self, number: int) -> list[dict[str, Any]]:
        text = {"type": "reasoning.text", "index": 0, "format": "anthropic-v1", "text": "I think"}
        data = {"type": "reasoning.encrypted", "index": 1, "id": "r1", "data": f"{SECRET}/{number}=="}
        return [{**text, "signature": f"{SECRET}{number}"}, data]

    def returned(self, message: Body, call: Body) -> Any:
        return message.get("reasoning_details")

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        text, data = state
        details = [
            {**text, "text": "I ", "signature": None},
            {**text, "text": "think", "signature": None},
            {**text, "text": ""},
            {**data, "data": data["data"][:6]},
            {**data, "data": data["data"][6:]},
        ]
        return [*(chunk({"reasoning_details": [one]}) for one in details), *super().call_chunks(call, state)]


class LiteLLM(ChatProvider):
    """A gateway: thinking blocks with a signature, and a signature in the id of the call, have to come back."""

    path = "/v1/chat/completions"

    def issue(self, number: int) -> tuple[Any, ...]:
        block = {"type": "thinking", "thinking": "I think so", "signature": f"{SECRET}{number}"}
        return (
            [block],
            f"call_{number}__thought__{SECRET}+/{number}",
            {"thought_signature": f"{SECRET}{number}"},
        )

    def returned(self, message: Body, call: Body) -> Any:
        return (message.get("thinking_blocks"), call["id"], call.get("provider_specific_fields"))

    def rejection(self, body: Body) -> Reply | None:
        wrong = open_calls(body["messages"])
        return None if wrong is None else self._reject(400, wrong)

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        (block,), call_id, fields = state
        pieces = [
            {**block, "thinking": "I think", "signature": ""},
            {**block, "thinking": " so", "signature": ""},
            {**block, "thinking": ""},
        ]
        signed = {**call, "id": call_id, "provider_specific_fields": fields}
        return [*(chunk({"thinking_blocks": [one]}) for one in pieces), *super().call_chunks(signed, state)]


class Unlisted(ChatProvider):
    """A provider that is in no list: what it sends in unknown members has to come back, each where it was."""

    path = "/v1/chat/completions"

    def issue(self, number: int) -> tuple[Any, ...]:
        reasoning = {"steps": ["look", "answer"], "digest": f"{SECRET}-{number}"}
        return reasoning, f"{SECRET}*{number}", {"trace": f"{SECRET}/{number}"}

    def returned(self, message: Body, call: Body) -> Any:
        function = {name: value for name, value in call["function"].items() if name == "trace"}
        return message.get("vendor_thought"), call.get("vendor_signature"), function

    def issue_for_text(self, number: int) -> Any:
        return f"{SECRET} of text {number}"

    def returned_with_text(self, message: Body) -> Any:
        return message.get("vendor_text_state")

    def text_chunks(self, text: str) -> list[dict[str, Any]]:
        # At many providers the first chunk announces the role.
        return [chunk({"role": "assistant", "content": ""}), *super().text_chunks(text)]

    def text_state_chunks(self, state: Any) -> list[dict[str, Any]]:
        return [chunk({"content": "", "vendor_text_state": state})]

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        reasoning, signature, trace = state
        first, rest = signature[:5], signature[5:]
        function = {**call["function"], **trace}
        return [
            chunk({"vendor_thought": {"steps": ["look"], "digest": reasoning["digest"]}}),
            chunk({"vendor_thought": {"steps": ["answer"], "digest": reasoning["digest"]}}),
            chunk({"tool_calls": [{"index": 0, **call, "function": function, "vendor_signature": first}]}),
            chunk({"tool_calls": [{"index": 0, "vendor_signature": rest}]}),
        ]


class Talkative(ChatProvider):
    """A provider that sends members for information, and rejects them in a request."""

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        timed = {"index": 0, **call, "vendor_milliseconds": 5}
        return [chunk({"tool_calls": [timed], "vendor_host": "gpu-7"})]

    def rejection(self, body: Body) -> Reply | None:
        for position, message in enumerate(body["messages"]):
            for name in ("vendor_host", "vendor_milliseconds"):
                if name in json.dumps(message):
                    loc = ["body", "messages", position, name]
                    detail = [
                        {"type": "extra_forbidden", "loc": loc, "msg": "Extra inputs are not permitted"}
                    ]
                    return self._reject(422, f"member {name}", {"detail": detail})
        return None
