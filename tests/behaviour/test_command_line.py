"""``handoff-proxy`` from outside: what it prints, how it ends, what it logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import click
import pytest
from click.testing import CliRunner, Result
from openai import APIError, AsyncOpenAI

from proxy.app import VERSION
from proxy.cli_options import GROUPS, SECRET, setting_flags
from proxy.settings import Settings, load_settings
from tests.command import Command, command
from tests.fakes.upstream import FakeUpstream, calls, error, text
from tests.server import TEAM_FILE

TEAM = """\
teams:
  library:
    entry: Librarian
    agents:
      Librarian:
        instructions: You work in a library.
"""


def refusal(result: Result) -> list[str]:
    """Return the configuration errors that a command printed."""
    assert result.exit_code == 2
    assert result.stdout == ""
    return result.stderr.splitlines()


# --- version and help ----------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_distribution(run: Any) -> None:
    result = run("--version")

    assert (result.exit_code, result.output) == (0, f"handoff-proxy {VERSION}\n")


@pytest.mark.parametrize("module", ["proxy.cli", "proxy.team_check"])
async def test_help_and_a_check_do_not_wait_for_the_servers_parts(module: str) -> None:
    parts = {"alembic", "autogen_core", "fastapi", "openai", "sqlalchemy", "uvicorn"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", f"import sys, {module}; print(*sys.modules)", stdout=asyncio.subprocess.PIPE
    )
    reported, _ = await process.communicate()

    assert module in reported.decode().split()
    assert not parts & set(reported.decode().split())


def test_help_names_the_commands_and_their_flags(run: Any) -> None:
    assert {"serve", "migrate", "check"} <= set(run("--help").output.split())
    shown = " ".join(run("serve", "--help").output.split())
    for option in (
        "Listening address: --host ADDRESS",
        "--port N Port to listen on; 0 selects a free port: a whole number from 0 to 65535 [PROXY_PORT; default: 8000]",
        "--metrics / --no-metrics Serve Prometheus metrics at /metrics [PROXY_METRICS; default: false]",
        "--on-disconnect cancel|detach",
        "[PROXY_TURN_TIME_LIMIT; default: 600]",
        "--teams PATH A team file, or a folder of them [PROXY_TEAMS; default: unset]",
    ):
        assert option in shown
    assert shown.endswith("Other: --help Show this message and exit.")


def test_every_setting_but_secrets_is_in_one_group_of_the_help() -> None:
    grouped = [name for names in GROUPS.values() for name in names]

    assert sorted([*grouped, *SECRET]) == sorted(Settings.model_fields)


@pytest.mark.parametrize(("flag", "expected"), [("--no-pass-through", False), ("--pass-through", True)])
def test_a_boolean_setting_has_a_flag_for_both_values(flag: str, expected: bool) -> None:
    found: list[Settings] = []

    @click.command()
    @setting_flags("pass_through", "metrics")
    def show(**flags: Any) -> None:
        found.append(load_settings(env_file=None, **flags))

    environment = {"PROXY_PASS_THROUGH": str(not expected), "PROXY_METRICS": "true"}
    assert CliRunner().invoke(show, [flag], env=environment).exit_code == 0

    assert (found[0].pass_through, found[0].metrics) == (expected, True)


def test_an_unknown_flag_gets_a_suggestion(run: Any) -> None:
    result = run("serve", "--prot", "80")

    assert result.exit_code == 2
    assert "No such option '--prot'" in result.stderr
    assert "--port" in result.stderr


# --- check ---------------------------------------------------------------------------------------------------


def test_a_good_team_file_is_described(run: Any, tmp_path: Path) -> None:
    (tmp_path / "library.yaml").write_text(TEAM)

    result = run("check", "library.yaml")

    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "1 team, 1 agent, 0 tools, 1 model",
        "model default: demo model (offline)",
        "team library",
        "  Librarian (entry): model default",
    ]
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "library.yaml"], "to check leaves nothing behind"


def test_errors_of_a_team_file_are_printed_one_per_line(run: Any, tmp_path: Path) -> None:
    (tmp_path / "library.yaml").write_text(
        TEAM.replace("entry: Librarian", "entry: Librarain\n    colour: red")
    )

    result = run("check", "library.yaml")

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("library.yaml:3:12: teams.library.entry: ")
    assert "Librarian" in lines[0]
    assert lines[1].startswith("library.yaml:4:5: teams.library: unknown key 'colour'")
    assert result.stderr == ""


def test_a_missing_team_file_is_reported(run: Any) -> None:
    result = run("check", "nowhere.yaml")

    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "nowhere.yaml: cannot be read: No such file or directory"


def test_without_a_path_the_teams_of_the_settings_are_checked(run: Any, tmp_path: Path) -> None:
    (tmp_path / "library.yaml").write_text(TEAM)

    assert "team library" in run("check", PROXY_TEAMS="library.yaml").stdout
    assert "team acme-support" in run("check").stdout


def test_team_files_may_name_variables_of_the_env_file(run: Any, tmp_path: Path) -> None:
    (tmp_path / "library.yaml").write_text(TEAM.replace("You work in a library.", "${GREETING}"))

    assert run("check", "library.yaml").exit_code == 1
    (tmp_path / ".env").write_text("GREETING=Hello\n")
    assert run("check", "library.yaml").exit_code == 0


# --- what stops the start ------------------------------------------------------------------------------------


def test_bad_settings_stop_the_start_with_a_line_each(run: Any) -> None:
    result = run("serve", "--turn-time-limit", "long", PROXY_PORT="eighty", PROXY_API_KEYS="my secret")

    assert refusal(result) == [
        "PROXY_PORT: should be a whole number from 0 to 65535",
        "--turn-time-limit: should be a number of seconds above 0",
        "PROXY_API_KEYS: should be keys of visible ASCII characters, separated by commas",
    ]


def test_everything_that_prevents_a_start_is_reported_at_once(run: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        variables = {"PROXY_TLS_KEY": "nowhere.pem", "PROXY_DATABASE_URL": "sqlite:///:memory:"}

        lines = refusal(
            run("serve", "--teams", "missing.yaml", "--port", str(port), "--max-messages", "0", **variables)
        )
        without_settings = refusal(run("serve", "--teams", "missing.yaml", "--port", str(port), **variables))

    assert [line.partition(" ")[0].rstrip(":") for line in lines] == [
        "missing.yaml",
        "the",
        "PROXY_TLS_KEY",
        "PROXY_PORT",
        "--max-messages",
    ]
    assert without_settings == lines[:-1]
    assert not list(tmp_path.iterdir())


def test_check_reports_invalid_settings_together_with_team_files(run: Any) -> None:
    assert refusal(run("check", "missing.yaml", PROXY_MAX_MESSAGES="0")) == [
        "missing.yaml: cannot be read: No such file or directory",
        "PROXY_MAX_MESSAGES: should be a whole number from 1 up",
    ]


def test_a_check_that_needs_an_invalid_setting_is_left_out(run: Any) -> None:
    lines = refusal(run("serve", "--port", "0", PROXY_HOST="0.0.0.0", PROXY_API_KEYS="my secret"))

    assert lines == ["PROXY_API_KEYS: should be keys of visible ASCII characters, separated by commas"]


def test_other_machines_are_not_served_without_keys(run: Any, tmp_path: Path) -> None:
    lines = refusal(run("serve", "--port", "0", "--host", "0.0.0.0"))

    assert lines == [
        "PROXY_HOST: 0.0.0.0 can be reached from other machines, and no keys are set. "
        "Set PROXY_API_KEYS (keys separated by commas) or create one with `handoff-proxy keys create`, "
        "or set PROXY_ALLOW_OPEN=true to serve requests without a key."
    ]
    assert not list(tmp_path.iterdir())


def test_bad_team_files_stop_the_start_with_their_lines(run: Any, tmp_path: Path) -> None:
    (tmp_path / "library.yaml").write_text(TEAM.replace("entry: Librarian", "entry: Librarain"))

    lines = refusal(run("serve", "--teams", "library.yaml", "--port", "0"))

    assert len(lines) == 1
    assert lines[0].startswith("library.yaml:3:12: teams.library.entry: ")


def test_a_data_folder_that_cannot_be_created_stops_the_start(run: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    assert refusal(run("serve", "--port", "0", "--data-dir", "taken/data")) == [
        "PROXY_DATA_DIR: taken/data cannot be created (Not a directory)"
    ]


def test_a_database_url_that_cannot_be_used_stops_the_start_and_is_not_repeated(run: Any) -> None:
    url = "postgresql://me:hunter2@host:port/name"
    lines = refusal(run("serve", "--port", "0", PROXY_DATABASE_URL=url))

    assert len(lines) == 1
    assert "hunter2" not in lines[0]
    assert "postgresql://user:password@host:5432/name" in lines[0]


async def test_a_port_in_use_is_reported_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with command("serve", "--port", str(port), folder=tmp_path) as serving:
            assert await serving.ended() == 2

    assert serving.err.lines[-1] == (
        f"PROXY_PORT: port {port} of 127.0.0.1 is in use by another program; stop it or choose another port"
    )
    assert "Traceback" not in serving.err.text
    assert not os.listdir(tmp_path), "the database of whoever has the port was not touched"


async def test_a_missing_team_file_is_reported_with_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        arguments = ("serve", "--port", port, "--teams", "missing.yaml")
        async with command(*arguments, folder=tmp_path) as serving:
            assert await serving.ended() == 2

    team_file, used_port = serving.err.lines[-2:]
    assert "missing.yaml" in team_file
    assert used_port.startswith(f"PROXY_PORT: port {port} of 127.0.0.1 is in use")


@pytest.mark.parametrize("is_used", [True, False])
def test_check_refuses_the_components_that_serve_refuses(run: Any, tmp_path: Path, is_used: bool) -> None:
    name = "default" if is_used else "spare"
    (tmp_path / "teams.yaml").write_text(
        f"models: {{{name}: {{provider: autogen_ext.models.nowhere.Client, config: {{api_key: hunter2}}}}}}\n"
        + TEAM
    )

    checked = run("check", "teams.yaml")
    lines = refusal(run("serve", "--port", "0", "--teams", "teams.yaml"))

    assert checked.exit_code == 1
    first = checked.stdout.splitlines()[0]
    assert f"models.{name}.provider" in first
    assert lines[-1] == first
    assert "hunter2" not in checked.output + lines[-1]


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"PROXY_OLDER_TEAM": "nobody"}, "PROXY_OLDER_TEAM: no team is called 'nobody'; there are library"),
        ({"PROXY_AGENT_TOOLS": "get_time,guess"}, "PROXY_AGENT_TOOLS: there is no tool 'guess'"),
        (
            {"OPENAI_BASE_URL": "http://[::1"},
            "model 'gpt-5-mini': its URL, or the name of a header, cannot be used",
        ),
        (
            {"PROXY_REDIS_URL": "redis://h:port"},
            "PROXY_REDIS_URL: should be an address like redis://host:6379/0",
        ),
        (
            {"PROXY_DATABASE_URL": "sqlite:///:memory:"},
            "the database URL names no file; an SQLite database in memory cannot be shared",
        ),
        (
            {"PROXY_DATA_DIR": "teams.yaml/data"},
            "PROXY_DATA_DIR: teams.yaml/data cannot be created (Not a directory)",
        ),
        (
            {"PROXY_DATA_DIR": "teams.yaml"},
            "PROXY_DATA_DIR: teams.yaml cannot be created (File exists)",
        ),
        (
            {"PROXY_HOST": "0.0.0.0"},
            "PROXY_HOST: 0.0.0.0 can be reached from other machines, and no keys are set.",
        ),
    ],
)
def test_check_rejects_the_settings_that_serve_rejects(
    run: Any, tmp_path: Path, variables: dict[str, str], sentence: str
) -> None:
    (tmp_path / "teams.yaml").write_text(TEAM)
    checked = run("check", "teams.yaml", **variables)
    assert checked.exit_code == 1
    assert os.listdir(tmp_path) == ["teams.yaml"]

    lines = refusal(run("serve", "--port", "0", "--teams", "teams.yaml", **variables))

    assert checked.stdout.splitlines()[0].startswith(sentence)
    assert lines[-1] == checked.stdout.splitlines()[0]


async def test_check_accepts_a_public_address_with_a_stored_key(tmp_path: Path) -> None:
    (tmp_path / "teams.yaml").write_text(TEAM)
    async with command("keys", "create", "k", folder=tmp_path) as creating:
        assert await creating.ended() == 0

    async with command(
        "check", "teams.yaml", folder=tmp_path, environment={"PROXY_HOST": "0.0.0.0"}
    ) as checking:
        assert await checking.ended() == 0, checking.out.text


async def test_an_invalid_component_is_reported_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "teams.yaml").write_text(
        "models: {default: {provider: autogen_ext.models.nowhere.Client, config: {api_key: hunter2}}}\n"
        + TEAM
    )
    async with command("serve", "--port", "0", "--teams", "teams.yaml", folder=tmp_path) as serving:
        assert await serving.ended() == 2

    assert "autogen_ext.models.nowhere.Client" in serving.err.lines[-1]
    assert "Traceback" not in serving.err.text
    assert "hunter2" not in serving.err.text


# --- migrate -------------------------------------------------------------------------------------------------


def test_the_database_is_created_and_brought_up_to_date(run: Any, tmp_path: Path) -> None:
    for _ in range(2):
        result = run("migrate", "--data-dir", "kept")
        assert (result.exit_code, result.output) == (0, "The database is up to date.\n")

    with sqlite3.connect(tmp_path / "kept" / "handoff-proxy.sqlite") as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    database.close()
    assert {"conversations", "turns", "items", "alembic_version"} <= tables


@pytest.mark.parametrize("arguments", [["migrate"], ["serve", "--port", "0"]], ids=" ".join)
def test_a_database_of_a_newer_version_is_left_alone(run: Any, tmp_path: Path, arguments: list[str]) -> None:
    run("migrate", "--data-dir", "data")
    database = sqlite3.connect(tmp_path / "data" / "handoff-proxy.sqlite")
    with database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()

    lines = refusal(run(*arguments))

    assert len(lines) == 1
    assert "newer version" in lines[0]


# --- serving -------------------------------------------------------------------------------------------------


async def test_start_up_prints_url_teams_and_models_and_logs_them_as_fields(
    tmp_path: Path,
) -> None:
    (tmp_path / "library.yaml").write_text(TEAM)
    async with command(
        "serve", "--port=0", "--teams=library.yaml", folder=tmp_path, is_forked=False
    ) as serving:
        url = await serving.url()
        async with AsyncOpenAI(base_url=url, api_key="any") as client:
            assert (await client.models.retrieve("library")).id == "library"
        serving.signal(signal.SIGTERM)
        assert await serving.ended() == 0

    assert serving.out.lines == [
        f"handoff-proxy {VERSION} listens on {url}",
        f"  page: {url.removesuffix('v1')}",
        f"  API documentation: {url.removesuffix('v1')}docs",
        "  teams: library",
        "  model default: demo model (offline)",
        "  The demonstration answers without a language model. To use one, set OPENAI_API_KEY,",
        "  or OPENAI_BASE_URL for a local server, and OPENAI_MODEL, and restart.",
    ]
    (line,) = [line for line in serving.log if line["message"] == "serving"]
    assert line["level"] == "INFO"
    assert (line["url"], line["teams"], line["version"]) == (url, ["library"], VERSION)
    assert line["models"] == {"default": "demo model (offline)"}
    assert {"time", "level", "logger", "message"} <= set.intersection(*(set(line) for line in serving.log))
    assert "color_message" not in serving.err.text
    assert any("OPENAI_API_KEY" in line["message"] for line in serving.log), "how to set a real model"


async def test_start_up_prints_name_and_host_of_a_model_and_no_demo(
    tmp_path: Path,
) -> None:
    environment = {
        "OPENAI_API_KEY": "sk-hunter2",
        "OPENAI_MODEL": "big-one",
        "OPENAI_BASE_URL": "http://user:hunter2@127.0.0.1:9/v1",
    }
    async with command("serve", "--port=0", folder=tmp_path, environment=environment) as serving:
        await serving.url()
        serving.signal(signal.SIGINT)
        assert await serving.ended() == 0

    assert "  model default: big-one at 127.0.0.1, with a key" in serving.out.lines
    assert "hunter2" not in serving.out.text + serving.err.text
    assert "demonstration" not in serving.out.text + serving.err.text


async def test_lines_of_the_environment_file_that_are_not_read_are_reported_once(
    run: Any, tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("LOG_LEVEL=INFO\n\nhunter2 is my key\nPROXY_DATADIR=x\n")
    expected = [
        ".env:3: not a line like NAME=value; it is ignored",
        "PROXY_DATADIR is not a setting, did you mean PROXY_DATA_DIR?",
    ]

    checked = run("check")
    async with command("serve", "--port=0", folder=tmp_path) as serving:
        await serving.url()

    warnings = [line["message"] for line in serving.log if line["level"] == "WARNING"]
    assert [message for message in warnings if message in expected] == expected
    assert checked.exit_code == 0
    assert checked.output.splitlines()[:2] == expected
    shown = checked.output + serving.err.text
    assert "hunter2" not in shown
    assert "dotenv" not in shown


async def test_a_team_file_that_is_not_used_is_reported(run: Any, tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text("teams: {t: {entry: A, agents: {A: {instructions: Hi.}}}}")
    expected = "team.yaml in the working folder is not used; set PROXY_TEAMS=team.yaml to serve its teams"

    checked = run("check")
    named = run("check", "team.yaml")
    set_ = run("check", PROXY_TEAMS="team.yaml")
    async with command("serve", "--port=0", folder=tmp_path) as serving:
        await serving.url()

    assert checked.output.splitlines()[0] == expected
    assert expected not in named.output + set_.output
    assert expected in [line["message"] for line in serving.log if line["level"] == "WARNING"]


async def test_a_misspelt_variable_is_logged(tmp_path: Path) -> None:
    environment = {"PROXY_TURN_TIMELIMIT": "hunter2"}
    async with command("serve", "--port=0", folder=tmp_path, environment=environment) as serving:
        await serving.url()

    warnings = [line["message"] for line in serving.log if line["level"] == "WARNING"]
    assert "PROXY_TURN_TIMELIMIT is not a setting, did you mean PROXY_TURN_TIME_LIMIT?" in warnings
    assert "hunter2" not in serving.err.text


# --- stopping ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def streaming(serving: Command) -> AsyncIterator[aiohttp.StreamReader]:
    """A streamed turn, read until the first words are there."""
    body = {"model": "shop", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{await serving.url()}/chat/completions", json=body) as response,
    ):
        assert response.status == 200
        line = b""
        while b"One" not in line:
            line = await response.content.readline()
            assert line, "the stream ended"
        yield response.content


async def rest_of(stream: aiohttp.StreamReader) -> list[Any]:
    """The remaining frames, the last of them ``[DONE]``."""
    lines = (await stream.read()).decode().splitlines()
    frames = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert frames.pop() == "[DONE]"
    return [json.loads(frame) for frame in frames]


def shop(folder: Path, upstream: FakeUpstream, grace: str) -> Any:
    (folder / "teams.yaml").write_text(TEAM_FILE.format(upstream=upstream.base_url))
    return command("serve", "--port=0", "--teams=teams.yaml", f"--shutdown-grace={grace}", folder=folder)


async def test_a_running_turn_gets_its_time_to_finish(tmp_path: Path) -> None:
    released = asyncio.Event()
    reply = text("One two", chunks=2).held(released, after=2)
    async with FakeUpstream(reply) as upstream, shop(tmp_path, upstream, grace="20") as serving:
        async with streaming(serving) as stream:
            serving.signal(signal.SIGTERM)
            await serving.err.line('"stopping"')
            released.set()
            frames = await rest_of(stream)
        assert await serving.ended() == 0

    assert frames[-1]["choices"][0]["finish_reason"] == "stop"
    (stopping,) = [line for line in serving.log if line["message"] == "stopping"]
    assert stopping["running_turns"] == 1


async def test_a_turn_that_does_not_finish_in_time_ends_with_an_error_and_not_with_a_cut(
    tmp_path: Path,
) -> None:
    reply = text("One two", chunks=2).hang(after=2)
    async with FakeUpstream(reply) as upstream, shop(tmp_path, upstream, grace="0.2") as serving:
        async with streaming(serving) as stream:
            serving.signal(signal.SIGTERM)
            frames = await rest_of(stream)
        await upstream.requests[0].closed()
        assert await serving.ended() == 0

    assert frames[-1]["error"]["code"] == "shutting_down"
    assert not any(choice["finish_reason"] for frame in frames[:-1] for choice in frame["choices"])
    assert "Traceback" not in serving.err.text


async def test_a_second_interrupt_waits_no_longer(tmp_path: Path) -> None:
    reply = text("One two", chunks=2).hang(after=2)
    async with FakeUpstream(reply) as upstream, shop(tmp_path, upstream, grace="600") as serving:
        async with streaming(serving) as stream:
            serving.signal(signal.SIGINT)
            await serving.err.line('"stopping"')
            serving.signal(signal.SIGINT)
            frames = await rest_of(stream)
        assert await serving.ended() == 0

    assert frames[-1]["error"]["code"] == "shutting_down"


# --- what is never logged ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
async def test_what_people_wrote_and_keys_are_not_in_the_log(tmp_path: Path, level: str) -> None:
    (tmp_path / "data").mkdir()
    environment = {"LOG_LEVEL": level, "PROXY_API_KEYS": "sk-marker", "PROXY_TEAMS": "teams.yaml"}
    order = calls(("execute_order", {"product": "a marker", "price": "$1.00"}))
    bad_order = calls(("execute_order", {"product": "a marker", "price": "marker"}))
    handoff = calls(("transfer_to_sales", {"reason": "a marker"}))
    replies = [handoff, order, bad_order, text("Your marker is on its way."), error(400, message="a marker")]
    async with FakeUpstream(*replies) as upstream:
        file = TEAM_FILE.format(upstream=upstream.base_url).replace("upstream-key", "upstream-marker")
        (tmp_path / "teams.yaml").write_text(file)
        async with command("serve", "--port=0", folder=tmp_path, environment=environment) as serving:
            url = await serving.url()
            async with AsyncOpenAI(base_url=url, api_key="sk-marker", max_retries=0) as client:
                for expected in ("Your marker is on its way.", None):
                    said: Any = [{"role": "user", "content": "I want a marker"}]
                    pending = client.chat.completions.create(
                        model="shop", messages=said, metadata={"marker": "marker"}, user="user-marker"
                    )
                    if expected is None:
                        with pytest.raises(APIError):
                            await pending
                    else:
                        assert (await pending).choices[0].message.content == expected
            async with AsyncOpenAI(base_url=url, api_key="wrong-marker", max_retries=0) as stranger:
                with pytest.raises(APIError, match="Incorrect API key"):
                    await stranger.models.list()
            async with aiohttp.ClientSession(headers={"authorization": "Bearer sk-marker"}) as session:
                for body in ('{"marker', '{"model": "shop", "messages": ["marker"]}'):
                    async with session.post(f"{url}/chat/completions?q=marker", data=body) as answer:
                        assert answer.status == 400
            serving.signal(signal.SIGTERM)
            assert await serving.ended() == 0

    assert len([line for line in serving.log if line["message"] == "request"]) == 5
    assert [line for line in serving.err.lines if "marker" in line.lower()] == []


# --- init ------------------------------------------------------------------------------------------------------


async def test_init_writes_a_team_that_is_served_without_further_changes(tmp_path: Path) -> None:
    async with command("init", "new", folder=tmp_path, is_forked=False) as written:
        assert await written.ended() == 0
    assert written.out.lines == [
        "wrote new/team.yaml", "wrote new/my_tools.py", "wrote new/.env", "Next: cd new && handoff-proxy serve"
    ]  # fmt: skip
    assert (tmp_path / "new" / ".env").stat().st_mode & 0o777 == 0o600

    async with command("check", "team.yaml", folder=tmp_path / "new") as checked:
        assert await checked.ended() == 0, checked.out.text
    async with command("serve", "--port", "0", folder=tmp_path / "new") as running:
        client = AsyncOpenAI(base_url=await running.url(), api_key="any", max_retries=0)
        async with client:
            models = [model.id async for model in client.models.list()]
            answer = await client.chat.completions.create(
                model="help-desk", messages=[{"role": "user", "content": "Hi"}]
            )
    assert models[0] == "help-desk"
    assert "Reception" in (answer.choices[0].message.content or "")


@pytest.mark.parametrize("existing", ["team.yaml", "my_tools.py", ".env"])
def test_init_overwrites_nothing(run: Any, tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_text("mine")

    result = run("init", str(tmp_path))

    assert refusal(result) == [f"{tmp_path / existing}: exists already; nothing was written"]
    assert [file.name for file in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def test_init_reports_a_folder_that_cannot_be_written(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = run("init", str(tmp_path / "file" / "folder"))

    assert len(refusal(result)) == 1
    assert "cannot be written (Not a directory)" in result.stderr
