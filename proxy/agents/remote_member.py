"""A remote agent: an OpenAI-compatible endpoint with its own tools and state, such as a team of another handoff-proxy.

It receives the text of users and agents, tools of the client, and the agents that it may hand over to as tools. Events
that another handoff-proxy sends with its chunks become events inside of the member, and its questions for approval
become questions of this server.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from hashlib import blake2b
from typing import Any, Protocol

import msgspec

from proxy.agents.remote_transcript import (
    NO,
    YES,
    RemoteApproval,
    RemoteQuestion,
    RemoteTranscript,
    last_question,
)
from proxy.errors import MemberFailed, ToolError
from proxy.events import ApprovalRequested, ParametersIgnored, ReasoningDelta, RefusalDelta, TextDelta
from proxy.members.adapters.common import hand_over_to
from proxy.members.port import (
    Incomplete,
    MemberContext,
    MemberEvent,
    ModelUsed,
    NotApproved,
    Reasoning,
    Sees,
    TeamEvent,
    Unused,
)
from proxy.members.transcript import note_of_handoff
from proxy.messages import Message, SystemMessage, Usage, UserMessage
from proxy.providers.model import (
    Finished,
    Model,
    ModelDelta,
    ModelRequest,
    RemoteEvent,
    ToolCallPiece,
    UsagePiece,
)
from proxy.teamfiles.definitions import RemoteAgentDefinition
from proxy.turns.turn import RUN_UNKNOWN
from proxy.wire.chat.extension_reader import has_line, read_extension_event

MAX_ID = 128
"""Maximum length of conversation ids of handoff-proxy."""
_QUESTION = re.compile(r"\s*Approval [0-9a-z]{6}: shall I run ")
"""The beginning of a question for approval of handoff-proxy (``agents.approval_question``)."""
_PASSED_ON = "approved; the remote team runs the call"


class RemoteApprovals(Protocol):
    """The approvals of another handoff-proxy."""

    async def refuse(self, approval_id: str) -> None:
        """Refuse one call.

        Raises:
            UpstreamFailed: The endpoint did not accept the decision.
        """
        ...


class RemoteMember:
    """A member that calls an endpoint once per run."""

    has_effects = True
    sees: Sees = "text"

    def __init__(self, definition: RemoteAgentDefinition, model: Model, approvals: RemoteApprovals) -> None:
        self._definition = definition
        self._model = model
        self._approvals = approvals

    async def run(
        self, messages: Sequence[Message], context: MemberContext
    ) -> AsyncIterator[str | MemberEvent]:
        """Call the endpoint; then hand over, or ask for what the client or a person has to answer."""
        question = last_question(context)
        conversation = question.conversation if question is not None else _conversation_id(context)
        transcript = RemoteTranscript(context)
        sent = transcript.messages
        if question is not None:
            approved, refused = await self._decided(context, question)
            if transcript.is_undecided:
                if approved:
                    for one in refused:
                        await self._approvals.refuse(one.id)
                sent = [*sent, UserMessage(YES if approved else NO)]
        # Its calls of earlier turns are part of the request.
        context.answers()
        context.state = None
        targets = {tool.name: target for tool, target in context.handoff_tools}
        reply = _Reply(self._model.name)
        try:
            async with self._model.stream(self._request(context, sent, conversation)) as batches:
                async for batch in batches:
                    for delta in batch:
                        for event in reply.read(delta):
                            yield event
        finally:
            usage = reply.used()
        if usage is not None:
            yield usage
        if reply.incomplete is not None:
            yield reply.incomplete
        client_calls = [call for call in reply.calls if call[0] not in targets]
        if client_calls:
            names = {tool.name for tool in context.tools}
            if any(name not in names for name, _ in client_calls):
                raise MemberFailed(context.agent)
            await asyncio.gather(
                *(context.call_tool(name, _arguments("".join(pieces)) or {}) for name, pieces in client_calls)
            )
        elif reply.calls:
            name, pieces = reply.calls[0]
            yield hand_over_to(targets[name], "".join(pieces))
        elif reply.question:
            if reply.approvals:
                await self._ask(context, RemoteQuestion(reply.question, conversation, reply.approvals))
            # No approval is possible here: the question is the answer, and the next message decides.
            yield reply.question

    async def close(self) -> None:
        """The connections belong to the models of the configuration."""

    # --- approvals ---

    async def _ask(self, context: MemberContext, question: RemoteQuestion) -> None:
        """Put the calls before the user, which ends the turn; return if that is not possible."""
        context.state = msgspec.to_builtins(question)
        try:
            await asyncio.gather(*(_ask_for(context, one) for one in question.approvals))
        except ToolError:
            context.state = None

    async def _decided(
        self, context: MemberContext, question: RemoteQuestion
    ) -> tuple[list[RemoteApproval], list[RemoteApproval]]:
        """Return the approved and the refused calls of a question."""
        approved: list[RemoteApproval] = []
        refused: list[RemoteApproval] = []
        # A call without a decision leads to the same question.
        context.state = msgspec.to_builtins(question)
        for one in question.approvals:
            try:
                await _ask_for(context, one)
                approved.append(one)
            except NotApproved as reason:
                # The endpoint runs an approved call once, also if it is approved again.
                (approved if reason.message == RUN_UNKNOWN else refused).append(one)
        return approved, refused

    # --- the request ---

    def _request(self, context: MemberContext, sent: Sequence[Message], conversation: str) -> ModelRequest:
        system = "\n\n".join(filter(None, (context.instructions, note_of_handoff(context))))
        parameters = context.parameters
        if self._definition.send_end_user and context.end_user and parameters.safety_identifier is None:
            parameters = msgspec.structs.replace(parameters, safety_identifier=context.end_user)
        headers = {"X-Handoff-Events": "all"}
        if self._definition.conversation_header:
            headers[self._definition.conversation_header] = conversation
        return ModelRequest(
            messages=[*([SystemMessage(system)] if system else []), *sent],
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
        self._has_line = False
        """The event before is also a line of reasoning, which follows it."""
        self._held = ""
        """A text that is a question, if an event about an approval follows."""
        self._is_readable = True
        self.question = ""
        self.approvals: list[RemoteApproval] = []
        self._calls: list[tuple[str, list[str]]] = []
        self.incomplete: Incomplete | None = None

    @property
    def calls(self) -> list[tuple[str, list[str]]]:
        """The names and the arguments of the calls; none if the arguments can be truncated."""
        is_cut = self.incomplete is not None and self.incomplete.reason == "length"
        return [] if is_cut else self._calls

    def read(self, delta: ModelDelta) -> list[MemberEvent | str]:
        """Return the events of a delta."""
        if isinstance(delta, RemoteEvent):
            return self._remote(delta.body)
        held, self._held = self._held, ""
        return [*([held] if held else []), *self._events(delta)]

    def _events(self, delta: ModelDelta) -> list[MemberEvent | str]:
        has_line, self._has_line = self._has_line, False
        match delta:
            case TextDelta(text=text) if _QUESTION.match(text):
                self._held = text
            case TextDelta() | RefusalDelta():
                return [delta.text]
            case ReasoningDelta():
                return [] if has_line else [Reasoning(delta.text)]
            case ToolCallPiece():
                if delta.index == len(self._calls):
                    self._calls.append((delta.name or "", []))
                self._calls[delta.index][1].append(delta.arguments)
            case ParametersIgnored():
                return [Unused(delta.names)]
            case UsagePiece():
                self._usage = delta.usage
            case Finished():
                self._usage, self._cost = delta.usage, delta.cost
                if delta.reason in ("length", "content_filter"):
                    self.incomplete = Incomplete(delta.reason)
            case RemoteEvent():
                pass
        return []

    def used(self) -> ModelUsed | None:
        """Return the usage of the call, if the endpoint reported it."""
        return None if self._usage is None else ModelUsed(self._model, self._usage, self._cost)

    def _remote(self, body: dict[str, Any]) -> list[MemberEvent | str]:
        """Return the event of another handoff-proxy (``docs/extension.md``); others are dropped."""
        event = read_extension_event(body)
        if event is None:
            return []
        self._has_line = has_line(body)
        if isinstance(event.event, ApprovalRequested) and (self._held or self.question):
            self.question = self.question or self._held
            self._held = ""
            self._add_approval(event.event)
        return [TeamEvent(event)]

    def _add_approval(self, event: ApprovalRequested) -> None:
        """Add a call; none if the arguments of one are hidden or truncated, because the user has to see them."""
        arguments = _arguments(event.arguments)
        if arguments is None or not event.approval_id:
            self._is_readable = False
            self.approvals.clear()
        elif self._is_readable:
            self.approvals.append(RemoteApproval(event.approval_id, event.name, arguments))


async def _ask_for(context: MemberContext, approval: RemoteApproval) -> str:
    return await context.run_approved(approval.name, approval.arguments, lambda: _PASSED_ON)


def _conversation_id(context: MemberContext) -> str:
    """Return an id for the conversation with this agent: two agents of a team can be at the same endpoint.

    Each run as a delegate is a conversation, because a delegate sees only its task.
    """
    run = context.turn_id.partition("/")[2]
    both = f"{context.conversation_id}:{context.agent}" + (f":{run}" if run else "")
    return both if len(both) <= MAX_ID else blake2b(both.encode(), digest_size=20).hexdigest()


def _arguments(text: str) -> dict[str, Any] | None:
    """Return the arguments of a call; None if the text is not a JSON object, for example because it is truncated."""
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, ValueError):
        return None
    return found if isinstance(found, dict) else None
