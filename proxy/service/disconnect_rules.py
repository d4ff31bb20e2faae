"""What happens to a turn whose last client leaves."""

from __future__ import annotations

from functools import lru_cache

from msgspec import Struct

from proxy.turns.request import DisconnectPolicy
from proxy.turns.turn import Turn

SDK_RETRY_GRACE = 10.0
"""Minimum grace in seconds after a tool with effects, for clients that retry.

The official SDKs wait at most 8 seconds before a retry (openai-python, ``MAX_RETRY_DELAY``; openai-node,
``maxRetryDelay``).
"""


class DisconnectRules(Struct, frozen=True):
    """What happens when the last client of a turn leaves.

    ``grace`` is the time in seconds that the turn waits for a client; None if it finishes without one. 0 with
    ``is_immediate`` is the explicit request of the client. ``has_key``: the request has an idempotency key.
    ``is_repeatable``: a client with retries has sent it.
    """

    grace: float | None
    is_immediate: bool = False
    has_key: bool = False
    is_repeatable: bool = False

    def grace_of(self, turn: Turn) -> float:
        """Return the time in seconds that the turn waits now."""
        grace = self.grace or 0.0
        if not turn.ran_effects or self.is_immediate:
            return grace
        return max(grace, SDK_RETRY_GRACE) if self.is_repeatable or self.has_key else grace

    def finishes(self, turn: Turn) -> bool:
        """Whether the turn finishes without a client."""
        return self.grace is None or (self.has_key and turn.ran_effects and not self.is_immediate)


# Few requests differ in these.
@lru_cache(maxsize=64)
def disconnect_rules(
    requested: DisconnectPolicy | None,
    default: DisconnectPolicy,
    grace: float,
    *,
    has_key: bool,
    is_repeatable: bool,
) -> DisconnectRules:
    """Return the rules of a turn: the policy of its request, or that of the team or server.

    ``grace`` applies unless the client asks for the cancellation of its turn.
    """
    is_immediate = requested == "cancel"
    if (requested or default) == "detach":
        return DisconnectRules(None, is_immediate, has_key, is_repeatable)
    return DisconnectRules(0.0 if is_immediate else grace, is_immediate, has_key, is_repeatable)
