"""Providers that reject what the real ones reject, as ``answer`` functions for ``FakeUpstream``.

By default each plays the team ``shop``: a handoff to repairs, a server tool, then text. What a provider issued with a
call has to come back unchanged with every later request, or the answer is the error of that family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes.replies import JSON, Reply, chunk, error, events, raw
from tests.fakes.upstream import Received

Plan = Sequence[tuple[str, Mapping[str, Any]]]
"""Calls that the model makes, one after the other, before it answers."""
PLAN: Plan = (("transfer_to_repairs", {"reason": "broken"}), ("look_up_item", {"search_query": "rocket"}))
ANSWER = "It is a rocket."
SECRET = "provider-state"
"""Part of every value that no client may see."""
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


class ChatProvider:
    """A provider of chat completions that issues state with its calls."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.rejections: list[str] = []
        self._plan = plan

    def __call__(self, received: Received) -> Reply:
        if not received.path.endswith("/chat/completions"):
            return error(404, message="no such path")
        made = [m for m in received.body["messages"] if m["role"] == "assistant" and m.get("tool_calls")]
        names = [name for name, _ in self._plan]
        for message in made:
            number = names.index(message["tool_calls"][0]["function"]["name"])
            if not self.has_state(message, number):
                self.rejections.append(f"request {received.number}, reply {number}")
                return self.rejection()
        if len(made) >= len(self._plan):
            return events(chunk({"content": ANSWER}), chunk(finish="stop"), {"choices": [], "usage": USAGE})
        name, arguments = self._plan[len(made)]
        call = {"index": 0, "id": f"call_{len(made)}", "type": "function"}
        function = {"name": name, "arguments": json.dumps(arguments)}
        return events(
            *self.chunks({**call, "function": function}, len(made)),
            chunk(finish="tool_calls"),
            {"choices": [], "usage": USAGE},
        )

    def chunks(self, call: dict[str, Any], number: int) -> list[dict[str, Any]]:
        raise NotImplementedError

    def has_state(self, message: Mapping[str, Any], number: int) -> bool:
        raise NotImplementedError

    def rejection(self) -> Reply:
        return error(400, code="invalid_request_error", message="state is missing")


class DeepSeek(ChatProvider):
    """``reasoning_content`` has to come back with calls."""

    def chunks(self, call: dict[str, Any], number: int) -> list[dict[str, Any]]:
        pieces = [f"{SECRET} {number}", " is long", " — ends"]
        return [*(chunk({"reasoning_content": piece}) for piece in pieces), chunk({"tool_calls": [call]})]

    def has_state(self, message: Mapping[str, Any], number: int) -> bool:
        return message.get("reasoning_content") == f"{SECRET} {number} is long — ends"


class Gemini(ChatProvider):
    """The thought signature of a call has to come back with it; it is sent in a chunk of its own."""

    def chunks(self, call: dict[str, Any], number: int) -> list[dict[str, Any]]:
        extra = {"index": 0, "extra_content": self._state(number)}
        return [chunk({"tool_calls": [call]}), chunk({"tool_calls": [extra]})]

    def has_state(self, message: Mapping[str, Any], number: int) -> bool:
        return bool(message["tool_calls"][0].get("extra_content") == self._state(number))

    def rejection(self) -> Reply:
        body = [{"error": {"code": 400, "message": "missing a thought_signature", "status": "INVALID"}}]
        return raw(json.dumps(body).encode(), status=400, content_type=JSON)

    def _state(self, number: int) -> dict[str, Any]:
        return {"google": {"thought_signature": f"{SECRET}+/{number}=="}}


class OpenRouter(ChatProvider):
    """``reasoning_details`` have to come back whole; they are streamed in pieces by index."""

    def chunks(self, call: dict[str, Any], number: int) -> list[dict[str, Any]]:
        def text(text: str, **more: Any) -> dict[str, Any]:
            return {"type": "reasoning.text", "index": 0, "format": "anthropic-v1", "text": text, **more}

        data = {"type": "reasoning.encrypted", "index": 1, "id": "r1"}
        details = [
            text("I "),
            text("think", signature=None),
            text("", signature=f"{SECRET}{number}"),
            {**data, "data": f"{SECRET}/"},
            {**data, "data": f"{number}=="},
        ]
        return [*(chunk({"reasoning_details": [one]}) for one in details), chunk({"tool_calls": [call]})]

    def has_state(self, message: Mapping[str, Any], number: int) -> bool:
        return bool(
            message.get("reasoning_details")
            == [
                {
                    "type": "reasoning.text",
                    "index": 0,
                    "format": "anthropic-v1",
                    "text": "I think",
                    "signature": f"{SECRET}{number}",
                },
                {"type": "reasoning.encrypted", "index": 1, "id": "r1", "data": f"{SECRET}/{number}=="},
            ]
        )
