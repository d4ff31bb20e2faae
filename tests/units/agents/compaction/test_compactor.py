"""The estimated size of a call: the same for items by column and for a list of them."""

from __future__ import annotations

import pytest

from proxy.agents.compaction.compactor import CallSize, Compactor
from proxy.agents.compaction.context_view import Cut, view_of
from proxy.agents.compaction.history import history_of
from proxy.agents.compaction.size import items_tokens
from proxy.messages import AssistantMessage, Item, Message, UserMessage
from proxy.turns.plain_items import PlainItems
from tests.fakes.models import ScriptedModel
from tests.fakes.teams import agent

MESSAGES: list[Message] = [
    UserMessage("Grüße"),
    AssistantMessage("Hello!", refusal="No."),
    UserMessage("Bye"),
]
ANSWER = AssistantMessage("One moment.")


@pytest.mark.parametrize(
    "own",
    [[], [Item(ANSWER, "sales")], [Item(ANSWER, "sales", tokens=500), Item(ANSWER, "sales")]],
    ids=["none", "estimated", "reported"],
)
@pytest.mark.parametrize("cut", [None, Cut("They met.", 2, behind=2)], ids=["whole", "cut"])
def test_estimate_is_that_of_a_list_of_items(own: list[Item], cut: Cut | None) -> None:
    model = ScriptedModel()
    compactor, sales = Compactor.disabled(model, "shop"), agent("sales", model)
    items = [Item(message) for message in MESSAGES]

    plain, listed = [
        compactor.estimate(
            sales, history_of("sales", context, own), cut, view_of(context, own, cut), CallSize(100)
        )
        for context in (PlainItems(MESSAGES), items)
    ]

    assert plain == listed
    assert (plain > 500) == any(item.tokens for item in own)
    assert items_tokens(PlainItems(MESSAGES)) == items_tokens(items)
