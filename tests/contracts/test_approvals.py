"""What every ``Approvals`` promises: in memory, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from proxy.approvals.repository import (
    MAX_ATTEMPTS,
    Approval,
    ApprovalQuery,
    Approvals,
    ApprovalsMoved,
    ApprovalStatus,
    ApprovalUpdate,
    DecisionRecord,
)
from proxy.conversations.repository import ConversationRepository
from proxy.errors import ConversationBusy
from proxy.messages import AssistantMessage, FunctionCall, Item, ToolCall
from proxy.store.turns import open_history
from proxy.turns.records import Begun, NewApproval, Pause
from proxy.turns.repository import IdempotencyKeyTaken, TurnRepository
from proxy.wire.validation.query_params import ListQuery
from tests.fakes.store.conversations import MemoryLibrary
from tests.fakes.store.turns import MemoryHistory
from tests.fakes.turn_records import approvals_of, new_turn, the_end


@dataclass
class Store:
    history: TurnRepository
    approvals: Approvals
    library: ConversationRepository


@pytest.fixture(params=["memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    if request.param == "memory":
        memory = MemoryHistory()
        yield Store(memory, approvals_of(memory), MemoryLibrary(memory))
        return
    history = open_history(request.getfixturevalue(f"{request.param}_database"))
    yield Store(history, history.approvals, history.library)
    await history.close()


def pause(*ids: str) -> Pause:
    return Pause(
        [NewApproval(one, f"call_{one}", "pay", '{"amount": 7}') for one in ids], b'{"max_tool_calls":3}'
    )


CALL = Item(
    AssistantMessage(None, tool_calls=[ToolCall("call_appr_1", FunctionCall("pay", "{}"))]), "sales", False
)


async def paused(
    store: Store, *ids: str, conversation: str = "conv_a", begin: Any = None, **end: Any
) -> Begun:
    """A turn of alice's that asks for approvals."""
    begun = await store.history.begin(
        new_turn(conversation, **{"id": f"chatcmpl-of-{ids[0]}", **(begin or {})})
    )
    assert await store.history.finish(the_end(begun.turn, pause=pause(*ids), items=[CALL], **end))
    return begun


def resume(begun: Begun, *decisions: DecisionRecord, stood: Any = None, **more: Any) -> ApprovalUpdate:
    known = {decision.approval_id: None for decision in decisions} if stood is None else stood
    return ApprovalUpdate(begun.turn, decisions, known, more.pop("seen", None), **more)


def yes(approval_id: str = "appr_1", **more: Any) -> DecisionRecord:
    return DecisionRecord(
        **{"approval_id": approval_id, "is_approved": True, "by": "api", "decided_at": 120.0, **more}
    )


def no(approval_id: str = "appr_1", **more: Any) -> DecisionRecord:
    return yes(approval_id, is_approved=False, **more)


def follower(begun: Begun, turn_id: str = "chatcmpl-2", **more: Any) -> Any:
    return new_turn(
        **{
            "id": turn_id,
            "parent": begun.turn,
            "input": [],
            "created_at": 120.0,
            "lease_until": 150.0,
            **more,
        }
    )


async def statuses(store: Store, begun: Begun) -> list[ApprovalStatus]:
    return [one.status for one in await store.approvals.of_turn(begun.turn)]


# --- asking --------------------------------------------------------------------------------------------------


async def test_approvals_are_stored_with_the_end_of_the_turn(store: Store) -> None:
    begun = await paused(store, "appr_1", "appr_2", begin={"end_user": "erin"})

    first, second = await store.approvals.of_turn(begun.turn)
    assert first == Approval(
        id="appr_1",
        conversation_id="conv_a",
        end_user="erin",
        turn=begun.turn,
        turn_id="chatcmpl-of-appr_1",
        model="acme-support",
        agent="sales",
        call_id="call_appr_1",
        tool="pay",
        arguments='{"amount": 7}',
        status="pending",
        is_head=True,
        created_at=110.0,
    )
    assert (second.id, first.is_open) == ("appr_2", True)
    assert await store.approvals.find("alice", "appr_1") == first
    assert await store.approvals.circumstances(begun.turn) == b'{"max_tool_calls":3}'
    (reported,) = await store.history.chain(begun.turn)
    assert reported.is_paused


