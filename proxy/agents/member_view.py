"""What a member gets of a long conversation, if it gets the whole one with each run (``members.port.Sees``)."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.agents.agent import Agent
from proxy.agents.compaction.compactor import CallSize, exceeded
from proxy.agents.compaction.size import items_tokens, message_tokens, tools_tokens
from proxy.agents.member_exchange import Exchange
from proxy.agents.turn_state import TurnState
from proxy.errors import ContextLengthExceeded
from proxy.members.port import sees_of
from proxy.messages import FunctionTool


async def fitted_exchange(
    agent: Agent,
    state: TurnState,
    exchange: Exchange,
    client_tools: Sequence[FunctionTool],
    failure: ContextLengthExceeded | None = None,
) -> Exchange:
    """Return what the member gets of an exchange, shortened if it is too long, or was rejected with ``failure``.

    Calls of the exchange stay, so that the member finds what it has called.

    Raises:
        ContextLengthExceeded: It cannot be shortened after a failure.
    """
    if state.compactor is None or sees_of(agent.member) == "own":
        if failure is not None:
            raise exceeded(failure)
        return exchange
    if failure is not None:
        size = _size(agent, state, client_tools)
        view = await state.compactor.after_overflow(agent, state, size, failure)
    elif exchange.later or not state.compactor.has_limit(agent, state):
        view = state.compactor.view(agent, state)
    else:
        view = await state.compactor.fit(agent, state, _size(agent, state, client_tools))
    split = len(view.items) - len(exchange.later)
    items, later = view.items[:split], view.items[split:]
    if later and later[0].message is not exchange.later[0].message:
        if failure is not None:
            raise exceeded(failure)
        return exchange
    return Exchange(items, later, exchange.answers)


def next_input_tokens(agent: Agent, state: TurnState, client_tools: Sequence[FunctionTool]) -> int:
    """Return the estimated size of what the member gets next; of all messages if it stores the conversation itself."""
    if state.compactor is None or sees_of(agent.member) == "own":
        return items_tokens(state.turn.context)
    return state.compactor.size_now(agent, state, _size(agent, state, client_tools))


def _size(agent: Agent, state: TurnState, client_tools: Sequence[FunctionTool]) -> CallSize:
    turn = state.turn
    handoffs = [one.spec for one in agent.handoff_targets.values()]
    fixed = tools_tokens((*handoffs, *client_tools)) + sum(map(message_tokens, turn.overlay))
    return CallSize(fixed, turn.parameters.max_completion_tokens or turn.parameters.max_tokens or 0)
