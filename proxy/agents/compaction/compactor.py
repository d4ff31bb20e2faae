"""Keep the context of model calls within the context window: before a call, and after a provider rejected one.

A compaction is stored as a hidden item of the turn, so that later turns, on any worker, continue with it. Messages that
are only left out for one turn, because no summary could be written, are not stored.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec

from proxy.agents.agent import Agent
from proxy.agents.compaction.context_view import ContextView, Cut, cut_of, pinned_before, view_of
from proxy.agents.compaction.cut_cache import CutCache, Scope
from proxy.agents.compaction.history import History, has_marks, history_of, member_history
from proxy.agents.compaction.plan import (
    Plan,
    compaction_of,
    plan_compaction,
    summary_tokens,
)
from proxy.agents.compaction.size import items_tokens, text_tokens
from proxy.agents.compaction.summary import (
    ContextSummary,
    SummaryWriter,
    standalone_text,
)
from proxy.agents.turn_state import TurnState
from proxy.errors import ContextLengthExceeded, StoreUnavailable
from proxy.events import CompactionMethod, ContextCompacted
from proxy.members.port import sees_of
from proxy.messages import Item, Usage, UserMessage
from proxy.providers.context_windows import ContextWindow
from proxy.providers.model import Model
from proxy.turns.plain_items import PlainItems

logger = logging.getLogger(__name__)

_DROPPED = "Earlier messages of this conversation are not available."
_OVERFLOW_SHARE = 0.8
"""Part of the window that a call may fill after the provider rejected it."""
_REPORTED_FROM = 0.25
"""Part of the window from which on the reported size of a context is stored with its last message."""
_MAX_RESERVE = 0.5
_DEFAULT_WINDOW = 40_000
_NOT_ENOUGH = (
    "The conversation exceeds the context window of the model, also after older messages were summarised and tool "
    "results shortened. Shorten the newest message or its attachments, or start a new conversation."
)
_DISABLED = (
    "The conversation exceeds the context window of the model. Start a new conversation, remove earlier messages, or "
    "enable the compaction of long conversations."
)


class CompactionPolicy(msgspec.Struct, frozen=True):
    """The settings of a team. ``threshold`` is the part of the window from which on contexts are shortened."""

    is_enabled: bool = True
    threshold: float = 0.8


class CallSize(msgspec.Struct, frozen=True):
    """The size of a model call apart from the items: instructions and tools, and what is reserved for the answer."""

    fixed: int
    reserve: int = 0


class Compactor:
    """Shortens the contexts of one team."""

    def __init__(self, policy: CompactionPolicy, writer: SummaryWriter, cache: CutCache) -> None:
        self._policy = policy
        self._writer = writer
        self._cache = cache

    @classmethod
    def disabled(cls, model: Model, team: str) -> Compactor:
        """Return a compactor for a team that does not shorten contexts by itself."""
        writer = SummaryWriter(model, ContextWindow(), team=team)
        return cls(CompactionPolicy(is_enabled=False), writer, CutCache())

    def has_limit(self, agent: Agent, state: TurnState) -> bool:
        """Whether the next call of the agent's model has a limit: otherwise ``view`` is what it sees."""
        is_limited = agent.window.tokens is not None or state.turn.compact_threshold is not None
        return is_limited and self._is_enabled(state)

    async def fit(self, agent: Agent, state: TurnState, size: CallSize) -> ContextView:
        """Return what the agent's model sees in its next call, after a compaction if the context exceeds the limit."""
        history = _history(agent, state)
        view = _view_of(history, state)
        limit = self._limit(agent, state, size)
        before = self.estimate(agent, history, state.context_memory.cut, view, size)
        if before <= limit:
            return view
        await self._compact(agent, state, size, before=before, limit=limit)
        return self.view(agent, state)

    async def after_overflow(
        self, agent: Agent, state: TurnState, size: CallSize, failure: ContextLengthExceeded
    ) -> ContextView:
        """Return a shorter context after the provider rejected the present one.

        Raises:
            ContextLengthExceeded: The context cannot be shortened, or the team or the request disables it.
        """
        memory = state.context_memory
        history = _history(agent, state)
        view = _view_of(history, state)
        before = self.estimate(agent, history, memory.cut, view, size)
        if not failure.is_fallback:
            agent.window.learn(failure, estimate=before)
        if not self._is_enabled(state):
            raise exceeded(failure, is_enabled=False)
        before = max(before, failure.tokens or 0)
        window = failure.window or agent.window.tokens or before
        if failure.tokens is None:
            # The estimate was too low, if it was within the window.
            before = max(before, int(window * 1.05))
        limit = int(window * _OVERFLOW_SHARE) - min(size.reserve, int(window * _MAX_RESERVE))
        if not await self._compact(agent, state, size, before=before, limit=limit, may_drop=True):
            raise exceeded(failure)
        return self.view(agent, state)

    def estimate(
        self, agent: Agent, history: History, cut: Cut | None, view: ContextView, size: CallSize
    ) -> int:
        """Return the tokens of a call: those reported for the last answer and the text since then, or all estimated."""
        if type(history.context) is PlainItems and all(item.tokens is None for item in history.own):
            # No size was reported.
            return size.fixed + items_tokens(view.earlier) + items_tokens(view.own)
        items = history.items
        behind = cut.behind if cut is not None else 0
        for at in range(len(items) - 1, behind - 1, -1):
            item = items[at]
            if item.tokens is not None and (item.agent == agent.name or not history.is_mixed):
                # The instructions and tools of another agent are not known here.
                fixed = size.fixed if item.agent != agent.name else 0
                return item.tokens + items_tokens(items[at + 1 :]) + fixed
        return size.fixed + items_tokens(view.items)

    def view(self, agent: Agent, state: TurnState) -> ContextView:
        """Return what the agent sees after the compactions so far, without another one."""
        turn = state.turn
        context, own = turn.context, turn.items
        if (
            agent.member is None
            and state.context_memory.cut is None
            and not has_marks(context)
            and not (own and has_marks(own))
        ):
            # Nearly every context: no handoff limits it, and nothing was compacted.
            return ContextView(context, own)
        return _view_of(_history(agent, state), state)

    def size_now(self, agent: Agent, state: TurnState, size: CallSize) -> int:
        """Return the estimated size of the next call."""
        history = _history(agent, state)
        view = _view_of(history, state)
        return self.estimate(agent, history, state.context_memory.cut, view, size)

    @staticmethod
    def size_of(view: ContextView, size: CallSize) -> int:
        """Return the estimate for a call without reported sizes."""
        return size.fixed + items_tokens(view.items)

    async def summarise(self, items: Sequence[Item], *, agent: Agent) -> ContextSummary:
        """Return a summary of all items for a context of the agent."""
        history = history_of(agent.name, items, ())
        view = view_of(history.context, (), cut_of(history.items))
        maximum = summary_tokens(agent.window.tokens or _DEFAULT_WINDOW)
        return await self._writer.write(list(view.items), "", max_tokens=maximum, agent=agent.name)

    async def handoff_summary(self, agent: Agent, state: TurnState) -> str:
        """Return a summary of what the agent sees, for the agent that it hands over to; "" if it cannot be written."""
        items = self.view(agent, state).items
        users = [at for at, item in enumerate(items) if isinstance(item.message, UserMessage)]
        before = items[: users[-1]] if users else []
        if not before:
            return ""
        began = time.monotonic()
        limit = agent.window.tokens or _DEFAULT_WINDOW
        summary = await self._write_summary(agent, state, before, "", limit=limit)
        if summary.text:
            tokens = items_tokens(before)
            after = text_tokens(summary.text)
            seconds = time.monotonic() - began
            state.sink.emit(ContextCompacted(agent.name, "summarised", tokens, after, seconds, summary.calls))
        return summary.text

    # --- compaction ---

    def _is_enabled(self, state: TurnState) -> bool:
        mode = state.turn.context_mode
        return mode == "auto" or (mode is None and self._policy.is_enabled)

    def _limit(self, agent: Agent, state: TurnState, size: CallSize) -> int:
        """Return the tokens from which on the context is shortened; ``has_limit`` is true."""
        limits = [] if state.turn.compact_threshold is None else [state.turn.compact_threshold]
        if (window := agent.window.tokens) is not None:
            reserve = min(size.reserve, int(window * _MAX_RESERVE))
            limits.append(min(int(window * self._policy.threshold), window - reserve))
        return min(limits)

    async def _compact(
        self,
        agent: Agent,
        state: TurnState,
        size: CallSize,
        *,
        before: int,
        limit: int,
        may_drop: bool = False,
    ) -> bool:
        """Carry out a plan; False if there is none, or its summary could not be written and is not optional."""
        memory, turn = state.context_memory, state.turn
        history = _history(agent, state)
        items = history.items

        def make_plan() -> Plan | None:
            known = self._cache.known(items, self._scope(state))
            return plan_compaction(items, memory.cut, known, fixed=size.fixed, before=before, limit=limit)

        plan = make_plan()
        if plan is not None and plan.covered and await self._read_stored(state, items):
            plan = make_plan()
        if plan is None:
            return False
        began = time.monotonic()
        old = memory.cut.summary if memory.cut is not None else ""
        summary = ContextSummary(plan.summary or old)
        method: CompactionMethod = "summarised" if plan.covered or plan.summary else "shortened"
        if plan.covered:
            summary = await self._write_summary(agent, state, plan.covered, old, limit=limit)
            if not summary.text:
                if not may_drop:
                    return False
                method, summary = "dropped", ContextSummary(old or _DROPPED, summary.calls)
        if method == "dropped":
            memory.cut = Cut(summary.text, plan.retained_from, plan.whole, plan.shortened_to, len(items))
        else:
            self._store(agent, state, history, plan, summary.text)
        state.sink.emit(
            ContextCompacted(
                agent.name,
                method,
                before,
                plan.tokens_after,
                time.monotonic() - began,
                summary.calls,
                # For the compaction item of a response; it is not stored twice for all others.
                _standalone(agent, state) if method == "summarised" and turn.context_mode == "auto" else "",
            )
        )
        return True

    async def _write_summary(
        self, agent: Agent, state: TurnState, items: Sequence[Item], existing: str, *, limit: int
    ) -> ContextSummary:
        """Write a summary for a context of ``limit`` tokens, and count its tokens in the turn."""
        summary = await self._writer.write(
            items,
            existing,
            max_tokens=summary_tokens(limit),
            agent=agent.name,
            turn_seconds=state.limits.turn_seconds,
        )
        state.add_tokens(sum(call.usage.completion for call in summary.calls if call.usage))
        return summary

    def _store(self, agent: Agent, state: TurnState, history: History, plan: Plan, summary: str) -> None:
        """Append the compaction to the items of the turn, and remember it for turns with the same beginning."""
        items = history.items
        replaced, shortened = self._cache.add(items, plan, summary, self._scope(state))
        compaction = msgspec.structs.replace(
            compaction_of(items, plan, has_summary=bool(summary)),
            scope=history.scope,
            summary_digest=replaced.hex() if summary else "",
            shortened_digest=shortened.hex(),
        )
        item = Item(UserMessage(content=summary), agent=agent.name, visible=False, compaction=compaction)
        state.turn.items.append(item)
        state.context_memory.cut = cut_of([*items, item])

    async def _read_stored(self, state: TurnState, items: Sequence[Item]) -> bool:
        """Add the compactions that other branches of the conversation have stored, possibly on another worker.

        Returns whether there are any for a beginning of these items.
        """
        memory = state.context_memory
        if memory.has_read_stored:
            return False
        memory.has_read_stored = True
        # The conversation of a new turn is known then.
        await state.turn.wait_for_begin()
        if (stored := state.turn.compactions) is None:
            return False
        try:
            found = await stored.read()
        except StoreUnavailable:
            # A new summary is as good, and the end of the turn reports the failure.
            logger.warning("failed to read stored compactions", extra={"turn_id": state.turn.id})
            return False
        return self._cache.add_stored(items, found, self._scope(state))

    def _scope(self, state: TurnState) -> Scope:
        return state.turn.caller, self._writer.model


