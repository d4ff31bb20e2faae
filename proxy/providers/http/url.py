"""URLs of HTTP servers that the operator configured.

The standard library parses them. yarl takes 0.8 MB of memory and is imported for international host names only.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, quote, unquote, urlsplit

from msgspec import Struct
from msgspec.structs import replace

_PORTS = {"http": 80, "https": 443}
_PATH = "/%:@!$&'()*+,;=~"
"""Characters of a path that stand for themselves (RFC 3986, 3.3), and those of an octet that is encoded already."""
_QUERY = f"{_PATH}?"
_NOT_OF_HOSTS = frozenset(' "<>\\^`{|}')


class HttpUrl(Struct, frozen=True):
    """A URL in its parts. They are decoded, except path and query."""

    scheme: str
    """In lower case; empty without one."""
    host: str
    """In lower case; empty without one."""
    ascii_host: str
    """As it is sent (RFC 5891)."""
    port: int | None
    """The default one of the scheme if the URL has none."""
    authority: str
    """Host and port as they are sent, without the user and without a default port that the URL does not have."""
    user: str | None
    password: str | None
    path: str
    """Encoded, as it is sent."""
    query: str
    """Encoded, as it is sent, without the question mark."""

    @classmethod
    def parse(cls, url: str) -> HttpUrl:
        """Return the parts of the URL.

        Raises:
            ValueError: It is not valid.
        """
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
        if not host.isprintable() or not _NOT_OF_HOSTS.isdisjoint(host):
            raise ValueError("not the name of a host")
        ascii_host = host
        if not host.isascii() or "xn--" in host:
            host, ascii_host = _international(host)
        authority = f"[{ascii_host}]" if ":" in ascii_host else ascii_host
        return cls(
            parts.scheme,
            host,
            ascii_host,
            port or _PORTS.get(parts.scheme),
            authority if port is None else f"{authority}:{port}",
            None if parts.username is None else unquote(parts.username),
            None if parts.password is None else unquote(parts.password),
            quote(parts.path, safe=_PATH),
            quote(parts.query, safe=_QUERY),
        )

    def joined(self, *names: str) -> HttpUrl:
        """Return the URL with names behind its path, and the same query."""
        return replace(
            self, path="/".join([self.path.rstrip("/"), *(quote(name, safe="") for name in names)])
        )

    @property
    def target(self) -> str:
        """Path and query, as they are sent."""
        return f"{self.path or '/'}?{self.query}" if self.query else self.path or "/"

    @property
    def query_values(self) -> list[str]:
        """The values of the query, decoded."""
        return [value for _, value in parse_qsl(self.query, keep_blank_values=True)]


def _international(host: str) -> tuple[str, str]:
    """Return a host name with its letters, and in ASCII."""
    from yarl import URL

    url = URL.build(scheme="http", host=host)
    return url.host or "", url.raw_host or ""
