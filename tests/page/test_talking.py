"""Talking with a team on the page."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from tests.fakes.upstream import FakeUpstream, calls, error, hang, text
from tests.page.visiting import Visitor, visit
from tests.serving import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_an_answer_is_seen_as_it_is_written(visitor: Visitor, upstream: FakeUpstream) -> None:
    rest = asyncio.Event()
    upstream.reply(text("", chunks=["Hello ", "**you**", rest, ", what is it?"]))

    await visitor.say("Hi")

    await expect(visitor.answer.locator(".md.writes")).to_have_text("Hello you")
    await expect(visitor.button("Stop")).to_be_visible()
    rest.set()
    await visitor.answered()
    assert await visitor.answers() == ["Hello you, what is it?"]
    await expect(visitor.answer.locator("strong")).to_have_text("you")
    await expect(visitor.page.locator(".writes")).to_have_count(0)
    await expect(visitor.page.locator("#told")).to_have_text("The answer is complete")


async def test_handoffs_and_tools_are_cards_that_open(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {"reason": "wants a rocket"}), text="One moment."),
        calls(("execute_order", {"product": "Rocket", "price": 10})),
        text("Ordered."),
    )

    await visitor.asks("A rocket")

    shown = visitor.answer.locator(".who:not([aria-hidden])")
    assert await shown.all_inner_texts() == ["triage", "sales"]
    handoff = visitor.answer.locator(".handoff")
    await expect(handoff.locator("summary")).to_have_text("triage hands over to sales")
    await handoff.locator("summary").click()
    await expect(handoff).to_contain_text("wants a rocket")
    tool = visitor.answer.locator(".tool")
    await expect(tool.locator("summary")).to_contain_text("execute_order")
    await expect(tool.locator("pre").first).to_be_hidden()
    await tool.locator("summary").click()
    await expect(tool.locator("pre").first).to_contain_text('"product": "Rocket"')
    await expect(tool.locator("pre").nth(1)).to_contain_text("Rocket")
    await expect(visitor.page.locator("#floor")).to_have_text("saleshas the floor")
    await visitor.button("Timeline").click()
    lanes = visitor.page.locator(".timeline th")
    await expect(lanes).to_have_text(["triage", "sales", "execute_order"])


async def test_a_tool_that_runs_and_one_that_fails_are_told_apart(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), calls(("execute_order", {})), text("What, then?"))

    await visitor.asks("Order")

    failed = visitor.answer.locator(".tool.failed")
    await failed.locator("summary").click()
    await expect(failed.locator("pre").last).to_contain_text("error:")


async def test_an_answer_is_stopped_and_what_was_said_stays(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("", chunks=["Once upon a time", asyncio.Event(), "…"]), text("Yes?"))
    await visitor.say("Tell me a story")
    await expect(visitor.answer).to_contain_text("Once upon a time")

    await visitor.page.keyboard.press("Escape")

    await visitor.answered()
    await expect(visitor.answer).to_contain_text("Stopped.")
    await visitor.asks("Thanks", 2)
    assert await visitor.answers() == ["Once upon a time", "Yes?"]


async def test_a_message_is_edited_and_both_ways_can_be_gone(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(*(text(words) for words in ("Red, then", "It is 10", "Blue, then", "It is 12")))
    await visitor.asks("A red one")
    await visitor.asks("How much?", 2)

    await visitor.turns.first.get_by_role("button", name="Edit").click()
    await visitor.page.get_by_role("textbox", name="Edit the message").fill("A blue one")
    await visitor.page.keyboard.press("Enter")
    await visitor.answered()
    assert await visitor.questions() == ["A blue one"]
    await visitor.asks("And this?", 2)

    await visitor.button("Version before").click()
    assert await visitor.questions() == ["A red one", "How much?"]
    assert await visitor.answers() == ["Red, then", "It is 10"]
    await expect(visitor.page.locator(".branches")).to_contain_text("1/2")
    await visitor.button("Next version").click()
    assert await visitor.questions() == ["A blue one", "And this?"]


async def test_an_answer_is_asked_for_anew(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("First try"), text("Second try"))
    await visitor.asks("Tell me")

    await visitor.button("Answer anew").click()
    await visitor.answered()

    await expect(visitor.answer).to_contain_text("Second try")
    assert await visitor.questions() == ["Tell me"]
    assert [m["content"] for m in upstream.requests[1].body["messages"]][1:] == ["Tell me"]
    await expect(visitor.page.locator(".branches")).to_contain_text("2/2")


async def test_a_reload_in_the_middle_of_an_answer_goes_on_where_it_was(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    rest = asyncio.Event()
    upstream.reply(text("", chunks=["Half of it", rest, " and the rest"]))
    await visitor.say("Go on")
    await expect(visitor.answer).to_contain_text("Half of it")

    await visitor.page.reload()

    await expect(visitor.answer.locator(".writes")).to_have_text("Half of it")
    assert await visitor.questions() == ["Go on"]
    rest.set()
    await visitor.answered()
    assert await visitor.answers() == ["Half of it and the rest"]
    assert len(upstream.requests) == 1


async def test_what_failed_is_told_and_can_be_tried_again(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(error(401), text("Here I am"))

    await visitor.say("Hello?")

    problem = visitor.answer.locator(".problem")
    await expect(problem).to_be_visible()
    await visitor.button("Try again").click()
    await visitor.answered()
    assert await visitor.answers() == ["Here I am"]
    assert await visitor.questions() == ["Hello?"]


async def test_a_failure_in_the_middle_is_no_answer(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("Half an answer", chunks=2).cut(after=2), text("A whole one"))

    await visitor.say("Hello?")
    await expect(visitor.answer.locator(".problem")).to_be_visible()
    await visitor.button("Try again").click()

    await visitor.answered()
    assert await visitor.answers() == ["A whole one"]


async def test_what_is_typed_outlives_a_lost_connection_and_a_reload(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("There you are"))
    await visitor.page.fill("#say", "Half a thought")
    await visitor.page.reload()
    await expect(visitor.page.locator("#say")).to_have_value("Half a thought")

    await visitor.page.context.set_offline(True)
    await visitor.page.locator("#say").press("Enter")
    await visitor.sees("The server cannot be reached")
    assert await visitor.questions() == ["Half a thought"]
    await visitor.page.context.set_offline(False)
    await visitor.button("Try again").click()

    await visitor.answered()
    assert await visitor.questions() == ["Half a thought"]


async def test_a_key_is_asked_for_where_one_is_needed(
    browser: Browser, tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Welcome"))

    async with (
        serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served,
        visit(browser, served.url) as visitor,
    ):
        await visitor.page.goto(f"{served.url}/client")
        await visitor.button("Enter a key").click()
        await visitor.page.get_by_role("textbox", name="API key").fill("wrong")
        await visitor.button("Use this key").click()
        await visitor.sees("wants an API key, or another one")
        await visitor.button("Enter a key").click()
        await visitor.page.get_by_role("textbox", name="API key").fill("secret")
        await visitor.page.keyboard.press("Enter")
        await visitor.asks("Hi")
        await visitor.page.reload()

        await visitor.answered()
        assert "secret" not in visitor.page.url
        kept = "Object.values(localStorage).includes('secret')"
        assert not await visitor.page.evaluate(kept)


async def test_the_keyboard_is_enough(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"), text("Hello again"))
    keyboard = visitor.page.keyboard

    await keyboard.type("Line one")
    await keyboard.press("Shift+Enter")
    await keyboard.type("line two")
    await keyboard.press("Enter")
    await visitor.answered()
    assert await visitor.questions() == ["Line one\nline two"]
    await visitor.page.locator(".skip").focus()
    await expect(visitor.page.locator(".skip")).to_be_in_viewport()
    await keyboard.press("Enter")
    await expect(visitor.page.locator("#say")).to_be_focused()
    await keyboard.press("Shift+Tab")
    await keyboard.press("Shift+Tab")
    await expect(visitor.button("Answer anew")).to_be_focused()
    await keyboard.press("Enter")
    await visitor.answered()
    assert await visitor.answers() == ["Hello again"]


async def test_a_person_can_wait_for_long_without_words(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(hang())

    await visitor.say("Think")

    await expect(visitor.answer.locator(".waiting")).to_have_text("Thinking")
    await visitor.button("Stop").click()
    await visitor.answered()


async def test_another_agents_thoughts_are_folded_away(visitor: Visitor, upstream: FakeUpstream) -> None:
    upstream.reply(text("42", reasoning="Six times seven."))

    await visitor.asks("What is it?")

    await expect(visitor.answer.locator(".thought")).to_contain_text("Six times seven.")
    await expect(visitor.answer.locator(".thought .inside")).to_be_hidden()
    assert await visitor.answers() == ["42"]


async def test_who_is_quicker_than_the_page_is_heard(
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
        await visitor.say("Hi")
        is_slow.set()

        await visitor.answered()
        assert await visitor.questions() == ["Hi"]
        await expect(visitor.page.locator("#say")).to_have_value("")


async def test_it_works_without_its_libraries(
    browser: Browser, served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Plain **text**"))

    async with visit(browser, served.url) as visitor:
        await visitor.page.route("**/page/vendor/*", lambda route: route.fulfill(status=404))
        await visitor.come()
        await visitor.asks("Hi")

        assert await visitor.answers() == ["Plain **text**"]
