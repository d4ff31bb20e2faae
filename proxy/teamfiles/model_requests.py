"""What a team file adds to requests of a model: parameters, further body keys, headers, key and address."""

from __future__ import annotations

import re
from importlib.util import find_spec
from types import NoneType
from typing import Any, get_args, get_origin
from urllib.parse import urlsplit

import msgspec

from proxy.messages import Parameters
from proxy.teamfiles.diagnostics import Path, quoted
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
_WORDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "text",
    list: "a list of texts",
    dict: "a mapping",
}
NO_SIGN_IN = "needs the package azure-identity: install handoff-proxy with the extra 'azure'"
# https://www.rfc-editor.org/rfc/rfc9110#name-tokens
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


def check_body(source: Source, path: Path) -> None:
    """Check the keys under ``parameters`` or ``extra_body``, and the types of the parameters."""
    value = source.value(path)
    for name, given in value.items() if isinstance(value, dict) else ():
        place = (*path, name)
        if name in _SET_BY_THE_PROXY:
            source.wrong(place, "is set by the proxy itself", at_key=True)
        elif path[-1] == "extra_body":
            continue
        elif name not in _PARAMETERS:
            elsewhere = "; a provider's own go under 'extra_body'" if path[0] == "models" else ""
            what = f"unknown parameter {quoted(name)}{elsewhere}"
            source.unknown_key(place, what, _PARAMETERS)
        elif not _fits(given, _PARAMETERS[name]):
            source.wrong(place, f"wanted {_in_words(_PARAMETERS[name])}")


def check_connection(source: Source, path: Path) -> None:
    """Check that address, key and headers of a model can go into a request."""
    url = source.value((*path, "base_url"))
    if isinstance(url, str) and url.startswith(("http://", "https://")) and not is_address(url):
        source.wrong((*path, "base_url"), "is not the URL of a server")
    key = source.value((*path, "api_key"))
    if isinstance(key, str) and not _is_header_value(key):
        source.wrong((*path, "api_key"), "holds a line break or a character that no HTTP header can carry")
    if source.value((*path, "auth")) == "entra" and not can_sign_in():
        source.wrong((*path, "auth"), NO_SIGN_IN)
    check_headers(source, path)


def can_sign_in() -> bool:
    """Whether the package that signs in at Microsoft Entra ID is installed."""
    try:
        return find_spec("azure.identity.aio") is not None
    except ModuleNotFoundError:
        return False


def check_headers(source: Source, path: Path) -> None:
    """Check that headers can go into a request."""
    headers = source.value((*path, "headers"))
    for name, value in headers.items() if isinstance(headers, dict) else ():
        place = (*path, "headers", name)
        if not _TOKEN.fullmatch(name):
            source.wrong(place, "is not the name of an HTTP header", at_key=True)
        if isinstance(value, str) and not _is_header_value(value):
            source.wrong(place, "holds a line break or a character that no HTTP header can carry")


def _fits(value: Any, wanted: Any) -> bool:
    try:
        msgspec.convert(value, wanted)
    except msgspec.ValidationError:
        return False
    return True


def _in_words(wanted: Any) -> str:
    return " or ".join(_WORDS[get_origin(kind) or kind] for kind in get_args(wanted) if kind is not NoneType)


def is_address(url: str) -> bool:
    """Whether a URL names a server."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0 and url.isprintable() and " " not in url
    except ValueError:
        return False


def _is_header_value(text: str) -> bool:
    return text.isascii() and text.isprintable()
