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
    """``received`` are the messages, ``headers`` those of their requests; ``cancelled`` is set when a task is
    cancelled.
    """

    def __init__(self) -> None:
        self.received: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = asyncio.Event()

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
            case "fail":
                await task.failed(task.new_agent_message([Part(text="secret reason")]))
            case "hang":
                await self.cancelled.wait()
            case "desk":
                await task.update_status(
                    TaskState.TASK_STATE_COMPLETED,
                    metadata={"handoff": {"to": "Desk", "reason": "no travel"}},
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


@asynccontextmanager
async def a2a_server(*, streaming: bool = True) -> AsyncIterator[tuple[str, ScriptedAgent]]:
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
    app = Starlette(routes=[*create_agent_card_routes(card), *create_jsonrpc_routes(handler, "/a2a")])
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    running = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield url, agent
    finally:
        agent.cancelled.set()
        server.should_exit = server.force_exit = True
        await running
