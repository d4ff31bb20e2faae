"""Responses over the limits of bytes and lines are an error while they are read."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

httpx = pytest.importorskip("httpx")

from proxy.members.adapters.bounded_transport import BoundedTransport  # noqa: E402 - needs httpx

EVENTS = "text/event-stream"
MEGABYTE = b"a" * 1024 * 1024


@asynccontextmanager
async def raw_server(head: Sequence[str], parts: Sequence[bytes]) -> AsyncIterator[str]:
    """A server that answers each request with this response and closes the connection; yields its URL."""

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write("\r\n".join(["HTTP/1.1 200 OK", *head, "Connection: close", "", ""]).encode())
            for part in parts:
                writer.write(part)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def read(parts: Sequence[bytes], kind: str, *head: str) -> int:
    """Return the number of bytes of a response that was read to its end."""
    async with (
        raw_server([f"Content-Type: {kind}", *head], parts) as url,
        httpx.AsyncClient(transport=BoundedTransport(trust_env=False), trust_env=False) as client,
        client.stream("GET", url) as response,
    ):
        return sum([len(received) async for received in response.aiter_raw()])


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        pytest.param("application/json", [MEGABYTE] * 20, id="response"),
        pytest.param(EVENTS, [b"data: ", *[MEGABYTE] * 20], id="event"),
        *(
            pytest.param(
                EVENTS, [(b"data: a" + end + b"b" + end) * 100] * 100, id=f"lines that end with {end!r}"
            )
            for end in (b"\n", b"\r\n", b"\r", b"\x0b", "\u2028".encode())
        ),
    ],
)
async def test_a_response_that_is_too_large_is_an_error(kind: str, parts: Sequence[bytes]) -> None:
    with pytest.raises(httpx.ReadError, match="too large"):
        await read(parts, kind)


@pytest.mark.parametrize("blank", [b"\n\n", b"\r\n\r\n", b"\r\r"])
async def test_a_stream_of_events_within_the_limits_is_read_whole(blank: bytes) -> None:
    event = b"data: " + MEGABYTE[:1000] + blank

    # More bytes and lines than one event can have.
    assert await read([event * 100] * 200, EVENTS) == len(event) * 20_000


async def test_a_compressed_response_is_an_error() -> None:
    with pytest.raises(httpx.ReadError, match="compressed"):
        await read([gzip.compress(b"{}")], "application/json", "Content-Encoding: gzip")
