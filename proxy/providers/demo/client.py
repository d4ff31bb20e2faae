"""The demonstration: a script answers instead of a language model, so that everything works without key or network.

It streams word by word like a model, calls only tools that it is offered, honours ``stop``, the token limits,
``response_format`` and ``parallel_tool_calls``, and counts words as tokens: a rough measure, but never nothing. Of
``tool_choice`` it supports only ``none``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from proxy.events import TextDelta
from proxy.messages import AssistantMessage, FinishReason, Parameters, ToolCall, Usage, text_of
from proxy.providers.capabilities import Abilities
from proxy.providers.demo.context import SIDE, SIDE_AGENTS, Situation, situation_of
from proxy.providers.demo.script import ANY, AgentScript, Reply, Script, bundled_scripts
from proxy.providers.demo.structured_answer import structured_answer
from proxy.providers.model import Finished, ModelDelta, ModelRequest, ToolCallPiece

logger = logging.getLogger(__name__)

NOTICE = (
    "(This is a demonstration without a language model. For a real one, set OPENAI_API_KEY, OPENAI_BASE_URL and "
    "OPENAI_MODEL, and restart.)"
)

_WORD = re.compile(r"\s*\S+|\s+$")


class DemoClient:
    """The model ``demo``. ``word_delay`` is the pause between two words, in seconds."""

    name = "demo"
    abilities = Abilities(
        frozenset(("stop", "max_tokens", "max_completion_tokens", "response_format")), frozenset()
    )

    def __init__(self, *, word_delay: float = 0.015, scripts: Mapping[str, Script] | None = None) -> None:
        self._word_delay = word_delay
        self._own_scripts = scripts or {}
        logger.warning(
            "a scripted demonstration answers in place of a language model; "
            "set OPENAI_API_KEY, OPENAI_BASE_URL and OPENAI_MODEL for a real one"
        )

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncIterator[AsyncIterator[Sequence[ModelDelta]]]:
        """Answer by the script of the request's team and agent."""
        answer = self._answer(request)
        try:
            yield answer
        finally:
            await answer.aclose()

    async def close(self) -> None:
        """Do nothing: nothing is held."""

    async def _answer(self, request: ModelRequest) -> AsyncGenerator[Sequence[ModelDelta], None]:
        reply = self._reply(request)
        written = reply.text
        if (form := _form_of(request)) is not None:
            written = "" if reply.calls else structured_answer(reply.text, form)
        text, reason = _limited(written, request.parameters)
        calls = reply.calls if reason is None else ()
        if request.parallel_tool_calls is False:
            calls = calls[:1]
        completion = _words(text)
        for word in _WORD.findall(text):
            await asyncio.sleep(self._word_delay)
            yield (TextDelta(word),)
        for index, (name, arguments) in enumerate(calls):
            await asyncio.sleep(self._word_delay)
            yield (ToolCallPiece(index, name=name, call_id=f"call_{secrets.token_hex(12)}"),)
            encoded = json.dumps(arguments, ensure_ascii=False)
            completion += 1 + _words(encoded)
            for piece in _WORD.findall(encoded):
                await asyncio.sleep(self._word_delay)
                yield (ToolCallPiece(index, piece),)
        usage = Usage(prompt=_prompt_words(request), completion=completion)
        yield (Finished(reason or ("tool_calls" if calls else "stop"), usage),)

    def _reply(self, request: ModelRequest) -> Reply:
        situation = situation_of(request)
        is_side = request.agent in SIDE_AGENTS
        # Read on first use: the model is also there for custom agents, of which there may be none.
        scripts = {**bundled_scripts(), **self._own_scripts}
        script = scripts.get(request.team)
        agent = script.agents.get(request.agent) if script and not is_side else None
        player = agent or scripts[ANY].agents[SIDE if is_side else ANY]
        reply = (
            _in_turn(player, situation) if request.parallel_tool_calls is False else player.reply(situation)
        )
        if reply.text and not (situation.agent_texts or is_side or _form_of(request)):
            return Reply(f"{NOTICE}\n\n{reply.text}", reply.calls)
        return reply


def _in_turn(player: AgentScript, situation: Situation) -> Reply:
    """Return what is next where only one call at a time is allowed: of several, those that were not made yet."""
    wanted = player.reply(situation.before_calls()).calls
    if len(wanted) < 2:
        return player.reply(situation)
    missing = [call for call in wanted if call not in situation.made]
    if missing and situation.made:
        return Reply("", tuple(missing))
    return player.reply(situation.behind_all())


def _form_of(request: ModelRequest) -> Mapping[str, Any] | None:
    """Return ``response_format`` if it asks for JSON."""
    form = request.parameters.response_format
    return None if form is None or form.get("type") == "text" else form


def _limited(text: str, parameters: Parameters) -> tuple[str, FinishReason | None]:
    """Return the text up to a stop sequence or the token limit, and which of them ended it."""
    stops = [parameters.stop] if isinstance(parameters.stop, str) else parameters.stop or []
    places = [place for stop in stops if stop and (place := text.find(stop)) >= 0]
    if places:
        text = text[: min(places)]
    limits = [n for n in (parameters.max_completion_tokens, parameters.max_tokens) if n is not None]
    words = _WORD.findall(text)
    if limits and len(words) > min(limits):
        return "".join(words[: max(min(limits), 0)]), "length"
    return text, "stop" if places else None


def _prompt_words(request: ModelRequest) -> int:
    count = 0
    for message in request.messages:
        count += _words(text_of(message))
        if isinstance(message, AssistantMessage):
            count += sum(
                _words(c.function.arguments) for c in message.tool_calls or () if isinstance(c, ToolCall)
            )
    return count


def _words(text: str) -> int:
    return len(text.split())
