"""Map exceptions of the SDK to the error codes and texts of ``failures``."""

from __future__ import annotations

from mcp import MCPError
from mcp_types import CONNECTION_CLOSED, PARSE_ERROR

from proxy.tools.mcp.failures import (
    CONNECTION_LOST,
    HTTP_ERROR,
    INVALID_MESSAGE,
    MESSAGE_TOO_LARGE,
    REASONS,
    SESSION_ENDED,
    SESSION_EXPIRED,
    UNAUTHORIZED,
    UNREACHABLE,
    CallFailed,
)

RECONNECT_AFTER = frozenset(
    (UNREACHABLE, CONNECTION_LOST, INVALID_MESSAGE, UNAUTHORIZED, HTTP_ERROR, SESSION_EXPIRED, SESSION_ENDED)
)
"""Errors after which the next call opens a new session."""


def map_error_code(error: MCPError) -> int:
    """Return the code of an error, for errors of the connection (raised by the SDK itself) a code of ``failures``."""
    match error.code:
        case int(code) if code == CONNECTION_CLOSED and error.message.startswith("SSE stream failed"):
            return MESSAGE_TOO_LARGE
        case int(code) if code == CONNECTION_CLOSED and error.message.startswith(
            ("Connection closed", "SSE stream")
        ):
            return CONNECTION_LOST
        case int(code) if code == PARSE_ERROR:
            return INVALID_MESSAGE
        case code:
            return code


def describe_open_error(error: BaseException) -> str:
    """Return why a session could not be opened, without text from the server."""
    match error:
        case CallFailed():
            return error.reason
        case MCPError():
            return REASONS.get(map_error_code(error)) or "rejected the initialization of a session"
        case OSError():
            return f"cannot be started ({error.strerror or 'unknown reason'})"
        case BaseExceptionGroup() if len(error.exceptions) == 1:
            return describe_open_error(error.exceptions[0])
        case _:
            return "does not follow the MCP protocol"
