"""Agents and teams of AutoGen AgentChat (https://microsoft.github.io/autogen), and component JSON of AutoGen Studio.

They keep the conversation in memory. Their state is loaded before a run and stored with its answer, and they receive
the messages since then. A factory, or a component, gives as many objects as there are turns at the same time; a single
object serves one turn after the other.

AgentChat cannot pause a run. An agent that calls a tool of the client is stopped behind the results of its calls, and a
team when its ``UserProxyAgent`` asks for input; the next turn continues from the state at that point.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from autogen_agentchat.base import ChatAgent, TaskResult, Team
from autogen_agentchat.messages import (
    BaseChatMessage,
    HandoffMessage,
    ModelClientStreamingChunkEvent,
    MultiModalMessage,
    StructuredMessage,
    TextMessage,
    ThoughtEvent,
    ToolCallExecutionEvent,
    ToolCallRequestEvent,
    UserInputRequestedEvent,
)
from autogen_core import ComponentLoader, ComponentModel, Image

from proxy.errors import ConfigurationError
from proxy.members.adapters.agentchat_objects import ClientCalls, Pool, Run, participants, waiting_users
from proxy.members.adapters.answer_events import InnerAgents
from proxy.members.adapters.common import (
    Attachment,
    FrameworkMember,
    answered_outside,
    attachments_of,
    items_since,
    json_text,
    spoken,
    system_text,
)
from proxy.members.adapters.external_calls import ExternalCalls
from proxy.members.port import (
    HandOver,
    Member,
    MemberContext,
    MemberEvent,
    ModelUsed,
    Reasoning,
    Sees,
    ToolBegan,
    ToolEnded,
)
from proxy.messages import Item, Usage, UserMessage, text_of


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent or a team."""
    return AgentChatMember(found, make) if isinstance(found, ChatAgent | Team) else None


def component_member(file: Path) -> Member:
    """Return the member of a file with a component. Loading it executes the code that it names.

    Raises:
        ConfigurationError: The file cannot be read, or has no agent or team.
    """
    try:
        model = ComponentModel.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{file.name} cannot be read ({type(error).__name__})") from None
    except ValueError as error:
        raise ConfigurationError(f"{file.name} is not a component ({type(error).__name__})") from None

    def make() -> Any:
        return ComponentLoader.load_component(model)

    try:
        member = adapted(make(), make)
    # The code of a component can raise anything.
    except Exception as error:
        raise ConfigurationError(
            f"the component in {file.name} cannot be loaded ({type(error).__name__})"
        ) from error
    if member is None:
        raise ConfigurationError(f"the component in {file.name} is neither an agent nor a team")
    return member


class AgentChatMember(FrameworkMember):
    """An agent or a team."""

    sees: Sees = "own"

    def __init__(self, found: Any, make: Callable[[], Any] | None = None) -> None:
        super().__init__(found)
        self._pool = Pool(found, make)

    async def _events(self, context: MemberContext) -> AsyncGenerator[str | MemberEvent]:
        """Run it with the messages since its last answer, or with the results of the client's tools."""
        stored = context.state if isinstance(context.state, dict) else {}
        calls = ClientCalls(context, stored.get("calls") or ())
        if context.later_items and calls.open:
            context.resume()
            async with ExternalCalls(context) as outside:
                calls.results = await outside.answers((), calls.open)
        async with self._pool.take() as taken:
            found = taken.found
            await found.load_state(calls.with_results(stored.get("state") or taken.first_state))
            stream = _Stream(context, calls, participants(found), waiting_users(found))
            task = None if calls.results else _task(context, stored, is_team=isinstance(found, Team))
            state: Any = None
            async with Run(found, task, calls) as run:
                async for event in run:
                    for one in stream.read(event):
                        yield one
                    if stream.waits:
                        # It is at rest here: nothing continues before the client or the user answers.
                        state = await found.save_state()
                        break
            taken.is_usable = not stream.asked_by
            state = await found.save_state() if state is None else state
        context.state = {"state": dict(state), "calls": calls.stored, **stream.stored}
        if calls.open:
            async with ExternalCalls(context) as outside:
                await outside.answers((), calls.open)
        if stream.hand_over is not None:
            yield stream.hand_over

    async def close(self) -> None:
        """Close the objects that are not in use."""
        await self._pool.close()


# --- input -----------------------------------------------------------------------------------------------------


