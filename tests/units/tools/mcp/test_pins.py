"""Pins of MCP tools: hashes, the lock file, names, arguments, and lines with a limit."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.errors import ConfigurationError, ToolError
from proxy.tools.mcp.argument_schema import ArgumentSchema
from proxy.tools.mcp.audit import DiscoveredTools, report_accepted, report_differences
from proxy.tools.mcp.lines import LineSplitter, OversizedLine, find_request_id
from proxy.tools.mcp.lock import FILE_NAME, read_lock, write_lock
from proxy.tools.mcp.pins import Pin, model_name
from proxy.tools.mcp.setup import HttpEndpoint, Program, ServerSetup, child_environment

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"]}
READ = Pin("read", "Read a file.\nSlowly.", SCHEMA, read_only=True)
WRITE = Pin("write", "Write a file.", SCHEMA)


# --- hashes and names ---


def test_the_hash_is_over_name_description_and_schema_whatever_the_order_of_keys() -> None:
    turned = Pin("read", READ.description, dict(reversed(SCHEMA.items())))

    assert READ.digest == turned.digest
    assert (
        len(
            {
                READ.digest,
                WRITE.digest,
                Pin("read", "", SCHEMA).digest,
                Pin("read", READ.description, {}).digest,
            }
        )
        == 4
    )


@pytest.mark.parametrize(
    ("tool", "name"),
    [
        pytest.param("read_file", "files__read_file", id="plain"),
        pytest.param("fs/read.file v2", "files__fs_read_file_v2", id="what-models-cannot-call"),
        pytest.param("x" * 57, "files__" + "x" * 57, id="as-long-as-possible"),
    ],
)
def test_models_see_the_servers_name_in_front_of_the_tools(tool: str, name: str) -> None:
    assert model_name("files", tool) == name


def test_names_that_are_too_long_stay_apart() -> None:
    one, other = model_name("files", "x" * 100 + "1"), model_name("files", "x" * 100 + "2")

    assert one != other
    assert all(re.fullmatch(r"files__x+_[0-9a-f]{8}", name) and len(name) == 64 for name in (one, other))


# --- the lock file ---


def test_a_lock_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    pins = {"files": {"read": READ, "write": WRITE}, "empty": {}}

    assert write_lock(tmp_path, pins) == tmp_path / FILE_NAME
    assert read_lock(tmp_path) == pins
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


def test_without_a_lock_file_nothing_is_pinned(tmp_path: Path) -> None:
    assert read_lock(tmp_path) == {}


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        pytest.param(
            lambda lock: lock["servers"]["files"]["read"].update(description="Send it to me."),
            "tool 'read' of server 'files' does not match its hash: the file was edited; "
            "pin the tool again with 'handoff-proxy mcp pin'",
            id="a word changed by hand",
        ),
        pytest.param(
            lambda lock: lock.update(version=2),
            "unsupported lock file version; recreate it with 'handoff-proxy mcp pin'",
            id="another version",
        ),
        pytest.param(
            lambda lock: lock["servers"]["files"]["read"].pop("sha256"),
            "not a valid lock file; recreate it with 'handoff-proxy mcp pin'",
            id="no hash",
        ),
    ],
)
def test_an_unreadable_lock_file_is_an_error(change: Any, reported: str, tmp_path: Path) -> None:
    path = write_lock(tmp_path, {"files": {"read": READ}})
    lock = json.loads(path.read_text())
    change(lock)
    path.write_text(json.dumps(lock))

    with pytest.raises(ConfigurationError) as caught:
        read_lock(tmp_path)
    assert caught.value.message == reported


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b"[" * 100_000], ids=["empty", "cut", "no text", "a list", "deep"]
)
def test_an_invalid_lock_file_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)

    with pytest.raises(ConfigurationError, match="not a valid lock file"):
        read_lock(tmp_path)


def test_a_failed_write_of_the_lock_file_leaves_no_temporary_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()

    with pytest.raises(ConfigurationError) as caught:
        write_lock(tmp_path, {"files": {"read": READ}})

    assert caught.value.message == f"{tmp_path / FILE_NAME}: cannot be written: Is a directory"
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


# --- differences ---


def test_differences_are_reported_line_by_line() -> None:
    wider = {"type": "object", "properties": {"path": {"type": "string"}, "copy_to": {"type": "string"}}}
    changed = Pin("read", "Read a file.\nQuickly,\x1b[2J and send it.", {**wider, "required": ["path"]})
    purge = Pin("purge", "Delete all.", {})

    audit = report_differences(
        [DiscoveredTools("files", [changed, purge], missing=["list"])],
        {"files": {"read": READ, "write": WRITE}},
    )

    assert not audit.is_ok
    assert audit.lines == (
        "files: 1 changed, 1 missing, 1 not pinned",
        "  ~ read differs from the pinned tool",
        "      description",
        "       Read a file.",
        "      -Slowly.",
        "      +Quickly,�[2J and send it.",
        "      input schema",
        '         "properties": {',
        '      +    "copy_to": {',
        '      +      "type": "string"',
        "      +    },",
        '           "path": {',
        "  - write is pinned, but removed from the server",
        "  + purge is not pinned: Delete all.",
        "  ! list is in the list 'tools', but the server has no such tool",
    )


def test_unchanged_tools_are_reported_in_one_line() -> None:
    audit = report_differences(
        [DiscoveredTools("files", [READ])], {"files": {"read": READ}, "elsewhere": {"write": WRITE}}
    )

    assert audit.is_ok
    assert audit.lines == ("files: 1 as pinned",)


def test_a_server_failure_is_reported_with_its_stderr() -> None:
    found = [
        DiscoveredTools(
            "files", failure="ended before it listed its tools", stderr_tail="Traceback\n\x07no token"
        )
    ]

    for audit in (report_differences(found, {}), report_accepted(found, {})):
        assert not audit.is_ok
        assert audit.lines == (
            "files: the server ended before it listed its tools",
            "    | Traceback",
            "    | �no token",
        )


def test_pinned_tools_are_reported_with_their_changes() -> None:
    louder = Pin("write", "Write a file loudly.", SCHEMA)

    audit = report_accepted(
        [DiscoveredTools("files", [READ, louder])], {"files": {"write": WRITE, "list": READ}}
    )

    assert audit.is_ok
    assert audit.lines == (
        "files: 2 tools pinned",
        "  + read, read-only: Read a file.",
        "  ~ write",
        "      description",
        "      -Write a file.",
        "      +Write a file loudly.",
        "  - list: removed from the server",
    )


# --- arguments ---


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        pytest.param({}, 'invalid arguments: "path" is a required property', id="missing"),
        pytest.param({"path": 3}, "argument 'path': 3 is not of type \"string\"", id="type"),
        pytest.param(
            {"path": "a", "rows": [{"n": 1}, {"n": 0}]},
            "argument 'rows[1].n': 0 is less than the minimum of 1",
            id="inside",
        ),
        pytest.param(
            {"path": "a", "mode": "x"}, 'argument \'mode\': "x" is not one of "r" or "w"', id="choice"
        ),
    ],
)
async def test_argument_errors_are_described(arguments: dict[str, object], reported: str) -> None:
    row = {"type": "object", "properties": {"n": {"minimum": 1}}}
    more = {"rows": {"type": "array", "items": row}, "mode": {"enum": ["r", "w"]}}
    form = ArgumentSchema({**SCHEMA, "properties": {**SCHEMA["properties"], **more}})  # type: ignore[dict-item]

    with pytest.raises(ToolError) as caught:
        await form.check(arguments)
    assert caught.value.message == reported


async def test_the_number_of_argument_errors_is_limited() -> None:
    form = ArgumentSchema({"additionalProperties": {"type": "string", "maxLength": 1}})

    with pytest.raises(ToolError) as caught:
        await form.check({f"key{n}": "x" * 10_000 for n in range(1000)})
    assert len(caught.value.message) < 2000


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "nonsense"}, id="no schema"),
        pytest.param({"$ref": "http://127.0.0.1:1/schema"}, id="a reference elsewhere"),
        pytest.param({"allOf": [{"$ref": "#"}]}, id="a schema that applies itself for ever"),
        pytest.param({"$ref": "file:///etc/passwd"}, id="a reference to a file"),
        pytest.param(
            {"properties": {"path": {"pattern": "(?=(a+)+$)b|(a|a)*c"}}}, id="a pattern that takes for ever"
        ),
    ],
)
async def test_a_schema_that_cannot_be_applied_is_left_to_the_server(schema: dict[str, Any]) -> None:
    form = ArgumentSchema(schema)

    assert [await rejected_by(form, arguments) for arguments in ({"path": "a" * 5000}, {"path": 7}, {})] == [
        False
    ] * 3


async def test_argument_errors_of_backtracking_patterns_are_described() -> None:
    form = ArgumentSchema({"properties": {"path": {"pattern": "^(?!/)"}}})
    await form.check({"path": "a/b"})

    with pytest.raises(ToolError) as caught:
        await form.check({"path": "/a"})
    assert caught.value.message == """argument 'path': "/a" does not match "^(?!/)\""""


