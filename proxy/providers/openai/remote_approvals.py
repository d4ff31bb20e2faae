"""The approvals of another handoff-proxy (``docs/approvals.md``), which decides about calls of its teams."""

from __future__ import annotations

import asyncio

import msgspec

from proxy.errors import UpstreamFailed, UpstreamTimeout
from proxy.providers.http.pool import HttpSession, error_body
from proxy.providers.openai.error_report import report
from proxy.providers.openai.errors import refusal
from proxy.providers.openai.request import secrets_of
from proxy.providers.openai.wires import endpoint_of
from proxy.teamfiles.definitions import OpenAIModel

_TIME_LIMIT = 30.0


class RemoteApprovalApi:
    """``POST /v1/approvals`` of one endpoint."""

    def __init__(self, definition: OpenAIModel, session: HttpSession, *, connect: float) -> None:
        """``connect`` is the time limit of connections in seconds.

        Raises:
            ConfigurationError: The URL, the key or a header cannot be used.
        """
        self._endpoint = endpoint_of(definition, "approvals")
        self._secrets = secrets_of(definition)
        self._session = session
        self._connect = connect

    async def refuse(self, approval_id: str) -> None:
        """Refuse one call. Refusing it again has no effect.

        Raises:
            UpstreamFailed: The endpoint did not accept the decision.
        """
        body = msgspec.json.encode({"approval_id": approval_id, "decision": "refuse"})
        try:
            async with asyncio.timeout(_TIME_LIMIT):
                response = await self._session.ask(self._endpoint, body, connect=self._connect)
                answer = await error_body(response)
        except TimeoutError:
            raise UpstreamTimeout("timeout") from None
        if response.status >= 300:
            failure: UpstreamFailed = refusal(response.status, answer, response.headers)
            failure.facts = report(response.status, answer, sent=body, secrets=self._secrets)
            raise failure
