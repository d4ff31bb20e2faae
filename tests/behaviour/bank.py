"""A bank whose cashier pays nothing that a person has not approved, and its customers."""

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
    """Serve the bank."""
    teams = folder / "bank.yaml"
    teams.write_text(team.format(upstream=upstream.base_url))
    async with serve(folder, teams=teams) as served:
        yield served


class Customer:
    """Somebody with a key and a list of messages, like that of a stock client; payments to ``to`` are theirs."""

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

    async def asks(self, words: str, *replies: Reply, **more: Any) -> str:
        """Send a user message; the response is added to the messages."""
        return (await self.completion(words, *replies, **more)).choices[0].message.content or ""

    async def completion(self, words: str, *replies: Reply, **more: Any) -> ChatCompletion:
        self.upstream.reply(*replies)
        headers = {**(self.headers or {}), **more.pop("headers", {})}
        answer = await self.caller.completion(
            [*self.messages, user(words)], model="bank", headers=headers, **more
        )
        self.messages += [user(words), assistant(answer.choices[0].message.content)]
        return answer

    async def asks_to_pay(self, *amounts: int, **more: Any) -> str:
        """Ask for payments, of which the cashier makes one call each; return the question."""
        made = calls(*(("pay", {"amount": amount, "to": self.to}) for amount in amounts))
        return await self.asks("Pay, please.", calls(("transfer_to_cashier", {})), made, **more)

    async def http(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.key}", **more.pop("headers", {})}
        # Without reading certificates, which takes longer than the test.
        async with httpx2.AsyncClient(base_url=self.served.base_url, timeout=20, verify=False) as client:
            return await client.request(method, path, headers=headers, **more)

    async def approvals(self, status: str = "all") -> list[dict[str, Any]]:
        """All of this status, the oldest first."""
        answer = await self.http("GET", f"/approvals?status={status}&order=asc")
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["data"]
        return found

    async def decides(self, approval: dict[str, Any], decision: str, reason: str | None = None) -> Any:
        """Decide by the approval's id; return the approval."""
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
        said = [item for item in answer.json()["output"] if item["type"] == "message"]
        return "".join(part["text"] for item in said for part in item["content"])

    def paid(self) -> list[int]:
        """The amounts that were paid to this customer."""
        book = self.served.services.settings.data_dir / "paid"
        lines = book.read_text().splitlines() if book.exists() else []
        return [int(line.split()[1]) for line in lines if line.split()[2] == self.to]

    @property
    def shown(self) -> list[Any]:
        """What the model was shown last, without its instructions."""
        return [
            message for message in self.upstream.requests[-1].body["messages"] if message["role"] != "system"
        ]


def results(shown: list[Any]) -> list[str]:
    """The results of calls, in order."""
    return [message["content"] for message in shown if message["role"] == "tool"]
