"""Rules for the fake provider as a process: a list, the first that fits the request answers it.

A rule is an object ``{"when": {...}, "reply": {...}}``; without ``when`` it always fits. Conditions (all have
to hold): ``last`` (regular expression, found in the last message's text, case ignored), ``role`` (of the last
message), ``system`` (found in the system messages), ``tool`` (a function offered by the request), ``model``.
A reply has one of ``{"text": "…"}``, ``{"calls": [["name", {…}], …], "text": "…"}``, ``{"error": 429, "code":
"…", "headers": {…}}``, ``{"hang": true}``, ``{"cut": true}``; with text and calls also ``chunks`` (pieces),
``usage``, ``finish``, ``interleave``, ``cut_after`` and ``hang_after`` (steps). ``{"replies": […]}`` in place
of ``reply`` gives them in turn and then the last one for ever. ``{last}`` in a text stands for the last
message's text.

Without other rules the provider obeys the last message: ``call NAME {…}`` (several lines: parallel
calls) calls offered tools, ``fail 503`` refuses, ``hang`` hangs; after tool results it says ``The tools said:
…``, to anything else ``You said: …``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fakes.replies import JSON, USAGE, Reply, calls, cut, error, hang, raw, text
from tests.fakes.upstream import FakeUpstream, Received


class Rules:
    """Chooses the reply to a request."""

    def __init__(self, rules: list[dict[str, Any]] | None) -> None:
        self._rules = rules
        self._used: Counter[int] = Counter()

    def answer(self, received: Received) -> Reply:
        if self._rules is None:
            return _obey(received)
        for position, rule in enumerate(self._rules):
            if _fits(rule.get("when", {}), received):
                replies = rule.get("replies") or [rule["reply"]]
                wanted = replies[min(self._used[position], len(replies) - 1)]
                self._used[position] += 1
                return _reply(wanted, received)
        return error(418, message="no rule fits this request")


def _fits(when: dict[str, str], received: Received) -> bool:
    messages = received.body["messages"]
    last = messages[-1]
    found: dict[str, Callable[[str], bool]] = {
        "last": lambda wanted: re.search(wanted, _text(last), re.IGNORECASE) is not None,
        "role": lambda wanted: last["role"] == wanted,
        "system": lambda wanted: any(
            wanted in _text(message) for message in messages if message["role"] in ("system", "developer")
        ),
        "tool": lambda wanted: wanted in _offered(received),
        "model": lambda wanted: received.body.get("model") == wanted,
    }
    return all(found[condition](wanted) for condition, wanted in when.items())


def _reply(wanted: dict[str, Any], received: Received) -> Reply:
    if "error" in wanted:
        return error(wanted["error"], headers=wanted.get("headers"), code=wanted.get("code"))
    if wanted.get("hang"):
        return hang()
    if wanted.get("cut"):
        return cut()
    said = wanted.get("text", "").replace("{last}", _text(received.body["messages"][-1]))
    usage = wanted.get("usage", USAGE)
    if "calls" in wanted:
        reply = calls(
            *((name, arguments) for name, arguments in wanted["calls"]),
            text=said or None,
            pieces=wanted.get("chunks", 2),
            interleave=wanted.get("interleave", False),
            usage=usage,
            finish=wanted.get("finish", "tool_calls"),
        )
    else:
        reply = text(said, chunks=wanted.get("chunks", 2), usage=usage, finish=wanted.get("finish", "stop"))
    if "cut_after" in wanted:
        reply = reply.cut(wanted["cut_after"])
    if "hang_after" in wanted:
        reply = reply.hang(wanted["hang_after"])
    return reply


def _obey(received: Received) -> Reply:
    last = received.body["messages"][-1]
    said = _text(last)
    if last["role"] == "tool":
        return text(f"The tools said: {said}")
    if refusal := re.fullmatch(r"fail (\d{3})", said.strip()):
        return error(int(refusal[1]))
    if said.strip() == "hang":
        return hang()
    wanted = re.findall(r"^call ([\w-]+) *(\{.*\})?$", said, re.MULTILINE)
    if wanted and all(name in _offered(received) for name, _ in wanted):
        return calls(*((name, arguments or "{}") for name, arguments in wanted))
    return text(f"You said: {said}", chunks=3)


def _offered(received: Received) -> set[str]:
    return {tool["function"]["name"] for tool in received.body.get("tools") or ()}


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    options = argparse.ArgumentParser(prog="python -m tests.fakes.upstream")
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--rules", type=Path)
    options.add_argument("--api-key")
    asyncio.run(_serve(options.parse_args()))


async def _serve(options: argparse.Namespace) -> None:
    rules = Rules(json.loads(options.rules.read_text()) if options.rules else None)
    requested: list[Received] = []

    def answer(received: Received) -> Reply:
        nonlocal rules
        if received.path == "/requests":
            reported = [
                {"path": one.path, "headers": one.headers, "body": one.body, "is_open": one.is_open}
                for one in requested
            ]
            return raw(json.dumps(reported).encode(), content_type=JSON)
        if received.path == "/rules":
            rules = Rules(received.body)
            return raw(b"{}", content_type=JSON)
        requested.append(received)
        return rules.answer(received)

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with FakeUpstream(answer=answer, api_key=options.api_key, port=options.port) as upstream:
        print(upstream.base_url, flush=True)
        await stop.wait()
