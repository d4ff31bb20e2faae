"""A server of the A2A protocol with the official SDK, whose agent does what the message says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    Part,
    Task,
    TaskState,
    TaskStatus,
)
from starlette.applications import Starlette


class ScriptedAgent(AgentExecutor):  # type: ignore[misc]
    """``received`` are the messages, ``headers`` those of their requests.

    ``cancelled`` is set when a task is cancelled; ``released`` ends the slow task.
    """

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = asyncio.Event()
        self.released = asyncio.Event()

    async def execute(self, context: Any, event_queue: Any) -> None:
        message = context.message
        self.received.append(message)
        self.headers.append(context.call_context.state["headers"])
        text = message.parts[-1].text or message.parts[0].text
        if context.current_task is None:
            status = TaskStatus(state=TaskState.TASK_STATE_SUBMITTED)
            await event_queue.enqueue_event(
                Task(id=context.task_id, context_id=context.context_id, status=status, history=[message])
            )
        task = TaskUpdater(event_queue, context.task_id, context.context_id)
        await task.start_work(task.new_agent_message([Part(text="looking for trains")]))
        match text:
            case "ask":
                await task.requires_input(task.new_agent_message([Part(text="Which day?")]))
            case "draft":
                await task.add_artifact([Part(text="Train on ")], artifact_id="a")
                await task.requires_input(task.new_agent_message([Part(text="which day?")]))
            case "sign in":
                await task.requires_auth(
                    task.new_agent_message([Part(text="Sign in at https://travel.example")])
                )
            case "reject":
                await task.reject(task.new_agent_message([Part(text="secret reason")]))
            case "give up":
                await task.cancel(task.new_agent_message([Part(text="secret reason")]))
            case "file":
                received = [
                    f"{part.filename} {part.media_type} {len(part.raw)}" for part in message.parts[1:]
                ]
                timetable = Part(raw=b"8:00 Bonn", media_type="text/plain", filename="timetable.txt")
                ticket = Part(raw=b"%PDF", media_type="application/pdf", filename="ticket.pdf")
                await task.add_artifact([Part(text=", ".join(received)), timetable, ticket], artifact_id="a")
                await task.complete()
            case "slow":
                await task.add_artifact([Part(text="Train ")], artifact_id="a", append=False)
                await self.released.wait()
                await task.add_artifact([Part(text="to Bonn.")], artifact_id="a", append=True)
                await task.complete()
            case "fail":
                await task.failed(task.new_agent_message([Part(text="secret reason")]))
            case "hang":
                await self.cancelled.wait()
            case "desk":
                await task.update_status(
                    TaskState.TASK_STATE_COMPLETED,
                    metadata={"handoff": {"to": "Desk", "reason": "no travel", "input": {"ticket": 7}}},
                )
            case _:
                await task.add_artifact(
                    [Part(text="Train to ")], artifact_id="a", append=False, last_chunk=False
                )
                await task.add_artifact(
                    [Part(text=f"{text}.")], artifact_id="a", append=True, last_chunk=True
                )
                await task.complete()

    async def cancel(self, context: Any, event_queue: Any) -> None:
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()
        self.cancelled.set()


class _Cut:
    """Ends each stream behind its first artifact, and then releases the agent."""

    def __init__(self, app: Any, agent: ScriptedAgent) -> None:
        self._app = app
        self._agent = agent

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_cut = False

        async def forward(event: Any) -> None:
            nonlocal is_cut
            if is_cut:
                return
            is_cut = b"artifactUpdate" in event.get("body", b"")
            await send(
                {**event, "more_body": event.get("more_body", False) and not is_cut} if is_cut else event
            )
            if is_cut:
                self._agent.released.set()

        await self._app(scope, receive, forward)


@asynccontextmanager
async def a2a_server(
    *, streaming: bool = True, cuts: bool = False
) -> AsyncIterator[tuple[str, ScriptedAgent]]:
    """Serve an agent on a free port; yield its address."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    agent = ScriptedAgent()
    card = AgentCard(
        name="travel",
        description="Finds trains.",
        version="1",
        supported_interfaces=[
            AgentInterface(url=f"{url}/a2a", protocol_binding="JSONRPC", protocol_version="1.0")
        ],
        capabilities=AgentCapabilities(streaming=streaming),
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        skills=[AgentSkill(id="trains", name="trains", description="Finds trains.", tags=["travel"])],
    )
    handler = DefaultRequestHandler(agent, InMemoryTaskStore(), card)
    app: Any = Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/a2a")])
    app = _Cut(app, agent) if cuts else app
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield url, agent
    finally:
        agent.cancelled.set()
        server.should_exit = server.force_exit = True
        await running
        # Tasks that wait for input wait in the memory of the SDK.
        await handler.aclose()
