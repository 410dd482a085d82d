"""The hot path: decisions and outcomes over raw ASGI, and how every error looks over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote
from uuid import uuid4

import msgspec
from starlette.types import Receive, Scope, Send

from palan.errors import Busy, Conflict, Invalid, ModelFailed, NotFound, PalanError
from palan.flows.decide import Deciders, outcomes, read_outcomes
from palan.http.guard import TooLarge, respond

logger = logging.getLogger("palan.http")

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
        await guarded(send, lambda: _decided(deciders, model, receive, caller))

    async def tell(scope: Scope, receive: Receive, send: Send) -> None:
        await guarded(send, lambda: _told(deciders, model, receive))

    return decide if parts[4] == "decide" else tell


async def _wrong_method(scope: Scope, receive: Receive, send: Send) -> None:
    body = {"error": f"{scope['method']} is not for {scope['path']}", "code": "wrong_method", "hint": f"POST {scope['path']}"}
    await respond(send, 405, body, [(b"allow", b"POST")])


async def _decided(deciders: Deciders, model: str, receive: Receive, caller: str) -> dict[str, Any]:
    return await deciders.answer(model, await read(receive), caller=caller)


async def _told(deciders: Deciders, model: str, receive: Receive) -> dict[str, Any]:
    deciders.project.model(model)
    values, ids, keys = read_outcomes(await read(receive))
    return {"model": model, "told": outcomes(deciders.project, model, values, ids=ids, keys=keys)}


async def read(receive: Receive) -> bytes:
    """Return the whole body."""
    message = await receive()
    if not message.get("more_body"):
        return bytes(message.get("body", b""))
    parts = [message.get("body", b"")]
    while message.get("more_body"):
        message = await receive()
        parts.append(message.get("body", b""))
    return b"".join(parts)


async def guarded(send: Send, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
    """Send what the work returns, or its error as JSON; never a traceback."""
    try:
        answer, status = await work(), 200
    except PalanError as error:
        status, answer = refusal(error)
    except Exception as error:  # noqa: BLE001 - the last door before the network: logged whole, told as an id
        status, answer = unexpected(error)
    await respond(send, status, answer, [(b"retry-after", b"1")] if status == 503 else ())


def status_of(error: PalanError) -> int:
    """Return the HTTP status of an error."""
    match error:
        case Invalid():
            return 422
        case NotFound():
            return 404
        case Conflict():
            return 409
        case Busy():
            return 503
        case TooLarge():
            return 413
        case ModelFailed():
            return 504 if error.status in ("timeout", "no_solution") else 502
        case _:
            return 400


def refusal(error: PalanError) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON form of an error: what, a code to branch on, the hint, and where it was."""
    code = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(error).__name__).strip("_")
    body: dict[str, Any] = {"error": error.what, "code": "refused" if code == "palan_error" else code, "hint": error.hint}
    if isinstance(error, Invalid):
        body |= {"field": error.field, "value": _short(error.value), "reason": error.what}
    if isinstance(error, ModelFailed):
        body |= {"status": error.status}
        if error.log:
            # What the user's code printed may hold data: it goes to the server's log, not to the caller.
            logger.warning("%s\n%s", error.what, error.log)
    return status_of(error), body


def unexpected(error: Exception) -> tuple[int, dict[str, Any]]:
    """Log an error that nobody foresaw and return what the caller is told of it."""
    id = uuid4().hex[:12]
    logger.error("error %s", id, exc_info=error)
    return 500, {"error": "something went wrong inside palan", "code": "internal", "hint": f'look for "error {id}" in the log of the server', "id": id}


def _short(value: object) -> Any:
    try:
        text = msgspec.json.encode(value)
    except (TypeError, ValueError, msgspec.MsgspecError):
        return repr(value)[:200]
    return value if len(text) <= 200 else f"{text[:200].decode('utf-8', 'ignore')}..."
