"""What external members receive about the conversation in addition to its messages."""

from __future__ import annotations

import json

from proxy.members.port import MemberContext


def note_of_handoff(context: MemberContext) -> str:
    """Return a sentence about the handoff to the member in this turn; empty if there was none."""
    if not context.handed_over_by:
        return ""
    reason = f": {context.handoff_reason}" if context.handoff_reason else ""
    data = context.handoff_input
    return (
        f"{context.handed_over_by} has handed the conversation over to you{reason}. "
        "Answer the last user message yourself, without mentioning it."
        + (f"\n\nHandover data: {json.dumps(data, ensure_ascii=False)}" if data else "")
    )
