"""Retries and fallbacks of a model call, until the first delta: an agent's model, then its fallbacks.

Own code rather than a retry library: what is repeated is not a call but the entering of a block up to its
first batch, the delay depends on the provider's ``Retry-After``, and one model's attempts are followed by the next
model's.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any

import msgspec

from proxy.errors import (
    ContentFiltered,
    ContextLengthExceeded,
    UpstreamCircuitOpen,
    UpstreamFailed,
    UpstreamIncomplete,
)
from proxy.providers.capabilities import Abilities
from proxy.providers.circuit_breaker import Circuit
from proxy.providers.model import Finished, Model, ModelDelta, ModelRequest, Take, forward_of
from proxy.providers.span import record_attempt, record_first_chunk
from proxy.teamfiles.definitions import Price
from proxy.tracing import is_traced
from proxy.turns.text_relay import OpenRelay

logger = logging.getLogger(__name__)

_LONGEST_WAIT = 5.0
"""The longest ``Retry-After`` before a retry, in seconds; a longer one is forwarded to the caller."""


class Candidate(msgspec.Struct, frozen=True):
    """A model, the health of its provider, and what it costs."""

    model: Model
    circuit: Circuit
    price: Price | None = None
    host: str = ""
    """Of the provider, for the log; empty if it is not known."""
    address: str = ""
    """The host, with the port unless it is the default one of the scheme."""


class RetryPolicy(msgspec.Struct, frozen=True):
    """Number and delays of the attempts."""

    attempts: int = 3
    """For each model, the first one included."""
    first_pause: float = 0.5
    """Before the second attempt, in seconds, with a jitter of up to a quarter; each further pause is twice as long."""
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    draw: Callable[[], float] = random.random
    """Gives a number from 0 to 1, for the jitter."""
    observe: Callable[[str, str, int], object] | None = None
    """Receives every attempt, if it is set: the model's name, ``ok`` or the label of a failure, and its number, from 1
    for each model of a call."""


class AttemptingModel:
    """The first of several models that answers.

    Entering its block waits for the first batch, so that whatever fails before it can be tried again. When
    another than the first model answered, ``Finished.model`` is its name, and ``Finished.cost`` the cost of its
    answer. If all fail, the first one's failure is raised: it is the model that the agent is meant to have. A
    ``ContextLengthExceeded`` of a fallback has precedence, because the caller can shorten the request.
    """

    def __init__(self, candidates: Sequence[Candidate], policy: RetryPolicy | None = None) -> None:
        """``candidates`` in the order in which they are asked; at least one."""
        self._candidates = tuple(candidates)
        self._policy = policy or RetryPolicy()
        self.name = self._candidates[0].model.name
        """The first model's name."""

    @property
    def abilities(self) -> Abilities:
        """What all of them support, because any of them may answer."""
        first, *others = self._candidates
        abilities = first.model.abilities
        for candidate in others:
            abilities &= candidate.model.abilities
        return abilities

    def stream(
        self, request: ModelRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ModelDelta]]]:
        """Call the models until one answers."""
        return _Attempts(self._candidates, self._policy, request)

    async def close(self) -> None:
        """The models are closed by their owner: several chains share them."""


