"""Compaction items: a summary in the opaque form in which clients send it back.

The content is compressed and not encrypted: it is the client's own conversation, and whatever a client changes in it
affects only that conversation.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

from proxy.errors import InvalidRequest

_PREFIX = "hpc1_"
MAX_SUMMARY_BYTES = 1024 * 1024
MAX_SUMMARIES_BYTES = 8 * 1024 * 1024
"""The maximum of all summaries of a request together: compressed text can be a thousand times shorter."""


def encode_summary(text: str) -> str:
    """Return the ``encrypted_content`` of a summary."""
    packed = zlib.compress(text.encode("utf-8", "replace"))
    return _PREFIX + base64.urlsafe_b64encode(packed).decode()


class SummaryDecoder:
    """Decodes the summaries of one request, and bounds what they have together."""

    def __init__(self) -> None:
        self._left = MAX_SUMMARIES_BYTES

    def decode(self, content: str, *, param: str) -> str:
        """Return the summary in ``encrypted_content``.

        Raises:
            InvalidRequest: It is not of this server, or the summaries of the request are too long together.
        """
        limit = min(MAX_SUMMARY_BYTES, self._left)
        try:
            if not content.startswith(_PREFIX):
                raise ValueError
            packed = base64.b64decode(content.removeprefix(_PREFIX), altchars=b"-_", validate=True)
            unpacker = zlib.decompressobj()
            text = unpacker.decompress(packed, limit + 1)
            if len(text) > limit and limit < MAX_SUMMARY_BYTES:
                raise _too_long(param)
            if not unpacker.eof or len(text) > limit:
                raise ValueError
            self._left -= len(text)
            return text.decode("utf-8")
        except (ValueError, binascii.Error, zlib.error):
            raise InvalidRequest(
                f"Invalid '{param}': the content of this compaction item was not created by this server.",
                param=param,
                code="invalid_encrypted_content",
            ) from None


def _too_long(param: str) -> InvalidRequest:
    limit = MAX_SUMMARIES_BYTES // (1024 * 1024)
    return InvalidRequest(
        f"Invalid '{param}': the compaction items of a request can have {limit} MiB together. Leave out the items "
        "before the last compaction item: it includes them.",
        param=param,
        code="string_above_max_length",
    )


def compaction_body(item_id: str, text: str) -> dict[str, Any]:
    """Return a compaction item."""
    return {"id": item_id, "type": "compaction", "encrypted_content": encode_summary(text)}
