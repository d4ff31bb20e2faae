"""An implementation of AutoGen's ``AgentRuntime`` that calls the handler of a direct message in the sender's task.

``SingleThreadedAgentRuntime`` puts every message and every response into one queue and runs each in a separate task.
Under concurrent turns that costs ten times the call itself. Agents (``RoutedAgent`` and other subclasses of
``BaseAgent``) run on both without changes. What differs:

- A cancelled sender cancels the handler and waits for its end, and a cancelled token cancels both. With the other
  runtime, the sender continues at once, and the handler is cancelled only if it linked its own task to the token.
- The handler sees the context variables of the sender, and the sender those that the handler sets.
- A message with a token that is already cancelled is not delivered.
- Messages are neither serialised nor logged, and there are no intervention handlers.
- The order of concurrent messages is that of the tasks that send them.

A published message is delivered in a task of the runtime, to all its subscribers at the same time; the publisher does
not wait. As in the other runtime, an error of a subscriber is logged and does not reach the publisher.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from functools import cached_property
from typing import Any, TypeVar

from autogen_core import (
    Agent,
    AgentId,
    AgentInstantiationContext,
    AgentMetadata,
    AgentRuntime,
    AgentType,
    BaseAgent,
    CancellationToken,
    MessageContext,
    MessageHandlerContext,
    MessageSerializer,
    Subscription,
    TopicId,
)

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=Agent)
Factory = Callable[[], Awaitable[Agent]]
Handler = Callable[[Any, MessageContext], Awaitable[Any]]

_MAX_NESTED_CALLS = 25
"""Handlers that wait for each other in one task. Each takes about ten frames of the interpreter's stack."""
_nested_calls: ContextVar[int] = ContextVar("nested_calls", default=0)
# What ``MessageHandlerContext.populate_context`` sets, without the generator of its block.
_current_agent: ContextVar[AgentId] = MessageHandlerContext._MESSAGE_HANDLER_CONTEXT


class _TaskLink:
    """Cancels the current task on behalf of a token. Tokens have no way to remove a callback."""

    __slots__ = ("_task", "has_cancelled", "is_active")

    def __init__(self) -> None:
        self._task = asyncio.current_task()
        self.is_active = True
        self.has_cancelled = False

    def cancel(self) -> None:
        if self.is_active and self._task is not None:
            self.has_cancelled = True
            self._task.cancel()

    def uncancel(self) -> None:
        """Let the task continue behind the message: only the message was cancelled."""
        if self.has_cancelled and self._task is not None:
            self._task.uncancel()


class _OwnTokenContext(MessageContext):
    """The context of a direct message without a token of its sender: the first handler that reads it creates one."""

    def __init__(self, sender: AgentId | None, message_id: str) -> None:
        self.sender = sender
        self.topic_id = None
        self.is_rpc = True
        self.message_id = message_id

    @cached_property
    def cancellation_token(self) -> CancellationToken:  # type: ignore[override]
        return CancellationToken()


