from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from proxy.log_config import configure_logging
from proxy.log_record import constant_attributes, fields_record
from proxy.request_id import REQUEST_ID


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_a_line_is_one_json_object_with_message_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    logging.getLogger("proxy.x").info("turn\nfinished", extra={"turn_id": "t1", "color_message": "\033[1mx"})

    lines = capsys.readouterr().err.splitlines()

    assert len(lines) == 1
    line = json.loads(lines[0])
    assert next(iter(line)) == "time"
    assert abs(datetime.fromisoformat(line.pop("time")) - datetime.now(UTC)) < timedelta(minutes=1)
    assert line == {"level": "INFO", "logger": "proxy.x", "message": "turn\nfinished", "turn_id": "t1"}


def test_a_record_with_known_fields_has_the_line_of_any_other(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_logging("INFO")
    logger, fields = logging.getLogger("proxy.x"), {"turn_id": "t1", "seconds": 0.5}
    monkeypatch.setattr("proxy.log_config.is_traced", lambda: True)
    monkeypatch.setattr("proxy.log_config.current_trace_id", lambda: "0af7")
    of_request = REQUEST_ID.set("req_1")

    logger.warning("turn finished", extra=fields)
    constant = constant_attributes("proxy.x", logging.WARNING, "turn finished")
    logger.handle(fields_record(constant, {**fields}))
    REQUEST_ID.reset(of_request)

    known, other = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert abs(
        datetime.fromisoformat(known.pop("time")) - datetime.fromisoformat(other.pop("time"))
    ) < timedelta(minutes=1)
    assert list(known.items()) == list(other.items())
    assert (known["request_id"], known["trace_id"]) == ("req_1", "0af7")


def test_a_trace_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO")
    try:
        raise ValueError("out of rockets")
    except ValueError:
        logging.getLogger("proxy.x").exception("turn failed")

    (line,) = [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    assert line["exc_info"].endswith("ValueError: out of rockets")


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("DEBUG", ["proxy_log debug", "proxy_log warning", "library_log warning", "library_log error"]),
        ("WARNING", ["proxy_log warning", "library_log warning", "library_log error"]),
        ("ERROR", ["library_log error"]),
    ],
)
@pytest.mark.parametrize("library", ["autogen_core.events", "ddgs.ddgs", "primp.client", "h2.codec"])
def test_verbose_libraries_log_warnings_only(
    capsys: pytest.CaptureFixture[str], level: str, expected: list[str], library: str
) -> None:
    configure_logging(level)
    proxy_log, library_log = logging.getLogger("proxy.x"), logging.getLogger(library)

    proxy_log.debug("proxy_log debug")
    library_log.info("library_log info")
    proxy_log.warning("proxy_log warning")
    library_log.warning("library_log warning")
    library_log.error("library_log error")

    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == expected


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_color_switches_colours_off(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("NO_COLOR", "1")
    configure_logging("INFO")

    logging.getLogger("proxy.x").warning("cut", extra={"turn_id": "t1"})

    assert terminal.getvalue().endswith(" WARNING  proxy.x cut turn_id=t1\n")
    assert "\033" not in terminal.getvalue()


def test_lines_for_a_terminal_are_readable_and_cannot_control_it(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    configure_logging("INFO")
    logging.getLogger("proxy.x").warning(
        "turn finished", extra={"turn_id": "t1", "seconds": 0.5, "path": "/a b\033[2J", "color_message": "x"}
    )

    line = re.sub(r"\033\[\d*m", "", terminal.getvalue())

    assert re.fullmatch(
        r"\d\d:\d\d:\d\d\.\d{3} WARNING  proxy\.x turn finished turn_id=t1 seconds=0\.5 path='/a b\\x1b\[2J'\n",
        line,
    )
    assert "\033[33m" in terminal.getvalue()


def test_traceback_follows_the_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    configure_logging("INFO")
    try:
        raise ValueError("out of rockets")
    except ValueError:
        logging.getLogger("proxy.x").exception("turn failed")

    lines = terminal.getvalue().splitlines()

    assert "turn failed" in lines[0]
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: out of rockets"


def test_a_line_that_cannot_be_written_does_not_stop_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError

    monkeypatch.setattr("sys.stderr", Full())
    configure_logging("INFO")
    monkeypatch.setattr("sys.stderr", output := io.StringIO())

    logging.getLogger("proxy.x").warning("cut")

    assert "OSError" in output.getvalue()
