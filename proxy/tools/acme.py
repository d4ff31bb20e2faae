"""Tools of the bundled team ``acme-support``: orders, item search and refunds, stored in a small SQLite file.

An order belongs to the caller who placed it. Items bought in a shop are not recorded: they are looked up in a fixed
catalogue, and each can be refunded once per conversation.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated

from pydantic import Field

from proxy.errors import ToolError
from proxy.tools.functions import tool
from proxy.tools.port import ToolContext

FILE_NAME = "acme.sqlite"
MAX_FOUND = 5

CATALOGUE = {
    "acme-0101": ("Rocket-Powered Unicycle", 149_900),
    "acme-0102": ("Jet-Assisted Roller Skis", 89_950),
    "acme-0103": ("Spring-Loaded Welcome Mat", 24_900),
    "acme-0104": ("Self-Painting Tunnel Kit", 64_900),
    "acme-0105": ("Inflatable Cliff", 119_000),
    "acme-0106": ("Pocket Thundercloud", 39_950),
    "acme-0107": ("Roadrunner-Flavoured Magnet", 54_900),
    "acme-0108": ("Trampoline for Anvils", 74_900),
    "acme-0109": ("SpaceX 3000 Rocket Shoes", 300_000),
}
"""Items sold in shops: item id → (product, price in cents)."""

_STOP_WORDS = frozenset(
    {"a", "acme", "an", "and", "at", "bought", "for", "from", "i", "in", "is", "it", "item", "my", "of", "on"}
    | {"order", "product", "that", "the", "to", "was", "with"}
)

_Row = tuple[str, str, int, str]
"""Item id, product, cents, date of the order (empty for an item of the catalogue)."""

_TABLES = """
CREATE TABLE IF NOT EXISTS orders (
    item_id TEXT PRIMARY KEY,
    caller TEXT NOT NULL,
    call_key TEXT NOT NULL,
    product TEXT NOT NULL,
    cents INTEGER NOT NULL,
    ordered_at TEXT NOT NULL,
    UNIQUE (caller, call_key)
);
CREATE INDEX IF NOT EXISTS orders_by_caller ON orders (caller);
CREATE TABLE IF NOT EXISTS refunds (
    caller TEXT NOT NULL,
    scope TEXT NOT NULL,
    item_id TEXT NOT NULL,
    call_key TEXT NOT NULL,
    reason TEXT NOT NULL,
    refunded_at TEXT NOT NULL,
    PRIMARY KEY (caller, item_id, scope)
);
"""


def execute_order(
    product: Annotated[str, Field(description="The product's name.", min_length=1, max_length=200)],
    price: Annotated[float, Field(description="The agreed price in US dollars.", ge=0, le=1e12)],
    context: ToolContext,
) -> dict[str, str]:
    """Place an order for a product at an agreed price. Returns the item id, by which the order can be found later."""
    name = _clean(product, "product")
    cents = _cents(price)
    with _shop(context) as shop:
        shop.execute(
            "INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (caller, call_key) DO NOTHING",
            (f"item_{secrets.token_hex(4)}", context.caller, context.call_key, name, cents, _today()),
        )
        row = shop.execute(
            "SELECT item_id, product, cents, ordered_at FROM orders WHERE caller = ? AND call_key = ?",
            (context.caller, context.call_key),
        ).fetchone()
    return _item(*row, status="ordered")


@tool(has_effects=False)
def look_up_item(
    search_query: Annotated[
        str, Field(description="Words of the product's name, or an item id.", min_length=1, max_length=200)
    ],
    context: ToolContext,
) -> dict[str, object]:
    """Find items that the customer ordered or bought, by words of the product's name or by item id."""
    words = _words(search_query)
    with _shop(context) as shop:
        refunded = dict(
            shop.execute(
                "SELECT item_id, refunded_at FROM refunds WHERE caller = ? AND scope IN ('', ?)",
                (context.caller, context.conversation_id),
            )
        )
        owned = shop.execute(
            "SELECT item_id, product, cents, ordered_at FROM orders WHERE caller = ? ORDER BY rowid DESC LIMIT 1000",
            (context.caller,),
        ).fetchall()
    owned += [(item_id, product, cents, "") for item_id, (product, cents) in CATALOGUE.items()]
    found = _best(words, owned)
    if not found:
        return {"items": [], "note": "No items found. Ask for the product name on the receipt."}
    found.sort(key=lambda row: row[0] in refunded)
    return {
        "items": [
            _item(*row, status=f"refunded on {refunded[row[0]]}" if row[0] in refunded else "delivered")
            for row in found[:MAX_FOUND]
        ]
    }


