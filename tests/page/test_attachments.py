"""Images and text files in messages."""

from __future__ import annotations

import asyncio
import base64

import pytest
from playwright.async_api import FilePayload, expect

from tests.fakes.upstream import FakeUpstream, text
from tests.page.one_tab import tab_of_module, upstream_of_tab, visitor_of_tab  # noqa: F401
from tests.page.visitor import Visitor

pytestmark = pytest.mark.asyncio(loop_scope="session")

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


async def test_image_and_text_file_are_sent_with_the_message(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    upstream.reply(text("A dot and a note"))
    files: list[FilePayload] = [
        {"name": "dot.png", "mimeType": "image/png", "buffer": PNG},
        {"name": "note.txt", "mimeType": "text/plain", "buffer": b"remember"},
        {"name": "wrong.txt", "mimeType": "text/plain", "buffer": b"x"},
    ]
    await visitor.page.set_input_files("#files", files)
    await expect(visitor.page.locator("#attachments li")).to_have_text(["dot.png", "note.txt", "wrong.txt"])
    await visitor.button("Remove wrong.txt").click()

    await visitor.ask("What is it?")

    kinds = [part["type"] for part in upstream.requests[0].body["messages"][-1]["content"]]
    assert kinds == ["text", "image_url", "text"]
    await expect(visitor.page.locator("#attachments")).to_be_hidden()
    await visitor.page.reload()
    await visitor.wait_for_answer()
    await expect(visitor.page.get_by_alt_text("Attached image")).to_be_visible()
    await visitor.expect_messages(["What is it?\nnote.txt:\n\nremember"])


async def test_queued_message_has_its_files_and_becomes_a_draft(
    visitor: Visitor, upstream: FakeUpstream
) -> None:
    first_ends, second_ends = asyncio.Event(), asyncio.Event()
    upstream.reply(text("", chunks=["One", first_ends]), text("", chunks=["A dot", second_ends]))
    await visitor.send("Count")
    await expect(visitor.answer).to_contain_text("One")

    await visitor.page.set_input_files("#files", {"name": "dot.png", "mimeType": "image/png", "buffer": PNG})
    await expect(visitor.page.locator("#attachments li")).to_have_text(["dot.png"])
    await visitor.send("What is it?")
    await expect(visitor.page.locator("#queue .text")).to_have_text("What is it? · dot.png")
    await expect(visitor.page.locator("#attachments")).to_be_hidden()
    first_ends.set()

    await expect(visitor.answer).to_contain_text("A dot")
    kinds = [part["type"] for part in upstream.requests[1].body["messages"][-1]["content"]]
    assert kinds == ["text", "image_url"]
    await visitor.send("And then?")
    await expect(visitor.page.locator("#queue .text")).to_have_text("And then?")
    await visitor.button("New conversation").click()
    await expect(visitor.page.locator("#message")).to_have_value("")
    await visitor.page.go_back()
    await expect(visitor.page.locator("#message")).to_have_value("And then?")
    second_ends.set()
    await visitor.wait_for_answer(2)


async def test_binary_and_large_files_are_rejected(visitor: Visitor) -> None:
    for name, content in (("a.bin", b"\0\1\2"), ("b.txt", b"x" * 200_001)):
        await visitor.page.set_input_files(
            "#files", {"name": name, "mimeType": "text/plain", "buffer": content}
        )
        await expect(visitor.page.locator("#error")).to_contain_text(name)
        await expect(visitor.page.locator("#attachments")).to_be_hidden()
