"""Who is calling, and on which terms.

With keys, a request has to bring one of them. Without, the server is open (on loopback, or because the operator says
so by name), and callers are still told apart by the key they happen to send: what belongs to one is not there for
another.

There are two kinds of keys. Those of the settings are all alike. Those that are kept in the database are made by
``handoff-proxy keys``, have terms of their own, and can be revoked: ``hp_``, a public part by which a key is found and
named in logs, and a secret of which only a digest is kept.
"""

from __future__ import annotations

import hmac
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import ip_address
from typing import Protocol

from proxy.errors import ConfigurationError, NoKey, StoreUnavailable, Unauthorized
from proxy.messages import EventsMode

ANYONE = "anyone"
"""The caller of an open server who sends no key."""
KEY_CACHE_SECONDS = 1.0
"""Seconds for which what is known of a kept key holds: so long a revoked one may still be taken."""
MAX_MISSING = 4096
"""Public parts that are remembered of keys that do not exist."""
_KEPT_KEY = re.compile(r"hp_([a-z0-9]{16})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class Terms:
    """What a key's caller may do; None leaves it to the settings."""

    events: EventsMode | None = None
    """What answers tell beside the answer, when the request does not say it."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: tuple[str, ...] | None = None
    """Teams and models that it may ask, with all that is below them."""

    def allow(self, model: str) -> bool:
        """Whether the model may be asked."""
        return self.models is None or any(model == one or model.startswith(f"{one}/") for one in self.models)


NO_TERMS = Terms()


def may_access(end_user: str, owner: str) -> bool:
    """Whether a request of an end user may access data of ``owner``; ``""`` stands for no end user.

    The only rule about end users: a request without one may access all data of its caller, and data without one belongs
    to all end users of its caller. ``store.sql.stored_completions.visible_to`` is the same rule in SQL, for lists. The
    caller is part of every query of the repositories.
    """
    return end_user == "" or owner in ("", end_user)


@dataclass(frozen=True, slots=True)
class ApiKeyRecord:
    """A key as the database has it. Times are seconds since the epoch; ``digest`` is that of the whole key."""

    id: str
    """The public part."""
    name: str
    digest: bytes
    terms: Terms
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None

    def is_valid(self, now: float) -> bool:
        """Whether it may be used."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


class KeyStore(Protocol):
    """Kept keys; every implementation passes ``tests/contracts/test_keys.py``."""

    async def find(self, key_id: str) -> ApiKeyRecord | None:
        """Return the key with this public part, also one that was revoked or has expired."""
        ...

    async def has_any(self) -> bool:
        """Whether there is a key that was not revoked; expired ones count, too."""
        ...

    async def all(self) -> Sequence[ApiKeyRecord]:
        """Return all of them, the oldest first."""
        ...

    async def add(self, key: ApiKeyRecord) -> None:
        """Keep a new key."""
        ...

    async def revoke(self, key_id: str, *, now: float) -> bool:
        """Revoke a key for good; False when there is none that was not."""
        ...


def new_key(
    name: str, terms: Terms, *, now: float, expires_at: float | None = None
) -> tuple[str, ApiKeyRecord]:
    """Return a new key, which is not to be had again, and what is kept of it."""
    key_id = secrets.token_hex(8)
    key = f"hp_{key_id}_{secrets.token_urlsafe(32)}"
    return key, ApiKeyRecord(key_id, name, _digest(key), terms, now, expires_at)


class Keys:
    """The keys that are accepted: those of the settings, as digests, and those of a store.

    Asking who calls waits for nothing, since every request does it more than once. What the store knows of a key is
    fetched before, by ``prepare``, and holds for ``KEY_CACHE_SECONDS`` seconds.
    """

    def __init__(
        self,
        keys: Iterable[str],
        store: KeyStore | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digests = [_digest(key) for key in keys]
        self._store = store
        self._clock = clock
        self._monotonic = monotonic
        self._known: dict[str, tuple[float, ApiKeyRecord]] = {}
        # Apart, so that nobody can make us forget a key, and its terms, by asking with many that do not exist.
        self._missing: OrderedDict[str, float] = OrderedDict()
        self._has_kept = False
        self._looked_at = -KEY_CACHE_SECONDS

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._digests and not self._has_kept

    async def prepare(self, authorization: str | None) -> None:
        """Fetch what is to be known of the key, if it is not known well enough.

        Raises:
            StoreUnavailable: Whether the key is good cannot be told.
        """
        if self._store is None:
            return
        now = self._monotonic()
        if self.is_open and now - self._looked_at >= KEY_CACHE_SECONDS:
            self._looked_at = now
            # When nobody can tell, it is as it was: an open server lives without its database.
            with suppress(StoreUnavailable):
                self._has_kept = await self._store.has_any()
        found = _KEPT_KEY.fullmatch(_bearer(authorization))
        if found is None:
            return
        key_id = found[1]
        known = self._known.get(key_id)
        at = self._missing.get(key_id, -KEY_CACHE_SECONDS) if known is None else known[0]
        if now - at < KEY_CACHE_SECONDS:
            return
        kept = await self._store.find(key_id)
        if kept is not None:
            self._known[key_id] = (now, kept)
            return
        self._known.pop(key_id, None)
        self._missing[key_id] = now
        self._missing.move_to_end(key_id)
        if len(self._missing) > MAX_MISSING:
            self._missing.popitem(last=False)

    def caller(self, authorization: str | None) -> str:
        """Return who sends this ``Authorization`` header, by a name that does not tell the key.

        Raises:
            Unauthorized: A key is needed, and this is none.
        """
        key = _bearer(authorization)
        digest = _digest(key)
        # Every key is compared, so that the time tells nothing.
        if sum(hmac.compare_digest(digest, known) for known in self._digests):
            return _name(digest)
        kept = self._kept(key, digest)
        if kept is not None:
            return _caller_of(kept)
        if not self.is_open:
            raise Unauthorized() if key else NoKey()
        return _name(digest) if key else ANYONE

    def terms_of(self, caller: str) -> Terms:
        """Return the terms of a caller who was known a moment ago."""
        kept = self._kept_of(caller)
        return NO_TERMS if kept is None else kept.terms

    def name_of(self, caller: str) -> str | None:
        """Return what the operator calls the caller's key, for logs."""
        kept = self._kept_of(caller)
        return None if kept is None else kept.name

    def _kept(self, key: str, digest: bytes) -> ApiKeyRecord | None:
        found = _KEPT_KEY.fullmatch(key)
        kept = self._known_as(found[1]) if found else None
        is_it = hmac.compare_digest(digest, kept.digest if kept is not None else b"\0" * len(digest))
        return kept if kept is not None and is_it and kept.is_valid(self._clock()) else None

    def _kept_of(self, caller: str) -> ApiKeyRecord | None:
        key_id = caller.removeprefix(_CALLER)
        if key_id == caller:
            return None
        return self._known_as(key_id)

    def _known_as(self, key_id: str) -> ApiKeyRecord | None:
        known = self._known.get(key_id)
        return None if known is None else known[1]


_CALLER = "kept-"


def _caller_of(key: ApiKeyRecord) -> str:
    return f"{_CALLER}{key.id}"


def pseudonym(caller: str, name: str) -> str:
    """Return what a provider is told in place of a name that a caller gave to a person or a thing of its own.

    Always the same for the same name of the same caller, and nothing that could be read back.
    """
    return sha256(f"{caller}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()


def check_exposure(host: str, *, has_keys: bool, allow_open: bool) -> None:
    """Refuse to serve anyone but this machine without keys, unless the operator asked for just that.

    Raises:
        ConfigurationError: Saying what to set.
    """
    if has_keys or allow_open or is_this_machine(host):
        return
    raise ConfigurationError(
        f"PROXY_HOST: {host} can be reached from other machines, and no keys are set. Set PROXY_API_KEYS (keys "
        "separated by commas) or make one with `handoff-proxy keys create`, or PROXY_ALLOW_OPEN=true to serve everyone."
    )


def is_this_machine(host: str) -> bool:
    """Whether an address or a name of a host is surely of the machine itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # Of other names nobody knows where they lead.
        return host == "localhost"


def _bearer(authorization: str | None) -> str:
    scheme, _, key = (authorization or "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _name(digest: bytes) -> str:
    return f"key-{digest.hex()[:24]}"
