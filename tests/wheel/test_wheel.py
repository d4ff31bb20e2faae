"""The wheel with the packages of the test environment; ``python -m tests.wheel`` installs these too."""

from __future__ import annotations

import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.wheel import build_wheel, check_installation


@pytest.mark.timeout(180)  # it builds and installs the wheel
def test_the_wheel_serves_a_new_team_and_the_page_from_an_empty_folder(tmp_path: Path) -> None:
    prefix, folder = tmp_path / "venv", tmp_path / "empty"
    folder.mkdir()
    venv.create(prefix)
    packages = next(prefix.glob("lib/python*/site-packages"))
    (packages / "tests.pth").write_text("\n".join(site.getsitepackages()))
    wheel = build_wheel(tmp_path / "dist")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", prefix / "bin" / "python", "install", "--quiet",
         "--no-deps", "--ignore-installed", "--no-index", "--no-warn-script-location", wheel],
        check=True,
    )  # fmt: skip

    check_installation(prefix, folder)

    installed = {path.name for path in (packages / "proxy").iterdir()}
    assert {"web", "migrations", "py.typed"} <= installed
