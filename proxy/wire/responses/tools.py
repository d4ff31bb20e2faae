"""Convert client tools and tool choices of the Responses API, and encode them for the Response object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.errors import InvalidRequest
from proxy.messages import FunctionTool, ToolChoice
from proxy.wire.chat.parameters import Tools, named_choice
from proxy.wire.chat.schema import FunctionBody
from proxy.wire.conversations.item_input import convert
from proxy.wire.responses.schema import UNSUPPORTED_TOOLS, AllowedToolsItem, FunctionChoiceItem, ResponsesBody
from proxy.wire.validation.errors import missing, not_among, unsupported_value

Body = dict[str, Any]


def tools_of(tools: Sequence[Body]) -> tuple[FunctionTool, ...]:
    """Return the client tools without duplicates.

    Raises:
        InvalidRequest: A tool is not a function, a schema is invalid, or two different functions have one name.
    """
    found = Tools()
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        _check_type(tool, at, ("function",))
        found.add(convert(tool, FunctionBody, at), at)
    return found.all()


def choice_of(
    body: ResponsesBody, tools: Sequence[FunctionTool]
) -> tuple[ToolChoice | None, tuple[FunctionTool, ...]]:
    """Return the tool choice and the tools that it allows.

    Raises:
        InvalidRequest: There is a choice without tools, or the choice names an unknown tool.
    """
    choice, offered = body.tool_choice, tuple(tools)
    if choice is None or (not tools and choice in ("none", "auto")):
        return None, offered
    if not tools:
        raise InvalidRequest(
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            param="tool_choice",
        )
    if isinstance(choice, str):
        return choice, offered
    _check_type(choice, "tool_choice", ("function", "allowed_tools"))
    if choice["type"] == "function":
        named = convert(choice, FunctionChoiceItem, "tool_choice")
        return named_choice("tool_choice", named.name, offered), offered
    allowed = convert(choice, AllowedToolsItem, "tool_choice")
    names = set()
    for index, tool in enumerate(allowed.tools):
        at = f"tool_choice.tools[{index}]"
        _check_type(tool, at, ("function",))
        names.add(named_choice("tool_choice", convert(tool, FunctionChoiceItem, at).name, offered).name)
    return allowed.mode, tuple(tool for tool in offered if tool.name in names)


def tool_body(tool: FunctionTool) -> Body:
    """Return the tool for the Response object."""
    return {
        "type": "function",
        "description": tool.description,
        "name": tool.name,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def choice_body(choice: str | Body) -> str | Body:
    """Return a validated tool choice for the Response object."""
    if isinstance(choice, str):
        return choice
    return {name: choice[name] for name in ("type", "name", "mode", "tools") if name in choice}


def _check_type(value: Body, at: str, offered: tuple[str, ...]) -> None:
    kind = value.get("type")
    if kind is None:
        raise missing(f"{at}.type")
    if kind in UNSUPPORTED_TOOLS:
        raise unsupported_value(f"{at}.type", f"'{at}.type' does not support '{kind}' with this model.")
    if kind not in offered:
        raise not_among(f"{at}.type", kind, offered)
