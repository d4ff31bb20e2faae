"""What the start of a server does not import, because its configuration does not need it."""

from __future__ import annotations

import subprocess
import sys

import pytest

RARELY_NEEDED = (
    "PIL._imaging", "aiohttp", "alembic", "encodings.idna", "google.protobuf.descriptor", "html.entities", "idna.core",
    "jsonschema_rs", "limits", "mako", "mcp", "prometheus_client", "pydantic.v1", "redis",
    "sqlalchemy.dialects.postgresql", "sqlalchemy.orm", "websockets", "yarl",
)  # fmt: skip

START = """
import sys, proxy.cli
with proxy.cli.bound_sockets("127.0.0.1", 0):
    pass
from proxy.lazy_imports import imports_of_server
with imports_of_server():
    import proxy.app, proxy.server
app = proxy.app.create_app(proxy.settings.load_settings(env_file=None))
for route in app.routes:
    route.matches({"type": "http", "method": "GET", "path": "/health", "root_path": ""})
"""


PROGRAM = f"""{START}
print(sorted({{*{RARELY_NEEDED}}} & {{*sys.modules}}))

from fastapi.openapi.models import OpenAPI
print(OpenAPI.__pydantic_complete__, app.openapi()["info"]["title"], OpenAPI.__pydantic_complete__)

import html, yarl, PIL.Image
print(PIL.Image.new("L", (1, 2)).size, yarl.URL("http://bücher.example").raw_host, html.escape("<"))

import pydantic, pydantic.v1
class Own(pydantic.BaseModel):
    a: int
class Older(pydantic.v1.BaseModel):
    a: int
print(Own.__pydantic_complete__, Older(a=1))
"""
"""It prints a line for each test; a start takes a second of CPU time."""


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path_factory.mktemp("imports"),
    )
    return done.stdout.splitlines()


def test_a_server_without_their_features_imports_no_large_libraries(printed: list[str]) -> None:
    assert printed[0] == "[]"


def test_models_of_dependencies_are_completed_when_they_are_used(printed: list[str]) -> None:
    assert printed[1] == "False handoff-proxy True"


def test_a_postponed_module_is_loaded_when_it_is_used(printed: list[str]) -> None:
    assert printed[2] == "(1, 2) xn--bcher-kva.example &lt;"


def test_models_of_users_are_as_always(printed: list[str]) -> None:
    assert printed[3] == "True a=1"
