"""Pass a message of another worker to the part that handles it."""

from __future__ import annotations

import logging

from proxy.service.remote_turns import RemoteTurns
from proxy.service.turn_messages import (
    CancelTurn,
    FollowTurn,
    ForwardedEvents,
    ListenToConversations,
    TurnBegan,
    UnfollowTurn,
    decode,
)
from proxy.service.turn_relay import TurnRelay
from proxy.turns.live_turns import LiveTurns

logger = logging.getLogger(__name__)


def dispatch(message: bytes, lives: LiveTurns, relay: TurnRelay, remote: RemoteTurns) -> None:
    """Handle a message of another worker."""
    match decode(message):
        case FollowTurn() as follow:
            relay.follow(follow)
        case UnfollowTurn(worker, turn_id, is_observer):
            relay.unfollow(turn_id, worker, is_observer=is_observer)
        case ForwardedEvents() as events:
            remote.receive(events)
        case CancelTurn(turn_id):
            live = lives.get(turn_id)
            if live is not None:
                live.stop("requested")
        case ListenToConversations() as listen:
            relay.listen(listen)
        case TurnBegan(conversation):
            remote.notify_turn_started(conversation)
        case None:
            logger.debug("message of a newer worker")
