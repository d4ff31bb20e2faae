"""Requests to OpenAI-compatible providers: the body and the headers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from proxy.errors import ConfigurationError
from proxy.messages import FunctionTool, NamedToolChoice, ToolChoice
from proxy.providers.http.url import HttpUrl
from proxy.providers.model import ModelRequest
from proxy.providers.openai.adaptation import TWINS, Adaptation, Omission, Reshaping
from proxy.providers.openai.adapted_body import omit_fields, plain, reshape
from proxy.providers.openai.provider_state import messages_with_state
from proxy.teamfiles.definitions import OpenAIModel

_encode = msgspec.json.Encoder().encode
_CHOICES = ("tool_choice", "parallel_tool_calls")
_NOT_OF_THE_BODY = (
    Reshaping.REASONING_FIRST,
    Reshaping.NO_UNKNOWN_STATE,
    Reshaping.NO_CLIENT_STATE,
    Reshaping.NO_STATE,
)
"""Applied to the request before, or to the answer."""
_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}


class BodyDefaults(msgspec.Struct, frozen=True):
    """What the definition of a model sets in each request. Reading it from the definition would take longer: classes of
    pydantic have a slow access to their attributes.
    """

    model: str
    parameters: Mapping[str, Any] = {}
    extra_body: Mapping[str, Any] = {}

    @classmethod
    def of(cls, definition: OpenAIModel) -> BodyDefaults:
        """Return those of a definition."""
        return cls(definition.model, definition.parameters, definition.extra_body)


class Outgoing(msgspec.Struct, frozen=True):
    """A body as it is sent. ``ignored`` are parameters, as callers name them, that it does not have therefore."""

    body: bytes
    ignored: frozenset[str] = frozenset()
    defers_form: bool = False
    """``response_format`` is not in it, because the provider rejects it next to tools."""


def body_of(
    defaults: BodyDefaults,
    request: ModelRequest,
    *,
    provider: str = "",
    adaptations: Collection[Adaptation] = (),
) -> Outgoing:
    """Return the body of a streamed request, with ``adaptations`` to what the provider rejects.

    Only provider state of ``provider`` is sent. The parameters of the request win over those of the model, and
    ``extra_body`` over both.

    Raises:
        ValueError: A value has no JSON form (half of a surrogate pair).
        TypeError: As above, for a value of another type in the definition.
    """
    body: dict[str, Any] = dict(defaults.parameters)
    for name, value in msgspec.to_builtins(request.parameters).items():
        body.pop(TWINS.get(name, name), None)
        body[name] = value
    body["stream_options"] = {"include_usage": True}
    ignored = omit_fields(body, adaptations) if adaptations else frozenset()
    body.update(defaults.extra_body)
    body["model"] = defaults.model
    body["messages"] = messages_with_state(request, provider)
    body["stream"] = True
    if request.tools:
        body["tools"] = [wire_tool(tool) for tool in request.tools]
        if request.tool_choice is not None:
            body["tool_choice"] = wire_tool_choice(request.tool_choice)
        if request.allowed_tools and not isinstance(request.tool_choice, NamedToolChoice):
            # https://platform.openai.com/docs/guides/function-calling#tool-choice
            names = [{"type": "function", "function": {"name": name}} for name in request.allowed_tools]
            mode = request.tool_choice or "auto"
            body["tool_choice"] = {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": names}}
        if request.parallel_tool_calls is not None:
            body["parallel_tool_calls"] = request.parallel_tool_calls
    if not adaptations:
        return Outgoing(_encode(body))
    return adapted(body, adaptations, ignored)


def adapted(body: dict[str, Any], adaptations: Collection[Adaptation], ignored: frozenset[str]) -> Outgoing:
    """Return the finished body in the form that the provider accepts."""
    defers_form = False
    if any(isinstance(one, Reshaping) and one not in _NOT_OF_THE_BODY for one in adaptations):
        body = plain(body)
        ignored |= reshape(body, adaptations)
        if Reshaping.FORM_AFTER_TOOLS in adaptations and body.get("tools"):
            defers_form = body.pop("response_format", None) is not None
    # After the reshapings, which add fields that a provider may reject as well.
    ignored |= omit_fields(
        body, [one for one in adaptations if isinstance(one, Omission) and one.name in _CHOICES]
    )
    return Outgoing(_encode(body), ignored, defers_form)


def headers_of(definition: OpenAIModel) -> dict[str, str]:
    """Return the headers of every request; those of the definition replace default headers, and empty ones remove them.

    Raises:
        ConfigurationError: A value cannot be a header; the sentence names it without its value.
    """
    headers = {
        "accept": "text/event-stream, application/json",
        # Compression buffers a stream, and a small compressed body can contain a very large one.
        "accept-encoding": "identity",
        "content-type": "application/json",
        "user-agent": "handoff-proxy",
    }
    if definition.api_key is not None and definition.auth == "key":
        key = definition.api_key.get_secret_value().strip()
        # Azure's deployments API reads the key from another header; a bearer token there is one of Entra ID:
        # https://learn.microsoft.com/azure/ai-foundry/openai/reference#authentication
        is_deployment = "/openai/deployments/" in definition.base_url
        headers["api-key" if is_deployment else "authorization"] = key if is_deployment else f"Bearer {key}"
    for name, secret in definition.headers.items():
        headers[name.lower()] = secret.get_secret_value().strip()
    if definition.auth == "entra":
        # Each request gets its own.
        headers.pop("authorization", None)
    _check(definition.model, headers)
    return {name: value for name, value in headers.items() if value}


def secrets_of(definition: OpenAIModel) -> tuple[str, ...]:
    """Return the values of the definition that must not be logged: the key, headers, and those in the URL."""
    values = [secret.get_secret_value().strip() for secret in definition.headers.values()]
    if definition.api_key is not None:
        values.append(definition.api_key.get_secret_value().strip())
    url = HttpUrl.parse(definition.base_url)
    values += [value for value in (url.user, url.password, *url.query_values) if value]
    return tuple(sorted(values, key=len, reverse=True))


def wire_tool(tool: FunctionTool) -> dict[str, Any]:
    """Return the tool in the form of the wire; without parameters it takes an empty object."""
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    function["parameters"] = tool.parameters if tool.parameters is not None else _NO_ARGUMENTS
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def wire_tool_choice(choice: ToolChoice) -> str | dict[str, Any]:
    """Return the choice in the form of the wire."""
    if isinstance(choice, NamedToolChoice):
        return {"type": "function", "function": {"name": choice.name}}
    return choice


def _check(model: str, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not value.isascii() or not value.isprintable():
            wanted = "the API key" if name == "authorization" else f"the header {name!r}"
            raise ConfigurationError(f"model {model!r}: {wanted} has characters that no header can carry")
