"""Base of the fakes for chat completions: a model that follows a plan, and checks each request as its provider does.

A fake is an ``answer`` function for ``FakeUpstream``. It makes the calls of its plan in turn, counted by the calls in
the history, and then answers with text. State that it issued with a call has to come back byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fakes.replies import JSON, Reply, chunk, error, events, raw
from tests.fakes.upstream import Received

Plan = Sequence[tuple[str, Mapping[str, Any]]]
"""Calls that the model makes, one after the other, before it answers."""
PLAN: Plan = (("transfer_to_repairs", {"reason": "broken"}), ("look_up_item", {"search_query": "rocket"}))
ANSWER = "It is a rocket."
FORM_ANSWER = json.dumps({"answer": ANSWER})
"""The answer if the request has a ``response_format``."""
SECRET = "provider-state"
"""Part of every value that no client may see."""
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 5,
    "total_tokens": 25,
    "prompt_tokens_details": {"cached_tokens": 12},
}
Body = Mapping[str, Any]


class ChatProvider:
    """A provider without further rules. ``rejections`` has what it answered with an error."""

    path = "/v1/chat/completions"
    """At the real provider."""

    def __init__(self, plan: Plan = PLAN, *, key: str | None = None, path: str | None = None) -> None:
        """``key`` is the accepted API key, ``path`` the only path; without them everything is accepted."""
        self.rejections: list[str] = []
        self.requests: list[Body] = []
        self._plan = plan
        self._key = key
        self._path = path
        self._issues = 0
        self._issued: dict[str, list[Any]] = {}

    def __call__(self, received: Received) -> Reply:
        if received.path != (self._path or received.path) or not received.path.endswith("/chat/completions"):
            return self._reject(404, f"no path {received.path}")
        if self._key is not None and not self.is_authorised(received.headers, self._key):
            return self._reject(401, "invalid key")
        body: Body = received.body
        self.requests.append(body)
        return self.rejection(body) or self._state_rejection(body) or self.answer(body)

    # --- what differs between providers ---

    def is_authorised(self, headers: Mapping[str, str], key: str) -> bool:
        return headers.get("authorization") == f"Bearer {key}"

    def rejection(self, body: Body) -> Reply | None:
        """The error for a request that breaks a rule of the provider."""
        return None

    def issue(self, number: int) -> Any:
        """New state, the ``number``th; None if the provider has none."""
        return None

    def returned(self, message: Body, call: Body) -> Any:
        """The state that came back with a call."""
        return None

    def accepts(self, returned: Any, issued: Sequence[Any]) -> bool:
        """Whether what came back with a call is what was issued with it."""
        return returned in issued

    def issue_for_text(self, number: int) -> Any:
        """New state for a text; None if the provider has none."""
        return None

    def returned_with_text(self, message: Body) -> Any:
        """The state that came back with a text."""
        return None

    def text_state_chunks(self, state: Any) -> list[dict[str, Any]]:
        """The chunks with the state of a text."""
        return []

    def state_error(self) -> Reply:
        return error(400, code="invalid_request_error", message="state is missing")

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        """The chunks of a reply with one call."""
        return [chunk({"tool_calls": [{"index": 0, **call}]})]

    def text_chunks(self, text: str) -> list[dict[str, Any]]:
        half = len(text) // 2
        return [chunk({"content": text[:half]}), chunk({"content": text[half:]})]

    def call_id(self, number: int) -> str:
        return f"call_{number}"

    def finish_reason_of_calls(self) -> str:
        return "tool_calls"

    # --- the model ---

    def answer(self, body: Body) -> Reply:
        created = sum(len(message["tool_calls"]) for message in calling(body))
        if created >= len(self._plan) or not body.get("tools") or body.get("tool_choice") == "none":
            return self._text(answer_to(body))
        name, arguments = self._plan[created]
        function = {"name": name, "arguments": json.dumps(arguments)}
        self._issues += 1
        state = self.issue(self._issues)
        self._issued.setdefault(_key(function), []).append(state)
        call = {"id": self.call_id(created), "type": "function", "function": function}
        return self._events(*self.call_chunks(call, state), chunk(finish=self.finish_reason_of_calls()))

    def _text(self, text: str) -> Reply:
        self._issues += 1
        state = self.issue_for_text(self._issues)
        if state is not None:
            self._issued.setdefault(text, []).append(state)
        chunks = [*self.text_chunks(text), *([] if state is None else self.text_state_chunks(state))]
        return self._events(*chunks, chunk(finish="stop"))

    def _events(self, *chunks: dict[str, Any]) -> Reply:
        return events(*chunks, {"choices": [], "usage": USAGE})

    def _state_rejection(self, body: Body) -> Reply | None:
        for message in calling(body):
            for call in message["tool_calls"]:
                issued = self._issued.get(_key(call["function"]), [])
                returned = self.returned(message, call)
                if any(state is not None for state in issued) and not self.accepts(returned, issued):
                    self.rejections.append(f"state of {call['function']['name']}")
                    return self.state_error()
        for message in body["messages"]:
            if message["role"] == "assistant" and not message.get("tool_calls"):
                issued = self._issued.get(str(message.get("content")), [])
                if issued and self.returned_with_text(message) not in issued:
                    self.rejections.append("state of a text")
                    return self.state_error()
        return None

    def _reject(self, status: int, what: str, body: Any = None) -> Reply:
        self.rejections.append(what)
        if body is None:
            return error(status, message=what)
        return raw(json.dumps(body).encode(), status=status, content_type=JSON)


def answer_to(body: Body) -> str:
    form = (body.get("response_format") or {}).get("type", "text")
    return ANSWER if form == "text" else FORM_ANSWER


def calling(body: Body) -> list[Any]:
    """The assistant messages with calls."""
    return [m for m in body["messages"] if m["role"] == "assistant" and m.get("tool_calls")]


def open_calls(messages: Sequence[Body]) -> str | None:
    """What is wrong if results do not follow directly behind their calls."""
    waiting: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            if message["tool_call_id"] not in waiting:
                return f"no call {message['tool_call_id']}"
            waiting.remove(message["tool_call_id"])
        elif waiting:
            return f"no result for {waiting[0]}"
        waiting += [call["id"] for call in message.get("tool_calls") or ()]
    return f"no result for {waiting[0]}" if waiting else None


def is_id(text: str, pattern: str) -> bool:
    return re.fullmatch(pattern, text) is not None


def _key(function: Mapping[str, str]) -> str:
    return json.dumps([function["name"], json.loads(function["arguments"])], sort_keys=True)
