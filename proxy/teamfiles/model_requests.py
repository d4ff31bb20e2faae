"""Validate the parts of team files that go into model requests: parameters, body fields, headers, key, base URL."""

from __future__ import annotations

import re
from importlib.util import find_spec
from types import NoneType
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from proxy.messages import Parameters
from proxy.teamfiles.diagnostics import Path, quote
from proxy.teamfiles.source_map import Source

_PARAMETERS: dict[str, Any] = {field.name: field.type for field in msgspec.structs.fields(Parameters)}
_SET_BY_THE_PROXY = frozenset(
    (
        "model",
        "messages",
        "stream",
        "stream_options",
        "tools",
        "tool_choice",
        "functions",
        "function_call",
        "n",
    )
)
_TYPE_NAMES = {
    float: "a number",
    int: "an integer",
    bool: "true or false",
    str: "a string",
    list: "a list of strings",
    dict: "a mapping",
}
NO_SIGN_IN = "needs the package azure-identity: install handoff-proxy with the extra 'azure'"
_INVALID_HEADER_VALUE = "contains a character that is not allowed in HTTP headers"
# token (RFC 9110, 5.6.2)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_body(source: Source, path: Path) -> None:
    """Check the keys in ``parameters`` or ``extra_body``, and the types of the parameters."""
    value = source.value(path)
    for name, given in value.items() if isinstance(value, dict) else ():
        place = (*path, name)
        if name in _SET_BY_THE_PROXY:
            source.add_error(place, "is set by the proxy", at_key=True)
        elif path[-1] == "extra_body":
            continue
        elif name not in _PARAMETERS:
            hint = "; put provider-specific parameters in 'extra_body'" if path[0] == "models" else ""
            what = f"unknown parameter {quote(name)}{hint}"
            source.add_unknown_key(place, what, _PARAMETERS)
        elif not _matches_type(given, _PARAMETERS[name]):
            source.add_error(place, f"expected {_describe_types(_PARAMETERS[name])}")


def check_connection(source: Source, path: Path) -> None:
    """Check that base URL, key and headers of a model are valid in an HTTP request."""
    url = source.value((*path, "base_url"))
    if isinstance(url, str) and url.startswith(("http://", "https://")) and not is_server_url(url):
        source.add_error((*path, "base_url"), "is not a valid URL")
    key = source.value((*path, "api_key"))
    if isinstance(key, str) and not _is_header_value(key):
        source.add_error((*path, "api_key"), _INVALID_HEADER_VALUE)
    if source.value((*path, "auth")) == "entra" and not can_sign_in():
        source.add_error((*path, "auth"), NO_SIGN_IN)
    check_headers(source, path)


def can_sign_in() -> bool:
    """Whether the package that signs in at Microsoft Entra ID is installed."""
    try:
        return find_spec("azure.identity.aio") is not None
    except ModuleNotFoundError:
        return False


def check_headers(source: Source, path: Path) -> None:
    """Check the names (RFC 9110, 5.1) and values of headers."""
    headers = source.value((*path, "headers"))
    for name, value in headers.items() if isinstance(headers, dict) else ():
        place = (*path, "headers", name)
        if not _TOKEN.fullmatch(name):
            source.add_error(place, "is not a valid HTTP header name", at_key=True)
        if isinstance(value, str) and not _is_header_value(value):
            source.add_error(place, _INVALID_HEADER_VALUE)


def _matches_type(value: Any, wanted: Any) -> bool:
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        return False
    return True


def _describe_types(wanted: Any) -> str:
    return " or ".join(
        _TYPE_NAMES[get_origin(kind) or kind] for kind in get_args(wanted) if kind is not NoneType
    )


def is_server_url(url: str) -> bool:
    """Return whether a URL has a host and a valid port."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        return False


def _is_header_value(text: str) -> bool:
    return text.isascii() and text.isprintable()
