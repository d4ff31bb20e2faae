"""``proxy.asgi:app`` under other servers: uvicorn's own command and gunicorn."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.command import ROOT, Command, Output, program
from tests.fork_server import ForkedProcess, fork

Process = asyncio.subprocess.Process | ForkedProcess
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, I need some help."}]
UVICORN = ("uvicorn", "proxy.asgi:app")
GUNICORN = ("gunicorn", "proxy.asgi:app", "-k", "uvicorn.workers.UvicornWorker", "-w", "2")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def at_port(arguments: tuple[str, ...], port: int) -> tuple[str, ...]:
    return ("--port", str(port)) if arguments == UVICORN else ("-b", f"127.0.0.1:{port}")


@asynccontextmanager
async def server(
    folder: Path,
    module: str,
    *arguments: str,
    environment: dict[str, str] | None = None,
    is_forked: bool = True,
) -> AsyncIterator[tuple[Process, Output]]:
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PROXY_DATA_DIR": str(folder / "data"),
        **(environment or {}),
    }
    start = fork if is_forked else program
    running = Command(await start(module, *arguments, folder=folder, environment=variables))
    try:
        yield running.process, running.err
    finally:
        if running.process.returncode is None:
            running.signal(signal.SIGTERM)
        await running.ended()


async def is_ready(url: str, process: Process) -> None:
    async with asyncio.timeout(60), httpx2.AsyncClient() as client:
        while True:
            assert process.returncode is None
            try:
                if (await client.get(f"{url}/health/ready")).status_code == 200:
                    return
            except httpx2.TransportError:
                await asyncio.sleep(0.1)


@pytest.mark.parametrize("arguments", [UVICORN, GUNICORN], ids=["uvicorn", "gunicorn"])
async def test_openai_sdk_works_and_the_server_stops(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # One of them as a program: there, nothing else has imported what the application needs.
    is_forked = arguments != UVICORN
    async with server(tmp_path, *arguments, *at_port(arguments, port), is_forked=is_forked) as (
        process,
        errors,
    ):
        await is_ready(url, process)
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
            answer = await client.chat.completions.create(model="acme-support", messages=QUESTION)
            stream = await client.chat.completions.create(
                model="acme-support", messages=QUESTION, stream=True
            )
            streamed = "".join([one.choices[0].delta.content or "" async for one in stream if one.choices])

        assert answer.choices[0].message.content == streamed
        assert "Welcome to ACME" in streamed
        async with httpx2.AsyncClient() as plain:
            assert (await plain.get(f"{url}/v1/unknown")).json()["error"]["type"] == "invalid_request_error"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            await process.wait()
    assert "Traceback" not in errors.text


MIDDLEWARE = """
from proxy.asgi import app as proxy


async def app(scope, receive, send):
    async def send_upper(message):
        if message["type"] == "http.response.body":
            message["body"] = message["body"].upper()
        await send(message)

    await proxy(scope, receive, send_upper)
"""


@pytest.mark.parametrize("is_stream", [False, True])
async def test_middleware_around_the_application_gets_all_bodies(tmp_path: Path, *, is_stream: bool) -> None:
    (tmp_path / "wrapped.py").write_text(MIDDLEWARE)
    port = free_port()
    arguments = ("uvicorn", "wrapped:app", "--http", "proxy.http_protocol:BoundedHttp", "--port", str(port))
    async with server(tmp_path, *arguments, is_forked=False) as (process, _):
        await is_ready(f"http://127.0.0.1:{port}", process)
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
            body = {"model": "acme-support", "messages": QUESTION, "stream": is_stream}
            answer = await client.post("/v1/chat/completions", json=body)

    assert answer.status_code == 200
    assert '"CHOICES":' in answer.text
    assert answer.text == answer.text.upper()


async def test_invalid_settings_end_the_server_with_a_sentence(tmp_path: Path) -> None:
    for arguments in (UVICORN, GUNICORN):
        # One worker: gunicorn sometimes exits with 1 when a second one fails while it stops.
        place = (*at_port(arguments, free_port()), *(() if arguments == UVICORN else ("-w", "1")))
        environment = {"PROXY_TEAMS": "missing.yaml", "PROXY_MAX_MESSAGES": "0"}
        async with server(tmp_path, *arguments, *place, environment=environment) as (process, errors):
            async with asyncio.timeout(60):
                assert await process.wait() == 3
        assert "missing.yaml" in errors.text
        assert "PROXY_MAX_MESSAGES: should be a whole number from 1 up" in errors.text
        assert "Traceback" not in errors.text


async def test_without_keys_only_loopback_addresses_are_served(tmp_path: Path) -> None:
    address = another_address()
    if address is None:
        pytest.skip("this machine has only loopback addresses")
    port = free_port()
    async with server(tmp_path, *UVICORN, "--host", "0.0.0.0", "--port", str(port)) as (process, _):
        await is_ready(f"http://127.0.0.1:{port}", process)
        async with httpx2.AsyncClient() as client:
            refused = await client.get(f"http://{address}:{port}/v1/models", headers={"Host": "localhost"})

    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "api_keys_required")


def another_address() -> str | None:
    """An IPv4 address of this machine that is not loopback. Nothing is sent: connecting UDP only selects a route."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        try:
            found.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address = str(found.getsockname()[0])
    return None if address.startswith("127.") else address