class DirectRuntime(AgentRuntime):
    """Agents of one process; there is nothing to start.

    An agent of a factory is created when its first message arrives, and stays until ``close``.
    """

    def __init__(self) -> None:
        self._factories: dict[str, Factory | None] = {}
        """By type; None for types whose agents were registered as instances."""
        self._agents: dict[AgentId, Agent] = {}
        self._handlers: dict[AgentId, Handler] = {}
        """Of the agents."""
        self._being_created: dict[AgentId, asyncio.Task[Agent]] = {}
        self._subscriptions: list[Subscription] = []
        self._deliveries: set[asyncio.Task[None]] = set()

    # --- messages ---

    def send_message(
        self,
        message: Any,
        recipient: AgentId,
        *,
        sender: AgentId | None = None,
        cancellation_token: CancellationToken | None = None,
        message_id: str | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Call the handler of the recipient and return its response, or raise its exception.

        Raises:
            LookupError: No agent with the type of the recipient is registered.
            asyncio.CancelledError: The sender or the token was cancelled.
        """
        # A plain function: each coroutine around a handler is resumed with it.
        message_id = message_id or str(uuid.uuid4())
        if cancellation_token is None:
            return self._call(recipient, message, _OwnTokenContext(sender, message_id))
        context = MessageContext(sender, None, True, cancellation_token, message_id)
        return self._call_linked(recipient, message, context)

    async def publish_message(
        self,
        message: Any,
        topic_id: TopicId,
        *,
        sender: AgentId | None = None,
        cancellation_token: CancellationToken | None = None,
        message_id: str | None = None,
    ) -> None:
        """Start to deliver the message to all agents that subscribed to the topic, except the sender."""
        token = cancellation_token or CancellationToken()
        context = MessageContext(sender, topic_id, False, token, message_id or str(uuid.uuid4()))
        for recipient in self._subscribers(topic_id):
            if recipient != sender:
                task = asyncio.create_task(
                    self._deliver(message, recipient, context), name=f"publish to {recipient}"
                )
                token.link_future(task)
                self._deliveries.add(task)
                task.add_done_callback(self._deliveries.discard)

    async def _call_linked(self, recipient: AgentId, message: Any, context: MessageContext) -> Any:
        """Call the handler; the sender's token cancels it."""
        token = context.cancellation_token
        if token.is_cancelled():
            raise asyncio.CancelledError
        link = _TaskLink()
        token.add_callback(link.cancel)
        try:
            response = await self._call(recipient, message, context)
        except asyncio.CancelledError:
            link.uncancel()
            raise
        finally:
            link.is_active = False
        if link.has_cancelled:
            # Cancelled in the last step of the handler: Python 3.11 and 3.12 raise it in the next await in any case.
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
            link.uncancel()
            raise asyncio.CancelledError
        return response

    async def _call(self, recipient: AgentId, message: Any, context: MessageContext) -> Any:
        """Call the handler."""
        handler = self._handlers.get(recipient) or await self._handler(recipient)
        # Only nested calls are counted: the context of each turn would hold one more variable.
        depth = 0 if _current_agent.get(None) is None else _nested_calls.get() + 1
        try:
            if depth >= _MAX_NESTED_CALLS:
                return await self._call_in_task(recipient, message, context)
            nested, outer = _nested_calls.set(depth) if depth else None, _current_agent.set(recipient)
            try:
                return await handler(message, context)
            finally:
                _current_agent.reset(outer)
                if nested is not None:
                    _nested_calls.reset(nested)
        except asyncio.CancelledError:
            if isinstance(context, _OwnTokenContext):
                # Ends also what the handler linked to the token outside of this task.
                context.cancellation_token.cancel()
            raise

    async def _call_in_task(self, recipient: AgentId, message: Any, context: MessageContext) -> Any:
        """Call the handler in a separate task, which has a separate stack."""

        async def call() -> Any:
            _nested_calls.set(0)
            return await self._call(recipient, message, context)

        task = asyncio.create_task(call(), name=f"message to {recipient}")
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise

    async def _deliver(self, message: Any, recipient: AgentId, context: MessageContext) -> None:
        _nested_calls.set(0)
        try:
            await self._call(recipient, message, context)
        except Exception:
            logger.exception("a handler of a published message failed", extra={"agent": str(recipient)})

    def _subscribers(self, topic: TopicId) -> list[AgentId]:
        found = [one.map_to_agent(topic) for one in self._subscriptions if one.is_match(topic)]
        return list(dict.fromkeys(found))

    async def stop_when_idle(self) -> None:
        """Wait until all published messages are delivered, including those that their handlers publish."""
        while self._deliveries:
            await asyncio.wait(self._deliveries)

    async def close(self) -> None:
        """Cancel the delivery of published messages, wait for its end, and close all agents."""
        for task in self._deliveries:
            task.cancel()
        await self.stop_when_idle()
        for agent in self._agents.values():
            await agent.close()

    # --- agents ---

    async def register_factory(
        self,
        type: str | AgentType,
        agent_factory: Callable[[], T | Awaitable[T]],
        *,
        expected_class: type[T] | None = None,
    ) -> AgentType:
        """Register the factory of all agents with this type.

        Raises:
            ValueError: The type is already registered.
        """
        kind = AgentType(type) if isinstance(type, str) else type
        if kind.type in self._factories:
            raise ValueError(f"Agent with type {kind.type} already exists.")

        async def create() -> Agent:
            created = agent_factory()
            agent = await created if inspect.isawaitable(created) else created
            if expected_class is not None and not isinstance(agent, expected_class):
                raise ValueError(
                    f"The factory of {kind.type} returned {agent.__class__.__name__}, not {expected_class.__name__}."
                )
            return agent

        self._factories[kind.type] = create
        return kind

    async def register_agent_instance(self, agent_instance: Agent, agent_id: AgentId) -> AgentId:
        """Register one agent.

        Raises:
            ValueError: The id is taken, or the type has a factory or agents of another class.
        """
        if agent_id in self._agents:
            raise ValueError(f"Agent with id {agent_id} already exists.")
        if self._factories.get(agent_id.type) is not None:
            raise ValueError(f"The agents of type {agent_id.type} come from a factory.")
        others = (agent for known, agent in self._agents.items() if known.type == agent_id.type)
        if any(type(agent) is not type(agent_instance) for agent in others):
            raise ValueError(f"The agents of type {agent_id.type} have another class.")
        await agent_instance.bind_id_and_runtime(id=agent_id, runtime=self)
        self._factories[agent_id.type] = None
        self._add(agent_id, agent_instance)
        return agent_id

    def _add(self, agent_id: AgentId, agent: Agent) -> None:
        self._agents[agent_id] = agent
        # ``BaseAgent.on_message`` is final and only awaits ``on_message_impl``.
        if isinstance(agent, BaseAgent) and type(agent).on_message is BaseAgent.on_message:
            self._handlers[agent_id] = agent.on_message_impl
        else:
            self._handlers[agent_id] = agent.on_message

    async def _handler(self, agent_id: AgentId) -> Handler:
        await self._agent(agent_id)
        return self._handlers[agent_id]

    async def _agent(self, agent_id: AgentId) -> Agent:
        """Return the agent; create it if it has a factory and no message came before.

        Raises:
            LookupError: There is none.
        """
        if agent_id in self._agents:
            return self._agents[agent_id]
        factory = self._factories.get(agent_id.type)
        if factory is None:
            raise LookupError(f"Agent {agent_id} is not registered.")
        creation = self._being_created.get(agent_id)
        if creation is None:
            # A task, because concurrent first messages must share one agent, also if one of their senders is cancelled.
            creation = asyncio.create_task(self._create(agent_id, factory), name=f"create {agent_id}")
            self._being_created[agent_id] = creation
        return await asyncio.shield(creation)

    async def _create(self, agent_id: AgentId, factory: Factory) -> Agent:
        try:
            with AgentInstantiationContext.populate_context((self, agent_id)):
                agent = await factory()
            self._add(agent_id, agent)
            return agent
        finally:
            del self._being_created[agent_id]

    async def try_get_underlying_agent_instance(
        self,
        id: AgentId,
        type: type[T] = Agent,  # type: ignore[assignment]
    ) -> T:
        """Return the agent.

        Raises:
            LookupError: There is none.
            TypeError: It has another class.
        """
        agent = await self._agent(id)
        if not isinstance(agent, type):
            raise TypeError(f"Agent {id} is a {agent.__class__.__name__}, not a {type.__name__}.")
        return agent

    async def get(
        self, id_or_type: AgentId | AgentType | str, /, key: str = "default", *, lazy: bool = True
    ) -> AgentId:
        """Return the id of an agent; without ``lazy``, create the agent."""
        agent_id = id_or_type if isinstance(id_or_type, AgentId) else AgentId(id_or_type, key)
        if not lazy:
            await self._agent(agent_id)
        return agent_id

    async def agent_metadata(self, agent: AgentId) -> AgentMetadata:
        """Return the metadata of an agent."""
        return (await self._agent(agent)).metadata

    # --- state ---

    async def save_state(self) -> Mapping[str, Any]:
        """Return the state of all agents by id. Subscriptions are not part of it."""
        return {str(agent_id): dict(await agent.save_state()) for agent_id, agent in self._agents.items()}

    async def load_state(self, state: Mapping[str, Any]) -> None:
        """Load what ``save_state`` returned, for agents whose type is registered."""
        for name, of_agent in state.items():
            agent_id = AgentId.from_str(name)
            if agent_id.type in self._factories:
                await (await self._agent(agent_id)).load_state(of_agent)

    async def agent_save_state(self, agent: AgentId) -> Mapping[str, Any]:
        """Return the state of one agent."""
        return await (await self._agent(agent)).save_state()

    async def agent_load_state(self, agent: AgentId, state: Mapping[str, Any]) -> None:
        """Load the state of one agent."""
        await (await self._agent(agent)).load_state(state)

    # --- subscriptions ---

    async def add_subscription(self, subscription: Subscription) -> None:
        """Deliver messages of a topic to an agent.

        Raises:
            ValueError: It exists already.
        """
        if any(known == subscription for known in self._subscriptions):
            raise ValueError("Subscription already exists")
        self._subscriptions.append(subscription)

    async def remove_subscription(self, id: str) -> None:
        """Remove a subscription.

        Raises:
            LookupError: It does not exist.
        """
        if not any(known.id == id for known in self._subscriptions):
            raise LookupError("Subscription does not exist")
        self._subscriptions = [known for known in self._subscriptions if known.id != id]

    def add_message_serializer(
        self, serializer: MessageSerializer[Any] | Sequence[MessageSerializer[Any]]
    ) -> None:
        """Do nothing: messages are passed as they are."""
