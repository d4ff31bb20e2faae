"""The span of a turn, the root of its trace."""

from __future__ import annotations

from contextlib import AbstractContextManager

from proxy.events import Cancelled, ClosingEvent, Completed, Failed
from proxy.tracing import Attribute, TraceSpan, Tracing, turn_span
from proxy.turns.contract import Team
from proxy.turns.turn import Turn


def start_turn_span(tracing: Tracing, team: Team, turn: Turn) -> AbstractContextManager[TraceSpan]:
    """Return the block of a turn."""
    return turn_span(
        tracing,
        f"invoke_workflow {team.name}",
        {
            Attribute.OPERATION: "invoke_workflow",
            Attribute.WORKFLOW: team.name,
            Attribute.CONVERSATION: turn.conversation_id,
            Attribute.TURN: turn.id,
            Attribute.AGENT: turn.agent,
        },
    )


def record_closing(traced: TraceSpan, closing: ClosingEvent) -> None:
    """Set the outcome. A cancelled turn is not an error."""
    if not traced.is_recording:
        return
    traced.set(Attribute.INPUT_TOKENS, closing.usage.prompt)
    traced.set(Attribute.OUTPUT_TOKENS, closing.usage.completion)
    match closing:
        case Completed(agent=agent, finish_reason=reason):
            traced.set(Attribute.OUTCOME, "completed")
            traced.set(Attribute.FINISH_REASONS, [reason])
            traced.set(Attribute.AGENT, agent)
        case Cancelled(reason=reason, agent=agent):
            traced.set(Attribute.OUTCOME, reason)
            traced.set(Attribute.AGENT, agent)
        case Failed(code=code):
            traced.set(Attribute.OUTCOME, "failed")
            traced.fail(code)
