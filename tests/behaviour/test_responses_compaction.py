"""Compaction over the Responses API with the official SDK: parameters, items, and the two endpoints."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio

from tests.fakes.providers.windowed import WindowedProvider, prompt_text
from tests.fakes.upstream import FakeUpstream, error
from tests.server import Served, serve

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt " * 8
TEAM = """\
models:
  default: {{model: test-model, base_url: "{upstream}", api_key: k}}
teams:
  shop: {{entry: triage, compaction: {compaction}, agents: {{triage: {{instructions: You are triage.}}}}}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shops(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[dict[str, tuple[Served, WindowedProvider]]]:
    """A team with compaction, and one without; the windows are not known."""
    provider = WindowedProvider(4000)
    folders: dict[str, Path] = {
        name: tmp_path_factory.mktemp(f"compaction-{name}") for name in ("true", "false")
    }
    async with FakeUpstream(answer=provider) as upstream:
        for name, folder in folders.items():
            text = TEAM.format(upstream=upstream.base_url, compaction=name)
            (folder / "team.yaml").write_text(text, encoding="utf-8")
        async with (
            serve(folders["true"], teams=folders["true"] / "team.yaml") as on,
            serve(folders["false"], teams=folders["false"] / "team.yaml") as off,
        ):
            yield {"true": (on, provider), "false": (off, provider)}


Shops = dict[str, tuple[Served, WindowedProvider]]


def requested(number: int) -> Any:
    return {"role": "user", "content": f"fact-{number}-blue {TEXT}"}


def chat(turns: int) -> list[Any]:
    return [
        item
        for number in range(turns)
        for item in (requested(number), {"role": "assistant", "content": f"Answer {number}."})
    ]


def context_of(provider: WindowedProvider) -> list[Any]:
    messages: list[Any] = provider.accepted[-1]["messages"]
    return messages


async def test_compact_returns_the_user_messages_and_an_item_that_replaces_the_rest(shops: Shops) -> None:
    served, provider = shops["true"]
    client = served.client()

    compacted = await client.responses.compact(model="shop", input=chat(5))

    assert (compacted.object, compacted.id[:5]) == ("response.compaction", "resp_")
    assert [item.type for item in compacted.output] == ["message"] * 5 + ["compaction"]
    assert compacted.usage.total_tokens > 0
    output: list[Any] = [item.model_dump(exclude_none=True, warnings=False) for item in compacted.output]
    response = await client.responses.create(
        model="shop", input=[*output, {"role": "user", "content": "What did I plant?"}], store=False
    )
    assert response.output_text == "Noted."
    context = context_of(provider)
    assert [message["role"] for message in context] == ["system", "user", "assistant", "user"]
    assert all(f"fact-{number}-blue" in context[2]["content"] for number in range(1, 5))


async def test_a_failure_of_the_model_that_writes_the_summary_is_reported(tmp_path: Path) -> None:
    async with FakeUpstream(answer=lambda received: error(401)) as upstream:
        (tmp_path / "team.yaml").write_text(TEAM.format(upstream=upstream.base_url, compaction="true"))
        async with serve(tmp_path, teams=tmp_path / "team.yaml") as served:
            with pytest.raises(openai.InternalServerError) as caught:
                await served.client().responses.compact(model="shop", input="Hello")

    assert caught.value.code == "upstream_auth_failed"


async def test_compact_needs_messages(shops: Shops) -> None:
    served, provider = shops["true"]
    before = len(provider.summaries)
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client().responses.compact(
            model="shop", input=[{"role": "system", "content": "Be brief."}]
        )

    assert (caught.value.param, caught.value.code) == ("input", "invalid_value")
    assert len(provider.summaries) == before


async def test_context_management_returns_a_compaction_item(shops: Shops) -> None:
    served, provider = shops["true"]
    client = served.client()

    response = await client.responses.create(
        model="shop",
        input=[*chat(10), {"role": "user", "content": "Go on."}],
        context_management=[{"type": "compaction", "compact_threshold": 1000}],
    )

    assert [item.type for item in response.output] == ["compaction", "message"]
    assert len(prompt_text({"messages": context_of(provider)})) // 4 < 1000
    item: Any = response.output[0]
    again = await client.responses.create(
        model="shop",
        input=[
            {"type": "compaction", "encrypted_content": item.encrypted_content},
            {"role": "user", "content": "And now?"},
        ],
    )
    assert again.output_text == "Noted."
    assert "fact-1-blue" in context_of(provider)[1]["content"]


async def test_a_client_can_leave_out_everything_before_a_compaction_item(shops: Shops) -> None:
    served, provider = shops["true"]
    client = served.client()
    items: list[Any] = []
    compactions = 0

    for number in range(50, 62):
        items.append(requested(number))
        response = await client.responses.create(
            model="shop",
            input=items,
            store=False,
            context_management=[{"type": "compaction", "compact_threshold": 1000}],
        )
        output: list[Any] = [item.model_dump(exclude_none=True) for item in response.output]
        if output[0]["type"] == "compaction":
            items = []
            compactions += 1
        items += output
    await client.responses.create(model="shop", input=[*items, {"role": "user", "content": "All?"}])

    assert compactions > 1
    context = prompt_text({"messages": context_of(provider)})
    assert [number for number in range(50, 62) if f"fact-{number}-blue" not in context] == []


async def test_the_stream_has_the_item_too(shops: Shops) -> None:
    served, _ = shops["true"]
    types = []
    stream = await served.client().responses.create(
        model="shop",
        input=[*chat(11), {"role": "user", "content": "Go on."}],
        context_management=[{"type": "compaction", "compact_threshold": 1000}],
        stream=True,
    )
    async for event in stream:
        if event.type == "response.output_item.done":
            types.append(event.item.type)
    assert types == ["compaction", "message"]


async def test_a_compaction_item_of_another_server_is_rejected(shops: Shops) -> None:
    served, _ = shops["true"]
    for content in ("gAAAA", "hpc1_AAAA", "hpc1_ä"):
        with pytest.raises(openai.BadRequestError) as caught:
            await served.client().responses.create(
                model="shop",
                input=[{"type": "compaction", "encrypted_content": content}, requested(1)],
            )
        assert (caught.value.param, caught.value.code) == (
            "input[0].encrypted_content",
            "invalid_encrypted_content",
        )


async def test_truncation_decides_over_the_setting_of_the_team(shops: Shops) -> None:
    disabled, provider = shops["true"]
    auto, _ = shops["false"]
    long = [*chat(40), {"role": "user", "content": "Go on."}]

    with pytest.raises(openai.BadRequestError) as caught:
        await disabled.client().responses.create(model="shop", input=long, truncation="disabled")
    response = await auto.client().responses.create(model="shop", input=long, truncation="auto")

    assert caught.value.code == "context_length_exceeded"
    assert (response.output_text, response.truncation) == ("Noted.", "auto")
    assert "fact-39-blue" in prompt_text({"messages": context_of(provider)})


async def test_a_threshold_below_the_least_is_rejected(shops: Shops) -> None:
    served, _ = shops["true"]
    with pytest.raises(openai.BadRequestError) as caught:
        await served.client().responses.create(
            model="shop", input="Hi", context_management=[{"type": "compaction", "compact_threshold": 10}]
        )
    assert caught.value.param == "context_management[0].compact_threshold"


async def test_input_tokens_are_estimated_with_instructions_and_tools(shops: Shops) -> None:
    served, provider = shops["true"]
    client = served.client()

    counted = await client.responses.input_tokens.count(model="shop", input=chat(3))
    with_tool = await client.responses.input_tokens.count(
        model="shop",
        input=chat(3),
        tools=[{"type": "function", "name": "f", "description": TEXT, "parameters": {}, "strict": False}],
    )

    await client.responses.create(model="shop", input=[*chat(3)[:-1]])
    real = len(prompt_text({"messages": context_of(provider)})) / 4
    assert counted.object == "response.input_tokens"
    assert 0.8 * real < counted.input_tokens < 2 * real
    assert with_tool.input_tokens > counted.input_tokens + 100


async def test_input_tokens_of_a_stored_response_include_its_conversation(shops: Shops) -> None:
    served, _ = shops["true"]
    client = served.client()
    first = await client.responses.create(model="shop", input=chat(4)[:-1])

    alone = await client.responses.input_tokens.count(model="shop", input="Hi")
    counted = await client.responses.input_tokens.count(
        model="shop", input="Hi", previous_response_id=first.id
    )

    assert counted.input_tokens > alone.input_tokens + 500


@pytest.mark.parametrize("path", ["compact", "input_tokens"])
async def test_an_unknown_previous_response_is_named_as_such(shops: Shops, path: str) -> None:
    body = {"model": "shop", "input": "Hi", "previous_response_id": "resp_unknown"}
    with pytest.raises(openai.BadRequestError) as caught:
        await shops["true"][0].client().post(f"/responses/{path}", body=body, cast_to=object)
    assert (caught.value.param, caught.value.code) == (
        "previous_response_id",
        "previous_response_not_found",
    )


@pytest.mark.parametrize("path", ["compact", "input_tokens"])
async def test_unknown_models_and_invalid_bodies_are_typed_errors(shops: Shops, path: str) -> None:
    client = shops["true"][0].client()
    with pytest.raises(openai.NotFoundError) as caught:
        await client.post(f"/responses/{path}", body={"model": "nobody", "input": "Hi"}, cast_to=object)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as rejected:
        await client.post(f"/responses/{path}", body={"model": "shop", "input": 5}, cast_to=object)
    assert rejected.value.param == "input"
