"""Where this project is served now: a running server leaves its address in the project's folder and takes it away again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from palan.flows.project import Project
from palan.stores.files import write_atomically


class Serving(msgspec.Struct, frozen=True):
    """A running server and the process that it lives in."""

    url: str
    machine: str
    process: int


@contextmanager
def announced(project: Project, url: str) -> Iterator[None]:
    """Let other processes know the address of this server while the block runs."""
    mine = msgspec.json.encode(Serving(url, os.uname().nodename, os.getpid()))
    with suppress(OSError):  # a full or read-only disk: nobody is told
        write_atomically(_place(project), mine)
    try:
        yield
    finally:
        with suppress(OSError):
            if _place(project).read_bytes() == mine:  # not that of a server which came later
                _place(project).unlink()


def address(project: Project) -> str:
    """Return the address of the server that runs for this project, "" where none is known to."""
    try:
        found = msgspec.json.decode(_place(project).read_bytes(), type=Serving)
        if found.machine == os.uname().nodename:
            os.kill(found.process, 0)
    except PermissionError:
        return found.url
    except (OSError, msgspec.DecodeError):
        return ""
    return found.url


def _place(project: Project) -> Path:
    return project.folder / "cache" / "serving"
