"""The team panel: graph, active agent, handoffs and usage of each agent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser, ViewportSize, expect

from tests.fakes.upstream import FakeUpstream, calls, text
from tests.page.visitor import Visitor, visit
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

WIDE: ViewportSize = {"width": 1280, "height": 800}


async def test_graph_shows_the_team_and_follows_a_handoff(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "wants a rocket"})),
        text("", chunks=["Sure", rest, ", a rocket."]),
    )
    async with visit(browser, served.url) as visitor:
        await visitor.page.set_viewport_size(WIDE)
        await visitor.open()
        nodes = visitor.page.locator("#team-panel .node .name")
        await expect(nodes).to_have_text(["triage", "sales", "repairs"])
        await expect(visitor.page.locator(".edge")).to_have_count(4)

        await visitor.send("A rocket")

        active = visitor.page.locator(".node.active .name")
        await expect(active).to_have_text("sales")
        await expect(visitor.page.locator(".caption")).to_have_text("triage → sales: wants a rocket")
        await expect(visitor.page.locator(".edge.used")).to_have_count(1)
        rest.set()
        await visitor.wait_for_answer()
        await expect(visitor.page.locator(".node.active .used")).to_contain_text("tokens")


async def test_handoff_moves_along_its_edge(browser: Browser, served: Served, upstream: FakeUpstream) -> None:
    record = """() => {
        const dot = document.querySelector(".traveller");
        const edge = [...document.querySelectorAll(".edge")].find(one => one.classList.contains("agent-0"));
        window.positions = [];
        new MutationObserver(() => {
            if (dot.style.display !== "none") window.positions.push(Number(dot.getAttribute("cy")));
        }).observe(dot, { attributes: true, attributeFilter: ["cx", "cy"] });
        return [edge.getPointAtLength(0).y, edge.getPointAtLength(edge.getTotalLength()).y];
    }"""
    for motion in ("no-preference", "reduce"):
        upstream.reply(calls(("transfer_to_sales", {"reason": "wants a rocket"})), text("Sure."))
        async with visit(browser, served.url, reduced_motion=motion) as visitor:
            await visitor.page.set_viewport_size(WIDE)
            await visitor.open()
            await expect(visitor.page.locator(".edge")).to_have_count(4)
            start, end = await visitor.page.evaluate(record)
            await visitor.ask("A rocket")
            await expect(visitor.page.locator(".traveller")).to_be_hidden()

            positions = await visitor.page.evaluate("window.positions")
            if motion == "reduce":
                assert positions == []
            else:
                assert positions == sorted(positions)
                assert start - 1 <= positions[0] < positions[-1] <= end + 1


async def test_graph_shows_a_custom_team(browser: Browser, tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_writer", {"reason": "needs a text"})), text("Once upon a time"))
    team = {
        "name": "press",
        "entry": "editor",
        "agents": {
            "editor": {
                "instructions": "You edit.",
                "model": "default",
                "handoffs": [{"to": "writer", "when": "a text is needed"}],
            },
            "writer": {"instructions": "You write.", "model": "default"},
        },
    }
    async with (
        serve(tmp_path, upstream.base_url, agents_over_http=True) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.page.set_viewport_size(WIDE)
        await visitor.open()
        await visitor.page.evaluate(
            """team => fetch("/v1/teams", {
                method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(team),
            })""",
            team,
        )
        await visitor.page.reload()
        await visitor.page.select_option("#team", "press")
        await expect(visitor.page.locator(".node .name")).to_have_text(["editor", "writer"])
        await visitor.ask("A tale")

        await expect(visitor.page.locator(".node.active .name")).to_have_text("writer")
        await expect(visitor.page.locator(".edge.used")).to_have_count(1)
        await visitor.page.locator(".node", has_text="editor").click()
        details = visitor.page.get_by_role("region", name="Agent", exact=True)
        await expect(details).to_contain_text("You edit.")
        await expect(details).to_contain_text("writer – a text is needed")
        await expect(details).to_contain_text("Time")


async def test_node_opens_to_the_definition_and_usage_of_the_agent(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    async with visit(browser, served.url) as visitor:
        await visitor.page.set_viewport_size(WIDE)
        await visitor.open()
        await visitor.ask("Hi")

        await visitor.page.locator(".node", has_text="triage").click()

        details = visitor.page.get_by_role("region", name="Agent", exact=True)
        await expect(details).to_contain_text("You are triage.")
        await expect(details).to_contain_text("sales – the user wants to buy")
        await expect(details).to_contain_text("input tokens")
        await visitor.page.locator(".node", has_text="repairs").click()
        await expect(details).to_contain_text("look_up_item")
        await expect(details).to_contain_text("Not used in this conversation")


async def test_panel_is_closed_on_narrow_screens_and_remembered_on_wide_ones(visitor: Visitor) -> None:
    panel, toggle = visitor.page.locator("#team-panel"), visitor.button("Team panel")
    await expect(panel).to_be_hidden()
    await toggle.click()
    await expect(panel).to_be_visible()
    await visitor.button("Close the team panel").click()
    await expect(toggle).to_be_focused()
    for close in (
        visitor.page.keyboard.press("Escape"),
        visitor.page.locator("#scrim").click(position={"x": 40, "y": 400}),
    ):
        await toggle.click()
        await expect(panel).to_be_visible()
        await close
        await expect(panel).to_be_hidden()

    await visitor.page.set_viewport_size(WIDE)
    await expect(panel).to_be_visible()
    await toggle.click()
    await visitor.page.reload()

    await expect(visitor.page.locator("#welcome h1")).to_be_visible()
    await expect(panel).to_be_hidden()
