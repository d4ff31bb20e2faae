from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic import SecretStr, ValidationError

from proxy.cli import main
from proxy.errors import ConfigurationError
from proxy.settings import (
    InvalidSettings,
    Settings,
    environment,
    find_misspelled,
    form_of,
    load_settings,
    variables_of,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "configuration.md"
EXAMPLE = Path(__file__).parents[2] / ".env.example"
FIELDS = Settings.model_fields
VARIABLES = [name for field in FIELDS.values() for name in variables_of(field)]
SECRETS = {
    "OPENAI_API_KEY",
    "PROXY_API_KEYS",
    "PROXY_DATABASE_URL",
    "PROXY_PROVIDER_PROXY",
    "PROXY_REDIS_URL",
}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables of the test machine."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def load(**overrides: Any) -> Settings:
    return load_settings(env_file=None, **overrides)


def error_message(**overrides: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(**overrides)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__, "a trace would show the value"
    return caught.value.message


# --- defaults ------------------------------------------------------------------------------------------------


def test_defaults_without_any_setting() -> None:
    settings = load()

    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.data_dir == Path("./data")
    assert settings.database == f"sqlite:///{Path('./data/handoff-proxy.sqlite').resolve()}"
    assert (settings.teams, settings.models) == (None, None)
    assert (settings.openai_api_key, settings.openai_base_url) == (None, "https://api.openai.com/v1")
    assert settings.log_level == "INFO"
    assert settings.connect_timeout == 5
    assert settings.first_token_timeout == 60
    assert settings.idle_timeout == 60
    assert settings.turn_time_limit == 600
    assert settings.shutdown_grace == 10
    assert settings.max_body_bytes == 4 * 1024 * 1024
    assert settings.api_keys == ()
    assert settings.allow_open is False
    assert settings.conversation_headers == ("X-OpenWebUI-Chat-Id",)
    assert settings.task_header == "X-Task"
    assert settings.on_disconnect == "cancel"
    assert settings.retention_days is None


def test_every_default_matches_its_documented_form() -> None:
    given = {name: field.default for name, field in FIELDS.items() if field.default not in (None, ())}

    assert load(**given) == load()


def test_settings_are_immutable() -> None:
    settings = load()

    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


# --- sources ----------------------------------------------------------------------------------


def test_flags_override_the_environment_which_overrides_the_env_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / ".env"
    file.write_text("PROXY_HOST=127.0.0.2\nPROXY_PORT=2\nLOG_LEVEL=error\n")
    monkeypatch.setenv("PROXY_HOST", "127.0.0.3")
    monkeypatch.setenv("PROXY_PORT", "3")

    settings = load_settings(env_file=file, port="4")

    assert (settings.log_level, settings.host, settings.port) == ("ERROR", "127.0.0.3", 4)


def test_the_env_file_of_the_working_folder_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PROXY_PORT=81\n")
    monkeypatch.chdir(tmp_path)

    assert load_settings().port == 81
    assert load_settings(env_file=None).port == 8000


@pytest.mark.parametrize(("short", "own"), [("HOST", "PROXY_HOST"), ("PORT", "PROXY_PORT")])
def test_host_and_port_have_unprefixed_aliases(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, short: str, own: str
) -> None:
    def found() -> str:
        settings = load_settings(env_file=tmp_path / ".env")
        return str({"HOST": settings.host, "PORT": settings.port}[short])

    (tmp_path / ".env").write_text(f"{own}=1\n")
    monkeypatch.setenv(short, "2")
    assert found() == "2"

    monkeypatch.setenv(own, "3")
    assert found() == "3"

    monkeypatch.setenv(own, "")
    assert found() == "2"


@pytest.mark.parametrize("name", ["DATABASE_URL", "TEAMS", "API_KEYS", "DATA_DIR", "proxy_host", "host"])
def test_variables_with_other_names_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv(name, "other")
    (tmp_path / ".env").write_text(f"{name}=other\n")

    assert load_settings(env_file=tmp_path / ".env") == load()


@pytest.mark.parametrize("variable", VARIABLES)
def test_an_empty_value_counts_as_unset(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    monkeypatch.setenv(variable, "")
    (tmp_path / ".env").write_text(f"{variable}=\n")

    assert load_settings(env_file=tmp_path / ".env") == load()


def test_an_empty_variable_does_not_hide_the_value_of_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PROXY_PORT", "")
    (tmp_path / ".env").write_text("PROXY_PORT=81\n")

    assert load_settings(env_file=tmp_path / ".env").port == 81


def test_an_error_names_the_variable_that_was_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PORT", "many")
    (tmp_path / ".env").write_text("PROXY_PORT=81\n")

    with pytest.raises(InvalidSettings, match=r"^PORT: should be "):
        load_settings(env_file=tmp_path / ".env")


def test_an_empty_flag_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_HOST", "127.0.0.9")

    assert load(host="", port=None).host == "127.0.0.9"


def test_the_environment_overrides_the_env_file_for_team_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("AZURE_KEY=from-the-file\nREGION=west\nUNSET\n")
    monkeypatch.setenv("AZURE_KEY", "from-the-environment")

    variables = environment(tmp_path / ".env")

    assert variables["AZURE_KEY"] == "from-the-environment"
    assert variables["REGION"] == "west"
    assert "UNSET" not in variables


def test_an_env_file_with_invalid_utf8_is_a_configuration_error(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"PROXY_PORT=\xff\xfe\n")

    with pytest.raises(ConfigurationError, match=r"\.env: cannot be read \(it is not UTF-8\)$"):
        load_settings(env_file=file)


def test_a_misspelled_variable_is_reported_with_the_closest_setting() -> None:
    warnings = find_misspelled(
        {"PROXY_DATADIR": "x", "PROXY_PORT": "1", "PROXY_COLOUR": "green", "DATA_DIR": "y"}
    )

    assert warnings == ["PROXY_DATADIR is not a setting, did you mean PROXY_DATA_DIR?"]


# --- values --------------------------------------------------------------------------------------------------

SECONDS = ["0", "-1", "soon", "inf", "nan", "5s"]
COUNTS = ["0", "-1", "1.5", "many", "4MiB"]
BAD_SERVICES = [
    "example.com",
    "ftp://a",
    "https://",
    "https://me:secret@a",
    "https://a/b?key=1",
    "https://a /b",
]
BAD = {
    "PROXY_HOST": ["http://127.0.0.1", "two hosts", " "],
    "HOST": ["http://127.0.0.1"],
    "PROXY_PORT": ["eighty", "-1", "65536", "80.5", "tcp://10.0.0.7:80"],
    "PORT": ["eighty"],
    "PROXY_DATABASE_URL": ["secret.sqlite", "mysql://me:secret@host/name", "postgresql:secret", "sqlite://"],
    "OPENAI_API_KEY": ["sk secret", "sk-sécret", "sk-secret\n"],
    "OPENAI_BASE_URL": ["api.openai.com/v1", "ftp://host/v1", "https://", "http:// host"],
    "OPENAI_MODEL": [" "],
    "OPENAI_AUTH": ["Entra", "azure"],
    "PROXY_STREAM_EVENTS": ["maybe", "2"],
    "PROXY_STREAM_EVENTS_TEXT": ["maybe", "2"],
    "LOG_LEVEL": ["loud", "10", "WARN"],
    "PROXY_CONNECT_TIMEOUT": SECONDS,
    "PROXY_PROVIDER_CONNECTIONS": COUNTS,
    "PROXY_PROVIDER_PROXY": [
        "proxy:3128",
        "https://proxy:3128",
        "http://",
        "http://proxy/path",
        "http://a b",
    ],
    "PROXY_PROVIDER_TLS_MINIMUM": ["1.1", "TLSv1.3", "2"],
    "PROXY_FIRST_TOKEN_TIMEOUT": SECONDS,
    "PROXY_IDLE_TIMEOUT": SECONDS,
    "PROXY_TURN_TIME_LIMIT": SECONDS,
    "PROXY_SHUTDOWN_GRACE": ["-1", "soon", "inf", "nan"],
    "PROXY_KEEP_ALIVE_INTERVAL": SECONDS,
    "PROXY_STALLED_CLIENT_TIMEOUT": SECONDS,
    "PROXY_BODY_TIMEOUT": SECONDS,
    "PROXY_MAX_BODY_BYTES": COUNTS,
    "PROXY_MAX_MESSAGES": COUNTS,
    "PROXY_MAX_ANSWER_BYTES": COUNTS,
    "PROXY_MAX_TOOL_RESULT_BYTES": COUNTS,
    "PROXY_MAX_CLIENT_TOOLS": COUNTS,
    "PROXY_API_KEYS": [",", " , ", "key-a,sécret", "key-a,my secret"],
    "PROXY_ALLOW_OPEN": ["maybe", "2"],
    "PROXY_SEPARATE_KEYS": ["maybe", "2"],
    "PROXY_REDIS_URL": ["127.0.0.1:6379", "http://host", "redis://"],
    "PROXY_REQUESTS_PER_MINUTE": COUNTS,
    "PROXY_TOKENS_PER_MINUTE": COUNTS,
    "PROXY_MAX_RUNNING_TURNS": COUNTS,
    "PROXY_MAX_LOG_BYTES": COUNTS,
    "PROXY_WORKERS": COUNTS,
    "PROXY_AGENT_RUNTIME": ["Direct", "autogen"],
    "PROXY_METRICS": ["maybe", "2"],
    "PROXY_TRACING": ["maybe", "2"],
    "PROXY_TRACING_CONTENT": ["maybe", "2"],
    "PROXY_PASS_THROUGH": ["maybe", "2"],
    "PROXY_CORS_ORIGINS": ["chat.example.com", "https://", "https://a.example/b", "https://a,b", "**"],
    "PROXY_ALLOWED_HOSTS": ["https://a", "a/b", "a:80", "a b"],
    "PROXY_HANDOFF_EVENTS": ["ALL", "some", "true"],
    "PROXY_HANDOFF_DETAILS": ["maybe", "2"],
    "PROXY_STATUS_LINES": ["yes", "Auto"],
    "PROXY_OLDER_CONTENT": ["text", "yes"],
    "PROXY_CONVERSATION_HEADERS": ["X-Chat Id", "X-Chat:1"],
    "PROXY_USER_HEADERS": ["X User"],
    "PROXY_TASK_HEADER": ["X Task", "X-Task:"],
    "PROXY_ON_DISCONNECT": ["stop", "Cancel"],
    "PROXY_DISCONNECT_GRACE": ["-1", "soon", "inf", "nan"],
    "PROXY_STRICT_PARAMETERS": ["maybe", "2"],
    "PROXY_AGENTS_OVER_HTTP": ["maybe", "2"],
    "PROXY_AGENT_TOOLS": ["get time", "a b,c"],
    "PROXY_MAX_AGENTS": COUNTS,
    "PROXY_OLDER_TEAM": ["my team"],
    "PROXY_OLDER_CHAT_TEAM": [" "],
    "PROXY_OLDER_ASK_TEAM": ["a b"],
    "PROXY_WEATHER_URL": BAD_SERVICES,
    "PROXY_GEOCODING_URL": BAD_SERVICES,
    "PROXY_STOCK_URL": BAD_SERVICES,
    "PROXY_SEARXNG_URL": BAD_SERVICES,
    "PROXY_RETENTION_DAYS": ["0", "-1", "forever", "inf"],
}
ANYTHING_GOES = {
    "PROXY_DATA_DIR",
    "PROXY_MODELS",
    "PROXY_PROVIDER_TLS_CA",
    "PROXY_PROVIDER_TLS_CERTIFICATE",
    "PROXY_PROVIDER_TLS_KEY",
    "PROXY_TEAMS",
    "PROXY_TLS_CERTIFICATE",
    "PROXY_TLS_KEY",
}


def test_every_variable_has_invalid_values_to_test() -> None:
    assert set(BAD) | ANYTHING_GOES == set(VARIABLES)


@pytest.mark.parametrize(
    ("variable", "value"),
    [pytest.param(name, value, id=f"{name}={value!r}") for name, values in BAD.items() for value in values],
)
def test_an_invalid_value_is_reported_with_variable_and_form_but_not_repeated(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    field = next(field for field in FIELDS.values() if variable in variables_of(field))
    monkeypatch.setenv(variable, value)

    assert error_message() == f"{variable}: should be {form_of(field)}"


def test_an_invalid_flag_is_reported_as_the_flag() -> None:
    assert error_message(port="eighty") == "--port: should be a whole number from 0 to 65535"
    assert error_message(turn_time_limit="0") == "--turn-time-limit: should be a number of seconds above 0"


def test_all_invalid_values_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_PORT", "eighty")
    monkeypatch.setenv("PROXY_CONVERSATION_HEADERS", "A B,C D")
    monkeypatch.setenv("LOG_LEVEL", "loud")

    assert error_message().splitlines() == [
        "PROXY_PORT: should be a whole number from 0 to 65535",
        "LOG_LEVEL: should be DEBUG, INFO, WARNING, ERROR or CRITICAL",
        "PROXY_CONVERSATION_HEADERS: should be names of headers, separated by commas",
    ]


def test_an_invalid_value_in_the_env_file_is_reported_with_its_variable(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PORT=eighty\n")

    with pytest.raises(ConfigurationError, match=r"^PORT: should be a whole number from 0 to 65535$"):
        load_settings(env_file=tmp_path / ".env")


def test_lists_are_split_at_commas_and_stripped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXY_API_KEYS", " key-a, key-b ,,")
    monkeypatch.setenv("PROXY_CONVERSATION_HEADERS", "X-Chat, X-Thread")
    monkeypatch.setenv("PROXY_USER_HEADERS", ",")

    settings = load()

    assert [key.get_secret_value() for key in settings.api_keys] == ["key-a", "key-b"]
    assert settings.conversation_headers == ("X-Chat", "X-Thread")
    assert settings.user_headers == ()


def test_log_level_and_booleans_ignore_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOG_LEVEL", "debug")
    monkeypatch.setenv("PROXY_ALLOW_OPEN", "True")

    assert (load().log_level, load().allow_open) == ("DEBUG", True)


def test_a_tilde_in_a_path_is_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/coyote")

    assert load(data_dir="~/data", teams="~/teams").data_dir == Path("/home/coyote/data")
    assert load(data_dir="~/data", teams="~/teams").teams == Path("/home/coyote/teams")


def test_secrets_are_not_in_the_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "postgresql://proxy:hunter2@db/handoff"
    settings = load(openai_api_key="sk-hunter2", api_keys="key-hunter2", database_url=url)

    assert "hunter2" not in f"{settings!r} {settings}"
    assert settings.openai_api_key == SecretStr("sk-hunter2")
    assert settings.database == url


# --- documentation -------------------------------------------------------------------------------------------


def rows() -> Iterator[list[str]]:
    """Yield the cells of each table row that describes a variable."""
    for line in DOCUMENT.read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and re.match(r"`[A-Z_]+`", cells[0]):
            yield cells


def documented(default: Any) -> str:
    """Return a default as the documentation formats it."""
    match default:
        case None | ():
            return "unset"
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case tuple():
            return f"`{','.join(default)}`"
        case Path():
            return f"`./{default}`"
        case _:
            return f"`{default}`"


def test_the_documentation_describes_exactly_the_existing_variables() -> None:
    described = [name for cells in rows() for name in re.findall(r"`([A-Z_]+)`", cells[0])]

    assert sorted(described) == sorted(VARIABLES)


def test_the_documentation_has_the_actual_defaults_and_forms() -> None:
    described = {re.findall(r"`([A-Z_]+)`", cells[0])[0]: (cells[1], cells[2]) for cells in rows()}

    assert described == {
        variables_of(field)[0]: (documented(field.default), form_of(field)) for field in FIELDS.values()
    }


def test_all_timeouts_are_in_seconds() -> None:
    of_time = [name for name in FIELDS if re.search(r"timeout|limit$|interval|grace", name)]

    assert len(of_time) == 9
    assert all("seconds" in form_of(FIELDS[name]) for name in of_time)


def test_serve_has_a_flag_for_every_setting_except_secrets() -> None:
    command = main.commands["serve"]
    flags = {option: parameter for parameter in command.params for option in parameter.opts}

    wanted = {
        f"--{name.replace('_', '-')}": field
        for name, field in FIELDS.items()
        if variables_of(field)[0] not in SECRETS
    }
    assert flags.keys() - {"--help"} == wanted.keys()
    for flag, field in wanted.items():
        option = flags[flag]
        assert isinstance(option, click.Option)
        assert option.help is not None
        assert f"[{variables_of(field)[0]}" in option.help


def test_the_documentation_lists_the_secrets_without_flags() -> None:
    sentences = re.findall(r"^(`OPENAI_API_KEY`.*?) have no flags", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    help_text = main.commands["serve"].help
    assert help_text is not None

    assert [set(re.findall(r"[A-Z_]{3,}", sentence)) for sentence in sentences] == [SECRETS]
    assert set(re.findall(r"\b[A-Z]+_[A-Z_]+", help_text)) == SECRETS
    assert {
        variables_of(field)[0] for field in FIELDS.values() if "Secret" in str(field.annotation)
    } == SECRETS


def test_the_example_file_has_every_variable_commented_out() -> None:
    named = re.findall(r"^# ?([A-Z_]+)=", EXAMPLE.read_text("utf-8"), re.MULTILINE)

    assert sorted(named) == sorted(variables_of(field)[0] for field in FIELDS.values())
    assert load_settings(env_file=EXAMPLE) == load()


def test_the_example_file_is_valid_when_uncommented(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(re.sub(r"^# ?([A-Z_]+=)", r"\1", EXAMPLE.read_text("utf-8"), flags=re.MULTILINE))

    settings = load_settings(env_file=file)

    assert settings.model_fields_set == set(FIELDS)
