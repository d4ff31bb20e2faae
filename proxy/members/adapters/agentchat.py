"""Agents and teams of AutoGen AgentChat (https://microsoft.github.io/autogen), and component JSON of AutoGen Studio.

They keep the conversation in memory. Their state is loaded before a run and stored with its answer, and they receive
the messages since then. A factory, or a component, gives as many objects as there are turns at the same time; a single
object serves one turn after the other.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
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
)
from autogen_core import CancellationToken, ComponentLoader, ComponentModel, Image

from proxy.errors import ConfigurationError
from proxy.members.adapters.common import items_since, unused_parameters
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
from proxy.members.transcript import note_of_handoff
from proxy.messages import AssistantMessage, ImagePart, Item, Message, Usage, UserMessage, text_of


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent or a team."""
    return AgentChatMember(found, make) if isinstance(found, ChatAgent | Team) else None


def component_member(file: Path) -> Member:
    """Return the member of a file with a component. Loading it executes the code that it names.

    Raises:
        ConfigurationError: The file has no agent or team.
    """
    try:
        model = ComponentModel.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{file.name} is not a component ({type(error).__name__})") from None

    def make() -> Any:
        return ComponentLoader.load_component(model)

    try:
        member = adapted(make(), make)
    # A component runs code of its own, which can raise anything.
    except Exception as error:
        raise ConfigurationError(
            f"the component in {file.name} cannot be loaded ({type(error).__name__})"
        ) from error
    if member is None:
        raise ConfigurationError(f"the component in {file.name} is neither an agent nor a team")
    return member


class _Pool:
    """Objects that run one turn at a time, with the state that they had when they were new."""

    def __init__(self, found: Any, make: Callable[[], Any] | None) -> None:
        self._make = make
        self._idle: list[tuple[Any, Any]] = []
        self._new = [found]
        self._single = asyncio.Lock() if make is None else None

    @asynccontextmanager
    async def take(self) -> AsyncIterator[tuple[Any, Any]]:
        """Yield an object and its first state; after a failure it is not used again, unless it is the only one."""
        if self._single is not None:
            async with self._single:
                taken = await self._next()
                try:
                    yield taken
                finally:
                    self._idle.append(taken)
            return
        taken = await self._next()
        yield taken
        self._idle.append(taken)

    async def _next(self) -> tuple[Any, Any]:
        if self._idle:
            return self._idle.pop()
        if self._new:
            found = self._new.pop()
        else:
            assert self._make is not None
            found = self._make()
        return found, await found.save_state()

    async def close(self) -> None:
        for found, _ in self._idle:
            close = getattr(found, "close", None)
            if close is not None:
                with suppress(Exception):
                    await close()


class AgentChatMember:
    """An agent or a team."""

    has_effects = True
    sees: Sees = "own"

    def __init__(self, found: Any, make: Callable[[], Any] | None = None) -> None:
        self._pool = _Pool(found, make)

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Run it with the messages since its last answer."""
        unused = unused_parameters(context.parameters, ())
        if unused is not None:
            yield unused
        stored = context.state if isinstance(context.state, dict) else {}
        token = CancellationToken()
        stream = _Stream(context)
        async with self._pool.take() as (found, first_state):
            await found.load_state(stored.get("state") or first_state)
            task = _task(context, resumes=stored.get("handed_over_by") if isinstance(found, Team) else None)
            try:
                async for event in found.run_stream(
                    task=task, cancellation_token=token, output_task_messages=False
                ):
                    for one in stream.read(event):
                        yield one
            finally:
                token.cancel()
            context.state = {"state": dict(await found.save_state()), "handed_over_by": stream.handed_over_by}
        if stream.hand_over is not None:
            yield stream.hand_over

    async def close(self) -> None:
        """Close the objects that are not in use."""
        await self._pool.close()


# --- input -----------------------------------------------------------------------------------------------------


def _task(context: MemberContext, *, resumes: str | None) -> list[Any]:
    """Return the new messages; a team that handed over gets the last one as a handoff to the agent that did."""
    system = "\n\n".join(filter(None, (context.instructions, note_of_handoff(context))))
    messages = [TextMessage(content=system, source="system")] if system else []
    messages += [one for item in items_since(context) if (one := _message(item)) is not None]
    if resumes and messages and isinstance(messages[-1], TextMessage):
        messages[-1] = HandoffMessage(content=messages[-1].content, source="user", target=resumes)
    return messages


def _message(item: Item) -> Any:
    message = item.message
    if isinstance(message, UserMessage):
        images = [
            part.image_url.url
            for part in (message.content if isinstance(message.content, list) else ())
            if isinstance(part, ImagePart)
        ]
        if not images:
            return TextMessage(content=text_of(message), source="user")
        # AgentChat has images as pixels only; what is not in the message stays an address.
        parts = [Image.from_uri(url) if url.startswith("data:") else url for url in images]
        return MultiModalMessage(content=[text_of(message), *parts], source="user")
    if isinstance(message, AssistantMessage) and item.visible and (text := text_of(message)):
        return TextMessage(content=text, source=item.agent or "assistant")
    return None


# --- output ----------------------------------------------------------------------------------------------------


class _Stream:
    """Converts what an agent or a team streams."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._is_streamed = False
        """Whether the next message was streamed in pieces."""
        self.hand_over: HandOver | None = None
        self.handed_over_by: str | None = None

    def read(self, event: Any) -> list[str | MemberEvent]:
        """Return the events of a message."""
        if isinstance(event, TaskResult):
            return []
        found: list[str | MemberEvent] = []
        match event:
            case ModelClientStreamingChunkEvent():
                self._is_streamed = True
                return [event.content] if event.content else []
            case ThoughtEvent():
                found.append(Reasoning(event.content))
            case ToolCallRequestEvent():
                found += [
                    ToolBegan(call.id, call.name, call.arguments, self._inner(event.source))
                    for call in event.content
                    if not self._is_handoff(call.name)
                ]
            case ToolCallExecutionEvent():
                found += [ToolEnded(one.call_id, one.content, bool(one.is_error)) for one in event.content]
            case HandoffMessage():
                found += self._handoff(event)
            case StructuredMessage():
                found.append(event.content.model_dump_json())
            case BaseChatMessage() if not self._is_streamed:
                found.append(event.to_text())
            case _:
                pass
        if event.models_usage is not None:
            usage = Usage(
                prompt=event.models_usage.prompt_tokens, completion=event.models_usage.completion_tokens
            )
            found.append(ModelUsed("agentchat", usage))
        if isinstance(event, BaseChatMessage):
            self._is_streamed = False
        return found

    def _handoff(self, event: Any) -> list[str | MemberEvent]:
        if event.target in self._context.handoffs:
            self.hand_over = HandOver(event.target, event.content)
            self.handed_over_by = event.source
            return []
        return [Reasoning(f"{event.source} hands over to {event.target}\n")]

    def _is_handoff(self, name: str) -> bool:
        return name.startswith("transfer_to_")

    def _inner(self, source: str) -> str:
        return source if source != self._context.agent else ""