def _history(agent: Agent, state: TurnState) -> History:
    turn = state.turn
    if agent.member is None:
        return history_of(agent.name, turn.context, turn.items)
    return member_history(agent.name, turn.context, turn.items, has_only_text=sees_of(agent.member) == "text")


def _view_of(history: History, state: TurnState) -> ContextView:
    """Return what a model or member sees after the compactions so far."""
    memory = state.context_memory
    if memory.scope != history.scope:
        memory.cut = cut_of(history.items) if history.has_marks else None
        memory.scope = history.scope
    if memory.cut is None:
        return ContextView(history.context, history.own)
    return view_of(history.context, history.own, memory.cut)


def _standalone(agent: Agent, state: TurnState) -> str:
    """Return the text of a compaction item: the client can leave out everything before it."""
    cut = state.context_memory.cut
    assert cut is not None
    items = _history(agent, state).items
    head = pinned_before(items, cut.retained_from)
    following = [item for item in items[cut.retained_from :] if item.compaction is None]
    return standalone_text(cut.summary, [*head, *following])


def reported_size(usage: Usage, window: int) -> int | None:
    """Return the size of the context after a reply if it is worth storing: it is not small, compared to the window."""
    # Reasoning is not part of the next request.
    tokens = usage.total - usage.reasoning
    return tokens if tokens >= window * _REPORTED_FROM else None


def exceeded(failure: ContextLengthExceeded, *, is_enabled: bool = True) -> ContextLengthExceeded:
    """Return the error for the caller."""
    message = _NOT_ENOUGH if is_enabled else _DISABLED
    error = ContextLengthExceeded(message=message, window=failure.window, tokens=failure.tokens)
    error.facts = failure.facts
    return error
