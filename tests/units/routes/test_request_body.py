"""Headers of a request, decoded once, and where its body is decoded."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from proxy.routes.request_body import decode_body, decoded_headers, forget_headers, headers_of
from proxy.routes.server_extensions import REQUEST_BODY


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([], {}),
        ([(b"host", b"a"), (b"x-a", b"caf\xe9")], {"host": "a", "x-a": "café"}),
        ([(b"x-a", b"first"), (b"x-b", b""), (b"x-a", b"second")], {"x-a": "first", "x-b": ""}),
        ([(b"x-a", b"b\0x-c"), (b"x-d", b"e")], {"x-a": "b\0x-c", "x-d": "e"}),
    ],
    ids=["none", "Latin-1", "repeated", "NUL of another server"],
)
def test_headers_are_decoded(raw: list[tuple[bytes, bytes]], expected: dict[str, str]) -> None:
    assert decoded_headers(raw) == expected


@pytest.mark.parametrize(("extensions", "left"), [({REQUEST_BODY: None}, ()), ({}, [(b"a", b"b")])])
def test_headers_are_forgotten_but_middleware_around_another_server_s_application_reads_them(
    extensions: dict[str, Any], left: object
) -> None:
    scope: dict[str, Any] = {"headers": [(b"a", b"b")], "extensions": extensions}
    assert headers_of(scope) == {"a": "b"}

    forget_headers(scope)

    assert scope == {"headers": left, "extensions": extensions, "state": {}}


@pytest.mark.parametrize(
    ("size", "objects", "is_quick", "is_in_thread"),
    [
        (16_384, 16_384, False, False),
        (16_385, 1, False, True),
        (16_385, 4_096, True, False),
        (16_385, 4_097, True, True),
        (131_072, 1, True, False),
        (131_073, 1, True, True),
    ],
)
async def test_a_long_body_is_decoded_in_a_thread_unless_that_is_quick(
    size: int, objects: int, is_quick: bool, is_in_thread: bool
) -> None:
    def decode(body: bytes) -> tuple[int, bool]:
        return len(body), threading.current_thread() is not threading.main_thread()

    body = (b"{" * objects).ljust(size)
    decoded = await decode_body(decode, lambda body: decode(body) if is_quick else None, body)

    assert decoded == (size, is_in_thread)