async def test_other_turns_ask_for_nothing(store: Store) -> None:
    begun = await store.history.begin(new_turn())
    await store.history.finish(the_end(begun.turn))

    assert await store.approvals.of_turn(begun.turn) == []
    assert await store.approvals.circumstances(begun.turn) is None
    (reported,) = await store.history.chain(begun.turn)
    assert not reported.is_paused


async def test_a_turn_without_content_keeps_no_calls_either(store: Store) -> None:
    begun = await paused(store, "appr_1", begin={"is_stored": False})

    assert await store.approvals.of_turn(begun.turn) == []


async def test_an_end_that_is_written_twice_asks_once(store: Store) -> None:
    begun = await store.history.begin(new_turn())
    end = the_end(begun.turn, pause=pause("appr_1"))

    assert await asyncio.gather(*(store.history.finish(end) for _ in range(3))) == [True, True, True]

    assert len(await store.approvals.of_turn(begun.turn)) == 1


async def test_an_approval_of_another_caller_does_not_exist(store: Store) -> None:
    await paused(store, "appr_1")

    assert await store.approvals.find("bob", "appr_1") is None
    assert await store.approvals.find("alice", "appr_2") is None


async def test_an_approval_expires_when_the_conversation_continues(store: Store) -> None:
    begun = await paused(store, "appr_1", "appr_2")
    await store.approvals.resume(
        follower(begun, "chatcmpl-none"), resume(begun, yes(), stood=NOTHING, awaits_others=True)
    )
    after = await store.history.begin(follower(begun))
    assert await statuses(store, begun) == ["approved", "pending"]

    await store.history.finish(the_end(after.turn, finished_at=130.0))

    assert await statuses(store, begun) == ["expired", "expired"]


NOTHING = {"appr_1": None, "appr_2": None}


@pytest.mark.parametrize("status", ["failed", "cancelled", "interrupted"])
async def test_a_turn_outside_the_history_does_not_expire_approvals(store: Store, status: str) -> None:
    begun = await paused(store, "appr_1")
    after = await store.history.begin(follower(begun))
    if status == "interrupted":
        await store.history.interrupt(now=1000.0)
    else:
        await store.history.finish(the_end(after.turn, status=status, is_history=False))

    assert await statuses(store, begun) == ["pending"]


# --- lists ---------------------------------------------------------------------------------------------------


async def listed(store: Store, caller: str = "alice", **query: Any) -> Sequence[str] | None:
    part = ListQuery(query.pop("after", None), query.pop("limit", 20), query.pop("order", "asc"))
    page = await store.approvals.page(caller, ApprovalQuery(part, **query))
    return None if page is None else [*(one.id for one in page.data), *(["…"] if page.has_more else [])]


async def test_lists_are_narrowed_and_come_in_parts(store: Store) -> None:
    first = await paused(store, "appr_1", "appr_2")
    await paused(store, "appr_3", conversation="conv_b", begin={"end_user": "erin"})
    await paused(store, "appr_4", conversation="conv_c", begin={"caller": "bob"})
    await store.approvals.resume(follower(first), resume(first, yes(), no("appr_2"), stood=NOTHING))

    assert await listed(store) == ["appr_1", "appr_2", "appr_3"]
    assert await listed(store, "bob") == ["appr_4"]
    assert await listed(store, order="desc", limit=2) == ["appr_3", "appr_2", "…"]
    assert await listed(store, order="desc", limit=2, after="appr_2") == ["appr_1"]
    assert await listed(store, after="appr_3") == []
    assert await listed(store, after="appr_4") is None
    assert await listed(store, conversation_id="conv_b") == ["appr_3"]
    assert await listed(store, conversation_id="conv_c") == []
    assert await listed(store, end_user="frank") == ["appr_1", "appr_2"]
    assert await listed(store, end_user="erin", status="pending") == ["appr_3"]
    assert [await listed(store, status=one) for one in ("approved", "refused", "expired")] == [
        ["appr_1"],
        ["appr_2"],
        [],
    ]


# --- deciding ------------------------------------------------------------------------------------------------


async def test_a_decision_and_the_turn_that_follows_are_one(store: Store) -> None:
    begun = await paused(store, "appr_1")

    after = await store.approvals.resume(
        follower(begun), resume(begun, yes(by="message", reason="Go on.", decided_at=120.5))
    )

    assert after is not None
    assert after.conversation == begun.conversation
    (approval,) = await store.approvals.of_turn(begun.turn)
    assert (approval.status, approval.decision, approval.by, approval.reason, approval.decided_at) == (
        "approved",
        "approve",
        "message",
        "Go on.",
        120.5,
    )
    assert approval.resumed_turn_id == "chatcmpl-2"
    record = await store.history.turn("alice", "chatcmpl-2")
    assert record is not None
    assert (record.status, record.parent) == ("running", begun.turn)


