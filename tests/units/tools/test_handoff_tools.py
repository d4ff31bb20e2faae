"""The words of delegate tools."""

from __future__ import annotations

import pytest

from proxy.messages import FunctionTool
from proxy.tools.handoff_tools import handoff_reason, handoff_result, handoff_tool_spec


def test_a_delegate_takes_an_optional_reason_and_nothing_else() -> None:
    assert handoff_tool_spec(
        "transfer_to_sales_agent", "SalesAgent", "For anything about buying."
    ) == FunctionTool(
        "transfer_to_sales_agent",
        "Hand the conversation over to SalesAgent. For anything about buying.",
        {
            "type": "object",
            "properties": {
                "reason": {
                    "type": "string",
                    "description": "What SalesAgent needs to know: what the user wants and what is already done.",
                }
            },
            "additionalProperties": False,
        },
    )


def test_a_delegate_without_a_when_still_says_what_it_does() -> None:
    assert handoff_tool_spec("go", "B", "  ").description == "Hand the conversation over to B."


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ('{"reason": " wants\\n a  refund "}', "wants a refund"),
        ('{"reason": "' + "x" * 400 + '"}', "x" * 299 + "…"),
        ('{"reason": "a\\ud800b\\u0000c"}', "a?b c"),
        ('{"reason": 5}', ""),
        ('{"because": "x"}', ""),
        ('["reason"]', ""),
        ('{"reason": "cut', ""),
        ("", ""),
        ("[" * 99_999, ""),
    ],
    ids=["spaces", "long", "unclean", "number", "other name", "list", "cut", "none", "deep"],
)
def test_the_reason_is_read_where_there_is_one(arguments: str, reason: str) -> None:
    assert handoff_reason(arguments) == reason


def test_the_result_of_a_handoff_instructs_the_next_agent() -> None:
    reported = handoff_result("IssuesAndRepairsAgent")

    assert reported.startswith("You are IssuesAndRepairsAgent, now the active agent.")
    assert "answer the user's last message yourself" in reported
    assert "transferred" not in reported.lower()
