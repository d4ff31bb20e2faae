"""Mutation tests: mutmut changes the code of a target, and the tests near it have to fail.

``python -m tests.mutation`` tests a random sample of all mutants of each target. Everything happens in a copy of the
repository. The score is the share of the sample that the tests detected. Mutants that mypy rejects, for example because
they replace a number by None, do not count. The comment ``# pragma: no mutate`` excludes a line whose mutants do not
change the behaviour; the comment above it gives the reason.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
_COPIED = ("proxy", "tests", "migrations", "docs", "examples", "README.md", "pyproject.toml")
_STOP_SECONDS = 30
_DETECTED = frozenset({"killed", "timeout", "segfault"})
_NOT_TESTED = frozenset({"not checked", "check was interrupted by user", "skipped", "caught by type check"})
# mutmut has no command that only lists mutants.
_LIST_MUTANTS = """
import sys
from pathlib import Path
from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.format_utils import get_mutant_name
for pattern in sys.argv[1:]:
    for path in sorted(Path().glob(pattern)):
        for mutant in mutate_file_contents(str(path), path.read_text("utf-8")).mutant_names:
            print(get_mutant_name(path, mutant))
"""
# A shell starts background jobs with SIGINT ignored; Python then never raises KeyboardInterrupt.
_MUTMUT = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from mutmut.__main__ import cli
cli(prog_name="mutmut")
"""


@dataclass(frozen=True)
class Target:
    """Files to mutate (glob patterns), and the tests that have to detect it."""

    name: str
    files: tuple[str, ...]
    tests: tuple[str, ...]
    is_type_checked: bool = True
    """Whether mypy filters the mutants. mutmut stops if a mutant causes a type error outside of itself."""


@dataclass(frozen=True)
class Score:
    """Result of one target. ``survivors`` are the mutants that no test detected, also if no test executes them."""

    target: str
    mutants: int
    tested: int
    survivors: tuple[str, ...]

    @property
    def percent(self) -> float:
        """Share of the tested mutants that were detected; 0 if none was tested."""
        return 100 * (self.tested - len(self.survivors)) / self.tested if self.tested else 0.0


class MutationFailed(Exception):
    """mutmut could not run the target, for example because its tests fail without a mutation."""


@contextmanager
def copy_for(target: Target) -> Iterator[Path]:
    """Return a copy of the repository in which mutmut mutates the files of ``target``."""
    with TemporaryDirectory(prefix="mutation-") as name:
        copy = Path(name)
        for part in _COPIED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__", "vendor"))
            else:
                shutil.copy(source, copy / part)
        with (copy / "pyproject.toml").open("a", encoding="utf-8") as file:
            file.write(_configuration(target, copy))
        yield copy


def sample_of(target: Target, copy: Path, *, size: int, seed: int) -> tuple[list[str], int]:
    """Return ``size`` mutants of the target, and the number of all its mutants."""
    done = subprocess.run(
        [sys.executable, "-c", _LIST_MUTANTS, *target.files],
        cwd=copy,
        capture_output=True,
        text=True,
        check=True,
    )
    mutants = sorted(done.stdout.split())
    return random.Random(f"{seed} {target.name}").sample(mutants, min(size, len(mutants))), len(mutants)


def run(target: Target, copy: Path, *, size: int, seed: int, seconds: float) -> Score:
    """Test a sample for at most ``seconds``; mutants for which no time was left are not in the score.

    Raises:
        MutationFailed: mutmut tested nothing.
    """
    sample, mutants = sample_of(target, copy, size=size, seed=seed)
    output = _mutmut(copy, "run", "--max-children", "2", *sample, seconds=seconds)
    statuses = dict(
        line.strip().rsplit(": ", 1)
        for line in _mutmut(copy, "results", "--all", "true").splitlines()
        if ": " in line
    )
    results = {
        name: status for name in sample if (status := statuses.get(name, "not checked")) not in _NOT_TESTED
    }
    if not results:
        raise MutationFailed(output[-2000:])
    survivors = tuple(sorted(name for name, status in results.items() if status not in _DETECTED))
    return Score(target.name, mutants, len(results), survivors)


def change_of(copy: Path, mutant: str) -> str:
    """Return the mutation as a diff."""
    return _mutmut(copy, "show", mutant)


def _mutmut(copy: Path, *arguments: str, seconds: float | None = None) -> str:
    """Run mutmut and return its output. At the limit it is interrupted, after which it has stored its results."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MUTMUT, *arguments],
        cwd=copy,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_STOP_SECONDS)[0]
        return ""
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _configuration(target: Target, copy: Path) -> str:
    def array(values: Sequence[str]) -> str:
        return "[" + ", ".join(f'"{value}"' for value in values) + "]"

    # Not strict: mutmut defines each function once for each mutant, and its own code has no types.
    mypy = [sys.executable, "-m", "mypy", "--config-file=", "--output=json", "--follow-imports=silent"]
    mypy += ["--cache-dir=../.mypy_cache"]
    mypy += [f"--disable-error-code={code}" for code in ("no-redef", "misc", "has-type")]
    mypy += [str(path.relative_to(copy)) for pattern in target.files for path in sorted(copy.glob(pattern))]
    # With "forkserver" no test runs before the fork, so statements that the store caches are mutated too.
    # PostgreSQL runs the same contract tests as SQLite; each process of a mutant would migrate a database first.
    return f"""
[tool.mutmut]
source_paths = ["proxy"]
only_mutate = {array(target.files)}
also_copy = ["migrations", "docs", "examples", "README.md"]
type_check_command = {array(mypy if target.is_type_checked else ())}
pytest_add_cli_args = ["-m", "not postgres", "--timeout=20"]
pytest_add_cli_args_test_selection = {array(target.tests)}
use_git_change_detection = false
process_isolation = "forkserver"
"""
