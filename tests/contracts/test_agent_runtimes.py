"""What agents of AutoGen's API can rely on, with AutoGen's own runtime and with ``DirectRuntime``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import pytest
from autogen_core import (
    AgentId,
    AgentProxy,
    AgentRuntime,
    AgentType,
    CancellationToken,
    ClosureAgent,
    ClosureContext,
    DefaultTopicId,
    MessageContext,
    MessageHandlerContext,
    RoutedAgent,
    SingleThreadedAgentRuntime,
    TopicId,
    TypeSubscription,
    default_subscription,
    event,
    message_handler,
    rpc,
    type_subscription,
)
from autogen_core.exceptions import CantHandleException

from proxy.agents.direct_runtime import DirectRuntime

Runtime = SingleThreadedAgentRuntime | DirectRuntime


@dataclass
class Question:
    text: str


@dataclass
class Number:
    value: int


@dataclass
class Reply:
    text: str


@pytest.fixture(params=[SingleThreadedAgentRuntime, DirectRuntime], ids=["queued", "direct"])
async def runtime(request: pytest.FixtureRequest) -> AsyncIterator[Runtime]:
    make: Callable[[], Runtime] = request.param
    created = make()
    if isinstance(created, SingleThreadedAgentRuntime):
        created.start()
    yield created
    await created.close()


async def idle(runtime: Runtime) -> None:
    """Wait until all messages are delivered."""
    await runtime.stop_when_idle()
    if isinstance(runtime, SingleThreadedAgentRuntime):
        runtime.start()


class Clerk(RoutedAgent):
    """Handles two types of messages, one of them in two ways."""

    def __init__(self) -> None:
        super().__init__("a clerk")
        self.contexts: list[MessageContext] = []
        self.count = 0

    @message_handler
    async def any_question(self, message: Question, ctx: MessageContext) -> Reply:
        self.contexts.append(ctx)
        return Reply(f"{self.id}: {message.text}")

    @rpc(match=lambda message, ctx: message.value < 0)  # type: ignore[attr-defined]
    async def a_negative(self, message: Number, ctx: MessageContext) -> Reply:
        return Reply(f"below zero: {message.value}")

    @rpc
    async def number(self, message: Number, ctx: MessageContext) -> Reply:
        self.count += message.value
        return Reply(f"sum {self.count}")

    async def save_state(self) -> Mapping[str, Any]:
        return {"count": self.count}

    async def load_state(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


class Desk(RoutedAgent):
    """Passes questions on to a clerk."""

    @message_handler
    async def ask(self, message: Question, ctx: MessageContext) -> Reply:
        found = await self.send_message(
            message, AgentId("clerk", self.id.key), cancellation_token=ctx.cancellation_token
        )
        assert isinstance(found, Reply)
        return Reply(f"{MessageHandlerContext.agent_id()} asked {found.text}")


async def test_the_type_of_a_message_selects_its_handler(runtime: Runtime) -> None:
    await Clerk.register(runtime, "clerk", Clerk)
    clerk = AgentId("clerk", "c1")

    replies = [
        await runtime.send_message(message, clerk) for message in (Question("why?"), Number(-2), Number(3))
    ]

    assert replies == [Reply("clerk/c1: why?"), Reply("below zero: -2"), Reply("sum 3")]


async def test_the_context_of_a_message_has_sender_token_and_id(runtime: Runtime) -> None:
    await Clerk.register(runtime, "clerk", Clerk)
    clerk, sender, token = AgentId("clerk", "c1"), AgentId("desk", "d1"), CancellationToken()
    await Desk.register(runtime, "desk", lambda: Desk("a desk"))

    await runtime.send_message(
        Question("why?"), clerk, sender=sender, cancellation_token=token, message_id="m1"
    )

    instance = await runtime.try_get_underlying_agent_instance(clerk, Clerk)
    (context,) = instance.contexts
    assert (context.sender, context.topic_id, context.is_rpc, context.message_id) == (
        sender,
        None,
        True,
        "m1",
    )
    assert context.cancellation_token is token


async def test_a_message_without_a_token_has_one_of_its_own(runtime: Runtime) -> None:
    await Clerk.register(runtime, "clerk", Clerk)
    clerk = AgentId("clerk", "c1")

    await runtime.send_message(Question("why?"), clerk)
    await runtime.send_message(Question("why not?"), clerk)

    first, second = (await runtime.try_get_underlying_agent_instance(clerk, Clerk)).contexts
    assert first.cancellation_token is first.cancellation_token
    assert first.cancellation_token is not second.cancellation_token
    assert not first.cancellation_token.is_cancelled()
    assert first.message_id != second.message_id


async def test_an_agent_can_ask_another_one(runtime: Runtime) -> None:
    await Clerk.register(runtime, "clerk", Clerk)
    await Desk.register(runtime, "desk", lambda: Desk("a desk"))

    reply = await runtime.send_message(Question("why?"), AgentId("desk", "x"))

    assert reply == Reply("desk/x asked clerk/x: why?")
    instance = await runtime.try_get_underlying_agent_instance(AgentId("clerk", "x"), Clerk)
    assert instance.contexts[0].sender == AgentId("desk", "x")


async def test_500_nested_messages_return_through_all_their_senders(runtime: Runtime) -> None:
    class Stairs(RoutedAgent):
        @message_handler
        async def step(self, message: Number, ctx: MessageContext) -> Number:
            if message.value == 0:
                return Number(0)
            below = await self.send_message(Number(message.value - 1), AgentId("stairs", str(message.value)))
            assert isinstance(below, Number)
            return Number(below.value + 1)

    await Stairs.register(runtime, "stairs", lambda: Stairs("stairs"))

    assert await runtime.send_message(Number(500), AgentId("stairs", "top")) == Number(500)


async def test_an_error_of_a_handler_reaches_its_sender(runtime: Runtime) -> None:
    class Failing(RoutedAgent):
        @message_handler
        async def fail(self, message: Question, ctx: MessageContext) -> Reply:
            raise ZeroDivisionError(message.text)

    await Failing.register(runtime, "failing", lambda: Failing("fails"))

    with pytest.raises(ZeroDivisionError, match="why"):
        await runtime.send_message(Question("why"), AgentId("failing", "f"))


async def test_an_agent_can_reject_messages_of_other_types(runtime: Runtime) -> None:
    class Strict(RoutedAgent):
        async def on_unhandled_message(self, message: Any, ctx: MessageContext) -> None:
            raise CantHandleException(type(message).__name__)

    await Strict.register(runtime, "strict", lambda: Strict("strict"))

    with pytest.raises(CantHandleException, match="Question"):
        await runtime.send_message(Question("why"), AgentId("strict", "s"))


async def test_an_agent_with_its_own_entry_point_is_called_through_it(runtime: Runtime) -> None:
    class Guarded(Clerk):
        async def on_message(self, message: Any, ctx: MessageContext) -> Any:  # type: ignore[misc]
            reply = await super().on_message(message, ctx)
            return Reply(f"guarded {reply.text}")

    await Guarded.register(runtime, "clerk", Guarded)

    assert await runtime.send_message(Number(3), AgentId("clerk", "c")) == Reply("guarded sum 3")


async def test_a_message_to_an_unknown_type_is_an_error(runtime: Runtime) -> None:
    with pytest.raises(Exception, match=r"not found|not registered"):
        await runtime.send_message(Question("why"), AgentId("nobody", "n"))


async def test_a_cancelled_token_ends_the_message_and_not_the_task_of_the_sender(runtime: Runtime) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Waiting(RoutedAgent):
        @message_handler
        async def wait(self, message: Question, ctx: MessageContext) -> None:
            task = asyncio.current_task()
            assert task is not None
            ctx.cancellation_token.link_future(task)
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    await Waiting.register(runtime, "waiting", lambda: Waiting("waits"))
    token = CancellationToken()

    async def send() -> str:
        try:
            await runtime.send_message(Question("?"), AgentId("waiting", "w"), cancellation_token=token)
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            return "continues"
        return "answered"

    sending = asyncio.create_task(send())
    await begun.wait()
    token.cancel()

    assert await sending == "continues"
    await ended.wait()


async def test_concurrent_messages_run_at_the_same_time(runtime: Runtime) -> None:
    both = asyncio.Barrier(2)

    class Meeting(RoutedAgent):
        @message_handler
        async def meet(self, message: Question, ctx: MessageContext) -> Reply:
            await both.wait()
            return Reply(message.text)

    await Meeting.register(runtime, "meeting", lambda: Meeting("meets"))
    address = AgentId("meeting", "m")

    replies = await asyncio.gather(*(runtime.send_message(Question(name), address) for name in "ab"))

    assert replies == [Reply("a"), Reply("b")]


async def test_a_published_message_reaches_all_subscribers_but_its_sender(runtime: Runtime) -> None:
    received: list[tuple[str, str, bool]] = []

    @default_subscription
    class Listener(RoutedAgent):
        @event
        async def on_text(self, message: Question, ctx: MessageContext) -> None:
            received.append((self.id.type, str(ctx.topic_id), ctx.is_rpc))
            if message.text == "start":
                await self.publish_message(Question("again"), DefaultTopicId())

    await Listener.register(runtime, "one", lambda: Listener("listens"))
    await Listener.register(runtime, "two", lambda: Listener("listens"))
    topic = TopicId("default", "default")

    await runtime.publish_message(Question("stop"), topic)
    await runtime.publish_message(Question("start"), topic, sender=AgentId("two", "default"))
    await idle(runtime)

    one, two = ("one", str(topic), False), ("two", str(topic), False)
    assert sorted(received) == [one, one, two, two]


async def test_topics_are_matched_by_type_and_prefix(runtime: Runtime) -> None:
    received: list[str] = []

    @type_subscription("orders")
    class Listener(RoutedAgent):
        @event
        async def on_text(self, message: Question, ctx: MessageContext) -> None:
            received.append(f"{self.id} {message.text}")

    await Listener.register(runtime, "listener", lambda: Listener("listens"))

    await runtime.publish_message(Question("new"), TopicId("orders", "4711"))
    await runtime.publish_message(Question("direct"), TopicId("listener:x", "s"))
    await runtime.publish_message(Question("other"), TopicId("invoices", "4711"))
    await idle(runtime)

    assert sorted(received) == ["listener/4711 new", "listener/s direct"]


async def test_a_removed_subscription_delivers_nothing(runtime: Runtime) -> None:
    received: list[str] = []

    class Listener(RoutedAgent):
        @event
        async def on_text(self, message: Question, ctx: MessageContext) -> None:
            received.append(message.text)

    await Listener.register(runtime, "listener", lambda: Listener("listens"))
    subscription = TypeSubscription("orders", "listener")
    await runtime.add_subscription(subscription)
    with pytest.raises(ValueError, match="already exists"):
        await runtime.add_subscription(subscription)
    await runtime.remove_subscription(subscription.id)

    await runtime.publish_message(Question("new"), TopicId("orders", "4711"))
    await idle(runtime)

    assert received == []


async def test_a_failed_subscriber_affects_neither_the_publisher_nor_the_others(runtime: Runtime) -> None:
    received: list[str] = []

    @default_subscription
    class Listener(RoutedAgent):
        @event
        async def on_text(self, message: Question, ctx: MessageContext) -> None:
            if self.id.type == "bad":
                raise ZeroDivisionError
            received.append(message.text)

    await Listener.register(runtime, "bad", lambda: Listener("fails"))
    await Listener.register(runtime, "good", lambda: Listener("listens"))

    await runtime.publish_message(Question("new"), DefaultTopicId())
    await idle(runtime)

    assert received == ["new"]


async def test_a_closure_agent_receives_messages(runtime: Runtime) -> None:
    received: asyncio.Queue[tuple[AgentId, str]] = asyncio.Queue()

    async def listen(context: ClosureContext, message: Question, ctx: MessageContext) -> None:
        await received.put((context.id, message.text))

    await ClosureAgent.register_closure(
        runtime, "closure", listen, subscriptions=lambda: [TypeSubscription("orders", "closure")]
    )

    await runtime.publish_message(Question("new"), TopicId("orders", "4711"))

    assert await received.get() == (AgentId("closure", "4711"), "new")


async def test_instances_and_factories_have_their_own_types(runtime: Runtime) -> None:
    clerk = Clerk()
    await clerk.register_instance(runtime, AgentId("clerk", "c1"))
    await Desk.register(runtime, "desk", lambda: Desk("a desk"))

    with pytest.raises(ValueError, match="already exists"):
        await Clerk().register_instance(runtime, AgentId("clerk", "c1"))
    with pytest.raises(ValueError, match=r"factory|factories"):
        await Clerk().register_instance(runtime, AgentId("desk", "d1"))
    with pytest.raises(ValueError, match=r"class|same object type"):
        await Desk("a desk").register_instance(runtime, AgentId("clerk", "c2"))
    with pytest.raises(ValueError, match="already exists"):
        await Desk.register(runtime, "desk", lambda: Desk("a desk"))
    assert await runtime.try_get_underlying_agent_instance(AgentId("clerk", "c1"), Clerk) is clerk
    with pytest.raises(TypeError):
        await runtime.try_get_underlying_agent_instance(AgentId("clerk", "c1"), Desk)
    with pytest.raises(LookupError):
        await runtime.try_get_underlying_agent_instance(AgentId("nobody", "n"))


async def test_a_factory_of_another_class_is_an_error(runtime: Runtime) -> None:
    def make() -> Any:
        return Clerk()

    await Desk.register(runtime, "desk", make)

    with pytest.raises(ValueError, match="Desk"):
        await runtime.send_message(Question("why?"), AgentId("desk", "d"))


async def test_an_agent_of_a_factory_knows_its_id_and_runtime(runtime: Runtime) -> None:
    created: list[tuple[AgentId, AgentRuntime]] = []

    class Curious(RoutedAgent):
        def __init__(self) -> None:
            super().__init__("curious")
            created.append((self.id, self.runtime))

    async def make() -> Curious:
        await asyncio.sleep(0)
        return Curious()

    await Curious.register(runtime, "curious", make)

    assert await runtime.get(AgentType("curious"), "lazy") == AgentId("curious", "lazy")
    assert created == []
    assert await runtime.get("curious", "k", lazy=False) == AgentId("curious", "k")
    assert created == [(AgentId("curious", "k"), runtime)]


async def test_state_is_saved_and_loaded_by_agent(runtime: Runtime) -> None:
    await Clerk.register(runtime, "clerk", Clerk)
    clerk = AgentId("clerk", "c1")
    await runtime.send_message(Number(3), clerk)

    saved = await runtime.save_state()
    of_agent = await runtime.agent_save_state(clerk)
    await runtime.send_message(Number(4), clerk)
    await runtime.load_state(saved)

    assert (saved, of_agent) == ({"clerk/c1": {"count": 3}}, {"count": 3})
    assert await runtime.send_message(Number(1), clerk) == Reply("sum 4")
    await runtime.agent_load_state(clerk, {"count": 8})
    proxy = AgentProxy(clerk, runtime)
    assert await proxy.send_message(Number(1), sender=clerk) == Reply("sum 9")
    assert (await proxy.metadata)["description"] == "a clerk"


# --- what only DirectRuntime guarantees ---

VARIABLE: ContextVar[str] = ContextVar("VARIABLE")


@pytest.fixture
async def direct() -> AsyncIterator[DirectRuntime]:
    created = DirectRuntime()
    yield created
    await created.close()


async def test_a_handler_runs_in_the_task_and_the_context_of_its_sender(direct: DirectRuntime) -> None:
    seen: list[object] = []

    class Looking(RoutedAgent):
        @message_handler
        async def look(self, message: Question, ctx: MessageContext) -> None:
            seen.extend((asyncio.current_task(), VARIABLE.get()))

    await Looking.register(direct, "looking", lambda: Looking("looks"))
    VARIABLE.set("of the turn")

    await direct.send_message(Question("?"), AgentId("looking", "k"))

    assert seen == [asyncio.current_task(), "of the turn"]


async def test_a_cancelled_sender_has_waited_for_the_handler(direct: DirectRuntime) -> None:
    begun, ended = asyncio.Event(), []

    class Waiting(RoutedAgent):
        @message_handler
        async def wait(self, message: Number, ctx: MessageContext) -> None:
            if message.value:
                await self.send_message(Number(message.value - 1), AgentId("waiting", str(message.value)))
                return
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append("handler")

    await Waiting.register(direct, "waiting", lambda: Waiting("waits"))
    for depth in (0, 60):
        begun.clear()
        sending = asyncio.create_task(direct.send_message(Number(depth), AgentId("waiting", "top")))
        await begun.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    assert ended == ["handler", "handler"]


async def test_a_token_that_is_read_after_its_sender_was_cancelled_is_cancelled(
    direct: DirectRuntime,
) -> None:
    contexts: asyncio.Queue[MessageContext] = asyncio.Queue()

    class Waiting(RoutedAgent):
        @message_handler
        async def wait(self, message: Question, ctx: MessageContext) -> None:
            contexts.put_nowait(ctx)
            await asyncio.Event().wait()

    await Waiting.register(direct, "waiting", lambda: Waiting("waits"))
    sending = asyncio.create_task(direct.send_message(Question("?"), AgentId("waiting", "w")))
    context = await contexts.get()
    sending.cancel()
    await asyncio.wait([sending])

    assert context.cancellation_token.is_cancelled()


async def test_a_cancelled_sender_cancels_what_the_handler_linked_to_the_message(
    direct: DirectRuntime,
) -> None:
    begun, linked = asyncio.Event(), asyncio.get_running_loop().create_future()

    class Linking(RoutedAgent):
        @message_handler
        async def link(self, message: Question, ctx: MessageContext) -> None:
            ctx.cancellation_token.link_future(linked)
            begun.set()
            await asyncio.Event().wait()

    await Linking.register(direct, "linking", lambda: Linking("links"))
    sending = asyncio.create_task(direct.send_message(Question("?"), AgentId("linking", "l")))
    await begun.wait()
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending

    assert linked.cancelled()


async def test_a_token_that_is_cancelled_before_or_at_the_end_of_a_message_counts(
    direct: DirectRuntime,
) -> None:
    calls: list[str] = []

    class Cancelling(RoutedAgent):
        @message_handler
        async def cancel(self, message: Question, ctx: MessageContext) -> None:
            calls.append(message.text)
            ctx.cancellation_token.cancel()

    await Cancelling.register(direct, "cancelling", lambda: Cancelling("cancels"))
    address, token = AgentId("cancelling", "c"), CancellationToken()

    for text in ("first", "second"):
        with pytest.raises(asyncio.CancelledError):
            await direct.send_message(Question(text), address, cancellation_token=token)
    await asyncio.sleep(0)

    task = asyncio.current_task()
    assert task is not None
    assert (calls, task.cancelling()) == (["first"], 0)


async def test_concurrent_first_messages_share_one_agent(direct: DirectRuntime) -> None:
    created: list[Clerk] = []

    async def make() -> Clerk:
        created.append(Clerk())
        await asyncio.sleep(0)
        return created[-1]

    await Clerk.register(direct, "clerk", make)

    await asyncio.gather(*(direct.send_message(Number(1), AgentId("clerk", "c")) for _ in range(5)))

    assert [clerk.count for clerk in created] == [5]


async def test_closing_ends_deliveries_and_closes_agents() -> None:
    begun, log = asyncio.Event(), []

    @default_subscription
    class Waiting(RoutedAgent):
        @event
        async def wait(self, message: Question, ctx: MessageContext) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                log.append("ended")

        async def close(self) -> None:
            log.append("closed")

    runtime = DirectRuntime()
    await Waiting.register(runtime, "waiting", lambda: Waiting("waits"))
    await runtime.publish_message(Question("?"), DefaultTopicId())
    await begun.wait()

    await runtime.close()

    assert log == ["ended", "closed"]
