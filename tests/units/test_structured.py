"""Schemas come from callers, so they are judged without trust."""

from __future__ import annotations

import time
from typing import Any

import pytest

from proxy.errors import InvalidRequest
from proxy.wire.structured import answer_form


def form(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize("asked", [None, {"type": "text"}], ids=["nothing asked", "text"])
def test_any_text_will_do_when_no_form_is_asked_for(asked: Any) -> None:
    assert answer_form(asked) is None


@pytest.mark.parametrize(
    ("asked", "text", "is_met"),
    [
        pytest.param({"type": "json_object"}, '{"a": 1}', True, id="an object"),
        pytest.param({"type": "json_object"}, "a: 1", False, id="no JSON"),
        pytest.param(form({"type": "integer"}), "1", True, id="of the schema"),
        pytest.param(form({"type": "integer"}), '"1"', False, id="of another type"),
        pytest.param(
            form({"$defs": {"n": {"type": "null"}}, "$ref": "#/$defs/n"}), "null", True, id="a reference"
        ),
        pytest.param({"type": "json_schema", "json_schema": {"name": "x"}}, "[]", True, id="no schema given"),
        pytest.param(form({}), "[" * 100_000, False, id="deep nesting"),
    ],
)
def test_an_answer_is_met_or_not(asked: Any, text: str, is_met: bool) -> None:
    made = answer_form(asked)

    assert made is not None
    assert made.is_met_by(text) is is_met


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param({"type": "strin"}, id="an unknown type"),
        pytest.param({"$ref": "http://127.0.0.1:9/schema"}, id="a schema elsewhere"),
        pytest.param({"pattern": "("}, id="a broken pattern"),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        answer_form(form(schema))
    assert refused.value.param == "response_format.json_schema.schema"


@pytest.mark.parametrize("pattern", ["^(a+)+$", r"^(a+)+\1$", "(?=a)(a+)+b"])
def test_an_evil_pattern_takes_no_time(pattern: str) -> None:
    made = answer_form(form({"type": "string", "pattern": pattern}))
    assert made is not None

    began = time.process_time()
    assert made.is_met_by('"' + "a" * 50_000 + '!"') is False
    assert time.process_time() - began < 2
