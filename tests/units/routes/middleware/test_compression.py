"""Which answers are compressed, and that they say so rightly."""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from proxy.routes.middleware.compression import SMALLEST_BYTES, Compression, refuses_gzip

LARGE = b"0123456789" * SMALLEST_BYTES


async def answered(
    body: bytes, *, accepts: str | None = "gzip", pieces: int = 1, **headers: str
) -> tuple[dict[str, str], list[bytes]]:
    """Return headers and body parts of the response of an application that sends the given parts."""
    given = {"content_type": "application/json", **headers}
    if pieces == 1:
        given["content_length"] = str(len(body))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in given.items()]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        size = len(body) // pieces
        for number in range(pieces):
            piece = body[number * size : (number + 1) * size]
            await send({"type": "http.response.body", "body": piece, "more_body": number < pieces - 1})

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    requested = [] if accepts is None else [(b"accept-encoding", accepts.encode())]
    await Compression(app)({"type": "http", "headers": requested}, None, send)  # type: ignore[arg-type]
    start, *bodies = sent
    reported = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return reported, [message["body"] for message in bodies]


async def test_a_large_answer_is_compressed_and_says_so() -> None:
    headers, (body,) = await answered(LARGE)

    assert headers["content-encoding"] == "gzip"
    assert headers["content-length"] == str(len(body))
    assert headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(body) == LARGE


@pytest.mark.parametrize("accepts", [None, "", "identity", "br, deflate", "gzip;q=0", "gzip; q=0.000, br"])
async def test_who_does_not_take_it_gets_it_as_it_is_and_caches_know(accepts: str | None) -> None:
    headers, (body,) = await answered(LARGE, accepts=accepts)

    assert (headers.get("content-encoding"), headers["vary"], body) == (None, "Accept-Encoding", LARGE)
    assert headers["content-length"] == str(len(LARGE))


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/event-stream; charset=utf-8"},
        {"content_type": "text/plain; charset=utf-8"},
        {"content_type": "image/png"},
        {"content_encoding": "br"},
    ],
    ids=str,
)
async def test_streams_and_what_is_compressed_go_out_piece_by_piece_as_they_are(
    headers: dict[str, str],
) -> None:
    reported, pieces = await answered(LARGE, pieces=4, **headers)

    assert reported.get("content-encoding") == headers.get("content_encoding")
    assert (len(pieces), b"".join(pieces)) == (4, LARGE)


async def test_a_small_answer_is_left_alone() -> None:
    headers, (body,) = await answered(LARGE[: SMALLEST_BYTES - 1])

    assert "content-encoding" not in headers
    assert len(body) == SMALLEST_BYTES - 1


@pytest.mark.parametrize(("accepts", "tag"), [("gzip", 'W/"a"'), ("br", '"a"')])
async def test_the_tag_of_a_compressed_answer_is_a_weak_one(accepts: str, tag: str) -> None:
    headers, _ = await answered(LARGE, accepts=accepts, etag='"a"')

    assert headers["etag"] == tag


@pytest.mark.parametrize(
    ("accepted", "refuses"),
    [
        ("gzip", False),
        ("gzip;q=0.1", False),
        ("gzip;q=1.0", False),
        ("GZIP ; Q=0", True),
        ("br;q=0, gzip", False),
        ("gzip;q=", True),
        ("", False),
    ],
)
def test_a_refusal_is_read_as_the_standard_has_it(accepted: str, refuses: bool) -> None:
    assert refuses_gzip(accepted) == refuses
