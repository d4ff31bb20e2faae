"""The state of members, stored with the messages of their answers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from proxy.messages import Item, ProviderState, is_within_limit

logger = logging.getLogger(__name__)

_STATE = "state"


def state_of(agent: str, item: Item) -> Any:
    """Return the state that the member stored with this item; None if there is none."""
    if item.agent != agent or item.state is None or item.state.provider != _owner(agent):
        return None
    return item.state.members.get(_STATE)


def newest_state(agent: str, items: Sequence[Item]) -> Any:
    """Return the state that the member stored last; None if there is none."""
    states = (state_of(agent, item) for item in reversed(items))
    return next((state for state in states if state is not None), None)


def stored_state(agent: str, value: Any) -> ProviderState | None:
    """Return the state of a member in the form in which it is stored; None for no state, or for an invalid one."""
    if value is None:
        return None
    try:
        state = ProviderState(
            _owner(agent), members={_STATE: msgspec.json.decode(msgspec.json.encode(value))}
        )
    except (TypeError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        logger.warning("state of member is not JSON", extra={"agent": agent, "error": type(error).__name__})
        return None
    if not is_within_limit(state):
        logger.warning("state of member is too large to be stored", extra={"agent": agent})
        return None
    return state


def _owner(agent: str) -> str:
    # No model has this name, so that the state is sent to none.
    return f"member {agent}"
