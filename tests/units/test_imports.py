"""What the start of a server does not import, because its configuration does not need it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RARELY_NEEDED = (
    "PIL._imaging", "aiohttp", "alembic", "google.protobuf.descriptor", "html.entities", "idna.core", "jsonschema_rs",
    "limits", "mako", "mcp", "prometheus_client", "pydantic.v1", "redis", "sqlalchemy.dialects.postgresql",
    "sqlalchemy.orm", "websockets",
)  # fmt: skip

START = """
import sys, proxy.cli
from proxy.lazy_imports import imports_of_server
with imports_of_server():
    import proxy.app, proxy.server
app = proxy.app.create_app(proxy.settings.load_settings(env_file=None))
for route in app.routes:
    route.matches({"type": "http", "method": "GET", "path": "/health", "root_path": ""})
"""


def test_a_server_without_their_features_imports_no_large_libraries(tmp_path: Path) -> None:
    assert _printed(f"{START}print(sorted({{*{RARELY_NEEDED}}} & {{*sys.modules}}))", tmp_path) == "[]"


def test_a_postponed_module_is_loaded_when_it_is_used(tmp_path: Path) -> None:
    program = """
import html, yarl, PIL.Image
print(PIL.Image.new("L", (1, 2)).size, yarl.URL("http://bücher.example").raw_host, html.escape("<"))
"""

    assert _printed(START + program, tmp_path) == "(1, 2) xn--bcher-kva.example &lt;"


def test_models_of_dependencies_are_completed_when_they_are_used(tmp_path: Path) -> None:
    program = """
from fastapi.openapi.models import OpenAPI
print(OpenAPI.__pydantic_complete__, app.openapi()["info"]["title"], OpenAPI.__pydantic_complete__)
"""

    assert _printed(START + program, tmp_path) == "False handoff-proxy True"


def test_models_of_users_are_as_always(tmp_path: Path) -> None:
    program = """
import pydantic, pydantic.v1
class Own(pydantic.BaseModel):
    a: int
class Older(pydantic.v1.BaseModel):
    a: int
print(Own.__pydantic_complete__, Older(a=1))
"""

    assert _printed(START + program, tmp_path) == "True a=1"


def _printed(program: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=folder
    )
    return done.stdout.strip()