async def test_it_awaits_others_and_begins_with_the_last(store: Store) -> None:
    begun = await paused(store, "appr_1", "appr_2")

    first = await store.approvals.resume(
        follower(begun, "chatcmpl-no"), resume(begun, no(), stood=NOTHING, awaits_others=True)
    )
    stood = {"appr_1": "refuse", "appr_2": None}
    second = await store.approvals.resume(
        follower(begun), resume(begun, yes("appr_2"), stood=stood, awaits_others=True)
    )

    assert first is None
    assert await store.history.turn("alice", "chatcmpl-no") is None
    assert second is not None
    found = await store.approvals.of_turn(begun.turn)
    assert [(one.status, one.resumed_turn_id) for one in found] == [
        ("refused", "chatcmpl-2"),
        ("approved", "chatcmpl-2"),
    ]


async def test_while_the_conversation_is_busy_nothing_is_decided(store: Store) -> None:
    begun = await paused(store, "appr_1", "appr_2")
    await store.history.begin(follower(begun, "chatcmpl-other"))

    with pytest.raises(ConversationBusy):
        await store.approvals.resume(follower(begun), resume(begun, yes(), yes("appr_2"), stood=NOTHING))
    assert await statuses(store, begun) == ["pending", "pending"]
    # One that begins nothing need not wait.
    waits = resume(begun, yes(), stood=NOTHING, awaits_others=True)
    assert await store.approvals.resume(follower(begun, "chatcmpl-none"), waits) is None
    assert await statuses(store, begun) == ["approved", "pending"]


async def test_a_turn_whose_lease_ran_out_blocks_no_other(store: Store) -> None:
    begun = await paused(store, "appr_1")
    await store.history.begin(follower(begun, "chatcmpl-lost", lease_until=119.0))

    assert await store.approvals.resume(follower(begun), resume(begun, yes())) is not None


async def test_a_key_that_is_taken_decides_nothing(store: Store) -> None:
    begun = await paused(store, "appr_1", begin={"idempotency_key": "k"})

    with pytest.raises(IdempotencyKeyTaken):
        await store.approvals.resume(follower(begun, idempotency_key="k"), resume(begun, yes()))
    assert await statuses(store, begun) == ["pending"]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"stood": {"appr_1": "refuse"}}, id="decided otherwise"),
        pytest.param({"stood": {}}, id="not all of them"),
        pytest.param({"stood": {"appr_1": None, "appr_2": None}}, id="one too many"),
        pytest.param({"seen": "chatcmpl-other"}, id="taken up by another"),
    ],
)
async def test_what_was_read_has_to_stand(store: Store, change: dict[str, Any]) -> None:
    begun = await paused(store, "appr_1")

    with pytest.raises(ApprovalsMoved):
        await store.approvals.resume(follower(begun), resume(begun, yes(), **change))
    assert await statuses(store, begun) == ["pending"]
    assert await store.history.turn("alice", "chatcmpl-2") is None


async def test_a_decision_is_rejected_after_the_conversation_continued(store: Store) -> None:
    begun = await paused(store, "appr_1")
    after = await store.history.begin(follower(begun, "chatcmpl-other"))
    await store.history.finish(the_end(after.turn, finished_at=130.0))

    with pytest.raises(ApprovalsMoved):
        await store.approvals.resume(follower(begun), resume(begun, yes()))


async def test_of_many_who_decide_at_once_one_begins_the_turn(store: Store) -> None:
    begun = await paused(store, "appr_1", "appr_2")

    async def decide(number: int) -> Begun | None:
        """As a worker does: read, decide, and read again when others were faster."""
        for _ in range(50):
            found = {one.id: one for one in await store.approvals.of_turn(begun.turn)}
            mine = found[f"appr_{number % 2 + 1}"]
            if mine.status != "pending":
                return None
            stood = {one.id: one.decision for one in found.values()}
            try:
                return await store.approvals.resume(
                    follower(begun, f"chatcmpl-by-{number}"),
                    resume(begun, yes(mine.id, decided_at=200.0 + number), stood=stood, awaits_others=True),
                )
            except ApprovalsMoved:
                continue
        raise AssertionError("never decided")

    begins = await asyncio.gather(*(decide(number) for number in range(12)))

    assert len([one for one in begins if one is not None]) == 1
    found = await store.approvals.of_turn(begun.turn)
    assert [one.status for one in found] == ["approved", "approved"]
    assert len({one.resumed_turn_id for one in found}) == 1


