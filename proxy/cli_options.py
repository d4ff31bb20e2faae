"""Flags for the settings: in groups, with defaults, and booleans as ``--name`` and ``--no-name``.

A flag that is not given is None, so that the environment applies. Values are checked when the settings are read, which
reports all invalid ones at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from proxy.settings import Settings, flag_of, form_of, variables_of

SECRET = ("openai_api_key", "api_keys", "database_url", "redis_url", "provider_proxy")
"""Settings without flags: every user of the machine can read the command line of a process."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Listening address": ("host", "port", "workers", "tls_certificate", "tls_key"),
    "Teams and models": ("teams", "models", "openai_base_url", "openai_model", "openai_auth", "pass_through"),
    "Connections to model providers": (
        "provider_tls_ca",
        "provider_tls_certificate",
        "provider_tls_key",
        "provider_tls_minimum",
    ),
    "Storage": ("data_dir", "retention_days"),
    "Access": ("allow_open", "separate_keys", "allowed_hosts", "cors_origins"),
    "Limits": (
        "requests_per_minute",
        "tokens_per_minute",
        "max_running_turns",
        "provider_connections",
        "max_log_bytes",
        "max_body_bytes",
        "max_messages",
        "max_answer_bytes",
        "max_tool_result_bytes",
        "max_client_tools",
    ),
    "Timeouts": (
        "connect_timeout",
        "first_token_timeout",
        "idle_timeout",
        "turn_time_limit",
        "shutdown_grace",
        "keep_alive_interval",
        "stalled_client_timeout",
        "body_timeout",
    ),
    "Responses": ("handoff_events", "handoff_details", "status_lines", "strict_parameters"),
    "Frontends": (
        "conversation_headers",
        "user_headers",
        "task_header",
        "on_disconnect",
        "disconnect_grace",
    ),
    "Custom agents": ("agents_over_http", "agent_tools", "max_agents"),
    "Legacy endpoints": ("older_team", "older_content", "older_chat_team", "older_ask_team"),
    "Built-in tools": ("weather_url", "geocoding_url", "stock_url", "searxng_url"),
    "Logs, metrics and traces": (
        "log_level",
        "stream_events",
        "stream_events_text",
        "metrics",
        "tracing",
        "tracing_content",
    ),
    "Runtime": ("agent_runtime",),
}
"""The settings with flags, by the heading of their group in ``handoff-proxy serve --help``."""

Command = TypeVar("Command", bound=Callable[..., Any])


def setting_flags(*names: str) -> Callable[[Command], Command]:
    """Add a flag to a command for each of the settings."""

    def decorate(command: Command) -> Command:
        for name in reversed(names):
            field = Settings.model_fields[name]
            command = click.option(
                *_declarations(name, field), name, default=None, help=_help(field), **_kind(name, field)
            )(command)
        return command

    return decorate


class GroupedCommand(click.Command):
    """A command whose help lists its options in the groups of ``GROUPS``."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, group by group; those of no group come last."""
        records = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        grouped = {name for names in GROUPS.values() for name in names}
        rest = tuple(name for name in records if name not in grouped)
        for heading, names in {**GROUPS, "Other": rest}.items():
            rows = [record for name in names if (record := records.get(name)) is not None]
            if rows:
                with formatter.section(heading):
                    formatter.write_dl(rows, col_max=34)


def _declarations(name: str, field: FieldInfo) -> tuple[str, ...]:
    flag = flag_of(name)
    return (f"{flag}/--no-{flag.removeprefix('--')}",) if field.annotation is bool else (flag,)


def _kind(name: str, field: FieldInfo) -> dict[str, Any]:
    return {} if field.annotation is bool else {"metavar": _metavar(name, field)}


def _metavar(name: str, field: FieldInfo) -> str:
    kinds = _kinds(field)
    if get_origin(field.annotation) is Literal:
        return "|".join(map(str, kinds))
    form = form_of(field)
    if float in kinds:
        return "DAYS" if "days" in form else "SECONDS"
    if int in kinds:
        return "N"
    if Path in kinds:
        return "PATH"
    if name == "host":
        return "ADDRESS"
    if name.endswith("_url"):
        return "URL"
    return "LIST" if "separated by commas" in form else "VALUE"


def _kinds(field: FieldInfo) -> list[Any]:
    """Return the types of a field, or the values of a ``Literal``."""
    parts = get_args(field.annotation)
    # ``Annotated`` parts of an optional type have an origin.
    return [getattr(part, "__origin__", part) for part in parts] if parts else [field.annotation]


def _help(field: FieldInfo) -> str:
    kinds = _kinds(field)
    is_plain = bool in kinds or Path in kinds or get_origin(field.annotation) is Literal
    meaning = (field.description or "").removesuffix(".")
    shown = f"{variables_of(field)[0]}; default: {_default(field.default)}"
    return f"{meaning}{'' if is_plain else f': {form_of(field)}'} [{shown}]"


def _default(value: Any) -> str:
    match value:
        case None | ():
            return "unset"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
        case tuple():
            return ",".join(value)
        case _:
            return str(value)
