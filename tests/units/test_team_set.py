"""The end of a set of teams."""

from __future__ import annotations

from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxy.team_set import TeamSet


class ClosingMember:
    """A member that only notes that it was closed."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.is_closed = False
        self._failure = failure

    async def close(self) -> None:
        self.is_closed = True
        if self._failure is not None:
            raise self._failure


def set_of(members: dict[str, ClosingMember], resources: AsyncExitStack) -> TeamSet:
    unused: Any = None
    return TeamSet(
        loaded=cast(Any, SimpleNamespace(members=members)),
        custom_agents=None,
        lookup=unused,
        catalog=unused,
        connection_checks=unused,
        passing=None,
        resources=resources,
    )


async def test_members_are_closed_though_a_connection_does_not_close() -> None:
    async def fail() -> None:
        raise OSError("no such connection")

    member = ClosingMember()
    resources = AsyncExitStack()
    resources.push_async_callback(fail)

    with pytest.raises(OSError, match="no such connection"):
        await set_of({"helper": member}, resources).close()

    assert member.is_closed


async def test_a_member_that_does_not_close_is_logged_and_keeps_no_other_open(
    caplog: pytest.LogCaptureFixture,
) -> None:
    members = {"first": ClosingMember(RuntimeError("stuck")), "second": ClosingMember(RuntimeError("stuck"))}

    await set_of(members, AsyncExitStack()).close()

    assert all(member.is_closed for member in members.values())
    assert sorted(record.__dict__["member"] for record in caplog.records) == ["first", "second"]
