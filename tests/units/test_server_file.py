"""The files of running servers: which servers run, and what a reload reports."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from proxy.server_file import FOLDER, ReloadResult, reload_servers, server_file


def test_a_server_reports_the_result_of_each_reload(tmp_path: Path) -> None:
    with server_file(tmp_path) as own:
        former = signal.signal(signal.SIGHUP, lambda *_: own.report(None))
        try:
            assert reload_servers(tmp_path, time_limit=5) == [ReloadResult(os.getpid(), None)]
            signal.signal(signal.SIGHUP, lambda *_: own.report("team.yaml: no"))
            assert reload_servers(tmp_path, time_limit=5) == [ReloadResult(os.getpid(), "team.yaml: no")]
        finally:
            signal.signal(signal.SIGHUP, former)

    assert list((tmp_path / FOLDER).iterdir()) == []


def test_a_server_that_does_not_answer_is_reported(tmp_path: Path) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with server_file(tmp_path):
            (result,) = reload_servers(tmp_path, time_limit=0.05)
    finally:
        signal.signal(signal.SIGHUP, former)

    assert "did not answer in time" in (result.problem or "")


def test_files_of_killed_servers_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    (folder / "1").write_text("{}")

    assert reload_servers(tmp_path, time_limit=1) == []
    assert list(folder.iterdir()) == []
