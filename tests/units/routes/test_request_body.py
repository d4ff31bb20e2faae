"""Headers of a request, decoded once."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.routes.request_body import decoded_headers, forget_headers, headers_of
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
