"""Connections to providers: proxies of the environment, and TLS options."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from openai import APIStatusError

from tests.behaviour.chat_client import user
from tests.fakes.certificates import make_certificate
from tests.fakes.provider_gates import http_proxy, tls_server
from tests.fakes.upstream import FakeUpstream, text
from tests.server import Served, serve, serve_process


async def answer(served: Served) -> str | None:
    completion = await served.client().chat.completions.create(model="shop", messages=[user("Hi")])
    return completion.choices[0].message.content


async def test_the_proxy_of_the_environment_is_used_if_it_is_enabled(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    upstream.reply(text("Hello"))
    async with http_proxy(upstream.base_url) as gate:
        environment = {
            "PROXY_PROVIDER_PROXY": "environment",
            "HTTP_PROXY": f"me:secret@127.0.0.1:{gate.port}",
            "NO_PROXY": "other.example",
        }
        async with serve_process(tmp_path, "http://models.example:8080/v1", environment=environment) as (
            served,
            _,
        ):
            assert await answer(served) == "Hello"

    (head,) = gate.heads
    assert head.startswith(b"CONNECT models.example:8080 HTTP/1.1\r\n")
    assert b"Proxy-Authorization: Basic bWU6c2VjcmV0\r\n" in head


async def test_a_provider_with_its_own_authority_can_request_a_client_certificate(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    authority, authority_key = make_certificate(tmp_path)
    certificate, key = make_certificate(tmp_path, name="client")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificate))
    context.load_cert_chain(authority, authority_key)
    context.verify_mode = ssl.CERT_REQUIRED
    upstream.reply(text("Hello"))
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    async with tls_server(upstream.base_url, context) as gate:
        provider = f"https://127.0.0.1:{gate.port}/v1"

        async with serve(
            first,
            provider,
            provider_tls_ca=authority,
            provider_tls_certificate=certificate,
            provider_tls_key=key,
            provider_tls_minimum="1.3",
        ) as served:
            assert await answer(served) == "Hello"

        async with serve(second, provider) as served:
            with pytest.raises(APIStatusError) as failed:
                await answer(served)
        assert (failed.value.status_code, failed.value.code) == (502, "upstream_unreachable")
