"""Models behind OpenAI-compatible APIs, called over the proxy's own connections.

The ``openai`` package costs forty times as much per chunk and 0.17 ms for every message of the history, so nothing of
it is used here. One ``HttpSession`` serves all models of a process. What a provider rejects is learned once: the
request is repeated at once in a form that it may accept (``adaptation``), and later requests begin in that form.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import msgspec

from proxy.errors import UpstreamBadRequest, UpstreamFailed
from proxy.providers.capabilities import Abilities
from proxy.providers.http.connection import Response
from proxy.providers.http.pool import HttpSession, error_body
from proxy.providers.model import CacheableLayout, ModelDelta, ModelRequest
from proxy.providers.openai.adaptation import Adaptation, Omission, Reshaping
from proxy.providers.openai.adaptation_rules import adaptations_to, fields_of
from proxy.providers.openai.adapted_body import caller_names, without_effect
from proxy.providers.openai.answer import Accepted, ProviderAnswer
from proxy.providers.openai.error_report import identifiers, report
from proxy.providers.openai.errors import refusal
from proxy.providers.openai.learned_adaptations import CallAdaptations, LearnedAdaptations
from proxy.providers.openai.provider_state import (
    has_state,
    has_unknown_state,
    provider_of,
    without_unknown_state,
)
from proxy.providers.openai.rejection import Rejection, is_named_once, rejection_of
from proxy.providers.openai.request import BodyDefaults, Outgoing, body_of, secrets_of
from proxy.providers.openai.responses_request import UNSUPPORTED, responses_body
from proxy.providers.openai.responses_stream import ResponsesReader
from proxy.providers.openai.stream_parser import AnswerReader
from proxy.providers.openai.wires import Wire, endpoint_of, first_wire, other_wire
from proxy.providers.timeouts import ModelLimits
from proxy.teamfiles.definitions import OpenAIModel

logger = logging.getLogger(__name__)

MAX_REPEATS = 8
"""Of one call, each with something else changed."""
_ROLES = (Reshaping.SYSTEM_ROLE, Reshaping.DEVELOPER_ROLE)


class OpenAIWireModel:
    """One model at one provider. The session is the caller's to close."""

    def __init__(
        self, definition: OpenAIModel, session: HttpSession, limits: ModelLimits | None = None
    ) -> None:
        """``limits`` are the defaults unless given.

        Raises:
            ConfigurationError: The key or a header has characters that cannot be sent.
        """
        self._definition = definition
        self._defaults = BodyDefaults.of(definition)
        self.name = definition.model
        """The model's name at its provider."""
        self._session = session
        self.alarm_clock = session.alarm_clock
        self._limits = limits or ModelLimits()
        self._endpoints = {
            "chat": endpoint_of(definition, "chat", "completions"),
            "responses": endpoint_of(definition, "responses"),
        }
        self._wire: Wire = first_wire(definition)
        self._may_switch = definition.wire == "auto"
        self._learned = LearnedAdaptations()
        self._secrets = secrets_of(definition)
        self.provider = provider_of(definition.base_url, definition.model)
        """The name of the model at its provider (``provider_of``): only the same one gets its state back."""
        self._accepts_cacheable: bool | None = None
        """Whether system messages may follow other messages; None until a request has shown it."""

    @property
    def wire(self) -> Wire:
        """The API that the next call uses."""
        return self._wire

    @property
    def adaptations(self) -> Collection[Adaptation]:
        """What was learned of the provider."""
        return self._learned.current()

    @property
    def abilities(self) -> Abilities:
        """Everything that the wire has, but for parameters that the provider was found to reject."""
        learned = self._learned.current()
        if self._wire == "chat" and not learned:
            return Abilities()
        unsupported = UNSUPPORTED if self._wire == "responses" else ()
        return Abilities().without(*unsupported, *without_effect(learned))

    def stream(
        self, request: ModelRequest
    ) -> AbstractAsyncContextManager[AsyncIterator[Sequence[ModelDelta]]]:
        """Send the request, and read the answer in batches inside the block."""
        return ProviderAnswer(self, request, self._limits)

    async def close(self) -> None:
        """Nothing is held in addition to the session."""

    def send(self, request: ModelRequest) -> Awaitable[Accepted]:
        """Send the request, in its cacheable layout if it has one.

        Raises:
            UpstreamFailed: The provider does not accept it.
        """
        # Plain function: nearly every request needs no coroutine in between.
        layout = request.cacheable
        if layout is None or self._accepts_cacheable is False:
            return self._ask(request)
        return self._send_cacheable(request, layout)

    async def _send_cacheable(self, request: ModelRequest, layout: CacheableLayout) -> Accepted:
        """Send the request in its cacheable layout.

        If that is rejected, the request is repeated in the usual layout, with one system message in front, which is
        used from then on if it is accepted.

        Raises:
            UpstreamFailed: The provider accepts neither.
        """
        # Of other providers it is not known whether they support allowed_tools; some ignore it.
        allows_subset = self._wire == "responses" or first_wire(self._definition) == "responses"
        try:
            answer = await self._ask(
                request.in_cacheable_layout(allows_subset=allows_subset),
                # A late system message may be what is rejected, and not the role.
                learns_roles=bool(self._accepts_cacheable) or not layout.has_late_instructions,
            )
        except UpstreamBadRequest:
            if self._accepts_cacheable:
                raise
            answer = await self._ask(request)
            self._accepts_cacheable = False
            logger.info("model rejects the cacheable prompt layout", extra={"model": self.name})
            return answer
        if layout.has_late_instructions:
            self._accepts_cacheable = True
        return answer

    async def _ask(self, request: ModelRequest, *, learns_roles: bool = True) -> Accepted:
        """Send a request until the provider accepts it; without ``learns_roles`` not with other roles of messages.

        With ``wire: auto`` the other wire is tried, once, when the provider does not have the first or points to the
        other; if that one accepts the request, it is used from then on.

        Raises:
            UpstreamFailed: The provider does not accept it, or not with a parameter that the caller requires.
        """
        # Read once: another call may switch or learn while this one waits for its answer.
        wire = first = self._wire
        may_switch = self._may_switch
        failure_of_first: UpstreamFailed | None = None
        adaptations = CallAdaptations(self._learned.current())
        for _ in range(MAX_REPEATS + 2):
            outgoing = self._body(request, wire, adaptations.current)
            if request.is_strict and (ignored := outgoing.ignored & request.requested):
                raise UpstreamBadRequest(param=min(ignored))
            response = await self._session.ask(
                self._endpoints[wire], outgoing.body, connect=self._limits.connect, headers=request.headers
            )
            if response.status < 300:
                if wire != first:
                    self._switch(wire)
                if adaptations.found:
                    self._learn_confirmed(adaptations)
                return self._accepted(request, response, outgoing, wire, adaptations.current)
            error = await error_body(response)
            failure = self._failure(request, response, error, outgoing)
            if (
                may_switch
                and wire == first
                and (other := other_wire(wire, response.status, error, outgoing.body))
            ):
                failure_of_first, wire = failure, other
                continue
            if wire != first and response.status in (404, 405):
                raise failure_of_first or failure
            if failure.label == "invalid_output":
                # The provider accepted the request, and rejects what the model wrote.
                self._learn_confirmed(adaptations)
                break
            if response.status not in (400, 422):
                break
            rejection = rejection_of(response.status, error)
            changes = self._adaptations_to(rejection, outgoing, learns_roles=learns_roles)
            if not changes.keys() - adaptations.current and isinstance(failure, UpstreamBadRequest):
                changes = self._without_state(rejection, request, adaptations.current)
            # A field that was left out already cannot be what is rejected now.
            if not adaptations.add(rejection, changes):
                break
            if rejection.is_structured:
                # With strict parameters the request may not be repeated, so that nothing would confirm it.
                self._learn(rejection, [one for one in changes if changes[one] and isinstance(one, Omission)])
        raise failure

    def _accepted(
        self,
        request: ModelRequest,
        response: Response,
        outgoing: Outgoing,
        wire: Wire,
        adaptations: Collection[Adaptation],
    ) -> Accepted:
        reader: Callable[..., AnswerReader | ResponsesReader] = (
            AnswerReader if wire == "chat" else ResponsesReader
        )
        if not adaptations:
            # Nothing of the request was left out.
            return Accepted(response, reader)
        if wire == "chat" and Reshaping.REASONING_FIRST in adaptations:
            reader = partial(AnswerReader, starts_in_reasoning=True)
        unused = tuple(sorted(outgoing.ignored & request.requested))
        return Accepted(response, reader, unused, outgoing.defers_form)

    def _without_state(
        self, rejection: Rejection, request: ModelRequest, adaptations: Collection[Adaptation]
    ) -> dict[Adaptation, bool]:
        """Return that the request is repeated without provider state, if it has any.

        The provider may not know these members, or not accept these values: a client changed them, or they were
        encrypted for another organisation. Only the first concerns other calls. Members that this proxy does not know
        go first: the provider may have sent them only for information.
        """
        if Reshaping.NO_UNKNOWN_STATE not in adaptations and has_unknown_state(request, self.provider):
            return {Reshaping.NO_UNKNOWN_STATE: True}
        if request.has_client_state and Reshaping.NO_CLIENT_STATE not in adaptations:
            return {Reshaping.NO_CLIENT_STATE: rejection.verdict == "unsupported"}
        return {Reshaping.NO_STATE: False} if has_state(request, self.provider) else {}

    def _learn_confirmed(self, adaptations: CallAdaptations) -> None:
        for rejection, found in adaptations.found:
            self._learn(rejection, found)

    def _learn(self, rejection: Rejection, adaptations: Iterable[Adaptation]) -> None:
        new = self._learned.learn(adaptations)
        if new:
            facts = {
                "model": self.name,
                "host": self._endpoints["chat"].host,
                **identifiers(rejection, secrets=self._secrets),
                "adaptations": [str(one) for one in new],
            }
            logger.info("provider rejects part of a request; later requests are adapted", extra=facts)

    def _failure(
        self, request: ModelRequest, response: Response, error: bytes, outgoing: Outgoing
    ) -> UpstreamFailed:
        failure = refusal(response.status, error, response.headers)
        if isinstance(failure, UpstreamBadRequest):
            rejection = rejection_of(response.status, error)
            param = self._parameter_of_caller(rejection, request, outgoing)
            if param is not None:
                failure = UpstreamBadRequest(param=param)
        failure.facts = report(response.status, error, sent=outgoing.body, secrets=self._secrets)
        return failure

    def _parameter_of_caller(
        self, rejection: Rejection, request: ModelRequest, outgoing: Outgoing
    ) -> str | None:
        fields = dict(fields_of(msgspec.json.decode(outgoing.body)))
        for field in rejection.named(fields):
            if rejection.is_structured or is_named_once(field, outgoing.body):
                for name in caller_names(field):
                    if name in request.requested:
                        return name
        return None

    def finish(self, reader: AnswerReader | ResponsesReader) -> None:
        """Learn that the model begins with reasoning, if the answer shows it."""
        if isinstance(reader, AnswerReader) and reader.has_unopened_reasoning:
            new = self._learned.learn([Reshaping.REASONING_FIRST])
            if new:
                facts = {"model": self.name, "host": self._endpoints["chat"].host}
                logger.info("model ends its reasoning without an opening tag", extra=facts)

    def describe(self, failure: UpstreamFailed, request: ModelRequest) -> None:
        """Add the provider, and what it reported, to the facts of a failure."""
        if failure.error is not None:
            # Reported inside a response, whose reader knows neither the secrets nor the request.
            sent = self._body(request, self._wire, self._learned.current()).body
            failure.facts = report(None, failure.error, sent=sent, secrets=self._secrets)
        failure.facts.setdefault("host", self._endpoints["chat"].host)

    def _adaptations_to(
        self, rejection: Rejection, outgoing: Outgoing, *, learns_roles: bool
    ) -> dict[Adaptation, bool]:
        found = adaptations_to(rejection, msgspec.json.decode(outgoing.body))
        return {one: is_general for one, is_general in found.items() if learns_roles or one not in _ROLES}

    def _switch(self, wire: Wire) -> None:
        if self._may_switch:
            self._wire = wire
            self._may_switch = False
            logger.info("model uses the other wire of its provider", extra={"model": self.name, "wire": wire})

    def _body(self, request: ModelRequest, wire: Wire, adaptations: Collection[Adaptation]) -> Outgoing:
        make_body = responses_body if wire == "responses" else body_of
        if adaptations:
            if Reshaping.NO_STATE in adaptations:
                request = request.without_state()
            elif Reshaping.NO_CLIENT_STATE in adaptations:
                request = request.without_client_state()
            if Reshaping.NO_UNKNOWN_STATE in adaptations:
                request = without_unknown_state(request)
        try:
            return make_body(self._defaults, request, provider=self.provider, adaptations=adaptations)
        except (ValueError, TypeError):
            raise UpstreamBadRequest from None
