"""The handoff extension, through the official SDK: set by request, by team and by setting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import BadRequestError, NotFoundError
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.behaviour.chat_client import Caller, agent_of, assistant, sold, user
from tests.fakes.streams import frames
from tests.fakes.upstream import FakeUpstream, calls, text
from tests.server import TEAM_FILE, Served, serve

MODES = ["none", "extension", "reasoning", "all"]
ROCKET = [user("I want a rocket")]
HANDED_OVER = {
    "type": "handoff",
    "agent": "triage",
    "from": "triage",
    "to": "sales",
    "reason": "wants a rocket",
}
LINE = "triage hands over to sales: wants a rocket"


def hand_over(upstream: FakeUpstream, *, reasoning: str | None = None) -> None:
    """Let triage hand over to sales, which answers."""
    transfer = calls(("transfer_to_sales", {"reason": "wants a rocket"}))
    upstream.reply(transfer, text("What colour?", reasoning=reasoning))


def extension_of(chunk: ChatCompletionChunk | ChatCompletion) -> dict[str, Any]:
    return dict((chunk.model_extra or {}).get("handoff") or {})


def strict(chunk: ChatCompletionChunk) -> ChatCompletionChunk:
    """The chunk, read once more by a reader that takes no wrong type."""
    return ChatCompletionChunk.model_validate_json(json.dumps(chunk.to_dict()), strict=True)


async def streamed(served: Served, mode: str | None, **more: Any) -> list[ChatCompletionChunk]:
    headers = {} if mode is None else {"X-Handoff-Events": mode}
    stream = await served.client().chat.completions.create(
        model=more.pop("model", "shop"),
        messages=more.pop("messages", ROCKET),
        stream=True,
        extra_headers={**headers, **more.pop("headers", {})},
        **more,
    )
    return [strict(chunk) async for chunk in stream]


def reasoning_of(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(
        (choice.delta.model_extra or {}).get("reasoning_content", "")
        for chunk in chunks
        for choice in chunk.choices
    )


@pytest.mark.parametrize("mode", MODES)
async def test_each_mode_has_its_own_parts(mode: str, served: Served, upstream: FakeUpstream) -> None:
    hand_over(upstream, reasoning="A rocket!")

    chunks = await streamed(served, mode, stream_options={"include_usage": True})

    reported = [extension_of(chunk) for chunk in chunks if extension_of(chunk)]
    if mode in ("extension", "all"):
        assert [each["type"] for each in reported] == ["handoff", "agent.speaking", "turn.completed"]
        assert reported[0] == HANDED_OVER
        assert reported[2]["agents"] == ["triage", "sales"]
        assert [(use["agent"], use["calls"], use["total_tokens"]) for use in reported[2]["usage"]] == [
            ("triage", 1, 18),
            ("sales", 1, 18),
        ]
    else:
        assert reported == []
    assert reasoning_of(chunks) == (f"{LINE}\n\nA rocket!" if mode in ("reasoning", "all") else "")
    *answer, last = chunks
    assert [chunk.choices[0].delta.role for chunk in answer] == ["assistant"] + [None] * (len(answer) - 1)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == "What colour?"
    assert answer[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage and last.usage.total_tokens) == ([], 36)


@pytest.mark.parametrize("mode", MODES)
async def test_the_sdks_helper_reads_the_same_answer_in_each_mode(
    mode: str, served: Served, upstream: FakeUpstream
) -> None:
    hand_over(upstream, reasoning="A rocket!")

    async with served.client().chat.completions.stream(
        model="shop", messages=ROCKET, extra_headers={"X-Handoff-Events": mode}
    ) as events:
        said = [event.delta async for event in events if event.type == "content.delta"]
        answer = await events.get_final_completion()

    assert "".join(said) == answer.choices[0].message.content == "What colour?"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert not answer.model_extra


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_of_the_callers_tool_is_read_the_same_in_each_mode(
    mode: str, served: Served, upstream: FakeUpstream
) -> None:
    transfer = calls(("transfer_to_sales", {"reason": "wants a rocket"}))
    upstream.reply(transfer, calls(("weather", {"city": "Rome"}), ("weather", "")))
    tool: Any = {"type": "function", "function": {"name": "weather"}}

    async with served.client().chat.completions.stream(
        model="shop", messages=ROCKET, tools=[tool], extra_headers={"X-Handoff-Events": mode}
    ) as events:
        answer = await events.get_final_completion()

    message = answer.choices[0].message
    assert message.content is None
    assert [call.function.arguments for call in message.tool_calls or []] == ['{"city": "Rome"}', "{}"]
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_a_response_without_streaming_has_the_extension(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_repairs", {})),
        calls(("look_up_item", {"search_query": "rocket"})),
        text("I found nothing."),
    )

    answer = await Caller(served).completion(ROCKET)

    reported = extension_of(answer)
    assert (reported["type"], reported["agents"], reported["tool_calls"]) == (
        "turn.completed",
        ["triage", "repairs"],
        1,
    )
    lines = (answer.choices[0].message.model_extra or {})["reasoning_content"].split("\n\n")
    assert lines[:2] == [
        "triage hands over to repairs",
        'repairs calls look_up_item with {"search_query": "rocket"}',
    ]
    assert lines[2].startswith("look_up_item answered after 0.")


async def test_all_is_the_default_and_none_is_the_openai_format(
    served: Served, upstream: FakeUpstream
) -> None:
    hand_over(upstream)
    by_default = await streamed(served, None)
    hand_over(upstream)
    official = await streamed(served, "none", messages=[user("I want a rocket, please")])

    assert [extension_of(chunk).get("type") for chunk in by_default if extension_of(chunk)] == [
        "handoff",
        "agent.speaking",
        "turn.completed",
    ]
    assert reasoning_of(by_default) == LINE
    for chunk in official:
        assert not chunk.model_extra
        assert not chunk.choices[0].delta.model_extra
    assert [chunk.choices[0].delta.content for chunk in official] == ["", "What c", "olour?", None]


# --- who decides ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_says", "team_says", "setting", "found"),
    [
        (None, None, "none", "none"),
        (None, None, "extension", "extension"),
        (None, "reasoning", "extension", "reasoning"),
        (None, "none", None, "none"),
        ("all", "none", "none", "all"),
        ("Extension", "reasoning", "none", "extension"),
        ("NONE", "all", None, "none"),
        ("", "reasoning", None, "reasoning"),
    ],
)
async def test_the_request_decides_then_the_team_then_the_setting(
    request_says: str | None,
    team_says: str | None,
    setting: str | None,
    found: str,
    tmp_path: Path,
    upstream: FakeUpstream,
) -> None:
    teams = tmp_path / "teams.yaml"
    own = f"shop:\n    events: {team_says}" if team_says else "shop:"
    teams.write_text(TEAM_FILE.format(upstream=upstream.base_url).replace("shop:", own))
    hand_over(upstream)

    async with serve(tmp_path, teams=teams, handoff_events=setting) as served:
        chunks = await streamed(served, request_says)
        listed = await served.client().models.retrieve(
            "shop", extra_headers={} if request_says is None else {"X-Handoff-Events": request_says}
        )

    has_objects = any(extension_of(chunk) for chunk in chunks)
    assert (has_objects, bool(reasoning_of(chunks))) == (
        found in ("extension", "all"),
        found in ("reasoning", "all"),
    )
    assert ("handoff" in (listed.model_extra or {})) == has_objects


async def test_an_unknown_mode_is_refused(served: Served) -> None:
    client = served.client(default_headers={"X-Handoff-Events": "some"})

    for pending in (
        client.chat.completions.create(model="shop", messages=ROCKET),
        client.models.retrieve("shop"),
        client.get("/models", cast_to=object),
    ):
        with pytest.raises(BadRequestError) as caught:
            await pending
        assert (caught.value.param, caught.value.code) == ("X-Handoff-Events", "invalid_value")


async def test_what_was_written_stays_out_when_the_operator_says_so(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    hand_over(upstream, reasoning="A rocket!")

    async with serve(tmp_path, upstream.base_url, handoff_details="false") as served:
        chunks = await streamed(served, "all")

    assert reasoning_of(chunks) == "triage hands over to sales"
    assert extension_of(chunks[1]) == {key: value for key, value in HANDED_OVER.items() if key != "reason"}


@pytest.mark.parametrize(
    ("headers", "setting", "is_reported"),
    [
        ({"X-OpenWebUI-User-Id": "u1"}, None, True),
        ({"X-OpenWebUI-User-Id": ""}, None, False),
        ({}, None, False),
        ({}, "always", True),
        ({"X-OpenWebUI-User-Id": "u1"}, "never", False),
    ],
)
async def test_open_webui_gets_its_status_line(
    headers: dict[str, str], setting: str | None, is_reported: bool, tmp_path: Path, upstream: FakeUpstream
) -> None:
    hand_over(upstream)

    async with serve(tmp_path, upstream.base_url, status_lines=setting) as served:
        chunks = await streamed(served, None, headers=headers)

    extras = [chunk.model_extra or {} for chunk in chunks]
    reported = [extra["event"] for extra in extras if "event" in extra]
    expected = [
        {"type": "status", "data": {"description": description, "done": True}}
        for description in ("sales takes over", "sales")
    ]
    assert reported == (expected if is_reported else [])


async def test_the_last_status_line_names_the_active_agent(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_repairs", {"reason": "broken"}), text="One moment."),
        calls(("look_up_item", {"search_query": "rocket"}), text="I look."),
        text("item_132612938"),
    )

    chunks = await streamed(served, None, headers={"X-OpenWebUI-User-Id": "u1"})

    events = [extra["event"]["data"] for c in chunks if "event" in (extra := c.model_extra or {})]
    assert [event["description"] for event in events] == [
        "triage",
        "repairs takes over",
        "repairs",
        "repairs uses look_up_item",
        "look_up_item answered",
        "repairs",
    ]
    assert events[-1]["done"] is True


async def test_side_requests_have_no_extension(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("A title"))

    answer = await Caller(served).completion([user("Name this chat")], model="shop/side")

    assert not answer.model_extra
    assert not answer.choices[0].message.model_extra


# --- again ---------------------------------------------------------------------------------------------------


async def body_of(response: aiohttp.ClientResponse) -> bytes:
    assert response.status == 200, await response.text()
    return await response.read()


@pytest.mark.parametrize(("first", "then"), [("all", "none"), ("none", "all")])
async def test_what_is_read_again_is_the_same_whatever_the_later_request_says(
    first: str, then: str, served: Served, upstream: FakeUpstream
) -> None:
    hand_over(upstream)
    body = {"model": "shop", "messages": ROCKET, "stream": True}
    url = f"{served.base_url}/chat/completions"
    key = {"Idempotency-Key": "k1", "X-Event-Ids": "true"}

    async with aiohttp.ClientSession() as http:
        reported = await body_of(await http.post(url, json=body, headers={**key, "X-Handoff-Events": first}))
        again = await body_of(await http.post(url, json=body, headers={**key, "X-Handoff-Events": then}))
        turn_id = json.loads(frames(reported)[0][1])["id"]
        resumed = await body_of(await http.get(f"{url}/{turn_id}/stream", headers={"X-Handoff-Events": then}))
        rest = await body_of(await http.get(f"{url}/{turn_id}/stream", headers={"Last-Event-ID": "4.1"}))

    assert reported == again == resumed
    assert (b'"handoff"' in reported) == (first == "all")
    assert reported.endswith(rest)


async def test_a_client_that_sends_reasoning_back_continues_its_conversation(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    hand_over(upstream)
    answer = await caller.completion(ROCKET)
    upstream.reply(text("Red it is."))

    await caller.ask([*ROCKET, answer.choices[0].message.to_dict(), user("red")])

    assert caller.match == "fingerprint"
    assert agent_of(upstream) == "sales"
    assert "reasoning_content" not in json.dumps(upstream.requests[-1].body)


# --- costs ---------------------------------------------------------------------------------------------------


async def test_costs_come_from_the_prices_of_the_team_file(tmp_path: Path, upstream: FakeUpstream) -> None:
    teams = tmp_path / "teams.yaml"
    priced = "api_key: upstream-key, price: {prompt: 2, completion: 8}, context_window: 9000}"
    teams.write_text(TEAM_FILE.format(upstream=upstream.base_url).replace("api_key: upstream-key}", priced))
    hand_over(upstream)

    async with serve(tmp_path, teams=teams) as served:
        answer = await Caller(served).completion(ROCKET)
        model = await served.client().models.retrieve("shop")

    # Eleven tokens of the prompt and seven of the answer, at each of two calls.
    assert [use["cost"] for use in extension_of(answer)["usage"]] == [0.000078, 0.000078]
    assert extension_of(answer)["cost"] == 0.000156
    assert model.model_extra is not None
    assert (model.model_extra["context_length"], model.model_extra["max_model_len"]) == (9000, 9000)


# --- models --------------------------------------------------------------------------------------------------


async def test_models_describe_their_team(served: Served) -> None:
    models = [model async for model in served.client().models.list()]

    assert [model.id for model in models] == ["shop", "shop/triage", "shop/sales", "shop/repairs"]
    assert models[0].to_dict() == {
        "id": "shop",
        "object": "model",
        "created": models[0].created,
        "owned_by": "handoff-proxy",
        "name": "shop",
        "handoff": {
            "agents": ["triage", "sales", "repairs"],
            "entry": "triage",
            "tools": ["execute_order", "look_up_item", "execute_refund"],
            "capabilities": {
                "streaming": True,
                "handoffs": True,
                "server_tools": True,
                "client_tools": True,
                "images": True,
            },
        },
    }
    assert extension_of(models[2])["tools"] == ["execute_order"]  # type: ignore[arg-type]


async def test_models_have_the_openai_format_in_mode_none(served: Served) -> None:
    client = served.client(default_headers={"X-Handoff-Events": "none"})

    for model in [model async for model in client.models.list()]:
        assert model.to_dict().keys() == {"id", "object", "created", "owned_by"}
        assert model == await client.models.retrieve(model.id)


async def test_a_model_was_created_when_its_team_file_was_written(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async with serve(tmp_path, upstream.base_url) as served:
        (first, *_) = [model.created async for model in served.client().models.list()]

    assert first == int((tmp_path / "teams.yaml").stat().st_mtime)


async def test_side_models_are_found_and_not_listed(served: Served) -> None:
    assert (await served.client().models.retrieve("shop/side")).id == "shop/side"
    with pytest.raises(NotFoundError):
        await served.client().models.retrieve("shop/nobody")


# --- one agent alone -----------------------------------------------------------------------------------------


async def test_an_agent_used_as_a_model_has_no_handoffs(served: Served, upstream: FakeUpstream) -> None:
    caller = Caller(served)
    upstream.reply(text("Which one?"), text("Sold."))

    answer = await caller.ask(ROCKET, model="shop/sales")
    await caller.ask([*ROCKET, assistant(answer), user("The red one")], model="shop/sales")

    assert caller.match == "fingerprint"
    for number in range(2):
        assert agent_of(upstream, number) == "sales"
        tools = [tool["function"]["name"] for tool in upstream.requests[number].body["tools"]]
        assert tools == ["execute_order"]


async def test_a_transfer_that_an_agent_alone_tries_does_not_happen(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(calls(("transfer_back_to_triage", {})), text("I stay."))

    answer = await Caller(served).completion(ROCKET, model="shop/sales")

    assert answer.choices[0].message.content == "I stay."
    assert (answer.model, extension_of(answer)["agents"]) == ("shop/sales", ["sales"])


async def test_an_agent_used_as_a_model_has_separate_conversations(
    served: Served, upstream: FakeUpstream
) -> None:
    caller = Caller(served)
    messages = await sold(caller, upstream)
    upstream.reply(text("Hello, I am triage."))

    await caller.ask([*messages, user("Who are you?")], model="shop/triage")

    assert caller.match == "entry"
    assert agent_of(upstream) == "triage"
    assert [message["role"] for message in upstream.requests[-1].body["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


async def test_the_demonstration_plays_its_agents_alone_too(tmp_path: Path) -> None:
    async with serve(tmp_path) as served:
        answer = await Caller(served).completion(
            [user("I want to buy a trap.")], model="acme-support/SalesAgent"
        )

    assert "what trouble do you have with catching roadrunners" in (answer.choices[0].message.content or "")
