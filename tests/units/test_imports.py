"""What the start of a server does not import, because its configuration does not need it."""

from __future__ import annotations

import subprocess
import sys

RARELY_NEEDED = (
    "PIL._imaging", "aiohttp", "alembic", "google.protobuf.descriptor", "jsonschema_rs", "limits", "mako", "mcp",
    "prometheus_client", "redis", "sqlalchemy.dialects.postgresql", "sqlalchemy.orm",
)  # fmt: skip


def test_a_server_without_their_features_imports_no_large_libraries() -> None:
    program = f"import sys, proxy.cli, proxy.app, proxy.server; print(sorted({{*{RARELY_NEEDED}}} & {{*sys.modules}}))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_a_postponed_module_is_loaded_when_it_is_used() -> None:
    program = "import proxy.agents.dispatch, PIL.Image; print(PIL.Image.new('L', (1, 2)).size)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "(1, 2)"
