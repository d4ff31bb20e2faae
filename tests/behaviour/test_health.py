"""Readiness: a server whose background task ended has to be restarted."""

from __future__ import annotations

import httpx2

from tests.server import Served


async def test_a_background_task_that_ended_is_reported_by_the_readiness_check(served: Served) -> None:
    async def fail() -> None:
        raise RuntimeError("a defect")

    async with httpx2.AsyncClient(base_url=served.url) as client:
        before = await client.get("/health/ready")
        assert (before.status_code, before.json()) == (200, {"status": "ready"})

        task = served.services.background.start(fail(), "some task")
        while not task.done():
            await client.get("/health")

        after = await client.get("/health/ready")
        assert after.status_code == 503
        assert after.json() == {"status": "unavailable", "ended_tasks": ["some task"]}
        assert (await client.get("/health")).status_code == 200
