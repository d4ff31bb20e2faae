from __future__ import annotations

from pathlib import Path

import pytest

from tests.prose import (
    ROOT,
    Config,
    Finding,
    Rule,
    check_config,
    check_file,
    check_names,
    check_paths,
)
from tests.prose.__main__ import main

RULE = Rule.of(r"\btold\b|\bthe floor\b", "reported")


def findings(folder: Path, name: str, text: str) -> list[tuple[int, str]]:
    path = folder / name
    path.write_text(text, "utf-8")
    return [(finding.line, finding.text) for finding in check_file(path, [RULE], folder)]


def test_python_comments_docstrings_strings_and_names_are_checked(tmp_path: Path) -> None:
    source = '''"""What is told."""

# Told, over
# two lines: the
# floor.
told = 1


def test_it_is_told() -> None:
    """Told."""
    print(f"told {told!r:>4}", "told")


class ToldEvents: ...
'''

    assert sorted(findings(tmp_path, "module.py", source)) == [
        (1, "told"),
        (3, "Told"),
        (4, "the floor"),
        (9, "told"),
        (10, "Told"),
        (11, "told"),
        (11, "told"),
        (14, "Told"),
    ]


def test_quoted_code_is_not_checked(tmp_path: Path) -> None:
    assert findings(tmp_path, "module.py", '"""The key ``told``."""\n') == []
    assert findings(tmp_path, "page.md", "The key `told`, [a link](told.md).\nTold.\n") == [(2, "Told")]


def test_folders_are_checked_without_vendored_files(tmp_path: Path) -> None:
    (tmp_path / "web" / "vendor").mkdir(parents=True)
    (tmp_path / "web" / "app.js").write_text('announce("the floor")\n')
    (tmp_path / "web" / "vendor" / "library.js").write_text('announce("the floor")\n')

    assert list(check_paths(["web"], [RULE], tmp_path)) == [
        Finding(Path("web/app.js"), 1, "the floor", "reported")
    ]


def test_a_covered_path_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(check_paths(["gone.md"], [RULE], tmp_path))


def test_all_names_that_a_file_defines_are_checked(tmp_path: Path) -> None:
    source = '''import told
import words as told_words
from words import told

def report(is_told, *told):
    """Told."""
    for told_again, (told, rest) in told:
        rest.told = told.told
    print(told=1)
    with words as (told):
        [told for toldest in told]
    try:
        pass
    except ValueError as told_error:
        pass
'''
    path = tmp_path / "module.py"
    path.write_text(source)

    assert [finding.line for finding in check_names([path], [RULE], tmp_path)] == [2, 5, 5, 7, 7, 8, 10, 14]


def test_covered_paths_are_checked_for_prose_and_names(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("Told.\n")
    (tmp_path / "docs" / "example.py").write_text("told = 1\n")
    (tmp_path / "proxy").mkdir()
    (tmp_path / "proxy" / "module.py").write_text("# Told.\nold = 1\nis_told = 1\n")
    (tmp_path / "proxy" / "clean.py").write_text("old = 1\n")
    (tmp_path / "proxy" / "app.js").write_text("told = 1\n")

    assert list(check_config(Config([RULE], ["docs"], ["proxy"]), tmp_path)) == [
        Finding(Path("docs/page.md"), 1, "Told", "reported"),
        Finding(Path("proxy/module.py"), 3, "told", "reported"),
    ]


def test_the_command_fails_if_a_file_does_not_follow_the_rules(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).with_name("rules.toml").relative_to(ROOT)

    assert main([str(page)]) == 1
    assert f"{page}:" in capsys.readouterr().out
    assert main(["tests/prose/__main__.py"]) == 0
    assert capsys.readouterr().out == ""
