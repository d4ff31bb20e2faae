"""Approvals over restarts, over several workers, and when a worker dies: nothing is lost, and nothing is run twice."""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.behaviour.bank import TEAM, Customer, bank, results
from tests.behaviour.chat_client import agent_of, user
from tests.fakes.payment_tool import paid
from tests.fakes.upstream import FakeUpstream, calls, hang, text
from tests.server import Served, serve_process


@pytest.mark.parametrize("way", ["in the conversation", "by its id"])
async def test_a_decision_after_a_restart_continues_with_the_same_agent(
    tmp_path: Path, upstream: FakeUpstream, way: str
) -> None:
    async with bank(tmp_path, upstream) as served:
        before = Customer(served, upstream)
        question = await before.asks_to_pay(7)
        (approval,) = await before.approvals("pending")

    async with bank(tmp_path, upstream) as served:
        customer = Customer(served, upstream, like=before)
        assert await customer.approvals("pending") == [approval]
        if way == "by its id":
            upstream.reply(text("Paid."))
            assert await customer.resumed(await customer.decides(approval, "approve")) == "Paid."
        else:
            assert await customer.asks("yes", text("Paid.")) == "Paid."

    assert paid(tmp_path) == [f"7 {before.to}"]
    assert agent_of(upstream) == "cashier"
    assert customer.shown[5]["content"] == question
    assert results(customer.shown)[-1] == f"paid 7 to {before.to}"


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        pytest.param(("          - {{name: \"tests.fakes.payment_tool:pay\", approval: required}}\n", ""),
                     "error: there is no tool named 'pay'", id="the tool is gone"),
        pytest.param((", approval: required", ""), "paid 7 to ", id="the tool needs no approval any more"),
    ],
)  # fmt: skip
async def test_the_team_file_may_change_meanwhile(
    tmp_path: Path, upstream: FakeUpstream, change: tuple[str, str], reported: str
) -> None:
    async with bank(tmp_path, upstream) as served:
        before = Customer(served, upstream)
        await before.asks_to_pay(7)
        (approval,) = await before.approvals("pending")

    async with bank(tmp_path, upstream, TEAM.replace(*change)) as served:
        customer = Customer(served, upstream, like=before)
        upstream.reply(text("Well."))
        assert await customer.resumed(await customer.decides(approval, "approve")) == "Well."

    assert results(customer.shown)[-1].startswith(reported)


