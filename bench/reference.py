"""Reference: a straightforward proxy with FastAPI and the official SDK. No agents, no history."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from openai import AsyncOpenAI
from pydantic import BaseModel

app = FastAPI()
client = AsyncOpenAI(base_url=f"http://127.0.0.1:{sys.argv[2]}/v1", api_key="bench", max_retries=0)


class ChatRequest(BaseModel):
    """Subset of the request that the reference supports."""

    model: str
    messages: list[dict[str, Any]]
    stream: bool = False


@app.post("/v1/chat/completions", response_model=None)
async def chat(request: ChatRequest) -> StreamingResponse | dict[str, Any]:
    """Forward a request."""
    messages: Any = request.messages
    if not request.stream:
        completion = await client.chat.completions.create(model=request.model, messages=messages)
        return completion.model_dump()

    async def chunks() -> AsyncIterator[str]:
        stream = await client.chat.completions.create(model=request.model, messages=messages, stream=True)
        async for chunk in stream:
            yield f"data: {chunk.model_dump_json()}\n\n"
        yield "data: [DONE]\n\n"

    return StreamingResponse(chunks(), media_type="text/event-stream")


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False, log_level="warning", backlog=2048
    )
