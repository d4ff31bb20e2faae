"""The documentation names what exists, and all of it: headers, settings, endpoints, metrics, error codes, options.

``test_settings.py`` compares the tables of docs/configuration.md with the settings in detail.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import pytest
from starlette.routing import Route, WebSocketRoute

from proxy.app import create_app
from proxy.cli import main
from proxy.cli_options import SECRET
from proxy.metrics import Metrics
from proxy.routes.middleware.cors import ALLOWED_HEADERS, EXPOSED_HEADERS
from proxy.settings import Settings, flag_of, load_settings, variables_of
from proxy.store.engine.postgres import MORE_READERS, READERS
from proxy.wire.errors import _ERROR_KINDS

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
SOURCES = {path: path.read_text("utf-8") for path in sorted((ROOT / "proxy").rglob("*.py"))}
DOCUMENTED = "\n".join(PAGES.values())


def found(pattern: str, pages: Iterable[str] = PAGES) -> dict[str, str]:
    """Return what a pattern finds in the pages, with the page where it is."""
    return {match: name for name in pages for match in re.findall(pattern, PAGES[name])}


# --- figures ---


def test_sizing_uses_the_measured_figures() -> None:
    page = PAGES["docs/performance.md"].partition("## Results")[2].partition("\nThe second table")[0]
    results = dict(re.findall(r"^\| ([^|]+) \|(.+)\|$", page, re.MULTILINE))
    sizing = PAGES["docs/deployment/README.md"].partition("## Sizing")[2].partition("\n## ")[0]

    def measured(row: str) -> str:
        return str(results[row].split("|")[2].strip())

    request, chunk = measured("plain request (µs CPU)"), measured("chunk arriving singly (µs CPU)")
    assert f"{request} µs for a plain request" in sizing
    assert f"{chunk} µs for a chunk" in sizing
    assert f"{measured('resident memory, idle (MiB)')} MiB for an idle process" in sizing
    assert f"{measured('memory of a waiting stream (KiB)')} KiB for a waiting stream" in sizing
    requests, streams = (
        int(number.replace(",", ""))
        for number in re.findall(r"about ([\d,]+)\s+(?:requests|concurrent)", sizing)
    )
    assert requests == pytest.approx(1e6 / float(request.replace(",", "")), rel=0.1)
    assert streams == pytest.approx(1e6 / 50 / float(chunk), rel=0.1)


def test_connections_of_a_worker_are_those_of_the_pool() -> None:
    # The pool has the connection for writing too. The one for messages between workers is separate.
    readers, most = READERS + MORE_READERS - 1, READERS + MORE_READERS + 1
    guide, store = (" ".join(PAGES[f"docs/{page}"].split()) for page in ("deployment/README.md", "store.md"))

    assert f"up to {most} connections (`max_connections` ≥ {most} × workers" in guide
    assert f"one for messages to other workers and up to {readers} for reading" in store


# --- settings ---

OTHER_VARIABLES = {
    "PROXY_DATADIR",  # a misspelled one
}
"""Names in the documentation that start like settings and are none."""


def test_documented_variables_are_settings() -> None:
    settings = {name for field in Settings.model_fields.values() for name in variables_of(field)}
    named = found(r"\b(PROXY_[A-Z_]*[A-Z])\b(?!_?…)")

    assert {name: page for name, page in named.items() if name not in settings | OTHER_VARIABLES} == {}


# --- headers ---

OF_CLIENTS = {
    "x-stainless-retry-count",
    "x-librechat-conversation-id",
    "x-librechat-user-id",
    "x-session-id",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-real-ip",
    "x-department",
    "x-shared",
}
"""Headers in examples of clients, frontends, providers and reverse proxies, which the server does not know by name."""
UNDOCUMENTED = {"x-gzip", "x-content-type-options"}
"""A content coding, and a header of the page that is part of its security headers."""


def test_documented_headers_are_in_the_source() -> None:
    source = "\n".join(SOURCES.values()).lower()
    named = found(r"(?i)(?<![\w./-])(x-[a-z]+(?:-[a-z]+)*)\b(?!-|…)")

    unknown = {
        name.lower(): page
        for name, page in named.items()
        if name.lower() not in source and name.lower() not in OF_CLIENTS
    }
    assert unknown == {}


def test_every_header_of_the_source_is_documented() -> None:
    pages = DOCUMENTED.lower()
    named = {
        name
        for text in SOURCES.values()
        for name in re.findall(r"""b?["'](x-[a-z]+(?:-[a-z]+)+)["']""", text)
        if not name.startswith(("x-stainless-", "x-ratelimit-"))
    }
    of_cors = {name for name in (*ALLOWED_HEADERS, *EXPOSED_HEADERS) if not name.startswith("x-")}

    assert {name for name in named - UNDOCUMENTED if name not in pages} == set()
    assert {name for name in of_cors if name not in pages} == set()


# --- endpoints ---


def routes() -> set[str]:
    """Return method and path of all routes, with ``{}`` for each parameter."""
    app = create_app(load_settings(env_file=None, metrics=True))
    found = {
        f"{method.upper()} {path}"
        for path, operations in app.openapi()["paths"].items()
        for method in operations
    }
    for route in app.routes:
        if isinstance(route, WebSocketRoute):
            found.add(f"WS {route.path}")
        elif isinstance(route, Route):
            found |= {f"{method} {route.path}" for method in route.methods or () if method != "HEAD"}
    return {re.sub(r"{[^}]*}", "{}", route) for route in found}


