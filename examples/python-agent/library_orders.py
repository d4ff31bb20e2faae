"""An agent without a model: it orders a book that the visitor approves."""

from collections.abc import AsyncIterator, Sequence

from proxy.members import HandOver, MemberContext, MemberEvent, Message, NotApproved

PRICES = {"moby-dick": 12, "the dispossessed": 9}
ORDERS: list[tuple[str, str]] = []


async def order(messages: Sequence[Message], context: MemberContext) -> AsyncIterator[str | MemberEvent]:
    """Order the book that the last message names, or hand over to the desk."""
    title = next((title for title in PRICES if title in context.text.lower()), None)
    if title is None and "Librarian" in context.handoffs:
        yield HandOver("Librarian", "the message names no book that can be ordered")
        return
    if title is None:  # there is no agent to hand over to, or the limit of handoffs is reached
        yield f"I can order {' and '.join(PRICES)}."
        return

    def send() -> str:
        ORDERS.append((context.end_user or context.caller, title))
        return f"order {len(ORDERS)}"

    context.report(f"found {title} for {PRICES[title]} euros")
    try:
        number = await context.run_approved("order_book", {"title": title, "price": PRICES[title]}, send)
    except NotApproved:
        yield "I did not order it."
        return
    context.state = {"ordered": [*(context.state or {"ordered": []})["ordered"], title]}
    yield f"Your book is ordered ({number}). You have ordered {len(context.state['ordered'])} so far."
