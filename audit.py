"""Check the locked versions for known vulnerabilities: ``make audit``.

pip-audit compares both lock files with the advisories of the Python Package Index. Exit status: 0 without findings, 1
with findings. If there are no advisories for a package, or they cannot be reached, the script says so and exits with
0, or with 2 if ``HANDOFF_AUDIT_REQUIRED`` is set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
LOCK_FILES = ("requirements.lock", "requirements-dev.lock")
COMMAND = (
    sys.executable,
    "-m",
    "pip_audit",
    "--disable-pip",
    "--require-hashes",
    "--progress-spinner",
    "off",
)
TIME_LIMIT = 300


def audit(
    files: Sequence[Path], *, command: Sequence[str] = COMMAND, environment: Mapping[str, str] = os.environ
) -> int:
    """Print each finding once and return the exit status."""
    report = _report(files, command)
    if report is None:
        print("Not audited: the advisories cannot be reached.", file=sys.stderr)
        return 2 if environment.get("HANDOFF_AUDIT_REQUIRED") else 0
    skipped = [package for package in report["dependencies"] if "skip_reason" in package]
    audited = [package for package in report["dependencies"] if "skip_reason" not in package]
    findings = {
        f"{package['name']} {package['version']}: {finding['id']}, fixed in "
        f"{', '.join(finding['fix_versions']) or 'no version'}"
        for package in audited
        for finding in package["vulns"]
    }
    for line in sorted(findings):
        print(line)
    print(f"Audited packages: {len(audited)}. Known vulnerabilities: {len(findings)}.")
    if skipped:
        # An index without advisories answers 404, which pip-audit reports as no vulnerability.
        print(f"Not audited, no advisories: {', '.join(p['name'] for p in skipped)}.", file=sys.stderr)
    if findings:
        return 1
    return 2 if skipped and environment.get("HANDOFF_AUDIT_REQUIRED") else 0


def _report(files: Sequence[Path], command: Sequence[str]) -> dict[str, Any] | None:
    """Return the report of pip-audit, or None if it has none.

    Its exit status is 1 for findings and for errors; only a finished audit writes JSON.
    """
    arguments = [argument for file in files for argument in ("--requirement", str(file))]
    try:
        done = subprocess.run(
            [*command, "--format", "json", *arguments], capture_output=True, text=True, timeout=TIME_LIMIT
        )
        report = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        return None
    except ValueError:
        print(done.stderr.strip()[-2000:], file=sys.stderr)
        return None
    return report if isinstance(report, dict) else None


if __name__ == "__main__":
    sys.exit(audit([ROOT / name for name in LOCK_FILES]))
