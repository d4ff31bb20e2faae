"""The timeline of a turn, branches and their comparison."""

from __future__ import annotations

import pytest
from playwright.async_api import expect

from tests.fakes.upstream import FakeUpstream, calls, text
from tests.page.one_tab import tab_of_module, upstream_of_tab, visitor_of_tab  # noqa: F401
from tests.page.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")

ORDER = (
    calls(("transfer_to_sales", {"reason": "wants a rocket"})),
    calls(("execute_order", {"product": "Rocket", "price": 10})),
    text("Ordered."),
)


async def test_slider_shows_context_and_action_of_each_step(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(*ORDER)
    await visitor.ask("A rocket")

    await visitor.button("Timeline").click()

    lanes = visitor.page.locator(".lane .name")
    await expect(lanes).to_have_text(["triage", "sales", "execute_order"])
    step, slider = (
        visitor.page.locator(".step-title"),
        visitor.page.get_by_role("slider", name="Step of the turn"),
    )
    await expect(step).to_have_text("6/6The turn is complete")
    titles = []
    for value in range(6):
        await slider.fill(str(value))
        titles.append((await step.text_content() or "")[3:])
    assert titles == [
        "triage receives the message",
        "triage hands off to sales",
        "sales calls execute_order",
        "execute_order returns a result",
        "sales writes the answer",
        "The turn is complete",
    ]
    await slider.fill("1")
    await expect(visitor.page.locator(".step pre")).to_have_text("wants a rocket")
    await expect(visitor.page.locator(".context summary")).to_have_text("Context of sales: 1 item")
    await slider.fill("4")
    await expect(visitor.page.locator(".context summary")).to_have_text("Context of sales: 4 items")
    await visitor.button("Previous step").click()
    await expect(slider).to_have_value("3")


async def test_branch_starts_from_the_timeline_and_is_compared(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(*ORDER, text("A unicycle, then."))
    await visitor.ask("A rocket")
    await visitor.button("Timeline").click()
    await visitor.page.get_by_role("slider", name="Step of the turn").fill("0")

    await visitor.button("Branch from here").click()
    message = visitor.page.get_by_role("textbox", name="Message of the branch")
    await expect(message).to_have_value("A rocket")
    await message.fill("A unicycle")
    await visitor.button("Start branch").click()
    await visitor.wait_for_answer()

    await visitor.expect_messages(["A unicycle"])
    await visitor.button("Compare versions").click()
    left, right = (visitor.page.locator(".column").nth(index) for index in range(2))
    await expect(left.locator(".user .text")).to_have_text("A rocket")
    await expect(left.locator(".tool code").first).to_have_text("execute_order")
    await expect(right.locator(".user .text")).to_have_text("A unicycle")
    await expect(right).to_contain_text("A unicycle, then.")
    await left.get_by_role("combobox").select_option("1")
    await expect(left).to_contain_text("A unicycle, then.")


async def test_branch_starts_behind_a_step_inside_a_turn(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(*ORDER, text("Which colour?"))
    await visitor.ask("A rocket")
    await visitor.button("Timeline").click()
    slider = visitor.page.get_by_role("slider", name="Step of the turn")
    await slider.fill("1")

    await visitor.button("Branch from here").click()
    await visitor.page.get_by_role("textbox", name="Message of the branch").fill("A blue one, please")
    await visitor.button("Start branch").click()
    await visitor.wait_for_answer(2)

    await visitor.expect_messages(["A rocket", "A blue one, please"])
    await expect(visitor.turns.first.locator(".handoff .reason")).to_have_text("wants a rocket")
    await expect(visitor.turns.first.locator(".tool")).to_have_count(0)
    await visitor.expect_answers(["Which colour?"])
    sent = upstream.requests[-1].body["messages"]
    assert [one["role"] for one in sent] == ["system", "user", "assistant", "tool", "user"]
    assert sent[0]["content"].startswith("You are sales.")

    await visitor.button("Previous version").click()
    await visitor.expect_answers(["Ordered."])
    await visitor.button("Compare versions").click()
    columns = visitor.page.locator(".column")
    await expect(columns.first).to_contain_text("Ordered.")
    await expect(columns.last.locator(".user .text")).to_have_text(["A rocket", "A blue one, please"])
    await expect(columns.last).to_contain_text("Which colour?")
