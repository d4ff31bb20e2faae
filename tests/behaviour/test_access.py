"""Which data a request can access: caller × end user × owner × every endpoint that returns or continues stored data."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.behaviour.bank import Customer
from tests.behaviour.websocket_client import connected
from tests.fakes.upstream import calls, text

pytestmark = pytest.mark.asyncio(loop_scope="module")

USER = "X-OpenWebUI-User-Id"


@dataclass(frozen=True)
class Stored:
    """A conversation whose only turn asked for approval: its ids, and a request that tries to access them."""

    customer: Customer
    headers: dict[str, Any]
    conversation: str
    turn: str
    response: str
    approval: str
    item: str

    async def get(self, path: str) -> bool:
        return await self.send("GET", path)

    async def send(self, method: str, path: str, **more: Any) -> bool:
        """Whether the request succeeds; any failure has to be that the data does not exist."""
        answer = await self.customer.http(method, path, headers=self.headers, **more)
        assert answer.status_code in (200, 400, 404), answer.text
        if answer.status_code == 400:
            assert "not found" in answer.json()["error"]["message"], answer.text
        return answer.status_code == 200

    async def lists(self, path: str, item: str) -> bool:
        answer = await self.customer.http("GET", path, headers=self.headers)
        assert answer.status_code == 200, answer.text
        return item in [one["id"] for one in answer.json()["data"]]

    async def subscribe(self) -> bool:
        async with connected(self.customer.served, "/v1/ws", key=self.customer.key, **self.headers) as client:
            await client.send({"type": "subscribe", "id": "1", "turn_id": self.turn})
            answer = await client.next()
        assert answer["type"] == "reply" or answer["status"] == 404, answer
        return bool(answer["type"] == "reply")

    async def respond(self, **body: Any) -> bool:
        self.customer.upstream.forget().reply(text("Later."))
        return await self.send("POST", "/responses", json={"model": "bank", "input": "Hi", **body})

    async def chat(self, **headers: str) -> bool:
        self.customer.upstream.forget().reply(text("Later."))
        answer = await self.customer.http(
            "POST",
            "/chat/completions",
            headers={**self.headers, **headers},
            json={"model": "bank", "messages": [{"role": "user", "content": "Hi"}]},
        )
        return answer.status_code == 200


ACCESS: dict[str, Callable[[Stored], Awaitable[bool]]] = {
    "conversation": lambda it: it.get(f"/conversations/{it.conversation}"),
    "conversation items": lambda it: it.get(f"/conversations/{it.conversation}/items"),
    "conversation item": lambda it: it.get(f"/conversations/{it.conversation}/items/{it.item}"),
    "conversation turns": lambda it: it.get(f"/conversations/{it.conversation}/turns"),
    "conversation events": lambda it: it.get(f"/conversations/{it.conversation}/events?follow=false"),
    "list of conversations": lambda it: it.lists("/conversations", it.conversation),
    "turn": lambda it: it.get(f"/turns/{it.turn}"),
    "turn events": lambda it: it.get(f"/turns/{it.turn}/events"),
    "turn over WebSocket": lambda it: it.subscribe(),
    "completion": lambda it: it.get(f"/chat/completions/{it.turn}"),
    "completion messages": lambda it: it.get(f"/chat/completions/{it.turn}/messages"),
    "completion stream": lambda it: it.get(f"/chat/completions/{it.turn}/stream"),
    "list of completions": lambda it: it.lists("/chat/completions", it.turn),
    "response": lambda it: it.get(f"/responses/{it.response}"),
    "response input": lambda it: it.get(f"/responses/{it.response}/input_items"),
    "approval": lambda it: it.get(f"/approvals/{it.approval}"),
    "list of approvals": lambda it: it.lists("/approvals", it.approval),
    "cancellation": lambda it: it.send("POST", f"/turns/{it.turn}/cancel"),
    "metadata": lambda it: it.send("POST", f"/conversations/{it.conversation}", json={"metadata": {}}),
    "item reference": lambda it: it.respond(input=[{"type": "item_reference", "id": it.item}]),
    "previous response": lambda it: it.respond(previous_response_id=it.response),
    "parent turn": lambda it: it.chat(**{"X-Parent-Id": it.turn}),
    "step of a turn": lambda it: it.chat(**{"X-Parent-Id": f"{it.turn}.2"}),
}


async def stored(customer: Customer, owner: str, requester: Customer, end_user: str) -> Stored:
    conversation = f"conv_{secrets.token_hex(16)}"
    customer.upstream.reply(
        calls(("transfer_to_cashier", {})), calls(("pay", {"amount": 1, "to": customer.to}))
    )
    answer = await customer.http(
        "POST",
        "/chat/completions",
        headers={"X-Conversation-Id": conversation, **({USER: owner} if owner else {})},
        json={"model": "bank", "messages": [{"role": "user", "content": "Pay."}], "store": True},
    )
    turn: str = answer.json()["id"]
    (approval,) = await customer.approvals()
    items = (await customer.http("GET", f"/conversations/{conversation}/items")).json()["data"]
    return Stored(
        requester,
        {USER: end_user} if end_user else {},
        conversation,
        turn,
        turn.replace("chatcmpl-", "resp_"),
        approval["id"],
        items[0]["id"],
    )


@pytest.mark.parametrize(
    ("is_same_caller", "end_user", "owner", "may_access"),
    [
        (True, "", "", True),
        (True, "", "ann", True),
        (True, "ann", "", True),
        (True, "ann", "ann", True),
        (True, "ben", "ann", False),
        (False, "", "", False),
        (False, "", "ann", False),
        (False, "ann", "", False),
        (False, "ann", "ann", False),
        (False, "ben", "ann", False),
    ],
)
async def test_every_endpoint_applies_the_same_rule(
    customer: Customer, is_same_caller: bool, end_user: str, owner: str, may_access: bool
) -> None:
    requester = customer if is_same_caller else Customer(customer.served, customer.upstream)
    it = await stored(customer, owner, requester, end_user)

    accessed = {name: await access(it) for name, access in ACCESS.items()}

    assert accessed == dict.fromkeys(ACCESS, may_access)


@pytest.mark.parametrize(
    ("end_user", "owner", "may_access"),
    [("", "", True), ("", "ann", True), ("ann", "", True), ("ann", "ann", True), ("ben", "ann", False)],
)
async def test_a_named_conversation_is_continued_by_its_end_user_only(
    customer: Customer, end_user: str, owner: str, may_access: bool
) -> None:
    it = await stored(customer, owner, customer, end_user)

    continues = {
        "chat": await it.chat(**{"X-Conversation-Id": it.conversation}),
        "responses": await it.respond(conversation=it.conversation),
        "start again": await it.chat(**{"X-Conversation-Id": it.conversation, "X-Parent-Id": "root"}),
    }

    assert continues == dict.fromkeys(continues, may_access)
