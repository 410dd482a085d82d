"""Where processes on other machines send what they track: segments byte for byte, and blobs in one piece."""

from __future__ import annotations

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from palan.core import whole
from palan.errors import Busy, Invalid
from palan.flows.receive import Receiver
from palan.flows.send import FORMAT
from palan.http.api import answering

MOST = 2**62


def routes(receiver: Receiver) -> list[Route]:
    """Return the routes that take in runs of other machines."""

    async def take(request: Request) -> Any:
        asked = request.query_params
        at, format = whole(asked.get("at", "0"), "at", 0, MOST), whole(asked.get("format", str(FORMAT)), "format", 0, MOST)
        data = await request.body()
        return await run_in_threadpool(receiver.take, request.path_params["segment"], at, data, ended=asked.get("ended") == "1", format=format)

    async def keep(request: Request) -> Any:
        return await _keep(receiver, request)

    async def has(request: Request) -> Response:
        return JSONResponse({}, 200 if await run_in_threadpool(receiver.has, request.path_params["digest"]) else 404)

    return [
        Route("/v1/runs/segments/{segment}", answering(take), methods=["POST"]),
        Route("/v1/runs/blobs/{digest}", has, methods=["HEAD"]),
        Route("/v1/runs/blobs/{digest}", answering(keep, 201), methods=["PUT"]),
    ]


async def _keep(receiver: Receiver, request: Request) -> dict[str, Any]:
    """Take a blob in, piece by piece; it is kept only if it is what its name says."""
    digest, segment = request.path_params["digest"], request.query_params.get("segment", "")
    sha, size, heard = hashlib.sha256(), 0, 0.0
    folder = receiver.project.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=".received-", suffix=".tmp", dir=folder) as file:
            async for piece in request.stream():
                file.write(piece)
                sha.update(piece)
                size += len(piece)
                if time.monotonic() > heard + 1:
                    heard = time.monotonic()
                    receiver.hear(segment)
            file.flush()
            if sha.hexdigest() != digest:
                raise Invalid(f"the blob has digest {sha.hexdigest()}, not {digest:.64}", "send it again", field="digest", value=digest)
            await run_in_threadpool(receiver.keep, Path(file.name), segment)
    except ClientDisconnect:
        return {}  # half a blob is none, and nobody is there to be told
    except OSError as error:
        raise Busy(f"{folder} cannot be written: {error.strerror}", "free some space on the server: what was sent is kept where it came from, and sent again") from error
    return {"digest": digest, "size": size}
