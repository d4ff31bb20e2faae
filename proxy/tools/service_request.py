"""One HTTP request of a tool to a service, over a separate connection."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from importlib.metadata import version

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from proxy.tools.external_service import Address, Service, ServiceFailed

# Several services reject a User-Agent that does not start with "Mozilla/5.0"; crawlers identify themselves in this
# form.
USER_AGENT = f"Mozilla/5.0 (compatible; handoff-proxy/{version('handoff-proxy')})"
_HEADERS = {"User-Agent": USER_AGENT, "Accept": "application/json", "Accept-Encoding": "identity"}
FAILURES = (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError, ValueError, RuntimeError)
"""Errors of a request besides ``ServiceFailed``: aiohttp does not wrap some exceptions of its parser and of asyncio."""


async def fetch(service: Service, url: URL, addresses: Sequence[Address], *, max_bytes: int) -> bytes:
    """Return the body of a response; connect to ``addresses``, whatever the host of the URL is.

    Raises:
        ServiceFailed: The response has an error status, is not JSON or is too large.
    """
    connector = aiohttp.TCPConnector(
        resolver=_FixedResolver(addresses), use_dns_cache=False, force_close=True, limit=1
    )
    async with (
        aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            # The caller limits the whole time; aiohttp's timeout would start again for each address.
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session,
        session.get(url, headers=_HEADERS, allow_redirects=False) as response,
    ):
        _check_response(service, response)
        body = bytearray()
        while received := await response.content.readany():
            body += received
            if len(body) > max_bytes:
                raise ServiceFailed(f"{service.name} sent more than {max_bytes} bytes")
        return bytes(body)


class _FixedResolver(AbstractResolver):
    """Return the validated addresses for any host, so that a second DNS answer cannot replace them."""

    def __init__(self, addresses: Sequence[Address]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Do nothing: the resolver has no resources."""


def _check_response(service: Service, response: aiohttp.ClientResponse) -> None:
    status = response.status
    if status == 429:
        raise ServiceFailed(f"{service.name} is rate limiting requests; try again in a few minutes", status)
    if 300 <= status < 400:
        raise ServiceFailed(f"{service.name} responded with a redirect, which tools do not follow", status)
    if status != 200:
        raise ServiceFailed(f"{service.name} responded with an error (status {status})", status)
    coding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if "json" not in response.content_type or coding not in ("identity", ""):
        raise ServiceFailed(f"{service.name} did not respond with JSON", status)
