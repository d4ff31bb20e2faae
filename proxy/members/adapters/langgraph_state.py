"""What is stored of a graph of LangGraph: its newest checkpoint, and the interrupts that wait for an answer."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage
from langgraph.checkpoint.memory import InMemorySaver

from proxy.members.adapters.common import FrameworkCall, json_text
from proxy.members.port import MemberContext

# --- checkpoints -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interrupt:
    """What a graph waits for: an answer to ``question``, or, if there are ``calls``, decisions about them."""

    interrupt_id: str
    question: str
    calls: Sequence[Request] = ()
    is_list: bool = False
    """Whether the graph expects a list of decisions."""
    _value: Any = None

    @property
    def value(self) -> list[Any]:
        """What is stored of the interrupt."""
        return [self.interrupt_id, self._value]


@dataclass(frozen=True, slots=True)
class Request:
    """A call of a tool that a person has to approve; ``decisions`` are those that the graph allows."""

    call_id: str
    name: str
    arguments: dict[str, Any]
    decisions: Sequence[str] = ()


@dataclass(slots=True)
class Restored:
    """What a run begins with: the interrupts that wait for an answer, and the update of a handoff."""

    interrupts: list[Interrupt] = field(default_factory=list)
    update: Any = None
    is_paused: bool = False
    """Whether the run was interrupted by a call of a client's tool."""
    last_message: Any = None
    open_calls: list[Any] = field(default_factory=list)
    """Tool calls without a result."""


class Checkpoints:
    """The checkpoints of one conversation."""

    def __init__(self, graph: Any, context: MemberContext) -> None:
        self._own = not graph.checkpointer
        self.graph = graph.copy(update={"checkpointer": InMemorySaver()}) if self._own else graph
        thread = f"{context.conversation_id}:{context.agent}"
        self.config: dict[str, Any] = {"configurable": {"thread_id": thread}}

    async def restore(self, state: Any) -> Restored:
        """Load the checkpoint that was stored."""
        if not isinstance(state, dict):
            return Restored()
        if self._own:
            await self._load(state["checkpoints"])
        else:
            self.config["configurable"]["checkpoint_id"] = state["checkpoint_id"]
        update = _loaded(self.graph, state["update"]) if state.get("update") else None
        interrupts = [interrupt_of(*one) for one in state.get("interrupts") or ()]
        messages = await self._messages()
        last = messages[-1] if messages else None
        return Restored(interrupts, update, bool(state.get("is_paused")), last, await self.open_calls())

    async def stored(
        self, update: Any, *, interrupts: Sequence[Interrupt] = (), is_paused: bool = False
    ) -> Any:
        """Return what is stored of the newest checkpoint."""
        state: dict[str, Any] = {"is_paused": is_paused, "interrupts": [one.value for one in interrupts]}
        if update is not None:
            state["update"] = _dumped(self.graph, update)
        self.config["configurable"].pop("checkpoint_id", None)
        if self._own:
            state["checkpoints"] = _dumped(self.graph, await self._newest())
        else:
            snapshot = await self.graph.aget_state(self.config)
            state["checkpoint_id"] = snapshot.config["configurable"]["checkpoint_id"]
        return state

    async def open_calls(self) -> list[Any]:
        """Return the tool calls of the last message of a model that have no result."""
        answered: set[str] = set()
        for message in reversed(await self._messages()):
            if isinstance(message, AIMessage):
                return [call for call in message.tool_calls if call["id"] not in answered]
            if isinstance(message, ToolMessage):
                answered.add(message.tool_call_id)
        return []

    async def _messages(self) -> list[Any]:
        snapshot = await self.graph.aget_state(self.config)
        messages = snapshot.values.get("messages") if isinstance(snapshot.values, dict) else None
        return list(messages or ())

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


def _dumped(graph: Any, value: Any) -> list[str]:
    kind, data = graph.checkpointer.serde.dumps_typed(value)
    return [kind, base64.b64encode(zlib.compress(data)).decode()]


def _loaded(graph: Any, dumped: list[str]) -> Any:
    kind, text = dumped
    return graph.checkpointer.serde.loads_typed((kind, zlib.decompress(base64.b64decode(text))))


# --- interrupts ------------------------------------------------------------------------------------------------


def identified(requests: Sequence[Request], open_calls: Sequence[Any]) -> list[FrameworkCall]:
    """Return the requests with the ids of their calls, which requests for several calls do not have."""
    left = list(open_calls)
    found = []
    for number, request in enumerate(requests):
        matching = [
            call
            for call in left
            if call["id"] == request.call_id
            or (not request.call_id and (call["name"], call["args"]) == (request.name, request.arguments))
        ]
        for call in matching[:1]:
            left.remove(call)
        call_id = matching[0]["id"] if matching else request.call_id or f"request {number}"
        found.append(FrameworkCall(call_id, request.name, request.arguments))
    return found


def interrupt_of(interrupt_id: str, value: Any) -> Interrupt:
    """Return an interrupt; requests for approval have the form of LangChain's middleware (HumanInTheLoopMiddleware)."""
    calls: list[Request] = []
    is_list = False
    if isinstance(value, dict) and value.get("type") == "tool_approval":
        # Which decisions it allows is not part of the request.
        calls = [Request(value["tool_call_id"], value["name"], value["args"], ("respond",))]
    elif isinstance(value, dict) and "action_requests" in value and "review_configs" in value:
        is_list = True
        allowed = {one["action_name"]: one["allowed_decisions"] for one in value["review_configs"]}
        calls = [
            Request("", one["name"], one["args"], allowed.get(one["name"], ()))
            for one in value["action_requests"]
        ]
    return Interrupt(interrupt_id, json_text(value), calls, is_list, value)
