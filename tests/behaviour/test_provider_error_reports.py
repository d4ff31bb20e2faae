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
from tests.fakes.replies import raw
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
    reported = {
        "message": f"Invalid schema in tools[0]. Key {KEY} sk-abcdef123456 was used for: {PROMPT}. "
        + "x " * 300,
        "type": "invalid_request_error",
        "param": "tools[0].function.parameters",
        "code": "invalid_value",
    }
    async with (
        FakeUpstream(error(400, {"error": reported})) as upstream,
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


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (error(400, {"detail": "No tool parser"}), "No tool parser"),
        (error(422, {"detail": [{"loc": ["body", "x"], "msg": "bad x", "type": "t"}]}), "bad x"),
        (error(400, {"success": False, "errors": [{"message": "bad model", "code": 7}]}), "bad model"),
        (error(400, {"error": "just text"}), "just text"),
        (error(400, message="Wrong thing: é " + "x " * 500_000), "Wrong thing: é " + "x " * 142 + "x"),
        (raw(b"plain text", status=400, content_type="text/plain"), "plain text"),
        (
            raw(b'{"error": {"message": "no tools", "code": 400}}', content_type="application/json"),
            "no tools",
        ),
    ],
    ids=["detail", "list", "errors", "text in error", "a megabyte", "plain", "status 200"],
)
async def test_the_log_has_the_message_of_every_form_of_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reply: Any, message: str
) -> None:
    async with FakeUpstream(reply) as upstream, serve(tmp_path, upstream.base_url) as served:
        with pytest.raises(openai.BadRequestError):
            await Caller(served).ask([user("Hi")])

    (line,) = failed_calls(caplog)
    assert line["provider_message"] == message


async def test_errors_of_a_component_are_logged_without_secrets_and_echoes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "component.yaml"
    reported = f"Key {KEY} and other-secret; cannot parse: {PROMPT}"
    async with FakeUpstream(error(400, message=reported, code="invalid")) as upstream:
        file.write_text(
            "models:\n  default:\n    provider: autogen_ext.models.openai.OpenAIChatCompletionClient\n"
            f"    config: {{model: gpt-4o, base_url: '{upstream.base_url}', api_key: {KEY},"
            " default_headers: {x-gateway: other-secret}}\n"
            "teams: {shop: {entry: a, agents: {a: {instructions: You are a.}}}}\n"
        )
        async with serve(tmp_path, teams=file) as served:
            with pytest.raises(openai.BadRequestError):
                await Caller(served).ask([user(PROMPT)])

    (line,) = failed_calls(caplog)
    assert (line["host"], line["status"], line["code"]) == ("127.0.0.1", 400, "invalid")
    assert line["provider_message"] == "Key […] and […]; cannot parse:"


@pytest.mark.parametrize("is_streamed", [False, True], ids=["one object", "streamed"])
async def test_errors_inside_a_response_are_logged_without_secrets_and_echoes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_streamed: bool
) -> None:
    reported = {"error": {"message": f"Key {KEY}; cannot parse: {PROMPT}", "code": KEY}}
    body = raw(json.dumps(reported).encode(), content_type="application/json")
    async with (
        FakeUpstream(answer=lambda _: events(reported) if is_streamed else body) as upstream,
        serve(tmp_path, upstream.base_url) as served,
    ):
        with pytest.raises(openai.APIStatusError) as caught:
            await Caller(served).ask([user(PROMPT)])

    lines = failed_calls(caplog)
    assert len(lines) == len(upstream.requests) == 3
    assert {(line["code"], line["provider_message"]) for line in lines} == {("[…]", "Key […]; cannot parse:")}
    assert KEY not in str(caught.value)


async def test_the_line_about_an_adaptation_has_no_secrets_and_no_text_of_callers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="proxy.providers")

    def answer(received: Any) -> Any:
        if "stop" not in received.body:
            return text("Hello")
        return error(400, {"error": {"message": "Unsupported value", "param": "stop", "code": f"x {KEY}"}})

    async with FakeUpstream(answer=answer) as upstream, serve(tmp_path, upstream.base_url) as served:
        await Caller(served).ask([user("Hi")], stop=["swordfish"])

    (line,) = [one for one in caplog.records if one.getMessage().startswith("provider rejects part")]
    facts = {name: getattr(line, name) for name in ("status", "code", "param", "adaptations")}
    assert facts == {
        "status": 400,
        "code": "x […]",
        "param": "stop",
        "adaptations": ["not all values of stop"],
    }


@pytest.mark.parametrize(("content", "param"), [("Hi", "temperature"), ("Which temperature?", None)])
async def test_a_parameter_in_the_message_is_reported_unless_the_caller_wrote_it_in_another_place(
    tmp_path: Path, content: str, param: str | None
) -> None:
    rejection = error(400, message="temperature must be at most 1", code="invalid_request_error")
    async with FakeUpstream(rejection) as upstream, serve(tmp_path, upstream.base_url) as served:
        with pytest.raises(openai.BadRequestError) as caught:
            await Caller(served).ask([user(content)], temperature=1.5)

    assert caught.value.param == param


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


async def test_a_stream_that_breaks_is_counted_as_a_failed_attempt(tmp_path: Path) -> None:
    async with (
        FakeUpstream(text("Hello").cut(after=2)) as upstream,
        serve(tmp_path, upstream.base_url, metrics=True) as served,
        httpx2.AsyncClient() as client,
    ):
        with pytest.raises(openai.APIError):
            await Caller(served).ask([user("Hi")])
        exposition = (await client.get(f"{served.url}/metrics")).text

    assert 'model_attempts_total{model="test-model",outcome="broken"} 1.0' in exposition
    assert 'model_attempts_total{model="test-model",outcome="ok"}' not in exposition


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

    first, second = (one.base_url.removeprefix("http://").removesuffix("/v1") for one in (good, bad))
    assert code == 1
    assert lines[-3:] == [
        f"good (o-model at {first}): ok, wire chat completions, streaming yes, tools yes, reasoning no,"
        " first content after N s, total N s",
        "  adapted: developer messages instead of system messages",
        f"bad (other at {second}): failed: auth (status 401; code provider_error; "
        "provider_message Wrong key […]), wire chat completions, total N s",
    ]


async def test_check_connect_lists_external_agents_without_a_call(tmp_path: Path) -> None:
    async with FakeUpstream() as remote:
        address = f'{{remote: {{base_url: "{remote.base_url}", model: far}}}}'
        code, lines = await check(tmp_path, f"teams: {{expert: {address}}}")
        requests = remote.requests

    assert (code, requests) == (0, [])
    assert lines[-1] == "expert/expert: not called: an external agent can have effects"


async def test_check_connect_ends_with_0_if_all_models_answer(tmp_path: Path) -> None:
    plan = (("report_status", {"status": "ok"}),)
    async with FakeUpstream(answer=Gemini3(plan)) as good, FakeUpstream(answer=Gemini3(plan)) as other:
        code, lines = await check(tmp_path, TWO_MODELS.format(good=good.base_url, bad=other.base_url))
        created = json.dumps(good.requests[-1].body["messages"])

    assert code == 0
    assert [line.split("): ")[1].split(",")[0] for line in lines[-2:]] == ["ok", "ok"]
    assert "report_status" in created
