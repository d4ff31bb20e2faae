"""A short run of the targets with a fixed seed; ``make fuzz`` runs them for longer, with new seeds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fakes.upstream import FakeUpstream
from tests.fuzz.run import TEAMS, Provider, Run
from tests.fuzz.targets import TARGETS
from tests.server import serve

_INPUTS = {"requests": 60, "provider": 32, "sockets": 3, "team_files": 20}


@pytest.mark.parametrize("name", list(_INPUTS))
async def test_a_few_inputs_of_a_known_seed_find_nothing(tmp_path: Path, name: str) -> None:
    provider = Provider()
    async with FakeUpstream(answer=provider.answer) as upstream:
        teams = tmp_path / "teams.yaml"
        teams.write_text(TEAMS.format(upstream=upstream.base_url))
        async with serve(tmp_path, upstream.base_url, teams=teams) as served:
            run = Run(1, time.monotonic() + 50, served.url, provider, _INPUTS[name])
            await TARGETS[name](run)

    assert run.count == _INPUTS[name] + 1
