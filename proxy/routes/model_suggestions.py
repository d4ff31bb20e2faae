"""Errors for unknown model ids that name the models of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from proxy.errors import ModelNotFound, ProxyError

if TYPE_CHECKING:
    from proxy.routes.dependencies import Services

MAX_LISTED = 20
"""Models that an error lists."""
MAX_COMPARED = 1000
"""Models that are compared with the id; the comparison takes about 10 µs each."""
MAX_LENGTH = 100
"""Maximum number of characters of an id that is compared; a longer id is not a misspelling."""


async def with_suggestions(error: ProxyError, services: Services, caller: str | None) -> ProxyError:
    """Return the error of an unknown model with the nearest id and the ids of the teams that the caller may use.

    Other errors are returned as they are, and so is any error without a ``caller``: the request has no valid key.
    """
    if not isinstance(error, ModelNotFound) or error.only_at is not None or caller is None:
        return error
    try:
        custom = await services.catalog.custom(caller)
    except ProxyError:  # the store is unavailable: the error is complete without hints
        return error
    terms = services.keys.terms_of(caller)
    allowed = [facts for facts in (*services.catalog.models(), *custom) if terms.allow(facts.id)]
    ids = [facts.id for facts in allowed[:MAX_COMPARED]]
    nearest = _nearest(error.model, ids)
    teams = [facts.id for facts in allowed if facts.team is not None and "/" not in facts.id]
    listed = ", ".join(teams[:MAX_LISTED]) + (", …" if len(teams) > MAX_LISTED else "")
    hints = (
        f"Did you mean '{nearest}'?" if nearest else "",
        f"Available models: {listed}." if listed else "",
    )
    return ModelNotFound(error.model, hint=" ".join(filter(None, hints)))


def _nearest(model: str, ids: Sequence[str]) -> str | None:
    """Return the id that is most similar to ``model``, or else the one whose agent has the most similar name."""
    if len(model) > MAX_LENGTH:
        return None
    found = get_close_matches(model, ids, n=1)
    if found:
        return found[0]
    of_agents = {id_.partition("/")[2]: id_ for id_ in reversed(ids) if "/" in id_}
    return next((of_agents[name] for name in get_close_matches(model, of_agents, n=1)), None)
