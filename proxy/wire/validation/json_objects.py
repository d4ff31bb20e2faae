"""The small JSON bodies of the routes beside chat completions, refused in the same sentences."""

from __future__ import annotations

import msgspec

from proxy.errors import InvalidRequest
from proxy.wire.chat.parse import UNREADABLE
from proxy.wire.validation.body_decoder import Body, BodyDecoder, refuse_nul


def read_object(decoder: BodyDecoder[Body], body: bytes) -> Body:
    """Return the body; one of nothing but white space is an empty object, and unknown keys are skipped.

    Raises:
        InvalidRequest: It is no JSON object, or a key is missing or not of its type.
    """
    body = body if body.strip() else b"{}"
    try:
        decoded, _ = decoder.decode(body, strict=False)
        refuse_nul(body)
        return decoded
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(UNREADABLE) from None