class _Attempts:
    """One call, with all its attempts."""

    _block: AbstractAsyncContextManager[AsyncIterator[Sequence[ModelDelta]]]
    """The block of the model that answers; it is left when this one is."""
    _batches: AsyncIterator[Sequence[ModelDelta]]
    _first: Sequence[ModelDelta] | None
    """The first batch, until it is read."""
    _answering: tuple[Candidate, int]
    """The model that answers, and the number of its attempt."""
    _fallback: str | None
    """The name of the model that answers, when it is not the first."""
    _price: Price | None

    def __init__(self, candidates: Sequence[Candidate], policy: RetryPolicy, request: ModelRequest) -> None:
        self._candidates = candidates
        self._policy = policy
        self._request = request
        self._fallback = None
        self._is_traced = bool(is_traced())

    def __aenter__(self) -> Coroutine[Any, Any, AsyncIterator[Sequence[ModelDelta]]]:
        # Plain function: a model without fallbacks needs no coroutine in between.
        candidates = self._candidates
        return self._ask(candidates[0]) if len(candidates) == 1 else self._first_that_answers()

    async def _first_that_answers(self) -> _Attempts:
        first_failure: UpstreamFailed | None = None
        for candidate in self._candidates:
            try:
                await self._ask(candidate)
            except UpstreamFailed as failure:
                if isinstance(failure, ContextLengthExceeded) and first_failure is not None:
                    # A shorter request can get an answer of this model, whatever failed before.
                    failure.is_fallback = True
                    first_failure = failure
                first_failure = first_failure or failure
                if isinstance(failure, ContentFiltered):
                    # A refusal of the content is an answer; no other provider is asked to overrule it.
                    break
            else:
                if candidate is not self._candidates[0]:
                    self._fallback = candidate.model.name
                return self
        assert first_failure is not None
        raise first_failure

    def __aiter__(self) -> AsyncIterator[Sequence[ModelDelta]]:
        return self

    def __anext__(self) -> Awaitable[Sequence[ModelDelta]]:
        if self._first is None and self._fallback is None and self._price is None:
            # Nearly every batch: it is returned by the model itself, without a call in between.
            return anext(self._batches)
        return self._noted_batch()

    def forward(self, take: Take, open_relay: OpenRelay | None = None) -> Awaitable[bool]:
        """Forward the batches of the model behind the first one, see ``forward_of``."""
        # Plain function: a coroutine would add a frame to each waiting stream.
        forward = forward_of(self._batches) if self._first is None else None
        return forward(take, open_relay) if forward is not None else _iterate()

    async def _noted_batch(self) -> Sequence[ModelDelta]:
        batch, self._first = self._first, None
        if batch is None:
            batch = await anext(self._batches)
        fallback, price = self._fallback, self._price
        if (fallback is not None or price is not None) and batch and isinstance(last := batch[-1], Finished):
            cost = price.cost(last.usage) if price is not None and last.usage is not None else None
            return [*batch[:-1], msgspec.structs.replace(last, model=last.model or fallback, cost=cost)]
        return batch

    def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> Coroutine[Any, Any, bool | None]:
        candidate, attempt = self._answering
        # A failure here broke the answer off behind its first batch. A cancelled answer counts as ``ok``.
        self._report(candidate, value if isinstance(value, UpstreamFailed) else None, attempt)
        return self._block.__aexit__(kind, value, trace)

    async def _ask(self, candidate: Candidate) -> _Attempts:
        request, circuit = self._request, candidate.circuit
        if candidate is not self._candidates[0]:
            # What the client sent is meant for the model that it knows.
            request = request.without_client_state()
        earlier: UpstreamFailed | None = None
        for attempt in range(1, self._policy.attempts + 1):
            try:
                circuit.admit()
            except UpstreamCircuitOpen as open_circuit:
                self._report(candidate, open_circuit, attempt)
                # The failure before is more specific than the open circuit breaker.
                raise earlier or open_circuit from None
            began = asyncio.get_running_loop().time() if self._is_traced else None
            try:
                block = candidate.model.stream(request)
                batches = await block.__aenter__()
                try:
                    try:
                        first = await anext(batches)
                    except StopAsyncIteration:
                        raise UpstreamIncomplete("incomplete") from None
                except BaseException as error:
                    await block.__aexit__(type(error), error, error.__traceback__)
                    raise
            except UpstreamFailed as failure:
                circuit.failed(failure)
                self._report(candidate, failure, attempt)
                earlier = failure
                pause = self._pause(failure, attempt)
                if pause is None:
                    raise
            except BaseException:
                circuit.abandoned()
                raise
            else:
                circuit.answered()
                if began is not None:
                    record_first_chunk(asyncio.get_running_loop().time() - began)
                self._block, self._batches, self._first = block, batches, first
                self._answering = candidate, attempt
                self._price = candidate.price
                return self
            await self._policy.sleep(pause)
        raise AssertionError("the last attempt has no pause")

    def _pause(self, failure: UpstreamFailed, attempt: int) -> float | None:
        """Return the seconds to wait before the next attempt, None if there is to be none."""
        requested = failure.retry_after or 0.0
        if not failure.is_retryable or requested > _LONGEST_WAIT or attempt == self._policy.attempts:
            return None
        if failure.label == "invalid_output":
            # The provider is well: another sample of the model needs no pause.
            return 0.0
        return max(
            requested, self._policy.first_pause * 2.0 ** (attempt - 1) * (0.75 + self._policy.draw() / 2)
        )

    def _report(self, candidate: Candidate, failure: UpstreamFailed | None, attempt: int) -> None:
        """Count an attempt, once it has ended, and log it if it failed."""
        outcome = failure.label if failure is not None else "ok"
        if self._policy.observe is not None:
            self._policy.observe(candidate.model.name, outcome, attempt)
        if self._is_traced:
            record_attempt(candidate.host, candidate.address, attempt, failure.label if failure else None)
        if failure is None:
            return
        facts: dict[str, object] = {"host": candidate.host} if candidate.host else {}
        facts |= {
            "model": candidate.model.name,
            "outcome": failure.label,
            "attempt": attempt,
            **failure.facts,
        }
        logger.warning("model call failed", extra=facts)


async def _iterate() -> bool:
    """Return that batches have to be read by iteration."""
    return True
