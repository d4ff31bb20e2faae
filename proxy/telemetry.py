"""Logs: one JSON object per line on standard error. What people wrote, and keys, never get here."""

from __future__ import annotations

import logging
import logging.config

# These log every message, URL or statement they handle; at INFO that is what people wrote.
_TALKATIVE = ("autogen_core", "autogen_core.events", "aiosqlite", "httpx", "httpcore", "openai", "alembic")


def configure_logging(level: str) -> None:
    """Set up logging for the whole process."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "format": "%(asctime)s %(levelname)s %(name)s %(message)s",
                    "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
                }
            },
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                **{name: {"level": "WARNING"} for name in _TALKATIVE},
                "uvicorn.access": {"handlers": [], "propagate": False},
            },
        }
    )
