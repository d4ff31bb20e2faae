"""A team with a payment tool that requires approval, and a client that sends messages and decisions to it."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
from openai.types.chat import ChatCompletion

from tests.behaviour.chat_client import Caller, Messages, assistant, user
from tests.fakes.upstream import FakeUpstream, Reply, calls
from tests.server import Served, serve

TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: upstream-key}}
teams:
  bank:
    entry: clerk
    agents:
      clerk:
        instructions: You are clerk.
        handoffs: [{{to: cashier, tool: transfer_to_cashier}}]
      cashier:
        instructions: You are cashier.
        tools:
          - {{name: "tests.fakes.payment_tool:pay", approval: required}}
          - tests.fakes.payment_tool:greet
        handoffs: [{{to: clerk, tool: transfer_to_clerk}}]
"""
WAITING = (
    "not executed yet: the user has to approve this call and is being asked now. It is run only if the user says yes; "
    "anything else means no."
)


@asynccontextmanager
async def bank(folder: Path, upstream: FakeUpstream, team: str = TEAM) -> AsyncIterator[Served]:
    """Serve the team ``bank``."""
    teams = folder / "bank.yaml"
    teams.write_text(team.format(upstream=upstream.base_url))
    async with serve(folder, teams=teams) as served:
        yield served


class Customer:
    """A client with its own API key and list of messages; its payments go to ``to``."""

    def __init__(
        self,
        served: Served,
        upstream: FakeUpstream,
        *,
        key: str = "",
        headers: dict[str, str] | None = None,
        like: Customer | None = None,
    ) -> None:
        self.served = served
        self.upstream = upstream
        self.key: str = like.key if like is not None else key or secrets.token_hex(8)
        self.to: str = like.to if like is not None else f"to-{secrets.token_hex(4)}"
        self.messages: Messages = list(like.messages) if like is not None else []
        self.headers = headers
        self.caller = Caller(served, self.key)

    async def asks(self, content: str, *replies: Reply, **more: Any) -> str:
        """Send a user message; the response is added to the messages."""
        return (await self.completion(content, *replies, **more)).choices[0].message.content or ""

    async def completion(self, content: str, *replies: Reply, **more: Any) -> ChatCompletion:
        self.upstream.reply(*replies)
        headers = {**(self.headers or {}), **more.pop("headers", {})}
        answer = await self.caller.completion(
            [*self.messages, user(content)], model="bank", headers=headers, **more
        )
        self.messages += [user(content), assistant(answer.choices[0].message.content)]
        return answer

    async def asks_to_pay(self, *amounts: int, **more: Any) -> str:
        """Request payments, one tool call each; return the response, which asks for approval."""
        payments = calls(*(("pay", {"amount": amount, "to": self.to}) for amount in amounts))
        return await self.asks("Pay, please.", calls(("transfer_to_cashier", {})), payments, **more)

    async def http(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.key}", **more.pop("headers", {})}
        # ``verify=False``: loading the certificates takes longer than the test.
        async with httpx2.AsyncClient(base_url=self.served.base_url, timeout=20, verify=False) as client:
            return await client.request(method, path, headers=headers, **more)

    async def approvals(self, status: str = "all") -> list[dict[str, Any]]:
        """Return the approvals with this status, oldest first."""
        answer = await self.http("GET", f"/approvals?status={status}&order=asc")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    async def decides(self, approval: dict[str, Any], decision: str, reason: str | None = None) -> Any:
        """Post a decision on the approval; return the updated approval."""
        body = {"decision": decision} | ({} if reason is None else {"reason": reason})
        answer = await self.http("POST", f"/approvals/{approval['id']}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def resumed(self, approval: dict[str, Any]) -> str:
        """Wait for the turn that continues in the background and return its response."""
        path = f"/turns/{approval['resumed_turn_id']}/events?types=text.delta,turn.failed"
        body = (await self.http("GET", path)).text
        assert "turn.failed" not in body, body
        answer = await self.http(
            "GET", f"/responses/{approval['resumed_turn_id'].replace('chatcmpl-', 'resp_')}"
        )
        messages = [item for item in answer.json()["output"] if item["type"] == "message"]
        return "".join(part["text"] for item in messages for part in item["content"])

    def paid(self) -> list[int]:
        """Return the amounts that were paid to this client."""
        book = self.served.services.settings.data_dir / "paid"
        lines = book.read_text().splitlines() if book.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[2] == self.to]

    @property
    def shown(self) -> list[Any]:
        """Return the messages of the last model request, without the system message."""
        return [
            message for message in self.upstream.requests[-1].body["messages"] if message["role"] != "system"
        ]


def results(shown: list[Any]) -> list[str]:
    """Return the contents of the tool messages, in order."""
    return [message["content"] for message in shown if message["role"] == "tool"]
