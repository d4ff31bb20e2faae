"""Everything that would prevent a start, in one report. ``serve``, ``check`` and ``proxy.asgi`` share it.

Each check runs whatever the others find. One is left out only if it depends on a value that is not known: a setting
with an invalid value, or one that is not set while ``.env`` cannot be read.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any, Literal

from msgspec import Struct

from proxy.errors import ConfigurationError, DatabaseNotReady
from proxy.listen_sockets import bound_sockets
from proxy.settings import (
    ENV_FILE,
    InvalidSettings,
    Settings,
    UnreadableEnvFile,
    environment,
    find_misspelled,
    load_settings,
    unread_lines,
)
from proxy.settings_check import (
    certificate_problems,
    data_dir_problems,
    database_problem,
    database_url_problems,
    exposure_problems,
    provider_connection_problems,
    redis_problems,
    tls_key_problems,
    tracing_problems,
)
from proxy.team_check import check_configured_teams
from proxy.teamfiles.loader import Report

Address = Literal["port", "host", "none"]
"""What of the listening address is checked: also that the port is free, the host alone, or neither."""

TEAM_FILES = ("team.yaml", "teams.yaml")
"""Names of a team file in the documentation."""

_Check = tuple[Callable[[Settings], Iterator[str]], Set[str]]
_CHECKS: tuple[_Check, ...] = (
    (tracing_problems, {"tracing"}),
    (database_url_problems, {"database_url"}),
    (redis_problems, {"redis_url"}),
    (certificate_problems, {"tls_certificate"}),
    (tls_key_problems, {"tls_certificate", "tls_key"}),
    (
        provider_connection_problems,
        {
            "provider_proxy",
            "provider_tls_ca",
            "provider_tls_certificate",
            "provider_tls_key",
            "provider_tls_minimum",
        },
    ),
    (data_dir_problems, {"data_dir"}),
)
"""Checks without network and database, and the settings on which each depends."""


class Start(Struct, frozen=True):
    """The settings of a start, and what is known of them.

    ``unknown`` settings have no valid value, and their defaults in ``settings``. ``problems`` are those of the settings
    themselves, ``warnings`` what is probably a typing error but prevents no start.
    """

    settings: Settings
    variables: Mapping[str, str]
    unknown: Set[str] = frozenset()
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    has_environment: bool = True

    @classmethod
    def read(cls, **overrides: Any) -> Start:
        """Read the settings with ``load_settings``; invalid ones are among the problems."""
        # Its warnings have no file name, and there is one for each reading; ``unread_lines`` has both.
        logging.getLogger("dotenv.main").setLevel(logging.ERROR)
        env_file: str | None = ENV_FILE
        variables: Mapping[str, str] = {}
        problems: list[str] = []
        try:
            variables = environment()
        except UnreadableEnvFile as error:
            env_file = None
            problems.append(error.message)
        unknown: Set[str] = frozenset()
        try:
            settings = load_settings(env_file=env_file, **overrides)
        except InvalidSettings as error:
            settings, unknown = error.valid, error.fields
            problems += error.message.splitlines()
        if env_file is None:
            unknown |= Settings.model_fields.keys() - settings.model_fields_set
        warnings = [*unread_lines(), *find_misspelled(variables)]
        if settings.teams is None and "teams" not in unknown:
            warnings += _unused_team_files()
        return cls(
            settings,
            variables,
            unknown,
            tuple(problems),
            tuple(warnings),
            has_environment=env_file is not None,
        )

    def knows(self, names: Set[str]) -> bool:
        """Return whether all of these settings have valid values."""
        return not names & self.unknown

    @property
    def knows_database(self) -> bool:
        """Whether the place of the database is known: its URL, or the data directory if there is no URL."""
        return self.knows({"database_url"} if self.settings.database_url else {"database_url", "data_dir"})


def _unused_team_files() -> list[str]:
    """Return a warning for a team file in the working folder, which is easily expected to be used."""
    return [
        f"{name} in the working folder is not used; set PROXY_TEAMS={name} to serve its teams"
        for name in TEAM_FILES
        if os.path.isfile(name)
    ]


def check_settings(settings: Settings) -> None:
    """Check the settings without the team files, the network and the content of the database.

    Raises:
        ConfigurationError: With one line per problem.
    """
    problems = [*_setting_problems(Start(settings, {})), *exposure_problems(settings, reads_database=False)]
    if problems:
        raise ConfigurationError("\n".join(problems))


def check_start(start: Start, *, address: Address, waits: bool = True) -> Report:
    """Validate what a server would start with, without a change.

    A database that does not answer or has to be migrated is a notice if the server ``waits`` for it, and a problem
    otherwise. The check of the database lasts up to ``DATABASE_TIME_LIMIT`` seconds.
    """
    teams = _team_report(start)
    problems, notices = [*teams.problems, *_setting_problems(start)], [*start.warnings, *teams.notices]
    fault = database_problem(start.settings) if start.knows_database else None
    if fault is not None:
        (notices if waits and isinstance(fault, DatabaseNotReady) else problems).append(fault.message)
    if start.knows_database and start.knows({"host", "api_keys", "allow_open"}):
        problems += exposure_problems(start.settings, reads_database=fault is None)
    problems += [*_address_problems(start, address), *start.problems]
    return Report(tuple(dict.fromkeys(problems)), tuple(notices), teams.summary)


def with_all_problems(
    start: Start, error: ConfigurationError | None = None, *, address: Address
) -> ConfigurationError:
    """Return the error with everything that would prevent a start, a line each, and with that of ``error``."""
    problems = check_start(start, address=address, waits=False).problems
    lines = error.message.splitlines() if error is not None else ()
    return ConfigurationError("\n".join(dict.fromkeys((*problems, *lines))))


def _team_report(start: Start) -> Report:
    if start.has_environment:
        return check_configured_teams(start.settings, environment=start.variables)
    # The files refer to variables that are not known.
    paths = (start.settings.teams, start.settings.models)
    missing = os.strerror(errno.ENOENT)
    lines = [f"{path}: cannot be read: {missing}" for path in paths if path is not None and not path.exists()]
    return Report(tuple(lines), (), ())


def _setting_problems(start: Start) -> Iterator[str]:
    for check, names in _CHECKS:
        if start.knows(names):
            yield from check(start.settings)


def _address_problems(start: Start, address: Address) -> Iterator[str]:
    if address == "none" or not start.knows({"host"}):
        return
    # Port 0 is any free port.
    port = start.settings.port if address == "port" and start.knows({"port"}) else 0
    try:
        with bound_sockets(start.settings.host, port):
            pass
    except ConfigurationError as error:
        yield error.message
