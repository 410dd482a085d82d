"""The artefact proxy of the MLflow wire: files go in and out in pieces, and none is sent before all of it was verified."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import IO
from urllib.parse import parse_qs

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from palan.flows import mlflow_artifacts as artifacts
from palan.flows.project import Project
from palan.http.answers import respond
from palan.http.guard import body

PREFIX = re.compile(r"/(?:ajax-)?api/2\.0/mlflow-artifacts/artifacts(?:/|$)")
OTHER = re.compile(r"/(?:ajax-)?api/2\.0/mlflow-artifacts/")

PIECE = 1 << 20


async def proxy(project: Project, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer one request for files."""
    if not PREFIX.match(scope["path"]):
        await body(receive)
        what = "Multipart upload is not supported for the current artifact repository"
        await respond(send, 501, msgspec.json.encode({"error_code": "NOT_IMPLEMENTED", "message": what}))  # a client then sends the file whole
        return
    path = PREFIX.sub("", scope["path"], count=1)
    match scope["method"], bool(path):
        case "PUT", True:
            await _put(project, path, receive, send)
        case "GET", True:
            await _get(project, path, send)
        case "GET", False:
            folder = parse_qs(scope["query_string"].decode("latin-1")).get("path", [""])[0]
            await respond(send, 200, msgspec.json.encode(await run_in_threadpool(_list, project, folder)))
        case "DELETE", True:
            await body(receive)
            await run_in_threadpool(artifacts.forget, project, path)
            await respond(send, 200, b"{}")
        case _:
            await respond(send, 405, msgspec.json.encode({"error_code": "BAD_REQUEST", "message": f"{scope['method']} is not for {scope['path']}"}))


def _list(project: Project, folder: str) -> dict[str, object]:
    owner, name = artifacts.place(folder)
    found = files(artifacts.listed(project, owner, name), within=True)
    return {"files": found} if found else {}


def files(listed: list[tuple[str, int | None]], *, within: bool = False) -> list[dict[str, object]]:
    """Return files and folders in MLflow's form, by their path from the root, or `within` their folder."""
    return [
        {"path": path.rpartition("/")[2] if within else path, "is_dir": size is None, **({} if size is None else {"file_size": size})} for path, size in listed
    ]


async def _put(project: Project, path: str, receive: Receive, send: Send) -> None:
    artifacts.place(path)  # refused before the first byte is read
    with tempfile.NamedTemporaryFile(prefix="palan-") as file:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # half a file is none
            file.write(message.get("body", b""))
            more = message.get("more_body", False)
        file.flush()
        await run_in_threadpool(artifacts.keep, project, path, Path(file.name))
    await respond(send, 200, b"{}")


async def _get(project: Project, path: str, send: Send) -> None:
    with tempfile.TemporaryDirectory(prefix="palan-") as folder:
        found = await run_in_threadpool(artifacts.find, project, path)
        target = Path(folder) / "blob"
        await run_in_threadpool(project.store.blobs.get, found.blob, target)  # refuses a damaged one
        size = target.stat().st_size
        # Never as what the name says: a page that somebody logged is not shown as one of ours.
        head = [(b"content-type", b"application/octet-stream"), (b"content-length", str(size).encode()), (b"content-disposition", b"attachment")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        with target.open("rb") as file:
            while piece := await run_in_threadpool(_piece, file):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def _piece(file: IO[bytes]) -> bytes:
    return file.read(PIECE)
