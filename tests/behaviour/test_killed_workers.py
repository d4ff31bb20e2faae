"""Workers that are killed in turns with tools; ``make kills`` runs more of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import new_database
from tests.kills.run import run


@pytest.mark.postgres
@pytest.mark.timeout(240)
async def test_turns_with_tools_survive_killed_workers(tmp_path: Path, postgres_server: None) -> None:
    with new_database() as database:
        report = await run(tmp_path, database, turns=6, seed=1, kill_pause=0.4, model_seconds=0.3)

    assert report.findings == []
    assert report.kills > 0
