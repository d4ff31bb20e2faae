"""Check the settings that refer to something else: teams, tools, packages, files, API keys, the database.

Each check yields one line per problem, and depends on nothing that another one reports. ``start_check`` runs them all.
The format of a value is checked when the settings are read.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TypeVar

from proxy.auth import check_exposure, is_this_machine
from proxy.errors import ConfigurationError
from proxy.settings import Settings
from proxy.teamfiles.definitions import OpenAIModel
from proxy.teamfiles.loader import LoadedTeams
from proxy.tools.builtin import builtin_names
from proxy.tools.mcp.pins import reference
from proxy.trace_export import export_problems, is_installed

# The parts of the server are imported on first use: they take a second, and a check of files alone needs none.

T = TypeVar("T")

DATABASE_TIME_LIMIT = 5.0
"""Seconds that a check waits for the database."""


# --- settings that refer to team files -----------------------------------------------------------------------


def team_problems(settings: Settings, loaded: LoadedTeams) -> Iterator[str]:
    """Check the names of teams and tools in settings, and whether each model can be called with its settings.

    Names are checked as far as the team files, which may have errors, could be read.
    """
    yield from _unknown_teams(settings, loaded)
    yield from _unknown_tools(settings, loaded)
    yield from _unusable_models(loaded)


def _unknown_teams(settings: Settings, loaded: LoadedTeams) -> Iterator[str]:
    if loaded.team_names is None:
        return
    for name in ("older_team", "older_chat_team", "older_ask_team"):
        team = getattr(settings, name)
        if team is not None and team not in loaded.team_names:
            there = f"there are {', '.join(loaded.team_names)}" if loaded.team_names else "there are none"
            yield f"PROXY_{name.upper()}: no team is called '{team}'; {there}"


def _unknown_tools(settings: Settings, loaded: LoadedTeams) -> Iterator[str]:
    if settings.agents_over_http:
        of_servers = (reference(server, tool) for server, tools in loaded.pins.items() for tool in tools)
        known = {*builtin_names(), *loaded.tools, *of_servers}
        for name in settings.agent_tools or ():
            # Only names of built-in tools have no colon. The others may be in a part of the files that has errors.
            if name not in known and (loaded.is_valid or ":" not in name):
                yield f"PROXY_AGENT_TOOLS: there is no tool '{name}'"


def _unusable_models(loaded: LoadedTeams) -> Iterator[str]:
    models = [model for model in loaded.definitions.models.values() if isinstance(model, OpenAIModel)]
    if models:
        from proxy.providers.openai.wires import endpoint_of
    for model in models:
        try:
            endpoint_of(model)
        except ConfigurationError as error:
            yield error.message


# --- other settings ------------------------------------------------------------------------------------------


def tracing_problems(settings: Settings, is_installed: Callable[[], bool] = is_installed) -> Iterator[str]:
    """Check that the packages for tracing are installed, and OpenTelemetry's variables for the export."""
    if not settings.tracing:
        return
    if is_installed():
        yield from export_problems()
    else:
        yield "PROXY_TRACING: the packages for it are not installed; install handoff-proxy[otel]"


def redis_problems(settings: Settings) -> Iterator[str]:
    """Check the URL of Redis without a connection."""
    if settings.redis_url is not None:
        from proxy.limits import Limiter

        try:
            Limiter(settings.redis_url.get_secret_value())
        except ConfigurationError as error:
            yield error.message


def certificate_problems(settings: Settings) -> Iterator[str]:
    """Check that the TLS certificate can be read."""
    yield from _unreadable("PROXY_TLS_CERTIFICATE", settings.tls_certificate)


def tls_key_problems(settings: Settings) -> Iterator[str]:
    """Check that the private key for HTTPS can be read, and belongs to the certificate."""
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None:
        if key is not None:
            yield "PROXY_TLS_KEY: needs PROXY_TLS_CERTIFICATE too"
        return
    unreadable = [*_unreadable("PROXY_TLS_KEY", key)]
    yield from unreadable
    if unreadable or any(certificate_problems(settings)):
        return
    try:
        # The password is requested on the terminal unless there is one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        yield (
            f"PROXY_TLS_CERTIFICATE: {certificate} is not a PEM certificate whose unencrypted private key is in "
            f"{key or 'the same file'}"
        )


