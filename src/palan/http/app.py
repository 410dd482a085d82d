"""One ASGI application: the guard at the door, decisions on the hot path, everything else through Starlette."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from palan.flows.mlflow import Tracking
from palan.flows.receive import Receiver
from palan.flows.serve import Site
from palan.http import api, mlflow, runs
from palan.http.decide import hot
from palan.http.guard import Door, Guard

NotThere = Callable[[Request, int, str, str], Awaitable[Response]]


def build(site: Site, pages: Sequence[BaseRoute] = (), not_there: NotThere | None = None) -> ASGIApp:
    """Return the application of one project, with the routes of pages that stand above this room.

    `not_there` renders (request, status, what, hint) for paths outside the API that no route knows.
    """

    async def missing(request: Request, error: Exception) -> Response:
        code = error.status_code if isinstance(error, HTTPException) else 500
        what = f"no route {request.url.path}" if code == 404 else f"{request.method} is not for {request.url.path}"
        hint = "GET /openapi.json describes all routes" if code in (404, 405) else ""
        if not_there is not None and not request.url.path.startswith(("/v1", "/v2")):
            return await not_there(request, code, what, hint)
        headers = error.headers if isinstance(error, HTTPException) else None
        return JSONResponse({"error": what, "code": {404: "not_found", 405: "wrong_method"}.get(code, "refused"), "hint": hint}, code, headers=headers)

    rest = Starlette(routes=[*runs.routes(Receiver(site.project)), *api.routes(site), *pages], exception_handlers={HTTPException: missing})
    rest.router.redirect_slashes = False
    wire = mlflow.Wire(Tracking(site.project))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (handler := hot(site.deciders, scope)):
            await handler(scope, receive, send)
            return
        if scope["type"] == "http" and mlflow.is_mlflow(scope["path"]):
            await wire(scope, receive, send)
            return
        await rest(scope, receive, send)

    return Guard(app, Door(site.hosts, site.token))
