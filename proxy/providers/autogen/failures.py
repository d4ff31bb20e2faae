"""What an exception of somebody else's model client means.

Clients are known by what their exceptions carry and are called, so that none of their packages has to be
imported.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping

from proxy.errors import (
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.providers.openai.error_report import report
from proxy.providers.openai.errors import error_event, refusal

_TIMEOUTS = frozenset({"APITimeoutError", "ReadTimeout", "WriteTimeout", "PoolTimeout", "TimeoutError"})
_LOSSES = frozenset({"APIConnectionError", "TransportError", "NetworkError", "ProtocolError", "OSError"})


def failure_of(error: BaseException) -> UpstreamFailed:
    """Return the failure of the port; of the exception's text only the log has an excerpt."""
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and 300 <= status < 600:
        headers = getattr(getattr(error, "response", None), "headers", None)
        body = getattr(error, "body", None)
        failure = refusal(status, body, headers if isinstance(headers, Mapping) else {})
        failure.facts = report(status, body)
        return failure
    causes = list(_chain(error))
    names = {kind.__name__ for cause in causes for kind in type(cause).__mro__}
    if any(isinstance(cause, ssl.SSLError) for cause in causes):
        return UpstreamUnreachable("tls")
    if any(isinstance(cause, socket.gaierror) for cause in causes):
        return UpstreamUnreachable("dns", is_retryable=True)
    if "ConnectTimeout" in names:
        return UpstreamUnreachable("connect_timeout", is_retryable=True)
    if names & _TIMEOUTS:
        return UpstreamTimeout("timeout_first")
    if names & {"ConnectionRefusedError", "ConnectError"}:
        return UpstreamUnreachable("refused", is_retryable=True)
    if names & _LOSSES:
        return UpstreamFailed("broken", is_retryable=True)
    if "APIError" in names:
        return error_event(getattr(error, "body", None))
    if type(error) is ValueError:
        # AutoGen's clients raise it for content that ``model_info`` does not declare.
        return UpstreamBadRequest("bad_request")
    return UpstreamProtocolError("protocol")


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