async def test_a_resumed_turn_runs_the_team_that_its_conversation_began_with_but_needs_its_name(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with bank(tmp_path, upstream) as served:
        before = Customer(served, upstream)
        await before.asks_to_pay(7)
        await before.asks_to_pay(8)
        (approval,) = await before.approvals("pending")
        assert before.paid() == []

    async with bank(tmp_path, upstream, TEAM.replace("  bank:", "  other:")) as served:
        gone = Customer(served, upstream, like=before)
        answer = await gone.http("POST", f"/approvals/{approval['id']}", json={"decision": "approve"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert await gone.approvals("pending") == [approval]

    async with bank(
        tmp_path, upstream, TEAM.replace("cashier:", "teller:").replace("to: cashier", "to: teller")
    ) as served:
        customer = Customer(served, upstream, like=before)
        upstream.reply(text("Well."))
        assert await customer.resumed(await customer.decides(approval, "approve")) == "Well."

    assert agent_of(upstream) == "cashier"
    assert results(customer.shown)[-1] == f"paid 8 to {customer.to}"


async def test_concurrent_decisions_at_two_workers_start_one_turn(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with bank(tmp_path, upstream) as one, bank(tmp_path, upstream) as two:
        here = Customer(one, upstream)
        await here.asks_to_pay(7, 8)
        there = Customer(two, upstream, like=here)
        first, second = await here.approvals("pending")
        upstream.reply(text("Paid."))

        decided = await asyncio.gather(
            here.decides(first, "approve"),
            there.decides(second, "approve"),
            there.decides(first, "approve"),
            here.decides(second, "approve"),
        )

        (after, _) = await there.approvals()
        assert {one["resumed_turn_id"] for one in decided} - {None} == {after["resumed_turn_id"]}
        assert await there.resumed(after) == "Paid."
        assert await here.resumed(after) == "Paid."
        assert sorted(here.paid()) == [7, 8]


async def test_a_word_at_one_worker_and_a_decision_at_another_run_the_call_once(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with bank(tmp_path, upstream) as one, bank(tmp_path, upstream) as two:
        here = Customer(one, upstream)
        await here.asks_to_pay(7)
        there = Customer(two, upstream, like=here)
        (approval,) = await here.approvals("pending")
        upstream.reply(text("Paid."), text("It is paid."))

        async def said() -> Any:
            client = here.served.client(here.key, max_retries=5)
            return await client.chat.completions.create(model="bank", messages=[*here.messages, user("yes")])

        decision = asyncio.create_task(
            there.http("POST", f"/approvals/{approval['id']}", json={"decision": "approve"})
        )
        answer = await said()
        assert (await decision).status_code in (200, 409)

        assert answer.choices[0].message.content in ("Paid.", "It is paid.")
        async with asyncio.timeout(5):
            while one.services.turns.running or two.services.turns.running:
                await asyncio.sleep(0.01)
        assert here.paid() == [7]


async def test_a_worker_that_dies_loses_no_decision_and_no_call_is_run_twice(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    """Three customers: one worker dies before the first had its answer, while the call of the second runs, and before
    the third, who decides nothing, has said anything.
    """
    (tmp_path / "bank.yaml").write_text(TEAM.format(upstream=upstream.base_url))
    environment = {"PROXY_TEAMS": str(tmp_path / "bank.yaml"), "PROXY_SEPARATE_KEYS": "true"}
    async with serve_process(tmp_path, environment=environment) as (served, process):
        answered, running, waiting = [Desk(served) for _ in range(3)]
        for desk in (answered, running, waiting):
            upstream.reply(calls(("transfer_to_cashier", {})), calls(("pay", {"amount": 7, "to": desk.to})))
            await desk.ask("Pay")
        before = len(upstream.requests)
        upstream.reply(hang())
        first = await answered.decide()
        await upstream.received(before + 1)
        (tmp_path / "data" / "closed").touch()
        second = await running.decide()
        async with asyncio.timeout(5):
            while len(paid(tmp_path)) < 2:
                await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await process.wait()
    (tmp_path / "data" / "closed").unlink()
    upstream.forget().reply(text("Well."), text("Well."), text("Paid."))

    async with serve_process(tmp_path, environment=environment) as (served, _):
        for desk, decided in ((answered, first), (running, second)):
            desk.served = served
            (approval,) = await desk.approvals()
            assert approval["resumed_turn_id"] == decided["resumed_turn_id"]
            assert await desk.text_of(approval["resumed_turn_id"]) == "Well."
        waiting.served = served
        assert await waiting.ask("yes") == "Paid."

    shown = {desk.to: request.body["messages"] for request in upstream.requests for desk in (answered, running)
             if desk.to in json.dumps(request.body["messages"])}  # fmt: skip
    assert results(shown[answered.to])[-1] == f"paid 7 to {answered.to}"
    assert results(shown[running.to])[-1].startswith("error: it is not known whether this call was executed")
    assert sorted(paid(tmp_path)) == sorted(f"7 {desk.to}" for desk in (answered, running, waiting))


class Desk:
    """A customer of a bank that is a process of its own."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.key = secrets.token_hex(8)
        self.to = f"to-{secrets.token_hex(4)}"
        self.messages: list[Any] = []

    async def _http(self, method: str, path: str, **more: Any) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {self.key}"}
        async with httpx2.AsyncClient(
            base_url=self.served.base_url, headers=headers, timeout=20, verify=False
        ) as client:
            answer = await client.request(method, path, **more)
        assert answer.status_code == 200, answer.text
        return answer

    async def ask(self, content: str) -> str:
        self.messages.append(user(content))
        answer = await self._http(
            "POST", "/chat/completions", json={"model": "bank", "messages": self.messages}
        )
        message = answer.json()["choices"][0]["message"]
        self.messages.append({"role": "assistant", "content": message["content"]})
        return str(message["content"])

    async def approvals(self) -> list[Any]:
        found: list[Any] = (await self._http("GET", "/approvals?status=all")).json()["data"]
        return found

    async def decide(self) -> Any:
        (approval,) = await self.approvals()
        return (await self._http("POST", f"/approvals/{approval['id']}", json={"decision": "approve"})).json()

    async def text_of(self, turn_id: str) -> str:
        body = (await self._http("GET", f"/turns/{turn_id}/events?types=text.delta")).text
        return "".join(
            json.loads(line[6:])["data"]["text"] for line in body.split("\n") if line[:5] == "data:"
        )
