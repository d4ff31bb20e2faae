"""Convert the parameters of a decoded body to the proxy's types, and reject unsupported ones.

A parameter that changes the meaning of the response if it is ignored is rejected, never dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.errors import InvalidRequest
from proxy.messages import FunctionTool, NamedToolChoice, Parameters, ToolChoice
from proxy.wire.chat.schema import (
    AllowedToolsChoice,
    ChatBody,
    CustomChoice,
    CustomToolBody,
    FunctionBody,
    FunctionChoice,
    JsonSchemaFormat,
    NamedFunction,
)
from proxy.wire.schema_expansion import MAX_EXPANSION, MAX_IN_PLACE, ExpansionTooLarge, check_expansion
from proxy.wire.validation.errors import clip, invalid_value, unsupported_parameter, unsupported_value

SCHEMA_DEPTH = 64
"""Maximum nesting of a schema in a request."""
SCHEMA_SIZE = 5000
"""Maximum number of objects and arrays in a schema."""
MAX_TOOLS_SIZE = 10_000
"""Objects and arrays that the schemas of all tools of a request may have together."""
MAX_SCHEMA_VALUES = 25_000
"""Properties of objects and elements of arrays, on all levels together, that a schema may have."""

_EXPANDS = re.compile(rb'"(?:\$(?:ref|dynamicRef|recursiveRef)|unevaluated(?:Items|Properties))"')


def check_combinations(body: ChatBody) -> None:
    """Reject unsupported parameters, and parameters that exclude or require each other.

    Raises:
        InvalidRequest: The first invalid parameter or combination.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    if body.max_tokens is not None and body.max_completion_tokens is not None:
        raise _excluded(
            "max_tokens", "'max_tokens' and 'max_completion_tokens' cannot be set at the same time."
        )
    if body.functions and body.tools:
        raise _excluded("functions", "'functions' and 'tools' cannot be set at the same time.")
    if body.top_logprobs is not None and not body.logprobs:
        raise _excluded("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true.")
    if body.n is not None and body.n > 1:
        raise unsupported_value(
            "n", f"'n' does not support {body.n} with this model. Only the default (1) value is supported."
        )
    if body.logit_bias:
        raise unsupported_parameter(
            "logit_bias",
            "is not supported with this model: the agents of a team can use different tokenizers.",
        )
    if body.modalities and "audio" in body.modalities:
        raise unsupported_value("modalities", "'modalities' does not support 'audio' with this model.")
    if body.web_search_options is not None:
        raise unsupported_parameter("web_search_options", "is not supported with this model.")
    if body.moderation is not None:
        raise unsupported_parameter("moderation", "is not supported with this model.")
    if (
        body.response_format is not None
        and isinstance(body.response_format, JsonSchemaFormat)
        and body.response_format.json_schema.schema is not None
    ):
        check_depth(body.response_format.json_schema.schema, "response_format.json_schema.schema")


def _excluded(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code="invalid_parameter_combination")


def model_parameters(body: ChatBody) -> Parameters:
    """Return the parameters for the model."""
    return Parameters(
        temperature=body.temperature,
        top_p=body.top_p,
        max_completion_tokens=body.max_completion_tokens,
        max_tokens=body.max_tokens,
        stop=body.stop,
        seed=body.seed,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        response_format=None if body.response_format is None else msgspec.to_builtins(body.response_format),
        reasoning_effort=body.reasoning_effort,
        verbosity=body.verbosity,
        service_tier=body.service_tier,
        prediction=None if body.prediction is None else msgspec.to_builtins(body.prediction),
    )


# --- tools ---------------------------------------------------------------------------------------------------


def tools_of(body: ChatBody) -> tuple[FunctionTool, ...]:
    """Return the client tools without duplicates.

    Raises:
        InvalidRequest: There is a custom tool, an invalid schema, or one name for two different functions.
    """
    found = Tools()
    for index, tool in enumerate(body.tools or ()):
        if isinstance(tool, CustomToolBody):
            raise unsupported_value(
                f"tools[{index}].type", f"'tools[{index}].type' does not support 'custom' with this model."
            )
        found.add(tool.function, f"tools[{index}].function")
    for index, function in enumerate(body.functions or ()):
        found.add(function, f"functions[{index}]")
    return found.all()


class Tools:
    """The functions of a request, each once."""

    def __init__(self) -> None:
        self._by_name: dict[str, FunctionTool] = {}
        self._size = 0

    def add(self, function: FunctionBody, place: str) -> None:
        """Add a function; ``place`` is its path in the body.

        Raises:
            InvalidRequest: The schema is invalid, the schemas are too large together, or another function has the name.
        """
        if function.parameters is not None:
            self._size += _check_schema(function.name, function.parameters, f"{place}.parameters")
            if self._size > MAX_TOOLS_SIZE:
                param = place.partition("[")[0]
                raise invalid_value(
                    param,
                    f"Invalid '{param}': the schemas have more than {MAX_TOOLS_SIZE} objects and arrays in total.",
                )
        tool = FunctionTool(function.name, function.description, function.parameters, function.strict)
        if self._by_name.setdefault(tool.name, tool) != tool:
            raise invalid_value(
                f"{place}.name", f"Invalid '{place}.name': '{tool.name}' names two different functions."
            )

    def all(self) -> tuple[FunctionTool, ...]:
        """Return the functions, in the order in which they were added."""
        return tuple(self._by_name.values())


