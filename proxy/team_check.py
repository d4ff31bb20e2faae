"""Validate the configured team files, and call their models, without a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct

from proxy.settings import Settings
from proxy.settings_check import team_problems
from proxy.teamfiles.definitions import ComponentModel, DemoModel
from proxy.teamfiles.loader import Report, check_teams, load_teams
from proxy.teamfiles.summary import models_in_use
from proxy.teamfiles.team_sources import TeamSources
from proxy.tools.threads import ToolThreads

if TYPE_CHECKING:
    from proxy.providers.probe import Probe


def load_component(name: str, definition: ComponentModel) -> None:
    """Load an AutoGen component in the same way as the server.

    Raises:
        ConfigurationError: The component cannot be imported or created.
    """
    # Imported on first use: importing AutoGen takes a second, and most files have no components.
    from proxy.providers.autogen.client import ComponentChatModel

    ComponentChatModel.load(name, definition)


def check_configured_teams(settings: Settings, *, environment: Mapping[str, str] = os.environ) -> Report:
    """Validate the configured team files, and the settings that refer to them.

    ``environment`` provides the variables that the files reference.
    """
    threads = ToolThreads()
    try:
        sources = TeamSources.of(settings, environment, threads, check_component=load_component)
        return check_teams(sources, check_loaded=partial(team_problems, settings))
    finally:
        threads.close()


class Connections(Struct, frozen=True):
    """One line for each model and external agent; ``is_ok`` if all models answered."""

    lines: tuple[str, ...]
    is_ok: bool


async def check_connections(
    settings: Settings, *, environment: Mapping[str, str] = os.environ
) -> Connections:
    """Call each model of the team files and the models file for a tool call and a short answer.

    Raises:
        ConfigurationError: The files have errors, or a model cannot be created.
    """
    # The check of the files alone needs none of these.
    import asyncio

    from proxy.providers.demo.client import DemoClient as DemoChatModel
    from proxy.providers.factory import build_models
    from proxy.providers.probe import probe

    threads = ToolThreads()
    try:
        sources = TeamSources.of(settings, environment, threads, check_component=load_component)
        loaded = load_teams(sources, needs_pins=False)
    finally:
        threads.close()
    in_use = set(models_in_use(loaded.definitions))
    models_of_files = loaded.definitions.models.items()
    real = {name: model for name, model in models_of_files if not isinstance(model, DemoModel)}
    models = build_models(real, settings, demo=lambda name, definition: DemoChatModel())
    try:
        candidates = models.each()
        found = await asyncio.gather(*(probe(candidates[name].model) for name in real))
        results = zip(real, found, strict=True)
        called = [
            _line(name, candidates[name].model.name, candidates[name].address, one) for name, one in results
        ]
    finally:
        await models.close()
    scripted = [f"{name}: not called: the demonstration answers" for name in sorted(in_use - real.keys())]
    external = [
        f"{team}/{name}: not called: an external agent can have effects"
        for team, definition in loaded.definitions.teams.items()
        for name, agent in definition.agents.items()
        if agent.member is not None
    ]
    return Connections((*called, *scripted, *external), all(one.failure is None for one in found))


def _line(name: str, model: str, address: str, found: Probe) -> str:
    """Return the result of one model in one line, and a second one for what its provider rejects."""
    place = f"{model} at {address}" if address else model
    parts = [f"wire {found.wire}"]
    if found.failure is None:
        parts.insert(0, "ok")
    else:
        facts = {name: value for name, value in found.failure.facts.items() if name != "host"}
        details = "; ".join(f"{name} {value}" for name, value in facts.items())
        parts.insert(0, f"failed: {found.failure.label}" + (f" ({details})" if details else ""))
    if found.has_answered:
        parts += [
            f"streaming {_yes(found.is_streamed)}",
            f"tools {_yes(found.has_tools)}",
            f"reasoning {_yes(found.has_reasoning)}",
        ]
    if found.first_delta is not None:
        parts.append(f"first content after {found.first_delta:.2f} s")
    parts.append(f"total {found.total:.2f} s")
    line = f"{name} ({place}): {', '.join(parts)}"
    return line if not found.adaptations else f"{line}\n  adapted: {'; '.join(found.adaptations)}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