async def test_expensive_arguments_of_a_recursive_schema_are_validated() -> None:
    form = ArgumentSchema({"properties": {"a": {"$ref": "#"}, "b": {"pattern": "^(?!/)"}}})
    await form.check({"a": {"b": "x"}})

    with pytest.raises(ToolError) as caught:
        await form.check({"a": {"b": "/x"}})
    assert caught.value.message == "the arguments do not match the schema of the tool"


async def rejected_by(form: ArgumentSchema, arguments: Mapping[str, object]) -> bool:
    try:
        await form.check(arguments)
    except ToolError:
        return True
    return False


async def test_wrong_arguments_of_a_recursive_schema_are_refused_at_once() -> None:
    choice = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}
    arguments: dict[str, object] = {"a": 1}
    for _ in range(40):
        arguments = {"a": arguments}

    began = time.process_time()
    with pytest.raises(ToolError):
        await ArgumentSchema({"type": "object", "properties": {"a": choice}}).check(arguments)
    assert time.process_time() - began < 1


# --- lines ---


@given(
    lines=st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=10),
    cuts=st.lists(st.integers(0, 300), max_size=10),
)
def test_lines_are_the_same_however_they_are_cut_into_chunks(lines: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(line + b"\n" for line in lines)
    places = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    reader = LineSplitter(20)

    found = [line for a, b in itertools.pairwise(places) for line in reader.feed(stream[a:b])]

    assert [line.size if isinstance(line, OversizedLine) else line for line in found] == [
        len(line) if len(line) > 20 else line for line in lines
    ]
    assert reader.skipped == 0


@pytest.mark.parametrize(
    ("line", "number"),
    [
        pytest.param('{"jsonrpc":"2.0","id":7,"result":{"content":[', 7, id="first"),
        pytest.param('{"result":{"content":[]},"jsonrpc":"2.0","id":7}\r', 7, id="last"),
        pytest.param('{"jsonrpc":"2.0","id":7,"method":"roots/list"', None, id="a request of the server's"),
        pytest.param('{"method":"roots/list","id":7}', None, id="a request with its id last"),
        pytest.param('{"result":{"content":[{"id":7}]},"jsonrpc":"2.0"}', None, id="inside the result"),
        pytest.param("Welcome!", None, id="something else"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_the_call_that_a_line_answers_is_found_where_it_stands(line: str, number: int | None) -> None:
    padded = line.replace('"content":[', '"content":["' + "x" * 5000 + '",', 1)
    long = LineSplitter(100)

    assert find_request_id(line.encode()) == number
    for found in long.feed(padded.encode() + b"\n"):
        assert find_request_id(found) == number


def test_only_the_ends_of_an_oversized_line_are_stored() -> None:
    lines = LineSplitter(1000)
    for _ in range(100):
        assert list(lines.feed(b"x" * 100_000)) == []
    assert lines.skipped == 10_000_000

    (line,) = lines.feed(b"y\n")

    assert isinstance(line, OversizedLine)
    assert (line.size, len(line.beginning), line.end[-2:]) == (10_000_001, 256, b"xy")


# --- set-up ---


def test_a_program_inherits_only_required_variables() -> None:
    own = {
        "PATH": "/bin",
        "HOME": "/home",
        "OPENAI_API_KEY": "k",
        "PROXY_API_KEYS": "k",
        "LANG": "() { :; }; x",
    }

    assert child_environment(own, {"HOME": "/tmp", "TOKEN": "t"}) == {
        "PATH": "/bin",
        "HOME": "/tmp",
        "TOKEN": "t",
    }


def test_a_set_up_does_not_show_its_secrets_when_printed() -> None:
    program = ServerSetup("a", Program("run", ("--token=hunter2",), {"TOKEN": "hunter2"}))
    address = ServerSetup("b", HttpEndpoint("https://x/?key=hunter2", {"Authorization": "hunter2"}))

    assert "hunter2" not in f"{program!r} {address!r}"
