"""The log line and the metric of a request whose application does not end as usual."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import nullcontext
from typing import Any

import pytest

from proxy.log_config import JsonLineFormatter
from proxy.routes.middleware.request_log import RequestContext


@pytest.mark.parametrize(
    ("status", "error", "outcome"),
    [
        (None, asyncio.CancelledError, "cancelled"),
        (200, asyncio.CancelledError, "cancelled"),
        (None, ValueError, "internal_error"),
        (200, ValueError, "internal_error"),
        (500, ValueError, "refused"),
        (200, None, "ok"),
        (401, None, "refused"),
    ],
)
async def test_the_outcome_of_a_request_is_that_of_its_application(
    status: int | None,
    error: type[BaseException] | None,
    outcome: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    ended: list[tuple[str, int, str]] = []

    async def app(_scope: object, _receive: object, send: Any) -> None:
        if status is not None:
            await send({"type": "http.response.start", "status": status})
        if error is not None:
            raise error

    async def send(_message: object) -> None:
        pass

    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": []}
    context = RequestContext(app, lambda *end: ended.append(end))
    with pytest.raises(error) if error is not None else nullcontext():
        await context(scope, send, send)  # type: ignore[arg-type]

    assert ended == [("/v1/models", status or 0, outcome)]
    (line,) = caplog.records
    assert line.__dict__.get("status") == status


@pytest.mark.parametrize("passes", [True, False])
async def test_filters_of_the_logger_apply_to_the_line_of_a_request(
    caplog: pytest.LogCaptureFixture, *, passes: bool
) -> None:
    caplog.set_level(logging.INFO)
    logger, seen = logging.getLogger("proxy.requests"), []

    def sees(record: logging.LogRecord) -> bool:
        seen.append(record.getMessage())
        record.colour = "red"
        return passes

    async def app(_scope: object, _receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    async def send(_message: object) -> None:
        pass

    logger.addFilter(sees)
    try:
        await RequestContext(app)({"type": "http", "path": "/", "headers": []}, send, send)  # type: ignore[arg-type]
    finally:
        logger.removeFilter(sees)

    assert seen == ["request"]
    lines = [json.loads(JsonLineFormatter().format(record)) for record in caplog.records]
    assert [(line["colour"], line["status"]) for line in lines] == [("red", 200)] * passes
