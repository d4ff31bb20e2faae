"""Tools that record their runs and take a while: each run is a line of a file in the data folder."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from proxy.tools import Context, tool

SECONDS = 0.1


@tool(has_effects=False)
async def look_up(order: str) -> str:
    """Look up an order."""
    await asyncio.sleep(SECONDS)
    return f"{order} was delivered"


async def refund(order: str, context: Context) -> str:
    """Refund an order."""
    with (context.data_dir / "refunds").open("a") as file:
        file.write(f"{order}\n")
    await asyncio.sleep(SECONDS)
    return f"{order} was refunded"


def refunds(folder: Path) -> Counter[str]:
    """Return the number of refunds by order."""
    file = folder / "data" / "refunds"
    return Counter(file.read_text().splitlines() if file.exists() else [])
