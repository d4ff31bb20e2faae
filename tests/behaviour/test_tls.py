"""HTTPS without a reverse proxy."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from websockets.asyncio.client import connect

from tests.behaviour.chat_client import user
from tests.fakes.certificates import make_certificate
from tests.fakes.upstream import FakeUpstream, text
from tests.server import serve


async def test_the_sdk_websockets_and_early_responses_work_over_tls(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    certificate, key = make_certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(certificate))
    upstream.reply(text("Hello, world"))
    async with serve(
        tmp_path, upstream.base_url, tls_certificate=certificate, tls_key=key, max_body_bytes=20_000
    ) as served:
        place = served.url.removeprefix("http://")
        async with AsyncOpenAI(
            base_url=f"https://{place}/v1", api_key="any", http_client=DefaultAsyncHttpxClient(verify=trust)
        ) as client:
            stream = await client.chat.completions.create(model="shop", messages=[user("Hi")], stream=True)
            content = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]

        async with connect(f"wss://{place}/v1/ws", ssl=trust) as socket:
            await socket.send("{}")
            first = await socket.recv()

        reader, writer = await asyncio.open_connection(*place.split(":"), ssl=trust)
        body = b"x" * 300_000
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        )
        refused = await reader.read()
        writer.close()

    assert "".join(word or "" for word in content) == "Hello, world"
    assert b"error" in (first if isinstance(first, bytes) else first.encode())
    assert refused.startswith(b"HTTP/1.1 413 ")


def test_files_that_cannot_be_used_are_reported_before_the_start(run: Any, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    other, locked = make_certificate(tmp_path, name="other", password=b"secret")
    reason = "is not a PEM certificate whose unencrypted private key is in"
    cases = {
        (str(certificate), str(tmp_path / "none.key")): (
            f"PROXY_TLS_KEY: {tmp_path / 'none.key'} cannot be read (No such file or directory)"
        ),
        (str(certificate), str(locked)): f"PROXY_TLS_CERTIFICATE: {certificate} {reason} {locked}",
        (str(other), str(locked)): f"PROXY_TLS_CERTIFICATE: {other} {reason} {locked}",
        (str(key), ""): f"PROXY_TLS_CERTIFICATE: {key} {reason} the same file",
        ("", str(key)): "PROXY_TLS_KEY: needs PROXY_TLS_CERTIFICATE too",
    }

    for (first, second), sentence in cases.items():
        for command in ("check", "serve"):
            result = run(command, PROXY_TLS_CERTIFICATE=first, PROXY_TLS_KEY=second, PROXY_PORT="0")

            assert result.exit_code != 0
            assert sentence in result.output


def test_usable_files_are_accepted(run: Any, tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)

    result = run("check", PROXY_TLS_CERTIFICATE=str(certificate), PROXY_TLS_KEY=str(key))

    assert result.exit_code == 0