def _task(context: MemberContext, stored: dict[str, Any], *, is_team: bool) -> list[Any]:
    """Return the new messages. The last one answers the agent that asked the user, or that handed over."""
    system = system_text(context)
    messages = [TextMessage(content=system, source="system")] if system else []
    messages += spoken(items_since(context), _of_user, _of_agent)
    messages += [
        TextMessage(content=f"{call.name}({json_text(call.arguments)}): {result}", source="tools")
        for call, result in answered_outside(context)
    ]
    if is_team and messages and isinstance(last := messages[-1], TextMessage):
        source = stored.get("asked_by") or "user"
        target = stored.get("handed_over_by")
        messages[-1] = (
            HandoffMessage(content=last.content, source=source, target=target)
            if target
            else TextMessage(content=last.content, source=source)
        )
    return messages


def _of_user(message: UserMessage) -> Any:
    attachments = attachments_of(message)
    if not attachments:
        return TextMessage(content=text_of(message), source="user")
    return MultiModalMessage(content=[text_of(message), *map(_attachment, attachments)], source="user")


def _of_agent(item: Item, text: str) -> Any:
    return TextMessage(content=text, source=item.agent or "assistant")


def _attachment(one: Attachment) -> Any:
    # AgentChat has images as pixels only; what is not in the message stays an address.
    if one.kind == "image":
        return Image.from_uri(one.url) if one.url.startswith("data:") else one.url
    return one.note


# --- output ----------------------------------------------------------------------------------------------------


class _Stream:
    """Converts what an agent or a team streams. ``users`` are the agents that stand for the user."""

    def __init__(
        self, context: MemberContext, calls: ClientCalls, agents: frozenset[str], users: frozenset[str]
    ) -> None:
        self._context = context
        self._calls = calls
        self._agents = agents
        self._users = users
        self._inner_agents = InnerAgents()
        self._is_streamed = False
        """Whether the next message was streamed in pieces."""
        self._has_text = False
        self._last: Any = None
        self.hand_over: HandOver | None = None
        self.asked_by = ""
        """The agent that asked the user for input."""

    @property
    def waits(self) -> bool:
        """Whether the run cannot continue in this turn."""
        return bool(self.asked_by or self._calls.open)

    @property
    def stored(self) -> dict[str, str]:
        """Whom the next message answers."""
        last = self._last
        is_outside = isinstance(last, HandoffMessage) and last.target not in self._agents - self._users
        return {"asked_by": self.asked_by, "handed_over_by": last.source if is_outside else ""}

    def read(self, event: Any) -> list[str | MemberEvent]:
        """Return the events of a message."""
        if isinstance(event, TaskResult):
            return []
        found = self._read(event)
        if event.source in self._agents and any(isinstance(one, str) for one in found):
            found = [*self._inner_agents.write(event.source), *found]
        self._has_text = self._has_text or any(isinstance(one, str) for one in found)
        if event.models_usage is not None:
            usage = Usage(
                prompt=event.models_usage.prompt_tokens, completion=event.models_usage.completion_tokens
            )
            found.append(ModelUsed("agentchat", usage))
        if isinstance(event, BaseChatMessage):
            self._is_streamed = False
            self._last = event
        return found

    def _read(self, event: Any) -> list[str | MemberEvent]:
        match event:
            case ModelClientStreamingChunkEvent():
                self._is_streamed = True
                return [event.content] if event.content else []
            case UserInputRequestedEvent() if event.source in self._users:
                self.asked_by = event.source
                return []
            case ThoughtEvent():
                return [Reasoning(event.content)]
            case ToolCallRequestEvent():
                return [
                    ToolBegan(call.id, call.name, call.arguments, self._inner(event.source))
                    for call in event.content
                    if not self._is_handoff(call.name) and call.name not in self._calls.names
                ]
            case ToolCallExecutionEvent():
                return [ToolEnded(one.call_id, one.content, bool(one.is_error)) for one in event.content]
            case HandoffMessage():
                return self._handoff(event)
            case StructuredMessage():
                return [event.content.model_dump_json()]
            case BaseChatMessage() if not self._is_streamed:
                return [event.to_text()]
            case _:
                return []

    def _handoff(self, event: Any) -> list[str | MemberEvent]:
        if event.target in self._context.handoffs:
            self.hand_over = HandOver(event.target, event.content)
            return []
        if event.target in self._agents:
            return [*self._inner_agents.hand_over(event.source, event.target, event.content)]
        # To the user, whatever the name: the earlier text of the agent is the answer.
        return [] if self._has_text else [event.content]

    def _is_handoff(self, name: str) -> bool:
        return name.startswith("transfer_to_")

    def _inner(self, source: str) -> str:
        return source if source != self._context.agent else ""
