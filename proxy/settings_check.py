"""Check the settings that refer to something else: teams, tools, packages, API keys. ``serve`` and ``check`` use it.

The format of a value is checked when the settings are read.
"""

from __future__ import annotations

import asyncio
import errno
import os
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

from proxy.auth import check_exposure, is_this_machine
from proxy.errors import ConfigurationError
from proxy.settings import Settings
from proxy.teamfiles.definitions import OpenAIModel
from proxy.teamfiles.loading import LoadedTeams
from proxy.tools.builtin import builtin_names
from proxy.tools.mcp.pins import reference
from proxy.trace_export import is_installed

# The parts of the server are imported on first use: they take a second, and a check of files alone needs none.


def check_settings(settings: Settings, loaded: LoadedTeams) -> None:
    """Check the settings against the loaded team files, and whether each model can be called with its settings.

    Raises:
        ConfigurationError: With one line per error.
    """
    errors = [
        *_unknown_teams(settings, loaded),
        *_unknown_tools(settings, loaded),
        *_unusable_models(loaded),
        *missing_packages(settings),
    ]
    if errors:
        raise ConfigurationError("\n".join(errors))


def _unknown_teams(settings: Settings, loaded: LoadedTeams) -> Iterator[str]:
    teams = loaded.definitions.teams
    for name in ("older_team", "older_chat_team", "older_ask_team"):
        team = getattr(settings, name)
        if team is not None and team not in teams:
            yield f"PROXY_{name.upper()}: no team is called '{team}'; there are {', '.join(teams)}"


def _unknown_tools(settings: Settings, loaded: LoadedTeams) -> Iterator[str]:
    if settings.agents_over_http:
        of_servers = (reference(server, tool) for server, tools in loaded.pins.items() for tool in tools)
        known = {*builtin_names(), *loaded.tools, *of_servers}
        for name in settings.agent_tools or ():
            if name not in known:
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


def missing_packages(settings: Settings, is_installed: Callable[[], bool] = is_installed) -> Iterator[str]:
    """Return an error for each setting that needs packages of an extra which are not installed."""
    if settings.tracing and not is_installed():
        yield "PROXY_TRACING: the packages for it are not installed; install handoff-proxy[otel]"


def check_urls(settings: Settings) -> None:
    """Check the URLs of the database and of Redis without a connection.

    Raises:
        ConfigurationError: A URL is invalid or not supported.
    """
    if settings.database_url is not None:
        from proxy.store.engine.database import database_url

        database_url(settings.database)
    if settings.redis_url is not None:
        from proxy.limits import Limiter

        Limiter(settings.redis_url.get_secret_value())


def create_data_dir(settings: Settings) -> None:
    """Create the data directory.

    Raises:
        ConfigurationError: It cannot be created.
    """
    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable_data_dir(settings, "created", error.strerror) from None


def check_directories(settings: Settings) -> None:
    """Check whether the data directory, and that of an SQLite database, could be created and written, without doing it.

    Raises:
        ConfigurationError: One of them could not.
    """
    data_dir = settings.data_dir
    if problem := _problem_of_directory(data_dir):
        raise _unusable_data_dir(settings, "written to" if data_dir.is_dir() else "created", problem)
    if settings.database_url is None:
        return
    from proxy.store.engine.database import database_url

    url = database_url(settings.database)
    folder = Path(url.database or "").resolve().parent
    if url.drivername == "sqlite" and (problem := _problem_of_directory(folder)):
        raise ConfigurationError(f"the folder {folder} of the database cannot be written to ({problem})")


def _problem_of_directory(directory: Path) -> str | None:
    """Return why a directory cannot be created or written to, in the words of the operating system."""
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        return os.strerror(errno.EEXIST if existing == directory else errno.ENOTDIR)
    return None if os.access(existing, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)


def _unusable_data_dir(settings: Settings, use: str, reason: str | None) -> ConfigurationError:
    return ConfigurationError(f"PROXY_DATA_DIR: {settings.data_dir} cannot be {use} ({reason})")


def check_tls(settings: Settings) -> None:
    """Check that the files for HTTPS can be used.

    Raises:
        ConfigurationError: A file cannot be read, or certificate and key do not fit together.
    """
    certificate, key = settings.tls_certificate, settings.tls_key
    if certificate is None:
        if key is not None:
            raise ConfigurationError("PROXY_TLS_KEY: needs PROXY_TLS_CERTIFICATE too")
        return
    for variable, file in (("PROXY_TLS_CERTIFICATE", certificate), ("PROXY_TLS_KEY", key)):
        try:
            if file is not None:
                file.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{variable}: {file} cannot be read ({error.strerror})") from None
    try:
        # The password is requested on the terminal unless there is one.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        raise ConfigurationError(
            f"PROXY_TLS_CERTIFICATE: {certificate} is not a PEM certificate whose unencrypted private key is in "
            f"{key or 'the same file'}"
        ) from None


def check_api_keys(settings: Settings, *, migrates: bool) -> None:
    """Check that a server which other machines can reach has API keys: of the settings, or stored ones.

    An SQLite database that is behind this version is migrated to read them if ``migrates``; without it, the database is
    only read, and an unreadable one counts as one with keys.

    Raises:
        ConfigurationError: It has none, or the database is not available.
    """
    has_keys = bool(settings.api_keys) or settings.allow_open or is_this_machine(settings.host)
    if not has_keys:
        has_keys = asyncio.run(_has_stored_keys(settings, migrates=migrates))
    check_exposure(settings.host, has_keys=has_keys, allow_open=settings.allow_open)


async def _has_stored_keys(settings: Settings, *, migrates: bool) -> bool:
    if settings.database_url is None and not settings.database_file.exists():
        return False
    from proxy.store.engine.migrations import prepare_schema, schema_state
    from proxy.store.turns import open_history

    if migrates:
        await prepare_schema(settings.database)
    elif (state := await schema_state(settings.database, time_limit=_CHECK_TIME_LIMIT)) != "current":
        # The tables of another version cannot be read: ``serve`` migrates them, or reports them as too new.
        return state != "empty"
    history = open_history(settings.database)
    try:
        return await history.keys.has_any()
    finally:
        await history.close()


_CHECK_TIME_LIMIT = 5.0
"""Seconds that ``check`` waits for the database."""
