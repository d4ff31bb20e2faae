"""API keys: authentication of callers, and the restrictions of their keys.

If keys exist, each request needs one. Without keys the server is open (on loopback, or because of
``PROXY_ALLOW_OPEN``), and all requests have the same caller, whatever key they send: SDKs require a key, and what they
do should be visible on the page. With ``PROXY_SEPARATE_KEYS`` each key is a caller, whose data are invisible to others.

Configured keys, those of the settings, have no restrictions. Stored keys are created with ``handoff-proxy keys``, can
have restrictions, and can be revoked. A stored key consists of ``hp_``, a public part, which is its id in the database
and in logs, and a secret. Only a digest of the key is stored.
"""

from __future__ import annotations

import hmac
import math
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from ipaddress import ip_address
from typing import Protocol

from msgspec import Struct

from proxy.errors import ApiKeyMissing, ConfigurationError, ModelNotFound, StoreUnavailable, Unauthorized
from proxy.messages import EventsMode

ANYONE = "anyone"
"""The caller of an open server; with ``separates_keys``, only if the request has no key."""
KEY_CACHE_SECONDS = 1.0
"""For how long the record of a stored key is cached. A revoked key can be accepted for this time."""
MAX_MISSING = 4096
"""Number of cached ids that belong to no key."""
_STORED_PREFIX = "hp_"
_STORED_KEY = re.compile(_STORED_PREFIX + r"([a-z0-9]{16})_([A-Za-z0-9_-]{43})")


class Terms(Struct, frozen=True):
    """Restrictions and defaults of a key; None stands for the value of the settings."""

    events: EventsMode | None = None
    """Default of ``X-Handoff-Events``."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: tuple[str, ...] | None = None
    """Allowed teams and models, including the models below them (``team/agent``)."""

    @property
    def have_limits(self) -> bool:
        """Whether the key has rate limits."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def allow(self, model: str) -> bool:
        """Whether a request may have this model."""
        return self.models is None or any(
            model == allowed or model.startswith(f"{allowed}/") for allowed in self.models
        )

    def check_model(self, model: str) -> None:
        """Check that a request may have this model.

        Raises:
            ModelNotFound: It may not. The error is that of an unknown model, so a key cannot probe for others.
        """
        if self.models is not None and not self.allow(model):
            raise ModelNotFound(model)


NO_TERMS = Terms()


class Access(Struct, frozen=True):
    """What an ``Authorization`` header gives."""

    caller: str
    terms: Terms = NO_TERMS
    key_name: str | None = None
    """The name of a stored key, for logs."""


_OPEN_ACCESS = Access(ANYONE)


def may_access(end_user: str, owner: str) -> bool:
    """Whether a request of an end user may access data of ``owner``; ``""`` stands for no end user.

    The only rule about end users: a request without one may access all data of its caller, and data without one belongs
    to all end users of its caller. ``store.sql.stored_completions.visible_to`` is the same rule in SQL, for lists. The
    caller is part of every query of the repositories.
    """
    return end_user == "" or owner in ("", end_user)


class ApiKeyRecord(Struct, frozen=True):
    """A stored key. Times are seconds since the epoch; ``digest`` is the SHA-256 digest of the whole key."""

    id: str
    """The public part."""
    name: str
    digest: bytes
    terms: Terms
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether the key is accepted at this time."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyStore(Protocol):
    """Repository of stored keys; all implementations pass ``tests/contracts/test_api_keys.py``."""

    async def find(self, key_id: str) -> ApiKeyRecord | None:
        """Return the key with this public part, also if it is revoked or expired."""
        ...

    async def has_any(self) -> bool:
        """Whether a key exists that is not revoked; expired keys count."""
        ...

    async def all(self) -> Sequence[ApiKeyRecord]:
        """Return all keys, oldest first."""
        ...

    async def add(self, key: ApiKeyRecord) -> None:
        """Store a new key."""
        ...

    async def revoke(self, key_id: str, *, now: float) -> bool:
        """Revoke a key permanently; False if it does not exist or is already revoked."""
        ...


def new_key(
    name: str, terms: Terms, *, now: float, expires_at: float | None = None
) -> tuple[str, ApiKeyRecord]:
    """Generate an API key.

    Return the key, which cannot be retrieved later, and the record to store, which has only its digest.
    """
    key_id = secrets.token_hex(8)
    key = f"{_STORED_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
    return key, ApiKeyRecord(key_id, name, _digest(key), terms, now, expires_at)


