"""The body of a request to the Responses API of a provider, made from a ``ModelRequest``.

Nothing is stored at the provider (``store: false``); reasoning comes back encrypted and is returned with the calls that
it belongs to. Reference: https://platform.openai.com/docs/api-reference/responses/create
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from proxy.messages import (
    AssistantMessage,
    AudioPart,
    CustomToolCall,
    FilePart,
    FunctionMessage,
    FunctionTool,
    ImagePart,
    Message,
    NamedToolChoice,
    RefusalPart,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolChoice,
    ToolMessage,
    text_of,
)
from proxy.providers.model import ModelRequest
from proxy.providers.openai.adaptation import Adaptation, Omission
from proxy.providers.openai.adapted_body import omit_fields
from proxy.providers.openai.provider_state import is_for
from proxy.providers.openai.request import BodyDefaults, Outgoing, adapted

UNSUPPORTED = ("stop", "seed", "frequency_penalty", "presence_penalty", "prediction")
"""Parameters of chat completions that the Responses API does not have."""
_NO_INCLUDE = Omission("include")
"""Models without reasoning reject encrypted reasoning; log probabilities, which are an include too, stay."""

_DROPPED = frozenset((*UNSUPPORTED, "logit_bias", "n", "stream_options", "modalities", "audio", "metadata"))
_LIMITS = ("max_tokens", "max_completion_tokens")
_LEAST_OUTPUT_TOKENS = 16
"""The API answers 400 ``integer_below_min_value`` to a smaller ``max_output_tokens``."""
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}

Item = dict[str, Any]


def responses_body(
    defaults: BodyDefaults,
    request: ModelRequest,
    *,
    provider: str,
    adaptations: Collection[Adaptation] = (),
) -> Outgoing:
    """Return the body of a streamed request, with ``adaptations`` to what the provider rejects.

    The parameters of the request win over those of the model, and ``extra_body`` over both. Only provider state
    of ``provider`` is sent.

    Raises:
        ValueError: A value has no JSON form (half of a surrogate pair).
        TypeError: As above, for a value of another type in the definition.
    """
    body = _parameters(defaults.parameters, msgspec.to_builtins(request.parameters))
    body.setdefault("reasoning", {}).setdefault("summary", "auto")
    if _NO_INCLUDE not in adaptations:
        body.setdefault("include", []).append("reasoning.encrypted_content")
    ignored = omit_fields(body, [one for one in adaptations if one != _NO_INCLUDE])
    messages = request.messages
    if messages and isinstance(messages[0], SystemMessage):
        body["instructions"] = text_of(messages[0])
        messages = messages[1:]
    body["store"] = False
    body.update(defaults.extra_body)
    if request.tools:
        body["tools"] = [_tool(tool) for tool in request.tools]
        if request.tool_choice is not None:
            body["tool_choice"] = _tool_choice(request.tool_choice)
        if request.allowed_tools and not isinstance(request.tool_choice, NamedToolChoice):
            names = [{"type": "function", "name": name} for name in request.allowed_tools]
            body["tool_choice"] = {
                "type": "allowed_tools",
                "mode": request.tool_choice or "auto",
                "tools": names,
            }
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    body["model"] = defaults.model
    body["input"] = input_items(messages, request, provider)
    body["stream"] = True
    return adapted(body, adaptations, ignored)


def input_items(messages: Sequence[Message], request: ModelRequest, provider: str) -> list[Item]:
    """Return the messages as input items, in their order, with the provider state of the request."""
    items: list[Item] = []
    custom: set[str] = set()
    """Ids of calls of custom tools, whose results are items of another type."""
    legacy_calls = 0
    for message in messages:
        match message:
            case AssistantMessage():
                items.extend(_assistant_items(message, request, provider))
                custom.update(c.id for c in message.tool_calls or () if isinstance(c, CustomToolCall))
                if message.function_call is not None:
                    # The deprecated form has no ids; a result belongs to the newest call.
                    legacy_calls += 1
                    call = message.function_call
                    items.append(_function_call(f"call_function_{legacy_calls}", call.name, call.arguments))
            case ToolMessage():
                kind = "custom_tool_call_output" if message.tool_call_id in custom else "function_call_output"
                items.append({"type": kind, "call_id": message.tool_call_id, "output": _content(message)})
            case FunctionMessage():
                call_id = f"call_function_{legacy_calls}"
                items.append({"type": "function_call_output", "call_id": call_id, "output": text_of(message)})
            case _:
                role = message.__struct_config__.tag
                items.append({"type": "message", "role": role, "content": _content(message)})
    return items


def _assistant_items(message: AssistantMessage, request: ModelRequest, provider: str) -> Iterator[Item]:
    """Yield the items of one reply in the order in which the provider sent them."""
    spoken = _spoken(message)
    for call in message.tool_calls or ():
        state = request.states.get(call.id)
        for item in state.items if state is not None and is_for(state, provider) else ():
            if item.get("type") == "reasoning":
                yield item
            elif item.get("type") == "message" and spoken is not None:
                yield {**spoken, **({"phase": phase} if (phase := item.get("phase")) else {})}
                spoken = None
        if spoken is not None:
            yield spoken
            spoken = None
        yield _call(call)
    if spoken is not None:
        state = request.text_states.get(id(message))
        if state is not None and is_for(state, provider):
            items = [item for item in state.items if item.get("type") in ("reasoning", "message")]
            yield from (item for item in items if item["type"] == "reasoning")
            phase = next((item.get("phase") for item in items if item["type"] == "message"), None)
            spoken |= {"phase": phase} if phase else {}
        yield spoken


def _spoken(message: AssistantMessage) -> Item | None:
    parts: list[Item] = []
    if isinstance(message.content, list):
        for part in message.content:
            if isinstance(part, TextPart):
                parts.append({"type": "output_text", "text": part.text})
            elif isinstance(part, RefusalPart):
                parts.append({"type": "refusal", "refusal": part.refusal})
    elif message.content:
        parts.append({"type": "output_text", "text": message.content})
    if message.refusal:
        parts.append({"type": "refusal", "refusal": message.refusal})
    return {"type": "message", "role": "assistant", "content": parts} if parts else None


def _call(call: ToolCall | CustomToolCall) -> Item:
    if isinstance(call, ToolCall):
        return _function_call(call.id, call.function.name, call.function.arguments)
    return {
        "type": "custom_tool_call",
        "call_id": call.id,
        "name": call.custom.name,
        "input": call.custom.input,
    }


def _function_call(call_id: str, name: str, arguments: str) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def _content(message: Message) -> str | list[Item]:
    content = message.content
    if not isinstance(content, list):
        return content or ""
    parts: list[Item] = []
    for part in content:
        match part:
            case TextPart(text=text):
                parts.append({"type": "input_text", "text": text})
            case ImagePart(image_url=image):
                # ``detail`` is required here and optional in chat completions, with the same default.
                parts.append(
                    {"type": "input_image", "image_url": image.url, "detail": image.detail or "auto"}
                )
            case FilePart(file=file):
                parts.append({"type": "input_file", **msgspec.to_builtins(file)})
            case AudioPart(input_audio=audio):
                parts.append({"type": "input_audio", "input_audio": msgspec.to_builtins(audio)})
            case RefusalPart(refusal=refusal):
                parts.append({"type": "input_text", "text": refusal})
    return parts


def _tool(tool: FunctionTool) -> Item:
    wire: Item = {"type": "function", "name": tool.name}
    if tool.description is not None:
        wire["description"] = tool.description
    wire["parameters"] = tool.parameters if tool.parameters is not None else _NO_ARGUMENTS
    # The default is true here and false in chat completions.
    wire["strict"] = bool(tool.strict)
    return wire


def _tool_choice(choice: ToolChoice) -> str | Item:
    return {"type": "function", "name": choice.name} if isinstance(choice, NamedToolChoice) else choice


def _parameters(*sources: Mapping[str, Any]) -> Item:
    """Return the parameters of chat completions under their names in Responses; later sources win."""
    merged: Item = {}
    for source in sources:
        for name, value in source.items():
            if name in _LIMITS:
                merged["max_output_tokens"] = (
                    max(value, _LEAST_OUTPUT_TOKENS) if type(value) is int else value
                )
            else:
                merged[name] = value
    body = {name: value for name, value in merged.items() if name not in _DROPPED and name not in _NESTED}
    # Nested objects of a team file are shared by all requests, so they are copied before they are changed.
    for name in ("reasoning", "text"):
        if isinstance(body.get(name), dict):
            body[name] = dict(body[name])
    if isinstance(body.get("include"), list):
        body["include"] = list(body["include"])
    if (effort := merged.get("reasoning_effort")) is not None:
        body.setdefault("reasoning", {})["effort"] = effort
    if (verbosity := merged.get("verbosity")) is not None:
        body.setdefault("text", {})["verbosity"] = verbosity
    if (form := merged.get("response_format")) is not None:
        body.setdefault("text", {})["format"] = _format(form)
    if merged.get("logprobs"):
        body.setdefault("include", []).append("message.output_text.logprobs")
    else:
        body.pop("top_logprobs", None)
    return body


_NESTED = frozenset(("reasoning_effort", "verbosity", "response_format", "logprobs"))


def _format(form: Mapping[str, Any]) -> Item:
    if form.get("type") != "json_schema":
        return dict(form)
    schema = form.get("json_schema")
    return {"type": "json_schema", **(schema if isinstance(schema, dict) else {})}
