"""Providers of chat completions that reject what the real ones reject, each in its own format of errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from tests.fakes.providers.chat import ANSWER, ChatProvider, open_calls
from tests.fakes.providers.reasoning import DeepSeek, Gemini
from tests.fakes.replies import JSON, Reply, chunk, error, raw
from tests.fakes.upstream import Received

STRUCTURED = {"answer": ANSWER}
Messages = Sequence[Mapping[str, Any]]


class StrictProvider(ChatProvider):
    """Validates a request as ``problems`` says."""

    def rejection(self, body: Mapping[str, Any]) -> Reply | None:
        for short, reply in self.problems(body):
            self.rejections.append(short)
            return reply
        return None

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        """Yield what is wrong in short, with the error."""
        return iter(())


class Mistral(StrictProvider):
    """Unknown fields are 422 with ``loc``; the order of messages and the form of call ids are checked."""

    path = "/v1/chat/completions"
    KNOWN = frozenset(
        (
            *("model", "messages", "stream", "temperature", "top_p", "max_tokens", "stop", "random_seed"),
            *("response_format", "tools", "tool_choice", "presence_penalty", "frequency_penalty", "n"),
            *("prediction", "parallel_tool_calls", "prompt_mode", "reasoning_effort", "safe_prompt"),
        )
    )

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        messages: Messages = body["messages"]
        locs: list[list[Any]] = [["body", name] for name in sorted(body.keys() - self.KNOWN)]
        locs += [
            ["body", "messages", index, message["role"], "name"]
            for index, message in enumerate(messages)
            if "name" in message
        ]
        if locs:
            details = [
                {"type": "extra_forbidden", "loc": loc, "msg": "Extra inputs are not permitted", "input": "x"}
                for loc in locs
            ]
            body_of_error = {
                "object": "error",
                "message": {"detail": details},
                "type": "invalid_request_error",
            }
            yield ".".join(map(str, locs[0][1:])), error(422, body_of_error)
        for call_id in _ids(messages):
            if not re.fullmatch("[a-zA-Z0-9]{9}", call_id):
                reason = f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9."
                yield "call id", self._error("3280", reason)
        for message in messages:
            if message["role"] != "assistant":
                continue
            has_calls, has_content = bool(message.get("tool_calls")), bool(message.get("content"))
            if has_calls == has_content:
                reason = "Assistant message must have either content or tool_calls, but not "
                yield "content", self._error("3240", reason + ("both." if has_calls else "none."))
        for one, other in pairwise(message["role"] for message in messages):
            if (one, other) == ("tool", "user"):
                yield "order", self._error("3230", "Unexpected role 'user' after role 'tool'")
            if other == "system" and one != "system":
                yield "late system", self._error("3230", f"Unexpected role 'system' after role '{one}'")
        if messages[-1]["role"] not in ("user", "tool"):
            reason = "Expected last role User or Tool (or Assistant with prefix True) for serving but got assistant"
            yield "last", self._error("3230", reason)

    def _error(self, code: str, message: str) -> Reply:
        kind = "invalid_request_message_order"
        return error(400, {"object": "error", "message": message, "type": kind, "param": None, "code": code})


class Groq(StrictProvider):
    """No names, no JSON mode with tools, no log probabilities; every third call is not valid."""

    path = "/openai/v1/chat/completions"

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._calls = 0

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        for index, message in enumerate(body["messages"]):
            if "name" in message:
                place = f"'messages.{index}'"
                yield (
                    "name",
                    openai_error(
                        f"{place} : for 'role:user' the following must be satisfied[({place} : property 'name' is"
                        " unsupported)]"
                    ),
                )
        for name in ("logprobs", "logit_bias", "top_logprobs"):
            if name in body:
                yield name, openai_error(f"`{name}` is not supported with this model")
        if "response_format" in body and body.get("tools"):
            yield "form", openai_error("json mode cannot be combined with tool/function calling")
        if body.get("tools"):
            self._calls += 1
            if self._calls % 3 == 1:
                failed = {
                    "message": "Failed to call a function. Please adjust your prompt.",
                    "type": "invalid_request_error",
                    "code": "tool_use_failed",
                    "failed_generation": "<function=look_up_item>{",
                }
                yield "tool_use_failed", error(400, {"error": failed})


class Kimi(StrictProvider, DeepSeek):
    """Thinking: ``reasoning_content`` comes back with calls, and only the default temperature is accepted."""

    path = "/v1/chat/completions"

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        if body.get("temperature", 1) != 1:
            yield "temperature", openai_error("invalid temperature: only 1 is allowed for this model")
        for index, message in enumerate(body["messages"]):
            if message["role"] == "assistant" and not (message.get("content") or message.get("tool_calls")):
                reason = f"the message at position {index} with role 'assistant' must not be empty"
                yield "empty", openai_error(reason)
            if message.get("tool_calls") and not message.get("reasoning_content"):
                yield "reasoning_content", self._missing(index)

    def accepts(self, returned: Any, issued: Sequence[Any]) -> bool:
        # It does not check the text, but no other than its own or a placeholder is expected.
        return returned == " " or super().accepts(returned, issued)

    def state_error(self) -> Reply:
        return self._missing(1)

    def _missing(self, index: int) -> Reply:
        reason = (
            f"thinking is enabled but reasoning_content is missing in assistant tool call message at {index}"
        )
        return openai_error(reason)


class Bedrock(StrictProvider):
    """A gateway to Bedrock: tools as long as there are calls, ``tool_choice: none`` not known, no blank text."""

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        messages: Messages = body["messages"]
        if any(message.get("tool_calls") for message in messages) and not body.get("tools"):
            yield (
                "tools",
                self._error(
                    "litellm.UnsupportedParamsError: Bedrock doesn't support tool calling without `tools=` param"
                    " specified. Pass `tools=` param OR set `litellm.modify_params = True`"
                ),
            )
        if body.get("tool_choice") == "none":
            yield "tool_choice", self._error("litellm.BadRequestError: tool_choice 'none' is not supported.")
        for index, message in enumerate(messages):
            if message.get("content") == "":
                reason = f"The text field in the ContentBlock object at messages.{index}.content.0 is blank."
                yield "blank", self._error(f"litellm.BadRequestError: BedrockException - {reason}")

    def _error(self, message: str) -> Reply:
        return error(400, {"error": {"message": message, "type": "None", "param": "None", "code": "400"}})


class AzureReasoning(StrictProvider):
    """An o-series deployment behind an older ``api-version``; the first chunk has no choices."""

    REJECTED = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "stop", "logprobs")

    def __call__(self, received: Received) -> Reply:
        if not received.path.startswith("/openai/deployments/o/") or "api-version=" not in received.query:
            return error(404, {"error": {"code": "404", "message": "Resource not found"}})
        if received.headers.get("api-key") != "azure-key" or "authorization" in received.headers:
            return error(401, {"error": {"code": "401", "message": "Access denied"}})
        return super().__call__(received)

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        for name in ("stream_options", "safety_identifier", "prompt_cache_key"):
            if name in body:
                yield name, openai_error(f"Unrecognized request argument supplied: {name}")
        if "max_tokens" in body:
            reason = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'"
            yield "max_tokens", openai_error(reason, param="max_tokens", code="unsupported_parameter")
        for name in self.REJECTED:
            if name in body:
                reason = f"Unsupported parameter: '{name}' is not supported with this model."
                yield name, openai_error(reason, param=name, code="unsupported_parameter")

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        return [
            {"choices": [], "prompt_filter_results": [{"prompt_index": 0}]},
            *super().call_chunks(call, state),
        ]

    def text_chunks(self, text: str) -> list[dict[str, Any]]:
        return [{"choices": [], "prompt_filter_results": [{"prompt_index": 0}]}, *super().text_chunks(text)]


class OpenAIReasoning(StrictProvider):
    """A model of the o-series: fixed sampling, developer messages, other efforts, schemas with properties."""

    EFFORTS = ("low", "medium", "high")

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        for index, message in enumerate(body["messages"]):
            if message["role"] == "system":
                reason = (
                    f"Unsupported value: 'messages[{index}].role' does not support 'system' with this model."
                )
                place = f"messages[{index}].role"
                yield "role", openai_error(reason, param=place, code="unsupported_value")
        for index, tool in enumerate(body.get("tools", ())):
            if "properties" not in tool["function"]["parameters"]:
                name = tool["function"]["name"]
                reason = (
                    f"Invalid schema for function '{name}': In context=(), object schema missing properties."
                )
                place = f"tools[{index}].function.parameters"
                yield "schema", openai_error(reason, param=place, code="invalid_function_parameters")
        if body.get("temperature", 1) != 1:
            value = body["temperature"]
            reason = f"Unsupported value: 'temperature' does not support {value} with this model. Only the default (1)"
            yield "temperature", openai_error(reason, param="temperature", code="unsupported_value")
        if (effort := body.get("reasoning_effort", "low")) not in self.EFFORTS:
            reason = f"Unsupported value: 'reasoning_effort' does not support '{effort}' with this model."
            yield effort, openai_error(reason, param="reasoning_effort", code="unsupported_value")
        for name in ("max_tokens", "stop", "seed"):
            if name in body:
                reason = f"Unsupported parameter: '{name}' is not supported with this model."
                yield name, openai_error(reason, param=name, code="unsupported_parameter")


class Anthropic(StrictProvider):
    """Anthropic's OpenAI endpoint: one of temperature and top_p, no prefill, tools as long as there are calls."""

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        messages: Messages = body["messages"]
        if "temperature" in body and "top_p" in body:
            reason = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
            yield "both", openai_error(reason)
        if any(message.get("tool_calls") for message in messages) and not body.get("tools"):
            reason = "Requests which include `tool_use` or `tool_result` blocks must define tools"
            yield "tools", openai_error(reason)
        for index, call_id in enumerate(_ids(messages)):
            if not re.fullmatch("[a-zA-Z0-9_-]+", call_id):
                reason = (
                    f"messages.{index}.content.0.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'"
                )
                yield "call id", openai_error(reason)
        if any(message["role"] in ("system", "developer") for message in messages[1:]):
            yield (
                "late system",
                openai_error("messages: Unexpected role 'system'. Only the first can have it."),
            )
        if (wrong := open_calls(messages)) is not None:
            reason = f"`tool_use` ids were found without `tool_result` blocks immediately after: {wrong}"
            yield "results", openai_error(reason)
        if any(message.get("content") == "" for message in messages):
            yield "empty", openai_error("messages: text content blocks must be non-empty")
        if messages[-1]["role"] == "assistant":
            reason = "This model does not support assistant message prefill. It must end with a user message."
            yield "last", openai_error(reason)


