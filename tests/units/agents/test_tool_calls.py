"""How an agent asks a person about its calls, and what it does with a decision."""

from __future__ import annotations

import pytest

from proxy.agents.approval_question import WAITING
from proxy.errors import StoreUnavailable
from proxy.events import (
    ApprovalDecided,
    ApprovalRequested,
    ModelCalled,
    TextDelta,
    ToolCompleted,
    ToolFailed,
    ToolStarted,
)
from proxy.messages import AssistantMessage, FunctionCall, Item, ToolCall, ToolMessage, UserMessage
from proxy.teamfiles.definitions import Limits
from proxy.turns.contract import TeamOutcome
from proxy.turns.turn import RUN_UNKNOWN, ApprovalContinuation, ApprovalRequest, ContinuationCall, Turn
from tests.fakes.models import ScriptedModel, calls, says
from tests.fakes.teams import SORRY, FixedTool, RememberingSink, agent, team_of, turn_of

PAY = "Pay, please."


class Account:
    """Keeps account of runs, and of their order."""

    def __init__(self, *, knows: tuple[str, ...] = (), fails: bool = False) -> None:
        self.seen: list[str] = []
        self._knows = knows
        self._fails = fails

    async def begin(self, approval_id: str) -> bool:
        if self._fails:
            raise StoreUnavailable
        self.seen.append(f"begin {approval_id}")
        return approval_id not in self._knows

    async def end(self, approval_id: str, result: str) -> None:
        self.seen.append(f"end {approval_id}: {result}")


def pending(*said: str) -> Turn:
    turn = turn_of(*map(UserMessage, said), agent="cashier")
    turn.may_ask = True
    return turn


def results(turn: Turn) -> list[str]:
    return [str(item.message.content) for item in turn.items if isinstance(item.message, ToolMessage)]


# --- asking --------------------------------------------------------------------------------------------------


async def test_the_approval_request_follows_the_call_which_does_not_run() -> None:
    pay, sink, turn = FixedTool("pay"), RememberingSink(), pending(PAY)
    model = ScriptedModel(calls(("pay", '{"amount": 7}'), text="Of course."))
    team = await team_of(agent("cashier", model, tools=[pay], approvals=["pay"]))

    answered = await team.answer(turn, sink)

    (request,) = answered.approvals
    assert answered == TeamOutcome("stop", approvals=(request,))
    assert request == ApprovalRequest(request.id, request.call_id, "pay", '{"amount": 7}')
    question = f"Approval {request.id[5:11]}: shall I run `pay(amount: 7)`? Reply yes or no."
    assert turn.items == [
        Item(
            AssistantMessage(
                "Of course.", tool_calls=[ToolCall(request.call_id, FunctionCall("pay", '{"amount": 7}'))]
            ),
            "cashier",
        ),
        Item(ToolMessage(request.call_id, WAITING), "cashier", visible=False),
        Item(AssistantMessage(question), "cashier"),
    ]
    assert [type(event) for event in sink.events][-3:] == [ModelCalled, TextDelta, ApprovalRequested]
    assert sink.events[-1] == ApprovalRequested(request.id, request.call_id, "pay", '{"amount": 7}')
    assert (pay.calls, turn.ran_effects) == ([], False)


async def test_no_more_calls_need_approval_than_may_be_made() -> None:
    pay, turn = FixedTool("pay"), pending(PAY)
    model = ScriptedModel(calls(*[("pay", "{}")] * 4))
    cashier = agent("cashier", model, tools=[pay], approvals=["pay"])
    team = await team_of(cashier, limits=Limits(max_tool_calls=2))

    answered = await team.answer(turn, RememberingSink())

    assert len(answered.approvals) == 2
    assert results(turn)[:2] == [WAITING, WAITING]
    assert all("the limit of tool calls is reached" in result for result in results(turn)[2:])


async def test_a_call_without_arguments_is_submitted_for_approval_without_any() -> None:
    turn = pending(PAY)
    model = ScriptedModel(calls(("pay", "")))
    team = await team_of(agent("cashier", model, tools=[FixedTool("pay")], approvals=["pay"]))

    (request,) = (await team.answer(turn, RememberingSink())).approvals

    assert request.arguments == "{}"
    assert "`pay()`" in str(turn.items[-1].message.content)


async def test_a_call_that_was_cut_off_is_neither_run_nor_submitted_for_approval() -> None:
    turn = pending(PAY)
    cut = [*calls(("pay", '{"amount": 70'))[:-1], *says("", reason="length")[-1:]]
    team = await team_of(agent("cashier", ScriptedModel(cut), tools=[FixedTool("pay")], approvals=["pay"]))

    assert await team.answer(turn, RememberingSink()) == TeamOutcome("length")


# --- continuation --------------------------------------------------------------------------------------------


