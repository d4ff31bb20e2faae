"""Makes the models that a team file defines, and the chains of attempts in front of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from proxy.errors import ConfigurationError
from proxy.providers.circuit_breaker import Circuit
from proxy.providers.context_windows import ContextWindow, configured_window
from proxy.providers.http.pool import HttpSession
from proxy.providers.http.tls import TlsOptions
from proxy.providers.http.tunnel import EnvironmentProxies, HttpProxy
from proxy.providers.http.url import HttpUrl
from proxy.providers.model import Model
from proxy.providers.openai.client import OpenAIWireModel
from proxy.providers.openai.remote_approvals import RemoteApprovalApi
from proxy.providers.retry import AttemptingModel, Candidate, RetryPolicy
from proxy.providers.timeouts import ModelLimits
from proxy.settings import FROM_ENVIRONMENT, Settings, environment
from proxy.teamfiles.definitions import (
    ComponentModel,
    DemoModel,
    ModelDefinition,
    OpenAIModel,
    Price,
    RemoteAgentDefinition,
)

MakeDemo = Callable[[str, DemoModel], Model]
"""Makes the demonstration model of this name."""


class Models:
    """All models of one configuration, by name. They share one HTTP session and are closed together."""

    def __init__(
        self,
        definitions: Mapping[str, ModelDefinition],
        *,
        demo: MakeDemo,
        limits: ModelLimits | None = None,
        policy: RetryPolicy | None = None,
        make_circuit: Callable[[], Circuit] = Circuit,
        session: HttpSession | None = None,
    ) -> None:
        """Make every model; components are loaded now, connections are opened when first needed.

        Raises:
            ConfigurationError: A model cannot be made.
        """
        self._session = session or HttpSession()
        self._limits = limits or ModelLimits()
        self._policy = policy or RetryPolicy()
        self._demo = demo
        self._make_circuit = make_circuit
        circuits: dict[str, Circuit] = defaultdict(make_circuit)
        self._candidates = {
            name: Candidate(
                self._made(name, definition),
                circuits[_provider(name, definition)],
                _price(definition),
                *_place(definition),
            )
            for name, definition in definitions.items()
        }
        self._chains: dict[tuple[str, ...], Model] = {}
        self._windows = {name: configured_window(definition) for name, definition in definitions.items()}

    def model_for(self, name: str, fallbacks: Sequence[str] = ()) -> Model:
        """Return the model of this name with its retries and fallbacks; only ``close`` closes it.

        Raises:
            ConfigurationError: There is no model of one of these names.
        """
        names = tuple(dict.fromkeys((name, *fallbacks)))
        if names not in self._chains:
            for wanted in names:
                if wanted not in self._candidates:
                    raise ConfigurationError(f"there is no model named {wanted!r}")
            self._chains[names] = AttemptingModel([self._candidates[one] for one in names], self._policy)
        return self._chains[names]

    def remote(self, definition: RemoteAgentDefinition) -> Model:
        """Return the model that is a remote agent, with one attempt: a remote agent can have effects."""
        model = _model_of(definition)
        made = OpenAIWireModel(model, self._session, self._limits)
        candidate = Candidate(made, self._make_circuit(), definition.price, *_place(model))
        return AttemptingModel([candidate], replace(self._policy, attempts=1))

    def remote_approvals(self, definition: RemoteAgentDefinition) -> RemoteApprovalApi:
        """Return the approvals of a remote agent that is a team of another handoff-proxy."""
        return RemoteApprovalApi(_model_of(definition), self._session, connect=self._limits.connect)

    def window_of(self, name: str) -> ContextWindow:
        """Return the context window of a model, which all its users share."""
        return self._windows[name]

    def each(self) -> Mapping[str, Candidate]:
        """Return every model by its name, without attempts and fallbacks."""
        return self._candidates

    async def close(self) -> None:
        """Close every model and every connection."""
        for candidate in self._candidates.values():
            await candidate.model.close()
        await self._session.close()

    def _made(self, name: str, definition: ModelDefinition) -> Model:
        match definition:
            case OpenAIModel():
                return OpenAIWireModel(definition, self._session, self._limits)
            case ComponentModel():
                # Importing AutoGen's clients takes a second; only who uses one waits for it.
                from proxy.providers.autogen.client import ComponentChatModel

                return ComponentChatModel.load(name, definition, self._limits)
            case DemoModel():
                return self._demo(name, definition)


def _model_of(definition: RemoteAgentDefinition) -> OpenAIModel:
    return OpenAIModel(
        model=definition.model,
        base_url=definition.base_url,
        api_key=definition.api_key,
        headers=definition.headers,
        wire="chat",
    )


def build_models(
    definitions: Mapping[str, ModelDefinition],
    settings: Settings,
    *,
    demo: MakeDemo,
    policy: RetryPolicy | None = None,
) -> Models:
    """Make the models with the limits of the settings.

    Raises:
        ConfigurationError: A model cannot be made.
    """
    limits = model_limits(settings)
    return Models(definitions, demo=demo, limits=limits, policy=policy, session=provider_session(settings))


def provider_session(settings: Settings) -> HttpSession:
    """Return connections with the limit, the HTTP proxy and the TLS options of the settings.

    Raises:
        ConfigurationError: A proxy variable of the environment has no valid address, or a TLS file cannot be used.
    """
    options = TlsOptions(
        settings.provider_tls_ca,
        settings.provider_tls_certificate,
        settings.provider_tls_key,
        settings.provider_tls_minimum,
    )
    return HttpSession(
        max_per_host=settings.provider_connections,
        proxy=_provider_proxy(settings),
        # The default context is created when it is first used.
        tls=None if options == TlsOptions() else options.context(),
    )


def _provider_proxy(settings: Settings) -> HttpProxy | EnvironmentProxies | None:
    if settings.provider_proxy is None:
        return None
    address = settings.provider_proxy.get_secret_value()
    if address != FROM_ENVIRONMENT:
        return HttpProxy.at(address)
    try:
        return EnvironmentProxies.of(environment())
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def model_limits(settings: Settings) -> ModelLimits:
    """Return the limits of a model call as they are set."""
    return ModelLimits(
        connect=settings.connect_timeout,
        first_token=settings.first_token_timeout,
        idle=settings.idle_timeout,
        answer_bytes=settings.max_answer_bytes,
    )


def _price(definition: ModelDefinition) -> Price | None:
    return None if isinstance(definition, DemoModel) else definition.price


def _place(definition: ModelDefinition) -> tuple[str, str]:
    """Return the host of the provider, and its address; both are empty for components that do not name one."""
    match definition:
        case OpenAIModel():
            urls = [HttpUrl.parse(definition.base_url)]
        case ComponentModel():
            urls = list(_urls(definition))
        case DemoModel():
            urls = []
    return next(((url.host, url.authority) for url in urls if url.host), ("", ""))


def _places(definition: ComponentModel) -> list[str]:
    config = definition.config
    places = (config.get(key) for key in ("base_url", "azure_endpoint", "endpoint", "host"))
    return [place for place in places if isinstance(place, str)]


def _urls(definition: ComponentModel) -> Iterator[HttpUrl]:
    for place in _places(definition):
        # Ollama's client accepts a host without a scheme. The config of other components has any form.
        with suppress(ValueError):
            yield HttpUrl.parse(place if "://" in place else f"http://{place}")


def _provider(name: str, definition: ModelDefinition) -> str:
    """Return what fails together: not a model, and not a key, but who answers for them."""
    match definition:
        case OpenAIModel():
            return definition.base_url.rstrip("/")
        case ComponentModel():
            return " ".join([definition.provider, *_places(definition)])
        case DemoModel():
            return f"demo {name}"
