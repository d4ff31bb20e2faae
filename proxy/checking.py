"""Checks team files without serving them, and without the server's parts."""

from __future__ import annotations

import os
from collections.abc import Mapping

from proxy.settings import Settings
from proxy.teamfiles.definitions import ComponentModel
from proxy.teamfiles.loading import Report, check_teams, default_model, python_tools
from proxy.tools.builtin import builtin_names
from proxy.tools.threads import ToolThreads


def load_component(name: str, definition: ComponentModel) -> None:
    """Load an AutoGen component as serving does.

    Raises:
        ConfigurationError: It cannot be imported or created.
    """
    # Importing AutoGen takes a second; files without components need not wait for it.
    from proxy.providers.autogen.client import ComponentChatModel

    ComponentChatModel.load(name, definition)


def check_teams_at(settings: Settings, *, environment: Mapping[str, str] = os.environ) -> Report:
    """Check the team files that the settings name, without serving; they may name variables of ``environment``."""
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
