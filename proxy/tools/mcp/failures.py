"""Failures of MCP servers, with error texts that contain nothing of what the server sent."""

from __future__ import annotations


class OpenFailed(Exception):
    """No session could be opened; ``reason`` continues the sentence "the MCP server …".

    ``stderr_tail`` is the end of the standard error of a program. It is for the operator only.
    """

    def __init__(self, reason: str, stderr_tail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.stderr_tail = stderr_tail


class CallFailed(Exception):
    """A call has no result, but may have run; ``reason`` continues the sentence "the MCP server …"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SessionExpired(CallFailed):
    """The server does not know the session any more and did not run the call, which can be retried in a new session.

    HTTP 404 for a request with a session id (MCP specification, Transports, "Session Management").
    """

    def __init__(self) -> None:
        super().__init__("ended the session")


# Codes of errors detected by the proxy, in the range that JSON-RPC 2.0 (section 5.1) reserves for implementations.
UNREACHABLE = -32090
CONNECTION_LOST = -32091
MESSAGE_TOO_LARGE = -32092
INVALID_MESSAGE = -32093
UNAUTHORIZED = -32094
HTTP_ERROR = -32095
SESSION_EXPIRED = -32096
SESSION_ENDED = -32097

REASONS = {
    UNREACHABLE: "could not be reached",
    CONNECTION_LOST: "closed the connection before its response was complete",
    MESSAGE_TOO_LARGE: "sent a message that is larger than allowed",
    INVALID_MESSAGE: "sent a response that could not be decoded",
    UNAUTHORIZED: "rejected the proxy's credentials",
    HTTP_ERROR: "responded with an HTTP error",
    SESSION_EXPIRED: "ended the session",
    SESSION_ENDED: "ended",
}
"""Text for each code, which continues the sentence "the MCP server …"."""
