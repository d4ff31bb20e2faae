"""A process of the fork server behaves as a program."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.command import program
from tests.fork_server import ROOT, fork

SHOW = """\
import atexit, os, sys
atexit.register(print, "at exit")
print(__name__, sys.argv[1:], os.getcwd(), sys.path[:2], sorted(os.environ.items()), sep="\\n")
print("error", file=sys.stderr)
"""
ENDS = {
    "return": "",
    "exit": "sys.exit(3)",
    "sentence": "sys.exit('a sentence')",
    "signal": "import signal; sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
async def test_a_forked_process_has_the_output_and_exit_code_of_a_program(end: str, tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(SHOW + end)
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "LC_CTYPE": "C.UTF-8", "SETTING": "1"}
    results = []
    for start in (fork, program):
        process = await start("shown", "one", "--two", folder=tmp_path, environment=environment)
        assert process.stdout is not None
        assert process.stderr is not None
        output = (await process.stdout.read(), await process.stderr.read())
        results.append((*output, await process.wait()))

    forked, started = results
    assert forked == started
    assert b"['one', '--two']" in forked[0]


async def test_a_signal_ends_a_forked_process_and_removes_it(tmp_path: Path) -> None:
    (tmp_path / "waiter.py").write_text("import time; print('ready', flush=True); time.sleep(60)")
    process = await fork("waiter", folder=tmp_path, environment={})
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    assert process.returncode is None

    process.terminate()

    assert await process.wait() == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
    with pytest.raises(ProcessLookupError):
        process.kill()
    assert process.stderr is not None
    assert (await process.stdout.read(), await process.stderr.read()) == (b"", b"")