class Vllm(StrictProvider):
    """Reasoning in ``reasoning``, whole calls without an index, ``stop`` with calls; errors echo the request."""

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        if "service_tier" in body:
            echo = f"1 validation error: {{'loc': ('body',), 'input': {body!r}}}"
            reason = f"service_tier is not supported. {echo}"
            yield (
                "service_tier",
                error(400, {"object": "error", "message": reason, "param": None, "code": 400}),
            )
        if body["messages"][0].get("role") == "developer":
            yield "role", error(400, {"object": "error", "message": "Unexpected message role.", "code": 400})

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        return [chunk({"reasoning": "I look"}), chunk({"tool_calls": [call]})]

    def finish_reason_of_calls(self) -> str:
        return "stop"


class Ollama(StrictProvider):
    """Arguments as an object, no ids, no indexes."""

    def call_chunks(self, call: dict[str, Any], state: Any) -> list[dict[str, Any]]:
        function = {**call["function"], "arguments": json.loads(call["function"]["arguments"])}
        return [chunk({"tool_calls": [{"function": function}]})]

    def finish_reason_of_calls(self) -> str:
        return "stop"


class LmStudio(StrictProvider):
    """Object schemas have properties; the error is the list of zod's issues, as text."""

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        for index, tool in enumerate(body.get("tools", ())):
            if "properties" not in tool["function"]["parameters"]:
                path = ["tools", index, "function", "parameters", "properties"]
                issue = {"code": "invalid_type", "expected": "object", "path": path, "message": "Required"}
                body_of_error = json.dumps({"error": json.dumps([issue], indent=2)}).encode()
                yield "schema", raw(body_of_error, status=400, content_type=JSON)


class Gemini3(StrictProvider, Gemini):
    """No ``response_format`` with tools."""

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        if "response_format" in body and body.get("tools"):
            yield "form", self._error("Function calling with a response mime type is unsupported")


class OpenAIChat(StrictProvider):
    """Chat completions of OpenAI: results directly behind their calls."""

    def problems(self, body: Mapping[str, Any]) -> Iterator[tuple[str, Reply]]:
        if (wrong := open_calls(body["messages"])) is not None:
            yield "results", openai_error(wrong, param="messages")


def openai_error(message: str, *, param: str | None = None, code: str | None = None) -> Reply:
    body = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    return error(400, {"error": body})


def _ids(messages: Messages) -> list[str]:
    ids = [call["id"] for message in messages for call in message.get("tool_calls") or ()]
    return ids + [message["tool_call_id"] for message in messages if "tool_call_id" in message]
