"""The adapter of AutoGen model clients: requests, results and errors."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import subprocess
import sys
from io import BytesIO
from typing import Any

import pytest
from autogen_core import FunctionCall, Image
from autogen_core.models import AssistantMessage as LlmAssistant
from autogen_core.models import (
    CreateResult,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    ModelInfo,
    RequestUsage,
)
from autogen_core.models import SystemMessage as LlmSystem
from autogen_core.models import UserMessage as LlmUser
from PIL import Image as PilImage

from proxy.errors import (
    ConfigurationError,
    UpstreamBadRequest,
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamResponseTooLarge,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.events import ReasoningDelta, TextDelta
from proxy.messages import (
    AssistantMessage,
    AudioData,
    AudioPart,
    DeveloperMessage,
    FunctionMessage,
    ImagePart,
    ImageUrl,
    Message,
    Parameters,
    SystemMessage,
    TextPart,
    ToolMessage,
    Usage,
    UserMessage,
)
from proxy.messages import FunctionCall as WireCall
from proxy.providers.autogen.client import ComponentChatModel
from proxy.providers.autogen.failures import failure_of
from proxy.providers.autogen.messages import create_args, llm_messages
from proxy.providers.model import Finished, ModelRequest, ToolCallPiece
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import ComponentModel
from tests.fakes.autogen_client import SEES, ScriptedClient, Step
from tests.fakes.model_calls import HELLO, Answer, ask

SECRET = "sk-secret"


def result(
    content: str | list[FunctionCall] = "",
    reason: str = "stop",
    reasoning: str | None = None,
    used: tuple[int, int] = (3, 2),
) -> CreateResult:
    return CreateResult.model_validate(
        {
            "finish_reason": reason,
            "content": content,
            "usage": RequestUsage(*used),
            "cached": False,
            "thought": reasoning,
        }
    )


def call(arguments: str, name: str = "look_up") -> FunctionCall:
    return FunctionCall(id="c1", name=name, arguments=arguments)


async def answer_of(*steps: Step, limits: ModelLimits | None = None) -> Answer:
    return await ask(ComponentChatModel("scripted", ScriptedClient(*steps), limits))


# --- loading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "sentence"),
    [
        (
            "no_such_package.Client",
            r"no_such_package\.Client cannot be imported \(no_such_package is not installed\)",
        ),
        (
            "autogen_ext.models.nothing.Client",
            r"cannot be imported \(there is no module autogen_ext\.models\.nothing\)",
        ),
        (
            "autogen_ext.models.openai.OpenAIChatClient",
            r"does not exist: autogen_ext\.models\.openai has no OpenAIChatClient, did you mean "
            r"OpenAIChatCompletionClient\?",
        ),
        ("autogen_ext.models.openai.Zzz", r"does not exist: autogen_ext\.models\.openai has no Zzz$"),
        (
            "autogen_ext.models.openai.OpenAIChatCompletionClient",
            r"cannot be made from its config \(invalid or missing: model\)",
        ),
        ("OpenAIChatCompletionClient", r"cannot be made from its config \(invalid or missing: model\)"),
        ("collections.Counter", "is not a component of AutoGen with the type ChatCompletionClient"),
        (
            "autogen_agentchat.agents.AssistantAgent",
            "is not a component of AutoGen with the type ChatCompletionClient",
        ),
        ("nonsense", "is not the name of a class, as in package.module.Class"),
    ],
)
def test_a_component_that_cannot_be_created_stops_the_start_without_its_config(
    provider: str, sentence: str
) -> None:
    definition = ComponentModel(provider=provider, config={"api_key": SECRET})

    with pytest.raises(ConfigurationError, match=sentence) as raised:
        ComponentChatModel.load("clever", definition)

    assert "'clever'" in str(raised.value)
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("package", "blocked", "provider"),
    [
        pytest.param(
            "azure",
            "azure.identity",
            "autogen_ext.models.openai.AzureOpenAIChatCompletionClient",
            id="azure",
        ),
        pytest.param(
            "anthropic",
            "anthropic",
            "autogen_ext.models.anthropic.AnthropicChatCompletionClient",
            id="anthropic",
        ),
    ],
)
def test_a_missing_package_is_reported_with_the_extra_that_installs_it(
    package: str, blocked: str, provider: str
) -> None:
    config = {
        "model": "m",
        "azure_endpoint": "https://h",
        "api_version": "1",
        "azure_ad_token_provider": {
            "provider": "autogen_ext.auth.azure.AzureTokenProvider",
            "config": {"provider_kind": "DefaultAzureCredential", "scopes": ["s"]},
        },
    }
    # In another process, in which the import fails as if the package was not installed.
    program = (
        f"import sys; sys.modules[{blocked!r}] = None\n"
        "from proxy.errors import ConfigurationError\n"
        "from proxy.providers.autogen.client import ComponentChatModel\n"
        "from proxy.teamfiles.definitions import ComponentModel\n"
        f"definition = ComponentModel(provider={provider!r}, config={config!r})\n"
        "try: ComponentChatModel.load('clever', definition)\n"
        "except ConfigurationError as error: print(error.message)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert result.stdout == (
        f"model 'clever': the component {provider} cannot be imported "
        f"({blocked} is not installed; install handoff-proxy[{package}])\n"
    )


def test_a_component_is_named_by_its_model() -> None:
    config = {"model": "gpt-5-mini", "api_key": SECRET}
    provider = "autogen_ext.models.openai.OpenAIChatCompletionClient"

    assert (
        ComponentChatModel.load("clever", ComponentModel(provider=provider, config=config)).name
        == "gpt-5-mini"
    )


async def test_closing_closes_the_client() -> None:
    client = ScriptedClient()

    await ComponentChatModel("scripted", client).close()

    assert client.is_closed


# --- what a client is given ----------------------------------------------------------------------------------


def given(*messages: Message, family: Any = "other", many: bool = False) -> list[Any]:
    return list(llm_messages(messages, family, takes_many_system_messages=many))


def test_neighbouring_results_become_one_message_with_the_names_of_their_calls() -> None:
    message = AssistantMessage(content="Hm.", function_call=WireCall("roll", "{}"), name="Sales Agent")

    assert given(
        message, FunctionMessage(name="roll", content="4"), ToolMessage("c9", content=[TextPart("lost")])
    ) == [
        LlmAssistant(
            content=[FunctionCall(id="roll", name="roll", arguments="{}")],
            thought="Hm.",
            source="Sales_Agent",
        ),
        FunctionExecutionResultMessage(
            content=[
                FunctionExecutionResult(content="4", name="roll", call_id="roll"),
                FunctionExecutionResult(content="lost", name="unknown", call_id="c9"),
            ]
        ),
    ]


def test_system_messages_become_one_where_a_client_takes_no_more() -> None:
    chain: list[Message] = [SystemMessage("Sell."), UserMessage("Hi"), DeveloperMessage("Be brief.")]

    assert given(*chain) == [
        LlmSystem(content="Sell.\n\nBe brief."),
        LlmUser(content="Hi", source="user"),
    ]
    assert given(*chain, many=True) == [
        LlmSystem(content="Sell."),
        LlmUser(content="Hi", source="user"),
        LlmSystem(content="Be brief."),
    ]


def picture(size: tuple[int, int] = (2, 1)) -> str:
    buffer = BytesIO()
    PilImage.new("1", size).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shown(url: str) -> UserMessage:
    return UserMessage(content=[TextPart("Look:"), ImagePart(ImageUrl(url))])


def test_an_image_is_decoded_for_clients_of_other_families() -> None:
    (message,) = given(shown(picture()))

    text, image = message.content
    assert text == "Look:"
    assert isinstance(image, Image)
    assert image.image.size == (2, 1)


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        pytest.param(shown("https://a.example/b.png"), "as base64 data URLs", id="an image to fetch"),
        pytest.param(shown("data:image/png;base64,AAAA"), "could not be read", id="no image"),
        pytest.param(shown("data:image/png;base64,???"), "could not be read", id="no base64"),
        pytest.param(shown(picture((50_000, 1001))), "too many pixels", id="a large image"),
        pytest.param(
            UserMessage(content=[AudioPart(AudioData(data="", format="wav"))]),
            "text and images only",
            id="audio",
        ),
    ],
)
def test_what_a_client_cannot_be_given_is_refused_in_a_sentence(message: Message, sentence: str) -> None:
    with pytest.raises(UpstreamBadRequest, match=sentence):
        given(message)


async def test_a_client_that_cannot_see_is_shown_no_image() -> None:
    blind = ScriptedClient(result("Hello"), info=ModelInfo(**{**SEES, "vision": False}))

    answer = await ask(ComponentChatModel("blind", blind), ModelRequest(messages=[shown(picture())]))

    assert isinstance(answer.failure, UpstreamBadRequest)
    assert "cannot see images" in answer.failure.message
    assert blind.asked == []


PARAMETERS = Parameters(temperature=0.5, max_completion_tokens=9, stop="END", seed=4)


def test_each_model_family_gets_supported_parameters() -> None:
    assert create_args(PARAMETERS, False, "openai") == {
        "temperature": 0.5,
        "max_completion_tokens": 9,
        "stop": "END",
        "seed": 4,
        "parallel_tool_calls": False,
    }
    assert create_args(PARAMETERS, False, "anthropic") == {
        "temperature": 0.5,
        "max_tokens": 9,
        "stop_sequences": ["END"],
    }
    assert create_args(PARAMETERS, None, "ollama") == {
        "temperature": 0.5,
        "num_predict": 9,
        "stop": "END",
        "seed": 4,
    }
    assert create_args(PARAMETERS, None, "other") == {}


def test_a_response_format_that_a_client_cannot_ask_for_is_refused() -> None:
    with pytest.raises(UpstreamBadRequest, match="response format"):
        create_args(Parameters(response_format={"type": "json_object"}), None, "anthropic")


# --- results of a client -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "deltas"),
    [
        pytest.param(["Hel", "lo", result("Hello")], [TextDelta("Hel"), TextDelta("lo")], id="text"),
        pytest.param([result("Hello")], [TextDelta("Hello")], id="text in the result only"),
        pytest.param(
            [result("Hello", reasoning="Hm.")], [ReasoningDelta("Hm."), TextDelta("Hello")], id="reasoning"
        ),
        pytest.param(
            ["<think>Hm", ".", "</think>", "Hello", result("Hello", reasoning="Hm.")],
            [ReasoningDelta("Hm"), ReasoningDelta("."), TextDelta("Hello")],
            id="reasoning in the text",
        ),
        pytest.param(
            ["<th", "ink>Hm.</th", "ink>Hel", "lo", result("Hello")],
            [ReasoningDelta("Hm."), TextDelta("Hel"), TextDelta("lo")],
            id="marks cut in two",
        ),
        pytest.param(
            ["<think>1 </", "2", result("")],
            [ReasoningDelta("1 "), ReasoningDelta("</2")],
            id="what is no mark",
        ),
        pytest.param(["<t", result("<t")], [TextDelta("<t")], id="the beginning of a mark that never comes"),
        pytest.param(["a <think>b", result("")], [TextDelta("a <think>b")], id="a mark inside of the text"),
        pytest.param(["", result("")], [], id="nothing"),
        pytest.param(["a\x00\ud83db", result("")], [TextDelta("a\ufffd\ufffdb")], id="NUL and half a pair"),
    ],
)
async def test_pieces_become_deltas(steps: list[Step], deltas: list[Any]) -> None:
    answer = await answer_of(*steps)

    assert answer.failure is None
    assert answer.deltas == [*deltas, Finished("stop", Usage(3, 2))]


async def test_calls_come_with_the_result() -> None:
    answer = await answer_of(
        "Hm. ", result([call('{"q":1}'), call("", "refund")], "function_calls", used=(0, 0))
    )

    assert answer.deltas == [
        TextDelta("Hm. "),
        ToolCallPiece(0, '{"q":1}', "look_up", "c1"),
        ToolCallPiece(1, "", "refund", "c1"),
        Finished("tool_calls", None),
    ]


@pytest.mark.parametrize(
    ("reported", "kind"),
    [
        pytest.param(result([call('{"q')], "unknown"), UpstreamIncomplete, id="a cut call without a reason"),
        pytest.param(result([call('{"q')], "length"), UpstreamIncomplete, id="a call cut by the limit"),
        pytest.param(result([call("")], "length"), UpstreamIncomplete, id="a call cut at its beginning"),
        pytest.param(result("", "unknown"), UpstreamIncomplete, id="nothing without a reason"),
        pytest.param(
            result([call("{}", "")], "function_calls"), UpstreamProtocolError, id="a call without a name"
        ),
    ],
)
async def test_a_result_that_is_not_whole_is_a_failure(
    reported: CreateResult, kind: type[UpstreamFailed]
) -> None:
    answer = await answer_of(reported)

    assert type(answer.failure) is kind
    assert answer.end is None


async def test_a_client_that_ends_without_a_result_is_incomplete() -> None:
    answer = await answer_of("Hel")

    assert (answer.text, type(answer.failure)) == ("Hel", UpstreamIncomplete)


async def test_an_answer_over_the_limit_is_stopped() -> None:
    answer = await answer_of("x" * 60, "x" * 60, result(""), limits=ModelLimits(answer_bytes=100))

    assert (answer.text, type(answer.failure)) == ("x" * 60, UpstreamResponseTooLarge)


# --- what a client raises ------------------------------------------------------------------------------------


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class APIStatusError(Exception):
    def __init__(self, status: int, body: object = None) -> None:
        super().__init__(SECRET)
        self.status_code = status
        self.body = body


class APIConnectionError(Exception):
    pass


class APIError(Exception):
    def __init__(self) -> None:
        super().__init__(SECRET)
        self.body = {"message": SECRET, "code": "context_length_exceeded"}


@pytest.mark.parametrize(
    ("error", "kind", "label"),
    [
        (APIStatusError(429), UpstreamRateLimited, "rate_limited"),
        (APIStatusError(529), UpstreamFailed, "status_5xx"),
        (APIStatusError(307), UpstreamProtocolError, "protocol"),
        (APIError(), UpstreamFailed, "context_length"),
        (caused(APIConnectionError(), ssl.SSLError()), UpstreamUnreachable, "tls"),
        (caused(APIConnectionError(), socket.gaierror()), UpstreamUnreachable, "dns"),
        (caused(APIConnectionError(), ConnectionRefusedError()), UpstreamUnreachable, "refused"),
        (APIConnectionError(), UpstreamFailed, "broken"),
        (ConnectionResetError(), UpstreamFailed, "broken"),
        (TimeoutError(), UpstreamTimeout, "timeout_first"),
        (ValueError("Model does not support vision"), UpstreamBadRequest, "bad_request"),
        (json.JSONDecodeError("no", "{", 1), UpstreamProtocolError, "protocol"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), UpstreamProtocolError, "protocol"),
        (AttributeError("no"), UpstreamProtocolError, "protocol"),
        (TypeError("no"), UpstreamProtocolError, "protocol"),
        (IndexError("no"), UpstreamProtocolError, "protocol"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
async def test_every_exception_is_a_failure_of_the_port(
    error: Exception, kind: type[UpstreamFailed], label: str
) -> None:
    answer = await answer_of("Hel", error)

    assert answer.text == "Hel"
    assert isinstance(answer.failure, kind)
    assert answer.failure.label == label == failure_of(error).label
    assert SECRET not in str(answer.failure)


async def test_a_client_that_cancels_itself_fails_and_cancels_no_other_call() -> None:
    answer = await answer_of(asyncio.CancelledError())

    assert answer.failure is not None
    assert answer.failure.label == "broken"


async def test_a_client_that_hangs_is_left_at_the_first_limit() -> None:
    answer = await answer_of(asyncio.Event(), limits=ModelLimits(first_token=0.05))

    assert isinstance(answer.failure, UpstreamTimeout)
    assert answer.failure.label == "timeout_first"


async def test_leaving_ends_the_task_that_reads() -> None:
    model = ComponentChatModel("scripted", ScriptedClient("Hel", asyncio.Event()))

    async with model.stream(HELLO) as batches:
        assert await anext(batches) == [TextDelta("Hel")]

    assert [task.get_name() for task in asyncio.all_tasks() if "model call" in task.get_name()] == []
