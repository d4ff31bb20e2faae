"""The command ``handoff-proxy``: serve, migrate, check, mcp.

A command imports its own parts when it runs: those of the server take a second, which help, a check and settings that
are refused need not wait for.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from proxy.auth import Terms
from proxy.errors import ConfigurationError
from proxy.log_config import configure_logging
from proxy.messages import EventsMode
from proxy.settings import Settings, environment, flag_of, form_of, load_settings, misspelt, variables_of
from proxy.supervisor import Facts, Supervisor

VERSION = version("handoff-proxy")
logger = logging.getLogger(__name__)

_SECRET = ("openai_api_key", "api_keys", "database_url", "redis_url")
"""Not taken as flags: everyone on the machine can read the flags of a process."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _flags(*names: str) -> Callable[[Command], Command]:
    """Give a command a flag for each of these settings; flags that are not given leave the environment's word."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            field = Settings.model_fields[name]
            meaning = (field.description or "").removesuffix(".")
            command = click.option(
                flag_of(name),
                name,
                metavar="VALUE",
                help=f"{meaning}: {form_of(field)} [{variables_of(field)[0]}]",
            )(command)
        return command

    return decorate


@click.group()
@click.version_option(VERSION, prog_name="handoff-proxy", message="%(prog)s %(version)s")
def main() -> None:
    """Serve teams of agents as models of an OpenAI-compatible chat completions API."""


@main.command()
@_flags(*(name for name in Settings.model_fields if name not in _SECRET))
def serve(**flags: Any) -> None:
    """Serve the teams.

    Settings come from flags, the environment and .env, in this order. Keys and the database's URL have no flags, since
    everyone on the machine can read those of a process: set OPENAI_API_KEY, PROXY_API_KEYS and PROXY_DATABASE_URL.
    """
    with _complaints():
        settings = load_settings(**flags)
        configure_logging(settings.log_level, stream_events=settings.stream_events)
        variables = environment()
        for sentence in misspelt(variables):
            logger.warning(sentence)

        # Before prepare(): a server that runs on this port must not have its database migrated.
        from proxy.server import LATEST, bound_sockets, url_of
        from proxy.worker import serve_process, serve_worker, shared_counters

        with ExitStack() as stack:
            try:
                sockets = stack.enter_context(bound_sockets(settings.host, settings.port))
            except ConfigurationError as error:
                raise _with_team_file_errors(error, settings, variables) from None
            announce = partial(_announce, url_of(settings.host, sockets))
            if settings.workers == 1:
                serve_process(settings, variables, sockets, announce)
                return
            supervisor = Supervisor(
                partial(serve_worker, flags),
                sockets,
                settings.workers,
                stop_time_limit=settings.shutdown_grace + LATEST + 5,
                on_ready=announce,
                on_exit=stack.enter_context(shared_counters()),
            )
            sys.exit(supervisor.run())


def _with_team_file_errors(
    error: ConfigurationError, settings: Settings, variables: Mapping[str, str]
) -> ConfigurationError:
    """Return the error with those of the team files before it, so that one start reports both."""
    from proxy.team_check import check_configured_teams

    problems = check_configured_teams(settings, environment=variables).problems
    return ConfigurationError("\n".join((*problems, error.message)))


def _announce(url: str, facts: Facts) -> None:
    """Report what is served where: as fields in the log, and as text on standard output."""
    teams, models = facts["teams"], facts["models"]
    logger.info("serving", extra={"url": f"{url}/v1", "teams": teams, "models": models, "version": VERSION})
    click.echo(f"handoff-proxy {VERSION} listens on {url}/v1")
    click.echo(f"  page: {url}/")
    click.echo(f"  teams: {', '.join(teams)}")
    for name, model in models.items():
        click.echo(f"  model {name}: {model}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=Path("."))
def init(folder: Path) -> None:
    """Write a commented team file and .env to FOLDER, by default the current folder.

    Existing files are not overwritten: then nothing is written, and the exit code is 2.
    """
    from proxy.teamfiles.templates import write_templates

    with _complaints():
        paths = write_templates(folder)
    for path in paths:
        click.echo(f"wrote {path}")
    change = "" if folder == Path(".") else f"cd {folder} && "
    click.echo(f"Next: {change}handoff-proxy serve")


@main.command()
@_flags("data_dir")
def migrate(**flags: Any) -> None:
    """Bring the database to this version's schema.

    The database is the one of PROXY_DATABASE_URL, or the SQLite file in the data folder.
    """
    from proxy.app import migrate_database

    with _complaints():
        migrate_database(load_settings(**flags))
    click.echo("The database is up to date.")


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--connect", is_flag=True, help="Call each model for a tool call and a short answer.")
def check(path: Path | None, connect: bool) -> None:
    """Check a team file, or a folder of them, without serving.

    Without PATH, those of PROXY_TEAMS or the bundled teams. Ends with 0 when they can be served, and with 1 when they
    have errors: one line for each, with file and line. With --connect, also with 1 when a model does not answer.
    """
    import asyncio

    from proxy.team_check import check_configured_teams, check_connections

    with _complaints():
        settings = load_settings(teams=path)
        report = check_configured_teams(settings, environment=environment())
    _tell((*report.problems, *report.notices, *report.summary), is_well=not report.problems)
    if connect:
        # Failures are part of the report.
        configure_logging("CRITICAL")
        with _complaints():
            connections = asyncio.run(check_connections(settings, environment=environment()))
        _tell(connections.lines, is_well=connections.is_ok)


@main.group()
def mcp() -> None:
    """Pin the tools of MCP servers, and see what has become of them.

    PATH is a team file, or a folder of them; without it, those of PROXY_TEAMS. The lock file is beside them.
    """
    # What the SDK would print by itself holds what servers wrote.
    configure_logging("ERROR")


@mcp.command("check")
@click.argument("path", type=click.Path(path_type=Path), required=False)
def mcp_check(path: Path | None) -> None:
    """Ask the MCP servers for their tools, and compare them with what is pinned.

    Ends with 0 when every server answers and every tool is as it was pinned, and with 1 when not.
    """
    from proxy.teamfiles.mcp_pins import check_pins

    with _complaints():
        audit = check_pins(load_settings(teams=path), environment())
    _tell(audit.lines, is_well=audit.is_ok)


@mcp.command("pin")
@click.argument("path", type=click.Path(path_type=Path), required=False)
def mcp_pin(path: Path | None) -> None:
    """Accept the tools of the MCP servers as they are now, and write them into the lock file.

    Agents are offered only what is pinned. Look through what is told: a description is an instruction to the model.
    Ends with 1 when a server does not answer; what was pinned of it stays.
    """
    from proxy.teamfiles.mcp_pins import write_pins

    with _complaints():
        audit = write_pins(load_settings(teams=path), environment())
    _tell(audit.lines, is_well=audit.is_ok)


@main.group()
def keys() -> None:
    """Make keys for callers, list and revoke them.

    They are kept in the database: the one of PROXY_DATABASE_URL, or the SQLite file in the data folder. What is changed
    holds for running servers within a second.
    """


@keys.command("create")
@click.argument("name")
@click.option(
    "--events", type=click.Choice(get_args(EventsMode)), help="What its answers tell beside the answer."
)
@click.option("--requests-per-minute", type=click.IntRange(1), help="Requests in a minute.")
@click.option("--tokens-per-minute", type=click.IntRange(1), help="Tokens in a minute.")
@click.option("--models", help="Teams and models that it may ask, separated by commas.")
@click.option("--expires-days", type=click.FloatRange(0, min_open=True), help="Days for which it is good.")
@_flags("data_dir")
def keys_create(
    name: str,
    events: EventsMode | None,
    requests_per_minute: int | None,
    tokens_per_minute: int | None,
    models: str | None,
    expires_days: float | None,
    **flags: Any,
) -> None:
    """Make a key and print it: this once, for only a digest of it is kept.

    NAME is for you, and stands in the log beside what is asked with the key.
    """
    from proxy.key_admin import create_key

    allowed = None if models is None else tuple(one.strip() for one in models.split(",") if one.strip())
    terms = Terms(events, requests_per_minute, tokens_per_minute, allowed)
    with _complaints():
        key, kept = create_key(load_settings(**flags), name, terms, expires_days=expires_days)
    click.echo(f"id {kept.id}, {kept.name}. The key, which is not shown again:", err=True)
    click.echo(key)


@keys.command("list")
@_flags("data_dir")
def keys_list(**flags: Any) -> None:
    """List all keys: their public parts, names and terms."""
    from proxy.key_admin import described_keys

    with _complaints():
        lines = described_keys(load_settings(**flags))
    for line in lines:
        click.echo(line)


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@_flags("data_dir")
def keys_revoke(key_id: str, **flags: Any) -> None:
    """Revoke the key with this id for good. Ends with 1 when there is none that was not."""
    from proxy.key_admin import revoke_key

    with _complaints():
        is_done = revoke_key(load_settings(**flags), key_id)
    _tell(
        [f"{key_id} is revoked." if is_done else f"There is no key {key_id} that was not revoked."],
        is_well=is_done,
    )


def _tell(lines: Sequence[str], *, is_well: bool) -> None:
    for line in lines:
        click.echo(line)
    if not is_well:
        sys.exit(1)


class _complaints:  # noqa: N801 - reads as a word of the with statement
    """Tell what the operator has to mend, without a trace, and end with status 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ConfigurationError):
            click.echo(error.message, err=True)
            sys.exit(2)


if __name__ == "__main__":
    main()
