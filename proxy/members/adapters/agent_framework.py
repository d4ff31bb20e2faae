"""Agents of the Microsoft Agent Framework (https://learn.microsoft.com/agent-framework).

The session of an agent is stored with its answer, and the agent receives the messages since then. Handoffs and tools of
the client are declared without a function, so that a call of one ends a run of the framework.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
from agent_framework import AgentSession, BaseAgent, Content, FunctionTool
from agent_framework import Message as TheirMessage

from proxy.errors import MemberFailed
from proxy.members.adapters.common import (
    NOT_EXECUTED,
    answered_calls,
    hand_over_to,
    items_since,
    unused_parameters,
)
from proxy.members.port import (
    Member,
    MemberContext,
    MemberEvent,
    ModelUsed,
    Reasoning,
    Sees,
    ToolBegan,
    ToolEnded,
)
from proxy.members.transcript import note_of_handoff
from proxy.messages import AssistantMessage, ImagePart, Item, Message, Usage, UserMessage, text_of

logger = logging.getLogger(__name__)

_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "seed": "seed",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent."""
    return AgentFrameworkMember(found) if isinstance(found, BaseAgent) else None


class AgentFrameworkMember:
    """An agent, whose state is in sessions, so that one object serves all turns."""

    has_effects = True
    sees: Sees = "own"

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Run the agent with its session and the messages since its last answer."""
        unused = unused_parameters(context.parameters, _OPTIONS)
        if unused is not None:
            yield unused
        state = context.state if isinstance(context.state, dict) else None
        session = self._agent.create_session() if state is None else AgentSession.from_dict(state["session"])
        tools = [*context.tools, *(tool for tool, _ in context.handoff_tools)]
        external = {tool.name for tool in tools}
        calls = _Calls(external)
        stream = self._agent.run(
            [*_results(state, context), *_new_messages(context)],
            stream=True,
            session=session,
            tools=[
                FunctionTool(
                    name=tool.name,
                    description=tool.description or "",
                    input_model=tool.parameters or {"type": "object", "properties": {}},
                )
                for tool in tools
            ],
            options=_options(context),
        )
        async for update in stream:
            for found in calls.read(update):
                yield found
        response = await stream.get_final_response()
        if any(one.type == "function_approval_request" for one in response.user_input_requests):
            logger.warning("approvals of the framework are not supported", extra={"agent": context.agent})
            raise MemberFailed(context.agent)
        if response.usage_details:
            yield _used(response)
        context.state = {"session": session.to_dict(), "open": calls.open}
        targets = {tool.name: target for tool, target in context.handoff_tools}
        of_client = [call for call in calls.open if call[1] not in targets]
        if of_client:
            await asyncio.gather(*(context.call_tool(name, _arguments(text)) for _, name, text in of_client))
        elif calls.open:
            _, name, text = calls.open[0]
            yield hand_over_to(targets[name], text)

    async def close(self) -> None:
        """Nothing is held."""


def _results(state: Any, context: MemberContext) -> list[Any]:
    """Return the results of the calls with which the last run ended."""
    answers = context.answers()
    if state is None or not state["open"]:
        return []
    targets = {tool.name for tool, _ in context.handoff_tools}
    found = answered_calls([(i, name, _arguments(text)) for i, name, text in state["open"]], answers)
    contents = [
        Content.from_function_result(
            call_id=i, result=found.get(i, "transferred" if name in targets else NOT_EXECUTED)
        )
        for i, name, _ in state["open"]
    ]
    return [TheirMessage("tool", contents)]


def _new_messages(context: MemberContext) -> list[Any]:
    if context.later_items:
        # The run continues behind the results of its calls.
        return []
    system = "\n\n".join(filter(None, (context.instructions, note_of_handoff(context))))
    messages = [TheirMessage("system", [system])] if system else []
    return messages + [one for item in items_since(context) if (one := _message(item)) is not None]


def _message(item: Item) -> Any:
    message = item.message
    if isinstance(message, UserMessage):
        parts = message.content if isinstance(message.content, list) else ()
        images = [part.image_url.url for part in parts if isinstance(part, ImagePart)]
        return TheirMessage("user", [text_of(message), *map(_image, images)])
    if isinstance(message, AssistantMessage) and item.visible and (text := text_of(message)):
        return TheirMessage("assistant", [text])
    return None


def _image(url: str) -> Any:
    kind = url[len("data:") :].partition(";")[0] if url.startswith("data:") else "image/*"
    return Content.from_uri(url, media_type=kind)


def _options(context: MemberContext) -> Any:
    options: dict[str, Any] = {}
    for name, theirs in _OPTIONS.items():
        value = getattr(context.parameters, name)
        if value is not None:
            options[theirs] = value
    return options or None


class _Calls:
    """The function calls of a run, whose arguments come in pieces. ``open`` are external calls: id, name, arguments."""

    def __init__(self, external: set[str]) -> None:
        self._external = external
        self._pieces: dict[str, tuple[str, list[str]]] = {}
        self.open: list[list[str]] = []

    def read(self, update: Any) -> list[str | MemberEvent]:
        """Return the events of an update."""
        found: list[str | MemberEvent] = []
        for content in update.contents:
            match content.type:
                case "text" if content.text:
                    found.append(content.text)
                case "text_reasoning" if content.text:
                    found.append(Reasoning(content.text))
                case "function_call":
                    self._add(content)
                case "function_result":
                    found += self._began()
                    result = content.exception or content.result
                    text = (
                        result
                        if isinstance(result, str)
                        else msgspec.json.encode(result, enc_hook=str).decode()
                    )
                    found.append(ToolEnded(content.call_id, text, bool(content.exception)))
                case _:
                    pass
        if update.finish_reason:
            found += self._began()
        return found

    def _add(self, content: Any) -> None:
        if content.name and any(call[0] == content.call_id for call in self.open):
            # Calls without a function come once more as a whole.
            return
        _, pieces = self._pieces.setdefault(content.call_id, (content.name or "", []))
        if isinstance(content.arguments, str):
            pieces.append(content.arguments)
        elif content.arguments:
            pieces.append(msgspec.json.encode(content.arguments).decode())

    def _began(self) -> list[MemberEvent]:
        pieces, self._pieces = self._pieces, {}
        found: list[MemberEvent] = []
        for call_id, (name, arguments) in pieces.items():
            if name in self._external:
                self.open.append([call_id, name, "".join(arguments)])
            elif name:
                found.append(ToolBegan(call_id, name, "".join(arguments) or "{}"))
        return found


def _used(response: Any) -> ModelUsed:
    details = response.usage_details
    usage = Usage(
        prompt=details.get("input_token_count") or 0,
        completion=details.get("output_token_count") or 0,
        cached=details.get("cache_read_input_token_count") or 0,
    )
    return ModelUsed("agent-framework", usage)


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
