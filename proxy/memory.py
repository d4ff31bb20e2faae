"""Memory available to this process: physical memory or the limit of its control group, whichever is lower."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

_ROOT = Path("/")


def available_memory(root: Path = _ROOT) -> int | None:
    """Return bytes, or None if the system does not report them; ``root`` is the root of the file system."""
    limits = [*_cgroup_limits(root)]
    try:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        pass
    return min((limit for limit in limits if limit > 0), default=None)


def _cgroup_limits(root: Path) -> list[int]:
    """Return the limits of the control group and of its parents, for cgroup v1 and v2."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    limits = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            mount, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = PurePosixPath(path.strip("/"))
        # In a container the path may be that of the host, which is not mounted; the mount itself is then the group.
        for parent in (group, *group.parents):
            limit = _limit(mount / parent / name)
            if limit is not None:
                limits.append(limit)
    return limits


def _limit(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None  # no such group, or "max"