def _check_schema(name: str, schema: dict[str, Any], place: str) -> int:
    kind = schema.get("type", "object")
    if kind != "object":
        raise _bad_schema(
            name, place, f"""schema must be of 'type: "object"', got 'type: "{clip(str(kind))}"'"""
        )
    if not isinstance(schema.get("properties", {}), dict):
        raise _bad_schema(name, place, "'properties' must be an object")
    required = schema.get("required") or []
    if not isinstance(required, list) or not all(isinstance(one, str) for one in required):
        raise _bad_schema(name, place, "'required' must be an array of strings")
    return check_depth(schema, place)


def _bad_schema(name: str, place: str, reason: str) -> InvalidRequest:
    return InvalidRequest(
        f"Invalid schema for function '{name}': {reason}.", param=place, code="invalid_function_parameters"
    )


def check_depth(schema: dict[str, Any], place: str) -> int:
    """Reject a schema that exceeds the limits on nesting and size, also with its references followed.

    Return an upper bound of the number of its objects and arrays.

    The limit on nesting is far below the recursion limit, because a later encoder can run deeper on the stack.
    Counting brackets is a fast check: most schemas have too few to be nested deeply.
    """
    try:
        encoded = msgspec.json.encode(schema)
    except RecursionError:
        raise invalid_value(
            place, f"Invalid '{place}': nested more than {SCHEMA_DEPTH} levels deep."
        ) from None
    brackets = encoded.count(b"{") + encoded.count(b"[")
    if brackets > SCHEMA_SIZE:
        raise invalid_value(place, f"Invalid '{place}': more than {SCHEMA_SIZE} objects and arrays.")
    if brackets > SCHEMA_DEPTH and _is_deeper(schema, SCHEMA_DEPTH):
        raise invalid_value(place, f"Invalid '{place}': nested more than {SCHEMA_DEPTH} levels deep.")
    if encoded.count(b",") > MAX_SCHEMA_VALUES and _has_more_values(schema, MAX_SCHEMA_VALUES):
        raise invalid_value(
            place, f"Invalid '{place}': more than {MAX_SCHEMA_VALUES} properties and array elements."
        )
    if _EXPANDS.search(encoded):
        try:
            check_expansion(schema)
        except ExpansionTooLarge:
            raise invalid_value(
                place,
                f"Invalid '{place}': its references expand to too many schemas, or recursively for the same value"
                f" (more than {MAX_IN_PLACE} for one value, or {MAX_EXPANSION} in total).",
            ) from None
    return brackets


def _has_more_values(schema: dict[str, Any], limit: int) -> bool:
    count = 0
    pending: list[Any] = [schema]
    while pending and count <= limit:
        value = pending.pop()
        count += len(value)
        inner = value.values() if isinstance(value, dict) else value
        pending.extend(one for one in inner if isinstance(one, dict | list))
    return count > limit


def _is_deeper(value: dict[str, Any], levels: int) -> bool:
    level: list[Any] = [value]
    for _ in range(levels):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)


def tool_choice_of(
    body: ChatBody, tools: Sequence[FunctionTool]
) -> tuple[ToolChoice | None, tuple[FunctionTool, ...]]:
    """Return the tool choice and the tools that it allows.

    Raises:
        InvalidRequest: There is a choice without tools, or the choice names an unknown tool.
    """
    key, choice = (
        ("tool_choice", body.tool_choice)
        if body.tool_choice is not None
        else ("function_call", body.function_call)
    )
    offered = tuple(tools)
    if choice is None:
        return None, offered
    if not tools:
        # Some clients send an empty list with "auto", which has no effect.
        if choice in ("none", "auto") and (body.tools is not None or body.functions is not None):
            return None, ()
        wanted = "tools" if key == "tool_choice" else "functions"
        raise InvalidRequest(
            f"Invalid value for '{key}': '{key}' is only allowed when '{wanted}' are specified.", param=key
        )
    match choice:
        case FunctionChoice():
            return named_choice(key, choice.function.name, offered), offered
        case NamedFunction():
            return named_choice(key, choice.name, offered), offered
        case AllowedToolsChoice():
            allowed = {named_choice(key, one.function.name, offered).name for one in _functions(choice)}
            return choice.allowed_tools.mode, tuple(tool for tool in offered if tool.name in allowed)
        case CustomChoice():
            raise _custom_choice()
        case _:
            return choice, offered


def named_choice(key: str, name: str, tools: Sequence[FunctionTool]) -> NamedToolChoice:
    """Return the choice of one of the functions in ``tools``."""
    if any(tool.name == name for tool in tools):
        return NamedToolChoice(name)
    raise invalid_value(
        key, f"Invalid value for '{key}': there is no function '{clip(name)}' in the list of tools."
    )


def _functions(choice: AllowedToolsChoice) -> list[FunctionChoice]:
    found = [one for one in choice.allowed_tools.tools if isinstance(one, FunctionChoice)]
    if len(found) < len(choice.allowed_tools.tools):
        raise _custom_choice()
    return found


def _custom_choice() -> InvalidRequest:
    return unsupported_value("tool_choice", "'tool_choice' does not support custom tools with this model.")
