"""`palan up`: serve, show the pages and tick, in one process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from palan.errors import Conflict, PalanError
from palan.flows.journal import running
from palan.flows.project import Project
from palan.flows.tick import tick

if TYPE_CHECKING:
    from palan.flows.serve import Server


def up(
    project: Project,
    host: str = "",
    port: int | None = None,
    *,
    every: float = 60.0,
    ready: Callable[[Server], None] | None = None,
) -> None:
    """Answer and tick every `every` seconds until SIGTERM or Ctrl-C.

    Raises:
        Conflict: this project is up already.
        PalanError: the port is taken, or the address needs a token.
    """
    from palan.flows.serve import serve

    if not 0 < every < threading.TIMEOUT_MAX:  # not even of no number
        raise PalanError(f"--every {every:g} is no time to wait", "give seconds above zero, for example --every 60")
    stop = threading.Event()
    clock = threading.Thread(target=_keep_ticking, args=(project, every, stop), name="tick", daemon=True)

    def began(server: Server) -> None:
        clock.start()
        if ready is not None:
            ready(server)

    try:
        with running(project, "up", project.config.name):
            serve(project, host, port, ready=began)
    except Conflict as error:
        if not error.what.endswith(f"up:{project.config.name}"):
            raise
        raise Conflict(f"{project.root} is up already, in another process", "palan status   (or stop that one first)") from error
    finally:
        stop.set()
        if clock.is_alive():
            clock.join(timeout=5)


def _keep_ticking(project: Project, every: float, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            for each in tick(project):
                project.tell(f"{each['what']}: {each['text']}")
        except PalanError as error:  # a store that is busy or full: told, and tried again at the next tick
            project.tell(f"tick: {error.what}")
        except Exception:  # a mistake of palan's own must not end the ticking in silence while the server goes on
            logging.getLogger("palan").exception("a tick failed; the next one tries again")
        stop.wait(every)
