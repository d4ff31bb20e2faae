"""How a team answers: one reply with several calls, handoffs, limits, the caller's own tools."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
import pytest

from proxy.agents.prompt import NOT_EXECUTED
from proxy.errors import ResponseFormatNotMet, UpstreamIncomplete
from proxy.events import (
    ClientToolArguments,
    ClientToolCall,
    Event,
    Handoff,
    ModelCalled,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import (
    AssistantMessage,
    FunctionTool,
    Message,
    NamedToolChoice,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from proxy.providers.model import Finished, ToolCallPiece
from proxy.request_errors import ToolNameTaken
from proxy.teamfiles.definitions import Limits
from proxy.turns.contract import TeamOutcome
from proxy.turns.structured_output import compile_response_format
from tests.fakes.models import USAGE, Reply, ScriptedModel, calls, says
from tests.fakes.teams import SORRY, FixedTool, RememberingSink, agent, team_of, turn_of

HELLO = UserMessage("hello")
WEATHER = FunctionTool("weather", "of a city")


def answers(messages: list[Message]) -> dict[str, str]:
    """Tool results by call id."""
    return {m.tool_call_id: str(m.content) for m in messages if isinstance(m, ToolMessage)}


def results(turn_items: list[Message]) -> list[str]:
    return list(answers(turn_items).values())


async def test_an_agent_that_only_talks_gives_the_answer() -> None:
    model, sink = ScriptedModel(says("Hi there")), RememberingSink()
    team, turn = await team_of(agent("triage", model)), turn_of(HELLO, agent="triage")

    assert await team.answer(turn, sink) == TeamOutcome("stop")
    assert [e.text for e in sink.events if isinstance(e, TextDelta)] == ["Hi ", "there"]
    assert [(i.message, i.agent, i.visible) for i in turn.items] == [
        (AssistantMessage("Hi there"), "triage", True)
    ]
    assert model.requests[0].messages == [SystemMessage("You are triage."), HELLO]


async def test_a_handoff_leaves_a_complete_chain_and_the_next_agent_its_own_instructions() -> None:
    triage = ScriptedModel(calls(("transfer_to_sales", '{"reason": "wants to buy"}'), text="One moment."))
    sales, sink = ScriptedModel(says("What would you like?")), RememberingSink()
    team = await team_of(agent("triage", triage, hands_to=["sales"]), agent("sales", sales))
    turn = turn_of(HELLO, agent="triage")

    assert await team.answer(turn, sink) == TeamOutcome("stop")

    shown = sales.requests[0].messages
    assert shown[0] == SystemMessage("You are sales.")
    requested = shown[2]
    assert isinstance(requested, AssistantMessage)
    assert requested.content == "One moment."
    assert requested.tool_calls is not None
    assert [m.tool_call_id for m in shown if isinstance(m, ToolMessage)] == [requested.tool_calls[0].id]
    assert "You are sales, now the active agent" in results(list(shown))[0]
    assert Handoff("triage", "sales", "wants to buy") in sink.events
    assert turn.agent == "sales"


async def test_results_of_server_tools_are_in_the_order_of_the_calls() -> None:
    shelf, till = FixedTool("shelf", "3 left"), FixedTool("till", SORRY)
    model = ScriptedModel(calls(("till", "{}"), ("shelf", '{"row": 2}')), says("Done"))
    sink = RememberingSink()
    team, turn = await team_of(agent("triage", model, tools=[shelf, till])), turn_of(HELLO, agent="triage")

    await team.answer(turn, sink)

    assert results([i.message for i in turn.items]) == ["error: the shelf is empty", "3 left"]
    assert shelf.calls == [{"row": 2}]
    assert {type(e) for e in sink.events if not isinstance(e, TextDelta | ModelCalled)} == {
        ToolStarted,
        ToolCompleted,
        ToolFailed,
    }
    assert [i.visible for i in turn.items] == [False, False, False, True]


async def test_every_attempt_of_a_call_has_the_same_key_and_every_call_its_own() -> None:
    tool = FixedTool("shelf")
    model = ScriptedModel(calls(("shelf", "{}"), ("shelf", "{}")), calls(("shelf", "{}")), says("Done"))
    team = await team_of(agent("triage", model, tools=[tool]))

    await team.answer(turn_of(HELLO, agent="triage", turn_id="t1"), RememberingSink())

    assert tool.keys == ["t1:1:0", "t1:1:1", "t1:2:0"]


async def test_only_the_first_of_two_delegates_takes_effect() -> None:
    triage = ScriptedModel(calls(("transfer_to_sales", "{}"), ("transfer_to_repairs", "{}")))
    sales = ScriptedModel(says("Yes?"))
    team = await team_of(
        agent("triage", triage, hands_to=["sales", "repairs"]), agent("sales", sales), agent("repairs", sales)
    )
    turn = turn_of(HELLO, agent="triage")

    await team.answer(turn, RememberingSink())

    assert turn.agent == "sales"
    assert "only one transfer" in results([i.message for i in turn.items])[1]


async def test_a_call_of_the_callers_tool_ends_the_turn_and_keeps_what_else_was_done() -> None:
    shelf = FixedTool("shelf", "3 left")
    model = ScriptedModel(
        calls(("shelf", "{}"), ("weather", '{"city": "Bonn"}'), ("transfer_to_sales", "{}"))
    )
    sink = RememberingSink()
    team = await team_of(agent("triage", model, tools=[shelf], hands_to=["sales"]), agent("sales", model))
    turn = turn_of(HELLO, agent="triage")
    turn.client_tools = [WEATHER]

    answered = await team.answer(turn, sink)

    call_events = [e for e in sink.events if isinstance(e, ClientToolCall | ClientToolArguments)]
    first = call_events[0]
    assert isinstance(first, ClientToolCall)
    assert call_events == [
        ClientToolCall(0, first.call_id, "weather"),
        ClientToolArguments(0, '{"city": "Bonn"}'),
    ]
    assert answered == TeamOutcome("tool_calls", (first.call_id,))
    assert results([i.message for i in turn.items]) == [
        "3 left",
        "error: not transferred, because other calls of this reply have to be answered first",
    ]
    assert turn.agent == "triage"


async def test_with_parallel_tool_calls_off_only_one_call_reaches_the_caller() -> None:
    model, sink = ScriptedModel(calls(("weather", "{}"), ("weather", "{}"))), RememberingSink()
    team, turn = await team_of(agent("triage", model)), turn_of(HELLO, agent="triage")
    turn.client_tools, turn.parallel_tool_calls = [WEATHER], False

    answered = await team.answer(turn, sink)

    assert len(answered.pending) == 1
    assert len([e for e in sink.events if isinstance(e, ClientToolCall)]) == 1
    assert model.requests[0].parallel_tool_calls is False


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        pytest.param(("no such tool!", "{}"), "there is no tool named 'no_such_tool_'", id="unknown name"),
        pytest.param(("shelf", '{"row": '), "error:", id="arguments cut off"),
        pytest.param(("shelf", "[1]"), "error:", id="arguments no object"),
    ],
)
async def test_an_invalid_call_gets_an_error_for_the_model(call: tuple[str, str], expected: str) -> None:
    shelf = FixedTool("shelf")
    model = ScriptedModel(calls(call), says("Sorry"))
    team, turn = await team_of(agent("triage", model, tools=[shelf])), turn_of(HELLO, agent="triage")

    assert await team.answer(turn, RememberingSink()) == TeamOutcome("stop")

    assert expected in results([i.message for i in turn.items])[0]
    assert shelf.calls == []
    sent_back = model.requests[1].messages[2]
    assert isinstance(sent_back, AssistantMessage)
    assert sent_back.tool_calls is not None
    function = msgspec.to_builtins(sent_back.tool_calls[0])["function"]
    msgspec.json.decode(function["arguments"])  # some providers refuse a chain that holds broken JSON


async def test_a_reply_cut_at_the_length_limit_runs_nothing() -> None:
    shelf = FixedTool("shelf")
    cut: Reply = [
        TextDelta("Let me"),
        ToolCallPiece(0, name="shelf"),
        ToolCallPiece(0, arguments='{"r'),
        Finished("length"),
    ]
    team = await team_of(agent("triage", ScriptedModel(cut), tools=[shelf]))
    turn = turn_of(HELLO, agent="triage")

    assert await team.answer(turn, RememberingSink()) == TeamOutcome("length")
    assert shelf.calls == []
    assert [i.message for i in turn.items] == [AssistantMessage("Let me")]


async def test_ping_pong_ends_because_delegates_are_withheld_at_the_limit() -> None:
    def hand_over_if_possible(request: object) -> object:
        offered = [tool.name for tool in request.tools]  # type: ignore[attr-defined]
        return calls((offered[0], "{}")) if offered else says("I will answer that myself")

    model = ScriptedModel(choose=hand_over_if_possible)  # type: ignore[arg-type]
    team = await team_of(
        agent("a", model, hands_to=["b"]), agent("b", model, hands_to=["a"]), limits=Limits(max_handoffs=3)
    )
    sink, turn = RememberingSink(), turn_of(HELLO, agent="a")

    assert await team.answer(turn, sink) == TeamOutcome("stop")
    assert len([e for e in sink.events if isinstance(e, Handoff)]) == 3
    assert turn.agent == "b"


@pytest.mark.parametrize(
    ("limits", "model_calls", "tool_calls"),
    [
        (Limits(max_model_calls=4), 4, 8),
        # The user message, then one model reply and two tool results at a time: the seventh message is the limit.
        (Limits(max_messages=7), 2, 4),
        (Limits(max_messages=8), 3, 4),
        (Limits(max_messages=9), 3, 5),
    ],
)
async def test_a_tool_loop_ends_with_length(limits: Limits, model_calls: int, tool_calls: int) -> None:
    shelf = FixedTool("shelf")
    model = ScriptedModel(choose=lambda request: calls(("shelf", "{}"), ("shelf", "{}")))
    team = await team_of(agent("triage", model, tools=[shelf]), limits=limits)

    assert await team.answer(turn_of(HELLO, agent="triage"), RememberingSink()) == TeamOutcome("length")
    assert (len(model.requests), len(shelf.calls)) == (model_calls, tool_calls)


async def test_a_handoff_at_the_limit_ends_with_length() -> None:
    triage, sales = ScriptedModel(calls(("transfer_to_sales", "{}"))), ScriptedModel()
    team = await team_of(
        agent("triage", triage, hands_to=["sales"]), agent("sales", sales), limits=Limits(max_model_calls=1)
    )
    turn = turn_of(HELLO, agent="triage")

    assert await team.answer(turn, RememberingSink()) == TeamOutcome("length")
    assert turn.agent == "sales"
    assert sales.requests == []


async def test_calls_over_the_limit_are_not_run() -> None:
    shelf = FixedTool("shelf")
    model = ScriptedModel(calls(*[("shelf", "{}")] * 5), says("Enough"))
    team = await team_of(agent("triage", model, tools=[shelf]), limits=Limits(max_tool_calls=2))

    await team.answer(turn_of(HELLO, agent="triage"), RememberingSink())

    assert len(shelf.calls) == 2
    assert "the limit of tool calls" in results(list(model.requests[1].messages))[4]


async def test_usage_of_a_failed_call_is_reported() -> None:
    sink = RememberingSink()
    model = ScriptedModel([TextDelta("Hal"), UpstreamIncomplete()])
    team = await team_of(agent("triage", model))
    turn = turn_of(HELLO, agent="triage")

    with pytest.raises(UpstreamIncomplete):
        await team.answer(turn, sink)
    assert [type(e) for e in sink.events] == [TextDelta, ModelCalled]
    assert [i.message for i in turn.items_so_far()] == [AssistantMessage("Hal")]


async def test_a_cancelled_turn_closes_the_model_and_stores_its_output() -> None:
    never, said = asyncio.Event(), asyncio.Event()
    model = ScriptedModel([TextDelta("Hal"), never])

    class Sink(RememberingSink):
        def emit_batch(self, events: Sequence[Event]) -> bool:
            said.set()
            return super().emit_batch(events)

    team, turn = await team_of(agent("triage", model)), turn_of(HELLO, agent="triage")
    answering = asyncio.create_task(team.answer(turn, Sink()))
    await said.wait()
    answering.cancel()

    with pytest.raises(asyncio.CancelledError):
        await answering
    assert model.open == 0
    assert [i.message for i in turn.items_so_far()] == [AssistantMessage("Hal")]


async def test_effects_are_known_from_the_moment_such_a_tool_starts() -> None:
    model = ScriptedModel(calls(("look", "{}")), calls(("buy", "{}")), says("Bought"))
    look, buy = FixedTool("look"), FixedTool("buy", has_effects=True)
    team, turn = await team_of(agent("triage", model, tools=[look, buy])), turn_of(HELLO, agent="triage")

    await team.answer(turn, RememberingSink())

    assert turn.ran_effects


@pytest.mark.parametrize(
    ("policy", "count", "offered"),
    [
        pytest.param("auto", 3, 3, id="auto offers a few"),
        pytest.param("auto", 36, 0, id="auto ignores what a frontend sends uninvited"),
        pytest.param("pass", 36, 36, id="pass offers all"),
        pytest.param("ignore", 3, 0, id="ignore offers none"),
        pytest.param(("tool1",), 3, 1, id="a list offers what it names"),
    ],
)
async def test_an_agent_is_offered_the_callers_tools_by_policy(
    policy: object, count: int, offered: int
) -> None:
    model = ScriptedModel(says("Hi"))
    team = await team_of(agent("triage", model, client_tools=policy))  # type: ignore[arg-type]
    turn = turn_of(HELLO, agent="triage")
    turn.client_tools = [FunctionTool(f"tool{i}") for i in range(count)]

    await team.answer(turn, RememberingSink())

    assert len(model.requests[0].tools) == offered


async def test_tool_choice_reaches_an_agent_that_is_shown_the_tool() -> None:
    choice = NamedToolChoice("weather")
    shown, excluded = ScriptedModel(says("Hi")), ScriptedModel(says("Hi"))
    for model, policy in ((shown, "pass"), (excluded, "ignore")):
        team = await team_of(agent("triage", model, client_tools=policy))  # type: ignore[arg-type]
        turn = turn_of(HELLO, agent="triage")
        turn.client_tools, turn.tool_choice = [WEATHER], choice
        await team.answer(turn, RememberingSink())

    assert (shown.requests[0].tool_choice, excluded.requests[0].tool_choice) == (choice, None)


async def test_a_callers_tool_with_a_taken_name_is_refused() -> None:
    team = await team_of(agent("triage", ScriptedModel(), tools=[FixedTool("shelf")], hands_to=["sales"]))

    with pytest.raises(ToolNameTaken) as rejected:
        team.check_client_tools([WEATHER, FunctionTool("shelf")])
    assert (rejected.value.index, rejected.value.name, rejected.value.team) == (1, "shelf", "shop")


async def test_calls_without_an_answer_are_closed_in_what_the_model_sees() -> None:
    model = ScriptedModel(says("Never mind"))
    requested = msgspec.convert(
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        AssistantMessage,
    )
    team = await team_of(agent("triage", model))

    await team.answer(turn_of(HELLO, requested, UserMessage("well?"), agent="triage"), RememberingSink())

    assert answers(list(model.requests[0].messages)) == {"c1": NOT_EXECUTED}


async def test_the_turn_ends_with_length_when_its_tokens_are_used_up() -> None:
    model = ScriptedModel(choose=lambda request: calls(("shelf", "{}"), usage=USAGE))
    team = await team_of(
        agent("triage", model, tools=[FixedTool("shelf")]), limits=Limits(max_output_tokens=12)
    )

    assert await team.answer(turn_of(HELLO, agent="triage"), RememberingSink()) == TeamOutcome("length")
    assert len(model.requests) == 3


JSON_FORM = {
    "type": "json_schema",
    "json_schema": {"name": "price", "schema": {"type": "object", "required": ["price"]}},
}


async def test_text_next_to_a_call_is_not_part_of_a_structured_answer() -> None:
    triage = ScriptedModel(calls(("transfer_to_sales", "{}"), text="One moment."))
    sales, sink = ScriptedModel(says('{"price": 10}')), RememberingSink()
    team = await team_of(agent("triage", triage, hands_to=["sales"]), agent("sales", sales))
    turn = turn_of(HELLO, agent="triage")
    turn.response_format = await compile_response_format(JSON_FORM)

    assert await team.answer(turn, sink) == TeamOutcome("stop")
    assert "".join(e.text for e in sink.events if isinstance(e, TextDelta)) == '{"price": 10}'


@pytest.mark.parametrize("said", ["Ten dollars", '{"cost": 10}', '```json\n{"price": 10}\n```', ""])
async def test_free_text_never_leaves_as_a_structured_answer(said: str) -> None:
    team = await team_of(agent("triage", ScriptedModel(says(said))))
    turn = turn_of(HELLO, agent="triage")
    turn.response_format = await compile_response_format(JSON_FORM)

    with pytest.raises(ResponseFormatNotMet):
        await team.answer(turn, RememberingSink())


async def test_a_structured_answer_that_was_cut_says_so_by_its_finish_reason() -> None:
    team = await team_of(agent("triage", ScriptedModel(says('{"pri', reason="length"))))
    turn = turn_of(HELLO, agent="triage")
    turn.response_format = await compile_response_format(JSON_FORM)

    assert await team.answer(turn, RememberingSink()) == TeamOutcome("length")
