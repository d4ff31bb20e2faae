"""Everything that prevents a start is reported at once: each two problems, in every combination that is possible."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.test_asgi import UVICORN, server

TEAM = """\
teams:
  library:
    entry: Librarian
    agents:
      Librarian:
        instructions: You work in a library.
"""
BROKEN = TEAM.replace("entry: Librarian", "entry: Librarain")
COMPONENT = "models: {spare: {provider: nowhere.Client, config: {}}}\n" + TEAM


@dataclass(frozen=True)
class Problem:
    """A reason why a server cannot start: variables and files that cause it, and how its line begins."""

    name: str
    line: str
    variables: Mapping[str, str] = field(default_factory=dict)
    file: tuple[str, bytes] | None = None
    needs: frozenset[str] = frozenset()
    """What the check needs to know."""
    hides: frozenset[str] = frozenset()
    """What is not known because of the problem."""

    def is_independent_of(self, other: Problem) -> bool:
        """Whether both can exist at once, and neither check needs what the other problem hides."""
        return not (
            self.variables.keys() & other.variables.keys()
            or self.needs & other.hides
            or other.needs & self.hides
        )


def problem(
    name: str,
    line: str,
    *,
    file: tuple[str, bytes] | None = None,
    needs: str = "",
    hides: str = "",
    **variables: str,
) -> Problem:
    return Problem(name, line, variables, file, frozenset(needs.split()), frozenset(hides.split()))


PROBLEMS = [
    problem("missing teams", "missing.yaml: cannot be read", PROXY_TEAMS="missing.yaml", hides="teams"),
    problem(
        "teams without syntax",
        "bad.yaml:1:",
        PROXY_TEAMS="bad.yaml",
        file=("bad.yaml", b"teams: ["),
        needs="variables",
        hides="teams",
    ),
    problem(
        "wrong name",
        "wrong.yaml:3:12",
        PROXY_TEAMS="wrong.yaml",
        file=("wrong.yaml", BROKEN.encode()),
        needs="variables",
    ),
    problem(
        "unknown component",
        "component.yaml:1:",
        PROXY_TEAMS="component.yaml",
        file=("component.yaml", COMPONENT.encode()),
        needs="variables",
    ),
    problem("missing models", "models.yaml: cannot be read", PROXY_MODELS="models.yaml"),
    problem("invalid base URL", "OPENAI_BASE_URL: should be", OPENAI_BASE_URL="ftp://h/v1", hides="url"),
    problem(
        "unusable base URL",
        "model 'gpt-5-mini': its URL",
        OPENAI_BASE_URL="http://[::1",
        hides="url",
        needs="variables",
    ),
    problem(
        "sign-in without a URL",
        "model 'gpt-5-mini': auth: entra needs",
        OPENAI_AUTH="entra",
        needs="variables url",
    ),
    problem("unknown team", "PROXY_OLDER_TEAM: no team", PROXY_OLDER_TEAM="nobody", needs="teams variables"),
    problem("unknown tool", "PROXY_AGENT_TOOLS: there is no", PROXY_AGENT_TOOLS="guess", needs="variables"),
    problem("foreign address", "PROXY_HOST: 192.0.2.1 is not", PROXY_HOST="192.0.2.1", hides="address"),
    problem("no keys", "PROXY_HOST: 0.0.0.0 can be", PROXY_HOST="0.0.0.0", needs="variables database"),
    problem("used port", "PROXY_PORT: port ", PROXY_PORT="", needs="address variables"),
    problem("invalid port", "PROXY_PORT: should be", PROXY_PORT="eighty"),
    problem("data folder", "PROXY_DATA_DIR: taken/data", PROXY_DATA_DIR="taken/data"),
    problem(
        "database in memory",
        "the database URL names no file",
        PROXY_DATABASE_URL="sqlite:///:memory:",
        hides="database",
    ),
    problem(
        "no database server",
        "the database 127.0.0.1:1/name cannot be used",
        PROXY_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/name",
        hides="database",
    ),
    problem(
        "newer database",
        "the database was migrated by a newer version",
        PROXY_DATABASE_URL="sqlite:///newer.sqlite",
        hides="database",
    ),
    problem("data folder of the kernel", "PROXY_DATA_DIR: /proc/data", PROXY_DATA_DIR="/proc/data"),
    problem(
        "address of the collector",
        "OTEL_EXPORTER_OTLP_ENDPOINT: should be",
        PROXY_TRACING="true",
        OTEL_EXPORTER_OTLP_ENDPOINT="collector:4318",
        needs="variables",
    ),
    problem("Redis", "PROXY_REDIS_URL: should be", PROXY_REDIS_URL="redis://h:port"),
    problem("certificate", "PROXY_TLS_CERTIFICATE: no.pem cannot be read", PROXY_TLS_CERTIFICATE="no.pem"),
    problem("key", "PROXY_TLS_KEY: ", PROXY_TLS_KEY="no-key.pem", needs="variables"),
    problem("invalid number", "PROXY_MAX_MESSAGES: should be", PROXY_MAX_MESSAGES="0"),
    problem("unreadable .env", ".env: cannot be read", file=(".env", b"A=\xff"), hides="variables"),
]


PAIRS = [pair for pair in combinations(PROBLEMS, 2) if pair[0].is_independent_of(pair[1])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "taken").write_text("a file")
    with sqlite3.connect(tmp_path / "newer.sqlite") as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES ('9999')")
    database.close()
    return tmp_path


@pytest.fixture(scope="module")
def used_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield str(taken.getsockname()[1])


def reported(run: Any, folder: Path, problems: tuple[Problem, ...], port: str, *command: str) -> list[str]:
    """Return the lines of the report on problems."""
    variables = {"PROXY_PORT": "0"}
    for one in problems:
        variables |= {name: value or port for name, value in one.variables.items()}
        if one.file is not None:
            (folder / one.file[0]).write_bytes(one.file[1])
    result = run(*command, **variables)
    assert result.exit_code in (1, 2), result.output
    assert "hunter2" not in result.output
    return [line for line in result.output.splitlines() if line]


@pytest.mark.parametrize("command", ["serve", "check"])
@pytest.mark.parametrize("first", PROBLEMS, ids=lambda one: one.name.replace(" ", "-"))
def test_each_other_problem_is_reported_together_with_the_first(
    run: Any, folder: Path, used_port: str, first: Problem, command: str
) -> None:
    # A server can be running while files are checked.
    pairs = [pair for pair in PAIRS if command == "serve" or all(one.name != "used port" for one in pair)]
    for pair in pairs:
        if pair[0] is first:
            lines = reported(run, folder, pair, used_port, command)
            found = [[line for line in lines if line.startswith(one.line)] for one in pair]

            assert [len(one) for one in found] == [1, 1], (pair[0].name, pair[1].name, lines)
            if (env_file := folder / ".env").exists():
                env_file.unlink()
    assert not (folder / "data").exists(), "nothing was created"


def test_workers_report_all_problems(run: Any, folder: Path, used_port: str) -> None:
    pair = tuple(one for one in PROBLEMS if one.name in ("missing teams", "data folder"))

    alone = reported(run, folder, pair, used_port, "serve")

    assert reported(run, folder, pair, used_port, "serve", "--workers", "2") == alone


async def test_another_asgi_server_reports_all_problems(folder: Path) -> None:
    variables = {
        "PROXY_TEAMS": "missing.yaml",
        "PROXY_DATABASE_URL": "postgresql://me:hunter2@127.0.0.1:1/name",
        "PROXY_MAX_MESSAGES": "0",
    }
    async with server(folder, *UVICORN, "--port", "0", environment=variables) as (process, errors):
        await process.wait()
        await errors.reading

    assert process.returncode == 3
    assert errors.lines == [
        "missing.yaml: cannot be read: No such file or directory",
        "the database 127.0.0.1:1/name cannot be used (ConnectionRefusedError)",
        "PROXY_MAX_MESSAGES: should be a whole number from 1 up",
    ]


@pytest.mark.parametrize("variable", ["PROXY_TEAMS", "PROXY_DATA_DIR"])
def test_a_home_folder_that_does_not_exist_is_reported_without_a_traceback(run: Any, variable: str) -> None:
    result = run("serve", "--port", "0", **{variable: "~nobody-of-that-name/folder"})

    assert result.exit_code == 2
    assert result.stderr == f"{variable}: should be a path\n"


def test_a_database_that_is_not_ready_is_a_notice_of_check(run: Any, tmp_path: Path) -> None:
    (tmp_path / "teams.yaml").write_text(TEAM)

    result = run("check", "teams.yaml", PROXY_DATABASE_URL="postgresql://me:hunter2@127.0.0.1:1/name")

    assert result.exit_code == 0
    assert result.stdout.startswith("the database 127.0.0.1:1/name cannot be used (ConnectionRefusedError)\n")