async def test_an_attempt_takes_the_place_of_one_that_came_to_nothing(store: Store) -> None:
    begun = await paused(store, "appr_1")
    first = await store.approvals.resume(follower(begun), resume(begun, yes()))
    assert first is not None
    await store.history.finish(
        the_end(first.turn, status="failed", is_history=False, took_up=begun.turn, finished_at=130.0)
    )
    again = ApprovalUpdate(begun.turn, (), {"appr_1": "approve"}, "chatcmpl-2")

    tries = await asyncio.gather(
        *(store.approvals.resume(follower(begun, f"chatcmpl-{n}"), again) for n in (3, 4, 5)),
        return_exceptions=True,
    )

    assert [isinstance(one, Begun) for one in tries].count(True) == 1
    assert [type(one) for one in tries].count(ApprovalsMoved) == 2
    (approval,) = await store.approvals.of_turn(begun.turn)
    assert approval.resumed_turn_id in ("chatcmpl-3", "chatcmpl-4", "chatcmpl-5")


# --- running -------------------------------------------------------------------------------------------------


async def test_a_call_is_run_by_the_turn_that_took_it_up_and_once(store: Store) -> None:
    begun = await paused(store, "appr_1", "appr_2")
    decided = resume(begun, yes(), no("appr_2"), stood=NOTHING)
    assert not await store.approvals.begin_run("appr_1", "chatcmpl-2")
    await store.approvals.resume(follower(begun), decided)

    assert not await store.approvals.begin_run("appr_1", "chatcmpl-other")
    assert not await store.approvals.begin_run("appr_2", "chatcmpl-2")
    assert await store.approvals.begin_run("appr_1", "chatcmpl-2")
    await store.approvals.end_run("appr_1", "chatcmpl-other", "forged")
    await store.approvals.end_run("appr_1", "chatcmpl-2", "paid \0")

    first, second = await store.approvals.of_turn(begun.turn)
    assert (first.run_in, first.is_open, second.run_in) == ("chatcmpl-2", False, None)
    assert first.result in ("paid \0", "paid \ufffd")


async def test_what_another_attempt_may_have_run_is_not_run_again(store: Store) -> None:
    begun = await paused(store, "appr_1")
    first = await store.approvals.resume(follower(begun), resume(begun, yes()))
    assert first is not None
    assert await store.approvals.begin_run("appr_1", "chatcmpl-2")
    await store.history.interrupt(now=1000.0)
    again = ApprovalUpdate(begun.turn, (), {"appr_1": "approve"}, "chatcmpl-2")
    await store.approvals.resume(follower(begun, "chatcmpl-3", created_at=1000.0, lease_until=1030.0), again)

    assert not await store.approvals.begin_run("appr_1", "chatcmpl-3")


# --- workers that die ----------------------------------------------------------------------------------------


async def test_an_unattended_turn_is_lost_when_its_worker_dies_until_its_end_is_written(store: Store) -> None:
    begun = await paused(store, "appr_1", "appr_2")
    decided = resume(begun, yes(), yes("appr_2"), stood=NOTHING, is_unattended=True)
    assert await store.approvals.resume(follower(begun), decided) is not None
    assert await store.approvals.lost() == []

    await store.history.interrupt(now=1000.0)
    assert await store.approvals.lost() == [("alice", "appr_1")]

    stood: Any = {"appr_1": "approve", "appr_2": "approve"}
    again = ApprovalUpdate(begun.turn, (), stood, "chatcmpl-2", is_unattended=True)
    after = await store.approvals.resume(
        follower(begun, "chatcmpl-3", created_at=1000.0, lease_until=1030.0), again
    )
    assert after is not None
    assert await store.approvals.lost() == []
    await store.history.finish(
        the_end(after.turn, status="failed", is_history=False, took_up=begun.turn, finished_at=1010.0)
    )
    assert await store.approvals.lost() == []


