"""A run of a framework that is not read to its end is closed at once, not when the garbage collector finds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from proxy.members.port import MemberContext
from proxy.messages import Item, UserMessage

TEXT = ["Bonn", " has", " many"]


def context() -> MemberContext:
    return MemberContext(
        "turn", "conversation", "caller", "", "team", "agent", [Item(UserMessage(content="Hi"))]
    )


async def closed_after_first(member: Any, ended: asyncio.Event) -> None:
    given = context()
    events = member.run([], given)
    assert await anext(events) == "Bonn"
    assert not ended.is_set()
    await events.aclose()
    assert ended.is_set()


async def test_a_graph_of_langgraph_is_closed() -> None:
    pytest.importorskip("langgraph")
    from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
    from langchain_core.messages import AIMessage
    from langgraph.graph import START, MessagesState, StateGraph

    from proxy.members.adapters.langgraph import LangGraphMember

    ended = asyncio.Event()

    def messages() -> Iterator[AIMessage]:
        yield AIMessage("Bonn has many people")

    model = GenericFakeChatModel(messages=messages())

    async def answer(state: MessagesState) -> dict[str, Any]:
        try:
            async for _ in model.astream(state["messages"]):
                await asyncio.sleep(0)
            await asyncio.Event().wait()
        finally:
            ended.set()
        return {}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")

    await closed_after_first(LangGraphMember(graph.compile()), ended)


async def test_an_agent_of_the_agent_framework_is_closed() -> None:
    pytest.importorskip("agent_framework")
    from agent_framework import AgentResponse, AgentResponseUpdate, BaseAgent, Content, ResponseStream

    from proxy.members.adapters.agent_framework import AgentFrameworkMember

    ended = asyncio.Event()

    async def updates() -> AsyncIterator[Any]:
        try:
            for text in TEXT:
                yield AgentResponseUpdate(contents=[Content.from_text(text)], role="assistant")
            await asyncio.Event().wait()
        finally:
            ended.set()

    class Speaker(BaseAgent):  # type: ignore[misc]
        def run(self, *given: Any, **options: Any) -> Any:
            return ResponseStream(updates(), finalizer=AgentResponse.from_updates)

    await closed_after_first(AgentFrameworkMember(Speaker(name="speaker")), ended)
