"""The shop of the bundled team, called the way agents call it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.messages import FunctionTool
from proxy.tools.acme import FILE_NAME
from proxy.tools.builtin import builtin_names, builtin_tools
from proxy.tools.execution import call_tool
from proxy.tools.port import ToolContext
from proxy.tools.threads import ToolThreads

SKATES = "Jet-Propelled Roller Skates"


class Shop:
    """The shop seen by one caller in one conversation; every call has a key of its own unless one is given."""

    def __init__(
        self, threads: ToolThreads, data_dir: Path, caller: str = "ann", conversation: str = "c1"
    ) -> None:
        self._tools = builtin_tools(threads)
        self._data_dir = data_dir
        self._caller = caller
        self._conversation = conversation
        self._calls = 0

    async def call(self, tool: str, key: str | None = None, **arguments: object) -> str:
        self._calls += 1
        call_key = key or f"{self._caller}:{self._conversation}:{self._calls}"
        context = ToolContext(call_key, "t", self._conversation, self._caller, "agent", self._data_dir)
        result = await call_tool(
            self._tools[tool], json.dumps(arguments), context, time_limit=20, max_result_bytes=9999
        )
        assert result.is_error == result.text.startswith("error: ")
        return result.text

    async def answer(self, tool: str, key: str | None = None, **arguments: object) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(await self.call(tool, key, **arguments))
        return answer

    async def found(self, search_query: str) -> list[tuple[str, str]]:
        answer = await self.answer("look_up_item", search_query=search_query)
        return [(item["product"], item["status"]) for item in answer["items"]]


@pytest.fixture
def threads() -> Iterator[ToolThreads]:
    created = ToolThreads()
    yield created
    created.close()


@pytest.fixture
def shop(threads: ToolThreads, tmp_path: Path) -> Shop:
    return Shop(threads, tmp_path / "not" / "there" / "yet")


async def test_what_is_ordered_can_be_looked_up_and_refunded_once(shop: Shop) -> None:
    order = await shop.answer("execute_order", product=f"  {SKATES}\n", price=1234567.895)
    assert re.fullmatch(r"item_[0-9a-f]{8}", order["item_id"])
    assert {**order, "item_id": "", "ordered_on": ""} == {
        "item_id": "",
        "product": SKATES,
        "price": "$1,234,567.90",
        "status": "ordered",
        "ordered_on": "",
    }

    looked_up = await shop.answer("look_up_item", search_query="jet-propelled SKATES")
    assert looked_up == {"items": [{**order, "status": "delivered"}]}

    refund = await shop.answer("execute_refund", item_id=order["item_id"], reason="too fast")
    assert refund == {**order, "status": "refunded"}

    again = await shop.call("execute_refund", item_id=order["item_id"])
    assert again == f"error: item '{order['item_id']}' was already refunded on {order['ordered_on']}"
    assert (await shop.answer("look_up_item", search_query=order["item_id"]))["items"][0]["status"] == (
        f"refunded on {order['ordered_on']}"
    )


async def test_a_repeated_call_orders_and_refunds_once_and_gives_the_same_answer(shop: Shop) -> None:
    orders = [await shop.answer("execute_order", "t1:2:0", product=SKATES, price=5) for _ in range(3)]
    refunds = [await shop.answer("execute_refund", "t2:1:0", item_id=orders[0]["item_id"]) for _ in range(3)]

    assert orders == [orders[0]] * 3
    assert refunds == [refunds[0]] * 3
    assert await shop.found("skates") == [(SKATES, f"refunded on {orders[0]['ordered_on']}")]


async def test_calls_at_the_same_moment_order_once_and_refund_once(shop: Shop) -> None:
    orders = await asyncio.gather(
        *(shop.answer("execute_order", "same", product=SKATES, price=5) for _ in range(8))
    )
    refunds = await asyncio.gather(
        *(shop.call("execute_refund", item_id=orders[0]["item_id"]) for _ in range(8))
    )

    assert orders == [orders[0]] * 8
    assert sorted(text.startswith("error: ") for text in refunds) == [False] + [True] * 7


async def test_an_order_outlives_the_process_and_belongs_to_its_caller(
    shop: Shop, threads: ToolThreads, tmp_path: Path
) -> None:
    order = await shop.answer("execute_order", product="Quantum Anvil", price=0)
    data_dir = tmp_path / "not" / "there" / "yet"
    assert (data_dir / FILE_NAME).is_file()

    assert await Shop(threads, data_dir, conversation="c2").found("anvil quantum") == [
        ("Quantum Anvil", "delivered")
    ]
    stranger = Shop(threads, data_dir, caller="eve")
    assert await stranger.found("quantum anvil") == [("Trampoline for Anvils", "delivered")]
    assert await stranger.found(order["item_id"]) == []
    assert await stranger.call("execute_refund", item_id=order["item_id"]) == (
        f"error: there is no item '{order['item_id']}'; look it up first"
    )


async def test_what_was_bought_at_the_counter_is_found_and_refunded_once_in_a_conversation(
    shop: Shop, threads: ToolThreads, tmp_path: Path
) -> None:
    found = await shop.answer("look_up_item", search_query="the rocket-powered unicycle that I bought")
    assert found == {
        "items": [
            {
                "item_id": "acme-0101",
                "product": "Rocket-Powered Unicycle",
                "price": "$1,499.00",
                "status": "delivered",
            }
        ]
    }

    assert (await shop.answer("execute_refund", item_id="ACME-0101 "))["status"] == "refunded"
    assert (await shop.call("execute_refund", item_id="acme-0101")).startswith(
        "error: item 'acme-0101' was already"
    )
    ((_, status),) = await shop.found("unicycle")
    assert status.startswith("refunded on ")

    other = Shop(threads, tmp_path / "not" / "there" / "yet", conversation="c2")
    assert await other.found("unicycle") == [("Rocket-Powered Unicycle", "delivered")]
    assert (await other.answer("execute_refund", item_id="acme-0101"))["price"] == "$1,499.00"


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("UNICYCLES", ["Rocket-Powered Unicycle"]),
        ("my unicycle exploded", ["Rocket-Powered Unicycle"]),
        ("trampolin", ["Trampoline for Anvils"]),
        ("roller", ["Straße Roller", "Jet-Assisted Roller Skis"]),
        ("STRASSE", ["Straße Roller"]),
        ("acme-0107", ["Roadrunner-Flavoured Magnet"]),
        ("steam powered coffee machine", []),
        ("%", []),
        ("' OR 1=1 --", []),
        ("the", []),
    ],
)
async def test_the_items_with_most_of_the_terms_are_found(shop: Shop, content: str, found: list[str]) -> None:
    await shop.call("execute_order", product="Straße Roller", price=1)

    assert [product for product, _ in await shop.found(content)] == found


async def test_what_can_still_be_refunded_comes_first_and_five_are_enough(shop: Shop) -> None:
    orders = [await shop.answer("execute_order", product=f"Anvil {n}", price=n) for n in range(7)]
    await shop.call("execute_refund", item_id=orders[6]["item_id"])

    assert [product for product, _ in await shop.found("anvil")] == [f"Anvil {n}" for n in (5, 4, 3, 2, 1)]


async def test_an_empty_result_has_a_note_for_the_model(shop: Shop) -> None:
    assert await shop.answer("look_up_item", search_query="time machine") == {
        "items": [],
        "note": "No items found. Ask for the product name on the receipt.",
    }


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        (
            "execute_order",
            {"product": "x", "price": -1},
            "argument 'price' should be greater than or equal to 0",
        ),
        ("execute_order", {"product": "x", "price": 2e12}, "should be less than or equal to 1000000000000"),
        ("execute_order", {"product": "x", "price": "$5"}, "argument 'price' should be a valid number"),
        ("execute_order", {"product": " \n", "price": 1}, "argument 'product' should not be empty"),
        ("execute_order", {"product": "x" * 201, "price": 1}, "argument 'product'"),
        ("execute_order", {"product": "x"}, "argument 'price' is missing"),
        ("look_up_item", {"search_query": ""}, "argument 'search_query'"),
        ("execute_refund", {"item_id": "acme-0101", "reason": "x" * 501}, "argument 'reason'"),
        ("execute_refund", {"item_id": "acme-9999"}, "there is no item 'acme-9999'; look it up first"),
        ("execute_refund", {"item_id": "acme-0101", "caller": "eve"}, "there is no argument 'caller'"),
    ],
)
async def test_wrong_arguments_are_refused_and_nothing_is_written(
    shop: Shop, tool: str, arguments: dict[str, Any], expected: str
) -> None:
    text = await shop.call(tool, **arguments)

    assert text.startswith("error: ")
    assert expected in text
    assert await shop.found("x") == []


async def test_money_is_exact(shop: Shop) -> None:
    prices = [
        (await shop.answer("execute_order", product="p", price=price))["price"]
        for price in (0, 0.1, 19.99, 1.005, 1e12, -0.0)
    ]

    assert prices == ["$0.00", "$0.10", "$19.99", "$1.01", "$1,000,000,000,000.00", "$0.00"]


async def test_extra_tools_override_built_in_ones(threads: ToolThreads) -> None:
    own = dict.fromkeys(("get_time", "convert"), builtin_tools(threads)["calculate"])

    tools = builtin_tools(threads, extra=own)

    assert tools.keys() == {*builtin_names(), "convert"}
    assert len(tools) == len(builtin_names()) + 1
    assert tools["get_time"] is tools["convert"] is own["convert"]
    assert tools["query_sales"] is tools["query_sales"]


async def test_the_built_in_tools_are_described_for_the_model(threads: ToolThreads) -> None:
    tools = builtin_tools(threads)

    assert tools.keys() == builtin_names()
    assert {name for name, tool in tools.items() if tool.has_effects} == {"execute_order", "execute_refund"}
    assert all(tool.spec.name == name and tool.spec.description for name, tool in tools.items())
    assert tools["execute_refund"].spec == FunctionTool(
        "execute_refund",
        "Refund an item in full. An item can be refunded once.",
        {
            "type": "object",
            "properties": {
                "item_id": {
                    "type": "string",
                    "minLength": 1,
                    "maxLength": 64,
                    "description": "The item id that look_up_item returned.",
                },
                "reason": {
                    "type": "string",
                    "maxLength": 500,
                    "description": "Why the customer wants a refund.",
                    "default": "not provided",
                },
            },
            "required": ["item_id"],
            "additionalProperties": False,
        },
    )
