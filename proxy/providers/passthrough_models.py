"""Passthrough models, served under their own names in addition to the teams.

There are two kinds: models of the team files with ``expose: true``, and, with ``PROXY_PASS_THROUGH``, every model that
the provider of the default model lists. The list is requested at the start and repeatedly; if the provider is
unavailable, the last known list remains valid.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from proxy.errors import UpstreamFailed
from proxy.providers.http.pool import TRANSPORT_ERRORS, HttpSession
from proxy.providers.openai.passthrough import PassthroughClient
from proxy.providers.openai.wires import endpoint_of
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import ModelDefinition, OpenAIModel

logger = logging.getLogger(__name__)

MOST = 5000
"""Models of a provider that are served."""
_LIST_BYTES = 4 * 1024 * 1024
_FRESH = 300.0
"""Seconds after which the list is requested again."""
_AFTER_FAILURE = 15.0
_SOON = 10.0
"""Seconds after which it is requested again for a model that is not on it."""
_AT_START = 2.0
"""Seconds that the start waits for the list."""
_TIME_LIMIT = 10.0


class ListedModel(Struct, frozen=True):
    """A model as its provider lists it; ``created`` is 0 if it is not in the list."""

    id: str
    created: int
    owned_by: str


class _Entry(Struct):
    id: str
    created: Any = None
    owned_by: Any = None


class _List(Struct):
    data: list[_Entry]


_decode = msgspec.json.Decoder(_List).decode


class PassThrough:
    """The passthrough models of one configuration, with ``start`` and ``close``."""

    def __init__(
        self,
        models: Mapping[str, ModelDefinition],
        *,
        lists_default: bool,
        is_taken: Callable[[str], bool],
        limits: ModelLimits,
        time_limit: float,
        clock: Callable[[], float] = time.monotonic,
        session: HttpSession | None = None,
    ) -> None:
        """``lists_default``: serve what the provider of the model ``default`` lists; ``is_taken``: by a team.

        Raises:
            ConfigurationError: A key or a header has characters that cannot be sent.
        """
        self._session = session or HttpSession()
        self._limits = limits
        self._time_limit = time_limit
        self._is_taken = is_taken
        self._clock = clock
        self._exposed = {
            name: self._forwarding(model)
            for name, model in models.items()
            if isinstance(model, OpenAIModel) and model.expose
        }
        default = models.get("default")
        self._default = default if lists_default and isinstance(default, OpenAIModel) else None
        if lists_default and self._default is None:
            logger.warning("there is no provider whose models could be served: set OPENAI_API_KEY")
        self._listed: dict[str, ListedModel] = {}
        self._known: dict[str, PassthroughClient] = {}
        """Those of the list that were asked."""
        self._asked_at = -float("inf")
        self._asking: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is, or can come to be, served."""
        return not self._exposed and self._default is None

    @property
    def listed(self) -> Sequence[ListedModel]:
        """What the provider lists, as far as it is known, and neither a team nor an exposed model is called."""
        return list(self._listed.values())

    async def find(self, name: str) -> PassthroughClient | None:
        """Return the model with this id, None when there is none or a team has it."""
        if self._is_taken(name):
            return None
        if name in self._exposed:
            return self._exposed[name]
        if self._default is None:
            return None
        if name not in self._listed and self._clock() - self._asked_at >= _SOON:
            await self._refresh()
        if name not in self._listed:
            return None
        if name not in self._known:
            self._known[name] = self._forwarding(self._default.model_copy(update={"model": name}))
        return self._known[name]

    async def start(self) -> None:
        """Ask for the list, without waiting long, and keep it fresh from now on."""
        if self._default is not None:
            self._keeping = asyncio.create_task(self._keep_fresh(), name="models of the provider")
            await asyncio.wait([asyncio.create_task(self._refresh())], timeout=_AT_START)

    async def close(self) -> None:
        """Stop asking and close every connection."""
        tasks = [task for task in (self._keeping, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._session.close()

    def _forwarding(self, definition: OpenAIModel) -> PassthroughClient:
        return PassthroughClient(definition, self._session, self._limits, time_limit=self._time_limit)

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(_FRESH if self._listed else _AFTER_FAILURE)
            await self._refresh()

    async def _refresh(self) -> None:
        """Request the list; concurrent callers share one request."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="list of models")
        await asyncio.shield(self._asking)

    async def _ask(self) -> None:
        assert self._default is not None
        self._asked_at = self._clock()
        try:
            async with asyncio.timeout(_TIME_LIMIT):
                found = await self._fetch(self._default)
        except (UpstreamFailed, TimeoutError, ValueError, RecursionError, *TRANSPORT_ERRORS) as error:
            logger.warning("the provider's models are not known", extra={"error": type(error).__name__})
            return
        self._listed = {
            model.id: model
            for model in found
            if model.id not in self._exposed and not self._is_taken(model.id)
        }
        self._known.clear()

    async def _fetch(self, definition: OpenAIModel) -> Sequence[ListedModel]:
        endpoint = endpoint_of(definition, "models", method="GET")
        response = await self._session.ask(endpoint, b"", connect=self._limits.connect)
        try:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            body = bytearray()
            while received := await response.read():
                body += received
                if len(body) > _LIST_BYTES:
                    raise ValueError("too long")
        finally:
            response.release()
        return [_listed(entry) for entry in _decode(body).data[:MOST] if _is_name(entry.id)]


def _listed(entry: _Entry) -> ListedModel:
    created = entry.created if isinstance(entry.created, int) and 0 <= entry.created < 2**53 else 0
    owner = entry.owned_by if isinstance(entry.owned_by, str) else ""
    return ListedModel(entry.id, int(created), owner[:200])


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 256 and name.isprintable()
