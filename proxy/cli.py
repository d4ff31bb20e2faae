"""The command line ``handoff-proxy``.

Commands import their modules when they run: importing the server takes a second, which ``--help``, ``check`` and errors
in settings do not need.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, get_args

import click

from proxy.auth import Terms
from proxy.cli_options import SECRET, GroupedCommand, setting_flags
from proxy.errors import ConfigurationError
from proxy.listen_sockets import bound_sockets, url_of
from proxy.log_config import configure_logging
from proxy.messages import EventsMode
from proxy.server_file import reload_servers, server_file
from proxy.settings import Settings, environment, load_settings

if TYPE_CHECKING:
    from proxy.start_check import Start
    from proxy.supervisor import Facts

VERSION = version("handoff-proxy")
logger = logging.getLogger(__name__)

RELOAD_TIME_LIMIT = 120.0
"""Seconds in which a server has to report the result of a reload."""

_DEMO = """\
  The demonstration answers without a language model. To use one, set OPENAI_API_KEY,
  or OPENAI_BASE_URL for a local server, and OPENAI_MODEL, and restart."""


@click.group()
@click.version_option(VERSION, prog_name="handoff-proxy", message="%(prog)s %(version)s")
def main() -> None:
    """Serve teams of agents as models of an OpenAI-compatible chat completions API."""


@main.command(cls=GroupedCommand, context_settings={"max_content_width": 110})
@setting_flags(*(name for name in Settings.model_fields if name not in SECRET))
def serve(**flags: Any) -> None:
    """Serve the teams.

    Settings are read from flags, the environment and .env, in this order. Secrets have no flags, because every user of
    the machine can read those of a process: set OPENAI_API_KEY, PROXY_API_KEYS, PROXY_DATABASE_URL,
    PROXY_PROVIDER_PROXY and PROXY_REDIS_URL in the environment or in .env.
    """
    # Before the database is opened: if a server is running on this port, its database must not be migrated.
    from proxy.start_check import Start, with_all_problems

    with _exit_on_error(), ExitStack() as stack:
        start = Start.read(**flags)
        if start.problems:
            raise with_all_problems(start, address="port")
        settings = start.settings
        configure_logging(settings.log_level, stream_events=settings.stream_events)
        for sentence in start.warnings:
            logger.warning(sentence)
        try:
            sockets = stack.enter_context(bound_sockets(settings.host, settings.port))
        except ConfigurationError as error:
            raise with_all_problems(start, error, address="port") from None
        _serve(start, flags, sockets, stack)


def _serve(start: Start, flags: Mapping[str, Any], sockets: Sequence[socket], stack: ExitStack) -> None:
    """Serve in this process, or as the supervisor of several; return or exit when a signal has ended it."""
    from proxy.settings_check import create_data_dir
    from proxy.start_check import with_all_problems
    from proxy.worker import serve_process, serve_worker, shared_counters

    settings = start.settings
    announce = partial(_announce, url_of(settings, sockets))
    if settings.workers == 1:
        serve_process(start, sockets, announce, reloads=True)
        return
    from proxy.supervisor import Supervisor

    try:
        create_data_dir(settings)
    except ConfigurationError as error:
        raise with_all_problems(start, error, address="none") from None
    own_file = stack.enter_context(server_file(settings.data_dir))
    supervisor = Supervisor(
        partial(serve_worker, flags),
        sockets,
        settings.workers,
        stop_time_limit=settings.forced_close_after + 5,
        on_ready=announce,
        on_exit=stack.enter_context(shared_counters()),
        on_restarted=own_file.report,
    )
    sys.exit(supervisor.run())


def _announce(url: str, facts: Facts) -> None:
    """Report what is served where: as fields in the log, and as text on standard output."""
    from proxy.teamfiles.summary import DEMO_SUMMARY

    teams, models = facts["teams"], facts["models"]
    logger.info("serving", extra={"url": f"{url}/v1", "teams": teams, "models": models, "version": VERSION})
    click.echo(f"handoff-proxy {VERSION} listens on {url}/v1")
    click.echo(f"  page: {url}/")
    click.echo(f"  API documentation: {url}/docs")
    click.echo(f"  teams: {', '.join(teams)}")
    for name, model in models.items():
        click.echo(f"  model {name}: {model}")
    if DEMO_SUMMARY in models.values():
        click.echo(_DEMO)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("."))
def init(folder: Path) -> None:
    """Write a commented team file, a tool and .env to FOLDER, by default the current folder.

    Existing files are not overwritten: then nothing is written, and the exit code is 2.
    """
    from proxy.teamfiles.templates import write_templates

    with _exit_on_error():
        paths = write_templates(folder)
    for path in paths:
        click.echo(f"wrote {path}")
    change = "" if folder == Path(".") else f"cd {folder} && "
    click.echo(f"Next: {change}handoff-proxy serve")


@main.command()
@setting_flags("data_dir")
def migrate(**flags: Any) -> None:
    """Migrate the database to the schema of this version.

    The database is PROXY_DATABASE_URL, or the SQLite file in the data directory.
    """
    from proxy.app import migrate_database

    with _exit_on_error():
        migrate_database(load_settings(**flags))
    click.echo("The database is up to date.")


@main.command()
@setting_flags("data_dir")
def reload(**flags: Any) -> None:
    """Let the running servers of the data folder use the present team files.

    A server checks the files before, and keeps its teams if they have errors. One with several workers replaces the
    workers one after the other. SIGHUP to the server does the same. The exit code is 1 if a server keeps its teams.
    """
    with _exit_on_error():
        settings = load_settings(**flags)
        results = reload_servers(settings.data_dir, time_limit=RELOAD_TIME_LIMIT)
        if not results:
            raise ConfigurationError(f"no server runs with the data folder {settings.data_dir}")
    lines = []
    for result in results:
        lines += [f"server {result.pid}: " + ("reloaded" if result.problem is None else result.problem)]
    _print_and_exit(lines, is_ok=all(result.problem is None for result in results))


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--connect", is_flag=True, help="Call each model for a tool call and a short answer.")
def check(path: Path | None, connect: bool) -> None:
    """Validate a team file, or a folder of them, and the settings, without serving.

    Without PATH, PROXY_TEAMS or the bundled teams are validated. The exit code is 0 if there are no errors, and 1 if
    there are: one line per error, with file and line. With --connect, it is also 1 if a model does not respond.
    """
    import asyncio

    from proxy.start_check import Start, check_start, with_all_problems
    from proxy.team_check import check_connections

    with _exit_on_error():
        start = Start.read(teams=path)
        if start.problems:
            raise with_all_problems(start, address="host")
        report = check_start(start, address="host")
    _print_and_exit((*report.problems, *report.notices, *report.summary), is_ok=not report.problems)
    if connect:
        # Failures are part of the report.
        configure_logging("CRITICAL")
        with _exit_on_error():
            connections = asyncio.run(check_connections(start.settings, environment=start.variables))
        _print_and_exit(connections.lines, is_ok=connections.is_ok)


@main.group()
def mcp() -> None:
    """Pin the tools of MCP servers, and check them for changes.

    PATH is a team file, or a folder of them; the default is PROXY_TEAMS. The lock file is in the same folder.
    """
    # Log messages of the SDK contain text from servers.
    configure_logging("ERROR")


@mcp.command("check")
@click.argument("path", type=click.Path(path_type=Path), required=False)
def mcp_check(path: Path | None) -> None:
    """Compare the tools of the MCP servers with the pinned ones.

    The exit code is 0 if every server responds and every tool matches its pin, else 1.
    """
    from proxy.teamfiles.mcp_pins import check_pins

    with _exit_on_error():
        audit = check_pins(load_settings(teams=path), environment())
    _print_and_exit(audit.lines, is_ok=audit.is_ok)


@mcp.command("pin")
@click.argument("path", type=click.Path(path_type=Path), required=False)
def mcp_pin(path: Path | None) -> None:
    """Accept the current tools of the MCP servers and write them to the lock file.

    Agents can use only pinned tools. Review the output: models follow tool descriptions as instructions. The exit code
    is 1 if a server does not respond; its pins are not changed.
    """
    from proxy.teamfiles.mcp_pins import write_pins

    with _exit_on_error():
        audit = write_pins(load_settings(teams=path), environment())
    _print_and_exit(audit.lines, is_ok=audit.is_ok)


@main.group()
def keys() -> None:
    """Create, list and revoke API keys.

    Keys are stored in the database: PROXY_DATABASE_URL, or the SQLite file in the data directory. Running servers apply
    changes within a second.
    """


@keys.command("create")
@click.argument("name")
@click.option(
    "--events",
    type=click.Choice(get_args(EventsMode)),
    help="Default of X-Handoff-Events for requests with the key.",
)
@click.option("--requests-per-minute", type=click.IntRange(1), help="Maximum requests per minute.")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Maximum tokens per minute.")
@click.option("--models", help="Allowed teams and models, separated by commas; all if not set.")
@click.option("--expires-days", type=click.FloatRange(0, min_open=True), help="Days until the key expires.")
@setting_flags("data_dir")
def keys_create(
    name: str,
    events: EventsMode | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    models: str | None,
    expires_days: float | None,
    **flags: Any,
) -> None:
    """Create an API key and print it. It cannot be shown again: only its digest is stored.

    NAME identifies the key in logs and in "keys list".
    """
    from proxy.key_admin import create_key

    allowed = None if models is None else tuple(one.strip() for one in models.split(",") if one.strip())
    terms = Terms(events, requests_per_minute, tokens_per_minute, allowed)
    with _exit_on_error():
        key, record = create_key(load_settings(**flags), name, terms, expires_days=expires_days)
    click.echo(f"id {record.id}, {record.name}. The key, which cannot be shown again:", err=True)
    click.echo(key)


@keys.command("list")
@setting_flags("data_dir")
def keys_list(**flags: Any) -> None:
    """List all API keys with id, name, status and limits."""
    from proxy.key_admin import describe_keys

    with _exit_on_error():
        lines = describe_keys(load_settings(**flags))
    for line in lines:
        click.echo(line)


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@setting_flags("data_dir")
def keys_revoke(key_id: str, **flags: Any) -> None:
    """Revoke the API key with this id permanently.

    The exit code is 1 if there is no such key or it is already revoked.
    """
    from proxy.key_admin import revoke_key

    with _exit_on_error():
        is_revoked = revoke_key(load_settings(**flags), key_id)
    _print_and_exit(
        [f"Revoked {key_id}." if is_revoked else f"No active key {key_id} found."],
        is_ok=is_revoked,
    )


def _print_and_exit(lines: Sequence[str], *, is_ok: bool) -> None:
    for line in lines:
        click.echo(line)
    if not is_ok:
        sys.exit(1)


class _exit_on_error:  # noqa: N801 - a context manager, named like a function
    """Print a configuration error without a traceback and exit with code 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigurationError):
            click.echo(error.message, err=True)
            sys.exit(2)


if __name__ == "__main__":
    main()
