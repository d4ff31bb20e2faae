"""What every implementation of the model port promises (``proxy.providers.model``).

``MODELS`` holds all of them; ``PROVIDED`` those that ask a provider, here the fake one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from proxy.errors import (
    ContextLengthExceeded,
    UpstreamAuthFailed,
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamModelNotFound,
    UpstreamQuotaExceeded,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.events import TextDelta
from proxy.messages import (
    AssistantMessage,
    FunctionCall,
    ImagePart,
    ImageUrl,
    NamedToolChoice,
    Parameters,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    Usage,
    UserMessage,
)
from proxy.providers.autogen.client import ComponentChatModel
from proxy.providers.circuit_breaker import Circuit
from proxy.providers.demo.client import DemoClient
from proxy.providers.http.pool import HttpSession
from proxy.providers.model import Finished, Model, ModelRequest, ToolCallPiece
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.retry import AttemptingModel, Candidate, RetryPolicy
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import ComponentModel, OpenAIModel
from tests.fakes.model_calls import HELLO, WITH_TOOLS, ask
from tests.fakes.upstream import FakeUpstream, Reply, calls, chunk, cut, error, events, hang, raw, text

KEY = "sk-operator"
PATIENT = ModelLimits()
HURRIED = {"timeout_first": ModelLimits(first_token=0.3), "timeout_idle": ModelLimits(idle=0.3)}
"""Limits that a test waits for, by the failure they end in."""

MakeModel = Callable[[str, ModelLimits], AbstractAsyncContextManager[Model]]
"""Creates a model for the provider at this base URL; models without a provider ignore it."""


@asynccontextmanager
async def wire_model(base_url: str, limits: ModelLimits) -> AsyncIterator[Model]:
    session = HttpSession()
    definition = OpenAIModel.model_validate({"model": "gpt-5-mini", "base_url": base_url, "api_key": KEY})
    yield OpenAIWireModel(definition, session, limits)
    await session.close()


@asynccontextmanager
async def chain(base_url: str, limits: ModelLimits) -> AsyncIterator[Model]:
    async with wire_model(base_url, limits) as model:
        yield AttemptingModel([Candidate(model, Circuit())], RetryPolicy(attempts=1))


@asynccontextmanager
async def component_model(base_url: str, limits: ModelLimits) -> AsyncIterator[Model]:
    definition = ComponentModel(
        provider="autogen_ext.models.openai.OpenAIChatCompletionClient",
        config={"model": "gpt-5-mini", "base_url": base_url, "api_key": KEY},
    )
    model = ComponentChatModel.load("component", definition, limits)
    yield model
    await model.close()


@asynccontextmanager
async def demo_model(base_url: str, limits: ModelLimits) -> AsyncIterator[Model]:
    model = DemoClient(word_delay=0)
    yield model
    await model.close()


PROVIDED = [
    pytest.param(wire_model, id="openai wire"),
    pytest.param(chain, id="chain of attempts"),
    pytest.param(component_model, id="autogen component"),
]
MODELS = [*PROVIDED, pytest.param(demo_model, id="demo")]
ANY_REQUEST = ModelRequest(messages=HELLO.messages, team="acme-support", agent="TriageAgent")


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as upstream:
        yield upstream


# --- all of them ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", MODELS)
async def test_an_answer_ends_with_one_finished(make: MakeModel, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello you"))

    async with make(upstream.base_url, PATIENT) as model:
        answer = await ask(model, ANY_REQUEST)

    assert answer.failure is None
    assert answer.end is not None
    assert answer.end.reason == "stop"
    assert all(batch for batch in answer.batches), "no batch is empty"
    assert all(delta.text for delta in answer.deltas if isinstance(delta, TextDelta)), "no piece is empty"


@pytest.mark.parametrize("make", MODELS)
async def test_a_model_call_can_be_cancelled_and_repeated(make: MakeModel, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello you").hang(after=2), text("Hello again"))

    async with make(upstream.base_url, PATIENT) as model:
        async with model.stream(ANY_REQUEST) as batches:
            first = await anext(batches)
        again = await ask(model, ANY_REQUEST)

    assert first
    assert again.end is not None


@pytest.mark.parametrize("make", MODELS)
async def test_many_can_ask_at_once(make: MakeModel) -> None:
    async with (
        FakeUpstream(answer=lambda received: text(f"Hello {received.number}")) as upstream,
        make(upstream.base_url, PATIENT) as model,
    ):
        answers = await asyncio.gather(*(ask(model, ANY_REQUEST) for _ in range(20)))

    assert all(answer.end is not None and answer.text for answer in answers)


# --- those with a provider -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", PROVIDED)
async def test_text_is_streamed(make: MakeModel, upstream: FakeUpstream) -> None:
    gate = asyncio.Event()
    upstream.reply(text("Hello you", chunks=["Hello", gate, " you"]))

    async def open_gate() -> None:
        gate.set()

    async with make(upstream.base_url, PATIENT) as model:
        answer = await ask(model, after_batch=open_gate)

    assert answer.deltas == [TextDelta("Hello"), TextDelta(" you"), Finished("stop", Usage(11, 7))]


@pytest.mark.parametrize("make", PROVIDED)
async def test_tool_calls_are_in_order_and_can_follow_text(make: MakeModel, upstream: FakeUpstream) -> None:
    wanted = [("look_up", '{"q": "rocket"}'), ("refund", "{}"), ("look_up", '{"q": "skates"}')]
    upstream.reply(calls(*wanted, text="Let me see.", interleave=True))

    async with make(upstream.base_url, PATIENT) as model:
        answer = await ask(model, WITH_TOOLS)

    assert (answer.text, answer.calls, answer.reason) == ("Let me see.", wanted, "tool_calls")
    first_pieces = [delta for delta in answer.deltas if isinstance(delta, ToolCallPiece) and delta.name]
    assert [piece.call_id for piece in first_pieces] == ["call_1_0", "call_1_1", "call_1_2"]


@pytest.mark.parametrize("make", PROVIDED)
async def test_reasoning_is_not_text(make: MakeModel, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello", reasoning="They greet me."))

    async with make(upstream.base_url, PATIENT) as model:
        answer = await ask(model)

    assert (answer.reasoning, answer.text) == ("They greet me.", "Hello")


@pytest.mark.parametrize("make", PROVIDED)
@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_the_reason_is_passed_on(make: MakeModel, upstream: FakeUpstream, reason: str) -> None:
    upstream.reply(text("Hello", finish=reason))

    async with make(upstream.base_url, PATIENT) as model:
        assert (await ask(model)).reason == reason


CHAIN = ModelRequest(
    messages=[
        SystemMessage(content="You sell."),
        UserMessage(content="What is it?"),
        AssistantMessage(
            content="Let me see.",
            tool_calls=[
                ToolCall("c1", FunctionCall("look_up", '{"q":1}')),
                ToolCall("c2", FunctionCall("refund", "{}")),
            ],
        ),
        ToolMessage(tool_call_id="c1", content="A rocket."),
        ToolMessage(tool_call_id="c2", content="Done."),
        UserMessage(
            content=[TextPart("And this?"), ImagePart(ImageUrl("https://a.example/b.png", detail="low"))]
        ),
    ],
    tools=WITH_TOOLS.tools,
    tool_choice=NamedToolChoice("refund"),
    parallel_tool_calls=False,
    parameters=Parameters(temperature=0.5, max_completion_tokens=9, stop=["END"]),
)


@pytest.mark.parametrize("make", PROVIDED)
async def test_the_provider_gets_messages_tools_and_parameters(
    make: MakeModel, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))

    async with make(upstream.base_url, PATIENT) as model:
        await ask(model, CHAIN)

    body = upstream.requests[0].body
    assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert [{**message, "name": None} for message in body["messages"]] == [
        {"role": "system", "content": "You sell.", "name": None},
        {"role": "user", "content": "What is it?", "name": None},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"q":1}'}},
                {"id": "c2", "type": "function", "function": {"name": "refund", "arguments": "{}"}},
            ],
            "name": None,
        },
        {"role": "tool", "tool_call_id": "c1", "content": "A rocket.", "name": None},
        {"role": "tool", "tool_call_id": "c2", "content": "Done.", "name": None},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "And this?"},
                {"type": "image_url", "image_url": {"url": "https://a.example/b.png", "detail": "low"}},
            ],
            "name": None,
        },
    ]
    assert [tool["function"]["name"] for tool in body["tools"]] == ["look_up", "refund"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "refund"}}
    assert (body["parallel_tool_calls"], body["temperature"], body["stop"]) == (False, 0.5, ["END"])
    assert body["max_completion_tokens"] == 9


FAULTS: list[tuple[str, Reply, type[UpstreamFailed], str]] = [
    ("401", error(401), UpstreamAuthFailed, "auth"),
    ("404", error(404), UpstreamModelNotFound, "not_found"),
    ("400", error(400), UpstreamBadRequest, "bad_request"),
    ("too long", error(400, code="context_length_exceeded"), ContextLengthExceeded, "context_length"),
    ("429", error(429, headers={"retry-after": "7"}), UpstreamRateLimited, "rate_limited"),
    ("no credit", error(429, code="insufficient_quota"), UpstreamQuotaExceeded, "quota"),
    ("503", error(503), UpstreamFailed, "status_5xx"),
    ("a redirect", raw(status=307, headers={"location": "/v1/elsewhere"}), UpstreamFailed, "protocol"),
    ("cut before the headers", cut(), UpstreamFailed, "broken"),
    ("cut in the text", text("Hello").cut(after=2), UpstreamFailed, "broken"),
    ("ended in the text", text("Hello").end(after=2), UpstreamIncomplete, "incomplete"),
    ("cut in a call", calls(("look_up", {"q": "rocket"})).cut(after=3), UpstreamFailed, "broken"),
    ("ended in a call", calls(("look_up", {"q": "rocket"})).end(after=3), UpstreamIncomplete, "incomplete"),
    (
        "an error event",
        events(chunk({"content": "Hel"}), {"error": {"message": "no"}}),
        UpstreamFailed,
        "error_event",
    ),
    ("silence", hang(), UpstreamTimeout, "timeout_first"),
    ("silence in the text", text("Hello").hang(after=2), UpstreamTimeout, "timeout_idle"),
]


@pytest.mark.parametrize("make", PROVIDED)
@pytest.mark.parametrize(
    ("reply", "kind", "label"), [pytest.param(*fault, id=name) for name, *fault in FAULTS]
)
async def test_a_fault_is_an_upstream_failure(
    make: MakeModel, upstream: FakeUpstream, reply: Reply, kind: type[UpstreamFailed], label: str
) -> None:
    upstream.reply(reply)

    async with make(upstream.base_url, HURRIED.get(label, PATIENT)) as model:
        answer = await ask(model, WITH_TOOLS)

    assert answer.failure is not None
    assert answer.failure.label == label
    assert isinstance(answer.failure, kind)
    assert answer.end is None
    assert len(upstream.requests) == 1, "attempts are counted elsewhere"
    assert answer.failure.retry_after == (7.0 if label == "rate_limited" else None)


@pytest.mark.parametrize("make", PROVIDED)
async def test_an_unreachable_provider_is_an_upstream_failure(make: MakeModel) -> None:
    async with FakeUpstream() as upstream:
        gone = upstream.base_url

    async with make(gone, PATIENT) as model:
        answer = await ask(model)

    assert isinstance(answer.failure, UpstreamUnreachable)
    assert (answer.failure.label, answer.failure.is_retryable) == ("refused", True)


@pytest.mark.parametrize("make", PROVIDED)
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(hang(), id="before the headers"),
        pytest.param(text("Hello").hang(after=1), id="before the text"),
    ],
)
async def test_cancelling_before_anything_came_closes_the_connection(
    make: MakeModel, upstream: FakeUpstream, reply: Reply
) -> None:
    upstream.reply(reply)

    async with make(upstream.base_url, PATIENT) as model:
        pending = asyncio.create_task(ask(model))
        await upstream.received(1)
        pending.cancel()
        await asyncio.wait([pending])
        await upstream.requests[0].closed()

    assert pending.cancelled()


@pytest.mark.parametrize("make", PROVIDED)
async def test_cancelling_in_the_middle_closes_the_connection(
    make: MakeModel, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello you").hang(after=2))
    was_reported = asyncio.Event()

    async def reported() -> None:
        was_reported.set()

    async with make(upstream.base_url, PATIENT) as model:
        pending = asyncio.create_task(ask(model, after_batch=reported))
        await was_reported.wait()
        pending.cancel()
        await asyncio.wait([pending])
        await upstream.requests[0].closed()

    assert pending.cancelled()


@pytest.mark.parametrize("make", PROVIDED)
async def test_leaving_between_two_reads_closes_the_connection(
    make: MakeModel, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello you").hang(after=2))

    async with make(upstream.base_url, PATIENT) as model:
        async with model.stream(HELLO) as batches:
            first = await anext(batches)
        await upstream.requests[0].closed()

    assert first[0] == TextDelta("Hello")
    assert not upstream.requests[0].is_answered


@pytest.mark.parametrize("make", PROVIDED)
async def test_leaving_a_flood_closes_the_connection(make: MakeModel, upstream: FakeUpstream) -> None:
    upstream.reply(events(*[chunk({"content": "Hello"})] * 3000).hang(after=3000))

    async with make(upstream.base_url, PATIENT) as model:
        async with model.stream(HELLO) as batches:
            first = await anext(batches)
        await upstream.requests[0].closed()

    assert {type(delta) for delta in first} == {TextDelta}
    assert not upstream.requests[0].is_answered


@pytest.mark.parametrize("make", PROVIDED)
async def test_an_exception_in_the_block_closes_the_connection(
    make: MakeModel, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello you").hang(after=2))

    class TurnEnded(Exception):
        pass

    async def end() -> None:
        raise TurnEnded

    async with make(upstream.base_url, PATIENT) as model:
        with pytest.raises(TurnEnded):
            await ask(model, after_batch=end)
        await upstream.requests[0].closed()


@pytest.mark.parametrize("make", PROVIDED)
async def test_the_name_is_that_of_the_provider(make: MakeModel) -> None:
    async with make("http://127.0.0.1:9/v1", PATIENT) as model:
        assert model.name == "gpt-5-mini"
