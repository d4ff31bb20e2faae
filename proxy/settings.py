"""Everything an operator can set, read once from the environment and ``.env``; nothing else reads the environment.

Every variable is described in ``docs/configuration.md``; a test keeps the two together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from proxy.errors import ConfigurationError
from proxy.messages import EventsMode

ENV_FILE = ".env"
"""Read from the working folder when it is there."""

_DATABASE = re.compile(r"(sqlite|postgres|postgresql)(\+\w+)?://.+")
_REDIS = re.compile(r"rediss?://\S+")
_VISIBLE = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Form:
    """How a value is written, said so that it fits behind "should be"."""

    wanted: str


def _split(value: Any) -> Any:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _secret(pattern: re.Pattern[str]) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        if not pattern.fullmatch(value.get_secret_value()):
            raise ValueError("not of the wanted form")
        return value

    return AfterValidator(check)


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), Form("a number of seconds above 0")]
Count = Annotated[int, Field(ge=1), Form("a whole number from 1 up")]
Place = Annotated[Path, AfterValidator(Path.expanduser), Form("a path")]
ServiceUrl = Annotated[
    str,
    Field(pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$"),
    Form("an address like https://host/path, without user, password or query"),
]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"), Form("the name of a header")]
HeaderNames = Annotated[
    tuple[HeaderName, ...],
    NoDecode,
    BeforeValidator(_split),
    Form("names of headers, separated by commas"),
]
Keys = Annotated[
    tuple[Annotated[SecretStr, _secret(_VISIBLE)], ...],
    NoDecode,
    BeforeValidator(_split),
    Field(min_length=1),
    Form("keys of visible ASCII characters, separated by commas"),
]
Origins = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^\s/]+)$")], ...],
    NoDecode,
    BeforeValidator(_split),
    Form("origins like https://chat.example.com, or *, separated by commas"),
]
HostNames = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[^\s/:]+$")], ...],
    NoDecode,
    BeforeValidator(_split),
    Form("names of hosts without port, separated by commas"),
]
Names = Annotated[
    tuple[Annotated[str, Field(pattern=r"^\S+$")], ...],
    NoDecode,
    BeforeValidator(_split),
    Form("names, separated by commas"),
]
TeamName = Annotated[
    Annotated[str, Field(pattern=r"^\S+$")] | None, Form("the name of a team that is served")
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_upper),
    Form("DEBUG, INFO, WARNING, ERROR or CRITICAL"),
]


def _setting(meaning: str, *variables: str) -> Any:
    alias = variables[0] if len(variables) == 1 else AliasChoices(*variables)
    return Field(validation_alias=alias, description=meaning)


class Settings(BaseSettings):
    """The settings, frozen. Field names are the variables in lower case without ``PROXY_``.

    Made by ``load_settings``; made directly, values are given under the names of their variables.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        # Without this, variables named like a field (DATABASE_URL, TEAMS) would count too.
        case_sensitive=True,
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        validate_default=False,
    )

    host: Annotated[
        str,
        Field(pattern=r"^[^\s/]+$"),
        Form("an address or the name of a host"),
        _setting("Where to listen.", "PROXY_HOST", "HOST"),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535),
        Form("a whole number from 0 to 65535"),
        _setting("Port to listen on; 0 takes a free one.", "PROXY_PORT", "PORT"),
    ] = 8000
    workers: Annotated[
        Count, _setting("Processes that serve; more than one are supervised.", "PROXY_WORKERS")
    ] = 1
    data_dir: Annotated[Place, _setting("Folder for the database and what tools keep.", "PROXY_DATA_DIR")] = (
        Path("./data")
    )
    database_url: Annotated[
        Annotated[SecretStr, _secret(_DATABASE)] | None,
        Form("a URL like sqlite:///folder/file.sqlite or postgresql://user:password@host:5432/name"),
        _setting("Where conversations are kept.", "PROXY_DATABASE_URL"),
    ] = None
    teams: Annotated[
        Place | None, Form("a path"), _setting("A team file, or a folder of them.", "PROXY_TEAMS")
    ] = None

    models: Annotated[
        Place | None,
        Form("a path"),
        _setting("File with models for all teams, or with one default model.", "PROXY_MODELS"),
    ] = None

    openai_api_key: Annotated[
        Annotated[SecretStr, _secret(_VISIBLE)] | None,
        Form("a key of visible ASCII characters"),
        _setting("The key for the default model's provider.", "OPENAI_API_KEY"),
    ] = None
    openai_base_url: Annotated[
        str,
        Field(pattern=r"^https?://[^\s/]\S*$"),
        Form("an address that begins with http:// or https://"),
        _setting("Where the default model is asked.", "OPENAI_BASE_URL"),
    ] = "https://api.openai.com/v1"
    openai_model: Annotated[
        str,
        Field(pattern=r"\S"),
        Form("the name of a model"),
        _setting("The default model.", "OPENAI_MODEL"),
    ] = "gpt-5-mini"
    openai_auth: Annotated[
        Literal["key", "entra"],
        Form("key or entra"),
        _setting("How to sign in at the default model's provider.", "OPENAI_AUTH"),
    ] = "key"
    pass_through: Annotated[
        bool,
        Form("true or false"),
        _setting("Serve the models of the default model's provider too.", "PROXY_PASS_THROUGH"),
    ] = False

    log_level: Annotated[LogLevel, _setting("What is logged.", "LOG_LEVEL")] = "INFO"
    stream_events: Annotated[
        bool,
        Form("true or false"),
        _setting("Log every event of every turn, whatever the log level.", "PROXY_STREAM_EVENTS"),
    ] = False
    stream_events_text: Annotated[
        bool,
        Form("true or false"),
        _setting("Log what was written with each event, too.", "PROXY_STREAM_EVENTS_TEXT"),
    ] = False

    connect_timeout: Annotated[
        Seconds, _setting("Time to connect to a model, in seconds.", "PROXY_CONNECT_TIMEOUT")
    ] = 5.0
    first_token_timeout: Annotated[
        Seconds, _setting("Time to a model's first token, in seconds.", "PROXY_FIRST_TOKEN_TIMEOUT")
    ] = 60.0
    idle_timeout: Annotated[
        Seconds, _setting("Time between two tokens of a model, in seconds.", "PROXY_IDLE_TIMEOUT")
    ] = 60.0
    turn_time_limit: Annotated[
        Seconds, _setting("Time for a whole turn, in seconds.", "PROXY_TURN_TIME_LIMIT")
    ] = 600.0
    shutdown_grace: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        Form("a number of seconds from 0 up"),
        _setting("Time that running turns get when the server stops, in seconds.", "PROXY_SHUTDOWN_GRACE"),
    ] = 10.0
    keep_alive_interval: Annotated[
        Seconds,
        _setting("Silence before a stream gets a comment, in seconds.", "PROXY_KEEP_ALIVE_INTERVAL"),
    ] = 15.0
    stalled_client_timeout: Annotated[
        Seconds,
        _setting(
            "Time that a client may take to read what it was sent, in seconds.",
            "PROXY_STALLED_CLIENT_TIMEOUT",
        ),
    ] = 60.0
    body_timeout: Annotated[
        Seconds,
        _setting("Time in which a request's body has to come, in seconds.", "PROXY_BODY_TIMEOUT"),
    ] = 30.0

    max_body_bytes: Annotated[Count, _setting("Size of a request, in bytes.", "PROXY_MAX_BODY_BYTES")] = (
        4 * 1024 * 1024
    )
    max_messages: Annotated[Count, _setting("Messages of a request.", "PROXY_MAX_MESSAGES")] = 2000
    max_answer_bytes: Annotated[
        Count, _setting("Size of one model's answer, in bytes.", "PROXY_MAX_ANSWER_BYTES")
    ] = 8 * 1024 * 1024
    max_tool_result_bytes: Annotated[
        Count, _setting("Size of one tool's result, in bytes.", "PROXY_MAX_TOOL_RESULT_BYTES")
    ] = 64 * 1024
    max_client_tools: Annotated[
        Count,
        _setting("Tools of a caller beyond which they count as sent uninvited.", "PROXY_MAX_CLIENT_TOOLS"),
    ] = 32

    api_keys: Annotated[Keys, _setting("Keys of which a caller has to bring one.", "PROXY_API_KEYS")] = ()
    redis_url: Annotated[
        Annotated[SecretStr, _secret(_REDIS)] | None,
        Form("an address like redis://host:6379/0"),
        _setting("Where requests and tokens are counted for all workers.", "PROXY_REDIS_URL"),
    ] = None
    requests_per_minute: Annotated[
        Count | None,
        Form("a whole number from 1 up"),
        _setting("Requests of one key in a minute.", "PROXY_REQUESTS_PER_MINUTE"),
    ] = None
    tokens_per_minute: Annotated[
        Count | None,
        Form("a whole number from 1 up"),
        _setting("Tokens of one key in a minute.", "PROXY_TOKENS_PER_MINUTE"),
    ] = None
    max_running_turns: Annotated[
        Count | None,
        Form("a whole number from 1 up"),
        _setting("Turns that run at a time in one process.", "PROXY_MAX_RUNNING_TURNS"),
    ] = None
    max_log_bytes: Annotated[
        Count | None,
        Form("a whole number from 1 up"),
        _setting("Memory of the logs of turns in one process, in bytes.", "PROXY_MAX_LOG_BYTES"),
    ] = None
    metrics: Annotated[bool, Form("true or false"), _setting("Tell counts at /metrics.", "PROXY_METRICS")] = (
        False
    )
    allow_open: Annotated[
        bool,
        Form("true or false"),
        _setting("Serve other machines without keys.", "PROXY_ALLOW_OPEN"),
    ] = False
    cors_origins: Annotated[
        Origins,
        _setting("Origins of web pages that may call, beside those of this machine.", "PROXY_CORS_ORIGINS"),
    ] = ()
    allowed_hosts: Annotated[
        HostNames,
        _setting("Names under which this machine is called, beside its own.", "PROXY_ALLOWED_HOSTS"),
    ] = ()

    handoff_events: Annotated[
        EventsMode,
        Form("none, extension, reasoning or all"),
        _setting("What answers tell of the team's work, beside the answer.", "PROXY_HANDOFF_EVENTS"),
    ] = "all"
    handoff_details: Annotated[
        bool,
        Form("true or false"),
        _setting("Tell what agents and tools wrote, too.", "PROXY_HANDOFF_DETAILS"),
    ] = True
    status_lines: Annotated[
        Literal["auto", "always", "never"],
        Form("auto, always or never"),
        _setting("Tell Open WebUI's status line, too.", "PROXY_STATUS_LINES"),
    ] = "auto"

    conversation_headers: Annotated[
        HeaderNames,
        _setting("Headers in which frontends name a conversation.", "PROXY_CONVERSATION_HEADERS"),
    ] = ("X-OpenWebUI-Chat-Id",)
    user_headers: Annotated[
        HeaderNames, _setting("Headers in which frontends name a user.", "PROXY_USER_HEADERS")
    ] = ("X-OpenWebUI-User-Id",)
    task_header: Annotated[HeaderName, _setting("Header that marks side requests.", "PROXY_TASK_HEADER")] = (
        "X-Task"
    )
    on_disconnect: Annotated[
        Literal["cancel", "detach"],
        Form("cancel or detach"),
        _setting("What happens to a turn whose client leaves.", "PROXY_ON_DISCONNECT"),
    ] = "cancel"
    strict_parameters: Annotated[
        bool,
        Form("true or false"),
        _setting(
            "Reject parameters that are unknown, or that the models of the team do not support.",
            "PROXY_STRICT_PARAMETERS",
        ),
    ] = False
    older_team: Annotated[
        TeamName,
        _setting("The team that answers older clients of /chat/completions.", "PROXY_OLDER_TEAM"),
    ] = None
    older_chat_team: Annotated[
        TeamName, _setting("The team that answers /chat, /chat/stream and /ws.", "PROXY_OLDER_CHAT_TEAM")
    ] = None
    older_ask_team: Annotated[
        TeamName, _setting("The team that answers /ask-stream.", "PROXY_OLDER_ASK_TEAM")
    ] = None
    agents_over_http: Annotated[
        bool,
        Form("true or false"),
        _setting("Let callers make agents and teams.", "PROXY_AGENTS_OVER_HTTP"),
    ] = True
    agent_tools: Annotated[
        Names | None,
        Form("names of tools, separated by commas"),
        _setting("Tools that agents of callers may have.", "PROXY_AGENT_TOOLS"),
    ] = None
    max_agents: Annotated[Count, _setting("Agents and teams that a caller may make.", "PROXY_MAX_AGENTS")] = (
        100
    )
    weather_url: Annotated[
        ServiceUrl, _setting("Where get_weather asks for forecasts.", "PROXY_WEATHER_URL")
    ] = "https://api.open-meteo.com"
    geocoding_url: Annotated[
        ServiceUrl, _setting("Where get_weather looks up places.", "PROXY_GEOCODING_URL")
    ] = "https://geocoding-api.open-meteo.com"
    stock_url: Annotated[ServiceUrl, _setting("Where get_stock_price asks.", "PROXY_STOCK_URL")] = (
        "https://query1.finance.yahoo.com"
    )
    searxng_url: Annotated[
        ServiceUrl | None,
        Form("an address like https://host/path, without user, password or query"),
        _setting("The SearXNG server that search_web asks.", "PROXY_SEARXNG_URL"),
    ] = None
    retention_days: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        Form("a number of days above 0"),
        _setting("Age at which conversations are removed, in days.", "PROXY_RETENTION_DAYS"),
    ] = None

    @property
    def database(self) -> str:
        """The database's URL in SQLAlchemy's form: the one set, or SQLite in the data folder."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.database_file.resolve()}"

    @property
    def database_file(self) -> Path:
        """The file of the database where none is set."""
        return self.data_dir / "handoff-proxy.sqlite"


def load_settings(*, env_file: Path | str | None = ENV_FILE, **overrides: Any) -> Settings:
    """Read the settings: ``overrides`` (by field) win over the environment, which wins over ``env_file``.

    None and ``""`` count as not given, wherever they stand.

    Raises:
        ConfigurationError: With one line for every bad value, naming the variable or flag and the wanted form, never
            the value itself.
    """
    given = {name: value for name, value in overrides.items() if value is not None and value != ""}
    named = {variables_of(Settings.model_fields[name])[0]: value for name, value in given.items()}
    variables = environment(env_file)
    try:
        # A file that cannot be read was told by now.
        return Settings(**{"_env_file": env_file, **named})
    except ValidationError as error:
        bad = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors(include_input=False))
        fields = {variables_of(field)[0]: name for name, field in Settings.model_fields.items()}
        lines = [_complaint(fields[variable], given, variables) for variable in bad]
        raise ConfigurationError("\n".join(lines)) from None


def environment(env_file: Path | str | None = ENV_FILE) -> Mapping[str, str]:
    """Return the variables of ``env_file``, if there is one, and over them those of the environment.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        found = dotenv_values(env_file) if env_file is not None else {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigurationError(f"{env_file}: cannot be read ({reason})") from None
    return {**{name: value for name, value in found.items() if value is not None}, **os.environ}


def variables_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the environment variables that set a field; the first is the one it is known by."""
    alias = field.validation_alias
    return tuple(str(one) for one in (alias.choices if isinstance(alias, AliasChoices) else (alias,)))


def form_of(field: FieldInfo) -> str:
    """Return how a field's value is written; it fits behind "should be"."""
    return next(one.wanted for one in field.metadata if isinstance(one, Form))


def misspelt(variables: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none."""
    known = [name for field in Settings.model_fields.values() for name in variables_of(field)]
    sentences = []
    for name in sorted(variables):
        if name.startswith("PROXY_") and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.8)
            if near:
                sentences.append(f"{name} is not a setting, did you mean {near[0]}?")
    return sentences


def _complaint(name: str, given: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    """Say what is wrong with a field's value, where it was set."""
    field = Settings.model_fields[name]
    choices = variables_of(field)
    place = next((one for one in choices if variables.get(one)), choices[0])
    return f"{flag_of(name) if name in given else place}: should be {form_of(field)}"


def flag_of(name: str) -> str:
    """Return the flag of ``handoff-proxy serve`` that sets a field."""
    return f"--{name.replace('_', '-')}"
