"""Attempts, fallbacks and the rest that a failing provider is given."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import pytest

from proxy.errors import (
    ConfigurationError,
    ContentFiltered,
    ContextLengthExceeded,
    UpstreamAuthFailed,
    UpstreamBadRequest,
    UpstreamCircuitOpen,
    UpstreamFailed,
    UpstreamIncomplete,
    UpstreamRateLimited,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from proxy.events import TextDelta
from proxy.messages import Usage
from proxy.providers.circuit_breaker import Circuit
from proxy.providers.factory import Models
from proxy.providers.model import Finished, ModelRequest
from proxy.providers.retry import AttemptingModel, Candidate, RetryPolicy
from proxy.teamfiles.definitions import DemoModel, ModelDefinition, OpenAIModel, Price
from tests.fakes.model_calls import Answer, ask
from tests.fakes.models import Reply, ScriptedModel, says
from tests.fakes.upstream import FakeUpstream, cut, error, text

DOWN = UpstreamFailed("status_5xx", is_retryable=True)
REFUSED = UpstreamUnreachable("refused", is_retryable=True)
USED = Usage(1, 2)


class Bench:
    """A chain of scripted models, with what happened around it."""

    def __init__(
        self,
        *scripts: Sequence[Reply | UpstreamFailed],
        draw: float = 0.5,
        prices: Sequence[Price | None] = (None, None, None),
    ) -> None:
        self.slept: list[float] = []
        self.outcomes: list[tuple[str, str]] = []
        self.models = [
            ScriptedModel(*([step] if isinstance(step, UpstreamFailed) else step for step in script))
            for script in scripts
        ]
        for number, model in enumerate(self.models):
            model.name = f"model-{number}"
        self.policy = RetryPolicy(
            sleep=self._sleep,
            draw=lambda: draw,
            observe=lambda model, outcome, attempt: self.outcomes.append((model, outcome)),
        )
        candidates = [Candidate(model, Circuit(), prices[i]) for i, model in enumerate(self.models)]
        self.chain = AttemptingModel(candidates, self.policy)

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)

    async def ask(self) -> Answer:
        answer = await ask(self.chain)
        assert all(model.open == 0 for model in self.models), "every block was left"
        return answer


async def test_a_good_answer_passes_unchanged() -> None:
    bench = Bench([says("Hello you", usage=USED)])

    answer = await bench.ask()

    assert answer.batches == [[TextDelta("Hello ")], [TextDelta("you")], [Finished("stop", USED)]]
    assert (bench.slept, bench.outcomes) == ([], [("model-0", "ok")])


async def test_the_cost_is_that_of_the_model_that_answered() -> None:
    usage = Usage(prompt=1_000_000, completion=500_000, cached=400_000)
    dear, cheap = Price(prompt=30, completion=60), Price(prompt=1, completion=4, cached=0.5)

    first = await Bench([says("Hello", usage=usage)], [], prices=[dear, cheap]).ask()
    second = await Bench([DOWN] * 3, [says("Hello", usage=usage)], prices=[dear, cheap]).ask()

    assert first.deltas[-1] == Finished("stop", usage, cost=60.0)
    assert second.deltas[-1] == Finished("stop", usage, "model-1", cost=0.6 + 0.2 + 2.0)


@pytest.mark.parametrize("price", [None, Price(prompt=1, completion=1)], ids=["no price", "no usage"])
async def test_unknown_usage_or_price_has_no_cost(price: Price | None) -> None:
    answer = await Bench([says("Hello", usage=None if price else USED)], prices=[price]).ask()

    assert isinstance(finished := answer.deltas[-1], Finished)
    assert finished.cost is None


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(DOWN, id="5xx"),
        pytest.param(REFUSED, id="refused"),
        pytest.param(UpstreamFailed("broken", is_retryable=True), id="broken"),
        pytest.param(UpstreamIncomplete("incomplete", is_retryable=True), id="incomplete"),
        pytest.param(UpstreamRateLimited("rate_limited", is_retryable=True), id="429 without Retry-After"),
    ],
)
async def test_temporary_failures_are_retried_before_the_first_delta(failure: UpstreamFailed) -> None:
    bench = Bench([failure, failure, says("Hello")])

    answer = await bench.ask()

    assert (answer.text, answer.failure) == ("Hello", None)
    assert bench.slept == [0.5, 1.0]
    assert bench.outcomes == [("model-0", failure.label)] * 2 + [("model-0", "ok")]


async def test_the_failure_is_raised_after_three_attempts() -> None:
    bench = Bench([DOWN, DOWN, DOWN])

    answer = await bench.ask()

    assert answer.failure is DOWN
    assert len(bench.models[0].requests) == 3


@pytest.mark.parametrize(("draw", "slept"), [(0.0, [0.375, 0.75]), (1.0, [0.625, 1.25])])
async def test_waits_are_spread(draw: float, slept: list[float]) -> None:
    bench = Bench([DOWN, DOWN, DOWN], draw=draw)

    await bench.ask()

    assert bench.slept == slept


@pytest.mark.parametrize(
    ("requested", "slept"),
    [
        pytest.param(2.0, [2.0, 2.0], id="short: waited out"),
        pytest.param(5.0, [5.0, 5.0], id="at the limit: waited out"),
        pytest.param(0.0, [0.5, 1.0], id="none at all: the usual wait"),
        pytest.param(5.1, [], id="long: handed on at once"),
        pytest.param(3600.0, [], id="an hour: handed on at once"),
    ],
)
async def test_retry_after_decides_about_the_wait(requested: float, slept: list[float]) -> None:
    limited = UpstreamRateLimited("rate_limited", is_retryable=True, retry_after=requested)
    bench = Bench([limited] * 3)

    answer = await bench.ask()

    assert answer.failure is limited
    assert bench.slept == slept


@pytest.mark.parametrize(
    "failure",
    [
        UpstreamAuthFailed("auth"),
        UpstreamBadRequest("bad_request"),
        ContextLengthExceeded("context_length"),
        UpstreamTimeout("timeout_first"),
    ],
    ids=lambda failure: failure.label,
)
async def test_what_stays_is_not_tried_again(failure: UpstreamFailed) -> None:
    bench = Bench([failure])

    answer = await bench.ask()

    assert answer.failure is failure
    assert bench.slept == []


async def test_there_is_no_retry_after_the_first_delta() -> None:
    bench = Bench([[TextDelta("Hel"), DOWN]], [says("Never")])

    answer = await bench.ask()

    assert (answer.text, answer.failure) == ("Hel", DOWN)
    assert bench.models[1].requests == []


async def test_a_model_that_says_nothing_is_tried_no_further() -> None:
    bench = Bench([[]], [says("Hello")])

    assert (await bench.ask()).text == "Hello"
    assert bench.outcomes == [("model-0", "incomplete"), ("model-1", "ok")]


async def test_the_next_model_answers_and_is_named() -> None:
    bench = Bench([DOWN, DOWN, DOWN], [UpstreamAuthFailed("auth")], [says("Hello", usage=USED)])

    answer = await bench.ask()

    assert answer.text == "Hello"
    assert answer.end == Finished("stop", USED, model="model-2")
    assert bench.chain.name == "model-0"


async def test_the_first_failure_is_raised_if_all_models_fail() -> None:
    limited = UpstreamRateLimited("rate_limited", is_retryable=True, retry_after=60)
    bench = Bench([limited], [UpstreamAuthFailed("auth")])

    assert (await bench.ask()).failure is limited


async def test_a_filtered_request_has_no_fallback() -> None:
    filtered = ContentFiltered("content_filter")
    bench = Bench([filtered], [says("Sure!")])

    assert (await bench.ask()).failure is filtered
    assert bench.models[1].requests == []


async def test_cancelling_a_wait_ends_the_attempts() -> None:
    waiting = asyncio.Event()

    async def wait(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    model = ScriptedModel([DOWN], says("Never"))
    chain = AttemptingModel([Candidate(model, Circuit())], RetryPolicy(sleep=wait))
    pending = asyncio.create_task(ask(chain))
    await waiting.wait()
    pending.cancel()
    await asyncio.wait([pending])

    assert pending.cancelled()
    assert len(model.requests) == 1


async def test_an_attempt_that_fails_behind_its_first_delta_is_counted_as_failed() -> None:
    bench = Bench([[TextDelta("Hel"), DOWN]])

    answer = await bench.ask()

    assert answer.failure is DOWN
    assert bench.outcomes == [("model-0", "status_5xx")]


async def test_a_failed_attempt_is_logged_with_facts_only(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench([DOWN, says("Hello")])

    with caplog.at_level(logging.INFO):
        await bench.ask()

    (record,) = caplog.records
    assert record.getMessage() == "model call failed"
    assert (record.__dict__["model"], record.__dict__["outcome"], record.__dict__["attempt"]) == (
        "model-0",
        "status_5xx",
        1,
    )


# --- the circuit ---------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def is_open(circuit: Circuit) -> bool:
    """Whether the circuit admits no attempt; an admitted one is abandoned."""
    try:
        circuit.admit()
    except UpstreamCircuitOpen:
        return True
    circuit.abandoned()
    return False


def worn_out(clock: Clock, failures: int = 10) -> Circuit:
    circuit = Circuit(clock=clock)
    for _ in range(failures):
        circuit.admit()
        circuit.failed(REFUSED)
    return circuit


def test_after_many_failures_nothing_is_let_through() -> None:
    clock = Clock()
    circuit = worn_out(clock)

    clock.now += 4
    with pytest.raises(UpstreamCircuitOpen) as refused:
        circuit.admit()

    assert refused.value.retry_after == 6.0
    assert (refused.value.label, refused.value.is_retryable) == ("circuit_open", False)


def test_the_circuit_opens_at_the_tenth_failure_and_not_before() -> None:
    circuit = worn_out(Clock(), failures=9)
    assert not is_open(circuit)

    circuit.failed(REFUSED)
    assert is_open(circuit)


@pytest.mark.parametrize("answer", [None, UpstreamAuthFailed("auth"), UpstreamRateLimited("rate_limited")])
def test_any_answer_resets_the_count_of_failures(answer: UpstreamFailed | None) -> None:
    circuit = worn_out(Clock(), failures=9)

    circuit.answered() if answer is None else circuit.failed(answer)
    for _ in range(9):
        circuit.failed(REFUSED)

    assert not is_open(circuit)
    circuit.failed(REFUSED)
    assert is_open(circuit)


def test_after_the_rest_one_attempt_finds_out() -> None:
    clock = Clock()
    circuit = worn_out(clock)
    clock.now += 10

    circuit.admit()
    with pytest.raises(UpstreamCircuitOpen):
        circuit.admit()
    circuit.answered()

    circuit.admit()
    circuit.admit()


def test_a_failed_trial_begins_another_rest() -> None:
    clock = Clock()
    circuit = worn_out(clock)
    clock.now += 10
    circuit.admit()
    circuit.failed(REFUSED)

    clock.now += 9
    with pytest.raises(UpstreamCircuitOpen):
        circuit.admit()
    clock.now += 1
    circuit.admit()


def test_an_abandoned_trial_admits_another_one() -> None:
    clock = Clock()
    circuit = worn_out(clock)
    clock.now += 10
    circuit.admit()
    assert is_open(circuit)

    circuit.abandoned()

    assert not is_open(circuit)


async def test_an_open_circuit_costs_no_attempt_and_leads_to_the_fallback() -> None:
    first, second = ScriptedModel(), ScriptedModel(says("Hello"))
    chain = AttemptingModel([Candidate(first, worn_out(Clock())), Candidate(second, Circuit())])

    assert (await ask(chain)).text == "Hello"
    assert first.requests == []


async def test_a_circuit_that_opens_between_attempts_leaves_the_real_failure() -> None:
    bench = Bench([DOWN, DOWN, DOWN])
    chain = AttemptingModel([Candidate(bench.models[0], worn_out(Clock(), failures=8))], bench.policy)

    assert (await ask(chain)).failure is DOWN
    assert bench.outcomes == [("model-0", "status_5xx")] * 2 + [("model-0", "circuit_open")]


async def test_a_cancelled_trial_admits_another_one() -> None:
    clock = Clock()
    circuit = worn_out(clock)
    clock.now += 10
    was_requested = asyncio.Event()

    def never(request: ModelRequest) -> Reply:
        was_requested.set()
        return [asyncio.Event()]

    chain = AttemptingModel([Candidate(ScriptedModel(choose=never), circuit)])
    pending = asyncio.create_task(ask(chain))
    await was_requested.wait()
    assert is_open(circuit)
    pending.cancel()
    await asyncio.wait([pending])

    assert not is_open(circuit)


# --- the models of a configuration ---------------------------------------------------------------------------


async def no_wait(seconds: float) -> None:
    await asyncio.sleep(0)


def no_demo(name: str, definition: DemoModel) -> ScriptedModel:
    return ScriptedModel(says(f"I am {name}."))


async def test_models_of_a_file_are_called_over_the_wire_with_fallbacks() -> None:
    async with FakeUpstream(cut(), error(503), text("Hello"), error(401)) as upstream:
        definitions: dict[str, ModelDefinition] = {
            "good": OpenAIModel(model="gpt", base_url=upstream.base_url),
            "toy": DemoModel(demo=True),
        }
        models = Models(definitions, demo=no_demo, policy=RetryPolicy(sleep=no_wait))

        again = await ask(models.model_for("good"))
        fallen_back = await ask(models.model_for("good", ["toy"]))
        await models.close()

    assert again.end == Finished("stop", Usage(11, 7))
    assert fallen_back.text == "I am toy."
    assert fallen_back.end is not None
    assert fallen_back.end.model == "scripted"


async def test_models_at_one_provider_share_its_circuit() -> None:
    async with FakeUpstream(error(500)) as upstream:
        definitions = {
            name: OpenAIModel(model=name, base_url=upstream.base_url + slash)
            for name, slash in (("one", ""), ("two", "/"))
        }
        models = Models(
            definitions,
            demo=no_demo,
            policy=RetryPolicy(attempts=1),
            make_circuit=lambda: Circuit(failures=1),
        )

        await ask(models.model_for("one"))
        second = await ask(models.model_for("two"))
        await models.close()

    assert isinstance(second.failure, UpstreamCircuitOpen)
    assert len(upstream.requests) == 1


def test_an_unknown_model_is_a_configuration_error() -> None:
    models = Models({"toy": DemoModel(demo=True)}, demo=no_demo)

    with pytest.raises(ConfigurationError, match="'teh'"):
        models.model_for("toy", ["teh"])


def test_the_same_chain_is_created_once() -> None:
    models = Models({"toy": DemoModel(demo=True)}, demo=no_demo)

    assert models.model_for("toy") is models.model_for("toy", ["toy"])
