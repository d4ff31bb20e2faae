"""Install the built wheel in an empty folder, and use it as after ``pip install handoff-proxy``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from collections.abc import Mapping
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).parents[2]
MAX_MEBIBYTES = 300
PAGES = ("/", "/page/app.js", "/page/vendor/markdown-it.js", "/docs", "/page/vendor/swagger-ui.js", "/redoc")
"""Files of the page and of the API documentation."""


def build_wheel(folder: Path) -> Path:
    """Build the wheel from this checkout; return its path."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, prefix: Path) -> None:
    """Create an environment with the wheel and its dependencies from the package index."""
    venv.create(prefix, with_pip=True)
    subprocess.run([prefix / "bin" / "python", "-m", "pip", "install", "--quiet", wheel], check=True)


def check_installation(prefix: Path, folder: Path, variables: Mapping[str, str] | None = None) -> None:
    """Write a team with ``init``, check it, serve it, and request an answer and the pages.

    ``PATH`` has only the environment, so that no program of the machine, such as Node, can be used.
    """
    program = prefix / "bin" / "handoff-proxy"
    environment = {"PATH": str(prefix / "bin"), **(variables or {})}

    def run(*arguments: str) -> str:
        return subprocess.run(
            [program, *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert run("--version").startswith("handoff-proxy ")
    run("init")
    run("check", "team.yaml")
    with subprocess.Popen(
        [program, "serve", "--port", "0"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            url = re.split(r"listens on ", server.stdout.readline().strip())[1].removesuffix("/v1")
            for path in PAGES:
                with urlopen(url + path, timeout=10) as response:
                    assert response.read(), path
            body = {"model": "help-desk", "messages": [{"role": "user", "content": "Hi"}]}
            request = Request(
                f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urlopen(request, timeout=20) as response:
                assert "Reception" in json.load(response)["choices"][0]["message"]["content"]
        finally:
            server.terminate()
    assert (folder / "data" / "handoff-proxy.sqlite").exists()


def mebibytes(prefix: Path) -> int:
    """Return the size of an environment on disk, as ``du -m`` does."""
    files = (path for path in prefix.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(path.stat().st_blocks * 512 for path in files) // 2**20
