"""Graphs of LangGraph (https://langchain-ai.github.io/langgraph), agents of LangChain among them.

The newest checkpoint of a graph is stored with the answer, and is the state of the next run on that branch. Of a graph
with its own checkpointer, only the id of the checkpoint is stored. The graph receives the messages since its last
answer. ``Command(goto=agent, graph=Command.PARENT)`` hands over to an agent of the team.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import ParentCommand
from langgraph.pregel import Pregel
from langgraph.types import Command

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

_MODES = ["messages", "updates", "custom"]
_INTERRUPT = "__interrupt__"


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of a compiled graph."""
    return LangGraphMember(found) if isinstance(found, Pregel) else None


class LangGraphMember:
    """A graph. Each run has a separate checkpointer, unless the graph has one."""

    has_effects = True
    sees: Sees = "own"

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Run the graph from its checkpoint; after a call of a client's tool, from the same one again."""
        unused = unused_parameters(context.parameters, ())
        if unused is not None:
            yield unused
        checkpoints = _Checkpoints(self._graph, context)
        state = await checkpoints.restore(context.state)
        config = {
            **checkpoints.config,
            # For tools and nodes: config["configurable"]["member_context"].
            "configurable": {**checkpoints.config["configurable"], "member_context": context},
        }
        stream = _Stream(context)
        given = _input(context, state)
        hand_over: HandOver | None = None
        update: Any = None
        try:
            async for _, mode, data in checkpoints.graph.astream(
                given, config, stream_mode=_MODES, subgraphs=True
            ):
                for found in stream.read(mode, data):
                    yield found
        except ParentCommand as ended:
            command = ended.args[0]
            hand_over = HandOver(_target(command), stream.reasons.get(_target(command), ""))
            update = command.update
        context.state = await checkpoints.stored(update, is_interrupted=bool(stream.questions))
        if hand_over is not None:
            yield hand_over
        for question in stream.questions:
            yield question

    async def close(self) -> None:
        """Nothing is held."""


# --- checkpoints -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Restored:
    """What a run begins with: whether an interrupt waits for an answer, and the update of a handoff."""

    is_interrupted: bool = False
    update: Any = None
    open_calls: list[Any] = field(default_factory=list)


class _Checkpoints:
    """The checkpoints of one conversation."""

    def __init__(self, graph: Any, context: MemberContext) -> None:
        self._own = not graph.checkpointer
        self.graph = graph.copy(update={"checkpointer": InMemorySaver()}) if self._own else graph
        thread = f"{context.conversation_id}:{context.agent}"
        self.config: dict[str, Any] = {"configurable": {"thread_id": thread}}

    async def restore(self, state: Any) -> _Restored:
        """Load the checkpoint that was stored."""
        if not isinstance(state, dict):
            return _Restored()
        if self._own:
            await self._load(state["checkpoints"])
        else:
            self.config["configurable"]["checkpoint_id"] = state["checkpoint_id"]
        update = _loaded(self.graph, state["update"]) if state.get("update") else None
        return _Restored(state["is_interrupted"], update, await self._open_calls())

    async def stored(self, update: Any, *, is_interrupted: bool) -> Any:
        """Return what is stored of the newest checkpoint."""
        state: dict[str, Any] = {"is_interrupted": is_interrupted}
        if update is not None:
            state["update"] = _dumped(self.graph, update)
        self.config["configurable"].pop("checkpoint_id", None)
        if self._own:
            state["checkpoints"] = _dumped(self.graph, await self._newest())
        else:
            snapshot = await self.graph.aget_state(self.config)
            state["checkpoint_id"] = snapshot.config["configurable"]["checkpoint_id"]
        return state

    async def _newest(self) -> list[Any]:
        """Return the newest checkpoint of the graph and of each subgraph."""
        newest: dict[str, Any] = {}
        async for one in self.graph.checkpointer.alist(self.config):
            newest.setdefault(one.config["configurable"]["checkpoint_ns"], one)
        return [
            [namespace, one.checkpoint, one.metadata, one.pending_writes] for namespace, one in newest.items()
        ]

    async def _load(self, dumped: Any) -> None:
        saver = self.graph.checkpointer
        for namespace, checkpoint, metadata, writes in _loaded(self.graph, dumped):
            config = {"configurable": {**self.config["configurable"], "checkpoint_ns": namespace}}
            placed = await saver.aput(config, checkpoint, metadata, checkpoint["channel_versions"])
            for task_id, channel, value in writes:
                await saver.aput_writes(placed, [(channel, value)], task_id)

    async def _open_calls(self) -> list[Any]:
        """Return the tool calls of the last message that have no result."""
        snapshot = await self.graph.aget_state(self.config)
        values = snapshot.values.get("messages") if isinstance(snapshot.values, dict) else None
        last = values[-1] if values else None
        return list(last.tool_calls) if isinstance(last, AIMessage) else []


def _dumped(graph: Any, value: Any) -> list[str]:
    kind, data = graph.checkpointer.serde.dumps_typed(value)
    return [kind, base64.b64encode(zlib.compress(data)).decode()]


