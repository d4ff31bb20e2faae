"""One agent with the floor: asks its model, runs its tools, and says how that ended.

A speaker holds no state of any turn; everything about one is in the ``Floor`` it is given. One reply with several
calls is dealt with by these rules:

- every call gets exactly one answer, under an id of ours;
- tools of the server run, several at once, before anything else;
- a call of the caller's own tool leaves the turn waiting for its result;
- a call that a person has to approve ends the turn with a question, unless the caller has to answer first;
- one handoff takes effect, and none while the caller or a person has to answer;
- names that are not offered, and arguments that are not JSON, get an answer from which the model can mend them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from proxy.agents import approval_calls
from proxy.agents.prompt import assistant_message, messages_for, provider_states
from proxy.agents.tool_calls import ServerCalls, no_tool, tell
from proxy.agents.turn_state import Agent, Call, CallKind, Floor, new_call_id, wire_call
from proxy.errors import AnswerNotInForm, ToolLoopLimitReached
from proxy.events import (
    ClientToolArguments,
    ClientToolCall,
    Handoff,
    ModelCalled,
    ReasoningDelta,
    RefusalDelta,
    TextDelta,
)
from proxy.messages import (
    AssistantMessage,
    FinishReason,
    FunctionTool,
    Item,
    NamedToolChoice,
    Parameters,
    ProviderState,
    ToolChoice,
    Usage,
)
from proxy.providers.capabilities import Abilities
from proxy.providers.model import (
    CallPiece,
    Finished,
    ModelRequest,
    UsagePiece,
)
from proxy.tools.handoff_tools import handoff_reason, handoff_result
from proxy.tools.port import is_offered
from proxy.turns.contract import ApprovalRequest


@dataclass(frozen=True)
class Spoke:
    """The agent gave the answer."""

    finish_reason: FinishReason


@dataclass(frozen=True)
class HandedOver:
    """Another agent has the floor."""

    target: str


@dataclass(frozen=True)
class AwaitsClient:
    """The caller has to run tools of its own; ``pending`` are the ids of the calls."""

    pending: tuple[str, ...]


@dataclass(frozen=True)
class AwaitsApproval:
    """A person was asked about calls; ``requests`` has them, in the order in which they were made."""

    requests: tuple[ApprovalRequest, ...]


Outcome = Spoke | HandedOver | AwaitsClient | AwaitsApproval


@dataclass(slots=True)
class _Reply:
    text: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    state: ProviderState | None = None


class Speaker:
    """Lets one agent speak; one instance serves every turn."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._server_calls = ServerCalls(agent)
        self._delegate_specs = tuple(delegate.spec for delegate in agent.delegates.values())

    @property
    def abilities(self) -> Abilities:
        """Those of the model, which may change when it changes its wire; tools exclude a prediction."""
        has_tools = bool(self.agent.tools or self.agent.delegates)
        return self.agent.model.abilities.without(*(("prediction",) if has_tools else ()))

    def offered(self, client_tools: Sequence[FunctionTool], most: int) -> Sequence[FunctionTool]:
        """Return those of the caller's tools that this agent is shown."""
        policy = self.agent.client_tools
        if policy == "ignore" or (policy == "auto" and len(client_tools) > most):
            return ()
        if policy in ("pass", "auto"):
            return client_tools
        return [tool for tool in client_tools if tool.name in policy]

    def collisions(self, client_tools: Sequence[FunctionTool], most: int) -> list[str]:
        """Return the names of offered tools of the caller's that are taken by tools of the agent."""
        return [
            tool.name
            for tool in self.offered(client_tools, most)
            if tool.name in self.agent.tools or tool.name in self.agent.delegates
        ]

    async def speak(self, floor: Floor) -> Outcome:
        """Speak until there is an answer, a handoff or a question to the caller or a person.

        Raises:
            UpstreamFailed: The model did not answer.
            ToolLoopLimitReached: The turn used up its model calls.
            StoreUnavailable: It could not be noted that an approved call runs.
        """
        opening, floor.turn.opening = floor.turn.opening, None
        if opening is not None:
            await self._server_calls.take_up(floor, opening)
        while True:
            reply = await self._ask(floor)
            if reply.calls and reply.finish_reason != "length":
                outcome = await self._act(floor, reply)
                if outcome is not None:
                    return outcome
                if self._is_used_up(floor):
                    return Spoke("length")
                continue
            self._check_form(floor, reply)
            # At the length limit the last call may be cut, so none of the reply's calls is kept or run.
            self._keep(floor, reply, [])
            return Spoke(
                reply.finish_reason if reply.finish_reason in ("length", "content_filter") else "stop"
            )

    # --- one model call ---

    async def _ask(self, floor: Floor) -> _Reply:
        if floor.model_calls >= floor.limits.max_model_calls:
            raise ToolLoopLimitReached(floor.limits.max_model_calls)
        floor.model_calls += 1
        request = self._request(floor)
        client_names = {tool.name for tool in self._client_tools(floor)}
        delegates_open = floor.handoffs < floor.limits.max_handoffs
        reply = _Reply()
        # In a structured answer, words beside a call would spoil the JSON: they wait until it is clear what they are.
        held: list[TextDelta] | None = [] if floor.form is not None and request.tools else None
        name = self.agent.model.name
        usage: Usage | None = None
        cost: float | None = None
        began = time.monotonic()
        try:
            async with self.agent.model.stream(request) as batches:
                async for batch in batches:
                    for delta in batch:
                        if type(delta) is TextDelta:
                            reply.text.append(delta.text)
                            if held is not None:
                                held.append(delta)
                                continue
                            floor.turn.draft.append(delta.text)
                            floor.sink.emit(delta)
                        elif type(delta) is CallPiece:
                            self._take_call_piece(floor, reply, delta, client_names, delegates_open)
                        elif type(delta) is ReasoningDelta:
                            floor.sink.emit(delta)
                        elif type(delta) is RefusalDelta:
                            reply.refusal.append(delta.text)
                            floor.sink.emit(delta)
                        elif type(delta) is UsagePiece:
                            usage = delta.usage
                        elif type(delta) is Finished:
                            reply.finish_reason = delta.reason
                            usage, cost = delta.usage, delta.cost
                            reply.state = delta.state
                            name = delta.model or name
                    await floor.sink.room()
        finally:
            floor.completion_tokens += usage.completion if usage else 0
            floor.sink.emit(ModelCalled(self.agent.name, name, usage, time.monotonic() - began, cost))
        if held is not None and reply.calls:
            reply.text.clear()
        elif held:
            self._release(floor, held)
        return reply

    def _release(self, floor: Floor, held: Sequence[TextDelta]) -> None:
        for piece in held:
            floor.turn.draft.append(piece.text)
            floor.sink.emit(piece)

    def _check_form(self, floor: Floor, reply: _Reply) -> None:
        """A whole answer has to be what the caller asked for; one that was cut says so by its finish reason."""
        is_whole = reply.finish_reason in ("stop", "tool_calls") and not reply.refusal
        if floor.form is not None and is_whole and not floor.form.is_met_by("".join(reply.text)):
            raise AnswerNotInForm

    def _take_call_piece(
        self, floor: Floor, reply: _Reply, piece: CallPiece, client_names: set[str], delegates_open: bool
    ) -> None:
        if piece.index == len(reply.calls):
            name = piece.name or ""
            kind = self._kind(name, client_names, delegates_open)
            if kind == "client" and not floor.turn.parallel_tool_calls and _has_client_call(reply):
                kind = "surplus"
            call = Call(new_call_id(), name, kind)
            reply.calls.append(call)
            if kind == "client":
                call.client_index = floor.client_calls
                floor.client_calls += 1
                floor.sink.emit(ClientToolCall(call.client_index, call.id, name))
        call = reply.calls[piece.index]
        if piece.arguments:
            call.arguments.append(piece.arguments)
            if call.kind == "client":
                floor.sink.emit(ClientToolArguments(call.client_index, piece.arguments))

    def _kind(self, name: str, client_names: set[str], delegates_open: bool) -> CallKind:
        if name in self.agent.tools:
            return "approval" if name in self.agent.approvals else "server"
        if name in self.agent.delegates and delegates_open:
            return "delegate"
        return "client" if name in client_names else "unknown"

    def _client_tools(self, floor: Floor) -> Sequence[FunctionTool]:
        if floor.turn.tool_choice == "none":
            return ()
        return self.offered(floor.turn.client_tools, floor.max_client_tools)

    def _request(self, floor: Floor) -> ModelRequest:
        turn = floor.turn
        client_tools = self._client_tools(floor)
        delegates = self._delegate_specs if floor.handoffs < floor.limits.max_handoffs else ()
        specs = self._server_calls.specs
        server_tools = [specs[name] for name, tool in self.agent.tools.items() if is_offered(tool)]
        tools = (*server_tools, *delegates, *client_tools)
        return ModelRequest(
            messages=messages_for(self.agent.instructions, turn.overlay, turn.context, turn.items),
            tools=tools,
            tool_choice=_tool_choice(turn.tool_choice, client_tools),
            parallel_tool_calls=False if tools and not turn.parallel_tool_calls else None,
            parameters=_merged(self.agent.parameters, turn.parameters, has_tools=bool(tools)),
            team=floor.team,
            agent=self.agent.name,
            states=provider_states((*turn.context, *turn.items)),
        )

    # --- what a reply asks for ---

    async def _act(self, floor: Floor, reply: _Reply) -> Outcome | None:
        self._keep(floor, reply, reply.calls)
        results = await self._server_calls.run(floor, reply.calls)
        pending = tuple(call.id for call in reply.calls if call.kind == "client")
        results |= self._server_calls.unasked(floor, reply.calls, client_is_asked=bool(pending))
        asked = [call for call in reply.calls if call.kind == "approval" and call.id not in results]
        is_free = not pending and not asked
        effective = next((c for c in reply.calls if c.kind == "delegate"), None) if is_free else None
        for call in reply.calls:
            if call.kind != "client":
                given = results.get(call.id)
                answer = self._answer(call, effective, is_free) if given is None else given
                tell(floor, self.agent, call.id, answer)
        if pending:
            return AwaitsClient(pending)
        if asked:
            return AwaitsApproval(self._server_calls.ask(floor, asked))
        if effective is None:
            return None
        target = self.agent.delegates[effective.name].target
        floor.handoffs += 1
        floor.turn.agent = target
        floor.sink.emit(Handoff(self.agent.name, target, handoff_reason("".join(effective.arguments))))
        return HandedOver(target)

    def _keep(self, floor: Floor, reply: _Reply, calls: Sequence[Call]) -> None:
        text = "".join(reply.text)
        message: AssistantMessage = assistant_message(
            text, "".join(reply.refusal), [wire_call(c) for c in calls]
        )
        is_visible = bool(text or reply.refusal or not calls or any(c.kind == "client" for c in calls))
        state = reply.state if calls else None
        floor.turn.items.append(Item(message, agent=self.agent.name, visible=is_visible, state=state))
        floor.turn.draft.clear()

    def _answer(self, call: Call, effective: Call | None, is_free: bool) -> str:
        """The result of a call that is not run; ``is_free``: nobody has to answer another call first."""
        if call is effective:
            return handoff_result(self.agent.delegates[call.name].target)
        if call.kind == "approval":
            return approval_calls.WAITING
        if call.kind == "delegate":
            if not is_free:
                return "error: not transferred, because other calls of this reply have to be answered first"
            return "error: not transferred, because only one transfer at a time is possible"
        if call.kind == "surplus":
            return "error: not executed, because only one call at a time is allowed"
        if call.name in self.agent.delegates:
            return "error: no further transfers in this turn; answer the user yourself"
        return no_tool(call.name)

    def _is_used_up(self, floor: Floor) -> bool:
        limit = floor.limits.max_output_tokens
        return limit is not None and floor.completion_tokens >= limit


def _has_client_call(reply: _Reply) -> bool:
    return any(call.kind == "client" for call in reply.calls)


def _tool_choice(wished: ToolChoice | None, client_tools: Sequence[FunctionTool]) -> ToolChoice | None:
    """What the caller demands of its own tools; an agent that is not shown them is left free."""
    if wished == "required" and client_tools:
        return wished
    if isinstance(wished, NamedToolChoice) and any(tool.name == wished.name for tool in client_tools):
        return wished
    return None


def _merged(own: Parameters, wished: Parameters, *, has_tools: bool) -> Parameters:
    """The agent's own parameters, with the caller's laid over them."""
    if wished.prediction is not None and has_tools:
        # The official API refuses the two together.
        wished = msgspec.structs.replace(wished, prediction=None)
    if wished == _NOTHING:
        return own
    if own == _NOTHING:
        return wished
    changes = {
        name: value for name in wished.__struct_fields__ if (value := getattr(wished, name)) is not None
    }
    return msgspec.structs.replace(own, **changes)


_NOTHING = Parameters()
