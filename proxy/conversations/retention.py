"""Deletion of conversations that have expired."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proxy.conversations.repository import ConversationRepository
from proxy.errors import StoreUnavailable
from proxy.turns.request import Clock

logger = logging.getLogger(__name__)

DAY = 86_400.0
INTERVAL = 3_600.0
"""Seconds between two deletions."""


async def delete_expired(
    library: ConversationRepository,
    *,
    days: float,
    clock: Clock,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Delete conversations without activity for ``days`` days, immediately and every hour, until cancelled.

    Every worker runs this; they may delete at the same time.
    """
    while True:
        try:
            deleted = await library.remove_older(clock() - days * DAY)
        except StoreUnavailable:
            logger.warning("failed to delete expired conversations")
        except Exception:
            # No other task observes this one. If it stopped, expired conversations would accumulate.
            logger.exception("failed to delete expired conversations")
        else:
            if deleted:
                logger.info("deleted expired conversations", extra={"conversations": deleted})
        await pause(INTERVAL)