def _loaded(graph: Any, dumped: list[str]) -> Any:
    kind, text = dumped
    return graph.checkpointer.serde.loads_typed((kind, zlib.decompress(base64.b64decode(text))))


# --- input -----------------------------------------------------------------------------------------------------


def _input(context: MemberContext, state: _Restored) -> Any:
    if state.is_interrupted:
        return Command(resume=context.text)
    update = state.update if isinstance(state.update, dict) else {}
    messages: list[Any] = list(update.get("messages") or ())
    answered = {one.tool_call_id for one in messages if isinstance(one, ToolMessage)}
    messages = [
        *(
            ToolMessage("transferred", tool_call_id=call["id"])
            for call in state.open_calls
            if call["id"] not in answered
        ),
        *messages,
    ]
    system = "\n\n".join(filter(None, (context.instructions, note_of_handoff(context))))
    if system:
        messages.append(SystemMessage(system))
    messages += [one for item in items_since(context) if (one := _message(item)) is not None]
    return {**update, "messages": messages}


def _message(item: Item) -> BaseMessage | None:
    message = item.message
    if isinstance(message, UserMessage):
        return HumanMessage(_content(message))
    if isinstance(message, AssistantMessage) and item.visible and (text := text_of(message)):
        return AIMessage(text)
    return None


def _content(message: UserMessage) -> Any:
    if not isinstance(message.content, list):
        return text_of(message)
    images = [
        {"type": "image_url", "image_url": {"url": part.image_url.url}}
        for part in message.content
        if isinstance(part, ImagePart)
    ]
    return [{"type": "text", "text": text_of(message)}, *images]


# --- output ----------------------------------------------------------------------------------------------------


class _Stream:
    """Converts what a graph streams. Updates of a subgraph come again with those of its graph."""

    def __init__(self, context: MemberContext) -> None:
        self._context = context
        self._handoffs = {tool.name: target for tool, target in context.handoff_tools}
        self._seen: set[str] = set()
        self.questions: list[str] = []
        self.reasons: dict[str, str] = {}
        """The reasons of handoff calls, by target."""

    def read(self, mode: str, data: Any) -> Iterator[str | MemberEvent]:
        """Yield the events of one part."""
        match mode:
            case "messages":
                message, _ = data
                # AIMessageChunk is an AIMessage.
                if isinstance(message, AIMessage):
                    yield from _text(message)
            case "custom":
                self._context.report(data if isinstance(data, str) else _json(data))
            case "updates":
                for node, update in data.items():
                    if node == _INTERRUPT:
                        self.questions += [_question(one) for one in update if self._is_new(one.id)]
                    else:
                        yield from self._updates(update)
            case _:
                pass

    def _updates(self, update: Any) -> Iterator[MemberEvent]:
        for part in update if isinstance(update, list) else [update]:
            messages = part.get("messages") if isinstance(part, dict) else None
            for message in messages if isinstance(messages, list) else [messages]:
                if isinstance(message, AIMessage) and self._is_new(message.id or ""):
                    yield from self._ended(message)
                elif isinstance(message, ToolMessage) and self._is_new(f"result {message.tool_call_id}"):
                    text = message.content if isinstance(message.content, str) else _json(message.content)
                    yield ToolEnded(message.tool_call_id, text, message.status == "error")

    def _ended(self, message: Any) -> Iterator[MemberEvent]:
        usage = message.usage_metadata
        if usage:
            cached = (usage.get("input_token_details") or {}).get("cache_read") or 0
            model = message.response_metadata.get("model_name") or "langgraph"
            yield ModelUsed(
                model,
                Usage(prompt=usage["input_tokens"], completion=usage["output_tokens"], cached=cached),
            )
        for call in message.tool_calls:
            target = self._handoffs.get(call["name"])
            if target is not None:
                self.reasons[target] = str(call["args"].get("reason") or "")
            else:
                yield ToolBegan(call["id"] or "", call["name"], _json(call["args"]))

    def _is_new(self, name: str) -> bool:
        if not name:
            return True
        is_new = name not in self._seen
        self._seen.add(name)
        return is_new


def _text(message: Any) -> Iterator[str | MemberEvent]:
    if isinstance(message.content, str):
        if message.content:
            yield message.content
        return
    for block in message.content:
        if isinstance(block, str):
            yield block
        elif block.get("type") == "text" and block.get("text"):
            yield block["text"]
        elif block.get("type") in ("reasoning", "thinking"):
            yield Reasoning(block.get("reasoning") or block.get("thinking") or "")


def _target(command: Any) -> str:
    goto = command.goto if isinstance(command.goto, list | tuple) else [command.goto]
    first = goto[0] if goto else ""
    return first if isinstance(first, str) else str(getattr(first, "node", ""))


def _question(interrupt: Any) -> str:
    return interrupt.value if isinstance(interrupt.value, str) else _json(interrupt.value)


def _json(value: Any) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
