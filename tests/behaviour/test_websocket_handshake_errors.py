"""WebSocket handshakes that are rejected: the same responses as over HTTP."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.behaviour.raw_http import Reply, Socket
from tests.fakes.upstream import FakeUpstream
from tests.server import Served, serve

VALID = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Authorization": "Bearer secret",
}


async def handshake(served: Served, path: str, method: str = "GET", **changes: str) -> Reply:
    headers = {**VALID, **{name.replace("_", "-"): value for name, value in changes.items()}}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items() if value)]
    async with Socket(served) as connection:
        await connection.send("\r\n".join([*lines, "", ""]).encode())
        return await connection.reply()


@pytest.mark.parametrize(
    ("path", "method", "changes", "status", "code"),
    [
        ("/v1/ws", "GET", {"Authorization": "Bearer wrong"}, 401, "invalid_api_key"),
        ("/ws", "GET", {"Authorization": ""}, 401, None),
        ("/v1/ws", "GET", {"Origin": "https://evil.example"}, 403, "origin_not_allowed"),
        ("/v1/unknown", "GET", {}, 404, None),
        ("/v1/unknown", "GET", {"Authorization": ""}, 401, None),
        ("/v1/ws", "POST", {}, 405, None),
        ("/v1/ws", "GET", {"Sec_WebSocket_Key": ""}, 400, None),
        ("/v1/ws", "GET", {"Sec_WebSocket_Version": "7"}, 400, None),
    ],
)
async def test_a_rejected_handshake_has_the_envelope_and_a_request_id(
    path: str,
    method: str,
    changes: dict[str, str],
    status: int,
    code: str | None,
    tmp_path: Path,
    upstream: FakeUpstream,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with serve(tmp_path, upstream.base_url, api_keys=("secret",)) as served:
        refused = await handshake(served, path, method, **changes)

    assert refused.status == status
    assert refused.headers["content-type"] == "application/json"
    assert refused.headers["x-request-id"].startswith("req_")
    error = json.loads(refused.body)["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert error["message"]
    # The loop can be blocked by other load.
    records = [record for record in caplog.records if record.name != "proxy.loop_watchdog"]
    assert [record.message for record in records if record.levelno >= logging.WARNING] == []


async def test_an_unknown_host_is_rejected_in_the_envelope(served: Served) -> None:
    refused = await handshake(served, "/v1/ws", Host="evil.example")
    assert (refused.status, json.loads(refused.body)["error"]["code"]) == (403, "host_not_allowed")


async def test_a_socket_has_a_request_id_and_a_log_line(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "proxy.requests")
    async with Socket(served) as connection:
        lines = [b"GET /v1/ws HTTP/1.1", *(f"{name}: {value}".encode() for name, value in VALID.items())]
        await connection.send(b"\r\n".join([*lines, b"", b""]))
        head = (await connection.reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        request_id = next(line.removeprefix("x-request-id: ") for line in head if line.startswith("x-req"))
    while not caplog.records:
        async with Socket(served):
            pass
    (record,) = caplog.records
    assert record.__dict__["request_id"] == request_id
    assert (record.__dict__["status"], record.__dict__["path"]) == (101, "/v1/ws")
