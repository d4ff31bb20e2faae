"""``make audit`` and the software bill of materials of the wheel."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from audit import LOCK_FILES, ROOT, audit
from hatch_build import FILES, bill_of_materials

FOUND = {"id": "PYSEC-2026-1", "fix_versions": ["1.1"], "aliases": [], "description": "x"}


def auditor(report: Any, *, status: int = 0) -> list[str]:
    """A program that prints what pip-audit would."""
    text = report if isinstance(report, str) else json.dumps(report)
    return [sys.executable, "-c", f"import sys; print({text!r}); sys.exit({status})"]


def report_of(*findings: dict[str, Any]) -> dict[str, Any]:
    package = {"name": "example", "version": "1.0", "vulns": list(findings)}
    return {"dependencies": [package, {"name": "other", "version": "2", "vulns": []}], "fixes": []}


def test_an_audit_without_findings_succeeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([], command=auditor(report_of()), environment={}) == 0
    assert capsys.readouterr().out == "Audited packages: 2. Known vulnerabilities: 0.\n"


def test_a_finding_fails_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit([], command=auditor(report_of(FOUND, FOUND), status=1), environment={}) == 1
    assert capsys.readouterr().out.splitlines() == [
        "example 1.0: PYSEC-2026-1, fixed in 1.1",
        "Audited packages: 2. Known vulnerabilities: 1.",
    ]


@pytest.mark.parametrize(("environment", "status"), [({}, 0), ({"HANDOFF_AUDIT_REQUIRED": "1"}, 2)])
def test_an_audit_without_a_network_says_so(
    environment: dict[str, str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit([], command=auditor("", status=1), environment=environment) == status
    assert "Not audited" in capsys.readouterr().err


@pytest.mark.parametrize(("environment", "status"), [({}, 0), ({"HANDOFF_AUDIT_REQUIRED": "1"}, 2)])
def test_a_package_without_advisories_is_not_counted_as_audited(
    environment: dict[str, str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of()
    report["dependencies"].append({"name": "unknown", "skip_reason": "not found"})

    assert audit([], command=auditor(report), environment=environment) == status
    reported = capsys.readouterr()
    assert reported.out == "Audited packages: 2. Known vulnerabilities: 0.\n"
    assert reported.err == "Not audited, no advisories: unknown.\n"


def test_the_bill_of_materials_lists_the_locked_packages_and_the_libraries_of_the_page() -> None:
    found = bill_of_materials("1.2.3")

    lock = (ROOT / "requirements.lock").read_text().splitlines()
    locked = {line.split(" ")[0].replace("==", "@") for line in lock if "==" in line}
    purls = [component["purl"] for component in found["components"]]
    python = {purl.removeprefix("pkg:pypi/") for purl in purls if purl.startswith("pkg:pypi/")}
    libraries = [component for component in found["components"] if component["purl"].startswith("pkg:npm/")]
    assert python == locked
    assert {component["name"] for component in libraries} == {
        path.removesuffix("/LICENSE") for path in FILES if path.endswith("/LICENSE")
    }
    assert all(len(component["hashes"][0]["content"]) == 128 for component in libraries)
    assert len(set(purls)) == len(purls)
    assert found == bill_of_materials("1.2.3")


def test_the_lock_files_name_no_index() -> None:
    for name in LOCK_FILES:
        lines = Path(ROOT, name).read_text().splitlines()
        assert not [line for line in lines if "://" in line or line.startswith("-")]
