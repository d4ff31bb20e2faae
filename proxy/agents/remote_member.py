"""A remote agent: an OpenAI-compatible endpoint with its own tools and state, such as a team of another handoff-proxy.

It receives the text of users and agents, tools of the client, and the agents that it may hand over to as tools. Events
that another handoff-proxy sends with its chunks become events of the member.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Any

import msgspec

from proxy.errors import MemberFailed
from proxy.events import ParametersIgnored, ReasoningDelta, RefusalDelta, TextDelta
from proxy.members.adapters.common import hand_over_to
from proxy.members.port import (
    MemberContext,
    MemberEvent,
    ModelUsed,
    Reasoning,
    ToolBegan,
    ToolEnded,
    Unused,
)
from proxy.members.transcript import note_of_handoff, own_calls, visible_messages
from proxy.messages import Message, SystemMessage, Usage
from proxy.providers.model import (
    CallPiece,
    Finished,
    Model,
    ModelDelta,
    ModelRequest,
    RemoteEvent,
    UsagePiece,
)
from proxy.teamfiles.definitions import RemoteAgentDefinition

MAX_ID = 128
"""Maximum length of conversation ids of handoff-proxy."""


class RemoteMember:
    """A member that calls an endpoint once per run."""

    has_effects = True

    def __init__(self, definition: RemoteAgentDefinition, model: Model) -> None:
        self._definition = definition
        self._model = model

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Call the endpoint; then hand over, or call the tools of the client that it has called."""
        # Its calls of earlier turns are part of the request.
        context.answers()
        targets = {tool.name: target for tool, target in context.handoff_tools}
        reply = _Reply(self._model.name)
        try:
            async with self._model.stream(self._request(context)) as batches:
                async for batch in batches:
                    for delta in batch:
                        for event in reply.read(delta):
                            yield event
        finally:
            usage = reply.used()
        if usage is not None:
            yield usage
        client_calls = [call for call in reply.calls if call[0] not in targets]
        if client_calls:
            names = {tool.name for tool in context.tools}
            if any(name not in names for name, _ in client_calls):
                raise MemberFailed(context.agent)
            await asyncio.gather(
                *(context.call_tool(name, _arguments("".join(pieces))) for name, pieces in client_calls)
            )
        elif reply.calls:
            name, pieces = reply.calls[0]
            yield hand_over_to(targets[name], "".join(pieces))

    async def close(self) -> None:
        """The connections belong to the models of the configuration."""

    def _request(self, context: MemberContext) -> ModelRequest:
        system = "\n\n".join(filter(None, (context.instructions, note_of_handoff(context))))
        parameters = context.parameters
        if self._definition.send_end_user and context.end_user and parameters.safety_identifier is None:
            parameters = msgspec.structs.replace(parameters, safety_identifier=context.end_user)
        headers = {"X-Handoff-Events": "extension"}
        if self._definition.conversation_header:
            headers[self._definition.conversation_header] = _conversation_id(context)
        return ModelRequest(
            messages=[
                *([SystemMessage(system)] if system else []),
                *visible_messages(context.items),
                *own_calls(context.later_items),
            ],
            tools=(*(tool for tool, _ in context.handoff_tools), *context.tools),
            parameters=parameters,
            team=context.team,
            agent=context.agent,
            requested=frozenset(msgspec.to_builtins(context.parameters)),
            headers=headers,
        )


class _Reply:
    """The answer of the endpoint."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._usage: Usage | None = None
        self._cost: float | None = None
        self._agent = ""
        self.calls: list[tuple[str, list[str]]] = []

    def read(self, delta: ModelDelta) -> list[MemberEvent | str]:
        """Return the events of a delta."""
        match delta:
            case TextDelta() | RefusalDelta():
                return [delta.text]
            case ReasoningDelta():
                return [Reasoning(delta.text)]
            case CallPiece():
                if delta.index == len(self.calls):
                    self.calls.append((delta.name or "", []))
                self.calls[delta.index][1].append(delta.arguments)
            case RemoteEvent():
                return self._remote(delta.body)
            case ParametersIgnored():
                return [Unused(delta.names)]
            case UsagePiece():
                self._usage = delta.usage
            case Finished():
                self._usage, self._cost = delta.usage, delta.cost
        return []

    def used(self) -> ModelUsed | None:
        """Return the usage of the call, if the endpoint reported it."""
        return None if self._usage is None else ModelUsed(self._model, self._usage, self._cost)

    def _remote(self, body: dict[str, Any]) -> list[MemberEvent | str]:
        """Return the events of another handoff-proxy (``docs/extension.md``); others are dropped."""
        values = {name: value for name, value in body.items() if isinstance(value, str)}
        call_id, name = values.get("call_id", ""), values.get("name", "")
        match values.get("type"):
            case "tool.started":
                return [ToolBegan(call_id, name, values.get("arguments", "{}"), values.get("agent", ""))]
            case "tool.completed":
                return [ToolEnded(call_id, values.get("result", ""))]
            case "tool.failed":
                return [ToolEnded(call_id, values.get("error", ""), is_error=True)]
            case "handoff":
                reason = f": {values['reason']}" if values.get("reason") else ""
                return [Reasoning(f"{values.get('from', '')} hands over to {values.get('to', '')}{reason}\n")]
            case _:
                return []


def _conversation_id(context: MemberContext) -> str:
    """Return an id for the conversation with this agent: two agents of a team can be at the same endpoint.

    Each run as a delegate is a conversation, because a delegate sees only its task.
    """
    run = context.turn_id.partition("/")[2]
    both = f"{context.conversation_id}:{context.agent}" + (f":{run}" if run else "")
    return both if len(both) <= MAX_ID else blake2b(both.encode(), digest_size=20).hexdigest()


def _arguments(text: str) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
