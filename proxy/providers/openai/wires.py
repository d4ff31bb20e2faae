"""The two APIs of a provider, chat completions and Responses: which one is called, and where."""

from __future__ import annotations

from typing import Literal

from proxy.errors import ConfigurationError
from proxy.providers.http.pool import Endpoint
from proxy.providers.http.url import HttpUrl
from proxy.providers.openai.errors import error_code, error_message
from proxy.providers.openai.request import headers_of
from proxy.teamfiles.definitions import OpenAIModel
from proxy.teamfiles.model_requests import NO_SIGN_IN, can_sign_in
from proxy.teamfiles.team_sources import is_openai

Wire = Literal["chat", "responses"]
_RESPONSES = "/v1/responses"
_NO_MODEL = ("model_not_found", "deploymentnotfound")
_AZURE_HOSTS = (".openai.azure.com", ".services.ai.azure.com", ".cognitiveservices.azure.com")


def first_wire(definition: OpenAIModel) -> Wire:
    """Return the wire that a model is asked on until its provider says otherwise."""
    if definition.wire != "auto":
        return definition.wire
    url = HttpUrl.parse(definition.base_url)
    host = url.host
    is_openai = host == "api.openai.com" or host.endswith(".api.openai.com")
    # Only Azure's v1 API is the same as OpenAI's:
    # https://learn.microsoft.com/azure/ai-foundry/openai/api-version-lifecycle
    is_azure = host.endswith(_AZURE_HOSTS) and url.path.rstrip("/").endswith("/openai/v1")
    return "responses" if is_openai or is_azure else "chat"


def other_wire(wire: Wire, status: int, error: bytes, sent: bytes) -> Wire | None:
    """Return the wire to try instead, None if the answer to the request ``sent`` does not ask for another."""
    if wire == "responses":
        is_missing = status == 405 or (status == 404 and error_code(error).lower() not in _NO_MODEL)
        return "chat" if is_missing else None
    # A path that is in the request too may be an echo of what the caller wrote.
    is_named = status == 400 and _RESPONSES in error_message(error) and _RESPONSES.encode() not in sent
    return "responses" if is_named else None


def endpoint_of(definition: OpenAIModel, *path: str, method: str = "POST") -> Endpoint:
    """Return the address of an endpoint of a model's provider; a query behind the base stays.

    Raises:
        ConfigurationError: The URL, the key or a header cannot be used.
    """
    if definition.auth == "entra":
        if not can_sign_in():
            raise ConfigurationError(f"model {definition.model!r}: auth: entra {NO_SIGN_IN}")
        if is_openai(definition.base_url):
            raise ConfigurationError(
                f"model {definition.model!r}: auth: entra needs the base URL of a resource on Azure"
            )
    try:
        url = HttpUrl.parse(definition.base_url).joined(*path)
        return Endpoint.at(url, headers_of(definition), method, needs_sign_in=definition.auth == "entra")
    except ValueError:
        raise ConfigurationError(
            f"model {definition.model!r}: its URL, or the name of a header, cannot be used"
        ) from None
