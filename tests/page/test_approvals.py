"""Approvals of tool calls on the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, expect

from tests.behaviour.bank import bank
from tests.fakes.payment_tool import paid
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.page.visitor import visit
from tests.server import Served

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAY = calls(("pay", {"amount": 7, "to": "Bob"}))
TRANSFER = calls(("transfer_to_cashier", {}))


@pytest_asyncio.fixture(loop_scope="session")
async def served(tmp_path: Path, upstream: FakeUpstream) -> AsyncIterator[Served]:
    async with bank(tmp_path, upstream) as created:
        yield created


async def test_approve_button_runs_the_call_and_continues(
    browser: Browser, served: Served, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.reply(TRANSFER, PAY, text("Paid."))
    async with visit(browser, served.url) as visitor:
        await visitor.open()
        await visitor.ask("Pay Bob")
        card = visitor.page.locator(".approval")
        await expect(card).to_contain_text("cashier requests approval to run pay")
        await expect(card).to_contain_text('"amount": 7')
        await expect(visitor.answer.locator(".md")).to_have_count(0)

        await visitor.button("Approve").click()

        await expect(visitor.turns).to_have_count(2)
        await visitor.wait_for_answer(2)
        await expect(visitor.answer).to_contain_text("Paid.")
        await expect(visitor.page.locator(".approval button")).to_have_count(0)
        await expect(
            visitor.page.get_by_text("Approved", exact=True).and_(visitor.page.locator("p"))
        ).to_have_count(1)
        await visitor.page.reload()
        await visitor.wait_for_answer(2)
        await expect(visitor.page.locator(".approval button")).to_have_count(0)
        assert paid(tmp_path) == ["7 Bob"]


async def test_card_shows_characters_that_reorder_or_hide_text(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(TRANSFER, calls(("pay", {"amount": 7, "to": "Bob\u202e\u200b eciA"})))
    async with visit(browser, served.url) as visitor:
        await visitor.open()
        await visitor.ask("Pay Bob")

        await expect(visitor.page.locator(".approval pre")).to_contain_text("Bob\\u{202e}\\u{200b} eciA")


async def test_refuse_button_rejects_the_call(
    browser: Browser, served: Served, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.reply(TRANSFER, PAY, text("As you like."))
    async with visit(browser, served.url) as visitor:
        await visitor.open()
        await visitor.ask("Pay Bob")

        await visitor.button("Refuse").click()

        await visitor.wait_for_answer(2)
        await expect(visitor.answer).to_contain_text("As you like.")
        assert paid(tmp_path) == []


async def test_pending_approval_survives_a_reload_and_accepts_a_text_answer(
    browser: Browser, served: Served, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.reply(TRANSFER, PAY, text("Paid."))
    async with visit(browser, served.url) as visitor:
        await visitor.open()
        await visitor.ask("Pay Bob")
        await visitor.page.reload()
        await visitor.wait_for_answer()
        await expect(visitor.button("Approve")).to_be_enabled()

        await visitor.ask("yes", 2)

        await expect(visitor.answer).to_contain_text("Paid.")
        await expect(visitor.page.locator(".approval button")).to_have_count(0)
        assert paid(tmp_path) == ["7 Bob"]
