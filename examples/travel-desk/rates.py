# rates.py
"""Exchange rates, as a tool."""

from typing import Annotated

from proxy.tools import Context, ToolError, tool

RATES = {"EUR": 1.0, "CHF": 0.94, "USD": 1.08}


@tool(has_effects=False)
def convert(
    amount: Annotated[float, "The amount to convert."],
    source: Annotated[str, "Three letters, for example EUR."],
    target: Annotated[str, "Three letters, for example CHF."],
    context: Context,
) -> dict[str, object]:
    """Convert an amount of money to another currency."""
    for currency in (source, target):
        if currency not in RATES:
            raise ToolError(f"there is no rate for {currency!r}; there are {', '.join(RATES)}")
    return {"amount": round(amount / RATES[source] * RATES[target], 2), "currency": target}