def decided(
    *calls: ContinuationCall, runs: Account | None = None, note: str = "Yes."
) -> ApprovalContinuation:
    events = [ApprovalDecided(call.approval_id, "call_old", call.name, "approve", "api") for call in calls]
    return ApprovalContinuation(events, note, calls, runs)


async def test_the_call_is_made_again_under_a_new_id_and_noted_before_and_behind() -> None:
    pay, account, sink = FixedTool("pay", "paid", has_effects=True), Account(), RememberingSink()
    turn = pending(PAY)
    turn.continuation = decided(ContinuationCall("appr_1", "pay", '{"amount": 7}'), runs=account)
    model = ScriptedModel(says("Paid."))
    team = await team_of(agent("cashier", model, tools=[pay], approvals=["pay"]))

    assert await team.answer(turn, sink) == TeamOutcome("stop")

    note, created, result, answer = turn.items
    assert note == Item(UserMessage("Yes."), "cashier", visible=False)
    assert isinstance(created.message, AssistantMessage)
    assert created.message.tool_calls is not None
    (call,) = created.message.tool_calls
    assert call == ToolCall(call.id, FunctionCall("pay", '{"amount": 7}'))
    assert call.id != "call_old"
    assert (created.visible, result) == (False, Item(ToolMessage(call.id, "paid"), "cashier", visible=False))
    assert answer == Item(AssistantMessage("Paid."), "cashier")
    assert account.seen == ["begin appr_1", "end appr_1: paid"]
    assert pay.keys == ["appr_1"]
    assert turn.ran_effects
    assert sink.events[0] == ApprovalDecided("appr_1", call.id, "pay", "approve", "api")
    assert [type(event) for event in sink.events[1:3]] == [ToolStarted, ToolCompleted]
    assert model.requests[0].messages[-3:] == [note.message, created.message, result.message]


async def test_a_known_result_is_returned_without_running_the_call() -> None:
    pay, account, sink, turn = FixedTool("pay"), Account(), RememberingSink(), pending(PAY)
    turn.continuation = decided(ContinuationCall("appr_1", "pay", "{}", ""), runs=account, note="")
    model = ScriptedModel(says("Paid."))
    team = await team_of(agent("cashier", model, tools=[pay], approvals=["pay"]))

    await team.answer(turn, sink)

    assert results(turn) == [""]
    assert (pay.calls, account.seen, turn.ran_effects) == ([], [], False)
    assert not any(isinstance(event, ToolStarted) for event in sink.events)


async def test_a_call_with_unknown_outcome_is_not_repeated_and_reported() -> None:
    pay, turn = FixedTool("pay"), pending(PAY)
    account = Account(knows=("appr_1",))
    turn.continuation = decided(
        ContinuationCall("appr_1", "pay", "{}"), ContinuationCall("appr_2", "pay", "{}"), runs=account
    )
    team = await team_of(agent("cashier", ScriptedModel(says("Hm.")), tools=[pay], approvals=["pay"]))

    await team.answer(turn, RememberingSink())

    assert results(turn) == [RUN_UNKNOWN, "done"]
    assert pay.keys == ["appr_2"]


async def test_a_run_that_cannot_be_noted_does_not_happen() -> None:
    pay, turn = FixedTool("pay"), pending(PAY)
    turn.continuation = decided(ContinuationCall("appr_1", "pay", "{}"), runs=Account(fails=True))
    team = await team_of(agent("cashier", ScriptedModel(), tools=[pay], approvals=["pay"]))

    with pytest.raises(StoreUnavailable):
        await team.answer(turn, RememberingSink())
    assert pay.calls == []


async def test_a_failed_approved_call_is_reported() -> None:
    sink, account, turn = RememberingSink(), Account(), pending(PAY)
    turn.continuation = decided(ContinuationCall("appr_1", "pay", "{}"), runs=account)
    pay = FixedTool("pay", SORRY)
    team = await team_of(agent("cashier", ScriptedModel(says("Sorry.")), tools=[pay], approvals=["pay"]))

    await team.answer(turn, sink)

    assert results(turn) == ["error: the shelf is empty"]
    assert account.seen[-1] == "end appr_1: error: the shelf is empty"
    assert any(isinstance(event, ToolFailed) for event in sink.events)


async def test_a_decision_is_applied_once_also_after_a_handoff() -> None:
    pay, turn = FixedTool("pay"), pending(PAY)
    turn.continuation = decided(ContinuationCall("appr_1", "pay", "{}"), runs=Account())
    cashier = agent(
        "cashier",
        ScriptedModel(calls(("transfer_to_clerk", "{}"))),
        tools=[pay],
        approvals=["pay"],
        hands_to=["clerk"],
    )
    team = await team_of(cashier, agent("clerk", ScriptedModel(says("Hello"))))

    await team.answer(turn, RememberingSink())

    assert len(pay.calls) == 1
    assert turn.continuation is None
