"""The door: which hosts and origins may call, who has the token, how much they may send, and what browsers may do."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache

import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from palan.core import is_whole
from palan.http.answers import finish, respond

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BODY_BYTES = 64 << 20
"""The largest request body: a day of a busy model's rows, or a large instance."""
DRAIN_SECONDS = 10
"""How long a caller who was refused may go on sending before the connection is closed."""

HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    # Not "no-referrer": under it browsers send "Origin: null" with our own forms.
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_SET = frozenset(name for name, _ in HEADERS)
_READ = frozenset((b"host", b"origin", b"authorization", b"content-length", b"transfer-encoding", b"expect"))
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@\[\]]+))(?::[0-9]{0,5})?")
_FILES = ("/api/2.0/mlflow-artifacts/artifacts/", "/ajax-api/2.0/mlflow-artifacts/artifacts/")
_OPEN = ("/healthz", "/v2/health/live", "/v2/health/ready")
"""What a load balancer may ask without a token: nothing of the project is told."""


@dataclass(frozen=True, slots=True)
class Door:
    """What is let in. `hosts` are names without a port (none: any, for a server with a `token` behind a name of its own)."""

    hosts: tuple[str, ...] = LOOPBACK
    token: str = field(default="", repr=False)
    body_bytes: int = BODY_BYTES


class Guard:
    """ASGI middleware: refuse before any route is looked at, and put the security headers on every answer."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self.app = app
        self.door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # There is no websocket anywhere here, so nobody has a reason to open one.
            await send({"type": "websocket.close", "code": 1008})
            return
        method, path = scope["method"], scope["path"]
        headers: dict[bytes, str] = {}
        hosts = 0
        for name, value in scope["headers"]:
            if name in _READ:
                headers[name] = value.decode("latin-1")
                hosts += name == b"host"
        refusal = refuse(path, headers, self.door, hosts=hosts, method=method)
        if refusal:
            await _refused(send, receive, headers, *refusal)
            return
        parts: list[bytes] = []
        received = 0
        streamed = is_streamed(method, path)
        more = method not in ("GET", "HEAD") and not streamed
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # half a request is none, even where what came of it reads well
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
            received += len(parts[-1])
            if received > self.door.body_bytes:
                await _refused(send, receive, headers if more else {}, *_too_large(self.door))
                return
        rest: list[Message] = [{"type": "http.request", "body": b"".join(parts), "more_body": False}]

        async def read() -> Message:
            return rest.pop() if rest and not streamed else await receive()

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [*message.get("headers", ())]
                own = [name for name, _ in given if name in _SET]
                message = {**message, "headers": [*given, *([pair for pair in HEADERS if pair[0] not in own] if own else HEADERS)]}
            await send(message)

        await self.app(scope, read, headed)


async def body(receive: Receive) -> bytes:
    """Return the body of a request that the guard let in: it has read it whole."""
    return bytes((await receive()).get("body", b""))


def is_streamed(method: str, path: str) -> bool:
    """Tell whether the body is a file of any size, which is taken in piece by piece."""
    return method == "PUT" and path.startswith((*_FILES, "/v1/runs/blobs/"))


def refuse(path: str, headers: dict[bytes, str], door: Door, *, hosts: int = 1, method: str = "POST") -> tuple[int, str, str] | None:
    """Return (status, what, hint) for a request that may not pass, else None.

    The Host list stops DNS rebinding: a page of evil.example that resolves to 127.0.0.1 still says its own name. A
    request that a browser says comes from another origin is refused on every method, also from another port of this
    machine: whatever runs there has no say here.
    """
    host = _name(headers.get(b"host", ""))
    if hosts != 1 or not host or (door.hosts and host not in door.hosts):
        return 421, f'this server does not answer for the host "{headers.get(b"host", "")}"', f"use {', '.join(door.hosts) or 'one Host header'}"
    origin = headers.get(b"origin")
    if origin is not None and _authority(origin) != headers[b"host"].strip().lower():
        return 403, f'requests from the site "{origin}" are not let in', "call from your own page, or without a browser"
    if door.token and path not in _OPEN and not _carries(headers.get(b"authorization", ""), door.token):
        return 401, "this server asks for a token", 'send the header "Authorization: Bearer <token>"'
    if is_streamed(method, path):
        return None
    length = headers.get(b"content-length") or "0"
    return None if is_whole(length) and int(length) <= door.body_bytes else _too_large(door)


def _too_large(door: Door) -> tuple[int, str, str]:
    return 413, f"the body is larger than {door.body_bytes >> 20} MB", "send the rows in several requests"


@lru_cache(64)
def _name(host: str) -> str:
    """Return the name in a Host header without its port, "" where it is none: an open bracket, a port of letters."""
    found = _HOST.fullmatch(host.strip().lower())
    return (found[1] or found[2]) if found else ""


def _authority(origin: str) -> str:
    """Return host and port of an http(s) origin as a Host header would have them, else an empty string."""
    scheme, _, authority = origin.strip().lower().partition("://")
    return authority if scheme in ("http", "https") else ""


def _carries(authorization: str, token: str) -> bool:
    scheme, _, rest = authorization.partition(" ")
    given = rest.strip()
    if scheme.lower() == "basic":
        # Browsers can ask for this one by themselves: any name, the token as the password.
        try:
            given = base64.b64decode(given, validate=True).decode("utf-8", "replace").partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return hmac.compare_digest(given.encode(), token.encode())


async def _refused(send: Send, receive: Receive, headers: Mapping[bytes, str], status: int, what: str, hint: str) -> None:
    """Answer, then let the caller finish: whoever is still sending when the connection closes never reads the answer."""
    extra: list[tuple[bytes, bytes]] = [(b"connection", b"close")]
    if status == 401:
        extra.append((b"www-authenticate", b'Basic realm="palan", charset="UTF-8"'))
    # Who says "Expect: 100-continue" waits for leave to send.
    sending = (b"transfer-encoding" in headers or headers.get(b"content-length", "0") != "0") and b"expect" not in headers
    told = msgspec.json.encode({"error": what, "code": _CODES[status], "hint": hint})
    await respond(send, status, told, (*extra, *HEADERS), more=sending)
    if sending:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while (await receive()).get("more_body"):
                    pass
        await finish(send)


_CODES = {401: "unauthorised", 403: "forbidden", 413: "too_large", 421: "wrong_host"}
