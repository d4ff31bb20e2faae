"""Everything an operator can set, read once from the environment and ``.env``; nothing else reads the environment.

Every variable is described in ``docs/configuration.md``; a test keeps the two together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, SecretStr, ValidationError
from pydantic.functional_validators import BeforeValidator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from proxy.errors import ConfigurationError

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


def _split(value: Any) -> Any:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _empty_is_unset(value: Any) -> Any:
    return None if value == "" else value


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Settings(BaseSettings):
    """The settings, frozen. Field names are the variables in lower case without ``PROXY_``."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        env_ignore_empty=True,
    )

    host: Annotated[str, Field(validation_alias=AliasChoices("PROXY_HOST", "HOST"))] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, validation_alias=AliasChoices("PROXY_PORT", "PORT"))] = 8000
    data_dir: Annotated[Path, Field(validation_alias="PROXY_DATA_DIR")] = Path("./data")
    database_url: Annotated[SecretStr | None, Field(validation_alias="PROXY_DATABASE_URL")] = None
    teams: Annotated[Path | None, Field(validation_alias="PROXY_TEAMS")] = None

    openai_api_key: Annotated[SecretStr | None, Field(validation_alias="OPENAI_API_KEY")] = None
    openai_base_url: Annotated[str, Field(pattern=r"^https?://", validation_alias="OPENAI_BASE_URL")] = (
        "https://api.openai.com/v1"
    )
    openai_model: Annotated[str, Field(min_length=1, validation_alias="OPENAI_MODEL")] = "gpt-5-mini"

    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
        BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
        Field(validation_alias="LOG_LEVEL"),
    ] = "INFO"

    connect_timeout: Annotated[Seconds, Field(validation_alias="PROXY_CONNECT_TIMEOUT")] = 5.0
    first_token_timeout: Annotated[Seconds, Field(validation_alias="PROXY_FIRST_TOKEN_TIMEOUT")] = 60.0
    idle_timeout: Annotated[Seconds, Field(validation_alias="PROXY_IDLE_TIMEOUT")] = 60.0
    turn_time_limit: Annotated[Seconds, Field(validation_alias="PROXY_TURN_TIME_LIMIT")] = 600.0
    shutdown_grace: Annotated[float, Field(ge=0, validation_alias="PROXY_SHUTDOWN_GRACE")] = 10.0
    keep_alive_interval: Annotated[Seconds, Field(validation_alias="PROXY_KEEP_ALIVE_INTERVAL")] = 15.0

    max_body_bytes: Annotated[Count, Field(validation_alias="PROXY_MAX_BODY_BYTES")] = 4 * 1024 * 1024
    max_messages: Annotated[Count, Field(validation_alias="PROXY_MAX_MESSAGES")] = 2000
    max_answer_bytes: Annotated[Count, Field(validation_alias="PROXY_MAX_ANSWER_BYTES")] = 8 * 1024 * 1024
    max_tool_result_bytes: Annotated[Count, Field(validation_alias="PROXY_MAX_TOOL_RESULT_BYTES")] = 64 * 1024

    max_client_tools: Annotated[Count, Field(validation_alias="PROXY_MAX_CLIENT_TOOLS")] = 32
    stalled_client_timeout: Annotated[Seconds, Field(validation_alias="PROXY_STALLED_CLIENT_TIMEOUT")] = 60.0

    api_keys: Annotated[
        tuple[SecretStr, ...], NoDecode, BeforeValidator(_split), Field(validation_alias="PROXY_API_KEYS")
    ] = ()
    allow_open: Annotated[bool, Field(validation_alias="PROXY_ALLOW_OPEN")] = False
    conversation_headers: Annotated[Names, Field(validation_alias="PROXY_CONVERSATION_HEADERS")] = (
        "X-OpenWebUI-Chat-Id",
    )
    user_headers: Annotated[Names, Field(validation_alias="PROXY_USER_HEADERS")] = ("X-OpenWebUI-User-Id",)
    task_header: Annotated[str, Field(validation_alias="PROXY_TASK_HEADER")] = "X-Task"
    on_disconnect: Annotated[Literal["cancel", "detach"], Field(validation_alias="PROXY_ON_DISCONNECT")] = (
        "cancel"
    )
    retention_days: Annotated[
        Annotated[float, Field(gt=0)] | None, Field(validation_alias="PROXY_RETENTION_DAYS")
    ] = None

    @property
    def database(self) -> str:
        """The database's URL in SQLAlchemy's form: the one set, or SQLite in the data folder."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite+aiosqlite:///{(self.data_dir / 'handoff-proxy.sqlite').resolve()}"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; ``overrides`` (field names, None left out) win over the environment.

    Raises:
        ConfigurationError: With one line for every bad value, naming the variable and the wanted form, never the
            value itself.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_input=False, include_url=False):
            place = str(problem["loc"][0])
            lines.append(f"{_variable(place)}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
        raise ConfigurationError("\n".join(lines)) from None


def variables() -> dict[str, str]:
    """The environment variables understood: name → field (aliases included)."""
    found: dict[str, str] = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        for choice in alias.choices if isinstance(alias, AliasChoices) else [alias]:
            found[str(choice)] = name
    return found


def _variable(place: str) -> str:
    by_field = {field: variable for variable, field in reversed(list(variables().items()))}
    return by_field.get(place, place)
