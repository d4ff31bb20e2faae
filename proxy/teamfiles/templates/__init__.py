"""The files that ``handoff-proxy init`` writes."""

from __future__ import annotations

import os
from pathlib import Path

from proxy.errors import ConfigurationError

_FILES = {"team.yaml": "team.yaml", "my_tools.py": "my_tools.py", ".env": "env"}
"""Names of the written files, and of their templates."""


def write_templates(folder: Path) -> list[Path]:
    """Write a commented team file, a module with a tool, and ``.env`` to ``folder``.

    The folder is created if it does not exist. ``.env`` is readable for its owner only, because API keys will be
    written to it. Returns the paths.

    Raises:
        ConfigurationError: One of the files exists, in which case none is written, or a file cannot be written.
    """
    targets = {folder / name: Path(__file__).parent / template for name, template in _FILES.items()}
    existing = [str(target) for target in targets if os.path.lexists(target)]
    if existing:
        raise ConfigurationError(
            "\n".join(f"{target}: exists already; nothing was written" for target in existing)
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for target, template in targets.items():
            mode = 0o600 if target.name == ".env" else 0o666
            # O_EXCL: a file that appeared in the meantime is not overwritten.
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(template.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: cannot be written ({error.strerror})") from None
    return list(targets)
