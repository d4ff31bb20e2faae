"""OpenAI's GPT-5.5: tools with reasoning on the Responses API only, and encrypted reasoning that has to come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.fakes.providers.chat import ANSWER, FORM_ANSWER, PLAN, SECRET, Plan
from tests.fakes.replies import JSON, Reply, chunk, error, events, raw
from tests.fakes.upstream import Received

KNOWN = {
    *(
        "model",
        "input",
        "instructions",
        "stream",
        "store",
        "include",
        "text",
        "reasoning",
        "max_output_tokens",
    ),
    *("tools", "tool_choice", "parallel_tool_calls", "temperature", "top_p", "top_logprobs", "service_tier"),
    *("safety_identifier", "prompt_cache_key"),
}
USAGE = {
    "input_tokens": 20,
    "input_tokens_details": {"cached_tokens": 12},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 4},
    "total_tokens": 29,
}
Event = dict[str, Any]


class Gpt55:
    """The model behind both APIs; ``has_responses`` false is a gateway without the newer one."""

    def __init__(
        self,
        plan: Plan = PLAN,
        *,
        has_responses: bool = True,
        has_reasoning: bool = True,
        is_gpt54: bool = False,
        key: str | None = None,
        path: str = "",
    ) -> None:
        """``key`` is the accepted API key or token, ``path`` the base of the only paths; without, all are accepted."""
        self.rejections: list[str] = []
        self._texts: list[Event] = []
        """The reasoning items of texts."""
        self._key = key
        self._path = path
        self._plan = plan
        self._has_responses = has_responses
        self._has_reasoning = has_reasoning
        self._default_effort = "none" if is_gpt54 else None
        """GPT-5.4 accepts tools on chat completions if no effort is set."""

    def __call__(self, received: Received) -> Reply:
        key = received.headers.get("authorization", "").removeprefix("Bearer ")
        if self._key not in (None, key):
            return error(401, code="invalid_api_key")
        path = received.path.removeprefix(self._path)
        if path in ("/chat/completions", "/v1/chat/completions"):
            return self._chat(received.body)
        if path in ("/responses", "/v1/responses") and self._has_responses:
            return self._respond(received.body)
        return raw(b'{"detail": "Not Found"}', status=404, content_type=JSON)

    def _reject(self, param: str, message: str) -> Reply:
        self.rejections.append(param)
        body = {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": None}}
        return error(400, body)

    def _chat(self, body: Any) -> Reply:
        if (
            self._has_responses
            and body.get("tools")
            and body.get("reasoning_effort", self._default_effort) != "none"
        ):
            return self._reject(
                "reasoning_effort",
                "Function tools with reasoning_effort are not supported for gpt-5.5 in /v1/chat/completions."
                " Please use /v1/responses instead.",
            )
        return events(chunk({"content": ANSWER}), chunk(finish="stop"))

    def _respond(self, body: Any) -> Reply:
        if unknown := sorted(body.keys() - KNOWN):
            return self._reject(unknown[0], f"Unsupported parameter: '{unknown[0]}'.")
        if body.get("store") is not False:
            return self._reject("store", "this organisation stores nothing")
        if not self._has_reasoning:
            if "reasoning.encrypted_content" in body.get("include", ()):
                return self._reject("include", "Encrypted content is not supported with this model.")
            if "summary" in body.get("reasoning", {}):
                return self._reject("reasoning.summary", "Unsupported parameter: 'reasoning.summary'.")
        for index, tool in enumerate(body.get("tools", ())):
            if not isinstance(tool.get("strict"), bool) or "name" not in tool:
                return self._reject(f"tools[{index}]", "Missing required parameter.")
        calls = [place for place, item in enumerate(body["input"]) if item.get("type") == "function_call"]
        returned = [item["id"] for item in body["input"] if item.get("type") == "reasoning"]
        if len(set(returned)) != len(returned):
            return self._reject("input", "Duplicate item found")
        seen: set[str] = set()
        for number, place in enumerate(calls):
            name = body["input"][place]["name"]
            if name in seen:
                # A call that is made again needs no other item.
                continue
            seen.add(name)
            before = body["input"][place - 1] if place else {}
            if self._has_reasoning and before != reasoning_item(number):
                return self._reject(
                    "input", f"function_call {number} was provided without its reasoning item"
                )
        for place, item in enumerate(body["input"]):
            text = item["content"][0].get("text") if item.get("role") == "assistant" else None
            # Texts of others, such as the proxy's question for approval, have no reasoning.
            if text in (ANSWER, FORM_ANSWER) and self._texts:
                before = body["input"][place - 1] if place else {}
                if before not in self._texts:
                    return self._reject("input", "message was provided without its reasoning item")
        return self._answer(len(calls), body)

    def _answer(self, number: int, body: Any) -> Reply:
        if number >= len(self._plan) or not body.get("tools"):
            form = body.get("text", {}).get("format", {}).get("type", "text")
            answer = message(ANSWER if form == "text" else FORM_ANSWER)
            if not self._has_reasoning:
                return response(answer)
            self._texts.append(reasoning_item(1000 + len(self._texts)))
            return response(self._texts[-1], answer)
        name, arguments = self._plan[number]
        call = function_call(f"call_{number}", name, json.dumps(arguments))
        return response(*([reasoning_item(number)] if self._has_reasoning else []), call)


def reasoning_item(number: int) -> Event:
    return {
        "id": f"rs_{number}",
        "type": "reasoning",
        "summary": [{"type": "summary_text", "text": f"Considering step {number}"}],
        "encrypted_content": f"{SECRET}/{number}==",
    }


def function_call(call_id: str, name: str, arguments: str) -> Event:
    return {
        "id": f"fc_{call_id}",
        "type": "function_call",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": "completed",
    }


def message(*texts: str, refusal: str | None = None) -> Event:
    """A message of one part, streamed in these pieces."""
    part: Event = {"type": "output_text", "text": "".join(texts), "annotations": []}
    if refusal is not None:
        part = {"type": "refusal", "refusal": refusal}
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [part],
    }


def response(*output: Event, status: str = "completed", **more: Any) -> Reply:
    """Answer with these output items, streamed as the API does."""
    return events(*response_events(output, status=status, **more), done=False)


def response_events(output: Sequence[Event], *, status: str = "completed", **more: Any) -> list[Event]:
    whole = whole_response(output, status=status, **more)
    reported: list[Event] = [{"type": "response.created", "response": {**whole, "status": "in_progress"}}]
    for index, item in enumerate(output):
        at = {"output_index": index, "item_id": item["id"]}
        reported.append({"type": "response.output_item.added", "output_index": index, "item": _opened(item)})
        match item["type"]:
            case "message":
                reported += _message_events(item, {**at, "content_index": 0})
            case "function_call":
                half = len(item["arguments"]) // 2
                reported += [
                    {"type": "response.function_call_arguments.delta", **at, "delta": piece}
                    for piece in (item["arguments"][:half], item["arguments"][half:])
                ]
                reported.append(
                    {"type": "response.function_call_arguments.done", **at, "arguments": item["arguments"]}
                )
            case _:
                for place, part in enumerate(item["summary"]):
                    where = {**at, "summary_index": place}
                    reported.append({"type": "response.reasoning_summary_part.added", **where, "part": {}})
                    reported.append(
                        {"type": "response.reasoning_summary_text.delta", **where, "delta": part["text"]}
                    )
        reported.append({"type": "response.output_item.done", "output_index": index, "item": item})
    reported.append({"type": f"response.{status}", "response": whole})
    return reported


def whole_response(output: Sequence[Event], *, status: str = "completed", **more: Any) -> Event:
    return {
        "id": "resp_1",
        "object": "response",
        "status": status,
        "error": None,
        "incomplete_details": None,
        "output": list(output),
        "usage": USAGE,
        **more,
    }


def _opened(item: Event) -> Event:
    match item["type"]:
        case "message":
            return {**item, "content": [], "status": "in_progress"}
        case "function_call":
            return {**item, "arguments": "", "status": "in_progress"}
        case _:
            return {**item, "summary": []}


def _message_events(item: Event, at: Event) -> list[Event]:
    part = item["content"][0]
    kind, member = ("output_text", "text") if part["type"] == "output_text" else ("refusal", "refusal")
    half = len(part[member]) // 2
    return [
        {"type": "response.content_part.added", **at, "part": {**part, member: ""}},
        *(
            {"type": f"response.{kind}.delta", **at, "delta": piece, "logprobs": []}
            for piece in (part[member][:half], part[member][half:])
        ),
        {"type": f"response.{kind}.done", **at, member: part[member]},
        {"type": "response.content_part.done", **at, "part": part},
    ]
