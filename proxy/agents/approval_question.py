"""The question for approval of server tool calls.

It is the answer of its turn, so that every client shows it. It contains a short unique reference: a message list that
contains it matches this turn, and no other turn with similar text.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.call import Call
from proxy.agents.turn_state import EVENT_TEXT_LIMIT, TOO_MANY_CALLS, DelegatePause, TurnState
from proxy.events import ApprovalRequested, TextDelta
from proxy.messages import AssistantMessage, FunctionTool, Item
from proxy.tools.execution import find_argument_error
from proxy.tracing import Attribute, current_span
from proxy.turns.turn import ApprovalRequest

MAX_SHOWN = 1000
"""Maximum number of characters of one call in a question."""
WAITING = (
    "not executed yet: the user has to approve this call and is being asked now. It is run only if the user says yes; "
    "anything else means no."
)
"""The result of a call while its approval is pending; it stays the result if the call is never approved."""
_NOT_STORED = "this conversation is not stored"
_HAS_FORMAT = "the answer has to be JSON"


def without_question(state: TurnState, calls: Sequence[Call], *, has_client_calls: bool) -> dict[str, str]:
    """Return, by call id, the results of calls that need approval but cannot be put before a person now."""
    results: dict[str, str] = {}
    for call in calls:
        if call.kind != "approval":
            continue
        if has_client_calls:
            results[call.id] = (
                "error: not executed, because other calls have to be answered first; repeat it then"
            )
        elif not state.turn.may_ask:
            results[call.id] = _cannot_ask(_NOT_STORED)
        elif state.turn.response_format is not None:
            results[call.id] = _cannot_ask(_HAS_FORMAT)
        elif error := find_argument_error("".join(call.arguments)):
            results[call.id] = f"error: {error}"
        elif not state.can_run_tool():
            results[call.id] = TOO_MANY_CALLS
        else:
            state.add_tool_call()
    return results


def request_approvals(
    agent: Agent, state: TurnState, calls: Sequence[Call], pauses: Sequence[DelegatePause] = ()
) -> tuple[ApprovalRequest, ...]:
    """Emit a question for approval of the calls as the answer of the turn; return the requests.

    ``pauses`` are delegates that wait for approvals too. A delegate emits nothing: the agent that the user talks to
    asks for it.
    """
    own = tuple(
        ApprovalRequest(f"appr_{secrets.token_hex(16)}", call.id, call.name, "".join(call.arguments) or "{}")
        for call in calls
    )
    requests = (*own, *(request for pause in pauses for request in pause.requests))
    if state.parent is not None:
        return requests
    text = _question(requests)
    state.sink.emit(TextDelta(text))
    for request in requests:
        arguments = request.arguments[:EVENT_TEXT_LIMIT]
        state.sink.emit(ApprovalRequested(request.id, request.call_id, request.tool, arguments))
        current_span().add_event(
            "approval requested", {Attribute.APPROVAL: request.id, Attribute.TOOL: request.tool}
        )
    state.turn.items.append(Item(AssistantMessage(content=text), agent=agent.name))
    return requests


def _cannot_ask(reason: str) -> str:
    return f"error: not executed: this tool needs the user's approval, which cannot be asked for here, because {reason}"


def spec_with_approval(spec: FunctionTool) -> FunctionTool:
    """Add the approval to the tool description; without it many models ask the user too, who then is asked twice."""
    sentence = "The system asks the user to approve each call before it runs; do not ask for that yourself."
    description = f"{spec.description.rstrip()}\n\n{sentence}" if spec.description else sentence
    return msgspec.structs.replace(spec, description=description)


def _question(requests: Sequence[ApprovalRequest]) -> str:
    """Return the question about calls; ``approvals.yes_no`` recognises the answers that it suggests."""
    reference = requests[0].id.partition("_")[2][:6]
    if len(requests) == 1:
        return f"Approval {reference}: shall I run {_one_line(requests[0])}? Reply yes or no."
    lines = "\n".join(f"- {_one_line(request)}" for request in requests)
    return (
        f"Approval {reference}: shall I run these {len(requests)} calls?\n\n{lines}\n\n"
        "Reply yes to run all of them, or no to run none."
    )


def _one_line(request: ApprovalRequest) -> str:
    """Return the call as one line of inline code.

    Backticks and unprintable characters are replaced. Otherwise arguments, which a model wrote, could render as other
    text and misrepresent the call that the user approves.
    """
    try:
        arguments = json.loads(request.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if isinstance(arguments, dict):
        pairs = (f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
        text = f"{request.tool}({', '.join(pairs)})"
    else:
        text = f"{request.tool}({request.arguments})"
    line = "".join(map(_printable, text[: MAX_SHOWN + 1]))
    if len(text) > MAX_SHOWN:
        return f"`{line[:MAX_SHOWN]}…` (and {len(text) - MAX_SHOWN:,} more characters)"
    return f"`{line}`"


def _printable(character: str) -> str:
    if character == "`":
        return "'"
    return character if character.isprintable() else f"\\u{ord(character):04x}"
