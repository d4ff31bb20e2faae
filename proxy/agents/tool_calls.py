"""Calls of the server's own tools: run under their limits, or put before a person first."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from proxy.agents import approval_calls
from proxy.agents.prompt import assistant_message, state_of_repeated
from proxy.agents.turn_state import Agent, Call, Floor, clean_name, new_call_id, wire_call
from proxy.events import ApprovalRequested, TextDelta, ToolCompleted, ToolFailed, ToolStarted
from proxy.messages import AssistantMessage, Item, ToolMessage, UserMessage
from proxy.tools.execution import CallResult, PreparedCall, mistake_in, run_calls
from proxy.tools.port import ToolContext
from proxy.turns.contract import RUN_UNKNOWN, ApprovalRequest, Opening, OpeningCall, Runs

SHORT = 1000
"""Characters of arguments and results that events carry; the whole goes to the model."""
_TOO_MANY = "error: the limit of tool calls is reached; answer with what is known"


def no_tool(name: str) -> str:
    """Return the result of a call of something that is not there."""
    return f"error: there is no tool named {clean_name(name)!r}"


def tell(floor: Floor, agent: Agent, call_id: str, result: str) -> None:
    """Keep the result of a call."""
    floor.turn.items.append(Item(ToolMessage(call_id, result), agent=agent.name, visible=False))


class ServerCalls:
    """Those of one agent; like the agent, it holds no state of any turn."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.specs = {
            name: approval_calls.told_to_the_model(tool.spec) if name in agent.approvals else tool.spec
            for name, tool in agent.tools.items()
        }
        """The tools as the model is told of them, by name."""

    async def run(self, floor: Floor, calls: Sequence[Call]) -> dict[str, str]:
        """Run those calls that are the server's and need nobody's word; return their results by id."""
        runnable: list[tuple[Call, PreparedCall]] = []
        answers: dict[str, str] = {}
        for index, call in enumerate(calls):
            if call.kind != "server":
                continue
            if floor.tool_calls >= floor.limits.max_tool_calls:
                answers[call.id] = _TOO_MANY
                continue
            floor.tool_calls += 1
            key = f"{floor.turn.id}:{floor.model_calls}:{index}"
            runnable.append((call, self._prepare(floor, call, key)))
        return answers | await self._run(floor, runnable)

    def unasked(self, floor: Floor, calls: Sequence[Call], *, client_is_asked: bool) -> dict[str, str]:
        """Return the results of those calls that need a person's word and about which nobody will be asked."""
        results: dict[str, str] = {}
        for call in calls:
            if call.kind != "approval":
                continue
            if client_is_asked:
                results[call.id] = (
                    "error: not executed, because other calls have to be answered first; repeat it then"
                )
            elif not floor.turn.may_ask:
                results[call.id] = approval_calls.not_asked(approval_calls.NOT_KEPT)
            elif floor.form is not None:
                results[call.id] = approval_calls.not_asked(approval_calls.HAS_FORM)
            elif mistake := mistake_in("".join(call.arguments)):
                results[call.id] = f"error: {mistake}"
            elif floor.tool_calls >= floor.limits.max_tool_calls:
                results[call.id] = _TOO_MANY
            else:
                floor.tool_calls += 1
        return results

    def ask(self, floor: Floor, calls: Sequence[Call]) -> tuple[ApprovalRequest, ...]:
        """Put calls before a person, in words; return what was asked."""
        requests = tuple(
            ApprovalRequest(
                f"appr_{secrets.token_hex(16)}", call.id, call.name, "".join(call.arguments) or "{}"
            )
            for call in calls
        )
        question = approval_calls.question(requests)
        floor.sink.emit(TextDelta(question))
        for request in requests:
            shown = request.arguments[:SHORT]
            floor.sink.emit(ApprovalRequested(request.id, request.call_id, request.tool, shown))
        floor.turn.items.append(Item(AssistantMessage(content=question), agent=self.agent.name))
        return requests

    async def take_up(self, floor: Floor, opening: Opening) -> None:
        """Do what was decided about calls of an earlier turn: make them again, under new ids.

        Raises:
            StoreUnavailable: It could not be noted that one of them runs.
        """
        calls = [
            (made, Call(new_call_id(), made.name, "server", arguments=[made.arguments]))
            for made in opening.calls
        ]
        ids = {made.approval_id: call.id for made, call in calls}
        for decided in opening.decided:
            call_id = ids.get(decided.approval_id, decided.call_id)
            floor.sink.emit(msgspec.structs.replace(decided, call_id=call_id))
        if opening.note:
            floor.turn.items.append(Item(UserMessage(opening.note), agent=self.agent.name, visible=False))
        if not calls:
            return
        message = assistant_message("", "", [wire_call(call) for _, call in calls])
        state = state_of_repeated(message, floor.turn.context)
        floor.turn.items.append(Item(message, agent=self.agent.name, visible=False, state=state))
        results = await self._run_approved(floor, calls, opening.runs)
        for made, call in calls:
            result = results.get(call.id, no_tool(call.name)) if made.result is None else made.result
            tell(floor, self.agent, call.id, result)

    async def _run_approved(
        self, floor: Floor, calls: Sequence[tuple[OpeningCall, Call]], runs: Runs | None
    ) -> dict[str, str]:
        results: dict[str, str] = {}
        runnable: list[tuple[Call, PreparedCall]] = []
        for made, call in calls:
            if made.result is not None or runs is None or call.name not in self.agent.tools:
                continue
            if not await runs.begin(made.approval_id):
                results[call.id] = RUN_UNKNOWN
                continue
            floor.tool_calls += 1
            # The key is the approval's id, in whichever turn and attempt the call is run.
            runnable.append((call, self._prepare(floor, call, made.approval_id)))

        async def note(at: int, result: CallResult) -> None:
            assert runs is not None
            await runs.end(runnable[at][1].context.call_key, result.text)

        return results | await self._run(floor, runnable, note)

    # --- running ---

    async def _run(
        self,
        floor: Floor,
        runnable: Sequence[tuple[Call, PreparedCall]],
        note: Callable[[int, CallResult], Awaitable[None]] | None = None,
    ) -> dict[str, str]:
        """Run calls side by side and return their results by id; ``note`` is awaited for each that has ended."""
        if not runnable:
            return {}
        floor.turn.ran_effects = floor.turn.ran_effects or any(c.tool.has_effects for _, c in runnable)

        def started(at: int) -> None:
            call, prepared = runnable[at]
            shown = prepared.arguments[:SHORT]
            floor.sink.emit(ToolStarted(call.id, call.name, shown, self.agent.name))

        def done(at: int, result: CallResult) -> None:
            call, _ = runnable[at]
            shown = result.text[:SHORT]
            if result.is_error:
                floor.sink.emit(ToolFailed(call.id, call.name, shown, result.seconds))
            else:
                floor.sink.emit(ToolCompleted(call.id, call.name, shown, result.seconds))

        results = await run_calls(
            [prepared for _, prepared in runnable],
            max_parallel=self.agent.max_parallel_tools,
            on_started=started,
            on_done=done,
            after=note,
        )
        return {call.id: result.text for (call, _), result in zip(runnable, results, strict=True)}

    def _prepare(self, floor: Floor, call: Call, key: str) -> PreparedCall:
        turn = floor.turn
        context = ToolContext(
            call_key=key,
            turn_id=turn.id,
            conversation_id=turn.conversation_id,
            caller=turn.caller,
            agent=self.agent.name,
            data_dir=floor.data_dir,
        )
        return PreparedCall(
            tool=self.agent.tools[call.name],
            arguments="".join(call.arguments),
            context=context,
            time_limit=self.agent.tool_call_timeout,
            max_result_bytes=floor.max_tool_result_bytes,
        )