class Keys:
    """The accepted keys: those of the settings, as digests, and those of a store.

    ``access`` is synchronous, because most requests have nothing to wait for. ``prepare`` loads the record of the key
    first and caches it for ``KEY_CACHE_SECONDS``.
    """

    def __init__(
        self,
        keys: Iterable[str],
        store: KeyStore | None = None,
        *,
        separates_keys: bool = False,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digests = [_digest(key) for key in keys]
        self._store = store
        self._separates_keys = separates_keys
        self._clock = clock
        self._monotonic = monotonic
        self._known: dict[str, tuple[float, ApiKeyRecord]] = {}
        # A separate cache: requests with many unknown keys must not evict the records of known ones.
        self._missing: OrderedDict[str, float] = OrderedDict()
        self.is_open = not self._digests
        """Whether requests need no key."""
        self._check_store_at = -math.inf if self.is_open and store is not None else math.inf
        """When to look whether the store has a key. Once it has one, keys are always needed."""

    def is_prepared(self, authorization: str | None) -> bool:
        """Whether ``prepare`` has nothing to load."""
        now = self._monotonic()
        return now < self._check_store_at and (
            # Most servers have no stored keys.
            authorization is None
            or _STORED_PREFIX not in authorization
            or self._key_to_load(authorization, now) is None
        )

    async def prepare(self, authorization: str | None) -> None:
        """Load the record of the key, unless it is cached.

        Raises:
            StoreUnavailable: The store did not answer, and the record is not cached.
        """
        if self._store is None:
            return
        now = self._monotonic()
        if now >= self._check_store_at:
            self._check_store_at = now + KEY_CACHE_SECONDS
            # If the store does not answer, the server stays open: without keys it works without its database.
            with suppress(StoreUnavailable):
                if await self._store.has_any():
                    self.is_open, self._check_store_at = False, math.inf
        key_id = self._key_to_load(authorization, now)
        if key_id is None:
            return
        record = await self._store.find(key_id)
        if record is not None:
            self._known[key_id] = (now, record)
            return
        self._known.pop(key_id, None)
        self._missing[key_id] = now
        self._missing.move_to_end(key_id)
        if len(self._missing) > MAX_MISSING:
            self._missing.popitem(last=False)

    def _key_to_load(self, authorization: str | None, now: float) -> str | None:
        """Return the id of a stored key whose record has to be loaded."""
        if self._store is None or authorization is None:
            return None
        found = _STORED_KEY.fullmatch(_bearer(authorization))
        if found is None:
            return None
        key_id = found[1]
        known = self._known.get(key_id)
        at = self._missing.get(key_id, -KEY_CACHE_SECONDS) if known is None else known[0]
        return key_id if now - at >= KEY_CACHE_SECONDS else None

    def caller(self, authorization: str | None) -> str:
        """Return the caller of ``access``."""
        return self.access(authorization).caller

    def access(self, authorization: str | None) -> Access:
        """Return the caller that this ``Authorization`` header identifies, with the restrictions of its key.

        The key cannot be derived from the caller.

        Raises:
            Unauthorized: A key is needed, and this one is not valid.
        """
        if self.is_open and not (self._separates_keys or self._known):
            return _OPEN_ACCESS
        key = _bearer(authorization)
        digest = _digest(key)
        # Compare with every key: stopping at the match would leak its position through the response time.
        if self._digests and sum(hmac.compare_digest(digest, known) for known in self._digests):
            return Access(_name(digest))
        record = self._valid_record(key, digest)
        if record is not None:
            return Access(f"{_CALLER}{record.id}", record.terms, record.name)
        if not self.is_open:
            raise Unauthorized() if key else ApiKeyMissing()
        return Access(_name(digest)) if key and self._separates_keys else _OPEN_ACCESS

    def terms_of(self, caller: str) -> Terms:
        """Return the restrictions of a caller. Its record is cached, see ``prepare``."""
        record = self._record_of(caller) if self._known else None
        return NO_TERMS if record is None else record.terms

    def _valid_record(self, key: str, digest: bytes) -> ApiKeyRecord | None:
        found = _STORED_KEY.fullmatch(key)
        record = self._cached(found[1]) if found else None
        # Compared without a record too, so that both cases take the same time.
        is_same = hmac.compare_digest(digest, record.digest if record is not None else b"\0" * len(digest))
        return record if record is not None and is_same and record.is_valid(self._clock()) else None

    def _record_of(self, caller: str) -> ApiKeyRecord | None:
        return self._cached(caller.removeprefix(_CALLER)) if caller.startswith(_CALLER) else None

    def _cached(self, key_id: str) -> ApiKeyRecord | None:
        known = self._known.get(key_id)
        return None if known is None else known[1]


_CALLER = "kept-"
"""Callers are stored with conversations, so this prefix cannot change."""


def pseudonym(caller: str, name: str) -> str:
    """Return what is sent to a provider instead of an identifier that a caller uses, such as an end user.

    It is the same for the same name of the same caller, and the name cannot be derived from it.
    """
    return sha256(f"{caller}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


def check_exposure(host: str, *, has_keys: bool, allow_open: bool) -> None:
    """Check that a server which other machines can reach has keys, or may be open.

    Raises:
        ConfigurationError: It has none; the message names the settings.
    """
    if has_keys or allow_open or is_this_machine(host):
        return
    raise ConfigurationError(
        f"PROXY_HOST: {host} can be reached from other machines, and no keys are set. Set PROXY_API_KEYS (keys "
        "separated by commas) or create one with `handoff-proxy keys create`, or set PROXY_ALLOW_OPEN=true to serve "
        "requests without a key."
    )


def is_this_machine(host: str) -> bool:
    """Whether an address or host name is certainly a loopback address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # Other names can resolve to any address.
        return host == "localhost"


def _bearer(authorization: str | None) -> str:
    if not authorization:
        return ""
    scheme, _, key = authorization.strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _name(digest: bytes) -> str:
    return f"key-{digest.hex()[:24]}"
