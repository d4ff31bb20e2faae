"""Parse the request headers that all APIs of a team have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from hashlib import blake2b

import msgspec
from msgspec import Struct
from starlette.datastructures import QueryParams

from proxy.auth import pseudonym
from proxy.errors import InvalidRequest
from proxy.messages import EventsMode, Parameters
from proxy.routes.request_body import RequestHeaders, first_of, is_placeholder
from proxy.settings import Settings
from proxy.turns.request import BusyPolicy, DisconnectPolicy, IdSource
from proxy.wire.chat.parse import conversation_id

_MAX_BYTES_IN_LOOP = 16_384
"""Size up to which a body is brought into canonical form in the event loop, which takes at most 30 µs per kilobyte."""
IDEMPOTENCY_KEY = "idempotency-key"
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


class HeaderOptions(Struct, frozen=True):
    """What the headers of a request say about its turn. None and ``""`` stand for nothing."""

    conversation_id: str | None
    id_source: IdSource
    parent: str | None
    end_user: str
    idempotency_key: str | None
    is_retry: bool
    is_repeatable: bool
    is_side: bool
    on_disconnect: DisconnectPolicy | None
    busy: BusyPolicy | None
    events: EventsMode | None
    has_status: bool
    """Whether the response includes status events for Open WebUI."""
    are_usual: bool
    """Whether those about keys, repetitions, running turns and the place of the turn say nothing."""

    def named_conversation(self, metadata: Mapping[str, str]) -> tuple[str | None, IdSource]:
        """Return the conversation id of the request, which can be in its metadata, and its source.

        Raises:
            InvalidRequest: The id is not valid.
        """
        named = metadata.get("conversation_id") if self.conversation_id is None else None
        if named and (named := named.strip()):
            return conversation_id(named, param="metadata.conversation_id"), "metadata"
        return self.conversation_id, self.id_source


def header_options(headers: dict[str, str], settings: Settings) -> HeaderOptions:
    """Return what the headers of a request say about its turn; computed once for headers that requests share.

    Raises:
        InvalidRequest: A header has an invalid value.
    """
    derived = headers.derived if type(headers) is RequestHeaders else None
    if derived is not None and derived[0] is settings:
        known: HeaderOptions = derived[1]
        return known
    named, source = _conversation_of(headers, settings.conversation_headers)
    parent = _parent_id(headers)
    end_user = first_of(headers, settings.user_headers)
    key = idempotency_key(headers)
    is_retry = _is_retry(headers)
    # Such as one for a title.
    is_side = bool(first_of(headers, [settings.task_header]))
    left, busy = on_disconnect(headers), busy_policy(headers)
    options = HeaderOptions(
        conversation_id=named,
        id_source=source,
        parent=parent,
        end_user=end_user,
        idempotency_key=key,
        is_retry=is_retry,
        is_repeatable=_is_repeatable(headers),
        is_side=is_side,
        on_disconnect=left,
        busy=busy,
        events=events_mode(headers),
        has_status=_wants_status(headers, settings),
        are_usual=not (parent or key or is_retry or is_side or left or busy),
    )
    if type(headers) is RequestHeaders:
        headers.derived = settings, options
    return options


def _conversation_of(
    headers: dict[str, str], frontend_headers: tuple[str, ...]
) -> tuple[str | None, IdSource]:
    """Return the conversation id in the headers and its source; an empty value counts as absent."""
    own = headers.get("x-conversation-id")
    if own and (own := own.strip()) and not is_placeholder(own):
        return conversation_id(own), "conversation-id"
    for header in frontend_headers:
        if frontend := first_of(headers, [header]):
            return conversation_id(frontend, param=header), "frontend-header"
    return None, "conversation-id"


def idempotency_key(headers: dict[str, str]) -> str | None:
    """Return the value of ``Idempotency-Key``, or None.

    Raises:
        InvalidRequest: It is too long.
    """
    key = headers.get(IDEMPOTENCY_KEY)
    if key is None:
        return None
    key = key.strip()
    if len(key) > 255:
        raise InvalidRequest(
            "Invalid 'Idempotency-Key': expected at most 255 characters.",
            param="Idempotency-Key",
            code="string_above_max_length",
        )
    return key or None


def _is_retry(headers: dict[str, str]) -> bool:
    """Whether an official SDK marks the request as a retry (openai-python, ``x-stainless-retry-count``)."""
    count = headers.get("x-stainless-retry-count")
    return count is not None and count.strip() not in ("", "0")


def _is_repeatable(headers: dict[str, str]) -> bool:
    """Whether the client is an official SDK, which repeats requests that time out or fail."""
    if "x-stainless-retry-count" in headers:
        return True
    agent = headers.get("user-agent")
    return agent is not None and agent.startswith(("OpenAI/", "AsyncOpenAI/"))


def on_disconnect(headers: dict[str, str]) -> DisconnectPolicy | None:
    """Return the disconnect policy that the request sets, or None.

    Raises:
        InvalidRequest: The header has another value.
    """
    value = headers.get("x-on-disconnect")
    if not value:
        return None
    match value.strip().lower():
        case "":
            return None
        case "cancel":
            return "cancel"
        case "detach":
            return "detach"
        case _:
            raise InvalidRequest(
                "Invalid 'X-On-Disconnect': expected 'cancel' or 'detach'.",
                param="X-On-Disconnect",
                code="invalid_value",
            )


def busy_policy(headers: dict[str, str]) -> BusyPolicy | None:
    """Return what the request does while a turn of its conversation is running, or None if it does not say.

    Raises:
        InvalidRequest: The header has another value.
    """
    value = headers.get("x-busy")
    if not value:
        return None
    match value.strip().lower():
        case "":
            return None
        case "reject" | "queue" | "interrupt" as policy:
            return policy
        case _:
            raise InvalidRequest(
                "Invalid 'X-Busy': expected 'reject', 'queue' or 'interrupt'.",
                param="X-Busy",
                code="invalid_value",
            )


def _parent_id(headers: dict[str, str]) -> str | None:
    """Return the parent turn that the request names, ``root``, or None."""
    parent = headers.get("x-parent-id")
    return (parent.strip()[:128] or None) if parent else None


def events_mode(headers: dict[str, str]) -> EventsMode | None:
    """Return the mode of ``X-Handoff-Events``, or None if the request does not set it.

    Raises:
        InvalidRequest: The header has another value.
    """
    value = headers.get("x-handoff-events")
    if not value:
        return None
    match value.strip().lower():
        case "":
            return None
        case "none" | "extension" | "reasoning" | "all" as mode:
            return mode
        case _:
            raise InvalidRequest(
                "Invalid 'X-Handoff-Events': expected 'none', 'extension', 'reasoning' or 'all'.",
                param="X-Handoff-Events",
                code="invalid_value",
            )


def wants_event_ids(headers: dict[str, str], query: bytes) -> bool:
    """Whether the frames of a stream have ids: ``X-Event-Ids: true``, or ``event_ids=true`` in the query.

    Raises:
        InvalidRequest: The header or the parameter has another value.
    """
    if not query and "x-event-ids" not in headers:
        return False
    header = headers.get("x-event-ids", "").strip()
    value = header or (QueryParams(query).get("event_ids", "") if query else "")
    match value.lower():
        case "true" | "1":
            return True
        case "" | "false" | "0":
            return False
        case _:
            name = "X-Event-Ids" if header else "event_ids"
            raise InvalidRequest(
                f"Invalid '{name}': expected 'true' or 'false'.", param=name, code="invalid_value"
            )


def _wants_status(headers: dict[str, str], settings: Settings) -> bool:
    """Whether the response includes status events for Open WebUI."""
    if settings.status_lines != "auto":
        return settings.status_lines == "always"
    # Most requests have no such header, which one search finds out.
    if "x-openwebui-" not in " ".join(headers):
        return False
    return any(name.startswith("x-openwebui-") and value.strip() for name, value in headers.items())


def with_pseudonyms(
    parameters: Parameters, caller: str, *, safety_identifier: str | None, prompt_cache_key: str | None
) -> Parameters:
    """Return the parameters with pseudonyms of the end user and the cache key, which providers receive."""
    if not safety_identifier and not prompt_cache_key:
        return parameters
    return msgspec.structs.replace(
        parameters,
        safety_identifier=pseudonym(caller, safety_identifier) if safety_identifier else None,
        prompt_cache_key=pseudonym(caller, prompt_cache_key) if prompt_cache_key else None,
    )


async def comparable_body(body: bytes, headers: dict[str, str]) -> bytes:
    """Return the bytes of the body that are the same for each attempt of a request.

    With an idempotency key, equal JSON in other bytes is the same request: clients may encode the body again for
    each attempt (IETF draft-ietf-httpapi-idempotency-key-header, 2.4, "Idempotency Fingerprint"). Without one, only the
    SDKs' own retries are recognised, which send the same bytes.
    """
    if not headers.get(IDEMPOTENCY_KEY, "").strip():
        return body
    is_short = len(body) <= _MAX_BYTES_IN_LOOP
    return canonical_json(body) if is_short else await asyncio.to_thread(canonical_json, body)


def body_digest(body: bytes, *places: str) -> bytes:
    """Return a digest of a comparable body and of the ``places`` (endpoint, conversation, end user) it applies to."""
    digest = blake2b(body, digest_size=16)
    digest.update(f"|{'|'.join(places)}".encode("utf-8", "surrogateescape"))
    return digest.digest()


def canonical_json(body: bytes) -> bytes:
    """Return JSON with sorted members and without white space; the body as it is if that is not possible."""
    try:
        return _encode_sorted(msgspec.json.decode(body))
    except (msgspec.MsgspecError, UnicodeError, OverflowError, RecursionError):
        return body
