"""Run a turn that is stored as running: what it stores meanwhile, who handles its clients, and who hears of it."""

from __future__ import annotations

from msgspec import Struct

from proxy.service.disconnect_rules import DisconnectRules
from proxy.service.disconnected_turns import DisconnectedTurns, TurnWatch
from proxy.service.progress import ProgressStore, StoredTurn
from proxy.service.recording import StoredTurnContext
from proxy.service.remote_turns import RemoteTurns
from proxy.service.runner import RestoredLog, TurnRunner
from proxy.service.turn_relay import TurnRelay
from proxy.turns.contract import Team
from proxy.turns.live import LiveTurn
from proxy.turns.records import Begun
from proxy.turns.turn import Turn


class TurnLauncher(Struct, frozen=True):
    """Launches the turns of this process, those of requests and those that are taken over from other workers."""

    runner: TurnRunner
    progress: ProgressStore
    disconnected: DisconnectedTurns
    relay: TurnRelay
    remote: RemoteTurns

    def launch(
        self,
        begun: Begun,
        live: LiveTurn,
        team: Team,
        turn: Turn,
        context: StoredTurnContext,
        rules: DisconnectRules,
        restored: RestoredLog | None = None,
    ) -> None:
        """Run a turn, or let it continue if it runs already; ``restored`` as in ``TurnRunner.start``."""
        context.key = begun.turn
        turn.progress = turn.compactions = StoredTurn(
            self.progress, begun.turn, begun.conversation, context.request.is_stored
        )
        live.watcher = TurnWatch(self.disconnected, live, turn, begun.turn, rules)
        if turn.begin is None:
            self.runner.start(live, team, turn, context, restored)
        else:
            self.runner.confirm(live, turn)
        self.remote.notify_turn_started(begun.conversation)
        self.relay.turn_began(live, begun.conversation)
