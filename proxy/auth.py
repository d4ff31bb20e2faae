"""Who is calling.

With keys set, a request has to bring one of them. Without, the server is open (on loopback, or because the operator
says so by name), and callers are still told apart by the key they happen to send: what belongs to one is not there
for another.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import ip_address

from proxy.errors import ConfigurationError, NoKey, Unauthorized

ANYONE = "anyone"
"""The caller of an open server who sends no key."""


class Keys:
    """The keys that are accepted, as digests."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [_digest(key) for key in keys]

    @property
    def is_open(self) -> bool:
        """Whether no key is needed."""
        return not self._digests

    def caller(self, authorization: str | None) -> str:
        """Return who sends this ``Authorization`` header, by a name that does not tell the key.

        Raises:
            Unauthorized: A key is needed, and this is none.
        """
        scheme, _, key = (authorization or "").strip().partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        digest = _digest(key)
        # Every key is compared, so that the time tells nothing.
        if sum(hmac.compare_digest(digest, known) for known in self._digests):
            return _name(digest)
        if not self.is_open:
            raise Unauthorized() if key else NoKey()
        return _name(digest) if key else ANYONE


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
        f"PROXY_HOST: {host} can be reached from other machines, and no keys are set. "
        "Set PROXY_API_KEYS (keys separated by commas), or PROXY_ALLOW_OPEN=true to serve everyone."
    )


def is_this_machine(host: str) -> bool:
    """Whether an address or a name of a host is surely of the machine itself."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        # Of other names nobody knows where they lead.
        return host == "localhost"


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _name(digest: bytes) -> str:
    return f"key-{digest.hex()[:24]}"
