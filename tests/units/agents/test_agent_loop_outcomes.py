"""The outcome of one run of the agent loop, the results of calls that are not run, and the stored messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from proxy.agents.agent import Delegation
from proxy.agents.agent_loop import (
    AgentAnswered,
    AgentHandedOff,
    AgentLoop,
    ApprovalPending,
    ToolResultsPending,
)
from proxy.agents.approval_question import WAITING
from proxy.agents.turn_state import DelegateJob, TurnState
from proxy.errors import ResponseFormatNotMet
from proxy.events import Handoff, RefusalDelta, TextDelta
from proxy.messages import (
    AssistantMessage,
    FinishReason,
    FunctionTool,
    Message,
    ProviderState,
    ToolMessage,
    UserMessage,
)
from proxy.providers.capabilities import Abilities
from proxy.providers.model import Finished, ModelDelta, ToolCallPiece
from proxy.teamfiles.definitions import Limits
from proxy.turns.contract import TeamOutcome
from proxy.turns.structured_output import compile_response_format
from tests.fakes.models import USAGE, Reply, ScriptedModel, calls, says
from tests.fakes.teams import FixedTool, RememberingSink, agent, turn_of

WEATHER = FunctionTool("weather", "of a city")
STATE = ProviderState("scripted", members={"reasoning_content": "hm"})


def state_of(
    *, limits: Limits | None = None, client_tools: tuple[FunctionTool, ...] = (), **changes: Any
) -> TurnState:
    turn = turn_of(UserMessage("hello"), agent="triage")
    turn.client_tools = list(client_tools)
    for name, value in changes.items():
        setattr(turn, name, value)
    return TurnState("shop", turn, RememberingSink(), limits or Limits(), Path())


def results_of(state: TurnState) -> list[str]:
    messages: list[Message] = [item.message for item in state.turn.items]
    return [str(message.content) for message in messages if isinstance(message, ToolMessage)]


def call_deltas(
    reason: FinishReason, *, text: str = "", provider_state: ProviderState | None = None
) -> list[ModelDelta]:
    """One call of the tool ``shelf``."""
    deltas: list[ModelDelta] = [TextDelta(text)] if text else []
    return [
        *deltas,
        ToolCallPiece(0, name="shelf", call_id="1", arguments="{}"),
        Finished(reason, USAGE, state=provider_state),
    ]


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [("stop", "stop"), ("tool_calls", "stop"), ("length", "length"), ("content_filter", "content_filter")],
)
async def test_an_answer_has_its_finish_reason(reason: FinishReason, outcome: FinishReason) -> None:
    state = state_of()

    found = await AgentLoop(agent("triage", ScriptedModel(says("Hi", reason=reason)))).run(state)

    assert found == AgentAnswered(outcome)
    (item,) = state.turn.items
    assert (item.message, item.agent, item.visible) == (AssistantMessage("Hi"), "triage", True)
    assert state.turn.draft == []


async def test_a_refusal_is_a_visible_message() -> None:
    state = state_of()
    model = ScriptedModel([RefusalDelta("I "), RefusalDelta("cannot"), Finished("stop", USAGE)])

    assert await AgentLoop(agent("triage", model)).run(state) == AgentAnswered("stop")

    (item,) = state.turn.items
    assert (item.message, item.visible) == (AssistantMessage(None, refusal="I cannot"), True)


@pytest.mark.parametrize("text", ["", "Let me see"])
async def test_a_message_with_only_server_calls_is_hidden_unless_it_has_text(text: str) -> None:
    state, tool = state_of(), FixedTool("shelf", "3 rockets")
    model = ScriptedModel(call_deltas("tool_calls", text=text, provider_state=STATE), says("Three"))

    assert await AgentLoop(agent("triage", model, tools=[tool])).run(state) == AgentAnswered("stop")

    first, result, answer = state.turn.items
    assert isinstance(first.message, AssistantMessage)
    assert isinstance(result.message, ToolMessage)
    assert (first.visible, result.visible, answer.visible) == (bool(text), False, True)
    assert (first.state, answer.state) == (STATE, None)
    assert [call.id for call in first.message.tool_calls or ()] == [result.message.tool_call_id]
    assert results_of(state) == ["3 rockets"]


async def test_calls_of_a_truncated_reply_are_discarded_with_their_provider_state() -> None:
    state, tool = state_of(), FixedTool("shelf")
    model = ScriptedModel(call_deltas("length", text="So", provider_state=STATE))

    assert await AgentLoop(agent("triage", model, tools=[tool])).run(state) == AgentAnswered("length")

    (item,) = state.turn.items
    assert (item.message, item.state, tool.calls) == (AssistantMessage("So"), None, [])


async def test_an_answer_without_calls_has_its_provider_state() -> None:
    state = state_of()
    model = ScriptedModel([TextDelta("Hi"), Finished("stop", USAGE, state=STATE)])

    await AgentLoop(agent("triage", model)).run(state)

    assert [item.state for item in state.turn.items] == [STATE]


async def test_a_handoff_names_the_next_agent_and_its_reason() -> None:
    state = state_of()
    model = ScriptedModel(calls(("transfer_to_sales", '{"reason": "wants a rocket"}')))

    found = await AgentLoop(agent("triage", model, hands_to=["sales"])).run(state)

    assert found == AgentHandedOff("sales")
    assert (state.turn.agent, state.handoffs) == ("sales", 1)
    assert isinstance(state.sink, RememberingSink)
    assert [event for event in state.sink.events if isinstance(event, Handoff)] == [
        Handoff("triage", "sales", "wants a rocket")
    ]


async def test_a_second_handoff_of_a_reply_is_an_error() -> None:
    state = state_of()
    model = ScriptedModel(calls(("transfer_to_sales", "{}"), ("transfer_to_repairs", "{}")))

    found = await AgentLoop(agent("triage", model, hands_to=["sales", "repairs"])).run(state)

    assert found == AgentHandedOff("sales")
    assert results_of(state)[1] == "error: not transferred, because only one transfer at a time is possible"


async def test_a_handoff_over_the_limit_is_an_error_for_the_model() -> None:
    state = state_of(limits=Limits(max_handoffs=0))
    model = ScriptedModel(calls(("transfer_to_sales", "{}")), says("I answer"))

    found = await AgentLoop(agent("triage", model, hands_to=["sales"])).run(state)

    assert found == AgentAnswered("stop")
    assert results_of(state) == ["error: no further transfers in this turn; answer the user yourself"]
    assert [request.tools for request in model.requests] == [(), ()]


class RemoteTool(FixedTool):
    """A tool whose server can become unavailable."""

    is_offered = True


@pytest.mark.parametrize("remote", [None, True, False], ids=["no remote tool", "available", "unavailable"])
@pytest.mark.parametrize("has_delegate", [False, True])
@pytest.mark.parametrize("can_delegate", [False, True])
@pytest.mark.parametrize("max_handoffs", [0, 1])
async def test_a_model_gets_the_tools_delegates_and_handoffs_that_it_can_call_now(
    remote: bool | None, has_delegate: bool, can_delegate: bool, max_handoffs: int
) -> None:
    async def run(job: DelegateJob) -> TeamOutcome:
        raise AssertionError

    tools = [FixedTool("shelf"), *([RemoteTool("remote")] if remote is not None else [])]
    delegates = {"ask_expert": Delegation(FunctionTool("ask_expert"), "expert")} if has_delegate else {}
    model, state = ScriptedModel(says("Hi")), state_of(limits=Limits(max_handoffs=max_handoffs))
    state.run_delegate = run if can_delegate else None
    loop = AgentLoop(replace(agent("triage", model, tools=tools, hands_to=["sales"]), delegations=delegates))
    # After the loop was made: it can change at any time.
    if isinstance(tools[-1], RemoteTool):
        tools[-1].is_offered = remote is True

    await loop.run(state)

    expected = [
        "shelf",
        *(["remote"] if remote else []),
        *(["ask_expert"] if has_delegate and can_delegate else []),
        *(["transfer_to_sales"] if max_handoffs else []),
    ]
    assert [[tool.name for tool in request.tools] for request in model.requests] == [expected]


async def test_a_call_of_a_client_tool_is_pending_and_prevents_a_handoff() -> None:
    state, tool = state_of(client_tools=(WEATHER,)), FixedTool("shelf", "3 rockets")
    model = ScriptedModel(
        calls(("weather", "{}"), ("transfer_to_sales", "{}"), ("shelf", "{}"), ("weather", "{}"))
    )

    found = await AgentLoop(agent("triage", model, tools=[tool], hands_to=["sales"])).run(state)

    message = state.turn.items[0].message
    assert isinstance(message, AssistantMessage)
    ids = [call.id for call in message.tool_calls or ()]
    assert found == ToolResultsPending((ids[0], ids[3]))
    assert results_of(state) == [
        "error: not transferred, because other calls of this reply have to be answered first",
        "3 rockets",
    ]
    assert (state.turn.agent, state.handoffs, state.turn.items[0].visible) == ("triage", 0, True)


async def test_a_second_client_call_without_parallel_tool_calls_is_an_error() -> None:
    state = state_of(client_tools=(WEATHER,), parallel_tool_calls=False)

    found = await AgentLoop(agent("triage", ScriptedModel(calls(("weather", "{}"), ("weather", "{}"))))).run(
        state
    )

    assert isinstance(found, ToolResultsPending)
    assert len(found.pending) == 1
    assert results_of(state) == ["error: not executed, because only one call at a time is allowed"]


async def test_a_call_that_needs_approval_ends_the_run_and_prevents_a_handoff() -> None:
    state, tool = state_of(may_ask=True), FixedTool("shelf", has_effects=True)
    model = ScriptedModel(calls(("transfer_to_sales", "{}"), ("shelf", "{}")))

    found = await AgentLoop(
        agent("triage", model, tools=[tool], hands_to=["sales"], approvals=["shelf"])
    ).run(state)

    assert isinstance(found, ApprovalPending)
    assert [(request.tool, request.arguments) for request in found.requests] == [("shelf", "{}")]
    assert results_of(state) == [
        "error: not transferred, because other calls of this reply have to be answered first",
        WAITING,
    ]
    assert tool.calls == []


@pytest.mark.parametrize(
    ("limit", "outcome", "model_calls"), [(4, "length", 1), (5, "length", 1), (6, "stop", 2)]
)
async def test_the_run_ends_after_the_call_that_reaches_the_token_limit(
    limit: int, outcome: FinishReason, model_calls: int
) -> None:
    assert USAGE.completion == 5
    state = state_of(limits=Limits(max_output_tokens=limit))
    model = ScriptedModel(calls(("shelf", "{}")), says("Three"))

    found = await AgentLoop(agent("triage", model, tools=[FixedTool("shelf")])).run(state)

    assert (found, len(model.requests)) == (AgentAnswered(outcome), model_calls)


SCHEMA = {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}}


@pytest.mark.parametrize("reason", ["stop", "tool_calls"])
async def test_a_complete_answer_that_does_not_match_the_response_format_is_an_error(
    reason: FinishReason,
) -> None:
    state = state_of(response_format=await compile_response_format(SCHEMA))

    with pytest.raises(ResponseFormatNotMet):
        await AgentLoop(agent("triage", ScriptedModel(says("no JSON", reason=reason)))).run(state)
    assert state.turn.items == []


@pytest.mark.parametrize("text", ['{"a": 1}', "{}"])
async def test_an_answer_that_matches_the_response_format_is_accepted(text: str) -> None:
    state = state_of(response_format=await compile_response_format(SCHEMA))

    assert await AgentLoop(agent("triage", ScriptedModel(says(text)))).run(state) == AgentAnswered("stop")


async def test_incomplete_answers_and_refusals_are_not_compared_with_the_response_format() -> None:
    refusal: Reply = [RefusalDelta("I cannot"), Finished("stop", USAGE)]
    for reply in (says("no", reason="length"), refusal):
        state = state_of(response_format=await compile_response_format(SCHEMA))
        found = await AgentLoop(agent("triage", ScriptedModel(reply))).run(state)
        assert isinstance(found, AgentAnswered)


def test_a_prediction_is_not_supported_with_tools() -> None:
    model = ScriptedModel(abilities=Abilities())
    supports = [
        "prediction" in AgentLoop(one).abilities.parameters
        for one in (
            agent("a", model),
            agent("b", model, tools=[FixedTool("shelf")]),
            agent("c", model, hands_to=["a"]),
        )
    ]
    assert supports == [True, False, False]


def test_client_tools_with_names_of_the_agent_are_collisions() -> None:
    loop = AgentLoop(agent("a", ScriptedModel(), tools=[FixedTool("shelf")], hands_to=["sales"]))
    tools = [WEATHER, FunctionTool("shelf"), FunctionTool("transfer_to_sales")]

    assert list(loop.client_tools(tools, 3)) == tools
    assert loop.collisions(tools, 3) == ["shelf", "transfer_to_sales"]
    assert loop.collisions(tools, 2) == []