def provider_connection_problems(settings: Settings) -> Iterator[str]:
    """Check the proxy variables of the environment and the TLS files for connections to providers."""
    from proxy.providers.factory import provider_session

    try:
        provider_session(settings)
    except ConfigurationError as error:
        yield error.message


def _unreadable(variable: str, file: Path | None) -> Iterator[str]:
    try:
        if file is not None:
            file.read_bytes()
    except OSError as error:
        yield f"{variable}: {file} cannot be read ({error.strerror})"


def data_dir_problems(settings: Settings) -> Iterator[str]:
    """Check whether the data directory could be created and written to, without doing it."""
    data_dir = settings.data_dir
    if problem := _problem_of_directory(data_dir):
        yield _unusable_data_dir(settings, "written to" if data_dir.is_dir() else "created", problem)


def create_data_dir(settings: Settings) -> None:
    """Create the data directory.

    Raises:
        ConfigurationError: It cannot be created.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(_unusable_data_dir(settings, "created", error.strerror)) from None


def _problem_of_directory(directory: Path) -> str | None:
    """Return why a directory cannot be created or written to, with the message of the operating system."""
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        return os.strerror(errno.EEXIST if existing == directory else errno.ENOTDIR)
    try:
        # Permissions alone are not enough: root may write to /proc, which has no files of others. The file has
        # no name (``O_TMPFILE``) where the file system supports that.
        with TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return error.strerror


def _unusable_data_dir(settings: Settings, use: str, reason: str | None) -> str:
    return f"PROXY_DATA_DIR: {settings.data_dir} cannot be {use} ({reason})"


# --- the database --------------------------------------------------------------------------------------------


def database_url_problems(settings: Settings) -> Iterator[str]:
    """Check the URL of the database without a connection, and the directory of an SQLite database."""
    if settings.database_url is None:
        return
    from proxy.store.engine.database import database_url

    try:
        url = database_url(settings.database)
    except ConfigurationError as error:
        yield error.message
        return
    folder = Path(url.database or "").resolve().parent
    if url.drivername == "sqlite" and (problem := _problem_of_directory(folder)):
        yield f"the folder {folder} of the database cannot be written to ({problem})"


def database_problem(settings: Settings) -> ConfigurationError | None:
    """Check whether a server can start with the database, without a change.

    The result is ``DatabaseNotReady`` for a database that does not answer or has to be migrated. A database whose URL
    or directory cannot be used is left to the checks of these.
    """
    if any(database_url_problems(settings)) or (
        settings.database_url is None and any(data_dir_problems(settings))
    ):
        return None
    from proxy.store.engine.migrations import check_schema

    try:
        _run(check_schema(settings.database, time_limit=DATABASE_TIME_LIMIT))
    except ConfigurationError as error:
        return error
    return None


def exposure_problems(settings: Settings, *, reads_database: bool) -> Iterator[str]:
    """Check that a server which other machines can reach has API keys: of the settings, or stored ones.

    Without ``reads_database``, any database counts as one with keys. So does one that cannot be read.
    """
    has_keys = bool(settings.api_keys) or settings.allow_open or is_this_machine(settings.host)
    try:
        check_exposure(
            settings.host,
            has_keys=has_keys or _has_stored_keys(settings, reads_database=reads_database),
            allow_open=settings.allow_open,
        )
    except ConfigurationError as error:
        yield error.message


def _has_stored_keys(settings: Settings, *, reads_database: bool) -> bool:
    from proxy.store.engine.migrations import is_missing

    with suppress(ConfigurationError):
        if is_missing(settings.database):
            return False
        if reads_database:
            return _run(_read_keys(settings.database))
    return True


async def _read_keys(database: str) -> bool:
    from proxy.errors import StoreUnavailable
    from proxy.store.engine.migrations import schema_state
    from proxy.store.turns import open_history

    state = await schema_state(database, time_limit=DATABASE_TIME_LIMIT)
    if state != "current":
        # The tables of another version cannot be read: ``serve`` migrates them, or reports them as too new.
        return state != "empty"
    history = open_history(database)
    try:
        return await history.keys.has_any()
    except StoreUnavailable:
        return True
    finally:
        await history.close()


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a separate thread: an ASGI server imports the application inside its event loop."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()