async def test_turns_that_a_client_requested_are_the_clients_to_repeat(store: Store) -> None:
    begun = await paused(store, "appr_1")
    await store.approvals.resume(follower(begun), resume(begun, yes(by="message")))
    await store.history.interrupt(now=1000.0)

    assert await store.approvals.lost() == []


async def test_a_turn_that_kills_its_workers_is_not_begun_for_ever(store: Store) -> None:
    begun = await paused(store, "appr_1")
    decisions: tuple[DecisionRecord, ...] = (yes(),)
    stood: dict[str, Any] = {"appr_1": None}
    seen = None
    for attempt in range(MAX_ATTEMPTS):
        now = 1000.0 * (attempt + 1)
        turn = follower(begun, f"chatcmpl-try-{attempt}", created_at=now, lease_until=now + 30)
        again = ApprovalUpdate(begun.turn, decisions, stood, seen, is_unattended=True)
        assert await store.approvals.resume(turn, again) is not None
        await store.history.interrupt(now=now + 100)
        decisions, stood, seen = (), {"appr_1": "approve"}, turn.id

    assert await store.approvals.lost() == []


# --- forgetting ----------------------------------------------------------------------------------------------


async def test_approvals_go_with_their_conversation(store: Store) -> None:
    begun = await paused(store, "appr_1")

    assert await store.library.delete_conversation("alice", "conv_a", now=200.0)

    assert await store.approvals.find("alice", "appr_1") is None
    assert await store.approvals.of_turn(begun.turn) == []


async def test_approvals_go_when_their_conversation_is_old(store: Store) -> None:
    await paused(store, "appr_1")

    assert await store.library.remove_older(10_000.0) == 1

    assert await store.approvals.find("alice", "appr_1") is None


async def test_a_deleted_call_takes_its_approval_with_it(store: Store) -> None:
    await paused(store, "appr_1")

    assert await store.library.delete_item("alice", "conv_a", "chatcmpl-of-appr_1", 1, now=200.0)

    assert await store.approvals.find("alice", "appr_1") is None


async def test_a_deleted_result_is_gone_from_the_approval_too(store: Store) -> None:
    begun = await paused(store, "appr_1")
    after = await store.approvals.resume(follower(begun), resume(begun, yes()))
    assert after is not None
    await store.approvals.begin_run("appr_1", "chatcmpl-2")
    await store.approvals.end_run("appr_1", "chatcmpl-2", "paid")
    await store.history.finish(the_end(after.turn, took_up=begun.turn, finished_at=130.0))

    assert await store.library.delete_item("alice", "conv_a", "chatcmpl-2", 0, now=200.0)

    (approval,) = await store.approvals.of_turn(begun.turn)
    assert (approval.run_in, approval.result) == ("chatcmpl-2", None)


async def test_the_approval_of_a_deleted_answer_can_be_decided_in_the_conversation_only(
    store: Store,
) -> None:
    begun = await paused(store, "appr_1")

    assert await store.library.delete_response("alice", "chatcmpl-of-appr_1")

    assert await store.approvals.find("alice", "appr_1") is None
    assert await listed(store) == []
    assert await statuses(store, begun) == ["pending"]
    assert await store.approvals.circumstances(begun.turn) == b"{}"


# --- in each other's way -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_history", [True, False], ids=["an answer", "a failure"])
async def test_a_decision_does_not_wait_for_another_turn(store: Store, is_history: bool) -> None:
    async def both(number: int) -> type:
        conversation = f"conv_{number}"
        begun = await paused(
            store, f"appr_{number}", conversation=conversation, begin={"id": f"chatcmpl-asks-{number}"}
        )
        other = await store.history.begin(
            new_turn(conversation, parent=begun.turn, created_at=120.0, lease_until=150.0)
        )
        status = "completed" if is_history else "failed"
        end = the_end(other.turn, status=status, is_history=is_history, finished_at=130.0)
        turn = new_turn(
            conversation,
            id=f"chatcmpl-resumes-{number}",
            parent=begun.turn,
            input=[],
            created_at=131.0,
            lease_until=160.0,
        )
        deciding = store.approvals.resume(turn, resume(begun, yes(f"appr_{number}")))
        ended, decided = await asyncio.gather(store.history.finish(end), deciding, return_exceptions=True)
        assert ended is True
        return type(decided)

    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*(both(number) for number in range(30)))

    assert set(outcomes) <= ({ConversationBusy, ApprovalsMoved} if is_history else {ConversationBusy, Begun})
