from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from proxy.providers.http.pool import HttpSession


@pytest.fixture
async def http_session() -> AsyncIterator[HttpSession]:
    """The connections of models with an OpenAI-compatible API."""
    session = HttpSession()
    yield session
    await session.close()
