"""Memory available to the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.memory import available_memory


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1048576\n"},
        {
            "proc/self/cgroup": "0::/app/worker\n",
            "sys/fs/cgroup/app/memory.max": "1048576\n",
            "sys/fs/cgroup/app/worker/memory.max": "max\n",
        },
        {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1048576\n",
        },
    ],
)
def test_the_limit_of_the_control_group_counts(tmp_path: Path, files: dict[str, str]) -> None:
    write(tmp_path, files)
    assert available_memory(tmp_path) == 1048576


def test_without_a_limit_it_is_the_physical_memory(tmp_path: Path) -> None:
    physical = available_memory(tmp_path)
    write(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"})
    assert available_memory(tmp_path) == physical
    # cgroup v1 writes "no limit" as a very large number.
    write(tmp_path, {"proc/self/cgroup": "4:memory:/\n"})
    write(tmp_path, {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert available_memory(tmp_path) == physical
