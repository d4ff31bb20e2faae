"""Messages between workers over Redis Streams: one stream per worker, and one for all.

A stream expires a minute after its last message, and has at most ``MAX_LENGTH`` messages.
"""

from __future__ import annotations

import secrets
from typing import Any

from redis.asyncio import Redis

from proxy.errors import ConfigurationError
from proxy.store.messages.channel import TO_ALL, MessageChannel, run_both

MAX_LENGTH = 10_000
EXPIRE_SECONDS = 60
BLOCK_MS = 5_000
TIMEOUT = 2.0
_PER_READ = 500


class RedisMessages(MessageChannel):
    """``WorkerMessages`` over Redis."""

    def __init__(self, url: str, *, prefix: str = "handoff-proxy") -> None:
        """Redis is connected by ``start``.

        Raises:
            ConfigurationError: The URL is invalid.
        """
        super().__init__()
        self._prefix = prefix
        self._sender = secrets.token_hex(4).encode()
        try:
            self._sending = Redis.from_url(url, socket_connect_timeout=TIMEOUT, socket_timeout=TIMEOUT)
            self._receiving = Redis.from_url(
                url, socket_connect_timeout=TIMEOUT, socket_timeout=TIMEOUT + BLOCK_MS / 1000
            )
        except ValueError:
            raise ConfigurationError(
                "PROXY_REDIS_URL: should be an address like redis://host:6379/0"
            ) from None

    async def serve(self) -> None:
        """Read and write the streams until Redis does not answer."""
        seconds, microseconds = await self._sending.time()
        # Only what is sent from here on.
        now = f"{seconds * 1000 + microseconds // 1000}-0"
        read = {self._stream(self.worker): "0-0", self._stream(TO_ALL): now}
        self.opened()
        await run_both(self._read(read), self._write())

    async def close(self) -> None:
        """Stop, and close the connections."""
        await super().close()
        await self._sending.aclose()
        await self._receiving.aclose()

    async def _read(self, after: dict[str, str]) -> None:
        while True:
            streams: Any = after
            found: Any = await self._receiving.xread(streams, count=_PER_READ, block=BLOCK_MS)
            for stream, messages in found or ():
                for key, fields in messages:
                    after[stream.decode()] = key.decode()
                    if fields[b"s"] != self._sender:
                        self.received(fields[b"m"])

    async def _write(self) -> None:
        while True:
            group = await self.next_group()
            async with self._sending.pipeline(transaction=False) as pipeline:
                for recipient, message in group:
                    fields: Any = {"s": self._sender, "m": message}
                    pipeline.xadd(self._stream(recipient), fields, maxlen=MAX_LENGTH, approximate=True)
                for recipient in {recipient for recipient, _ in group}:
                    pipeline.expire(self._stream(recipient), EXPIRE_SECONDS)
                await pipeline.execute()

    def _stream(self, worker: str) -> str:
        return f"{self._prefix}:workers" if worker == TO_ALL else f"{self._prefix}:worker:{worker}"
