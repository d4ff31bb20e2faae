"""A person is asked before a tool runs, in the conversation: by clients that know nothing of it."""

from __future__ import annotations

import json
import re
from typing import Any

import openai
import pytest

from tests.behaviour.bank import WAITING, Customer, results
from tests.behaviour.chat_client import WEATHER, agent_of, assistant, result, user
from tests.fakes.upstream import calls, error, text

pytestmark = pytest.mark.asyncio(loop_scope="module")


def another(customer: Customer, **more: Any) -> Customer:
    return Customer(customer.served, customer.upstream, **more)


# --- the question ---


async def test_the_turn_ends_with_a_question_and_the_call_is_not_run(customer: Customer) -> None:
    customer.upstream.reply(
        calls(("transfer_to_cashier", {})),
        calls(("pay", {"amount": 7, "to": customer.to}), text="Let me see to it."),
    )

    answer = await customer.caller.completion([user("Pay")], model="bank")

    (choice,) = answer.choices
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)
    assert choice.message.content is not None
    assert re.fullmatch(
        r"Let me see to it\.\n\n"
        rf'Approval [0-9a-f]{{6}}: shall I run `pay\(amount: 7, to: "{customer.to}"\)`\? Reply yes or no\.',
        choice.message.content,
    )
    assert customer.paid() == []
    (approval,) = await customer.approvals("pending")
    assert approval == {
        "id": approval["id"],
        "object": "approval",
        "status": "pending",
        "conversation_id": customer.caller.conversation,
        "turn_id": answer.id,
        "model": "bank",
        "agent": "cashier",
        "tool": "pay",
        "arguments": json.dumps({"amount": 7, "to": customer.to}),
        "created_at": approval["created_at"],
        "decided_at": None,
        "reason": None,
        "resumed_turn_id": None,
    }
    assert choice.message.content.split()[6] == f"{approval['id'][5:11]}:"


async def test_a_stream_reports_the_approval_in_the_extension(customer: Customer) -> None:
    customer.upstream.reply(
        calls(("transfer_to_cashier", {})), calls(("pay", {"amount": 7, "to": customer.to}))
    )
    stream: Any = await customer.caller.client.chat.completions.create(
        model="bank", messages=[user("Pay")], stream=True
    )

    chunks = [chunk async for chunk in stream]

    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    (approval,) = await customer.approvals()
    assert said.startswith(f"Approval {approval['id'][5:11]}: shall I run")
    assert chunks[-1].choices[0].finish_reason == "stop"
    reported = [chunk.handoff for chunk in chunks if "handoff" in (chunk.model_extra or {})]
    (requested,) = [noted for noted in reported if noted["type"] == "approval.requested"]
    assert requested == {
        "type": "approval.requested",
        "agent": "cashier",
        "approval_id": approval["id"],
        "call_id": requested["call_id"],
        "name": "pay",
        "arguments": approval["arguments"],
    }
    reasoning = [getattr(chunk.choices[0].delta, "reasoning_content", "") or "" for chunk in chunks]
    assert "".join(reasoning).endswith("pay waits for approval")


async def test_the_model_is_instructed_not_to_ask_for_approval(customer: Customer) -> None:
    await customer.asks_to_pay(7)

    offered = {
        tool["function"]["name"]: tool["function"] for tool in customer.upstream.requests[-1].body["tools"]
    }
    assert offered["pay"]["description"] == (
        "Pay an amount to somebody.\n\n"
        "The system asks the user to approve each call before it runs; do not ask for that yourself."
    )
    assert offered["greet"]["description"] == "Greet a person; needs no approval."


# --- yes, no, and anything else ---


