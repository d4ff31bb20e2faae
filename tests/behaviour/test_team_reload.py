"""Changed team files: conversations keep their version, and a running server takes the new ones as a whole."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy.errors import ConfigurationError
from proxy.tools.mcp.discovery import discover_tools
from proxy.tools.mcp.lock import write_lock
from proxy.tools.mcp.setup import HttpEndpoint, ServerSetup
from tests.behaviour.chat_client import HIDDEN, Caller, assistant, shape_of, sold, user
from tests.behaviour.websocket_client import ENDS, connected
from tests.fakes.mcp_http import FakeMcp, says
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import TEAM_FILE, Served, serve

ANNA = {"X-Conversation-Id": "anna"}
BOB = {"X-Conversation-Id": "bob"}


@pytest.fixture
def teams(tmp_path: Path, upstream: FakeUpstream) -> Path:
    path = tmp_path / "changing.yaml"
    path.write_text(TEAM_FILE.format(upstream=upstream.base_url))
    return path


def change(teams: Path, old: str, new: str) -> None:
    content = teams.read_text()
    assert old in content
    teams.write_text(content.replace(old, new))


def instructions(upstream: FakeUpstream) -> str:
    content: str = upstream.requests[-1].body["messages"][0]["content"]
    return content.split("\n")[0]


async def reload(served: Served) -> None:
    assert served.app is not None
    await served.app.state.reload.run()


async def test_a_reload_applies_to_new_conversations_only(
    tmp_path: Path, teams: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, teams=teams) as served:
        caller = Caller(served)
        upstream.reply(text("1"), text("2"), text("3"))
        await caller.ask([user("One")], headers=ANNA)
        change(teams, "You are triage.", "You are the new triage.")

        await reload(served)

        await caller.ask([user("Two")], headers=ANNA)
        assert instructions(upstream) == "You are triage."
        assert shape_of(upstream) == ["system", "user:One", "assistant:1", "user:Two"]
        await caller.ask([user("Hello")], headers=BOB)
        assert instructions(upstream) == "You are the new triage."


async def test_a_restart_with_changed_files_keeps_the_version_of_a_conversation(
    tmp_path: Path, teams: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, teams=teams) as served:
        messages = await sold(Caller(served), upstream)
    change(teams, "You are sales.", "You are the new sales.")

    async with serve(tmp_path, teams=teams) as served:
        upstream.reply(text("Ten"))
        await Caller(served).ask([*messages, user("Red")])

    assert instructions(upstream) == "You are sales."
    assert shape_of(upstream) == [*HIDDEN, "user:Red"]


async def test_the_present_version_answers_if_the_earlier_one_cannot_be_built(
    tmp_path: Path, teams: Path, upstream: FakeUpstream
) -> None:
    change(teams, "models:\n", f"models:\n  other: {{model: m, base_url: '{upstream.base_url}'}}\n")
    change(teams, "instructions: You are triage.", "instructions: You are triage.\n        model: other")
    async with serve(tmp_path, teams=teams) as served:
        upstream.reply(text("1"), text("2"))
        await Caller(served).ask([user("One")], headers=ANNA)
        change(teams, f"  other: {{model: m, base_url: '{upstream.base_url}'}}\n", "")
        change(teams, "You are triage.\n        model: other", "You are the new triage.")

        await reload(served)
        await Caller(served).ask([user("Two")], headers=ANNA)

    assert instructions(upstream) == "You are the new triage."


@pytest.mark.parametrize("bad", ["entry: nobody", "entry: [", "entrie: triage"])
async def test_a_bad_file_changes_nothing(
    tmp_path: Path, teams: Path, upstream: FakeUpstream, bad: str
) -> None:
    async with serve(tmp_path, teams=teams) as served:
        change(teams, "You are triage.", "You are the new triage.")
        change(teams, "entry: triage", bad)

        with pytest.raises(ConfigurationError, match=r"changing\.yaml"):
            await reload(served)

        upstream.reply(text("1"))
        await Caller(served).ask([user("One")], headers=ANNA)
        assert instructions(upstream) == "You are triage."


async def test_a_running_turn_ends_with_the_teams_with_which_it_began(
    tmp_path: Path, teams: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, teams=teams) as served:
        go = asyncio.Event()
        upstream.reply(calls(("transfer_to_sales", {})).held(go), text("Sold"))
        running = asyncio.create_task(Caller(served).ask([user("One")], headers=ANNA))
        await upstream.received(1)
        change(teams, "  shop:", "  market:")
        change(teams, "You are sales.", "You are the new sales.")

        await reload(served)
        names = [model.id for model in (await served.client().models.list()).data]
        go.set()

        assert await running == "Sold"
        assert instructions(upstream) == "You are sales."
        assert "market" in names
        assert "shop" not in names


async def test_an_agent_of_a_team_is_pinned_too(tmp_path: Path, teams: Path, upstream: FakeUpstream) -> None:
    async with serve(tmp_path, teams=teams) as served:
        upstream.reply(text("1"), text("2"))
        caller = Caller(served)
        answer = await caller.ask([user("One")], model="shop/sales")
        change(teams, "You are sales.", "You are the new sales.")
        await reload(served)

        messages: list[Any] = [user("One"), assistant(answer), user("Two")]
        await caller.ask(messages, model="shop/sales")

    assert instructions(upstream) == "You are sales."


async def test_an_open_websocket_uses_the_new_teams(
    tmp_path: Path, teams: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, teams=teams) as served, connected(served, "/v1/ws") as client:
        change(teams, "  shop:", "  market:")
        await reload(served)
        upstream.reply(text("Hi"))
        request = {"model": "market", "messages": [user("Hello")]}

        await client.send({"type": "start", "id": "1", "request": request})
        reported = await client.until(*ENDS)

    assert reported[-1]["type"] == "turn.completed"


async def test_a_reload_opens_new_sessions_with_mcp_servers_and_closes_the_old_ones(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with FakeMcp() as fake:
        (found,) = await discover_tools([ServerSetup("shop", HttpEndpoint(fake.url))])
        write_lock(tmp_path, {"shop": {tool.name: tool for tool in found.tools}})
        teams = tmp_path / "helpers.yaml"
        teams.write_text(
            f"mcp_servers: {{shop: {{url: '{fake.url}'}}}}\n"
            f"models: {{default: {{model: m, base_url: '{upstream.base_url}', api_key: k}}}}\n"
            "teams:\n  helpers:\n    entry: Helper\n    agents:\n"
            "      Helper: {instructions: Help., tools: ['mcp:shop']}\n"
        )
        async with serve(tmp_path, teams=teams) as served:
            for _ in range(2):
                fake.reply("echo", says("Hello"))
                upstream.reply(calls(("shop__echo", {"text": "Hi"})), text("Done"))
                answer = await Caller(served).ask([user("Hi")], model="helpers")
                assert answer == "Done"
                await reload(served)
