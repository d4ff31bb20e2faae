"""A tool that may not run twice, and remembers that it ran: each run is a line of a file in the data folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

from proxy.tools import Context


async def pay(amount: int, to: str, context: Context) -> str:
    """Pay an amount to somebody."""
    with (context.data_dir / "paid").open("a") as book:
        book.write(f"{context.call_key} {amount} {to}\n")
    while (context.data_dir / "closed").exists():
        await asyncio.sleep(0.01)
    return f"paid {amount} to {to}"


async def greet(name: str) -> str:
    """Greet a person; needs no approval."""
    return f"greeted {name}"


def paid(folder: Path) -> list[str]:
    """What was paid by the servers of the folder, without the keys of the calls."""
    book = folder / "data" / "paid"
    return [line.partition(" ")[2] for line in book.read_text().splitlines()] if book.exists() else []
