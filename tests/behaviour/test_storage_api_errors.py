"""Errors of the endpoints of stored data: status, param and code in the envelope, without side effects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import Caller, user
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve

LONG = "x" * 600
MESSAGE = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "found"}

Case = tuple[str, str, Any, str | None, str | None]
"""Method, path, body; param and code of the refusal."""


def lists() -> Iterator[Case]:
    for path in (
        "/chat/completions",
        "/chat/completions/{completion}/messages",
        "/conversations",
        "/conversations/chat-1/items",
    ):
        for query, param, code in [
            ("limit=0", "limit", "integer_below_min_value"),
            ("limit=101", "limit", "integer_above_max_value"),
            ("limit=-1", "limit", "integer_below_min_value"),
            ("limit=ten", "limit", "invalid_type"),
            ("limit=1.5", "limit", "invalid_type"),
            ("limit=99999999999999999999", "limit", "integer_above_max_value"),
            ("order=up", "order", "invalid_value"),
            ("after=nothing-like-this", "after", "invalid_value"),
            ("after=msg_nothing_0", "after", "invalid_value"),
            ("after=%00", "after", "invalid_value"),
        ]:
            yield "GET", f"{path}?{query}", None, param, code


def filters() -> Iterator[Case]:
    much = "&".join(f"metadata[k{number}]=x" for number in range(17))
    for query, param, code in [
        ("metadata=x", "metadata", "invalid_type"),
        (f"metadata[{LONG}]=x", "metadata", "string_above_max_length"),
        (f"metadata[k]={LONG}", "metadata.k", "string_above_max_length"),
        (much, "metadata", "object_above_max_properties"),
    ]:
        yield "GET", f"/chat/completions?{query}", None, param, code
    for query in ("items?include=all", "items?include[]=all", "items/x?include=x"):
        yield "GET", f"/conversations/chat-1/{query}", None, "include", "invalid_value"


def bodies() -> Iterator[Case]:
    for path in ("/chat/completions/{completion}", "/conversations/chat-1"):
        refused: list[tuple[Any, str | None, str | None]] = [
            (None, "metadata", "missing_required_parameter"),
            ({}, "metadata", "missing_required_parameter"),
            ({"metadata": "x"}, "metadata", "invalid_type"),
            ({"metadata": []}, "metadata", "invalid_type"),
            ({"metadata": {"k": 1}}, "metadata.k", "invalid_type"),
            ({"metadata": {"k": None}}, "metadata.k", "invalid_type"),
            ({"metadata": {"k": LONG}}, "metadata.k", "string_above_max_length"),
            ({"metadata": {LONG: "v"}}, "metadata", "string_above_max_length"),
            ({"metadata": {str(n): "v" for n in range(17)}}, "metadata", "object_above_max_properties"),
            ({"metadata": {"k": "a\0b"}}, "metadata", "invalid_value"),
            (b"[]", None, None),
            (b"{", None, None),
            (b"\xff", None, None),
            (b"[" * 5000, None, None),
        ]
        for body, param, code in refused:
            yield "POST", path, body, param, code
    for path in ("/conversations", "/conversations/chat-1/items"):
        yield "POST", path, {"items": "x"}, "items", "invalid_type"
        yield "POST", path, {"items": {}}, "items", "invalid_type"
        yield "POST", path, {"items": [MESSAGE] * 21}, "items", "array_above_max_length"
        yield "POST", path, {"items": [MESSAGE, {**MESSAGE, "content": "\0"}]}, "items[1]", "invalid_value"
    path = "/conversations/chat-1/items"
    yield "POST", path, {}, "items", "missing_required_parameter"
    yield "POST", path, {"items": None}, "items", "invalid_type"


def items() -> Iterator[Case]:
    for given, param, code in [
        ("x", "", "invalid_type"),
        (None, "", "invalid_type"),
        ({}, ".role", "missing_required_parameter"),
        ({"type": 1}, ".type", "invalid_type"),
        ({"type": "poem"}, ".type", "invalid_value"),
        ({"type": "item_reference", "id": "msg_1"}, ".type", "unsupported_value"),
        ({"id": "msg_1"}, ".type", "unsupported_value"),
        ({"type": "compaction_trigger"}, ".type", "unsupported_value"),
        ({"role": "user"}, ".content", "missing_required_parameter"),
        ({"role": "robot", "content": "x"}, ".role", "invalid_value"),
        ({"role": "tool", "content": "x"}, ".role", "invalid_value"),
        ({"role": "user", "content": []}, ".content", "empty_array"),
        ({"role": "user", "content": 5}, ".content", "invalid_type"),
        ({"role": "user", "content": ["x"]}, ".content[0]", "invalid_type"),
        ({**CALL, "arguments": {}}, ".arguments", "invalid_type"),
        ({**CALL, "call_id": ""}, ".call_id", "empty_string"),
        ({"type": "function_call"}, ".call_id", "missing_required_parameter"),
        ({**OUTPUT, "call_id": None}, ".call_id", "invalid_type"),
        (OUTPUT, ".call_id", None),
        ({"type": "reasoning"}, ".summary", "missing_required_parameter"),
    ]:
        yield "POST", "/conversations", {"items": [given]}, f"items[0]{param}", code
    for late in ([CALL, MESSAGE, OUTPUT], [CALL, OUTPUT, OUTPUT]):
        yield "POST", "/conversations", {"items": late}, "items[2].call_id", None


def parts() -> Iterator[Case]:
    for role, given, param, code in [
        ("user", {"text": "x"}, ".type", "missing_required_parameter"),
        ("user", {"type": "poem"}, ".type", "invalid_value"),
        ("user", {"type": "input_text"}, ".text", "missing_required_parameter"),
        ("user", {"type": "refusal", "refusal": "x"}, ".type", "invalid_value"),
        ("system", {"type": "input_image", "image_url": "x"}, ".type", "invalid_value"),
        ("user", {"type": "input_image"}, ".image_url", "missing_required_parameter"),
        ("user", {"type": "input_file"}, ".file_data", "missing_required_parameter"),
        ("user", {"type": "input_image", "file_id": "f"}, ".file_id", "unsupported_parameter"),
        ("user", {"type": "input_file", "file_url": "x"}, ".file_url", "unsupported_parameter"),
    ]:
        body = {"items": [MESSAGE, {"role": role, "content": [given]}]}
        yield "POST", "/conversations/chat-1/items", body, f"items[1].content[0]{param}", code


@pytest.fixture
async def caller(served: Served, upstream: FakeUpstream) -> Caller:
    """Somebody with one stored completion, in the conversation chat-1."""
    caller = Caller(served)
    upstream.reply(text("Hello"))
    await caller.completion(
        [user("Hi")], store=True, metadata={"a": "1"}, headers={"X-Conversation-Id": "chat-1"}
    )
    return caller


async def ask(caller: Caller, method: str, path: str, body: Any = None) -> httpx2.Response:
    (completion,) = (await caller.client.chat.completions.list()).data
    async with httpx2.AsyncClient(base_url=str(caller.client.base_url)) as client:
        return await client.request(
            method,
            path.removeprefix("/").format(completion=completion.id),
            content=body if isinstance(body, bytes | None) else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {caller.client.api_key}"},
        )


async def everything(caller: Caller) -> list[Any]:
    """All that the caller has."""
    return [
        (await ask(caller, "GET", path)).json()
        for path in (
            "/chat/completions",
            "/conversations",
            "/conversations/chat-1",
            "/conversations/chat-1/items?include=handoff.hidden_items",
        )
    ]


@pytest.mark.parametrize("table", [lists, filters, bodies, items, parts])
async def test_bad_input_is_refused_and_changes_nothing(
    caller: Caller, table: Callable[[], Iterator[Case]]
) -> None:
    before = await everything(caller)

    for case in table():
        method, path, body, param, code = case
        answer = await ask(caller, method, path, body)
        error = answer.json()["error"]
        assert (case, answer.status_code, error["type"], error["param"], error["code"]) == (
            case, 400, "invalid_request_error", param, code,
        )  # fmt: skip
        assert len(answer.content) < 2000

    assert await everything(caller) == before


async def test_errors_describe_the_expected_value(caller: Caller) -> None:
    reported = []
    wrong: list[Any] = [{}, None, 7]
    for given in wrong:
        answer = await ask(caller, "POST", "/conversations/chat-1/items", {"items": given})
        reported.append(answer.json()["error"]["message"])

    assert reported == [
        "Invalid type for 'items': expected an array, but got an object instead.",
        "Invalid type for 'items': expected an array, but got null instead.",
        "Invalid type for 'items': expected an array, but got an integer instead.",
    ]


NOT_FOUND = [
    ("GET", "/chat/completions/chatcmpl-none", "Chat completion with id 'chatcmpl-none' not found."),
    ("POST", "/chat/completions/chatcmpl-none", "Chat completion with id 'chatcmpl-none' not found."),
    ("DELETE", "/chat/completions/chatcmpl-none", "Chat completion with id 'chatcmpl-none' not found."),
    (
        "GET",
        "/chat/completions/chatcmpl-none/messages",
        "Chat completion with id 'chatcmpl-none' not found.",
    ),
    ("GET", "/conversations/none", "Conversation with id 'none' not found."),
    ("POST", "/conversations/none", "Conversation with id 'none' not found."),
    ("DELETE", "/conversations/none", "Conversation with id 'none' not found."),
    ("GET", "/conversations/none/items", "Conversation with id 'none' not found."),
    ("POST", "/conversations/none/items", "Conversation with id 'none' not found."),
    ("GET", "/conversations/none/items/msg_1", "Conversation with id 'none' not found."),
    ("GET", "/conversations/chat-1/items/msg_1", "Item with id 'msg_1' not found."),
    ("DELETE", "/conversations/chat-1/items/msg_1", "Item with id 'msg_1' not found."),
    ("GET", "/conversations/%00%F0%9F", "Conversation with id '\0\ufffd' not found."),
]


async def test_what_is_not_there_is_404(caller: Caller) -> None:
    for method, path, sentence in NOT_FOUND:
        answer = await ask(caller, method, path, {"metadata": {}, "items": []} if method == "POST" else None)

        assert (path, answer.status_code) == (path, 404)
        assert answer.json() == {
            "error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}
        }


async def test_other_methods_are_refused_with_those_that_there_are(caller: Caller) -> None:
    for method, path in [
        ("PUT", "/conversations/chat-1"),
        ("PATCH", "/chat/completions/{completion}"),
        ("DELETE", "/conversations"),
    ]:
        answer = await ask(caller, method, path)

        assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_supported")
        assert answer.headers["allow"]


async def test_a_key_is_needed_where_keys_are_set(tmp_path: Path) -> None:
    async with serve(tmp_path, "http://127.0.0.1:9/v1", api_keys="one") as served:
        for path in ("/chat/completions", "/conversations", "/conversations/x", "/conversations/x/items"):
            with pytest.raises(openai.AuthenticationError):
                await served.client("two").get(path, cast_to=httpx2.Response)


async def test_a_large_body_is_refused(caller: Caller) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        await caller.client.conversations.create(items=[{"role": "user", "content": "x" * 5_000_000}])
    assert refused.value.status_code == 413
