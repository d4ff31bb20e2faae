"""Answer all errors in OpenAI's error envelope: those of the proxy, of the framework, and unexpected ones."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from inspect import isroutine
from typing import TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.auth import Access
from proxy.errors import InternalTurnError, InvalidRequest, ModelNotFound, ProxyError
from proxy.events import Failed
from proxy.routes.dependencies import services_of
from proxy.routes.error_response import answer_of
from proxy.routes.middleware.path_normalization import allowed_methods
from proxy.routes.model_suggestions import with_suggestions
from proxy.routes.request_body import ClientDisconnected
from proxy.wire.errors import ErrorResponse, error_response, invalid_url, method_not_allowed

T = TypeVar("T", bound=Callable[..., object])

logger = logging.getLogger(__name__)


def install(app: FastAPI) -> None:
    """Register the exception handlers."""
    app.add_exception_handler(ProxyError, _proxy_error)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unexpected)


Endpoint = Callable[[Scope, Receive, Send], Awaitable[Awaitable[None] | None]]
"""A plain ASGI endpoint, which can return what writes its response. Its own variables, such as the body of the request,
are freed before that is awaited, because writing may take minutes."""


class PlainEndpoint:
    """A plain ASGI endpoint whose errors are answered as they are inside the framework.

    An instance and not a function, because Starlette calls functions with a ``Request``. ``to_problem`` words errors.
    A client that disconnects gets no response.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        to_problem: Callable[[BaseException | Failed], ErrorResponse] = error_response,
    ) -> None:
        self._endpoint = method_of(endpoint)
        self._to_problem = to_problem
        # The summary of the operation in /openapi.json.
        self.__doc__ = endpoint.__doc__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        try:
            writing = await self._endpoint(scope, receive, send)
            if writing is not None:
                await writing
        except ClientDisconnected:
            scope["state"]["facts"]["outcome"] = "client_disconnect"
        except ProxyError as error:
            if "status" in scope["state"]["facts"]:
                raise
            explained = await _explained(error, scope)
            await _error_response(explained, self._to_problem(explained))(scope, receive, send)
        except Exception:
            if "status" not in scope["state"]["facts"]:
                await answer_of(InternalTurnError())(scope, receive, send)
            # The server logs the traceback.
            raise


def method_of(app: T) -> T:
    """Return the method that a call of an ASGI application calls; the application itself if it is a function.

    The interpreter calls a method or function directly, and an instance through C, which takes longer.
    """
    method: T = app if isroutine(app) else app.__call__  # type: ignore[operator]
    return method


async def _proxy_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProxyError)
    explained = await _explained(error, request.scope)
    return _error_response(explained, error_response(explained))


async def _explained(error: ProxyError, scope: Scope) -> ProxyError:
    if not isinstance(error, ModelNotFound):
        return error
    access: Access | None = scope["state"].get("access")
    caller = access.caller if access is not None else None
    return await with_suggestions(error, services_of(scope), caller)


def _error_response(error: Exception, problem: ErrorResponse) -> Response:
    if problem.status >= 500:
        logger.warning("request failed", extra={"code": problem.code, "error": type(error).__name__})
    return answer_of(problem)


async def _framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path
    match error.status_code:
        case 404:
            return answer_of(invalid_url(request.method, path))
        case 405:
            # The framework lists the methods of the first matching route only; a path can have several routes.
            allow = allowed_methods(request.app.routes, request.scope)
            if request.method == "OPTIONS":
                return Response(status_code=204, headers={"Allow": allow})
            return answer_of(method_not_allowed(request.method, path, allow=allow))
        case status:
            return answer_of(ErrorResponse(status, "invalid_request_error", str(error.detail)))


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][1:]) or None
    return answer_of(InvalidRequest(f"Invalid '{name}': {first['msg']}.", param=name, code="invalid_value"))


async def _unexpected(request: Request, error: Exception) -> Response:
    # The server logs the traceback: Starlette raises the error again after this response (ServerErrorMiddleware).
    return answer_of(InternalTurnError())