OTHER_PATHS = re.compile(r"/v1/?$|/v1/…|/v1//chat/completions|/v1/messages|/v1/embeddings|/openapi")


def test_the_page_of_endpoints_has_all_of_them() -> None:
    named = re.findall(r"`((?:GET|POST|DELETE|WS) /[^`]*)`", PAGES["docs/endpoints.md"])

    assert {re.sub(r"{[^}]*}", "{}", route) for route in named} == routes() | {"GET /openapi.json"}
    assert len(named) == len(set(named)) + 1  # GET /openapi.json is in the introduction too


def test_documented_endpoints_are_served() -> None:
    served = {route.partition(" ")[2] for route in routes()}
    named = found(r"(?:GET|POST|PUT|PATCH|DELETE|WS)`? `?(/[\w/{}…-]*)")
    named |= found(r"[`\s](?:https?://)?(?:localhost|127\.0\.0\.1):8000(/v1/[\w/{}-]+)")

    unknown = {path: page for path, page in named.items() if not is_served(path, served)}
    assert unknown == {}


def is_served(path: str, served: set[str]) -> bool:
    wanted = path.rstrip("/").split("/")
    return OTHER_PATHS.match(path) is not None or any(
        len(wanted) == len(parts)
        and all(one == part or part == "{}" for one, part in zip(wanted, parts, strict=True))
        for parts in (one.rstrip("/").split("/") for one in served)
    )


# --- metrics ---


def test_documented_metrics_are_those_of_the_server() -> None:
    exposed = Metrics(teams=(), models=(), tools=()).exposition().decode()
    kinds = re.findall(r"^# TYPE (\S+) (\S+)$", exposed, re.MULTILINE)
    metrics = {name for name, _ in kinds if not name.endswith("_created")}
    table = re.findall(r"^\| (`.*?) \|", PAGES["docs/metrics.md"], re.MULTILINE)

    assert {name for row in table for name in re.findall(r"`(\w+)`", row)} == metrics


# --- error codes ---

NOT_OF_RESPONSES = {"configuration", "schema_too_new", "team_file", "tool_error"}
"""Codes of errors that are not sent to clients."""


def codes() -> set[str]:
    """Return the error codes of the source."""
    literal = re.compile(r"""code(?:: str \| None)?(?: = |=)"([a-z_]+)\"""")
    in_source = {code for text in SOURCES.values() for code in literal.findall(text)}
    positional = {
        code
        for text in SOURCES.values()
        for code in re.findall(r"""ErrorResponse\(\d+, [^)]*, "([a-z_]+)"\)""", text)
    }
    return (in_source | positional | set(_ERROR_KINDS)) - NOT_OF_RESPONSES


def test_the_page_of_error_codes_has_all_of_them() -> None:
    tables = "\n".join(line for line in PAGES["docs/errors.md"].splitlines() if line.startswith("| `"))
    documented = {
        code for row in tables.splitlines() for code in re.findall(r"`([a-z_]+)`", row.split("|")[1])
    }
    of_objects = {"invalid_prompt", "server_error"}

    assert documented == codes() - of_objects


def test_documented_statuses_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| (`.*?) \| (\d{3}) \|", PAGES["docs/errors.md"], re.MULTILINE)
    documented = {code: int(status) for names, status in rows for code in re.findall(r"`(\w+)`", names)}

    wrong = {code: kind.status for code, kind in _ERROR_KINDS.items() if documented[code] != kind.status}
    assert wrong == {}


# --- options of the command line ---


def commands(group: click.Group = main, prefix: str = "") -> Iterator[tuple[str, click.Command]]:
    """Yield each command with its name, such as ``keys create``."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, f"{name} ")
        else:
            yield prefix + name, command


def options(command: click.Command) -> set[str]:
    return {option for param in command.params for option in (*param.opts, *param.secondary_opts)}


def test_documented_options_exist() -> None:
    every = {name: options(command) for name, command in commands()}
    called = found(r"(handoff-proxy [^`\n]*)")

    unknown: dict[str, str] = {}
    for line, page in called.items():
        for call in re.split(r"&&|;|\||#", line):
            content = call.replace("handoff-proxy ", "").split()
            name = next(
                (" ".join(content[:size]) for size in (2, 1) if " ".join(content[:size]) in every), None
            )
            if call.startswith("handoff-proxy ") and name is not None:
                known = every[name] | {"--help", "--version"}
                used = {word.partition("=")[0] for word in content if re.fullmatch(r"--[a-z-]+(=.*)?", word)}
                unknown |= {f"{name} {option}": page for option in used - known}
    assert unknown == {}


def test_every_command_and_option_is_documented() -> None:
    flags = {flag_of(name) for name in Settings.model_fields if name not in SECRET}
    flags |= {f"--no-{flag.removeprefix('--')}" for flag in flags}
    for name, command in commands():
        assert name.split()[-1] in DOCUMENTED
        for option in options(command) - flags:
            if option.startswith("--"):
                assert f"`{option}" in DOCUMENTED or f"{option}`" in DOCUMENTED, (name, option)
