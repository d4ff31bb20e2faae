"""The id of the HTTP request that the current task serves; tasks that it starts, its turn among them, inherit it."""

from __future__ import annotations

from contextvars import ContextVar

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Empty outside of requests."""
