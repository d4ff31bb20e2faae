"""What can go wrong with an MCP server, in words that hold nothing of what it wrote."""

from __future__ import annotations


class OpenFailed(Exception):
    """No session could be opened; ``reason`` fits behind "the MCP server …".

    ``last_words`` are the last lines that a program wrote to its standard error, for the operator's eyes only.
    """

    def __init__(self, reason: str, last_words: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.last_words = last_words


class CallFailed(Exception):
    """A call has no result; ``reason`` fits behind "the MCP server …". It may have run all the same."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class SessionOver(CallFailed):
    """The server knows the session no more and did not run the call: over a new session it may be made again."""

    def __init__(self) -> None:
        super().__init__("ended the session")


# Errors that are made on this side and take the way of a server's own: codes that JSON-RPC leaves free.
UNREACHABLE = -32090
BROKEN_OFF = -32091
TOO_MUCH = -32092
UNREADABLE = -32093
REFUSED = -32094
BAD_STATUS = -32095
SESSION_OVER = -32096
ENDED = -32097

OURS = {
    UNREACHABLE: "could not be reached",
    BROKEN_OFF: "broke off in the middle of its answer",
    TOO_MUCH: "sent a message that is larger than allowed",
    UNREADABLE: "sent an answer that could not be read",
    REFUSED: "refused the proxy's credentials",
    BAD_STATUS: "answered with an error of HTTP",
    SESSION_OVER: "ended the session",
    ENDED: "ended",
}
"""What each of these codes says of the server."""
