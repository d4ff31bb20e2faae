"""The ids of passthrough models, and requests for the provider's list."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from proxy.providers.passthrough_models import PassThrough
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import OpenAIModel
from tests.fakes.upstream import FakeUpstream, Reply, error, raw


def names(*ids: str) -> Reply:
    body = json.dumps({"object": "list", "data": [{"id": one} for one in ids]})
    return raw(body.encode(), content_type="application/json")


class Bench:
    """A provider, and the models served of it; ``now`` is the clock."""

    def __init__(self, upstream: FakeUpstream, taken: tuple[str, ...] = ()) -> None:
        self.now = 1000.0
        default = OpenAIModel.model_validate({"model": "m", "base_url": f"{upstream.base_url}?version=1"})
        self.models = PassThrough(
            {"default": default},
            lists_default=True,
            is_taken=taken.__contains__,
            limits=ModelLimits(),
            time_limit=5,
            clock=lambda: self.now,
        )

    async def knows(self, name: str) -> bool:
        return await self.models.find(name) is not None


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(lists_models=False) as upstream:
        yield upstream


@pytest.fixture
async def bench(upstream: FakeUpstream) -> AsyncIterator[Bench]:
    bench = Bench(upstream, taken=("shop",))
    yield bench
    await bench.models.close()


async def test_the_list_is_requested_at_the_providers_address(upstream: FakeUpstream, bench: Bench) -> None:
    upstream.reply(names("a"))
    await bench.models.start()

    first = upstream.requests[0]
    assert (first.method, first.path, first.query, first.content) == (
        "GET",
        "/v1/models",
        "version=1",
        b"",
    )
    assert [model.id for model in bench.models.listed] == ["a"]


async def test_a_new_name_is_looked_for_when_the_list_is_not_of_just_now(
    upstream: FakeUpstream, bench: Bench
) -> None:
    upstream.reply(names("a"), names("a", "b"))
    await bench.models.start()

    assert not await bench.knows("b")
    bench.now += 11
    assert await bench.knows("b")
    assert await bench.knows("a")
    assert len(upstream.requests) == 2


async def test_many_that_wait_for_it_ask_once(upstream: FakeUpstream, bench: Bench) -> None:
    go = asyncio.Event()
    upstream.reply(names("a").held(go))
    waiting = asyncio.gather(*(bench.knows("a") for _ in range(20)))
    await upstream.received(1)
    go.set()

    assert all(await waiting)
    assert len(upstream.requests) == 1


async def test_who_stops_waiting_does_not_stop_the_others(upstream: FakeUpstream, bench: Bench) -> None:
    go = asyncio.Event()
    upstream.reply(names("a").held(go))
    first, second = (asyncio.create_task(bench.knows("a")) for _ in range(2))
    await upstream.received(1)
    first.cancel()
    go.set()

    assert await second


async def test_what_was_listed_stays_while_the_provider_is_down(upstream: FakeUpstream, bench: Bench) -> None:
    upstream.reply(names("a"), error(500))
    await bench.models.start()
    bench.now += 11

    assert not await bench.knows("b")
    assert await bench.knows("a")


async def test_a_provider_that_never_answers_does_not_hold_the_start_up(
    upstream: FakeUpstream, bench: Bench
) -> None:
    upstream.reply(names("a").hang())

    async with asyncio.timeout(4):
        await bench.models.start()
    assert bench.models.listed == []


async def test_what_a_team_is_called_is_the_teams(upstream: FakeUpstream, bench: Bench) -> None:
    upstream.reply(names("shop", "a"))
    await bench.models.start()

    assert not await bench.knows("shop")
    assert [model.id for model in bench.models.listed] == ["a"]


@pytest.mark.parametrize(
    "entry", [{"id": "x" * 257}, {"id": "a\nb"}, {"id": ""}, {"id": 5}, {"name": "a"}], ids=str
)
async def test_names_that_no_request_could_hold_are_left_out(
    upstream: FakeUpstream, bench: Bench, entry: dict[str, Any]
) -> None:
    body = json.dumps({"data": [entry]}).encode()
    upstream.reply(raw(body, content_type="application/json"))
    await bench.models.start()

    assert bench.models.listed == []
