"""Sign-in at Microsoft Entra ID for models on Azure, with the optional package ``azure-identity``.

``DefaultAzureCredential`` selects the identity: a service principal in the environment, a workload identity, a managed
identity, or the developer's own sign-in. It caches tokens in memory and renews them before they expire.
"""

from __future__ import annotations

import logging
from typing import Any

from proxy.errors import UpstreamAuthFailed

logger = logging.getLogger(__name__)

_SCOPE = "https://cognitiveservices.azure.com/.default"
"""Of Azure OpenAI: https://learn.microsoft.com/azure/ai-foundry/openai/reference#authentication"""


class EntraSignIn:
    """The identity of this process; the credential is created for the first request."""

    def __init__(self) -> None:
        self._credential: Any = None

    async def token(self) -> str:
        """Return an access token.

        Raises:
            UpstreamAuthFailed: No identity is available, or Entra ID rejected it.
        """
        # Only servers that use it spend the 0.2 s of this import.
        from azure.core.exceptions import AzureError
        from azure.identity.aio import DefaultAzureCredential

        if self._credential is None:
            # At INFO it logs every token that it returns.
            logging.getLogger("azure").setLevel(logging.WARNING)
            self._credential = DefaultAzureCredential()
        try:
            token = await self._credential.get_token(_SCOPE)
        except AzureError as error:
            logger.warning("sign-in at Entra ID failed", extra={"error": type(error).__name__})
            raise UpstreamAuthFailed("auth") from None
        return str(token.token)

    async def close(self) -> None:
        """Close the connections of the credential."""
        if self._credential is not None:
            credential, self._credential = self._credential, None
            await credential.close()
