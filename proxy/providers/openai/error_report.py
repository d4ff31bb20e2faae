"""What the log has of a provider's error: status, code, param, and an excerpt of the message.

The message is written by the provider, and may quote the API key, or the request with what people wrote. Secrets are
removed, and the text ends where it repeats the request.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from proxy.providers.openai.rejection import Rejection, innermost_error, message_of, rejection_of

MAX_MESSAGE = 300
"""Characters of a provider's message in the log."""
MAX_SENT = 512 * 1024
"""Bytes of each end of a request that are searched for text that the message repeats."""
_WINDOW = 20
_STEP = 10
_REMOVED = "[…]"
_SECRETS = re.compile(
    r"\bsk-[\w*-]{2,}|\beyJ[\w-]{8,}[\w.-]*|\b(?:bearer|basic) [\w.~+/*=-]{4,}"
    r"|\b(?:api[_-]?key|token|secret|password|signature|sig)[\"']?\s?[:=]\s?[\"']?[^\s\"',;]{4,}"
    r"|[\w+/=-]{32,}",
    re.IGNORECASE,
)
# A quoted name of a field, model or type stays; anything else in quotes may be what people wrote.
_QUOTED = re.compile(r"""(["'`])([^"'`\n]{0,300})\1""")
_IDENTIFIER = re.compile(r"[\w.:/\[\]-]{0,64}", re.ASCII)


def report(
    status: int | None, body: bytes | object, *, sent: bytes = b"", secrets: Collection[str] = ()
) -> dict[str, object]:
    """Return the log fields of an error: ``status``, ``code``, ``param`` and ``provider_message``, if it has them.

    ``sent`` is the body of the request, ``secrets`` are values that must not be logged in any case.
    """
    message = message_of(innermost_error(body))
    if not message and isinstance(body, bytes) and body[:1] not in (b"<", b"{", b"["):
        message = body[: 4 * MAX_MESSAGE].decode(errors="replace")
    facts = identifiers(rejection_of(status or 0, body), secrets=secrets)
    if text := excerpt(message, sent=sent, secrets=secrets):
        facts["provider_message"] = text
    return facts


def identifiers(rejection: Rejection, *, secrets: Collection[str] = ()) -> dict[str, object]:
    """Return the log fields ``status``, ``code`` and ``param`` of a rejection, as far as it has them."""
    facts: dict[str, object] = {"status": rejection.status} if rejection.status else {}
    for name, value in (("code", rejection.code), ("param", rejection.param)):
        if text := excerpt(value, secrets=secrets)[:100]:
            facts[name] = text
    return facts


def excerpt(message: str, *, sent: bytes = b"", secrets: Collection[str] = ()) -> str:
    """Return the beginning of a provider's message without secrets and without text of the request."""
    # Longer than the result, so that a secret at the limit is seen whole.
    text = message[: 2 * MAX_MESSAGE]
    for secret in secrets:
        if len(secret) >= 4:
            text = text.replace(secret, _REMOVED)
    text = text[: _echo_start(text, sent)]
    text = _QUOTED.sub(lambda found: found[0] if _IDENTIFIER.fullmatch(found[2]) else _REMOVED, text)
    text = _SECRETS.sub(_REMOVED, text)
    # A quoted object repeats the request, or another part of the error.
    text = " ".join(text.partition("{")[0].split())
    return text[:MAX_MESSAGE].rstrip()


def _echo_start(text: str, sent: bytes) -> int:
    """Return where the text begins to repeat what was sent.

    Texts shorter than 30 characters are not found; quoted ones are removed by ``excerpt``.
    """
    if len(sent) > 2 * MAX_SENT:
        sent = sent[:MAX_SENT] + sent[-MAX_SENT:]
    if text.strip() and text.strip().encode(errors="replace") in sent:
        return 0
    for start in range(0, len(text) - _WINDOW + 1, _STEP):
        if text[start : start + _WINDOW].encode(errors="replace") in sent:
            while start > 0 and text[start - 1 : start - 1 + _WINDOW].encode(errors="replace") in sent:
                start -= 1
            return start
    return len(text)
