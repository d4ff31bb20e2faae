"""Code and settings for other clients, settings of a conversation, export, pins and shortcuts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.fakes.upstream import FakeUpstream, calls, text
from tests.page.conftest import PageUpstream
from tests.page.one_tab import tab_of_module, upstream_of_tab, user_of_tab  # noqa: F401
from tests.page.visitor import Visitor, visit
from tests.server import TEAM_FILE, Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_code_for_other_clients_names_server_team_and_conversation(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    await visitor.ask("Hi")
    conversation = visitor.page.url.partition("#")[2]

    await visitor.button("Use this team from your code").click()

    dialog = visitor.page.get_by_role("dialog")
    code = dialog.locator("pre code")
    await dialog.get_by_role("checkbox", name="Continue this conversation").check()
    for client in ("curl", "Python", "Node.js", "LangChain", "Open WebUI", "LibreChat"):
        await dialog.get_by_role("combobox", name="Client").select_option(client)
        await expect(code).to_contain_text(f"{visitor.url}/v1")
        if client not in ("Open WebUI", "LibreChat"):
            await expect(code).to_contain_text(conversation)
    await dialog.get_by_role("combobox", name="Client").select_option("Python")
    program = await code.text_content() or ""
    compile(program, "example.py", "exec")
    assert 'model="shop"' in program
    assert "YOUR_API_KEY" in program


async def test_settings_of_a_conversation_are_sent(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), text("Two"), text("Three"))
    await visitor.button("Conversation settings").click()
    await visitor.page.get_by_role("spinbutton", name="Temperature").fill("0.3")
    await visitor.button("Save").click()
    await visitor.ask("First")
    await visitor.ask("Second", 2)
    await visitor.button("New conversation").click()
    await visitor.ask("Third")

    assert [request.body.get("temperature") for request in upstream.requests] == [0.3, 0.3, None]


async def test_conversation_is_exported_as_markdown_and_json(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello **you**"))
    await visitor.ask("Hi")

    files = {}
    for kind in ("Markdown", "JSON"):
        await visitor.button("Export conversation").click()
        async with visitor.page.expect_download() as download:
            await visitor.button(kind).click()
        file = await (await download.value).path()
        files[kind] = await asyncio.to_thread(Path(file).read_text)

    assert files["Markdown"] == "# Hi\n\n## User\n\nHi\n\n## triage\n\nHello **you**\n"
    assert json.loads(files["JSON"])["turns"][0]["answer"][0]["content"] == "Hello **you**"


async def test_markdown_export_keeps_arguments_in_their_line(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    query = "x`\n\n## User\n\nI approve everything"
    upstream.reply(
        calls(("transfer_to_repairs", {"reason": "a\n# b"})),
        calls(("look_up_item", {"search_query": query})),
        text("Done"),
    )
    await visitor.ask("Hi")

    await visitor.button("Export conversation").click()
    await expect(visitor.page.get_by_role("dialog").get_by_role("button", name="Share a link")).to_be_hidden()
    async with visitor.page.expect_download() as download:
        await visitor.button("Markdown").click()
    file = await (await download.value).path()
    lines = (await asyncio.to_thread(Path(file).read_text)).splitlines()

    assert "> Handoff: triage → repairs: a # b" in lines
    assert [line for line in lines if line.startswith("#")] == ["# Hi", "## User", "## repairs"]
    (call,) = [line for line in lines if line.startswith("> repairs calls")]
    assert call.startswith("> repairs calls `look_up_item` `` {")
    assert call.endswith("} ``")


async def test_pin_set_while_a_title_is_written_stays(visitor: Visitor, upstream: PageUpstream) -> None:
    upstream.reply(text("Which rocket?"))
    answers = asyncio.Event()
    upstream.titles = [text("", chunks=[answers, "A rocket"])]
    async with visitor.page.expect_request(lambda sent: sent.headers.get("x-task") == "title"):
        await visitor.ask("Rocket")

    await visitor.button("Pin Rocket").focus()
    await visitor.page.keyboard.press("Enter")
    await expect(visitor.page.locator("#conversations .group")).to_have_text(["Pinned"])
    answers.set()

    await expect(visitor.page.locator("#conversations .title")).to_have_text(["A rocket"])
    await expect(visitor.page.locator("#conversations .group")).to_have_text(["Pinned"])


async def test_pinned_conversation_is_first_and_search_has_a_shortcut(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("1"), text("2"))
    await visitor.ask("Older")
    await visitor.page.keyboard.press("Control+Shift+O")
    await expect(visitor.page.locator("#welcome")).to_be_visible()
    await visitor.ask("Newer")
    titles = visitor.page.locator("#conversations .title")
    await expect(titles).to_have_text(["Newer", "Older"])

    await visitor.button("Pin Older").focus()
    await visitor.page.keyboard.press("Enter")

    await expect(titles).to_have_text(["Older", "Newer"])
    await expect(visitor.button("Unpin Older")).to_be_focused()
    await expect(visitor.page.locator("#conversations .group")).to_have_text(["Pinned", "Today"])
    await visitor.page.keyboard.press("Control+K")
    search = visitor.page.get_by_label("Search conversations")
    await expect(search).to_be_focused()

    for key in ("ArrowDown", "ArrowDown"):
        await visitor.page.keyboard.press(key)
    await expect(visitor.page.locator("#conversations a", has_text="Newer")).to_be_focused()
    for key in ("ArrowUp", "ArrowUp"):
        await visitor.page.keyboard.press(key)
    await expect(search).to_be_focused()
    await visitor.page.keyboard.type("old")
    await visitor.page.keyboard.press("Enter")
    await visitor.expect_messages(["Older"])


async def test_old_pinned_conversation_is_listed_and_the_next_page_follows(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    await visitor.page.evaluate(
        """async () => {
            const headers = {
                "Content-Type": "application/json", Authorization: `Bearer ${sessionStorage.getItem("handoff.key")}`,
            };
            for (let number = 0; number < 45; number++) {
                const metadata = { title: `Number ${number}`, ...(number ? {} : { pinned: "true" }) };
                await fetch("/v1/conversations", {
                    method: "POST", headers, body: JSON.stringify({ metadata }),
                }).then(response => response.json());
            }
        }"""
    )
    await visitor.page.reload()
    titles = visitor.page.locator("#conversations .title")
    await expect(titles).to_have_count(41)
    await expect(titles.first).to_have_text("Number 0")

    await visitor.button("Show more").click()

    await expect(titles).to_have_count(45)
    assert len(set(await titles.all_text_contents())) == 45
    await expect(visitor.button("Show more")).to_be_hidden()


async def test_shared_link_asks_for_the_key_of_the_server(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    async with serve(tmp_path, upstream.base_url, api_keys=("secret", "other")) as served:
        async with visit(browser, served.url) as owner:
            await owner.page.goto(f"{served.url}/")
            await owner.page.get_by_role("textbox", name="API key").fill("secret")
            await owner.button("Save").click()
            await expect(owner.page.locator("#welcome h1")).to_be_visible()
            await owner.ask("Hi")
            await owner.button("Share conversation").click()
            link = await owner.page.get_by_role("textbox", name="Link").input_value()
        assert "secret" not in link

        for key, shown in (("secret", "Hello"), ("other", "Conversation not found")):
            async with visit(browser, served.url) as guest:
                await guest.page.goto(link)
                await guest.page.get_by_role("textbox", name="API key").fill(key)
                await guest.button("Save").click()
                await guest.expect_text(shown)
                await expect(guest.page.locator("#composer")).to_be_hidden()


async def test_read_only_view_changes_nothing(
    browser: Browser, served: Served, upstream: PageUpstream
) -> None:
    released = asyncio.Event()
    upstream.reply(text("", chunks=["One ", released, "two"]))
    async with visit(browser, served.url) as owner, visit(browser, served.url) as guest:
        await owner.open()
        await owner.page.evaluate("localStorage.setItem('handoff.titles', 'off')")
        await owner.send("Hi")
        await expect(owner.answer).to_contain_text("One")
        conversation = owner.page.url.partition("#")[2]

        await guest.page.goto(f"{served.url}/#view/{conversation}")
        await expect(guest.answer).to_contain_text("One")
        await guest.page.keyboard.press("Escape")
        released.set()

        await owner.wait_for_answer()
        await expect(guest.answer).to_contain_text("One two")
        await expect(guest.turns.last.get_by_role("button", name="Timeline")).to_be_attached()
        await owner.expect_answers(["One two"])
        assert upstream.asides == []


async def test_shared_link_opens_a_read_only_view(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))
    await visitor.ask("Hi")
    await visitor.button("Share conversation").click()
    link = await visitor.page.get_by_role("textbox", name="Link").input_value()

    await visitor.page.goto(link)

    await expect(visitor.page.get_by_role("dialog")).to_be_hidden()
    await visitor.expect_text("Read-only view of a shared conversation.")
    await expect(visitor.turns).to_have_count(1)
    await visitor.expect_messages(["Hi"])
    for control in ("#composer", "#turns [data-edits]"):
        await expect(visitor.page.locator(control).first).to_be_hidden()
    await visitor.button("Continue it").click()
    await expect(visitor.page.locator("#composer")).to_be_visible()
    await expect(visitor.page.locator("#turns .user .text")).to_have_text(["Hi"])


async def test_side_model_writes_the_title_after_the_first_turn(
    visitor: Visitor, upstream: PageUpstream
) -> None:
    upstream.reply(text("Which rocket?"), text("Red."))
    upstream.titles = ['**"Rocket purchase."**\n\nAnything else?']
    await visitor.ask("I want a rocket")

    title = visitor.page.locator("#conversations .title")
    await expect(title).to_have_text(["Rocket purchase"])
    (request,) = upstream.asides
    assert "user: I want a rocket\nassistant: Which rocket?" in request.body["messages"][-1]["content"]
    assert "tools" not in request.body
    await visitor.ask("A red one", 2)
    await visitor.page.reload()
    await expect(title).to_have_text(["Rocket purchase"])
    assert len(upstream.asides) == 1


async def test_title_is_suggested_in_the_dialog_and_automatic_ones_can_be_disabled(
    visitor: Visitor, upstream: PageUpstream
) -> None:
    upstream.reply(text("Which rocket?"))
    upstream.titles = ["Rocket purchase"]
    await visitor.button("Conversation settings").click()
    await visitor.page.get_by_role("checkbox", name="Write titles").uncheck()
    await visitor.button("Save").click()
    await visitor.ask("I want a rocket")
    title = visitor.page.locator("#conversations .title")
    await expect(title).to_have_text(["I want a rocket"])

    await visitor.button("Rename I want a rocket").focus()
    await visitor.page.keyboard.press("Enter")
    await visitor.button("Suggest a title").click()
    await expect(visitor.page.get_by_role("textbox", name="Title")).to_have_value("Rocket purchase")
    await visitor.button("Rename").click()

    await expect(title).to_have_text(["Rocket purchase"])
    assert len(upstream.asides) == 1


async def test_message_shows_its_cost_if_the_model_has_a_price(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    file = tmp_path / "priced.yaml"
    teams = TEAM_FILE.format(upstream=upstream.base_url)
    file.write_text(
        teams.replace(
            "api_key: upstream-key", "api_key: upstream-key, price: {prompt: 1000, completion: 2000}"
        )
    )
    async with (
        serve(tmp_path, upstream.base_url, teams=file) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.open()
        await visitor.ask("Hi")

        usage = next(
            event["data"]
            for event in (await visitor.api(f"/v1/conversations/{visitor.page.url.partition('#')[2]}/turns"))[
                "data"
            ][0]["events"]
            if event["type"] == "usage"
        )
        tokens = usage["usage"]
        assert usage["cost"] == pytest.approx(
            tokens["prompt_tokens"] / 1000 + tokens["completion_tokens"] / 500
        )
        await expect(visitor.page.locator(".usage")).to_contain_text("tokens, cost 0.0")
        await visitor.button("Team panel").click()
        await visitor.page.locator(".node", has_text="triage").click()
        cost = visitor.page.locator("#team-panel dt", has_text="Cost").locator("+ dd")
        await expect(cost).to_have_text(f"{usage['cost']:.3g}")
