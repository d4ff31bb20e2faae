"""What the operator learns of a failed model call from the log, the metrics and ``check --connect``."""

from __future__ import annotations

import json
import logging
import re
import socket
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.behaviour.chat_client import Caller, user
from tests.command import command
from tests.fakes.providers.rejecting import Gemini3, OpenAIReasoning
from tests.fakes.upstream import FakeUpstream, chunk, error, events, text
from tests.server import TEAM_FILE, serve

pytestmark = pytest.mark.asyncio(loop_scope="session")

PROMPT = "My password is swordfish and I live at the harbour"
KEY = "upstream-key"


def failed_calls(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """The fields of the lines about failed model calls."""
    standard = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}
    return [
        {name: value for name, value in vars(record).items() if name not in standard}
        for record in caplog.records
        if record.getMessage() == "model call failed"
    ]


async def test_the_log_has_the_providers_error_without_secrets_and_echoes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told = {
        "message": f"Invalid schema in tools[0]. Key {KEY} sk-abcdef123456 was used for: {PROMPT}. "
        + "x " * 300,
        "type": "invalid_request_error",
        "param": "tools[0].function.parameters",
        "code": "invalid_value",
    }
    async with (
        FakeUpstream(error(400, {"error": told})) as upstream,
        serve(tmp_path, upstream.base_url) as served,
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await Caller(served).ask([user(PROMPT)])

    assert failed_calls(caplog) == [
        {
            "host": "127.0.0.1",
            "model": "test-model",
            "outcome": "bad_request",
            "attempt": 1,
            "status": 400,
            "code": "invalid_value",
            "param": "tools[0].function.parameters",
            "provider_message": "Invalid schema in tools[0]. Key […] […] was used for:",
        }
    ]
    # The client knows nothing of the tools, and gets what it can quote to the operator.
    body: Any = caught.value.body
    request_id = caught.value.response.headers["x-request-id"]
    assert body["message"] == f"The model's provider rejected the request. (Request ID: {request_id})"
    assert (body["param"], body["code"]) == (None, "upstream_bad_request")


async def test_lines_of_a_turn_have_the_id_of_its_request(tmp_path: Path) -> None:
    async with FakeUpstream(error(401, message="Incorrect API key provided: sk-abc")) as upstream:
        file = tmp_path / "teams.yaml"
        file.write_text(TEAM_FILE.format(upstream=upstream.base_url))
        settings = {"PROXY_TEAMS": str(file)}
        async with (
            command("serve", "--port", "0", folder=tmp_path, environment=settings) as running,
            httpx2.AsyncClient() as client,
        ):
            response = await client.post(
                f"{await running.url()}/chat/completions", json={"model": "shop", "messages": [user("Hi")]}
            )
            await running.err.line("model call failed")
            (line,) = [one for one in running.log if one["message"] == "model call failed"]

    assert response.status_code == 502
    assert line["request_id"] == response.headers["x-request-id"]
    assert (line["host"], line["status"], line["outcome"]) == ("127.0.0.1", 401, "auth")
    assert line["provider_message"] == "Incorrect API key provided: […]"


async def test_connection_failures_name_the_host(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    async with serve(tmp_path, f"http://localhost:{port}/v1") as served:
        with pytest.raises(openai.APIStatusError):
            await Caller(served).ask([user("Hi")])

    assert {(line["host"], line["outcome"]) for line in failed_calls(caplog)} == {("localhost", "refused")}


async def test_a_failure_in_the_middle_of_an_answer_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = events(chunk({"content": "Hel"}), {"error": {"message": "overloaded", "code": "server_error"}})
    async with FakeUpstream(broken) as upstream, serve(tmp_path, upstream.base_url) as served:
        with pytest.raises(openai.APIError):
            await Caller(served).ask([user("Hi")])

    (line,) = failed_calls(caplog)
    assert (line["host"], line["outcome"], line["code"]) == ("127.0.0.1", "error_event", "server_error")
    assert line["provider_message"] == "overloaded"


async def test_a_passthrough_model_is_logged_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "teams.yaml"
    async with FakeUpstream(error(400, message="No such parameter", code="bad")) as upstream:
        teams = TEAM_FILE.format(upstream=upstream.base_url)
        file.write_text(teams.replace("api_key:", "expose: true, api_key:"))
        async with serve(tmp_path, upstream.base_url, teams=file) as served:
            with pytest.raises(openai.BadRequestError):
                await Caller(served).ask([user("Hi")], model="default")

    (line,) = failed_calls(caplog)
    assert (line["host"], line["status"], line["provider_message"]) == ("127.0.0.1", 400, "No such parameter")


async def test_attempts_and_retries_are_counted(tmp_path: Path) -> None:
    async with (
        FakeUpstream(error(503), text("Hello")) as upstream,
        serve(tmp_path, upstream.base_url, metrics=True) as served,
        httpx2.AsyncClient() as client,
    ):
        await Caller(served).ask([user("Hi")])
        exposition = (await client.get(f"{served.url}/metrics")).text

    assert 'model_attempts_total{model="test-model",outcome="status_5xx"} 1.0' in exposition
    assert 'model_attempts_total{model="test-model",outcome="ok"} 1.0' in exposition
    assert 'model_retries_total{model="test-model"} 1.0' in exposition


# --- check --connect -------------------------------------------------------------------------------------------

TWO_MODELS = """\
models:
  good: {{model: o-model, base_url: "{good}", api_key: upstream-key}}
  bad: {{model: other, base_url: "{bad}", api_key: upstream-key}}
teams:
  pair:
    agents:
      one: {{model: good, instructions: You are one., handoffs: [{{to: two}}]}}
      two: {{model: bad, instructions: You are two.}}
    entry: one
"""


async def check(folder: Path, teams: str) -> tuple[int, list[str]]:
    (folder / "pair.yaml").write_text(teams)
    async with command("check", "pair.yaml", "--connect", folder=folder) as running:
        code = await running.ended()
    assert running.err.text == ""
    return code, [re.sub(r"\d+\.\d\d s", "N s", line) for line in running.out.lines]


async def test_check_connect_reports_each_model(tmp_path: Path) -> None:
    provider = OpenAIReasoning((("report_status", {"status": "ok"}),))
    async with (
        FakeUpstream(answer=provider) as good,
        FakeUpstream(answer=lambda received: error(401, message="Wrong key upstream-key")) as bad,
    ):
        code, lines = await check(tmp_path, TWO_MODELS.format(good=good.base_url, bad=bad.base_url))

    assert code == 1
    assert lines[-3:] == [
        "good (o-model at 127.0.0.1): ok, wire chat completions, streaming yes, tools yes, reasoning no,"
        " first content after N s, total N s",
        "  adapted: developer messages instead of system messages",
        "bad (other at 127.0.0.1): failed: auth (status 401; code provider_error; provider_message Wrong key […]),"
        " wire chat completions, total N s",
    ]


async def test_check_connect_ends_with_0_if_all_models_answer(tmp_path: Path) -> None:
    plan = (("report_status", {"status": "ok"}),)
    async with FakeUpstream(answer=Gemini3(plan)) as good, FakeUpstream(answer=Gemini3(plan)) as other:
        code, lines = await check(tmp_path, TWO_MODELS.format(good=good.base_url, bad=other.base_url))
        made = json.dumps(good.requests[-1].body["messages"])

    assert code == 0
    assert [line.split(":")[1].split(",")[0] for line in lines[-2:]] == [" ok", " ok"]
    assert "report_status" in made
