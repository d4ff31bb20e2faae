"""Logs: one JSON object per line on standard error. What people wrote, and keys, never get here.

The one exception is ``stream_events``, of a form that people read, and with their words if the operator wants them.
"""

from __future__ import annotations

import logging
import logging.config

from pythonjsonlogger.core import RESERVED_ATTRS

# These log every message, URL or statement they handle, or what is told by ours already.
_TALKATIVE = (
    "alembic", "asyncio", "autogen_core", "autogen_core.events", "httpcore", "httpcore2", "httpx", "httpx2", "openai",
    "sqlalchemy", "uvicorn.error",
    # Searches, and the Rust libraries below them, which log through Python: addresses hold what people look for.
    "cookie_store", "ddgs", "h2", "hickory_net", "hickory_proto", "hickory_resolver", "html5ever", "hyper",
    "hyper_util", "primp", "reqwest", "rustls", "tokio", "tower", "tower_http",
)  # fmt: skip
# The MCP SDK, which calls one of its loggers "client": its errors hold what servers wrote. What matters of them is
# logged by ours.
_SILENT = ("client", "mcp")


def configure_logging(level: str) -> None:
    """Set up logging for the whole process."""
    quiet = level if level in ("ERROR", "CRITICAL") else "WARNING"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "format": "%(time)s %(levelname)s %(name)s %(message)s",
                    "rename_fields": {"levelname": "level", "name": "logger"},
                    "timestamp": "time",
                    # uvicorn adds its messages once more, coloured.
                    "reserved_attrs": [*RESERVED_ATTRS, "color_message"],
                },
                "stream": {"format": "%(asctime)s - STREAM - %(levelname)s - %(message)s"},
            },
            "handlers": {
                "stderr": {"class": "logging.StreamHandler", "formatter": "json"},
                "stream": {"class": "logging.StreamHandler", "formatter": "stream"},
            },
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                **{name: {"level": quiet} for name in _TALKATIVE},
                **{name: {"level": "CRITICAL"} for name in _SILENT},
                "stream_events": {"handlers": ["stream"], "propagate": False},
                "uvicorn.access": {"handlers": [], "propagate": False},
            },
        }
    )
