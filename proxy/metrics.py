"""Prometheus metrics. Label values come from closed sets: other names count as ``other``, and callers, keys and
conversations are not labels, so that the number of time series is limited.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from proxy.events import (
    Cancelled,
    Completed,
    ContextCompacted,
    Entry,
    Failed,
    MemberTeamEvent,
    ModelCalled,
    ToolCompleted,
    ToolFailed,
    innermost,
)
from proxy.loop_ticks import next_tick
from proxy.messages import Usage

LAG_TICKS = 4
"""Ticks (``loop_ticks``) between two measurements of the event loop's lag and updates of the other gauges."""
OTHER = "other"
_FIRST_SEGMENTS = frozenset(
    (
        "agents", "approvals", "ask-stream", "chat", "client", "conversations", "health", "metrics", "models",
        "openapi.json", "page", "responses", "teams", "test-stream", "turns", "ws",
    )
)  # fmt: skip
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """All metrics of this process, or the sums of all workers if PROMETHEUS_MULTIPROC_DIR is set.

    The variable belongs to prometheus_client ("Multiprocess Mode (E.g. Gunicorn)" in its documentation).
    """

    def __init__(self, *, teams: Collection[str], models: Collection[str], tools: Collection[str]) -> None:
        """The arguments are the names with separate label values."""
        self._teams, self._models, self._tools = set(teams), set(models), set(tools)
        self._registry = registry = CollectorRegistry()
        self._sources: list[tuple[Gauge, Callable[[], int]]] = []
        self._requests = Counter(
            "requests_total", "HTTP requests.", ["route", "status", "outcome"], registry=registry
        )
        self._turns = Counter("turns_total", "Turns that ended.", ["team", "outcome"], registry=registry)
        self._seconds = Histogram(
            "turn_seconds", "How long turns took.", ["team"], registry=registry, buckets=_SECONDS
        )
        self._calls = Counter("model_calls_total", "Calls of models.", ["model"], registry=registry)
        self._attempts = Counter(
            "model_attempts_total", "Attempts of model calls.", ["model", "outcome"], registry=registry
        )
        self._retries = Counter(
            "model_retries_total",
            "Attempts after the first one of the same model.",
            ["model"],
            registry=registry,
        )
        self._tokens = Counter("tokens_total", "Tokens of models.", ["model", "kind"], registry=registry)
        self._tool_calls = Counter(
            "tool_calls_total", "Calls of tools of the server.", ["tool", "outcome"], registry=registry
        )
        self._compactions = Counter(
            "context_compactions_total",
            "Contexts that were shortened.",
            ["team", "method"],
            registry=registry,
        )
        # Of workers that live: the supervisor removes the files of those that ended.
        self._running = Gauge(
            "turns_running", "Running turns.", registry=registry, multiprocess_mode="livesum"
        )
        self._log_bytes = Gauge(
            "turn_log_bytes", "Estimated memory of turn logs.", registry=registry, multiprocess_mode="livesum"
        )
        self._lag = Gauge(
            "loop_lag_seconds", "How late the event loop is.", registry=registry, multiprocess_mode="livemax"
        )
        self._tasks = Gauge(
            "loop_tasks", "Tasks of the event loop.", registry=registry, multiprocess_mode="livesum"
        )
        self._blocked = Counter(
            "loop_blocked_total", "Times the event loop was blocked for more than 250 ms.", registry=registry
        )

    def exposition(self) -> bytes:
        """Return everything in the text format of Prometheus."""
        self._update_gauges()
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    def watch_running(self, count: Callable[[], int]) -> None:
        """Read the number of running turns from ``count``."""
        self._sources.append((self._running, count))

    def watch_log_bytes(self, count: Callable[[], int]) -> None:
        """Read the memory of turn logs from ``count``."""
        self._sources.append((self._log_bytes, count))

    def _update_gauges(self) -> None:
        for gauge, count in self._sources:
            gauge.set(count())

    async def watch_loop(self) -> None:
        """Measure the lag of the event loop until cancelled, and update the gauges that other workers show."""
        loop = asyncio.get_running_loop()
        while True:
            now = loop.time()
            due = next_tick(now, LAG_TICKS)
            await asyncio.sleep(due - now)
            self._lag.set(max(loop.time() - due, 0.0))
            self._tasks.set(len(asyncio.all_tasks(loop)))
            self._update_gauges()

    def loop_blocked(self) -> None:
        """Count a block of the event loop; called from the thread of the watchdog."""
        self._blocked.inc()

    def request_ended(self, path: str, status: int, outcome: str) -> None:
        """Count a request."""
        self._requests.labels(route_of(path), str(status), outcome).inc()

    def turn_ended(self, team: str, entries: Sequence[Entry]) -> None:
        """Count a turn by its log."""
        team = team if team in self._teams else OTHER
        for entry in entries:
            event = innermost(entry.event)
            if isinstance(event, ContextCompacted) and isinstance(entry.event, MemberTeamEvent):
                # The context of another team.
                continue
            match event:
                case ModelCalled(model=model, usage=usage):
                    self.model_called(model, usage)
                case ContextCompacted(method=method, calls=calls):
                    self._compactions.labels(team, method).inc()
                    for call in calls:
                        self.model_called(call.model, call.usage)
                case ToolCompleted(name=name):
                    self._tool_calls.labels(self._tool(name), "ok").inc()
                case ToolFailed(name=name):
                    self._tool_calls.labels(self._tool(name), "error").inc()
                case _:
                    pass
        if entries:
            self._turns.labels(team, _outcome(entries[-1])).inc()
            self._seconds.labels(team).observe(max(entries[-1].time - entries[0].time, 0.0))

    def model_attempted(self, model: str, outcome: str, attempt: int) -> None:
        """Count an attempt of a model call; ``outcome`` is ``ok`` or the label of a failure."""
        model = model if model in self._models else OTHER
        self._attempts.labels(model, outcome).inc()
        if attempt > 1:
            self._retries.labels(model).inc()

    def model_called(self, model: str, usage: Usage | None) -> None:
        """Count a call of a model."""
        model = model if model in self._models else OTHER
        self._calls.labels(model).inc()
        if usage is not None:
            self._tokens.labels(model, "prompt").inc(max(usage.prompt, 0))
            self._tokens.labels(model, "completion").inc(max(usage.completion, 0))

    def _tool(self, name: str) -> str:
        return name if name in self._tools else OTHER


def route_of(path: str) -> str:
    """Return which of the known routes a path belongs to."""
    segments = path.strip("/").split("/")
    if segments and segments[0] == "v1":
        segments = segments[1:]
    first = segments[0] if segments else ""
    if first == "":
        return "page"
    if segments[:2] == ["chat", "completions"]:
        return "chat.completions"
    return first if first in _FIRST_SEGMENTS else OTHER


def _outcome(entry: Entry) -> str:
    match entry.event:
        case Completed():
            return "completed"
        case Cancelled(reason=reason):
            return reason
        case Failed(code=code):
            return code
        case _:
            return OTHER
