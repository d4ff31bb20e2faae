"""Where teams come from, and what their names refer to: the settings as ``load_teams`` needs them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from msgspec import Struct

from proxy.settings import Settings
from proxy.teamfiles.definitions import ComponentModel, DemoModel, ModelDefinition, OpenAIModel
from proxy.teamfiles.members import ImportMember, python_members
from proxy.teamfiles.name_checks import ImportTool
from proxy.tools.builtin import builtin_names
from proxy.tools.functions import function_tool, load_function
from proxy.tools.threads import ToolThreads

CheckComponent = Callable[[str, ComponentModel], object]
"""Validates an AutoGen component, given the name of the model. Raises ``ConfigurationError`` without config values."""

BUNDLED = Path(__file__).parent / "bundled"
"""The folder of the bundled teams and their scripts for the demo model."""
OPENAI_URL = "https://api.openai.com/v1"


class TeamSources(Struct, frozen=True):
    """What ``load_teams`` reads, and how it resolves names.

    ``path`` is a team file, or a folder of them. ``models_file`` defines further models, or is one model, which is then
    ``default``; its models replace those of the team files with the same names. ``default`` is the model ``default`` if
    the files do not define it; its key is also used for models with the same base URL. ``known_tools`` are the names of
    built-in tools. ``import_tool`` is called once per import path, with the folder of the team files, ``import_member``
    once per agent with ``python``, and ``check_component`` for each AutoGen component; all raise ``ConfigurationError``
    for an invalid one.
    """

    path: Path
    environment: Mapping[str, str]
    default: ModelDefinition
    import_tool: ImportTool
    import_member: ImportMember
    known_tools: Collection[str]
    check_component: CheckComponent | None = None
    models_file: Path | None = None

    @classmethod
    def of(
        cls,
        settings: Settings,
        environment: Mapping[str, str],
        threads: ToolThreads,
        *,
        check_component: CheckComponent | None = None,
    ) -> TeamSources:
        """Return the sources of the settings; blocking functions of tools and agents run in ``threads``."""
        return cls(
            path=settings.teams or BUNDLED,
            environment=environment,
            default=default_model(settings),
            import_tool=python_tools(threads),
            import_member=python_members(threads),
            known_tools=builtin_names(),
            check_component=check_component,
            models_file=settings.models,
        )

    @property
    def folder(self) -> Path:
        """The folder of the team files, which also has Python modules, MCP programs and the lock file."""
        return team_folder(self.path)


def default_model(settings: Settings) -> OpenAIModel | DemoModel:
    """Return the model ``default``: an OpenAI-compatible API, or the demo model if there is no key for OpenAI.

    Another base URL needs no key, because local servers accept requests without one. Sign-in at Entra ID is not for
    OpenAI: such a model is an error when it is used, and not the demo model.
    """
    base_url = settings.openai_base_url
    has_key = settings.openai_api_key is not None or settings.openai_auth == "entra"
    if not has_key and is_openai(base_url):
        return DemoModel(demo=True)
    return OpenAIModel(
        model=settings.openai_model,
        base_url=base_url,
        api_key=settings.openai_api_key,
        auth=settings.openai_auth,
    )


def is_openai(base_url: str) -> bool:
    """Return whether a base URL is that of OpenAI."""
    return base_url.rstrip("/") == OPENAI_URL


def python_tools(threads: ToolThreads) -> ImportTool:
    """Return an importer that creates tools from Python functions; blocking functions run in ``threads``."""
    return lambda path, folder: function_tool(load_function(path, folder), threads)


def team_folder(path: Path | None) -> Path:
    """Return the folder of the team files, which also has Python modules, MCP programs and the lock file."""
    path = path or BUNDLED
    return path if os.path.isdir(path) else path.parent
