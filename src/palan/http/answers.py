"""What the network is told: JSON, and every error in one form; never a traceback."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Iterable
from typing import Any
from uuid import uuid4

import msgspec
from starlette.types import Send

from palan.errors import Busy, Conflict, Invalid, ModelFailed, NotAdmitted, NotFound, PalanError

logger = logging.getLogger("palan.http")

Headers = Iterable[tuple[bytes, bytes]]


async def answered(work: Awaitable[Any], status: int = 200) -> tuple[int, bytes, Headers]:
    """Return status, JSON and further headers: of what the work returns, or of its error."""
    try:
        return status, msgspec.json.encode(await work, enc_hook=str), ()
    except Exception as error:  # noqa: BLE001 - the last door before the network: logged whole, told as an id
        code, answer = told(error)
    return code, msgspec.json.encode(answer), [(b"retry-after", b"1")] if code == 503 else ()


def told(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON form of an error: what, a code to branch on, the hint, and where it was.

    An error that nobody foresaw is logged, and told as the id that it is logged under.
    """
    if not isinstance(error, PalanError):
        id = uuid4().hex[:12]
        logger.error("error %s", id, exc_info=error)
        return 500, {"error": "something went wrong inside palan", "code": "internal", "hint": f'look for "error {id}" in the log of the server', "id": id}
    code = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in type(error).__name__).strip("_")
    body: dict[str, Any] = {"error": error.what, "code": "refused" if code == "palan_error" else code, "hint": error.hint}
    if isinstance(error, Invalid):
        body |= {"field": error.field, "value": _short(error.value), "reason": error.what}
    if isinstance(error, ModelFailed):
        body |= {"status": error.status}
        if error.log:
            # What the user's code printed may hold data: it goes to the server's log, not to the caller.
            logger.warning("%s\n%s", error.what, error.log)
    return _status(error), body


def _status(error: PalanError) -> int:
    match error:
        case Invalid():
            return 422
        case NotFound():
            return 404
        case Conflict() | NotAdmitted():
            return 409
        case Busy():
            return 503
        case ModelFailed():
            return 504 if error.status in ("timeout", "no_solution") else 502
        case _:
            return 400


def _short(value: object) -> Any:
    try:
        text = msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, msgspec.MsgspecError):
        return repr(value)[:200]
    except RecursionError:
        return "..."
    return value if len(text) <= 200 else f"{text[:200].decode('utf-8', 'ignore')}..."


async def respond(send: Send, status: int, body: bytes, headers: Headers = (), *, more: bool = False) -> None:
    """Send one JSON answer over raw ASGI; with `more` the answer is whole, and `finish` still has to end it."""
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def finish(send: Send) -> None:
    """End an answer that was sent with `more`."""
    await send({"type": "http.response.body", "body": b""})
