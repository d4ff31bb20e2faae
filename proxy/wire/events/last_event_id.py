"""The options of a turn that goes on without a request of its own."""

from __future__ import annotations

import msgspec

from proxy.wire.responses.ids import response_id


def resumed_options(options: bytes, turn_id: str) -> bytes:
    """Return those of the turn ``turn_id`` for the one that follows it, whichever API they are for.

    To its client, the one that follows was asked with everything before and the answer of the other, by that one's id.
    """
    known = msgspec.json.decode(options) if options else {}
    if known.get("sent"):
        known["sent"] += 1
    if "response" in known and known["response"].get("conversation") is None:
        known["response"]["previous_response_id"] = response_id(turn_id)
    return msgspec.json.encode(known)
