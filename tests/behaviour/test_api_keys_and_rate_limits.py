"""Keys with terms of their own, limits, and metrics, over HTTP."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import aiohttp
import httpx2
import openai
import pytest

from proxy.app import prepare
from proxy.auth import Terms, new_key
from proxy.errors import ConfigurationError
from proxy.settings import load_settings
from proxy.store.turns import SqlHistory
from tests.behaviour.chat_client import Caller, user
from tests.fakes.upstream import FakeUpstream, calls, hang, text
from tests.server import Served, serve


async def keyed(served: Served, **terms: Any) -> str:
    """A stored API key."""
    key, stored = new_key("front desk", Terms(**terms), now=1.0)
    assert isinstance(served.services.history, SqlHistory)
    await served.services.history.keys.add(stored)
    return key


async def test_a_server_with_stored_keys_requires_a_key(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))
    async with serve(tmp_path, upstream.base_url) as served:
        key = await keyed(served)
    async with serve(tmp_path, upstream.base_url) as served:
        assert await Caller(served, key).ask([user("Hi")]) == "Hello"
        for wrong in ("any", key[:-1], f"{key}x"):
            with pytest.raises(openai.AuthenticationError) as refused:
                await Caller(served, wrong).ask([user("Hi")])
            assert refused.value.code == "invalid_api_key"
    assert len(upstream.requests) == 1


async def test_conversations_belong_to_the_stored_key(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("One"), text("Two"))
    async with serve(tmp_path, upstream.base_url, api_keys=("fixed",)) as served:
        one, other = await keyed(served), await keyed(served)
        await Caller(served, one).ask([user("Hi")], headers={"X-Conversation-Id": "anna"})
        await Caller(served, other).ask([user("Hi")], headers={"X-Conversation-Id": "anna"})

        for key, answer in ((one, "One"), (other, "Two")):
            client = served.client(key)
            items: Any = [item async for item in client.conversations.items.list("anna")]
            assert items[0].content[0].text == answer


async def test_a_key_sets_the_default_events_mode(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(*(text("Hello") for _ in range(3)))
    async with serve(tmp_path, upstream.base_url, api_keys=("fixed",)) as served:
        plain = served.client(await keyed(served, events="none"))
        ask: dict[str, Any] = {"model": "shop", "messages": [user("Hi")]}

        by_key = await plain.chat.completions.create(**ask)
        by_request = await plain.chat.completions.create(**ask, extra_headers={"X-Handoff-Events": "all"})
        by_setting = await served.client("fixed").chat.completions.create(**ask)

        assert by_key.model_extra == {}
        assert "handoff" in (by_request.model_extra or {})
        assert "handoff" in (by_setting.model_extra or {})
        assert (await plain.models.list()).data[0].model_extra == {}


async def test_a_key_asks_its_models_and_knows_no_others(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"), text("Alone"))
    async with serve(tmp_path, upstream.base_url, api_keys=("fixed",)) as served:
        client = served.client(await keyed(served, models=("shop/sales",)))

        await client.chat.completions.create(model="shop/sales", messages=[user("Hi")])
        assert [model.id async for model in client.models.list()] == ["shop/sales"]
        for ask in (
            client.chat.completions.create(model="shop", messages=[user("Hi")]),
            client.responses.create(model="shop", input="Hi"),
            client.models.retrieve("shop"),
        ):
            with pytest.raises(openai.NotFoundError) as missing:
                await ask
            assert missing.value.code == "model_not_found"


async def test_rate_limits_are_reported_in_headers_and_enforced(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(*(text("Hello") for _ in range(3)))
    async with serve(tmp_path, upstream.base_url, requests_per_minute=2) as served:
        caller = Caller(served)
        await caller.ask([user("One")])
        assert caller.headers["x-ratelimit-limit-requests"] == "2"
        assert caller.headers["x-ratelimit-remaining-requests"] == "1"
        assert re.fullmatch(r"\d+(\.\d+)?(ms|s)|1m0s", caller.headers["x-ratelimit-reset-requests"])
        assert "x-ratelimit-limit-tokens" not in caller.headers
        stream = await caller.client.chat.completions.with_raw_response.create(
            model="shop", messages=[user("Two")], stream=True
        )
        assert stream.headers["x-ratelimit-remaining-requests"] == "0"
        async for _ in stream.parse():
            continue

        with pytest.raises(openai.RateLimitError) as refused:
            await caller.ask([user("Three")])
        assert isinstance(refused.value.body, dict)
        assert re.fullmatch(
            r"Rate limit reached on requests per min \(RPM\): Limit 2\. Please try again in [\d.]+s\.",
            refused.value.body.pop("message"),
        )
        assert refused.value.body == {
            "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded",
        }  # fmt: skip
        headers = refused.value.response.headers
        assert 1 <= int(headers["retry-after"]) <= 60
        assert int(headers["retry-after-ms"]) <= 60_000
        assert headers["x-ratelimit-remaining-requests"] == "0"
        # Others, and what begins no turn, are not held up.
        await caller.client.models.list()
        await Caller(served, "other").ask([user("Hi")])


async def test_tokens_of_a_turn_count_against_the_next(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(calls(("transfer_to_sales", {})), text("Hello"))
    async with serve(tmp_path, upstream.base_url, api_keys=("fixed",)) as served:
        caller = Caller(served, await keyed(served, tokens_per_minute=30))
        await caller.ask([user("One")])
        assert caller.headers["x-ratelimit-limit-tokens"] == "30"

        with pytest.raises(openai.RateLimitError) as refused:
            await caller.ask([user("Two")])
    assert "tokens per min (TPM): Limit 30." in refused.value.message


async def test_a_socket_is_held_to_the_limits_too(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(text("Hello"))
    request = {"model": "shop", "messages": [user("Hi")]}
    async with (
        serve(tmp_path, upstream.base_url, requests_per_minute=1) as served,
        aiohttp.ClientSession(headers={"Authorization": "Bearer k"}) as http,
        http.ws_connect(f"{served.url}/v1/ws") as socket,
    ):
        reported = []
        for _ in range(2):
            await socket.send_json({"type": "start", "request": request})
            while (frame := await socket.receive_json())["type"] not in ("turn.completed", "error"):
                continue
            reported.append(frame)

    assert [frame["type"] for frame in reported] == ["turn.completed", "error"]
    assert reported[1]["error"]["code"] == "rate_limit_exceeded"


async def test_no_more_turns_run_than_may(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(hang())
    async with serve(tmp_path, upstream.base_url, max_running_turns=1) as served:
        first = asyncio.create_task(Caller(served).ask([user("One")]))
        await upstream.received(1)
        with pytest.raises(openai.InternalServerError) as refused:
            await Caller(served).ask([user("Two")])
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)

    assert (refused.value.status_code, refused.value.code) == (503, "server_is_overloaded")
    assert refused.value.response.headers["retry-after"] == "1"


async def test_slow_readers_do_not_fill_the_memory(tmp_path: Path, upstream: FakeUpstream) -> None:
    content = "0123456789abcdef" * 450_000
    both_begun = asyncio.Event()
    size = len(content) // 200
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    long = text(content, chunks=[pieces[0], both_begun, *pieces[1:]])
    upstream.reply(long, long, text("Hello"))
    async with serve(tmp_path, upstream.base_url, max_log_bytes=1_500_000) as served:
        turns = served.services.turns
        slow = [await _unread(served, conversation) for conversation in ("one", "two")]
        both_begun.set()
        async with asyncio.timeout(20):
            while turns.log_bytes < 1_500_000:
                await asyncio.sleep(0.01)
        with pytest.raises(openai.InternalServerError) as refused:
            await Caller(served).ask([user("Hi")])
        assert (refused.value.status_code, refused.value.code) == (503, "log_memory_exhausted")
        assert refused.value.response.headers["retry-after"] == "2"

        for stream in slow:
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            assert "".join(parts) == content
        assert turns.log_bytes < 1_500_000
        assert await Caller(served).ask([user("Hi")]) == "Hello"


async def _unread(served: Served, conversation: str) -> Any:
    return await served.client().chat.completions.create(
        model="shop",
        messages=[{"role": "user", "content": "A long answer"}],
        stream=True,
        extra_headers={"X-Conversation-Id": conversation},
    )


async def test_requests_are_rejected_if_the_counter_is_unavailable(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    limits: dict[str, Any] = {"requests_per_minute": 5, "redis_url": "redis://127.0.0.1:1/0"}
    async with serve(tmp_path, upstream.base_url, **limits) as served:
        with pytest.raises(openai.InternalServerError) as refused:
            await Caller(served).ask([user("Hi")])

    assert (refused.value.status_code, refused.value.code) == (503, "storage_unavailable")
    assert upstream.requests == []


# --- metrics -------------------------------------------------------------------------------------------------


async def test_what_happens_is_counted(tmp_path: Path, upstream: FakeUpstream) -> None:
    upstream.reply(
        calls(("transfer_to_sales", {})),
        calls(("execute_order", {"product": "Rocket", "price": 1})),
        text("Done"),
    )
    async with serve(tmp_path, upstream.base_url, metrics=True, api_keys=("fixed",)) as served:
        caller = Caller(served, "fixed")
        await caller.ask([user("A rocket")])
        with pytest.raises(openai.NotFoundError):
            await caller.ask([user("Hi")], model="someone's secret")
        async with httpx2.AsyncClient() as http:
            refused = await http.get(f"{served.url}/metrics")
            reported = await http.get(f"{served.url}/metrics", headers={"Authorization": "Bearer fixed"})

    assert refused.status_code == 401
    counts = dict(line.rsplit(" ", 1) for line in reported.text.splitlines() if line and line[0] != "#")
    assert counts['requests_total{outcome="ok",route="chat.completions",status="200"}'] == "1.0"
    assert counts['requests_total{outcome="refused",route="chat.completions",status="404"}'] == "1.0"
    assert counts['turns_total{outcome="completed",team="shop"}'] == "1.0"
    assert counts['tool_calls_total{outcome="ok",tool="execute_order"}'] == "1.0"
    assert counts['model_calls_total{model="test-model"}'] == "3.0"
    assert counts['tokens_total{kind="prompt",model="test-model"}'] == "33.0"
    assert counts["turns_running"] == "0.0"
    assert "loop_lag_seconds" in counts
    assert "secret" not in reported.text


async def test_metrics_are_off_by_default(served: Served) -> None:
    async with httpx2.AsyncClient() as http:
        assert (await http.get(f"{served.url}/metrics")).status_code == 404


# --- the command ---------------------------------------------------------------------------------------------


def test_keys_are_created_listed_and_revoked_by_command(tmp_path: Path, run: Any) -> None:
    folder = f"--data-dir={tmp_path / 'data'}"
    created = run("keys", "create", "front desk", folder, "--models=a,b", "--requests-per-minute=5")
    key = created.stdout.strip()
    key_id = key.split("_")[1]

    listed = run("keys", "list", folder)
    revoked = run("keys", "revoke", key_id, folder)
    again = run("keys", "revoke", key_id, folder)

    assert re.fullmatch(r"hp_[0-9a-f]{16}_[A-Za-z0-9_-]{43}", key)
    assert f"{key_id}  front desk  (active; " in listed.stdout
    assert "5 requests per minute; models a, b)" in listed.stdout
    assert key not in listed.stdout
    assert (revoked.exit_code, again.exit_code) == (0, 1)
    assert "(revoked; " in run("keys", "list", folder).stdout


def test_a_stored_key_allows_non_loopback_addresses(tmp_path: Path, run: Any) -> None:
    settings = load_settings(env_file=None, data_dir=tmp_path / "data", host="0.0.0.0")
    with pytest.raises(ConfigurationError):
        prepare(settings)
    assert not (tmp_path / "data").exists()

    run("keys", "create", "desk", f"--data-dir={tmp_path / 'data'}")

    prepare(settings)


# --- the caller of a server without keys, and headers with keys ----------------------------------------------


async def test_without_keys_a_program_and_the_page_see_the_same_conversations(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    async with (
        serve(tmp_path, upstream.base_url, separate_keys=False) as served,
        httpx2.AsyncClient(base_url=served.base_url) as page,
    ):
        completion = await served.client("any").chat.completions.create(
            model="shop", messages=[{"role": "user", "content": "Hi"}]
        )
        listed = (await page.get("/conversations")).json()["data"]
        turns = (await page.get(f"/conversations/{listed[0]['id']}/turns")).json()["data"]

    assert [turn["id"] for turn in turns] == [completion.id]


async def test_a_key_is_accepted_in_three_headers(tmp_path: Path, upstream: FakeUpstream) -> None:
    cases = (
        ({"x-api-key": "fixed"}, 200),
        ({"api-key": "fixed"}, 200),
        ({"api-key": "wrong"}, 401),
        ({"x-api-key": "fixed", "api-key": "wrong"}, 200),
        ({"Authorization": "Basic eDp5", "x-api-key": "fixed"}, 200),
        ({"Authorization": "Bearer fixed", "x-api-key": "wrong"}, 200),
        ({"Authorization": "Bearer wrong", "x-api-key": "fixed"}, 401),
    )
    async with (
        serve(tmp_path, upstream.base_url, api_keys=("fixed",)) as served,
        httpx2.AsyncClient(base_url=served.base_url) as http,
    ):
        found = [(await http.get("/models", headers=headers)).status_code for headers, _ in cases]

    assert found == [status for _, status in cases]
