"""Error responses in the error object of the OpenAI API."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

from proxy.events import Failed
from proxy.wire.errors import ErrorResponse, envelope, error_response, headers_of


def answer_of(
    error: BaseException | Failed | ErrorResponse, more: Sequence[tuple[bytes, bytes]] = ()
) -> Response:
    """Return the error response; ``more`` are additional headers."""
    problem = error if isinstance(error, ErrorResponse) else error_response(error)
    answer = Response(
        envelope(problem),
        status_code=problem.status,
        headers=headers_of(problem),
        media_type="application/json",
    )
    answer.raw_headers.extend(more)
    return answer
