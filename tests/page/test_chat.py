"""Chat with a team on the page."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.page.one_tab import tab_of_module, upstream_of_tab, visitor_of_tab  # noqa: F401
from tests.page.relay import relay
from tests.page.visitor import Visitor, visit
from tests.server import TEAM_FILE, Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_answer_is_shown_while_it_streams(visitor: Visitor, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("", chunks=["Hello ", "**you**", rest, ", what is it?"]))

    await visitor.send("Hi")

    await expect(visitor.answer.locator(".md.writing")).to_have_text("Hello you")
    await expect(visitor.button("Stop")).to_be_visible()
    rest.set()
    await visitor.wait_for_answer()
    await visitor.expect_answers(["Hello you, what is it?"])
    await expect(visitor.answer.locator("strong")).to_have_text("you")
    await expect(visitor.page.locator(".writing")).to_have_count(0)
    await expect(visitor.page.locator("#announcer")).to_have_text("Response complete")


async def test_handoffs_and_tool_calls_show_their_content(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "wants a rocket"}), text="One moment."),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered."),
    )

    await visitor.ask("A rocket")

    shown = visitor.answer.locator(".message > .agent-name")
    assert await shown.all_inner_texts() == ["triage", "sales"]
    handoff = visitor.answer.locator(".handoff")
    await expect(handoff.locator("b")).to_have_text(["triage", "sales"])
    await expect(handoff.locator(".reason")).to_have_text("wants a rocket")
    tool = visitor.answer.locator(".tool.done")
    await expect(tool.locator(".call code")).to_have_text("execute_order")
    await expect(tool.locator(".arguments")).to_have_text("product: Rocket, price: 10")
    await expect(tool.locator(".result")).to_contain_text("Rocket")
    await expect(tool.locator("pre").first).to_be_hidden()
    await tool.locator("summary").click()
    await expect(tool.locator("pre").first).to_contain_text('"product": "Rocket"')
    await expect(tool.locator("pre").nth(1)).to_contain_text("Rocket")
    await expect(visitor.page.locator("#active-agent .agent-name")).to_have_text("sales")


async def test_failed_tool_call_shows_its_error(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), calls(("execute_order", {})), text("What, then?"))

    await visitor.ask("Order")

    failed = visitor.answer.locator(".tool.failed")
    await failed.locator("summary").click()
    await expect(failed.locator("pre").last).to_contain_text("error:")


async def test_stopped_answer_keeps_its_text(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("", chunks=["Once upon a time", asyncio.Event(), "…"]), text("Yes?"))
    await visitor.send("Tell me a story")
    await expect(visitor.answer).to_contain_text("Once upon a time")

    await visitor.page.keyboard.press("Escape")

    await visitor.wait_for_answer()
    await expect(visitor.answer).to_contain_text("Response stopped.")
    await visitor.ask("Thanks", 2)
    await visitor.expect_answers(["Once upon a time", "Yes?"])


async def test_edited_message_starts_a_branch_and_both_remain(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(*(text(content) for content in ("Red, then", "It is 10", "Blue, then", "It is 12")))
    await visitor.ask("A red one")
    await visitor.ask("How much?", 2)

    await visitor.turns.first.get_by_role("button", name="Edit").click()
    await visitor.page.get_by_role("textbox", name="Edit the message").fill("A blue one")
    await visitor.page.keyboard.press("Enter")
    await visitor.wait_for_answer()
    await visitor.expect_messages(["A blue one"])
    await visitor.ask("And this?", 2)

    await visitor.button("Previous version").click()
    await visitor.expect_messages(["A red one", "How much?"])
    await visitor.expect_answers(["Red, then", "It is 10"])
    await expect(visitor.page.locator(".branches")).to_contain_text("1/2")
    await visitor.button("Next version").click()
    await visitor.expect_messages(["A blue one", "And this?"])


async def test_regenerate_starts_a_branch(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("First try"), text("Second try"))
    await visitor.ask("Tell me")

    await visitor.button("Regenerate").click()
    await visitor.wait_for_answer()

    await expect(visitor.answer).to_contain_text("Second try")
    await visitor.expect_messages(["Tell me"])
    assert [m["content"] for m in upstream.requests[1].body["messages"]][1:] == ["Tell me"]
    await expect(visitor.page.locator(".branches")).to_contain_text("2/2")


async def test_reload_resumes_a_running_answer(visitor: Visitor, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("", chunks=["Half of it", rest, " and the rest"]))
    await visitor.send("Go on")
    await expect(visitor.answer).to_contain_text("Half of it")

    await visitor.page.reload()

    await expect(visitor.answer.locator(".writing")).to_have_text("Half of it")
    await visitor.expect_messages(["Go on"])
    rest.set()
    await visitor.wait_for_answer()
    await visitor.expect_answers(["Half of it and the rest"])
    assert len(upstream.requests) == 1


async def test_failed_turn_can_be_retried(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(error(401), text("Here I am"))

    await visitor.send("Hello?")

    problem = visitor.answer.locator(".problem")
    await expect(problem).to_be_visible()
    await visitor.button("Try again").click()
    await visitor.wait_for_answer()
    await visitor.expect_answers(["Here I am"])
    await visitor.expect_messages(["Hello?"])


async def test_turn_that_fails_mid_stream_can_be_retried(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("Half an answer", chunks=2).cut(after=2), text("A whole one"))

    await visitor.send("Hello?")
    await expect(visitor.answer.locator(".problem")).to_be_visible()
    await visitor.button("Try again").click()

    await visitor.wait_for_answer()
    await visitor.expect_answers(["A whole one"])


async def test_draft_survives_a_reload_and_an_offline_send(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("There you are"))
    await visitor.page.fill("#message", "Half a thought")
    await visitor.page.reload()
    await expect(visitor.page.locator("#message")).to_have_value("Half a thought")

    await visitor.page.context.set_offline(True)
    await visitor.page.locator("#message").press("Enter")
    await visitor.expect_text("The server cannot be reached")
    await visitor.expect_messages(["Half a thought"])
    await visitor.page.context.set_offline(False)
    await visitor.button("Try again").click()

    await visitor.wait_for_answer()
    await visitor.expect_messages(["Half a thought"])


async def test_required_key_opens_a_dialog_that_checks_it(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Welcome"))

    async with (
        serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.page.goto(f"{served.url}/client")
        dialog = visitor.page.get_by_role("dialog")
        await expect(dialog).to_contain_text("Missing or invalid API key.")
        await visitor.button("Cancel").click()
        await visitor.button("Enter API key").click()
        await dialog.get_by_role("textbox", name="API key").fill("wrong")
        await visitor.button("Save").click()
        await expect(dialog.get_by_role("alert")).to_have_text("Missing or invalid API key.")
        await dialog.get_by_role("textbox", name="API key").fill("secret")
        await visitor.page.keyboard.press("Enter")
        await expect(dialog).to_be_hidden()
        await visitor.ask("Hi")
        await visitor.page.reload()

        await visitor.wait_for_answer()
        assert "secret" not in visitor.page.url
        retained = "Object.values(localStorage).includes('secret')"
        assert not await visitor.page.evaluate(retained)


async def test_removed_key_leaves_nothing_of_its_user(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Welcome"))
    async with (
        serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.page.goto(f"{served.url}/")
        dialog = visitor.page.get_by_role("dialog")
        await dialog.get_by_role("textbox", name="API key").fill("secret")
        await dialog.get_by_role("checkbox").check()
        await visitor.button("Save").click()
        await expect(dialog).to_be_hidden()
        await visitor.ask("Hi")
        await visitor.page.fill("#message", "A private draft")

        await visitor.button("API key").click()
        await visitor.button("Remove key").click()

        await expect(dialog).to_contain_text("Missing or invalid API key.")
        assert visitor.page.url == f"{served.url}/"
        await expect(visitor.page.locator("#conversations a, #turns li")).to_have_count(0)
        stored = await visitor.page.evaluate("JSON.stringify([localStorage, sessionStorage])")
        assert "secret" not in stored
        assert "private" not in stored


async def test_notice_of_the_demonstration_is_not_in_the_answer_while_it_streams(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    notice = "(This is a demonstration without a language model. For a real one, set OPENAI_API_KEY.)\n\n"
    released, ends = asyncio.Event(), asyncio.Event()
    content = [f"{word} " for word in notice.split(" ")]
    upstream.reply(
        text("", chunks=[*content[:3], released, *content[3:-1], content[-1].rstrip(" "), "Hello", ends, "."])
    )
    upstream.reply(text("", chunks=["(This", " is", " mine", ")"]))

    await visitor.page.evaluate(
        """() => new MutationObserver(() => {
            if (document.querySelector(".answer .md")?.textContent.includes("(")) document.title = "notice";
        }).observe(document.querySelector("#turns"), { childList: true, subtree: true, characterData: true })"""
    )
    await visitor.send("Hi")
    released.set()
    await expect(visitor.answer.locator(".md")).to_have_text("Hello")
    ends.set()
    await visitor.wait_for_answer()
    await visitor.expect_answers(["Hello."])
    assert await visitor.page.title() == "handoff-proxy"

    await visitor.ask("And you?", 2)

    await visitor.expect_answers(["Hello.", "(This is mine)"])


async def test_page_works_with_the_keyboard(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"), text("Hello again"))
    keyboard = visitor.page.keyboard

    await keyboard.type("Line one")
    await keyboard.press("Shift+Enter")
    await keyboard.type("line two")
    await keyboard.press("Enter")
    await visitor.wait_for_answer()
    await visitor.expect_messages(["Line one\nline two"])
    await visitor.page.locator(".skip").focus()
    await expect(visitor.page.locator(".skip")).to_be_in_viewport()
    await keyboard.press("Enter")
    await expect(visitor.page.locator("#message")).to_be_focused()
    for _ in ("Attach files", "Timeline", "Regenerate"):
        await keyboard.press("Shift+Tab")
    await expect(visitor.button("Regenerate")).to_be_focused()
    await keyboard.press("Enter")
    await visitor.wait_for_answer()
    await visitor.expect_answers(["Hello again"])


async def test_pending_answer_can_be_stopped(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(hang())

    await visitor.send("Think")

    await expect(visitor.answer.locator(".pending")).to_have_text("Thinking")
    await upstream.received(1)
    await visitor.button("Stop").click()
    await visitor.wait_for_answer()
    await expect(visitor.answer).to_contain_text("Response stopped.")
    await expect(visitor.answer.locator(".pending")).to_have_count(0)
    await upstream.requests[0].closed()


async def test_answer_can_be_stopped_before_its_request_reaches_the_server(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(hang())
    is_slow = asyncio.Event()

    async def hold(route: Route) -> None:
        await is_slow.wait()
        await route.continue_()

    await visitor.page.route("**/v1/chat/completions", hold)
    await visitor.send("Think")
    async with visitor.page.expect_response("**/turns") as looked_up:
        await visitor.button("Stop").click()
    assert (await looked_up.value).status == 404
    is_slow.set()

    await visitor.wait_for_answer()
    await expect(visitor.answer).to_contain_text("Response stopped.")
    await expect(visitor.page.locator("#error .problem")).to_have_count(0)


async def test_reasoning_is_collapsed(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("42", reasoning="Six times seven."))

    await visitor.ask("What is it?")

    await expect(visitor.answer.locator(".reasoning")).to_contain_text("Six times seven.")
    await expect(visitor.answer.locator(".reasoning .inside")).to_be_hidden()
    await visitor.expect_answers(["42"])


async def test_message_sent_before_the_teams_load_is_not_lost(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    is_slow = asyncio.Event()

    async def hold(route: Route) -> None:
        await is_slow.wait()
        await route.continue_()

    async with visit(browser, served.url) as visitor:
        await visitor.page.route("**/v1/models", hold)
        await visitor.page.goto(f"{served.url}/")
        await visitor.send("Hi")
        is_slow.set()

        await visitor.wait_for_answer()
        await visitor.expect_messages(["Hi"])
        await expect(visitor.page.locator("#message")).to_have_value("")


async def test_page_works_without_its_libraries(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Plain **text**"))

    async with visit(browser, served.url) as visitor:
        await visitor.page.route("**/page/vendor/*", lambda route: route.fulfill(status=404))
        await visitor.open()
        await visitor.ask("Hi")

        await visitor.expect_answers(["Plain **text**"])


async def test_lost_connection_is_shown_and_the_answer_resumes(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(text("", chunks=["The first half", rest, " and the second"]))

    async with relay(served.url) as line, visit(browser, line.url) as visitor:
        await visitor.open()
        await visitor.send("Go on")
        await expect(visitor.answer.locator(".writing")).to_have_text("The first half")

        line.cut()

        lost = visitor.answer.locator(".connection")
        await expect(lost).to_contain_text("Connection lost. Reconnecting")
        await expect(visitor.answer.locator(".md")).to_have_text("The first half")
        rest.set()
        line.restore()
        await visitor.wait_for_answer()
        await visitor.expect_answers(["The first half and the second"])
        await expect(lost).to_have_count(0)
        assert len(upstream.requests) == 1


async def test_enter_during_an_answer_queues_the_message(visitor: Visitor, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("", chunks=["One", rest]), text("Two"))
    await visitor.send("First")
    await expect(visitor.answer).to_contain_text("One")

    await visitor.send("Second")

    await expect(visitor.page.locator("#queue .text")).to_have_text("Second")
    await expect(visitor.page.locator("#message")).to_have_value("")
    rest.set()
    await visitor.wait_for_answer(2)
    await visitor.expect_answers(["One", "Two"])
    await visitor.expect_messages(["First", "Second"])
    await expect(visitor.page.locator("#queue")).to_be_hidden()


async def test_queued_message_can_be_edited(visitor: Visitor, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("", chunks=["One", rest]))
    await visitor.send("First")
    await expect(visitor.answer).to_contain_text("One")
    await visitor.send("Second")

    await visitor.button("Edit queued message").click()

    await expect(visitor.page.locator("#message")).to_have_value("Second")
    await expect(visitor.page.locator("#queue")).to_be_hidden()
    rest.set()
    await visitor.wait_for_answer()


async def test_queued_message_returns_to_the_box_if_the_answer_fails(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    failure = asyncio.Event()
    upstream.reply(text("", chunks=["One", failure, "two"]).cut(after=3))
    await visitor.send("First")
    await expect(visitor.answer).to_contain_text("One")
    await visitor.send("Second")
    await visitor.page.fill("#message", "Third")

    failure.set()

    await expect(visitor.answer.locator(".problem")).to_be_visible()
    await expect(visitor.page.locator("#message")).to_have_value("Second\n\nThird")
    await expect(visitor.page.locator("#queue")).to_be_hidden()
    await visitor.expect_messages(["First"])


async def test_failed_message_stays_visible_after_the_next_one(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"), error(401), text("Fine"))
    await visitor.ask("Hi")
    await visitor.send("This one fails")
    await expect(visitor.answer.locator(".problem")).to_be_visible()

    await visitor.ask("This one works", 3)

    await visitor.expect_messages(["Hi", "This one fails", "This one works"])
    await expect(visitor.page.locator("#turns > .failed .below")).to_contain_text(
        "Not part of the conversation"
    )
    sent = [m["content"] for m in upstream.requests[-1].body["messages"] if m["role"] == "user"]
    assert sent == ["Hi", "This one works"]
    await visitor.page.reload()
    await visitor.wait_for_answer(3)
    await visitor.expect_messages(["Hi", "This one fails", "This one works"])
    upstream.reply(text("At last"))
    await visitor.button("Try again").click()
    await visitor.expect_answers(["Hello", "Fine", "At last"])
    await visitor.expect_messages(["Hi", "This one works", "This one fails"])


async def test_message_that_the_server_never_received_stays_until_it_is_sent_again(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"), text("Fine"), text("At last"))
    await visitor.ask("Hi")
    await visitor.page.route("**/v1/chat/completions", lambda route: route.abort())
    await visitor.send("This one is lost")
    await expect(visitor.answer.locator(".problem")).to_contain_text("cannot be reached")
    await visitor.page.unroute("**/v1/chat/completions")

    await visitor.ask("This one works", 3)
    await visitor.expect_messages(["Hi", "This one is lost", "This one works"])
    await visitor.button("Try again").click()

    await visitor.expect_answers(["Hello", "Fine", "At last"])
    await visitor.expect_messages(["Hi", "This one works", "This one is lost"])


async def test_parallel_tool_calls_are_rows_of_one_block(visitor: Visitor, upstream: FakeUpstream) -> None:
    order = {"product": "Rocket", "price": 10}
    upstream.reply(
        calls(("transfer_to_sales", {})), calls(*[("execute_order", order)] * 4), text("Four of them.")
    )

    await visitor.ask("Four rockets")

    block = visitor.answer.locator(".tools")
    await expect(block).to_have_count(1)
    await expect(block.locator("> summary")).to_contain_text("4 tool calls")
    await expect(block.locator(".tool").first).to_be_hidden()
    await block.locator("> summary").click()
    await expect(block.locator(".tool.done")).to_have_count(4)


async def test_clocks_of_running_tools_advance(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("wait", {"name": "a"}), ("wait", {"name": "b"})), text("Done."))
    (tmp_path / "slow_tools.py").write_text(
        "import time\nfrom pathlib import Path\n\n\ndef wait(name: str) -> str:\n"
        f'    """Wait for a file."""\n    while not (Path({str(tmp_path)!r}) / name).exists():\n'
        "        time.sleep(0.01)\n    return name\n"
    )
    file = tmp_path / "slow.yaml"
    file.write_text(
        f'models: {{default: {{model: m, base_url: "{upstream.base_url}", api_key: k}}}}\n'
        "teams:\n  slow:\n    entry: one\n    agents:\n      one:\n        instructions: You wait.\n"
        '        tools: ["slow_tools:wait"]\n'
    )
    async with (
        serve(tmp_path, upstream.base_url, teams=file) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.open()
        await visitor.send("Wait")
        running = visitor.answer.locator(".tool.running .time")
        await expect(running).to_have_count(2)
        await expect(running.first).to_have_text(re.compile(r"\d\.\d s"))
        first = await running.first.text_content() or ""
        await expect(running.first).not_to_have_text(first)
        assert float((await running.first.text_content() or "")[:-2]) > float(first[:-2])
        await expect(visitor.answer.locator(".tools > summary")).to_contain_text(
            "0 of 2 tool calls completed"
        )

        (tmp_path / "a").touch()
        await expect(visitor.answer.locator(".tools > summary")).to_contain_text(
            "1 of 2 tool calls completed"
        )
        await expect(visitor.answer.locator(".tool.done .arguments")).to_have_text("name: a")
        await expect(running).to_have_count(1)
        (tmp_path / "b").touch()
        await visitor.wait_for_answer()
        await expect(visitor.answer.locator(".tool.done")).to_have_count(2)


async def test_agent_colours_are_the_same_after_a_reload(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_repairs", {})), text("Broken?"))
    await visitor.ask("Broken")
    name = visitor.answer.locator(".message > .agent-name")
    colour = "element => getComputedStyle(element).color"
    before = await name.evaluate(colour)

    await visitor.page.reload()
    await visitor.wait_for_answer()

    assert await name.evaluate(colour) == before
    assert await visitor.answer.locator(".message.agent-2").count() == 1


async def test_team_with_steps_shows_its_progress(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(calls(("transfer_to_sales", {})), text("", chunks=["Sure", rest, "."]))
    file = tmp_path / "steps.yaml"
    steps = "    entry: triage\n    steps: [triage, sales]\n"
    file.write_text(TEAM_FILE.format(upstream=upstream.base_url).replace("    entry: triage\n", steps))
    async with (
        serve(tmp_path, upstream.base_url, teams=file) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.open()
        await visitor.send("A rocket")

        bar = visitor.page.get_by_role("progressbar", name="Progress of the team")
        await expect(bar).to_have_js_property("value", 33)
        rest.set()
        await visitor.wait_for_answer()
        await expect(bar).to_be_hidden()
