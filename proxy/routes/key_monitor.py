"""Check the API keys of open connections, so that a revoked or expired key ends them.

A request is authorised once, when it starts. That is enough for a request that ends soon, or whose turn has a time
limit. A WebSocket or an event feed can stay open for days, so its key is verified again while it is open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proxy.auth import Keys
from proxy.errors import StoreUnavailable, Unauthorized

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
"""Between two passes. The record of a key is cached for a second, so a revoked key ends after two at the latest."""

OnInvalid = Callable[[Unauthorized], None]


class KeyMonitor:
    """Verifies the keys of open connections: one lookup per key and pass, however many connections use the key.

    There is one for the process. Without open connections it does not query the store.
    """

    def __init__(self, keys: Keys, *, interval: float = CHECK_SECONDS) -> None:
        """``interval`` is in seconds."""
        self._keys = keys
        self._interval = interval
        self._callbacks: dict[tuple[str | None, str], list[OnInvalid]] = {}
        self._has_connections = asyncio.Event()

    @contextmanager
    def watch(self, authorization: str | None, caller: str, on_invalid: OnInvalid) -> Iterator[None]:
        """Call ``on_invalid`` at most once if the key stops to be valid, or to be the key of ``caller``."""
        credential = (authorization, caller)
        self._callbacks.setdefault(credential, []).append(on_invalid)
        self._has_connections.set()
        try:
            yield
        finally:
            self._remove(credential, on_invalid)

    async def verify(self, authorization: str | None, caller: str) -> None:
        """Check a key now.

        Raises:
            Unauthorized: The key is not valid any more.
            StoreUnavailable: The key cannot be checked.
        """
        await self._keys.prepare(authorization)
        if self._keys.caller(authorization) != caller:
            raise Unauthorized

    async def run(self) -> None:
        """Check all keys at the interval until the task is cancelled."""
        while True:
            await self._has_connections.wait()
            await asyncio.sleep(self._interval)
            for authorization, caller in list(self._callbacks):
                try:
                    await self._check(authorization, caller)
                except Exception:
                    # One key must not end the checks of all others.
                    logger.exception("failed to check the API key of open connections")

    async def _check(self, authorization: str | None, caller: str) -> None:
        try:
            await self.verify(authorization, caller)
        except StoreUnavailable:
            # The next pass tries again. An outage of the database does not close every connection.
            return
        except Unauthorized as error:
            callbacks = self._callbacks.pop((authorization, caller), [])
            logger.info("closing connections of an invalid API key", extra={"caller": caller})
            for on_invalid in callbacks:
                on_invalid(error)

    def _remove(self, credential: tuple[str | None, str], on_invalid: OnInvalid) -> None:
        callbacks = self._callbacks.get(credential, [])
        if on_invalid in callbacks:
            callbacks.remove(on_invalid)
        if not callbacks:
            self._callbacks.pop(credential, None)
        if not self._callbacks:
            self._has_connections.clear()
