"""The caller's functions and the choice among them, from the words of the Responses API and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxy.errors import InvalidRequest
from proxy.messages import FunctionTool, ToolChoice
from proxy.wire.chat.parameters import Tools, named_choice
from proxy.wire.chat.schema import FunctionBody
from proxy.wire.conversations.item_input import typed
from proxy.wire.responses.schema import REFUSED_TOOLS, AllowedToolsItem, FunctionChoiceItem, ResponsesBody
from proxy.wire.validation.errors import missing, not_among, unsupported_value

Body = dict[str, Any]


def tools_of(tools: Sequence[Body]) -> tuple[FunctionTool, ...]:
    """Return the caller's functions, each once.

    Raises:
        InvalidRequest: A tool that is not a function, a bad schema, or one name for two different functions.
    """
    found = Tools()
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        _check_type(tool, at, ("function",))
        found.add(typed(tool, FunctionBody, at), at)
    return found.all()


def choice_of(
    body: ResponsesBody, tools: Sequence[FunctionTool]
) -> tuple[ToolChoice | None, tuple[FunctionTool, ...]]:
    """Return how the caller wants its tools used, and those that may be used at all.

    Raises:
        InvalidRequest: A choice without tools, or of a tool that is not there.
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
        named = typed(choice, FunctionChoiceItem, "tool_choice")
        return named_choice("tool_choice", named.name, offered), offered
    allowed = typed(choice, AllowedToolsItem, "tool_choice")
    names = set()
    for index, tool in enumerate(allowed.tools):
        at = f"tool_choice.tools[{index}]"
        _check_type(tool, at, ("function",))
        names.add(named_choice("tool_choice", typed(tool, FunctionChoiceItem, at).name, offered).name)
    return allowed.mode, tuple(tool for tool in offered if tool.name in names)


def tool_told(tool: FunctionTool) -> Body:
    """Return the function as a response repeats it."""
    return {
        "type": "function",
        "description": tool.description,
        "name": tool.name,
        "parameters": tool.parameters,
        "strict": tool.strict,
    }


def choice_told(choice: str | Body) -> str | Body:
    """Return the choice as a response repeats it; ``choice_of`` has found it in order."""
    if isinstance(choice, str):
        return choice
    return {name: choice[name] for name in ("type", "name", "mode", "tools") if name in choice}


def _check_type(value: Body, at: str, offered: tuple[str, ...]) -> None:
    kind = value.get("type")
    if kind is None:
        raise missing(f"{at}.type")
    if kind in REFUSED_TOOLS:
        raise unsupported_value(f"{at}.type", f"'{at}.type' does not support '{kind}' with this model.")
    if kind not in offered:
        raise not_among(f"{at}.type", kind, offered)
