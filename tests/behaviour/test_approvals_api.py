"""Endpoints of approvals: lists, decisions, and turns that continue without a message."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.behaviour.bank import WAITING, Customer, results
from tests.behaviour.chat_client import WEATHER, agent_of, assistant, user
from tests.behaviour.raw_http import check_refusal
from tests.fakes.upstream import calls, error, hang, text

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def requested(customer: Customer, *amounts: int, **more: Any) -> list[dict[str, Any]]:
    """The approvals of a turn that asks for them."""
    await customer.asks_to_pay(*amounts, **more)
    return await customer.approvals("pending")


# --- deciding ---


async def test_an_approval_continues_as_a_background_turn(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    question = customer.messages[-1]
    customer.upstream.reply(text("Paid."))

    decided = await customer.decides(approval, "approve")

    assert decided == {
        **approval,
        "status": "approved",
        "decided_at": decided["decided_at"],
        "resumed_turn_id": decided["resumed_turn_id"],
    }
    assert await customer.resumed(decided) == "Paid."
    assert customer.paid() == [7]
    assert agent_of(customer.upstream) == "cashier"
    (created,) = customer.shown[-2]["tool_calls"]
    assert customer.shown[-5:] == [
        {"role": "tool", "tool_call_id": customer.shown[-5]["tool_call_id"], "content": WAITING},
        question,
        user("Yes."),
        {"role": "assistant", "content": None, "tool_calls": [created]},
        {"role": "tool", "tool_call_id": created["id"], "content": f"paid 7 to {customer.to}"},
    ]
    turn = (await customer.http("GET", f"/turns/{decided['resumed_turn_id']}")).json()
    assert (turn["status"], turn["conversation_id"], turn["agent"]) == (
        "completed",
        approval["conversation_id"],
        "cashier",
    )


async def test_the_resumed_turn_can_be_followed_as_a_stream_of_chunks(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("Paid.", chunks=1))
    decided = await customer.decides(approval, "approve")

    stream = await customer.http("GET", f"/chat/completions/{decided['resumed_turn_id']}/stream")

    payloads = [json.loads(line[6:]) for line in stream.text.split("\n") if line.startswith("data: {")]
    assert "".join(one["choices"][0]["delta"].get("content") or "" for one in payloads) == "Paid."
    assert payloads[-1]["choices"][0]["finish_reason"] == "stop"
    reported = [one["handoff"] for one in payloads if "handoff" in one]
    assert [one["type"] for one in reported] == [
        "approval.decided",
        "tool.started",
        "tool.completed",
        "agent.speaking",
        "turn.completed",
    ]
    assert reported[0] == {
        "type": "approval.decided",
        "agent": "cashier",
        "call_id": reported[1]["call_id"],
        "name": "pay",
        "approval_id": approval["id"],
        "decision": "approve",
        "by": "api",
    }


async def test_the_model_receives_a_rejection_with_its_reason(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("As you like."))

    decided = await customer.decides(approval, "refuse", "Too expensive.")

    assert (decided["status"], decided["reason"]) == ("refused", "Too expensive.")
    assert await customer.resumed(decided) == "As you like."
    assert customer.shown[-1] == user("No. Too expensive.")
    assert customer.paid() == []


async def test_a_resumed_turn_uses_the_options_of_the_request(customer: Customer) -> None:
    customer.upstream.reply(
        calls(("transfer_to_cashier", {})), calls(("pay", {"amount": 7, "to": customer.to})), text("Paid.")
    )
    await customer.caller.completion(
        [{"role": "system", "content": "Speak like a pirate."}, user("Pay")],
        model="bank",
        tools=[WEATHER],
        temperature=0.3,
    )
    (approval,) = await customer.approvals()

    await customer.resumed(await customer.decides(approval, "approve"))

    sent = customer.upstream.requests[-1].body
    assert sent["messages"][0]["content"] == "You are cashier.\n\nSpeak like a pirate."
    assert sent["temperature"] == 0.3
    assert "weather" in [tool["function"]["name"] for tool in sent["tools"]]


async def test_the_continuation_of_a_stored_completion_is_stored(customer: Customer) -> None:
    (approval,) = await requested(customer, 7, store=True, metadata={"ticket": customer.to})
    customer.upstream.reply(text("Paid."))
    decided = await customer.decides(approval, "approve")
    await customer.resumed(decided)

    client = customer.caller.client.chat.completions
    listed = [one async for one in client.list(metadata={"ticket": customer.to})]
    messages = [one async for one in client.messages.list(decided["resumed_turn_id"])]

    assert [one.id for one in listed] == [approval["turn_id"], decided["resumed_turn_id"]]
    assert [one.content for one in messages] == [one["content"] for one in customer.messages]


async def test_each_of_several_calls_is_decided_by_itself(customer: Customer) -> None:
    one, two, three = await requested(customer, 7, 8, 9)

    first = await customer.decides(two, "refuse", "not that")
    second = await customer.decides(one, "approve")
    assert (first["status"], first["resumed_turn_id"]) == ("refused", None)
    assert (second["status"], second["resumed_turn_id"]) == ("approved", None)
    customer.upstream.reply(text("Two of three."))
    third = await customer.decides(three, "approve", "that one, too")

    assert await customer.resumed(third) == "Two of three."
    assert sorted(customer.paid()) == [7, 9]
    assert customer.shown[-4] == user("pay: yes\npay: no. not that\npay: yes. that one, too")
    assert {one["resumed_turn_id"] for one in await customer.approvals()} == {third["resumed_turn_id"]}
    types = "?types=approval.decided"
    events = (await customer.http("GET", f"/turns/{third['resumed_turn_id']}/events{types}")).text
    assert events.count('"decision":"approve"') == 2
    assert events.count('"decision":"refuse"') == 1


@pytest.mark.parametrize(("word", "paid"), [("yes", [7, 8]), ("no", [])])
async def test_a_plain_word_decides_what_is_left_and_a_no_stops_all_of_it(
    customer: Customer, word: str, paid: list[int]
) -> None:
    one, _ = await requested(customer, 7, 8)
    await customer.decides(one, "approve")

    completion = await customer.completion(word, text("Well."))

    assert sorted(customer.paid()) == paid
    events = (await customer.http("GET", f"/turns/{completion.id}/events?types=approval.decided")).text
    decisions = [json.loads(line[6:])["data"] for line in events.split("\n") if line.startswith("data: ")]
    assert [one["decision"] for one in decisions] == (["approve"] * 2 if paid else ["refuse"] * 2)
    status = "approved" if paid else "refused"
    assert [approval["status"] for approval in await customer.approvals()] == [status, status]


async def test_an_approved_call_expires_with_a_pending_one(customer: Customer) -> None:
    one, _ = await requested(customer, 7, 8)
    await customer.decides(one, "approve")

    await customer.asks("What for?", text("For the rocket."))

    assert customer.paid() == []
    assert [approval["status"] for approval in await customer.approvals()] == ["expired", "expired"]


# --- deciding again ---


@pytest.mark.parametrize("decision", ["approve", "refuse"])
async def test_the_same_decision_again_is_the_same_turn(customer: Customer, decision: str) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("Well."))
    decided = await customer.decides(approval, decision)
    await customer.resumed(decided)

    again = await customer.http(
        "POST", "/approvals", json={"approval_id": approval["id"], "decision": decision, "reason": "again"}
    )

    assert again.json() == decided
    assert len(customer.paid()) <= 1


async def test_a_decision_by_message_is_visible_in_the_api(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    completion = await customer.completion("yes", text("Paid."))

    decided = await customer.decides(approval, "approve")

    assert decided["resumed_turn_id"] == completion.id
    assert customer.paid() == [7]


async def test_a_turn_that_failed_is_begun_again_without_running_the_call_again(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(error(400))
    first = await customer.decides(approval, "approve")
    failed = await customer.http("GET", f"/turns/{first['resumed_turn_id']}/events?types=turn.failed")
    assert "turn.failed" in failed.text
    customer.upstream.reply(text("Paid."))

    second = await customer.decides(approval, "approve")

    assert second["resumed_turn_id"] != first["resumed_turn_id"]
    assert await customer.resumed(second) == "Paid."
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"
    assert customer.paid() == [7]


async def test_of_many_who_decide_at_once_all_get_the_same_turn(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("Paid."))

    decided = await asyncio.gather(*(customer.decides(approval, "approve") for _ in range(8)))

    assert len({one["resumed_turn_id"] for one in decided}) == 1
    await customer.resumed(decided[0])
    assert customer.paid() == [7]


async def test_of_two_who_decide_differently_one_is_refused(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("Well."))
    path = f"/approvals/{approval['id']}"

    answers = await asyncio.gather(
        *(customer.http("POST", path, json={"decision": word}) for word in ("approve", "refuse"))
    )

    assert sorted(answer.status_code for answer in answers) == [200, 400]
    (stored,) = await customer.approvals()
    await customer.resumed(stored)
    assert customer.paid() == ([7] if stored["status"] == "approved" else [])


# --- the conversation behind it ---


async def test_a_stock_client_that_says_yes_later_does_not_run_the_call_again(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("Paid."))
    await customer.resumed(await customer.decides(approval, "approve"))

    await customer.asks("yes", text("It is paid already."))

    assert customer.paid() == [7]
    assert agent_of(customer.upstream) == "cashier"
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"


async def test_a_client_that_sends_the_background_answer_continues_after_it(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("Paid."))
    await customer.resumed(await customer.decides(approval, "approve"))
    customer.messages.append(assistant("Paid."))

    await customer.asks("Thanks", text("You are welcome."))

    assert customer.caller.match == "fingerprint"
    assert customer.shown[-2:] == [assistant("Paid."), user("Thanks")]
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"


async def test_a_client_that_sends_only_new_messages_continues_after_it(customer: Customer) -> None:
    customer.headers = {"X-Conversation-Id": f"chat-{customer.to}"}
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("Paid."))
    await customer.resumed(await customer.decides(approval, "approve"))
    customer.messages.clear()

    await customer.asks("yes", text("It is paid."))

    assert customer.shown[-2:] == [assistant("Paid."), user("yes")]
    assert customer.paid() == [7]


async def test_while_the_conversation_is_busy_nothing_is_decided_and_nothing_lost(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    before = len(customer.upstream.requests)
    pending = asyncio.create_task(customer.asks("What for?", hang()))
    hanging = await customer.upstream.received(before + 1)

    busy = await customer.http("POST", f"/approvals/{approval['id']}", json={"decision": "approve"})
    assert check_refusal(busy, 409)["code"] == "conversation_busy"
    assert int(busy.headers["retry-after"]) >= 1
    assert await customer.approvals("pending") == [approval]
    pending.cancel()
    customer.upstream.reply(text("Paid."))
    async with asyncio.timeout(5):
        while True:
            answer = await customer.http("POST", f"/approvals/{approval['id']}", json={"decision": "approve"})
            if answer.status_code == 200:
                break
            await asyncio.sleep(0.02)

    assert await customer.resumed(answer.json()) == "Paid."
    assert customer.paid() == [7]
    assert not hanging.is_open


async def test_while_the_resumed_turn_runs_the_conversation_is_busy(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    before = len(customer.upstream.requests)
    go = asyncio.Event()
    customer.upstream.reply(text("Paid.").held(go))
    decided = await customer.decides(approval, "approve")
    await customer.upstream.received(before + 1)

    with pytest.raises(openai.ConflictError):
        await customer.asks("yes")
    go.set()

    assert await customer.resumed(decided) == "Paid."
    assert customer.paid() == [7]


async def test_a_resumed_turn_can_be_stopped(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    before = len(customer.upstream.requests)
    customer.upstream.reply(hang())
    decided = await customer.decides(approval, "approve")
    await customer.upstream.received(before + 1)

    stopped = await customer.http("POST", f"/turns/{decided['resumed_turn_id']}/cancel")

    assert stopped.json()["cancelled"] is True
    customer.upstream.reply(text("Paid."))
    assert await customer.resumed(await customer.decides(approval, "approve")) == "Paid."
    assert customer.paid() == [7]


# --- lists ---


async def test_lists_are_by_status_and_conversation_and_come_in_pages(customer: Customer) -> None:
    first = await requested(customer, 1, 2)
    other = Customer(customer.served, customer.upstream, key=customer.key)
    second = await requested(other, 3)
    everything = [*first, *second[2:]]

    async def listed(query: str) -> dict[str, Any]:
        answer = await customer.http("GET", f"/approvals?{query}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    newest = await listed("limit=2")
    assert newest == {
        "object": "list",
        "data": [everything[2], everything[1]],
        "first_id": everything[2]["id"],
        "last_id": everything[1]["id"],
        "has_more": True,
    }
    rest = await listed(f"limit=2&after={newest['last_id']}")
    assert (rest["data"], rest["has_more"]) == ([everything[0]], False)
    of_first = await listed(f"order=asc&conversation_id={first[0]['conversation_id']}")
    assert of_first["data"] == first
    assert (await listed("status=approved"))["data"] == []
    assert (await listed("conversation_id=nowhere"))["data"] == []
    one = await customer.http("GET", f"/approvals/{first[0]['id']}")
    assert one.json() == first[0]
    assert one.headers["x-conversation-id"] == first[0]["conversation_id"]


async def test_approvals_are_the_callers_and_the_end_users_own(customer: Customer) -> None:
    (approval,) = await requested(customer, 7, user="ann")
    stranger = Customer(customer.served, customer.upstream)
    path = f"/approvals/{approval['id']}"
    bob = {"X-OpenWebUI-User-Id": "bob"}

    assert await stranger.approvals() == []
    assert (await customer.http("GET", "/approvals", headers=bob)).json()["data"] == []
    for answer in (
        await stranger.http("GET", path),
        await stranger.http("POST", path, json={"decision": "approve"}),
        await stranger.http("POST", path, json={"decision": 7}),
        await customer.http("GET", path, headers=bob),
        await customer.http("POST", path, json={"decision": "approve"}, headers=bob),
        await customer.http(
            "POST", "/approvals", json={"approval_id": approval["id"], "decision": "refuse"}, headers=bob
        ),
    ):
        assert check_refusal(answer, 404)["message"] == f"Approval with id '{approval['id']}' not found."
    ann = await customer.http("GET", "/approvals", headers={"X-OpenWebUI-User-Id": "ann"})
    assert ann.json()["data"] == [approval]


# --- what is refused ---


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        pytest.param(b"", "decision", "missing_required_parameter", id="nothing"),
        pytest.param(b"{", None, None, id="no JSON"),
        pytest.param(b"[]", None, None, id="no object"),
        pytest.param(b"{}", "decision", "missing_required_parameter", id="no decision"),
        pytest.param(b'{"decision": null}', "decision", "invalid_type", id="a decision of null"),
        pytest.param(b'{"decision": "maybe"}', "decision", "invalid_value", id="another word"),
        pytest.param(b'{"decision": true}', "decision", "invalid_type", id="a truth value"),
        pytest.param(b'{"decision": "approve", "reason": 7}', "reason", "invalid_type", id="a reason of 7"),
        pytest.param(
            b'{"decision": "approve", "reason": "%b"}' % (b"x" * 1001),
            "reason",
            "string_above_max_length",
            id="a long reason",
        ),
        pytest.param(b'{"decision": "approve", "reason": "\\u0000"}', "reason", "invalid_value", id="a NUL"),
        pytest.param(b'{"decision": "\xff"}', None, None, id="no UTF-8"),
        pytest.param(b'{"decision": "%b"}' % (b"y" * 50_000), "decision", "invalid_value", id="a long word"),
    ],
)
async def test_an_invalid_decision_is_rejected_without_effect(
    customer: Customer, body: bytes, param: str | None, code: str | None
) -> None:
    (approval,) = await requested(customer, 7)
    approval_id: str = approval["id"]
    tries = [(f"/approvals/{approval_id}", body)]
    if body.startswith(b'{"'):
        tries.append(("/approvals", b'{"approval_id": "%b", %b' % (approval_id.encode(), body[1:])))

    for path, content in tries:
        refusal = check_refusal(await customer.http("POST", path, content=content))
        assert (refusal["param"], refusal["code"]) == (param, code)
    assert await customer.approvals("pending") == [approval]


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        pytest.param({"decision": "approve"}, "approval_id", "missing_required_parameter", id="no id"),
        pytest.param({"approval_id": "", "decision": "approve"}, "approval_id", "empty_string", id="empty"),
        pytest.param({"approval_id": 7, "decision": "approve"}, "approval_id", "invalid_type", id="a number"),
    ],
)
async def test_a_decision_without_an_id_is_refused(
    customer: Customer, body: dict[str, Any], param: str, code: str
) -> None:
    refusal = check_refusal(await customer.http("POST", "/approvals", json=body))

    assert (refusal["param"], refusal["code"]) == (param, code)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("status=open", "status"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=many", "limit"),
        ("order=up", "order"),
        ("after=appr_none", "after"),
        ("after=" + "x" * 3000, "after"),
    ],
)
async def test_a_list_that_cannot_be_created_is_refused(customer: Customer, query: str, param: str) -> None:
    assert check_refusal(await customer.http("GET", f"/approvals?{query}"))["param"] == param


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/approvals/appr_none", None, 404),
        ("GET", "/approvals/" + "x" * 2000, None, 404),
        ("GET", "/approvals/%00", None, 404),
        ("POST", "/approvals/appr_none", {"decision": "approve"}, 404),
        ("POST", "/approvals", {"approval_id": "appr_none", "decision": "approve"}, 404),
        ("DELETE", "/approvals/appr_none", None, 405),
        ("PUT", "/approvals", None, 405),
    ],
)
async def test_unknown_approvals_are_404_and_unsupported_methods_405(
    customer: Customer, method: str, path: str, body: Any, status: int
) -> None:
    more = {} if body is None else {"json": body}

    error = check_refusal(await customer.http(method, path, **more), status)

    code = "method_not_supported" if status == 405 else None
    assert (error["type"], error["code"]) == ("invalid_request_error", code)


async def test_another_decision_is_refused(customer: Customer) -> None:
    (approval,) = await requested(customer, 7)
    customer.upstream.reply(text("As you like."))
    decided = await customer.decides(approval, "refuse")
    await customer.resumed(decided)

    refusal = check_refusal(
        await customer.http("POST", f"/approvals/{approval['id']}", json={"decision": "approve"})
    )

    assert (refusal["param"], refusal["code"]) == ("decision", "approval_already_decided")
    assert refusal["message"] == f"Approval '{approval['id']}' is already refused."
    assert customer.paid() == []
