"""Failures of the model port for exceptions of model clients.

Exceptions are recognised by their attributes and class names, so that none of the packages has to be imported.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from pydantic import SecretStr

from proxy.errors import (
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.messages import Message
from proxy.providers.openai.error_report import report
from proxy.providers.openai.errors import error_event, refusal

_TIMEOUTS = frozenset({"APITimeoutError", "ReadTimeout", "WriteTimeout", "PoolTimeout", "TimeoutError"})
_LOSSES = frozenset({"APIConnectionError", "TransportError", "NetworkError", "ProtocolError", "OSError"})

_SECRET_NAME = re.compile("key|token|secret|password|credential|headers", re.IGNORECASE)


def failure_of(
    error: BaseException, messages: Sequence[Message] = (), *, secrets: Collection[str] = ()
) -> UpstreamFailed:
    """Return the failure of the port; of the exception's text only the log has an excerpt.

    ``messages`` are those of the request, whose text must not be logged, nor must ``secrets``.
    """
    sent = _encoded(messages)
    status = getattr(error, "status_code", None)
    if isinstance(status, int) and 300 <= status < 600:
        headers = getattr(getattr(error, "response", None), "headers", None)
        body = getattr(error, "body", None)
        failure = refusal(status, body, headers if isinstance(headers, Mapping) else {})
        failure.facts = report(status, body, sent=sent, secrets=secrets)
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
        body = getattr(error, "body", None)
        failure = error_event(body)
        failure.facts = report(None, body, sent=sent, secrets=secrets)
        return failure
    if type(error) is ValueError:
        # AutoGen's clients raise it for content that ``model_info`` does not declare.
        return UpstreamBadRequest("bad_request")
    return UpstreamProtocolError("protocol")


def secrets_of(config: Any, *, is_secret: bool = False) -> Iterator[str]:
    """Yield the texts of a component's config that are secret by their name, or by that of an object around them."""
    if isinstance(config, SecretStr):
        config = config.get_secret_value()
    if isinstance(config, str) and is_secret:
        yield config
    elif isinstance(config, dict):
        for name, value in config.items():
            yield from secrets_of(value, is_secret=is_secret or _SECRET_NAME.search(str(name)) is not None)


def _encoded(messages: Sequence[Message]) -> bytes:
    try:
        return msgspec.json.encode(messages)
    except ValueError:
        # Half of a surrogate pair. Without the request its repetition cannot be found.
        return b""


def _chain(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
