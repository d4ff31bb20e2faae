"""Approvals over the Responses API, in the words that the official API has for those of MCP servers."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.responses import Response

from tests.behaviour.bank import Customer, results
from tests.behaviour.chat_client import agent_of, assistant, user
from tests.behaviour.responses_client import kinds
from tests.fakes.upstream import Reply, calls, text

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK_FOR_ITEMS: Any = {"include": ["handoff.approval_requests"]}


async def respond(customer: Customer, given: Any, *replies: Reply, **more: Any) -> Response:
    customer.upstream.reply(*replies)
    response: Response = await customer.caller.client.responses.create(model="bank", input=given, **more)
    return response


async def requested(customer: Customer, *amounts: int, **more: Any) -> Response:
    created = calls(*(("pay", {"amount": amount, "to": customer.to}) for amount in amounts))
    return await respond(
        customer, "Pay", calls(("transfer_to_cashier", {})), created, **{**ASK_FOR_ITEMS, **more}
    )


def answer_to(approval_id: str, approve: bool = True, **more: Any) -> Any:
    return {"type": "mcp_approval_response", "approval_request_id": approval_id, "approve": approve, **more}


async def test_approval_requests_are_items_if_included(customer: Customer) -> None:
    response = await requested(customer, 7)

    assert kinds(response) == ["message", "mcp_approval_request"]
    (approval,) = await customer.approvals()
    request: Any = response.output[-1]
    assert request.to_dict() == {
        "id": approval["id"],
        "type": "mcp_approval_request",
        "name": "pay",
        "arguments": approval["arguments"],
        "server_label": "handoff-proxy",
    }
    assert "shall I run `pay(" in response.output_text
    stored = await customer.caller.client.responses.retrieve(response.id)
    assert stored.output == response.output


async def test_every_other_caller_is_asked_as_text_only(customer: Customer) -> None:
    response = await requested(customer, 7, include=[])

    assert kinds(response) == ["message"]
    second = await respond(customer, "yes", text("Paid."), previous_response_id=response.id)
    assert (second.output_text, customer.paid()) == ("Paid.", [7])


async def test_a_stream_has_the_complete_approval_request(customer: Customer) -> None:
    customer.upstream.reply(
        calls(("transfer_to_cashier", {})), calls(("pay", {"amount": 7, "to": customer.to}))
    )

    async with customer.caller.client.responses.stream(
        model="bank",
        input="Pay",
        include=["handoff.approval_requests"],  # type: ignore[list-item]
    ) as stream:
        events = [event async for event in stream]
        final = await stream.get_final_response()

    (approval,) = await customer.approvals()
    reported = [
        (event.type, event.item.id)
        for event in events
        if event.type in ("response.output_item.added", "response.output_item.done")
        and event.item.type == "mcp_approval_request"
    ]
    assert reported == [
        ("response.output_item.added", approval["id"]),
        ("response.output_item.done", approval["id"]),
    ]
    assert kinds(final)[-1] == "mcp_approval_request"


async def test_an_approval_response_runs_the_call_and_the_same_agent_continues(customer: Customer) -> None:
    first = await requested(customer, 7)

    second = await respond(
        customer, [answer_to(first.output[-1].id or "")], text("Paid."), previous_response_id=first.id
    )

    assert second.output_text == "Paid."
    call: Any = second.output[0]
    assert (call.type, call.name, call.approval_request_id) == ("mcp_call", "pay", first.output[-1].id)
    assert call.output == f"paid 7 to {customer.to}"
    assert customer.paid() == [7]
    assert agent_of(customer.upstream) == "cashier"
    assert customer.shown[-3] == user("Yes.")
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"
    (approval,) = await customer.approvals()
    assert approval["resumed_turn_id"] == second.id.replace("resp_", "chatcmpl-")


async def test_a_rejection_has_its_reason_and_accompanying_text(customer: Customer) -> None:
    first = await requested(customer, 7, 8)
    one, two = first.output[-2:]
    given = [
        answer_to(one.id or "", False, reason="too much"),
        answer_to(two.id or ""),
        {"role": "user", "content": "Only the second, please."},
    ]

    await respond(customer, given, text("Paid one."), previous_response_id=first.id)

    assert customer.paid() == [8]
    assert customer.shown[-3] == user("Only the second, please.")
    assert [one["reason"] for one in await customer.approvals()] == ["too much", None]


async def test_a_client_that_keeps_everything_itself_may_send_all_of_it(customer: Customer) -> None:
    first = await requested(customer, 7, store=True)
    everything: list[Any] = [
        {"role": "user", "content": "Pay"},
        *(item.to_dict() for item in first.output),
        answer_to(first.output[-1].id or ""),
    ]
    second = await respond(customer, everything, text("Paid."))
    everything += [*(item.to_dict() for item in second.output), {"role": "user", "content": "Thanks"}]

    third = await respond(customer, everything, text("You are welcome."))

    assert customer.paid() == [7]
    assert third.output_text == "You are welcome."
    assert customer.shown[-2:] == [assistant("Paid."), user("Thanks")]
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"


async def test_in_a_conversation_it_is_added_behind_the_question(customer: Customer) -> None:
    conversation = await customer.caller.client.conversations.create()
    first = await requested(customer, 7, conversation=conversation.id)

    second = await respond(
        customer, [answer_to(first.output[-1].id or "")], text("Paid."), conversation=conversation.id
    )

    assert (second.output_text, customer.paid()) == ("Paid.", [7])


async def test_the_same_response_again_runs_nothing_again(customer: Customer) -> None:
    first = await requested(customer, 7)
    given = [answer_to(first.output[-1].id or "")]
    await respond(customer, given, text("Paid."), previous_response_id=first.id)

    await respond(customer, given, text("It is paid."), previous_response_id=first.id)

    assert customer.paid() == [7]
    assert results(customer.shown)[-1] == f"paid 7 to {customer.to}"


async def test_a_turn_decided_by_the_api_is_a_response(customer: Customer) -> None:
    first = await requested(customer, 7)
    (approval,) = await customer.approvals()
    customer.upstream.reply(text("Paid."))
    decided = await customer.decides(approval, "approve")
    await customer.resumed(decided)

    response = await customer.caller.client.responses.retrieve(
        decided["resumed_turn_id"].replace("chatcmpl-", "resp_")
    )

    assert (response.output_text, response.previous_response_id) == ("Paid.", first.id)


async def refusal(customer: Customer, given: Any, **more: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError) as refused:
        await respond(customer, given, **more)
    return refused.value


async def test_an_approval_response_without_a_request_is_rejected(customer: Customer) -> None:
    first = await requested(customer, 7)
    other = await respond(customer, "Hello", text("Hi"))

    unknown = await refusal(customer, [answer_to("appr_none")], previous_response_id=first.id)
    foreign = await refusal(customer, [answer_to(first.output[-1].id or "")], previous_response_id=other.id)
    alone = await refusal(customer, [answer_to("x" * 500)])

    assert "No approval request found with id 'appr_none'." in unknown.message
    assert [error.param for error in (unknown, foreign, alone)] == ["input", "input", "input"]
    assert len(alone.message) < 400
    assert customer.paid() == []


async def test_every_open_request_has_to_be_answered(customer: Customer) -> None:
    first = await requested(customer, 7, 8)
    one, two = first.output[-2:]

    error = await refusal(customer, [answer_to(one.id or "")], previous_response_id=first.id)

    assert two.id is not None
    assert two.id in error.message
    assert str(one.id) not in error.message
    assert len(await customer.approvals("pending")) == 2


async def test_a_response_that_comes_too_late_or_after_another_is_refused(customer: Customer) -> None:
    first = await requested(customer, 7)
    given = first.output[-1].id or ""
    await respond(customer, [answer_to(given, False)], text("Well."), previous_response_id=first.id)
    again = await requested(customer, 7)
    await respond(customer, "What for?", text("Hm."), previous_response_id=again.id)

    other = await refusal(customer, [answer_to(given)], previous_response_id=first.id)
    late = await refusal(customer, [answer_to(again.output[-1].id or "")], previous_response_id=again.id)

    assert (other.code, late.code) == ("approval_already_decided", "approval_expired")
    assert (other.param, late.param) == ("input", "input")
    assert customer.paid() == []


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"approve": True}, "input[0].approval_request_id"),
        ({"approval_request_id": "appr_1"}, "input[0].approve"),
        ({"approval_request_id": "", "approve": True}, "input[0].approval_request_id"),
        ({"approval_request_id": "appr_1", "approve": "yes"}, "input[0].approve"),
        ({"approval_request_id": "appr_1", "approve": True, "reason": "x" * 1001}, "input[0].reason"),
    ],
)
async def test_an_invalid_approval_response_is_rejected(customer: Customer, item: Any, param: str) -> None:
    error = await refusal(customer, [{"type": "mcp_approval_response", **item}])

    assert error.param == param
