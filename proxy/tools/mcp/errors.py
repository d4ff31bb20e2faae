"""What the SDK raises, in the words of ``failures``."""

from __future__ import annotations

from mcp import MCPError
from mcp_types import CONNECTION_CLOSED, PARSE_ERROR

from proxy.tools.mcp.failures import (
    BAD_STATUS,
    BROKEN_OFF,
    ENDED,
    OURS,
    REFUSED,
    SESSION_OVER,
    TOO_MUCH,
    UNREACHABLE,
    UNREADABLE,
    CallFailed,
)

DOUBTFUL = frozenset((UNREACHABLE, BROKEN_OFF, UNREADABLE, REFUSED, BAD_STATUS, SESSION_OVER, ENDED))
"""After these, a new session is begun for the next call."""


def code_of(error: MCPError) -> int:
    """Return the code of an error, in ours where the SDK speaks of the connection and not the server of the call."""
    match error.code:
        case int(code) if code == CONNECTION_CLOSED and error.message.startswith("SSE stream failed"):
            return TOO_MUCH
        case int(code) if code == CONNECTION_CLOSED and error.message.startswith(
            ("Connection closed", "SSE stream")
        ):
            return BROKEN_OFF
        case int(code) if code == PARSE_ERROR:
            return UNREADABLE
        case code:
            return code


def reason_for(error: BaseException) -> str:
    """Say in words of ours why a session could not be begun."""
    match error:
        case CallFailed():
            return error.reason
        case MCPError():
            return OURS.get(code_of(error)) or "refused to begin a session"
        case OSError():
            return f"cannot be started ({error.strerror or 'unknown reason'})"
        case BaseExceptionGroup() if len(error.exceptions) == 1:
            return reason_for(error.exceptions[0])
        case _:
            return "does not speak MCP as it should"
