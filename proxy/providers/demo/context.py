"""Texts, calls and results of a request, as the rules of the demonstration use them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from msgspec import Struct, field
from msgspec.structs import replace

from proxy.messages import AssistantMessage, FunctionTool, ToolCall, ToolMessage, UserMessage, text_of
from proxy.providers.model import ModelRequest
from proxy.turns.wrapped_text import unwrapped_text

SIDE = "side"
"""The agent that answers side requests."""
SIDE_AGENTS = ("", SIDE)
"""Names of the agent of a side request."""
_MAX_READ = 1000
"""Characters of a message that rules look at."""
_MAX_SIDE_READ = 8000
"""The same for side requests: frontends put the conversation behind instructions of a page."""
_MAX_RESULT_READ = 4000
"""Characters of a tool's result that rules look at."""
_MAX_BACK = 60
"""Messages that rules look back at."""


class Situation(Struct, frozen=True):
    """What rules look at. Texts are newest first."""

    team: str
    agent: str
    user_texts: tuple[str, ...]
    agent_texts: tuple[str, ...]
    results: Mapping[str, str]
    """What the agent was just given, by tool; a tool's results below each other when it was called more than once."""
    given: str
    """Every result since the user's last words, of any agent's tools, the oldest first."""
    called: frozenset[str]
    """What was called since the user's last words, by any agent."""
    offered: Mapping[str, FunctionTool]
    made: tuple[tuple[str, object], ...] = ()
    """Calls of the agent's tools since the user's last words: names and arguments."""
    all_results: Mapping[str, str] = field(default_factory=dict)
    """What they gave, by tool; ``results`` is the part of it that the last reply called for."""

    def before_calls(self) -> Situation:
        """Return how things stood when the agent had called nothing yet."""
        return replace(self, results={}, called=self.called - {name for name, _ in self.made})

    def behind_all(self) -> Situation:
        """Return the situation if all calls count as calls of the last reply."""
        return replace(self, results=self.all_results)

    @property
    def said(self) -> str:
        """The last text of the user."""
        return self.user_texts[0] if self.user_texts else ""

    @property
    def asked(self) -> str:
        """The last text of an agent."""
        return self.agent_texts[0] if self.agent_texts else ""


def situation_of(request: ModelRequest) -> Situation:
    """Read from a request what rules look at."""
    offered = {tool.name: tool for tool in request.tools} if request.tool_choice != "none" else {}
    recent = request.messages[-_MAX_BACK:]
    limit = _MAX_SIDE_READ if request.agent in SIDE_AGENTS else _MAX_READ
    user_texts, agent_texts, given, called = [], [], [], set()
    is_since_user = True
    for message in reversed(recent):
        if isinstance(message, UserMessage):
            is_since_user = False
            user_texts.append(unwrapped_text(text_of(message))[:limit])
        elif isinstance(message, ToolMessage) and is_since_user:
            given.append(text_of(message)[:_MAX_RESULT_READ])
        elif isinstance(message, AssistantMessage):
            if text := text_of(message):
                agent_texts.append(text[:limit])
            if is_since_user:
                called |= {
                    call.function.name for call in message.tool_calls or () if isinstance(call, ToolCall)
                }
    return Situation(
        team=request.team,
        agent=request.agent,
        user_texts=tuple(user_texts),
        agent_texts=tuple(agent_texts),
        results=_last_results(request),
        given="\n".join(reversed(given)),
        called=frozenset(called),
        offered=offered,
        made=tuple((name, arguments) for name, arguments, _ in _calls_since_user(request)),
        all_results=_by_tool((name, result) for name, _, result in _calls_since_user(request)),
    )


def _last_results(request: ModelRequest) -> Mapping[str, str]:
    """Return what the calls of the last reply gave.

    The result of another agent's call made this agent active, and does not count: the agent begins with the user's
    text.
    """
    texts: dict[str, str] = {}
    for message in reversed(request.messages):
        if isinstance(message, ToolMessage):
            texts[message.tool_call_id] = text_of(message)[:_MAX_RESULT_READ]
            continue
        if not isinstance(message, AssistantMessage):
            break
        own = {tool.name for tool in request.tools}
        return _by_tool(
            (call.function.name, texts[call.id])
            for call in message.tool_calls or ()
            if isinstance(call, ToolCall) and call.id in texts and call.function.name in own
        )
    return {}


def _calls_since_user(request: ModelRequest) -> list[tuple[str, object, str]]:
    """Return name, arguments and result of every answered call of the agent's tools since the user's last words."""
    own = {tool.name for tool in request.tools}
    texts: dict[str, str] = {}
    found: list[tuple[str, object, str]] = []
    for message in reversed(request.messages):
        if isinstance(message, ToolMessage):
            texts[message.tool_call_id] = text_of(message)[:_MAX_RESULT_READ]
        elif isinstance(message, UserMessage):
            break
        elif isinstance(message, AssistantMessage):
            calls = [call for call in message.tool_calls or () if isinstance(call, ToolCall)]
            found[:0] = [
                (call.function.name, _read(call.function.arguments), texts[call.id])
                for call in calls
                if call.id in texts and call.function.name in own
            ]
    return found


def _by_tool(results: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, text in results:
        found[name] = text if name not in found else f"{found[name]}\n{text}"
    return found


def _read(arguments: str) -> object:
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments
