"""The settings, read once from the environment and ``.env``. No other module reads the environment.

``docs/configuration.md`` documents every variable; a test compares it with this module.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from msgspec import Struct
from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from proxy.errors import ConfigurationError
from proxy.messages import EventsMode

ENV_FILE = ".env"
"""File in the working directory; optional."""

_DATABASE = re.compile(r"(sqlite|postgres|postgresql)(\+\w+)?://.+")
_REDIS = re.compile(r"rediss?://\S+")
FROM_ENVIRONMENT = "environment"
"""Value of ``provider_proxy`` for the proxy variables of the environment (``HTTPS_PROXY`` …)."""
_HTTP_PROXY = re.compile(
    r"environment|http://(?:[^\s/@:]+(?::[^\s/@]*)?@)?(?:\[[0-9A-Fa-f:.]+\]|[^\s/@:\[\]]+)(?::[0-9]{1,5})?/?"
)
_VISIBLE = re.compile(r"[!-~]+")


class ValueFormat(Struct, frozen=True):
    """Description of the format of a value, which continues the words "should be"."""

    expected: str


def _split(value: Any) -> Any:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("there is no such user") from None


def _secret(pattern: re.Pattern[str]) -> AfterValidator:
    def check(value: SecretStr) -> SecretStr:
        if not pattern.fullmatch(value.get_secret_value()):
            raise ValueError("invalid format")
        return value

    return AfterValidator(check)


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False), ValueFormat("a number of seconds above 0")]
Count = Annotated[int, Field(ge=1), ValueFormat("a whole number from 1 up")]
FilePath = Annotated[Path, AfterValidator(_expanded), ValueFormat("a path")]
ServiceUrl = Annotated[
    str,
    Field(pattern=r"^https?://[^\s/@?#]+(/[^\s?#]*)?$"),
    ValueFormat("an address like https://host/path, without user, password or query"),
]
HeaderName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"), ValueFormat("the name of a header")
]
HeaderNames = Annotated[
    tuple[HeaderName, ...],
    NoDecode,
    BeforeValidator(_split),
    ValueFormat("names of headers, separated by commas"),
]
Keys = Annotated[
    tuple[Annotated[SecretStr, _secret(_VISIBLE)], ...],
    NoDecode,
    BeforeValidator(_split),
    Field(min_length=1),
    ValueFormat("keys of visible ASCII characters, separated by commas"),
]
Origins = Annotated[
    tuple[Annotated[str, Field(pattern=r"^(\*|null|[A-Za-z][A-Za-z0-9+.-]*://[^\s/]+)$")], ...],
    NoDecode,
    BeforeValidator(_split),
    ValueFormat("origins like https://chat.example.com, or *, separated by commas"),
]
HostNames = Annotated[
    tuple[Annotated[str, Field(pattern=r"^[^\s/:]+$")], ...],
    NoDecode,
    BeforeValidator(_split),
    ValueFormat("names of hosts without port, separated by commas"),
]
Names = Annotated[
    tuple[Annotated[str, Field(pattern=r"^\S+$")], ...],
    NoDecode,
    BeforeValidator(_split),
    ValueFormat("names, separated by commas"),
]
TeamName = Annotated[
    Annotated[str, Field(pattern=r"^\S+$")] | None, ValueFormat("the name of a team that is served")
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_upper),
    ValueFormat("DEBUG, INFO, WARNING, ERROR or CRITICAL"),
]


def _setting(meaning: str, *variables: str) -> Any:
    alias = variables[0] if len(variables) == 1 else AliasChoices(*variables)
    return Field(validation_alias=alias, description=meaning)


class Settings(BaseSettings):
    """The settings, frozen. Field names are the names of the variables in lower case, without ``PROXY_``.

    Created by ``load_settings``; the constructor takes the names of the variables.
    """

    model_config = SettingsConfigDict(
        env_file=ENV_FILE,
        env_file_encoding="utf-8",
        # Otherwise variables with the name of a field (DATABASE_URL, TEAMS) would set it too.
        case_sensitive=True,
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        validate_default=False,
    )

    host: Annotated[
        str,
        Field(pattern=r"^[^\s/]+$"),
        ValueFormat("an address or the name of a host"),
        _setting("Address or host name to listen on.", "PROXY_HOST", "HOST"),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65535),
        ValueFormat("a whole number from 0 to 65535"),
        _setting("Port to listen on; 0 selects a free port.", "PROXY_PORT", "PORT"),
    ] = 8000
    tls_certificate: Annotated[
        FilePath | None,
        ValueFormat("a path"),
        _setting(
            "File with the TLS certificate and its chain, as PEM; enables HTTPS.", "PROXY_TLS_CERTIFICATE"
        ),
    ] = None
    tls_key: Annotated[
        FilePath | None,
        ValueFormat("a path"),
        _setting("File with the private key of the TLS certificate, as PEM.", "PROXY_TLS_KEY"),
    ] = None
    workers: Annotated[
        Count,
        _setting("Number of worker processes; several are started under a supervisor.", "PROXY_WORKERS"),
    ] = 1
    data_dir: Annotated[
        FilePath, _setting("Directory for the SQLite database and data of tools.", "PROXY_DATA_DIR")
    ] = Path("./data")
    database_url: Annotated[
        Annotated[SecretStr, _secret(_DATABASE)] | None,
        ValueFormat("a URL like sqlite:///folder/file.sqlite or postgresql://user:password@host:5432/name"),
        _setting("Database for conversations.", "PROXY_DATABASE_URL"),
    ] = None
    teams: Annotated[
        FilePath | None, ValueFormat("a path"), _setting("A team file, or a folder of them.", "PROXY_TEAMS")
    ] = None

    models: Annotated[
        FilePath | None,
        ValueFormat("a path"),
        _setting("File with models for all teams, or with one default model.", "PROXY_MODELS"),
    ] = None

    openai_api_key: Annotated[
        Annotated[SecretStr, _secret(_VISIBLE)] | None,
        ValueFormat("a key of visible ASCII characters"),
        _setting("API key for the provider of the default model.", "OPENAI_API_KEY"),
    ] = None
    openai_base_url: Annotated[
        str,
        Field(pattern=r"^https?://[^\s/]\S*$"),
        ValueFormat("an address that begins with http:// or https://"),
        _setting("Base URL of the default model.", "OPENAI_BASE_URL"),
    ] = "https://api.openai.com/v1"
    openai_model: Annotated[
        str,
        Field(pattern=r"\S"),
        ValueFormat("the name of a model"),
        _setting("Name of the default model.", "OPENAI_MODEL"),
    ] = "gpt-5-mini"
    openai_auth: Annotated[
        Literal["key", "entra"],
        ValueFormat("key or entra"),
        _setting("Authentication at the provider of the default model.", "OPENAI_AUTH"),
    ] = "key"
    pass_through: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting(
            "Serve all models of the default model's provider as passthrough models.", "PROXY_PASS_THROUGH"
        ),
    ] = False

    log_level: Annotated[LogLevel, _setting("Minimum level of log messages.", "LOG_LEVEL")] = "INFO"
    stream_events: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting("Log every event of every turn, at any log level.", "PROXY_STREAM_EVENTS"),
    ] = False
    stream_events_text: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting("Include text in logged events.", "PROXY_STREAM_EVENTS_TEXT"),
    ] = False

    connect_timeout: Annotated[
        Seconds, _setting("Timeout for connecting to a model, in seconds.", "PROXY_CONNECT_TIMEOUT")
    ] = 5.0
    provider_connections: Annotated[
        Count | None,
        ValueFormat("a whole number from 1 up"),
        _setting(
            "Maximum concurrent requests to one provider host per process.", "PROXY_PROVIDER_CONNECTIONS"
        ),
    ] = None
    provider_proxy: Annotated[
        Annotated[SecretStr, _secret(_HTTP_PROXY)] | None,
        ValueFormat("an address like http://user:password@host:3128, or environment"),
        _setting("HTTP proxy for connections to model providers.", "PROXY_PROVIDER_PROXY"),
    ] = None
    provider_tls_ca: Annotated[
        FilePath | None,
        ValueFormat("a path"),
        _setting(
            "File with further certificate authorities for model providers, as PEM.", "PROXY_PROVIDER_TLS_CA"
        ),
    ] = None
    provider_tls_certificate: Annotated[
        FilePath | None,
        ValueFormat("a path"),
        _setting(
            "File with the client certificate for model providers, as PEM.", "PROXY_PROVIDER_TLS_CERTIFICATE"
        ),
    ] = None
    provider_tls_key: Annotated[
        FilePath | None,
        ValueFormat("a path"),
        _setting("File with the private key of the client certificate, as PEM.", "PROXY_PROVIDER_TLS_KEY"),
    ] = None
    provider_tls_minimum: Annotated[
        Literal["1.2", "1.3"],
        ValueFormat("1.2 or 1.3"),
        _setting("Minimum TLS version of connections to model providers.", "PROXY_PROVIDER_TLS_MINIMUM"),
    ] = "1.2"
    first_token_timeout: Annotated[
        Seconds, _setting("Timeout for the first token of a model, in seconds.", "PROXY_FIRST_TOKEN_TIMEOUT")
    ] = 60.0
    idle_timeout: Annotated[
        Seconds, _setting("Timeout between two tokens of a model, in seconds.", "PROXY_IDLE_TIMEOUT")
    ] = 60.0
    turn_time_limit: Annotated[
        Seconds, _setting("Time limit of a turn, in seconds.", "PROXY_TURN_TIME_LIMIT")
    ] = 600.0
    shutdown_grace: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        ValueFormat("a number of seconds from 0 up"),
        _setting("Time for running turns to finish at shutdown, in seconds.", "PROXY_SHUTDOWN_GRACE"),
    ] = 10.0
    keep_alive_interval: Annotated[
        Seconds,
        _setting(
            "Idle time before a keep-alive comment in a stream, in seconds.", "PROXY_KEEP_ALIVE_INTERVAL"
        ),
    ] = 15.0
    stalled_client_timeout: Annotated[
        Seconds,
        _setting(
            "Timeout for a client that does not read its stream, in seconds.",
            "PROXY_STALLED_CLIENT_TIMEOUT",
        ),
    ] = 60.0
    body_timeout: Annotated[
        Seconds,
        _setting("Timeout for receiving a request body, in seconds.", "PROXY_BODY_TIMEOUT"),
    ] = 30.0

    max_body_bytes: Annotated[
        Count, _setting("Maximum size of a request body, in bytes.", "PROXY_MAX_BODY_BYTES")
    ] = 4 * 1024 * 1024
    max_messages: Annotated[
        Count, _setting("Maximum number of messages in a request.", "PROXY_MAX_MESSAGES")
    ] = 2000
    max_answer_bytes: Annotated[
        Count, _setting("Maximum size of a model response, in bytes.", "PROXY_MAX_ANSWER_BYTES")
    ] = 8 * 1024 * 1024
    max_tool_result_bytes: Annotated[
        Count, _setting("Maximum size of a tool result, in bytes.", "PROXY_MAX_TOOL_RESULT_BYTES")
    ] = 64 * 1024
    max_client_tools: Annotated[
        Count,
        _setting(
            "Maximum number of client tools for agents with client_tools: auto; longer lists are ignored.",
            "PROXY_MAX_CLIENT_TOOLS",
        ),
    ] = 32

    api_keys: Annotated[
        Keys, _setting("API keys accepted in the Authorization header.", "PROXY_API_KEYS")
    ] = ()
    agent_runtime: Annotated[
        Literal["direct", "queued"],
        ValueFormat("direct or queued"),
        _setting(
            "How AutoGen dispatches agents: by direct calls, or through its queue.", "PROXY_AGENT_RUNTIME"
        ),
    ] = "direct"

    redis_url: Annotated[
        Annotated[SecretStr, _secret(_REDIS)] | None,
        ValueFormat("an address like redis://host:6379/0"),
        _setting("Redis server for rate limits and messages shared by all workers.", "PROXY_REDIS_URL"),
    ] = None
    requests_per_minute: Annotated[
        Count | None,
        ValueFormat("a whole number from 1 up"),
        _setting("Maximum requests per minute and key.", "PROXY_REQUESTS_PER_MINUTE"),
    ] = None
    tokens_per_minute: Annotated[
        Count | None,
        ValueFormat("a whole number from 1 up"),
        _setting("Maximum tokens per minute and key.", "PROXY_TOKENS_PER_MINUTE"),
    ] = None
    max_running_turns: Annotated[
        Count | None,
        ValueFormat("a whole number from 1 up"),
        _setting("Maximum number of running turns per process.", "PROXY_MAX_RUNNING_TURNS"),
    ] = None
    max_log_bytes: Annotated[
        Count | None,
        ValueFormat("a whole number from 1 up"),
        _setting("Maximum memory for turn logs per process, in bytes.", "PROXY_MAX_LOG_BYTES"),
    ] = None
    metrics: Annotated[
        bool, ValueFormat("true or false"), _setting("Serve Prometheus metrics at /metrics.", "PROXY_METRICS")
    ] = False
    allow_open: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting("Accept requests without an API key on non-loopback addresses.", "PROXY_ALLOW_OPEN"),
    ] = False
    separate_keys: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting(
            "Without API keys, separate the data of callers by the key that they send.", "PROXY_SEPARATE_KEYS"
        ),
    ] = False
    cors_origins: Annotated[
        Origins,
        _setting("Origins allowed by CORS, in addition to loopback origins.", "PROXY_CORS_ORIGINS"),
    ] = ()
    allowed_hosts: Annotated[
        HostNames,
        _setting(
            "Allowed values of the Host header, in addition to the names of this machine.",
            "PROXY_ALLOWED_HOSTS",
        ),
    ] = ()

    handoff_events: Annotated[
        EventsMode,
        ValueFormat("none, extension, reasoning or all"),
        _setting(
            "Default of X-Handoff-Events: how responses report handoffs and tool calls.",
            "PROXY_HANDOFF_EVENTS",
        ),
    ] = "all"
    handoff_details: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting("Include content of agents and tools in events.", "PROXY_HANDOFF_DETAILS"),
    ] = True
    status_lines: Annotated[
        Literal["auto", "always", "never"],
        ValueFormat("auto, always or never"),
        _setting("Send status events for Open WebUI.", "PROXY_STATUS_LINES"),
    ] = "auto"

    conversation_headers: Annotated[
        HeaderNames,
        _setting("Headers with the conversation id of a frontend.", "PROXY_CONVERSATION_HEADERS"),
    ] = ("X-OpenWebUI-Chat-Id",)
    user_headers: Annotated[
        HeaderNames, _setting("Headers with the user id of a frontend.", "PROXY_USER_HEADERS")
    ] = ("X-OpenWebUI-User-Id",)
    task_header: Annotated[HeaderName, _setting("Header that marks side requests.", "PROXY_TASK_HEADER")] = (
        "X-Task"
    )
    on_disconnect: Annotated[
        Literal["cancel", "detach"],
        ValueFormat("cancel or detach"),
        _setting("What to do with a turn when its client disconnects.", "PROXY_ON_DISCONNECT"),
    ] = "cancel"
    tracing: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting(
            "Export a trace of each turn over OTLP. The standard OTEL_* variables configure the export.",
            "PROXY_TRACING",
        ),
    ] = False
    tracing_content: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting("Include messages, arguments and results of tools in traces.", "PROXY_TRACING_CONTENT"),
    ] = False
    disconnect_grace: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False),
        ValueFormat("a number of seconds from 0 up"),
        _setting(
            "Time for which a turn waits for a client that has disconnected, in seconds.",
            "PROXY_DISCONNECT_GRACE",
        ),
    ] = 30.0
    strict_parameters: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting(
            "Reject parameters that are unknown, or that the models of the team do not support.",
            "PROXY_STRICT_PARAMETERS",
        ),
    ] = False
    older_team: Annotated[
        TeamName,
        _setting("Team for legacy clients of /chat/completions.", "PROXY_OLDER_TEAM"),
    ] = None
    older_content: Annotated[
        Literal["object", "string"],
        ValueFormat("object or string"),
        _setting("Form of content in the lines of legacy /chat/completions.", "PROXY_OLDER_CONTENT"),
    ] = "object"
    older_chat_team: Annotated[
        TeamName, _setting("Team for /chat, /chat/stream and /ws.", "PROXY_OLDER_CHAT_TEAM")
    ] = None
    older_ask_team: Annotated[TeamName, _setting("Team for /ask-stream.", "PROXY_OLDER_ASK_TEAM")] = None
    agents_over_http: Annotated[
        bool,
        ValueFormat("true or false"),
        _setting("Allow callers to create custom agents and teams.", "PROXY_AGENTS_OVER_HTTP"),
    ] = True
    agent_tools: Annotated[
        Names | None,
        ValueFormat("names of tools, separated by commas"),
        _setting("Tools available to custom agents.", "PROXY_AGENT_TOOLS"),
    ] = None
    max_agents: Annotated[
        Count, _setting("Maximum number of custom agents and teams per caller.", "PROXY_MAX_AGENTS")
    ] = 100
    weather_url: Annotated[ServiceUrl, _setting("Forecast API of get_weather.", "PROXY_WEATHER_URL")] = (
        "https://api.open-meteo.com"
    )
    geocoding_url: Annotated[ServiceUrl, _setting("Geocoding API of get_weather.", "PROXY_GEOCODING_URL")] = (
        "https://geocoding-api.open-meteo.com"
    )
    stock_url: Annotated[ServiceUrl, _setting("Quote API of get_stock_price.", "PROXY_STOCK_URL")] = (
        "https://query1.finance.yahoo.com"
    )
    searxng_url: Annotated[
        ServiceUrl | None,
        ValueFormat("an address like https://host/path, without user, password or query"),
        _setting("SearXNG server of search_web.", "PROXY_SEARXNG_URL"),
    ] = None
    retention_days: Annotated[
        Annotated[float, Field(gt=0, allow_inf_nan=False)] | None,
        ValueFormat("a number of days above 0"),
        _setting("Age at which conversations are deleted, in days.", "PROXY_RETENTION_DAYS"),
    ] = None

    @property
    def forced_close_after(self) -> float:
        """Seconds after the begin of a shutdown at which open connections are closed."""
        return self.shutdown_grace + 10

    @property
    def database(self) -> str:
        """The database URL for SQLAlchemy; by default SQLite in the data directory."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.database_file.resolve()}"

    @property
    def database_file(self) -> Path:
        """The file of the default database."""
        return self.data_dir / "handoff-proxy.sqlite"


class UnreadableEnvFile(ConfigurationError):
    """The file with environment variables exists and cannot be read."""


class InvalidSettings(ConfigurationError):
    """Values of settings are invalid. The message has one line per value."""

    def __init__(self, message: str, fields: frozenset[str], valid: Settings) -> None:
        super().__init__(message)
        self.fields = fields
        """The settings with invalid values."""
        self.valid = valid
        """The settings, with defaults instead of the invalid values."""


def load_settings(*, env_file: Path | str | None = ENV_FILE, **overrides: Any) -> Settings:
    """Read the settings. ``overrides`` (by field) have precedence over the environment, which has it over ``env_file``.

    None and ``""`` count as unset in all of them.

    Raises:
        InvalidSettings: There are invalid values. The message has one line per value with the variable or flag and the
            expected format, without the value itself.
        UnreadableEnvFile: ``env_file`` cannot be read.
    """
    given = {name: value for name, value in overrides.items() if value is not None and value != ""}
    named = {variables_of(Settings.model_fields[name])[0]: value for name, value in given.items()}
    variables = environment(env_file)
    try:
        # ``environment`` has already reported an unreadable file.
        return Settings(**{"_env_file": env_file, **named})
    except ValidationError as error:
        bad = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors(include_input=False))
        fields = {variables_of(field)[0]: name for name, field in Settings.model_fields.items()}
        lines = [_validation_error(fields[variable], given, variables) for variable in bad]
        names = frozenset(fields[variable] for variable in bad)
        defaults = {name: Settings.model_fields[name].default for name in names}
        # The default of ``api_keys``, no keys, is not a valid value; another one stands for it until the copy.
        valid_values = {variable: defaults[fields[variable]] for variable in bad} | (
            {"PROXY_API_KEYS": "none"} if "api_keys" in names else {}
        )
        valid = Settings(**{"_env_file": env_file, **named, **valid_values})
        raise InvalidSettings("\n".join(lines), names, valid.model_copy(update=defaults)) from None


def environment(env_file: Path | str | None = ENV_FILE) -> Mapping[str, str]:
    """Return the variables of ``env_file``, if it exists, overridden by those of the environment.

    Raises:
        UnreadableEnvFile: The file cannot be read.
    """
    try:
        found = dotenv_values(env_file) if env_file is not None else {}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UnreadableEnvFile(f"{env_file}: cannot be read ({reason})") from None
    return {**{name: value for name, value in found.items() if value is not None}, **os.environ}


def unread_lines(env_file: Path | str = ENV_FILE) -> list[str]:
    """Return a warning for each line of ``env_file`` that is not read, because it is not an assignment."""
    try:
        with open(env_file, encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except (OSError, UnicodeDecodeError):
        # There is none, or ``environment`` reports it.
        return []
    failed = [one.original for one in bindings if one.error]
    # The text of a binding begins with the empty lines before it.
    lines = [one.line + one.string[: -len(one.string.lstrip())].count("\n") for one in failed]
    return [f"{env_file}:{line}: not a line like NAME=value; it is ignored" for line in lines]


def variables_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the environment variables of a field; messages use the first one."""
    alias = field.validation_alias
    return tuple(str(one) for one in (alias.choices if isinstance(alias, AliasChoices) else (alias,)))


def form_of(field: FieldInfo) -> str:
    """Return the format of a field, which continues the words "should be"."""
    return next(one.expected for one in field.metadata if isinstance(one, ValueFormat))


def find_misspelled(variables: Mapping[str, str]) -> list[str]:
    """Return a warning for each variable that is probably a find_misspelled setting."""
    known = [name for field in Settings.model_fields.values() for name in variables_of(field)]
    sentences = []
    for name in sorted(variables):
        if name.startswith("PROXY_") and name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.8)
            if near:
                sentences.append(f"{name} is not a setting, did you mean {near[0]}?")
    return sentences


def _validation_error(name: str, given: Mapping[str, Any], variables: Mapping[str, str]) -> str:
    """Return the error message of a field, which names the flag or variable that was used."""
    field = Settings.model_fields[name]
    choices = variables_of(field)
    # Each variable of the environment has precedence over all of the file.
    sources = (os.environ, variables)
    place = next((one for source in sources for one in choices if source.get(one)), choices[0])
    return f"{flag_of(name) if name in given else place}: should be {form_of(field)}"


def flag_of(name: str) -> str:
    """Return the flag of ``handoff-proxy serve`` for a field."""
    return f"--{name.replace('_', '-')}"
