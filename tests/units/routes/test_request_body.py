"""Headers of a request, decoded once."""

from __future__ import annotations

import pytest

from proxy.routes.request_body import decoded_headers


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
