"""The start panel: messages to try, set-up of a model, and the check of the connection."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.fakes.upstream import FakeUpstream, error, text
from tests.page.visitor import Visitor, visit
from tests.server import serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_connection_check_shows_whether_the_model_answers(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("OK"), error(401, message="Incorrect API key: upstream-key"))
    setup = visitor.page.get_by_role("region", name="Set-up")
    await expect(setup).to_contain_text("Language model configured")
    await expect(setup).to_contain_text("No API key required")

    await visitor.button("Check connection").click()
    await expect(setup.locator(".good")).to_contain_text("test-model answered in")
    await visitor.button("Check again").click()

    failed = setup.locator(".bad")
    await expect(failed).to_contain_text("test-model: The provider of the model behind this team rejected")
    await expect(failed).not_to_contain_text("upstream-key")
    assert [request.body["messages"][0]["content"] for request in upstream.requests] == ["Reply with OK."] * 2


async def test_demonstration_offers_settings_for_a_model(browser: Browser, tmp_path: Path) -> None:
    async with serve(tmp_path) as served, visit(browser, served.url) as visitor:
        await visitor.open()
        await expect(visitor.page.locator("#welcome .examples button")).to_have_count(3)
        await visitor.button("Use a model").click()
        dialog = visitor.page.get_by_role("dialog")
        code = dialog.locator("pre code")
        await expect(code).to_have_text(
            "OPENAI_API_KEY=sk-your-key\nOPENAI_BASE_URL=https://api.openai.com/v1\nOPENAI_MODEL=gpt-5-mini"
        )
        await dialog.get_by_label("Provider").select_option("Ollama")
        await dialog.get_by_label("Model").fill("my model")
        await expect(code).to_have_text("OPENAI_BASE_URL=http://127.0.0.1:11434/v1\nOPENAI_MODEL='my model'")
        await visitor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        await visitor.button("Copy settings").click()
        await expect(dialog.get_by_role("status").filter(has_text="Copied")).to_be_attached()
        assert await visitor.page.evaluate("navigator.clipboard.readText()") == await code.text_content()
        await dialog.get_by_role("button", name="Check connection").click()
        await expect(dialog.locator(".setup")).to_contain_text("No language model is configured.")


async def test_first_message_can_be_chosen_and_a_key_can_be_set(browser: Browser, tmp_path: Path) -> None:
    async with serve(tmp_path) as served, visit(browser, served.url) as visitor:
        await visitor.open()
        await visitor.button("Set a key").click()
        await visitor.page.get_by_role("textbox", name="API key").fill("my-key")
        await visitor.button("Save").click()
        await expect(visitor.page.get_by_role("region", name="Set-up")).to_contain_text("API key set")
        example = visitor.page.locator("#welcome .examples button").first
        message = (await example.locator("span").text_content()) or ""
        await example.click()
        await visitor.wait_for_answer()

        await visitor.expect_messages([message])
        await expect(visitor.page.locator("#demo")).to_be_visible()
        await expect(visitor.answer).not_to_contain_text("demonstration without a language model")
