"""What every answer carries: usage, tiers, fingerprints, headers."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.chat_client import user
from tests.behaviour.raw_http import HELLO, Wire, payloads
from tests.fakes.upstream import FakeUpstream, calls, chunk, error, events, text
from tests.server import TEAM_FILE, Served, serve

# --- usage ---


def used(prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 1},
        "completion_tokens_details": {
            "reasoning_tokens": reasoning,
            "audio_tokens": 2,
            "accepted_prediction_tokens": 3,
            "rejected_prediction_tokens": 4,
        },
    }


SUM = {
    "prompt_tokens": 330,
    "completion_tokens": 66,
    "total_tokens": 396,
    "prompt_tokens_details": {"cached_tokens": 110, "audio_tokens": 3},
    "completion_tokens_details": {
        "reasoning_tokens": 33,
        "audio_tokens": 6,
        "accepted_prediction_tokens": 9,
        "rejected_prediction_tokens": 12,
    },
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
async def test_usage_is_the_sum_over_every_model_call(
    served: Served, upstream: FakeUpstream, stream: bool
) -> None:
    upstream.reply(
        calls(("transfer_to_repairs", {}), usage=used(100, 20, reasoning=11)),
        error(500),
        calls(("look_up_item", {"search_query": "rocket"}), usage=used(110, 22, cached=50, reasoning=11)),
        text("It is here", usage=used(120, 24, cached=60, reasoning=11)),
    )
    async with Wire(served) as wire:
        if stream:
            reported = (await wire.frames(stream_options={"include_usage": True}))[-2]["usage"]
        else:
            reported = (await wire.ask()).json()["usage"]

    assert reported == SUM


async def test_usage_reported_before_cancellation_counts(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(
        events(
            chunk({"content": "Once"}, usage=used(10, 1)),
            chunk({"content": " upon"}, usage=used(10, 2)),
            chunk({"content": " a time"}, usage=used(10, 3)),
        ).hang(after=2)
    )
    body = ""
    requested = {
        "model": "shop",
        "messages": HELLO,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    async with (
        Wire(served) as wire,
        wire.http.stream("POST", "/chat/completions", json=requested) as response,
    ):
        async for piece in response.aiter_text():
            body += piece
            if "upon" in piece:
                turn = re.search(r"chatcmpl-\w+", body)
                assert turn is not None
                stopped = await wire.http.post(f"/chat/completions/{turn[0]}/cancel")
                assert stopped.status_code == 200

    assert payloads(body)[-2]["usage"]["completion_tokens"] == 2


# --- the tier, and the fingerprint of the set-up ---


@pytest.mark.parametrize("tier", ["auto", "default", "flex", "priority"])
async def test_the_service_tier_is_returned_if_requested(
    served: Served, upstream: FakeUpstream, tier: str
) -> None:
    upstream.reply(text("Hi"), text("Hi"), text("Hi"))
    async with Wire(served) as wire:
        plain = (await wire.ask(service_tier=tier)).json()
        frames = await wire.frames(service_tier=tier)
        unasked = (await wire.ask()).json()

    assert plain["service_tier"] == "default"
    assert all(frame["service_tier"] == "default" for frame in frames[:-1])
    assert "service_tier" not in unasked


async def test_the_fingerprint_stays_until_the_team_is_set_up_differently(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    async def fingerprints(teams: str) -> list[str]:
        (tmp_path / "teams.yaml").write_text(teams.format(upstream=upstream.base_url))
        upstream.reply(text("Hi"), text("Hi"))
        async with serve(tmp_path, teams=tmp_path / "teams.yaml") as served, Wire(served) as wire:
            plain = (await wire.ask()).json()
            frames = await wire.frames()
        return [plain["system_fingerprint"], *(frame["system_fingerprint"] for frame in frames[:-1])]

    first = await fingerprints(TEAM_FILE)
    again = await fingerprints(TEAM_FILE.replace("upstream-key", "another-key"))
    other = await fingerprints(TEAM_FILE.replace("You are sales.", "You sell."))

    assert re.fullmatch("fp_[0-9a-f]{10}", first[0])
    assert set(first) == set(again) == {first[0]}
    assert set(other) != set(first)


# --- headers ---


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/chat/completions/x/cancel", 404),
        ("GET", "/v1/chat/completions/x/stream", 404),
        ("GET", "/v1/models", 200),
        ("GET", "/v1/models/none", 404),
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/models", 405),
        ("DELETE", "/v1/chat/completions", 405),
        ("GET", "/health", 200),
    ],
)
async def test_every_answer_has_an_id_a_version_and_its_time(
    served: Served, upstream: FakeUpstream, method: str, path: str, status: int
) -> None:
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        body = {"model": "shop", "messages": HELLO} if status == 200 and method == "POST" else None
        response = await wire.http.request(method, f"{served.url}{path}", json=body)

    assert response.status_code == status
    assert re.fullmatch(r"req_[0-9a-f]{32}", response.headers["x-request-id"])
    assert response.headers["openai-version"] == "2020-10-01"
    assert response.headers["openai-processing-ms"].isdigit()
    assert response.headers["content-type"] == "application/json"
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]
    if status >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize(
    ("given", "logged"),
    [
        ("req-of-the-client", "req-of-the-client"),
        ("x" * 512, "x" * 512),
        ("x" * 513, None),
        ("naïve", None),
        ("", None),
    ],
    ids=["an id", "512", "513", "not ASCII", "empty"],
)
async def test_the_clients_own_request_id_is_logged(
    served: Served,
    upstream: FakeUpstream,
    caplog: pytest.LogCaptureFixture,
    given: str,
    logged: str | None,
) -> None:
    caplog.set_level(logging.INFO, "proxy.requests")
    upstream.reply(text("Hi"))
    async with Wire(served) as wire:
        await wire.ask(headers={"X-Client-Request-Id": given.encode("latin-1")})  # type: ignore[dict-item]

    lines = [record for record in caplog.records if record.name == "proxy.requests"]
    assert [getattr(line, "client_request_id", None) for line in lines] == [logged]


async def test_a_truncated_answer_has_finish_reason_length(served: Served, upstream: FakeUpstream) -> None:
    upstream.reply(text("Once upon", finish="length"))
    async with Wire(served) as wire:
        answer = await wire.completion(max_completion_tokens=2)

    assert answer.choices[0].finish_reason == "length"


async def test_answers_of_one_conversation_at_the_same_second_have_separate_ids(
    served: Served, upstream: FakeUpstream
) -> None:
    upstream.reply(*[text("Hi")] * 5)
    async with Wire(served) as wire:
        answers = await asyncio.gather(*(wire.completion(messages=[user(f"Hi {n}")]) for n in range(5)))

    assert len({answer.id for answer in answers}) == 5
    assert json.dumps([type(answer.created).__name__ for answer in answers]) == json.dumps(["int"] * 5)
