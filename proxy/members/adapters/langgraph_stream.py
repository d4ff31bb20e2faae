"""What a graph of LangGraph streams, as events of a member."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, ToolMessage

from proxy.members.adapters.answer_events import InnerAgents, incomplete
from proxy.members.adapters.common import hand_over_to, handoff_targets, json_text, plain
from proxy.members.adapters.langgraph_state import Interrupt, Restored, interrupt_of
from proxy.members.port import (
    HandOver,
    MemberContext,
    MemberEvent,
    ModelUsed,
    Reasoning,
    ToolBegan,
    ToolEnded,
)
from proxy.messages import Usage

_INTERRUPT = "__interrupt__"
_TOOLS = "tools"
"""The node in which agents of LangChain run tools."""
_HOOKS = (".before_agent", ".before_model", ".after_model", ".after_agent")
"""Ends of the names of nodes that middleware of LangChain adds; they execute no tools."""


class GraphStream:
    """Converts what a graph streams. Updates of a subgraph come again with those of its graph."""

    def __init__(self, context: MemberContext, state: Restored) -> None:
        self._context = context
        self._handoffs = handoff_targets(context)
        # Middleware returns the last message again when the run resumes.
        self._seen = {getattr(state.last_message, "id", "") or ""} - {""}
        self._waiting = {call["id"]: ToolBegan(call["id"], call["name"], json_text(call["args"]))
                         for call in state.open_calls if state.interrupts}  # fmt: skip
        """Calls by id that are not known to be executed: a person may have to approve them first."""
        self._arguments: dict[str, str] = {}
        """The arguments of handoff calls, by target."""
        self.interrupts: list[Interrupt] = []
        self._agents = InnerAgents()
        self._agent = ""
        """The agent of the graph that wrote last."""
        self._nodes: frozenset[str] = frozenset()
        """Ids of the running nodes of the graph itself."""
        self.incomplete: list[MemberEvent] = []
        """The event for an answer that the model did not complete."""
        self.hand_over: HandOver | None = None
        self.update: Any = None
        """The update of the handoff."""

    def end(self, command: Any) -> None:
        """Take over the command with which the graph hands over."""
        target = _target(command)
        self.hand_over = hand_over_to(target, self._arguments.get(target, ""))
        self.update = command.update

    def read(self, namespace: tuple[str, ...], mode: str, data: Any) -> Iterator[str | MemberEvent]:
        """Yield the events of one part; ``namespace`` are the nodes around its graph."""
        match mode:
            case "messages":
                message, facts = data
                # AIMessageChunk is an AIMessage.
                if isinstance(message, AIMessage):
                    yield from self._message(namespace, message, facts)
            case "custom":
                self._context.report(json_text(data))
            case "tasks":
                if not namespace:
                    self._nodes = (
                        self._nodes | {data["id"]} if "input" in data else self._nodes - {data["id"]}
                    )
                if "input" in data and not data["name"].endswith(_HOOKS):
                    yield from self._begun()
            case "updates":
                for node, update in data.items():
                    if node == _INTERRUPT:
                        new = [
                            interrupt_of(one.id, plain(one.value)) for one in update if self._is_new(one.id)
                        ]
                        self.interrupts += new
                    else:
                        yield from self._updates(namespace, update)
            case _:
                pass

    def _message(
        self, namespace: tuple[str, ...], message: Any, facts: dict[str, Any]
    ) -> Iterator[str | MemberEvent]:
        """Yield the text of a message. A message inside of a tool is not part of the answer."""
        found = list(_text(message))
        if any(_node_of(one) == _TOOLS for one in namespace):
            yield from (Reasoning(one) if isinstance(one, str) else one for one in found)
            return
        agent = facts.get("lc_agent_name") if namespace else None
        if agent and agent != self._agent:
            # Nodes that run in parallel do not hand over to each other.
            if self._agent and len(self._nodes) == 1:
                yield from self._agents.hand_over(self._agent, agent)
            self._agent = agent
        if any(isinstance(one, str) for one in found):
            yield from self._agents.write(self._agent)
        yield from found

    def _begun(self) -> Iterator[MemberEvent]:
        waiting, self._waiting = self._waiting, {}
        yield from waiting.values()

    def _updates(self, namespace: tuple[str, ...], update: Any) -> Iterator[MemberEvent]:
        for part in update if isinstance(update, list) else [update]:
            messages = part.get("messages") if isinstance(part, dict) else None
            for message in messages if isinstance(messages, list) else [messages]:
                if isinstance(message, AIMessage) and self._is_new(message.id or ""):
                    yield from self._ended(namespace, message)
                elif isinstance(message, ToolMessage) and self._is_new(f"result {message.tool_call_id}"):
                    if (waiting := self._waiting.pop(message.tool_call_id, None)) is not None:
                        yield waiting
                    yield ToolEnded(
                        message.tool_call_id, json_text(message.content), message.status == "error"
                    )

    def _ended(self, namespace: tuple[str, ...], message: Any) -> Iterator[MemberEvent]:
        if not any(_node_of(one) == _TOOLS for one in namespace):
            self.incomplete = [] if message.tool_calls else _incomplete(message.response_metadata)
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
                self._arguments[target] = json_text(call["args"])
            else:
                call_id = call["id"] or ""
                agent = (message.name or "") if namespace else ""
                self._waiting[call_id] = ToolBegan(call_id, call["name"], json_text(call["args"]), agent)

    def _is_new(self, name: str) -> bool:
        if not name:
            return True
        is_new = name not in self._seen
        self._seen.add(name)
        return is_new


def _incomplete(facts: dict[str, Any]) -> list[MemberEvent]:
    """Return the event for an answer with this response metadata, if the model did not complete it."""
    reason = facts.get("finish_reason") or facts.get("stop_reason")
    details = facts.get("incomplete_details")
    if isinstance(details, dict):
        # Responses API of OpenAI.
        reason = "content_filter" if details.get("reason") == "content_filter" else "length"
    # Other packages of LangChain report the end under other names, or not at all.
    is_reported = facts.get("model_provider") == "openai" and "status" not in facts
    return incomplete(reason, is_reported=is_reported)


def _node_of(part: str) -> str:
    """Return the name of the node of a part of a namespace."""
    return part.partition(":")[0]


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
