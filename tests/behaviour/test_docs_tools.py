"""docs/tools.md: its tool is served by the team file line, and called directly as its test does."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

import pytest

from tests.fakes.team_files import check

PAGE = (Path(__file__).parents[2] / "docs" / "tools.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_tool_is_served_and_can_be_called_in_a_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (_, module), (_, line), (_, program), (_, output) = BLOCKS[:4]
    (tmp_path / "weather.py").write_text(module)
    team = tmp_path / "team.yaml"
    team.write_text(f"teams: {{t: {{entry: A, agents: {{A: {{instructions: x, {line.strip()}}}}}}}}}")
    monkeypatch.syspath_prepend(tmp_path)

    try:
        assert check(team).problems == ()
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(program, "docs/tools.md", "exec"), {"__name__": "__main__"})
    finally:
        sys.modules.pop("weather", None)

    assert printed.getvalue() == output
