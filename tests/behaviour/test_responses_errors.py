"""Responses that fail, and requests for what is not there."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.behaviour.responses_client import (
    http,
    retrieved,
    streamed,
)
from tests.fakes.response_stream import judged_response, steps
from tests.fakes.upstream import FakeUpstream, error, text
from tests.server import Served

BAD_SCHEMA = {"type": "json_schema", "name": "x", "schema": {"type": 3}}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture
def served(open_shop: tuple[Served, FakeUpstream]) -> Served:
    return open_shop[0]


@pytest.fixture
def upstream(open_shop: tuple[Served, FakeUpstream]) -> FakeUpstream:
    return open_shop[1].forget()


# --- failures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_stream", [False, True], ids=["plain", "streamed"])
async def test_a_failure_before_the_first_word_has_its_status(
    served: Served, upstream: FakeUpstream, is_stream: bool
) -> None:
    upstream.reply(error(400, code="context_length_exceeded"))

    with pytest.raises(openai.BadRequestError) as refused:
        await served.client().responses.create(model="shop", input="Hi", stream=is_stream)

    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "input")


async def test_a_failure_after_the_first_word_is_an_event(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello there").cut(after=2))

    async with http(served) as client:
        events = await streamed(client, input="Hi")
        stored = await retrieved(client, events[0]["response"]["id"])

    assert steps(events)[-2:] == ["output_item.done", "failed"]
    assert events[-1]["response"]["error"]["code"] == "server_error"
    assert stored.to_dict(mode="json") == judged_response(events[-1]["response"]).to_dict(mode="json")


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "nobody"}, 404, None, "model_not_found"),
        (
            {"previous_response_id": "resp_" + "0" * 32},
            400,
            "previous_response_id",
            "previous_response_not_found",
        ),
        ({"previous_response_id": "nonsense"}, 400, "previous_response_id", "previous_response_not_found"),
        ({"conversation": "conv_unknown"}, 404, None, None),
        ({"input": [{"id": "msg_" + "0" * 36}]}, 400, "input[0].id", None),
        ({"input": [{"id": "nonsense"}]}, 400, "input[0].id", None),
        ({"tools": [{"type": "function", "name": "execute_order"}]}, 400, "tools[0].name", "invalid_value"),
        (
            {"text": {"format": BAD_SCHEMA}},
            400,
            "text.format.schema",
            "invalid_value",
        ),
        ({"model": "shop/side", "background": True}, 400, "background", "unsupported_value"),
        ({"background": True, "store": False}, 400, "background", "invalid_parameter_combination"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
async def test_what_cannot_be_done_is_refused(
    served: Served,
    upstream: FakeUpstream,
    body: dict[str, Any],
    status: int,
    param: str | None,
    code: str | None,
) -> None:
    async with http(served) as client:
        answer = await client.post("/responses", json={"model": "shop", "input": "Hi", **body})

    reported = answer.json()["error"]
    assert (answer.status_code, reported["param"], reported["code"]) == (status, param, code)
    assert upstream.requests == []


@pytest.mark.parametrize("previous", ["resp_" + "0" * 32, "resp_nope", "chatcmpl-nope", "nonsense"])
async def test_an_unknown_previous_response_is_named_in_the_error(
    served: Served, upstream: FakeUpstream, previous: str
) -> None:
    async with http(served) as client:
        requested = {"model": "shop", "input": "Hi", "previous_response_id": previous}
        answer = await client.post("/responses", json=requested)

    shown = previous.replace("chatcmpl-", "resp_")
    assert answer.json()["error"]["message"] == f"Previous response with id '{shown}' not found."
    assert upstream.requests == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/responses/nonsense", 404),
        ("GET", "/responses/resp_" + "0" * 32, 404),
        ("GET", "/responses/resp_" + "0" * 32 + "?stream=true", 404),
        ("GET", "/responses/resp_" + "0" * 32 + "/input_items", 404),
        ("GET", "/responses/resp_1?stream=maybe", 400),
        ("GET", "/responses/resp_1?stream=true&starting_after=x", 400),
        ("GET", "/responses/resp_1?include[]=nonsense", 400),
        ("GET", "/responses/resp_1/input_items?limit=0", 400),
        ("DELETE", "/responses/nonsense", 404),
        ("POST", "/responses/nonsense/cancel", 404),
        ("GET", "/responses", 405),
        ("PUT", "/responses/resp_1", 405),
    ],
)
async def test_unknown_objects_get_an_error_envelope(
    served: Served, method: str, path: str, status: int
) -> None:
    async with http(served) as client:
        answer = await client.request(method, path)

    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_side_request_is_not_stored(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Rockets"))

    async with http(served) as client:
        answer = await client.post("/responses", json={"model": "shop/side", "input": "A title, please"})
        later = await client.get(f"/responses/{answer.json()['id']}")

    response = judged_response(answer.json())
    assert (response.output_text, json.loads(answer.text)["store"]) == ("Rockets", False)
    assert answer.headers["x-conversation-match"] == "side-request"
    assert later.status_code == 404
