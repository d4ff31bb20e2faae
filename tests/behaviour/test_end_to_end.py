"""The product as people run it: a server process, a provider process, the bundled team, the official SDK."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.server import serve_process

CHAT = {"X-Conversation-Id": "unicycle-1"}
UNICYCLE = "Hi, I bought a rocket-powered unicycle and it exploded. I want my money back."

RULES: list[dict[str, Any]] = [
    {"when": {"last": "overloaded"}, "reply": {"error": 503}},
    {"when": {"last": "quota"}, "reply": {"error": 429, "code": "insufficient_quota"}},
    {
        "when": {"role": "user", "tool": "transfer_to_issues_and_repairs"},
        "reply": {
            "calls": [["transfer_to_issues_and_repairs", {"reason": "wants a refund"}]],
            "text": "One moment.",
        },
    },
    {
        "when": {"last": "money", "tool": "look_up_item"},
        "reply": {
            "calls": [
                ["look_up_item", {"search_query": "unicycle"}],
                ["look_up_item", {"search_query": "rocket"}],
            ],
            "interleave": True,
            "chunks": 5,
        },
    },
    {
        "when": {"role": "tool", "tool": "execute_refund", "last": "IssuesAndRepairs"},
        "reply": {"text": "Did you wind it up?"},
    },
    {
        "when": {"role": "tool", "tool": "execute_refund"},
        "reply": {"text": "The books say: {last}", "chunks": 7},
    },
    {"when": {"tool": "execute_refund"}, "reply": {"text": "Shall I refund it?", "chunks": 4}},
]


@asynccontextmanager
async def provider(folder: Path) -> AsyncIterator[str]:
    """The fake provider as a process; gives its base URL."""
    rules = folder / "rules.json"
    rules.write_text(json.dumps(RULES))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.fakes.upstream", "--port", "0", "--rules", str(rules),
        cwd=Path(__file__).parent.parent.parent,
        env={"PATH": os.environ["PATH"]},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.terminate()
        await process.wait()


async def requested(provider_url: str) -> list[Any]:
    async with httpx2.AsyncClient() as http:
        reported: list[Any] = (await http.get(provider_url.removesuffix("/v1") + "/requests")).json()
        return [one["body"] for one in reported if one["path"].endswith("/chat/completions")]


async def test_a_conversation_with_handoffs_and_tools_continues_after_a_restart(tmp_path: Path) -> None:
    async with provider(tmp_path) as url:
        environment = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url, "OPENAI_MODEL": "gpt-test"}
        async with serve_process(tmp_path, environment=environment) as (served, _):
            stream: Any = await served.client().chat.completions.create(
                model="acme-support",
                messages=[{"role": "user", "content": UNICYCLE}],
                stream=True,
                stream_options={"include_usage": True},
                extra_headers=CHAT,
            )
            chunks = [chunk async for chunk in stream]

        async with serve_process(tmp_path, environment=environment) as (served, _):
            answer = await served.client().chat.completions.create(
                model="acme-support",
                messages=[{"role": "user", "content": "Just give me my money back."}],
                extra_headers=CHAT,
            )
        bodies = await requested(url)

    texts = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert texts == "One moment.\n\nDid you wind it up?"
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == [
        "stop"
    ]
    assert chunks[-1].usage.total_tokens == 2 * (chunks[-1].usage.total_tokens // 2) > 0
    assert (answer.choices[0].message.content or "").startswith("The books say: ")
    assert {body["model"] for body in bodies} == {"gpt-test"}
    assert "execute_refund" in [tool["function"]["name"] for tool in bodies[2]["tools"]]
    assert [m["role"] for m in bodies[2]["messages"]] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert [m["role"] for m in bodies[3]["messages"][6:]] == ["assistant", "tool", "tool"]


@pytest.mark.parametrize(
    ("texts", "status", "code"),
    [
        ("overloaded", openai.InternalServerError, "upstream_error"),
        ("quota", openai.RateLimitError, "upstream_quota_exceeded"),
    ],
)
async def test_an_upstream_failure_is_a_typed_error_and_no_earlier_text_is_lost(
    tmp_path: Path, texts: str, status: type[openai.APIStatusError], code: str
) -> None:
    async with provider(tmp_path) as url:
        environment = {"OPENAI_API_KEY": "sk-test", "OPENAI_BASE_URL": url, "OPENAI_MODEL": "gpt-test"}
        async with serve_process(tmp_path, environment=environment) as (served, _):
            client = served.client()

            async def ask(text: str) -> str:
                answer = await client.chat.completions.create(
                    model="acme-support", messages=[{"role": "user", "content": text}], extra_headers=CHAT
                )
                return answer.choices[0].message.content or ""

            await ask(UNICYCLE)
            with pytest.raises(status) as failed:
                await ask(texts)
            assert failed.value.code == code
            assert await ask("Hello?") == "Shall I refund it?"
        bodies = await requested(url)

    assert [m["content"] for m in bodies[-1]["messages"] if m["role"] == "user"] == [UNICYCLE, "Hello?"]
