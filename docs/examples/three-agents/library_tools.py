"""The catalogue of a small library, as tools."""

import json
from typing import Annotated

from proxy.tools import Context, ToolError, tool

BOOKS = {
    "b1": "The Left Hand of Darkness",
    "b2": "The Dispossessed",
    "b3": "Moby-Dick",
}


@tool(has_effects=False)
def find_book(title: Annotated[str, "Words of the title, in any order."]) -> list[dict[str, str]]:
    """Find books by words of their title. Return an empty list if there are none."""
    words = title.casefold().split()
    return [
        {"book_id": book_id, "title": name}
        for book_id, name in BOOKS.items()
        if all(word in name.casefold() for word in words)
    ]


@tool
def reserve_book(book_id: str, days: Annotated[int, "Number of days."], context: Context) -> str:
    """Reserve a book for the visitor."""
    if book_id not in BOOKS:
        raise ToolError(f"there is no book {book_id}; find it first")
    file = context.data_dir / "reservations.json"
    reservations = json.loads(file.read_text()) if file.exists() else {}
    # After a failure the same call can be repeated with the same key.
    reservations[context.call_key] = {"book": book_id, "days": days, "for": context.caller}
    file.write_text(json.dumps(reservations))
    return f"{BOOKS[book_id]} is reserved for {days} days."
