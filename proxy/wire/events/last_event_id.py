"""Encoder options of a turn that continues without a new request, after a decision on an approval."""

from __future__ import annotations

import msgspec

from proxy.wire.responses.ids import response_id


def resumed_options(options: bytes, turn_id: str) -> bytes:
    """Return the options of the turn that follows ``turn_id``, for either API.

    For the client, the new turn has the messages of the old one and its response as input, so the message count and
    ``previous_response_id`` change.
    """
    known = msgspec.json.decode(options) if options else {}
    if known.get("sent"):
        known["sent"] += 1
    if "response" in known and known["response"].get("conversation") is None:
        known["response"]["previous_response_id"] = response_id(turn_id)
    return msgspec.json.encode(known)
