"""Logs on standard error: one JSON object per line, or readable lines if it is a terminal.

They contain no message text and no keys. The exception is the logger ``stream_events``, whose lines have another
format and contain text if the operator enables it.
"""

from __future__ import annotations

import logging
import logging.config
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TextIO

import click
import msgspec
from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from proxy.log_record import FieldsRecord
from proxy.request_id import REQUEST_ID
from proxy.tracing import current_trace_id, is_traced

# These log every message, URL or statement, or duplicate log messages of the proxy.
_VERBOSE = (
    "alembic", "asyncio", "autogen_core", "autogen_core.events", "httpcore", "httpcore2", "httpx", "httpx2", "openai",
    "sqlalchemy", "uvicorn.error",
    # Web search and the Rust libraries below it, which log through Python: their URLs contain search queries.
    "cookie_store", "ddgs", "h2", "hickory_net", "hickory_proto", "hickory_resolver", "html5ever", "hyper",
    "hyper_util", "primp", "reqwest", "rustls", "tokio", "tower", "tower_http",
)  # fmt: skip
# The MCP SDK, one of whose loggers is "client": its errors contain text from servers. The proxy logs the relevant ones.
_SILENT = ("client", "mcp")


_COLOURS: Mapping[str, str] = {
    "DEBUG": "cyan",
    "INFO": "green",
    "WARNING": "yellow",
    "ERROR": "red",
    "CRITICAL": "bright_red",
}
_CONSTRUCTED = len(logging.LogRecord("", 0, "", 0, "", (), None).__dict__)
_STANDARD = frozenset((*RESERVED_ATTRS, "color_message"))
_ADDED = _STANDARD - {"message"}
"""What formatters and uvicorn add to a record, and lines do not have."""


_encode = msgspec.json.Encoder().encode


class TerminalFormatter(logging.Formatter):
    """Coloured lines for people: time, level, logger, message, and the fields of ``extra`` as ``name=value``."""

    default_time_format = "%H:%M:%S"
    default_msec_format = "%s.%03d"

    def __init__(self, *, is_coloured: bool = True) -> None:
        super().__init__()
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; tracebacks follow it."""
        fields = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        parts = (
            click.style(self.formatTime(record), dim=True),
            click.style(f"{record.levelname:<8}", fg=_COLOURS.get(record.levelname)),
            click.style(record.name, fg="blue"),
            _printable(record.getMessage()),
            *(f"{click.style(f'{name}=', dim=True)}{_shown(value)}" for name, value in fields.items()),
        )
        line = " ".join(parts)
        if not self._is_coloured:
            line = click.unstyle(line)
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


class JsonLineFormatter(JsonFormatter):
    """The formatter of python-json-logger, with msgspec for ordinary lines: there is one for every request."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON object."""
        if record.exc_info or record.exc_text or record.stack_info:
            return super().format(record)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage() if record.args else str(record.msg),
        }
        if type(record) is FieldsRecord:
            line.update(record.fields)
        else:
            # Fields of ``extra`` follow those of the constructor.
            line.update(islice(record.__dict__.items(), _CONSTRUCTED, None))
            if not _ADDED.isdisjoint(line):
                line = {name: value for name, value in line.items() if name not in _ADDED}
        try:
            return _encode(line).decode()
        except (TypeError, ValueError, RecursionError):
            # A value of another type, or half of a surrogate pair.
            return super().format(record)


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line at once: one call instead of the nine of the base class, which can have filters."""

    def handle(self, record: logging.LogRecord) -> bool:
        """Add the id of the request to a record, and write it."""
        lock, formatter = self.lock, self.formatter
        assert lock is not None
        assert formatter is not None
        add_request_id(record)
        with lock:
            try:
                self.stream.write(f"{formatter.format(record)}\n")
                self.stream.flush()
            except RecursionError:
                raise
            except Exception:  # noqa: BLE001 - as in the base class
                self.handleError(record)
        return True


def add_request_id(record: logging.LogRecord) -> bool:
    """Add the id of the request to a line that a request or its turn causes, and the trace id if it is traced.

    A filter that passes every record.
    """
    if "request_id" not in record.__dict__ and (request_id := REQUEST_ID.get()):
        _add_field(record, "request_id", request_id)
    if is_traced():
        _add_field(record, "trace_id", current_trace_id())
    return True


def _add_field(record: logging.LogRecord, name: str, value: str) -> None:
    record.__dict__[name] = value
    if type(record) is FieldsRecord:
        record.fields[name] = value


def _printable(text: str) -> str:
    """Escape control characters, which could change what the terminal shows."""
    return text if text.isprintable() else repr(text)[1:-1]


def _shown(value: object) -> str:
    is_plain = isinstance(value, str) and value.isprintable() and value and " " not in value
    return str(value) if is_plain else repr(value)


def configure_logging(level: str, *, stream_events: bool = False) -> None:
    """Set up logging for the whole process.

    With ``stream_events`` the logger of that name writes at INFO whatever ``level`` is.
    """
    # No format has them, and each takes time for every line (Python, "Logging HOWTO", section "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    quiet = level if level in ("ERROR", "CRITICAL") else "WARNING"
    is_terminal = sys.stderr.isatty()
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {
                "json": {
                    "()": JsonLineFormatter,
                    "format": "%(time)s %(levelname)s %(name)s %(message)s",
                    "rename_fields": {"levelname": "level", "name": "logger"},
                    "timestamp": "time",
                    # uvicorn adds its messages once more, coloured.
                    "reserved_attrs": [*RESERVED_ATTRS, "color_message"],
                },
                # https://no-color.org: set and not empty.
                "terminal": {"()": TerminalFormatter, "is_coloured": not os.environ.get("NO_COLOR")},
                "stream": {"format": "%(asctime)s - STREAM - %(levelname)s - %(message)s"},
            },
            "handlers": {
                "stderr": {
                    "()": LineHandler,
                    "formatter": "terminal" if is_terminal else "json",
                },
                "stream": {"class": "logging.StreamHandler", "formatter": "stream"},
            },
            "root": {"handlers": ["stderr"], "level": level},
            "loggers": {
                **{name: {"level": quiet} for name in _VERBOSE},
                **{name: {"level": "CRITICAL"} for name in _SILENT},
                "stream_events": {
                    "handlers": ["stream"],
                    "propagate": False,
                    "level": "INFO" if stream_events else "NOTSET",
                },
                "uvicorn.access": {"handlers": [], "propagate": False},
            },
        }
    )
