"""Limits and intervals of the turns of a process."""

from __future__ import annotations

from msgspec import Struct

from proxy.turns.request import DisconnectPolicy


class Policy(Struct, frozen=True):
    """Limits and intervals of turns, in seconds."""

    turn_time_limit: float = 600.0
    on_disconnect: DisconnectPolicy = "cancel"
    disconnect_grace: float = 30.0
    """Time for which a turn waits for a client that has disconnected."""
    lease: float = 15.0
    """Time until the lock of a dead worker's turn expires."""
    heartbeat: float = 2.0
    """Interval at which leases are renewed and cancellation requests from other workers are read."""
    follow: float = 0.25
    """Polling interval for turns of other workers that have a reader here."""
    listen: float = 1.0
    """Polling interval for conversations that have a listener here."""
