"""What changes while the turn service of a process runs."""

from __future__ import annotations

from dataclasses import dataclass

from proxy.service.team_lookup import TeamLookup


@dataclass(slots=True)
class ServiceState:
    """Written by ``TurnService`` only; its parts read it at each use, because it can change while they wait."""

    teams: TeamLookup
    """The teams of the turns that begin from now on."""
    is_closing: bool = False
    """Whether the process shuts down: no turn begins or is continued any more."""
