"""The rules for a turn whose clients leave, by the policies of request, team and server."""

from __future__ import annotations

import pytest

from proxy.service.disconnect_rules import DisconnectRules, disconnect_rules
from proxy.turns.request import DisconnectPolicy


@pytest.mark.parametrize(
    ("requested", "default", "grace", "is_immediate"),
    [
        (None, "cancel", 5.0, False),
        (None, "detach", None, False),
        ("cancel", "cancel", 0.0, True),
        ("cancel", "detach", 0.0, True),
        ("detach", "cancel", None, False),
        ("detach", "detach", None, False),
    ],
)
def test_the_policy_of_the_request_precedes_and_a_requested_cancellation_has_no_grace(
    requested: DisconnectPolicy | None, default: DisconnectPolicy, grace: float | None, is_immediate: bool
) -> None:
    for has_key, is_repeatable in ((False, False), (True, False), (False, True)):
        rules = disconnect_rules(requested, default, 5.0, has_key=has_key, is_repeatable=is_repeatable)

        assert rules == DisconnectRules(grace, is_immediate, has_key, is_repeatable)
