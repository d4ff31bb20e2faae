"""The external agents in ``examples/``, served as they are, with a fake provider behind the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.behaviour.chat_client import Caller, assistant, user
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import serve

EXAMPLES = Path(__file__).parents[2] / "examples"


async def test_python_agent(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_orders", {})), text("At nine."))
    settings: Any = {"openai_base_url": upstream.base_url, "openai_api_key": SecretStr("key")}
    async with serve(tmp_path, teams=EXAMPLES / "python-agent", **settings) as served:
        caller = Caller(served)
        messages = [user("I want Moby-Dick")]
        question = await caller.ask(messages, model="library", user="anna")
        messages += [assistant(question), user("yes")]
        ordered = await caller.ask(messages, model="library", user="anna")
        messages += [assistant(ordered), user("When do you open?")]
        opening = await caller.ask(messages, model="library", user="anna")

    assert 'order_book(title: "moby-dick", price: 12)' in question
    assert ordered == "Your book is ordered (order 1). You have ordered 1 so far."
    assert opening == "At nine."
    assert upstream.requests[1].body["messages"][0]["content"].startswith("You work at the desk")


async def test_python_agent_as_a_team_of_one(tmp_path: Path) -> None:
    (tmp_path / "library_orders.py").symlink_to(EXAMPLES / "python-agent" / "library_orders.py")
    teams = tmp_path / "teams.yaml"
    teams.write_text('teams: {orders: {python: "library_orders:order"}}', encoding="utf-8")
    async with serve(tmp_path, teams=teams) as served:
        answer = await Caller(served).ask([user("When do you open?")], model="orders")

    assert answer == "I can order moby-dick and the dispossessed."


async def test_remote_agent(tmp_path: Path, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.reply(calls(("transfer_to_support", {})), text("It is on its way."))
    monkeypatch.setenv("SUPPORT_URL", upstream.base_url)
    settings: Any = {"openai_base_url": upstream.base_url, "openai_api_key": SecretStr("key")}
    async with serve(tmp_path, teams=EXAMPLES / "remote-agent", **settings) as served:
        answer = await Caller(served).ask([user("Where is my order?")], model="helpdesk")

    assert answer == "It is on its way."
    assert upstream.requests[1].body["model"] == "acme-support"
