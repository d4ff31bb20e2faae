"""Errors for unknown model ids that name the models of the caller."""

from __future__ import annotations

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
    nearest = get_close_matches(error.model, ids, n=1) if len(error.model) <= MAX_LENGTH else []
    teams = [facts.id for facts in allowed if facts.team is not None and "/" not in facts.id]
    listed = ", ".join(teams[:MAX_LISTED]) + (", …" if len(teams) > MAX_LISTED else "")
    hints = (
        f"Did you mean '{nearest[0]}'?" if nearest else "",
        f"Available models: {listed}." if listed else "",
    )
    return ModelNotFound(error.model, hint=" ".join(filter(None, hints)))