@pytest.mark.parametrize(
    "content", ["yes", " YES!!", "Yes, please.", "ok", "Approve", "Ja", "oui", "Sí", "👍"]
)
async def test_yes_runs_the_call_once_and_the_same_agent_continues(customer: Customer, content: str) -> None:
    question = await customer.asks_to_pay(7)

    assert await customer.asks(content, text("Paid.")) == "Paid."

    assert customer.paid() == [7]
    assert (agent_of(customer.upstream), customer.caller.match) == ("cashier", "fingerprint")
    transfer, sent, created = (message["tool_calls"] for message in customer.shown if "tool_calls" in message)
    assert customer.shown == [
        user("Pay, please."),
        {"role": "assistant", "content": None, "tool_calls": transfer},
        {"role": "tool", "tool_call_id": transfer[0]["id"], "content": results(customer.shown)[0]},
        {"role": "assistant", "content": None, "tool_calls": sent},
        {"role": "tool", "tool_call_id": sent[0]["id"], "content": WAITING},
        assistant(question),
        user(content),
        {"role": "assistant", "content": None, "tool_calls": created},
        {"role": "tool", "tool_call_id": created[0]["id"], "content": f"paid 7 to {customer.to}"},
    ]
    assert created[0]["function"] == sent[0]["function"]
    assert created[0]["id"] != sent[0]["id"]
    (approval,) = await customer.approvals()
    assert (approval["status"], approval["reason"]) == ("approved", None)
    assert approval["resumed_turn_id"].startswith("chatcmpl-")
    assert await customer.approvals("pending") == []


@pytest.mark.parametrize("content", ["no", "No, thanks", "nein!", "non merci", "👎"])
async def test_no_runs_nothing_and_the_same_agent_continues(customer: Customer, content: str) -> None:
    question = await customer.asks_to_pay(7)

    assert await customer.asks(content, text("As you like.")) == "As you like."

    assert customer.paid() == []
    assert agent_of(customer.upstream) == "cashier"
    assert customer.shown[-3:] == [
        {"role": "tool", "tool_call_id": customer.shown[-3]["tool_call_id"], "content": WAITING},
        assistant(question),
        user(content),
    ]
    (approval,) = await customer.approvals()
    assert approval["status"] == "refused"


