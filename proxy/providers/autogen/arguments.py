"""What AutoGen's Anthropic and Ollama clients need changed in the arguments of ``create_stream``.

Each rule names the function of autogen-ext 0.7 that makes it necessary.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from autogen_core import FunctionCall
from autogen_core import models as llm

from proxy.messages import FunctionTool, NamedToolChoice, ToolChoice
from proxy.providers.autogen.messages import Family


def readable_calls(messages: Sequence[llm.LLMMessage], family: Family) -> list[llm.LLMMessage]:
    """Return the chain with arguments that the client can decode, and without text that it would omit.

    Both clients decode arguments and raise an error for other text than JSON (``assistant_message_to_anthropic``,
    ``func_call_to_ollama``), and both APIs require an object. A call that a model made with other arguments would
    otherwise fail every later request of its conversation. ``assistant_message_to_ollama`` omits the text before calls.
    """
    if family not in ("anthropic", "ollama"):
        return list(messages)
    found: list[llm.LLMMessage] = []
    for message in messages:
        if not isinstance(message, llm.AssistantMessage) or isinstance(message.content, str):
            found.append(message)
            continue
        calls = [FunctionCall(call.id, _object(call.arguments), call.name) for call in message.content]
        reasoning = message.thought
        if family == "ollama" and reasoning:
            found.append(llm.AssistantMessage(content=reasoning, source=message.source))
            reasoning = None
        found.append(llm.AssistantMessage(content=calls, thought=reasoning, source=message.source))
    return found


def offered_tools(
    tools: Sequence[FunctionTool],
    choice: ToolChoice | None,
    messages: Sequence[llm.LLMMessage],
    family: Family,
) -> tuple[Sequence[FunctionTool], ToolChoice | None]:
    """Return the tools and the choice with which the client sends the requested ones.

    Ollama: for a named tool the client sends the definition of the choice instead of the tool's
    (``_process_create_args``), so the tool is offered alone. Anthropic: calls in the history require tools; without any
    the client sends those of its previous request, which can be another caller's (``_last_used_tools``).
    """
    if family == "ollama" and isinstance(choice, NamedToolChoice):
        return [tool for tool in tools if tool.name == choice.name], "required"
    if family == "anthropic" and not tools:
        names = dict.fromkeys(call.name for call in _calls(messages))
        if names:
            return [FunctionTool(name) for name in names], "none"
    return tools, choice


def _calls(messages: Sequence[llm.LLMMessage]) -> Sequence[FunctionCall]:
    return [
        call
        for message in messages
        if isinstance(message, llm.AssistantMessage) and isinstance(message.content, list)
        for call in message.content
    ]


def _object(arguments: str) -> str:
    try:
        if isinstance(msgspec.json.decode(arguments), dict):
            return arguments
    except (ValueError, RecursionError):
        pass
    return msgspec.json.encode({"arguments": arguments}).decode() if arguments.strip() else "{}"