def execute_refund(
    item_id: Annotated[
        str, Field(description="The item id that look_up_item returned.", min_length=1, max_length=64)
    ],
    context: ToolContext,
    reason: Annotated[
        str, Field(description="Why the customer wants a refund.", max_length=500)
    ] = "not provided",
) -> dict[str, str]:
    """Refund an item in full. An item can be refunded once."""
    item_id = item_id.strip().lower()
    with _shop(context) as shop:
        row = shop.execute(
            "SELECT item_id, product, cents, ordered_at FROM orders WHERE caller = ? AND item_id = ?",
            (context.caller, item_id),
        ).fetchone()
        # An order can be refunded once, an item of the catalogue once per conversation.
        scope = "" if row else context.conversation_id
        if row is None and item_id in CATALOGUE:
            row = (item_id, *CATALOGUE[item_id], "")
        if row is None:
            raise ToolError(f"there is no item {item_id!r}; look it up first")
        shop.execute(
            "INSERT INTO refunds VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (caller, item_id, scope) DO NOTHING",
            (context.caller, scope, item_id, context.call_key, reason, _today()),
        )
        call_key, refunded_at = shop.execute(
            "SELECT call_key, refunded_at FROM refunds WHERE caller = ? AND item_id = ? AND scope = ?",
            (context.caller, item_id, scope),
        ).fetchone()
    if call_key != context.call_key:
        raise ToolError(f"item {item_id!r} was already refunded on {refunded_at}")
    return _item(*row, status="refunded")


@contextmanager
def _shop(context: ToolContext) -> Iterator[sqlite3.Connection]:
    """Open the database, create missing tables and run the block in one transaction; roll back if it raises."""
    context.data_dir.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(context.data_dir / FILE_NAME, timeout=10)) as connection:
        connection.executescript(_TABLES)
        with connection:
            yield connection


def _item(item_id: str, product: str, cents: int, ordered_at: str, *, status: str) -> dict[str, str]:
    item = {"item_id": item_id, "product": product, "price": _money(cents), "status": status}
    return {**item, "ordered_on": ordered_at} if ordered_at else item


def _clean(text: str, argument: str) -> str:
    cleaned = " ".join(text.split())
    if not cleaned:
        raise ToolError(f"argument {argument!r} should not be empty")
    return cleaned


def _cents(price: float) -> int:
    return int((Decimal(str(price)) * 100).quantize(Decimal(1), ROUND_HALF_UP))


def _money(cents: int) -> str:
    return f"${cents // 100:,}.{cents % 100:02}"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _words(text: str) -> list[str]:
    words = [word.strip("'") for word in re.findall(r"[\w']+", text.casefold())]
    significant = [word for word in words if word and word not in _STOP_WORDS]
    return significant or words


def _best(words: list[str], rows: list[_Row]) -> list[_Row]:
    """Return the rows that match most of the words, in the order of ``rows``; empty if none matches half of them."""
    scores = [_score(words, f"{item_id} {product}") for item_id, product, *_ in rows]
    best = max(scores)
    if 2 * best < len(words) or not best:
        return []
    return [row for score, row in zip(scores, rows, strict=True) if score == best]


def _score(words: list[str], text: str) -> int:
    """Count the words that occur in the text: as a word, as the prefix of a word, or as its plural with "s"."""
    text_words = _words(text)
    return sum(
        any(other.startswith(word) or word == f"{other}s" for other in text_words) for word in set(words)
    )