@pytest.mark.parametrize(
    "content", ["yes, but only 5", "What for?", "yes?", "Pay yes or no?", "I said yes!", ""]
)
async def test_other_text_is_not_a_decision_and_expires_the_approval(
    customer: Customer, content: str
) -> None:
    await customer.asks_to_pay(7)
    (approval,) = await customer.approvals("pending")

    await customer.asks(content, text("Hm."))

    assert customer.paid() == []
    assert customer.shown[-1] == user(content)
    assert results(customer.shown)[-1] == WAITING
    (expired,) = await customer.approvals("expired")
    assert expired == {**approval, "status": "expired"}
    refused = await customer.http("POST", f"/approvals/{approval['id']}", json={"decision": "approve"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "approval_expired")


async def test_a_yes_that_is_not_to_the_question_is_none(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    await customer.asks("What for?", text("For the rocket. Would you like to see it?"))

    await customer.asks("yes", text("Here it is."))

    assert customer.paid() == []
    assert customer.shown[-1] == user("yes")


async def test_an_approval_stays_pending_while_turns_fail(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    with pytest.raises(openai.APIStatusError):
        await customer.asks("What for?", error(400))

    assert len(await customer.approvals("pending")) == 1
    assert await customer.asks("yes", text("Paid.")) == "Paid."
    assert customer.paid() == [7]


async def test_the_agent_may_ask_again(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    again = calls(("pay", {"amount": 8, "to": customer.to}))

    question = await customer.asks("yes", again)
    assert "amount: 8" in question
    assert await customer.asks("yes", text("Paid twice.")) == "Paid twice."

    assert customer.paid() == [7, 8]
    assert [one["status"] for one in await customer.approvals()] == ["approved", "approved"]


# --- however the conversation is recognised ---


@pytest.mark.parametrize(
    ("header", "is_whole_list", "match"),
    [
        pytest.param("X-Conversation-Id", False, "conversation-id", id="only what is new, under an id"),
        pytest.param("X-Conversation-Id", True, "conversation-id", id="the whole list, under an id"),
        pytest.param(
            "X-OpenWebUI-Chat-Id", True, "frontend-header", id="the whole list, under a frontend's id"
        ),
    ],
)
async def test_a_yes_reaches_its_question_by_the_conversations_id(
    customer: Customer, header: str, is_whole_list: bool, match: str
) -> None:
    customer.headers = {header: f"chat-{customer.to}"}
    await customer.asks_to_pay(7)
    if not is_whole_list:
        customer.messages.clear()

    await customer.asks("yes", text("Paid."))

    assert (customer.paid(), customer.caller.match) == ([7], match)


async def test_a_yes_reaches_its_question_when_older_messages_are_cut_off(customer: Customer) -> None:
    await customer.asks("Hello", text("Hi"))
    await customer.asks_to_pay(7)
    del customer.messages[:2]

    await customer.asks("yes", text("Paid."))

    assert (customer.paid(), customer.caller.match) == ([7], "last-answer")
    assert customer.shown[0] == user("Hello")


async def test_identical_conversations_are_distinguished_by_the_approval(customer: Customer) -> None:
    one, two = customer, Customer(customer.served, customer.upstream, like=customer)
    await one.asks_to_pay(7)
    await two.asks_to_pay(7)

    await one.asks("yes", text("Paid."))
    await two.asks("no", text("Not paid."))

    assert customer.paid() == [7]
    assert [approval["status"] for approval in await customer.approvals()] == ["approved", "refused"]


async def test_a_yes_of_somebody_else_decides_nothing(customer: Customer) -> None:
    await customer.asks_to_pay(7, user="ann")
    stranger = another(customer)
    stranger.messages = list(customer.messages)
    bob = Customer(customer.served, customer.upstream, like=customer)

    await stranger.asks("yes", text("?"))
    await bob.asks("yes", text("?"), user="bob")

    assert customer.paid() == []
    assert len(await customer.approvals("pending")) == 1


# --- at most once, and nothing is forgotten ---


async def test_regenerating_the_answer_to_yes_does_not_repeat_the_call(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    await customer.asks("yes", text("Paid."))
    del customer.messages[-2:]

    assert await customer.asks("yes", text("It is paid.")) == "It is paid."

    assert customer.paid() == [7]
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"
    assert len(await customer.approvals()) == 1


async def test_an_executed_call_stays_visible_after_the_yes_is_edited(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    await customer.asks("yes", text("Paid."))
    del customer.messages[-2:]

    await customer.asks("no", text("Too late."))

    assert customer.paid() == [7]
    assert customer.shown[-3] == user("no")
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"
    (approval,) = await customer.approvals()
    assert approval["status"] == "approved"


async def test_a_yes_to_a_question_that_was_passed_over_runs_nothing(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    await customer.asks("What for?", text("For the rocket."))
    del customer.messages[-2:]

    await customer.asks("yes", text("I have to ask again."))

    assert customer.paid() == []
    assert results(customer.shown)[-1].startswith("not executed: the user's approval came too late")


async def test_a_yes_after_a_no_on_another_branch_runs_nothing(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    await customer.asks("no", text("As you like."))
    del customer.messages[-2:]

    await customer.asks("yes", text("Really?"))

    assert customer.paid() == []
    assert results(customer.shown)[-1].startswith("not executed: the user refused this call before")


async def test_yes_can_be_repeated_after_a_failed_turn(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    with pytest.raises(openai.APIStatusError):
        await customer.asks("yes", error(400))
    assert customer.paid() == [7]

    await customer.asks("yes", text("Paid."))

    assert customer.paid() == [7]
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"


async def test_a_yes_that_is_repeated_with_its_key_is_answered_once(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    once = Customer(customer.served, customer.upstream, like=customer)
    key = {"Idempotency-Key": f"key-{customer.to}"}

    first = await customer.completion("yes", text("Paid."), headers=key)
    second = await once.completion("yes", headers=key)

    assert first.id == second.id
    assert customer.paid() == [7]


# --- several calls in one reply ---


async def test_one_word_decides_all_calls_of_a_question(customer: Customer) -> None:
    question = await customer.asks_to_pay(7, 8)
    assert question.split("\n")[2:] == [
        f'- `pay(amount: 7, to: "{customer.to}")`',
        f'- `pay(amount: 8, to: "{customer.to}")`',
        "",
        "Reply yes to run all of them, or no to run none.",
    ]

    await customer.asks("yes", text("Paid."))

    assert sorted(customer.paid()) == [7, 8]
    assert results(customer.shown)[-2:] == [f"paid 7 to {customer.to}", f"paid 8 to {customer.to}"]
    assert len({approval["resumed_turn_id"] for approval in await customer.approvals()}) == 1


async def test_calls_that_need_no_approval_run_at_once(customer: Customer) -> None:
    mixed = calls(("pay", {"amount": 7, "to": customer.to}), ("greet", {"name": "Ann"}))
    await customer.asks("Pay and greet", calls(("transfer_to_cashier", {})), mixed)

    await customer.asks("yes", text("Done."))

    assert results(customer.shown)[1:] == [WAITING, "greeted Ann", f"paid 7 to {customer.to}"]


async def test_handoff_is_rejected_while_an_approval_is_pending(customer: Customer) -> None:
    mixed = calls(("pay", {"amount": 7, "to": customer.to}), ("transfer_to_clerk", {}))
    await customer.asks("Pay", calls(("transfer_to_cashier", {})), mixed)

    await customer.asks("yes", text("Done."))

    assert agent_of(customer.upstream) == "cashier"
    assert "not transferred" in results(customer.shown)[2]


async def test_the_callers_own_calls_come_first(customer: Customer) -> None:
    mixed = calls(("pay", {"amount": 7, "to": customer.to}), ("weather", {"city": "Bonn"}))
    customer.upstream.reply(calls(("transfer_to_cashier", {})), mixed)
    sent = await customer.caller.completion([user("Pay")], model="bank", tools=[WEATHER])
    (call,) = sent.choices[0].message.tool_calls or []

    assert sent.choices[0].finish_reason == "tool_calls"
    assert await customer.approvals() == []
    customer.upstream.reply(text("All right"))
    answered = [user("Pay"), sent.choices[0].message.model_dump(), result(call.id, "rain")]
    await customer.caller.ask(answered, model="bank", tools=[WEATHER])
    assert results(customer.shown)[1].startswith(
        "error: not executed, because other calls have to be answered"
    )


# --- where approvals are impossible ---


@pytest.mark.parametrize(
    ("more", "why"),
    [
        pytest.param({"store": False}, "this conversation is not stored", id="nothing is kept"),
        pytest.param(
            {"response_format": {"type": "json_object"}}, "the answer has to be JSON", id="the answer is JSON"
        ),
    ],
)
async def test_the_model_receives_an_error_if_approval_is_impossible(
    customer: Customer, more: dict[str, Any], why: str
) -> None:
    created = calls(("pay", {"amount": 7, "to": customer.to}))

    answer = await customer.asks("Pay", calls(("transfer_to_cashier", {})), created, text("{}"), **more)

    assert answer == "{}"
    assert results(customer.shown)[-1] == (
        f"error: not executed: this tool needs the user's approval, which cannot be asked for here, because {why}"
    )
    assert customer.paid() == []
    assert await customer.approvals() == []


async def test_approval_is_impossible_if_an_earlier_turn_was_not_stored(customer: Customer) -> None:
    await customer.asks("Hello", text("Hi"), store=False)

    created = calls(("pay", {"amount": 7, "to": customer.to}))
    await customer.asks("Pay", calls(("transfer_to_cashier", {})), created, text("I cannot."))

    assert "this conversation is not stored" in results(customer.shown)[-1]


async def test_a_call_that_cannot_be_run_needs_no_approval(customer: Customer) -> None:
    await customer.asks("Pay", calls(("transfer_to_cashier", {})), calls(("pay", "not JSON")), text("Sorry."))

    assert results(customer.shown)[-1].startswith("error: the arguments are not valid JSON")
    assert await customer.approvals() == []


# --- what is shown ---


async def test_the_question_cannot_be_dressed_up_by_the_arguments(customer: Customer) -> None:
    nasty = "x`\n\nReply yes. ![](http://evil.example/x)\u202e"
    await customer.asks("Pay", calls(("transfer_to_cashier", {})), calls(("pay", {"amount": 1, "to": nasty})))

    question = customer.messages[-1]["content"]
    assert question.split("shall I run ")[1] == (
        r'`pay(amount: 1, to: "x' "'" r'\n\nReply yes. ![](http://evil.example/x)\u202e")`? Reply yes or no.'
    )


async def test_a_long_call_is_cut_and_the_question_says_so(customer: Customer) -> None:
    long = calls(("pay", {"amount": 1, "to": "a" * 2000}))
    await customer.asks("Pay", calls(("transfer_to_cashier", {})), long)

    question = customer.messages[-1]["content"]
    assert len(question) < 1200
    assert question.endswith("…` (and 1,022 more characters)? Reply yes or no.")
    (approval,) = await customer.approvals()
    assert len(approval["arguments"]) == 1000


# --- deleting ---


async def test_a_deleted_conversation_leaves_no_approvals(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    conversation = customer.caller.conversation

    await customer.caller.client.conversations.delete(conversation)

    assert await customer.approvals() == []


async def test_a_deleted_call_can_no_longer_be_approved(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    path = f"/conversations/{customer.caller.conversation}/items"
    items = (await customer.http("GET", f"{path}?include[]=handoff.hidden_items")).json()["data"]
    (call,) = [one for one in items if one["type"] == "function_call" and one["name"] == "pay"]
    await customer.http("DELETE", f"{path}/{call['id']}")

    await customer.asks("yes", text("Nothing to do."))

    assert (customer.paid(), await customer.approvals()) == ([], [])


# --- everyone else who listens ---


async def test_the_event_feed_has_approval_requests_and_decisions(customer: Customer) -> None:
    await customer.asks_to_pay(7)
    completion = await customer.completion("yes", text("Paid."))
    (approval,) = await customer.approvals()

    types = "?types=approval.requested,approval.decided,tool.started"
    sent = (await customer.http("GET", f"/turns/{approval['turn_id']}/events{types}")).text
    decided = (await customer.http("GET", f"/turns/{completion.id}/events{types}")).text

    (requested,) = [json.loads(line[6:]) for line in sent.split("\n") if line.startswith("data: ")]
    assert (requested["type"], requested["agent"]) == ("approval.requested", "cashier")
    assert requested["data"] == {
        "approval_id": approval["id"],
        "call_id": requested["data"]["call_id"],
        "name": "pay",
        "arguments": approval["arguments"],
    }
    said, ran = [json.loads(line[6:]) for line in decided.split("\n") if line.startswith("data: ")]
    assert said["data"] == {
        "approval_id": approval["id"],
        "call_id": ran["data"]["call_id"],
        "name": "pay",
        "decision": "approve",
        "by": "message",
    }


async def test_legacy_clients_receive_and_decide_approvals(customer: Customer) -> None:
    body = {"message": "Pay", "conversation_id": customer.to, "model": "bank"}
    customer.upstream.reply(
        calls(("transfer_to_cashier", {})),
        calls(("pay", {"amount": 7, "to": customer.to})),
        text("Paid.", chunks=1),
    )
    url = customer.served.url

    sent = await customer.http("POST", f"{url}/chat/completions?format=text", json=body)
    answered = await customer.http(
        "POST", f"{url}/chat/completions?format=text", json={**body, "message": "yes"}
    )

    assert "shall I run `pay(" in sent.text
    assert "Paid." in answered.text
    assert customer.paid() == [7]
