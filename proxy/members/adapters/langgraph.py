"""Graphs of LangGraph (https://langchain-ai.github.io/langgraph), agents of LangChain among them.

The newest checkpoint of a graph is stored with the answer, and is the state of the next run on that branch. Of a graph
with its own checkpointer, only the id of the checkpoint is stored. The graph receives the messages since its last
answer. ``Command(goto=agent, graph=Command.PARENT)`` hands over to an agent of the team.

A run that calls a tool of the client, or that a person has to approve, ends with its checkpoint too, and resumes there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.errors import ParentCommand
from langgraph.graph import StateGraph
from langgraph.pregel import Pregel
from langgraph.types import Command

from proxy.errors import ConfigurationError
from proxy.members.adapters.common import (
    NOT_EXECUTED,
    TRANSFERRED,
    Attachment,
    FrameworkMember,
    attachments_of,
    items_since,
    spoken,
    system_text,
)
from proxy.members.adapters.external_calls import ExternalCalls
from proxy.members.adapters.langgraph_state import (
    Checkpoints,
    Request,
    Restored,
    identified,
)
from proxy.members.adapters.langgraph_stream import GraphStream
from proxy.members.port import (
    Member,
    MemberContext,
    MemberEvent,
    Sees,
)
from proxy.messages import Item, UserMessage, text_of

_MODES = ["messages", "updates", "custom", "tasks"]


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of a compiled graph.

    Raises:
        ConfigurationError: The graph is not compiled.
    """
    if isinstance(found, StateGraph):
        raise ConfigurationError("the graph is not compiled; name the result of its method 'compile'")
    return LangGraphMember(found) if isinstance(found, Pregel) else None


class LangGraphMember(FrameworkMember):
    """A graph. Each run has a separate checkpointer, unless the graph has one."""

    sees: Sees = "own"

    async def _events(self, context: MemberContext) -> AsyncGenerator[str | MemberEvent]:
        """Run the graph from its checkpoint; if its run was interrupted, resume it."""
        checkpoints = Checkpoints(self._found, context)
        state = await checkpoints.restore(context.state)
        resumes = bool(context.later_items) and context.state is not None
        async with ExternalCalls(context) as outside:
            if resumes:
                context.resume()
            stream = GraphStream(context, state)
            given = await _resumed(context, state, outside) if resumes else _input(context, state)
            async with aclosing(self._stream(context, checkpoints, stream, given)) as events:
                async for found in events:
                    if not await outside.take(found):
                        yield found
        context.state = await checkpoints.stored(stream.update, interrupts=stream.interrupts)
        if stream.hand_over is not None:
            yield stream.hand_over
            return
        requests = [call for one in stream.interrupts for call in one.calls]
        if requests:
            async with ExternalCalls(context) as outside:
                await outside.answers(identified(requests, await checkpoints.open_calls()), ())
        for one in stream.interrupts:
            yield one.question
        for event in stream.incomplete:
            yield event

    async def _stream(
        self, context: MemberContext, checkpoints: Checkpoints, stream: GraphStream, given: Any
    ) -> AsyncGenerator[str | MemberEvent]:
        config = {
            **checkpoints.config,
            # For tools and nodes: config["configurable"]["member_context"].
            "configurable": {**checkpoints.config["configurable"], "member_context": context},
        }
        parts = checkpoints.graph.astream(given, config, stream_mode=_MODES, subgraphs=True)
        try:
            async with aclosing(parts):
                async for namespace, mode, data in parts:
                    for found in stream.read(namespace, mode, data):
                        yield found
        except ParentCommand as ended:
            stream.end(ended.args[0])
        except (asyncio.CancelledError, GeneratorExit):
            # A node called a tool of the client: the next turn continues from here. If the turn was cancelled, nothing
            # is stored.
            context.state = await checkpoints.stored(None, is_paused=True)
            raise


# --- input -----------------------------------------------------------------------------------------------------


def _input(context: MemberContext, state: Restored) -> Any:
    asks = any(one.calls for one in state.interrupts)
    if state.interrupts and not asks:
        return Command(resume={one.interrupt_id: context.text for one in state.interrupts})
    update = state.update if isinstance(state.update, dict) else {}
    messages: list[Any] = list(update.get("messages") or ())
    answered = {one.tool_call_id for one in messages if isinstance(one, ToolMessage)}
    result = NOT_EXECUTED if asks or state.is_paused else TRANSFERRED
    messages = [
        *(
            ToolMessage(result, tool_call_id=call["id"])
            for call in state.open_calls
            if call["id"] not in answered
        ),
        *messages,
    ]
    system = system_text(context)
    if system:
        messages.append(SystemMessage(system))
    messages += spoken(items_since(context), _of_user, _of_agent)
    return {**update, "messages": messages}


def _of_user(message: UserMessage) -> BaseMessage:
    attachments = attachments_of(message)
    if not attachments:
        return HumanMessage(text_of(message))
    return HumanMessage([{"type": "text", "text": text_of(message)}, *map(_attachment, attachments)])


def _of_agent(item: Item, text: str) -> BaseMessage:
    return AIMessage(text)


def _attachment(one: Attachment) -> dict[str, Any]:
    """Return a content block (https://docs.langchain.com/oss/python/langchain/messages#multimodal)."""
    if one.kind == "image":
        return {"type": "image_url", "image_url": {"url": one.url}}
    if one.file_id:
        return {"type": one.kind, "file_id": one.file_id}
    data = one.base64
    place = {"base64": data, "mime_type": one.media_type} if data else {"url": one.url}
    return {"type": one.kind, **place, **({"filename": one.name} if one.name else {})}


# --- interrupts ------------------------------------------------------------------------------------------------


async def _resumed(context: MemberContext, state: Restored, outside: ExternalCalls) -> Any:
    """Return what resumes the interrupted run of this exchange, when all calls are decided."""
    if not state.interrupts:
        return None
    requests = [call for one in state.interrupts for call in one.calls]
    calls = identified(requests, state.open_calls)
    results = await outside.answers(calls, ())
    decisions = iter(
        [_decision(request, results[call.call_id]) for request, call in zip(requests, calls, strict=True)]
    )
    resume: dict[str, Any] = {}
    for one in state.interrupts:
        decided = [next(decisions) for _ in one.calls]
        answer = {"decisions": decided} if one.is_list else (decided[0] if decided else context.text)
        resume[one.interrupt_id] = answer
    return Command(resume=resume)


def _decision(request: Request, result: str | None) -> dict[str, Any]:
    """Return a decision in the form of LangChain; ``result`` is None for a call that is to be executed."""
    if result is None:
        return {"type": "approve"}
    return {"type": "respond" if "respond" in request.decisions else "reject", "message": result}
