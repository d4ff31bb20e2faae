"""Call ids for providers that accept only nine letters and digits (Mistral, code 3280).

The short id is derived from the id that is stored, so that a call and its result match in every request, in every
worker and after a restart. The ids that a provider returns are replaced by the proxy's own (``agents.call``).
"""

from __future__ import annotations

from hashlib import sha256

LENGTH = 9
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def short_id(call_id: str) -> str:
    """Return an id of nine letters and digits; an id that is one already stays."""
    if is_short(call_id):
        return call_id
    number = int.from_bytes(sha256(call_id.encode(errors="surrogatepass")).digest())
    digits = []
    for _ in range(LENGTH):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(digits)


def is_short(call_id: object) -> bool:
    """Whether the id is accepted by these providers."""
    return isinstance(call_id, str) and len(call_id) == LENGTH and call_id.isascii() and call_id.isalnum()
