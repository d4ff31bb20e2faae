"""The command ``handoff-proxy``: serve, migrate, check."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from proxy.app import VERSION, check_teams_at, create_app, migrate_database, prepare
from proxy.errors import ConfigurationError
from proxy.serving import serve_forever
from proxy.settings import Settings, load_settings, variables
from proxy.telemetry import configure_logging

_SECRET = ("openai_api_key", "api_keys", "database_url")
"""Not taken as flags: everyone on the machine can read the flags of a process."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _with_settings(command: Command) -> Command:
    """Give a command a flag for every setting that is no secret; unset flags leave the environment's word."""
    names = {field: variable for variable, field in reversed(list(variables().items()))}
    for field in reversed(list(Settings.model_fields)):
        if field not in _SECRET:
            flag = f"--{field.replace('_', '-')}"
            option = click.option(
                flag, field, default=None, metavar="VALUE", help=f"The same as {names[field]}."
            )
            command = option(command)
    return command


@click.group(help=__doc__)
@click.version_option(VERSION, prog_name="handoff-proxy")
def main() -> None:
    """Group the commands."""


@main.command()
@_with_settings
def serve(**flags: Any) -> None:
    """Serve the teams; settings come from flags, the environment and .env, in this order."""
    with _complaints():
        settings = load_settings(**flags)
        configure_logging(settings.log_level)
        prepare(settings)
        app = create_app(settings)
    serve_forever(app, settings)


@main.command()
@_with_settings
def migrate(**flags: Any) -> None:
    """Bring the database to this version's schema."""
    with _complaints():
        settings = load_settings(**flags)
        migrate_database(settings)
    click.echo("The database is up to date.")


@main.command()
@click.argument("path", type=click.Path(path_type=Path), required=False)
def check(path: Path | None) -> None:
    """Check a team file, or a folder of them, without serving; PROXY_TEAMS or the bundled team when not given."""
    with _complaints():
        settings = load_settings(teams=path)
        report = check_teams_at(settings)
    for line in (*report.problems, *report.notices, *report.summary):
        click.echo(line)
    if report.problems:
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
