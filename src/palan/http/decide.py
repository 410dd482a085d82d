"""The hot path: decisions and outcomes over raw ASGI."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from palan.flows.decide import Deciders, outcomes, read_outcomes
from palan.http.answers import answered, respond
from palan.http.guard import body

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


def hot(deciders: Deciders, scope: Scope) -> Handler | None:
    """Return the handler of `POST /v1/models/{name}/decide` or `…/outcomes`, or None for any other path."""
    parts = scope["path"].split("/")
    if len(parts) != 5 or parts[:3] != ["", "v1", "models"] or parts[4] not in ("decide", "outcomes"):
        return None
    model = unquote(parts[3])

    if scope["method"] != "POST":
        return _wrong_method

    async def decide(scope: Scope, receive: Receive, send: Send) -> None:
        caller = scope["client"][0] if scope.get("client") else ""
        await respond(send, *await answered(deciders.answer(model, await body(receive), caller=caller)))

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        # A year of outcomes takes a second to read and check: in a thread, so that everybody else is answered meanwhile.
        await respond(send, *await answered(run_in_threadpool(_told, deciders, model, await body(receive))))

    return decide if parts[4] == "decide" else tell


async def _wrong_method(scope: Scope, receive: Receive, send: Send) -> None:
    told = {"error": f"{scope['method']} is not for {scope['path']}", "code": "wrong_method", "hint": f"POST {scope['path']}"}
    await respond(send, 405, msgspec.json.encode(told), [(b"allow", b"POST")])


def _told(deciders: Deciders, model: str, sent: bytes) -> dict[str, Any]:
    deciders.project.model(model)
    values, ids, keys = read_outcomes(sent)
    return {"model": model, "told": outcomes(deciders.project, model, values, ids=ids, keys=keys)}
