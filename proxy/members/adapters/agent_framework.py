"""Agents of the Microsoft Agent Framework (https://learn.microsoft.com/agent-framework).

The session of an agent is stored with its answer, and the agent receives the messages since then. Handoffs and tools of
the client are declared without a function, so that a call of one ends a run of the framework.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, ClassVar

from agent_framework import (
    AgentSession,
    BaseAgent,
    Content,
    FunctionInvocationContext,
    FunctionMiddleware,
    FunctionTool,
)
from agent_framework import Message as TheirMessage

from proxy.members.adapters.agent_framework_run import AgentFrameworkRun
from proxy.members.adapters.answer_events import incomplete
from proxy.members.adapters.common import (
    NOT_EXECUTED,
    SAMPLING,
    TRANSFERRED,
    Attachment,
    FrameworkCall,
    FrameworkMember,
    answered_outside,
    arguments_of,
    attachments_of,
    hand_over_to,
    handoff_targets,
    items_since,
    json_text,
    outside_tools,
    schema_of,
    spoken,
    system_text,
)
from proxy.members.adapters.external_calls import ExternalCalls
from proxy.members.port import (
    Member,
    MemberContext,
    MemberEvent,
    Sees,
)
from proxy.messages import Item, UserMessage, text_of


def adapted(found: Any, make: Callable[[], Any] | None) -> Member | None:
    """Return the member of an agent."""
    return AgentFrameworkMember(found) if isinstance(found, BaseAgent) else None


class AgentFrameworkMember(FrameworkMember):
    """An agent, whose state is in sessions, so that one object serves all turns."""

    sees: Sees = "own"
    parameters: ClassVar[Mapping[str, str]] = {**SAMPLING, "seed": "seed"}

    async def _events(self, context: MemberContext) -> AsyncGenerator[str | MemberEvent]:
        """Run the agent with its session and the messages since its last answer, or the results of its calls."""
        state = context.state if isinstance(context.state, dict) else None
        session = self._found.create_session() if state is None else AgentSession.from_dict(state["session"])
        if not context.later_items:
            # The conversation has continued without answers to the calls of the last run, which get a result instead.
            # The framework places its own result of a refusal behind the next message, where models reject it.
            session.state.pop(_PENDING, None)
        async with ExternalCalls(context) as outside:
            answers, results = await _answers(state, context, outside)
            calls = AgentFrameworkRun(context, self._asks, dict((state or {}).get("deferred") or {}))
            stream = self._found.run(
                [*answers, *_new_messages(context)],
                stream=True,
                session=session,
                tools=list(map(_tool, outside_tools(context))),
                options=self._settings(context) or None,
                **({"middleware": [_Results(results)]} if results else {}),
            )
            async with stream:
                async for update in stream:
                    for found in calls.read(update):
                        if not await outside.take(found):
                            yield found
                response = await stream.get_final_response()
        if (used := calls.used(response.usage_details)) is not None:
            yield used
        requests = [one for one in response.user_input_requests if one.type == _REQUEST]
        context.state = {
            "session": session.to_dict(),
            "open": calls.open,
            "requests": [request.to_dict() for request in requests],
            "deferred": calls.deferred,
        }
        targets = handoff_targets(context)
        of_client = [
            FrameworkCall(i, name, arguments_of(text)) for i, name, text in calls.open if name not in targets
        ]
        if requests or of_client:
            async with ExternalCalls(context) as outside:
                await outside.answers(list(map(_requested, requests)), of_client)
        elif calls.open:
            _, name, text = calls.open[0]
            yield hand_over_to(targets[name], text)
        elif calls.ends_with_text:
            for event in incomplete(calls.finish_reason, is_reported=self._reports_reasons):
                yield event

    @property
    def _reports_reasons(self) -> bool:
        """Whether replies of the agent's model always have a finish reason; those of other clients can have none."""
        client = getattr(self._found, "client", None)
        return type(client).__module__.partition(".")[0] == "agent_framework_openai"

    def _asks(self, name: str) -> bool:
        """Whether a person has to approve the calls of this tool."""
        tools = (getattr(self._found, "default_options", None) or {}).get("tools") or ()
        return any(
            getattr(tool, "name", "") == name and getattr(tool, "approval_mode", "") == "always_require"
            for tool in tools
        )


