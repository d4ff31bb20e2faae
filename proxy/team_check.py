"""Validate the configured team files for ``handoff-proxy check``, without starting a server."""

from __future__ import annotations

import os
from collections.abc import Mapping

from proxy.settings import Settings
from proxy.teamfiles.definitions import ComponentModel
from proxy.teamfiles.loading import Report, check_teams, default_model, python_tools
from proxy.tools.builtin import builtin_names
from proxy.tools.threads import ToolThreads


def load_component(name: str, definition: ComponentModel) -> None:
    """Load an AutoGen component in the same way as the server.

    Raises:
        ConfigurationError: The component cannot be imported or created.
    """
    # Imported on first use: importing AutoGen takes a second, and most files have no components.
    from proxy.providers.autogen.client import ComponentChatModel

    ComponentChatModel.load(name, definition)


def check_configured_teams(settings: Settings, *, environment: Mapping[str, str] = os.environ) -> Report:
    """Validate the configured team files; ``environment`` provides the variables that they reference."""
    threads = ToolThreads()
    try:
        return check_teams(
            settings.teams,
            environment=environment,
            default=default_model(settings),
            known_tools=builtin_names(),
            import_tool=python_tools(threads),
            check_component=load_component,
            models_file=settings.models,
        )
    finally:
        threads.close()
