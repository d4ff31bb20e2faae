"""Removes what is older than it may be, from time to time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from proxy.conversations.repository import Library
from proxy.errors import StoreUnavailable
from proxy.turns.request import Clock

logger = logging.getLogger(__name__)

DAY = 86_400.0
INTERVAL = 3_600.0
"""Seconds between two rounds."""


async def keep_to_retention(
    library: Library,
    *,
    days: float,
    clock: Clock,
    pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Remove conversations in which nothing happened for so many days, now and every hour, until cancelled.

    Every worker does this; what one has removed, the others do not find.
    """
    while True:
        try:
            removed = await library.remove_older(clock() - days * DAY)
        except StoreUnavailable:
            logger.warning("old conversations could not be removed")
        except Exception:
            # Nobody waits for this task; it has to go on, or old things would pile up unseen.
            logger.exception("old conversations could not be removed")
        else:
            if removed:
                logger.info("old conversations removed", extra={"conversations": removed})
        await pause(INTERVAL)