# --- the results of the calls with which a run ended -----------------------------------------------------------

_REQUEST = "function_approval_request"
_PENDING = "tool_approval"
"""Where the framework keeps the calls of a session that wait for answers."""


async def _answers(
    state: Any, context: MemberContext, outside: ExternalCalls
) -> tuple[list[Any], dict[str, str]]:
    """Return the messages that answer the calls with which the last run ended, and the results of approved calls.

    Approved calls with a result are not executed: they were executed before, or refused.
    """
    if state is None:
        return [], {}
    requests = [Content.from_dict(one) for one in state.get("requests") or ()]
    targets = handoff_targets(context)
    given: dict[str, str | None] = {}
    is_decided = bool(context.later_items)
    if is_decided:
        context.resume()
        of_client = [
            FrameworkCall(i, name, arguments_of(text))
            for i, name, text in state["open"]
            if name not in targets
        ]
        given = await outside.answers(list(map(_requested, requests)), of_client)
    results = {i: NOT_EXECUTED for i, _, _ in state["open"]}
    if not requests and results and all(name in targets for _, name, _ in state["open"]):
        # The run ended with a handoff: the first of the calls.
        results[next(iter(results))] = TRANSFERRED
    results |= {i: result for i, result in given.items() if i in results and result is not None}
    if not is_decided:
        results |= {request.function_call.call_id: NOT_EXECUTED for request in requests}
        results |= dict.fromkeys(state.get("deferred") or (), NOT_EXECUTED)
    contents = [Content.from_function_result(call_id=i, result=result) for i, result in results.items()]
    messages = [TheirMessage("tool", contents)] if contents else []
    if requests and is_decided:
        decisions = [request.to_function_approval_response(approved=True) for request in requests]
        messages.append(TheirMessage("user", decisions))
    own = {request.function_call.call_id for request in requests}
    return messages, {i: result for i, result in given.items() if i in own and result is not None}


class _Results(FunctionMiddleware):  # type: ignore[misc]
    """Answers calls, by their id, instead of the functions."""

    def __init__(self, results: Mapping[str, str]) -> None:
        self._results = results

    async def process(
        self, context: FunctionInvocationContext, call_next: Callable[[], Awaitable[None]]
    ) -> None:
        """Set the result of a call that has one."""
        result = self._results.get(context.metadata["call_id"])
        if result is None:
            await call_next()
        else:
            context.result = result


def _requested(request: Any) -> FrameworkCall:
    call = request.function_call
    return FrameworkCall(call.call_id, call.name or "tool", call.parse_arguments() or {})


def _tool(spec: Any) -> Any:
    return FunctionTool(name=spec.name, description=spec.description or "", input_model=schema_of(spec))


# --- messages --------------------------------------------------------------------------------------------------


def _new_messages(context: MemberContext) -> list[Any]:
    if context.later_items and context.state is not None:
        # The run continues behind the results of its calls.
        return []
    system = system_text(context)
    messages = [TheirMessage("system", [system])] if system else []
    messages += spoken(items_since(context), _of_user, _of_agent)
    for call, result in answered_outside(context):
        content = Content.from_function_call(call.call_id, call.name, arguments=json_text(call.arguments))
        messages += [
            TheirMessage("assistant", [content]),
            TheirMessage("tool", [Content.from_function_result(call_id=call.call_id, result=result)]),
        ]
    return messages


def _of_user(message: UserMessage) -> Any:
    return TheirMessage("user", [text_of(message), *map(_attachment, attachments_of(message))])


def _of_agent(item: Item, text: str) -> Any:
    return TheirMessage("assistant", [text])


def _attachment(one: Attachment) -> Any:
    if not one.url:
        return Content.from_hosted_file(one.file_id)
    properties = {"filename": one.name} if one.name else None
    return Content.from_uri(
        one.url, media_type=one.media_type, name=one.name or None, additional_properties=properties
    )
