"""Serve: one process that answers decisions, works the jobs and shows the pages, until it is asked to stop."""

from __future__ import annotations

import ipaddress
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import msgspec

from palan.core import whole
from palan.errors import PalanError
from palan.flows.address import announced
from palan.flows.decide import Deciders
from palan.flows.fold import following
from palan.flows.jobs import Runner
from palan.flows.project import Project

APPLICATION = "palan.web.routes:application"
"""What is served: named, not imported, because http and web stand above this room."""

PORT = 7070
DRAIN_SECONDS = 20


class Server(msgspec.Struct, frozen=True):
    """A running server: its address, and what answers in it."""

    url: str
    deciders: Deciders
    runner: Runner


class Site(msgspec.Struct, frozen=True):
    """What the application is made of. No host means any; `csrf` is the secret of this process's forms."""

    project: Project
    url: str
    deciders: Deciders
    runner: Runner
    hosts: tuple[str, ...]
    token: str
    csrf: str


def serve(
    project: Project, host: str = "", port: int | None = None, *, token: str | None = None, ready: Callable[[Server], None] | None = None
) -> None:
    """Answer until SIGTERM or Ctrl-C, then let requests under way end.

    Args:
        project: an open project.
        host: the address to listen on: argument, else PALAN_HOST, else 127.0.0.1.
        port: argument, else PALAN_PORT, else 7070; 0 takes a free one.
        token: argument, else PALAN_TOKEN; needed for any address but loopback.
        ready: called once with the running server.

    Raises:
        PalanError: the port is taken, or the address is not loopback and there is no token.
    """
    import uvicorn

    listener, site = _open(project, host, port, token)
    try:
        server = uvicorn.Server(_config(site))
        site.deciders.follow()
        site.runner.start()
        with _ended_by_signals(server), announced(project, site.url), following(project):
            if ready:
                ready(Server(site.url, site.deciders, site.runner))
            project.tell(f"serving {project.config.name} at {site.url}")
            server.run(sockets=[listener])
        project.tell("stopped")
    finally:
        listener.close()
        site.runner.close()
        site.deciders.close()


@contextmanager
def _ended_by_signals(server: Any) -> Iterator[None]:
    """Let SIGTERM and Ctrl-C end the server in good order; the second one no longer waits for open requests.

    uvicorn would raise the signal again once it is done, which ends the process before workers and jobs are put away.
    """
    server.capture_signals = nullcontext
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def serving(project: Project, host: str = "", port: int | None = None, *, token: str | None = None) -> Iterator[Server]:
    """Serve in a thread while the block runs: for a demo, a notebook or a test.

    Raises: as `serve`.
    """
    import uvicorn

    listener, site = _open(project, host, port, token)
    server = uvicorn.Server(_config(site))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="serve", daemon=True)
    try:
        site.deciders.follow()
        site.runner.start()
        thread.start()
        while not server.started:
            if not thread.is_alive():
                raise PalanError(f"the server at {site.url} did not start", "look at the log above")
            time.sleep(0.005)
        with announced(project, site.url), following(project):
            yield Server(site.url, site.deciders, site.runner)
    finally:
        server.should_exit = True
        if thread.ident:
            thread.join(timeout=DRAIN_SECONDS)
        listener.close()
        site.runner.close()
        site.deciders.close()


def _open(project: Project, host: str, port: int | None, token: str | None) -> tuple[socket.socket, Site]:
    host = host or os.environ.get("PALAN_HOST", "127.0.0.1")
    token = os.environ.get("PALAN_TOKEN", "") if token is None else token
    number = _port(port)
    local = is_loopback(host)
    if not local and not token:
        raise PalanError(f"{host} can be reached from other machines, so it needs a token", f'PALAN_TOKEN="$(openssl rand -hex 16)" palan serve --host {host}')
    listener = _listen(host, number)
    number = listener.getsockname()[1]
    shown = f"[{host}]" if ":" in host else host
    # Behind a token any name will do: who has no token gets no further, whatever name was made to resolve here.
    hosts = ("localhost", "127.0.0.1", "::1", host) if local else ()
    site = Site(project, f"http://{shown}:{number}", Deciders(project), Runner(project), hosts, token, secrets.token_urlsafe(24))
    return listener, site


def _port(port: int | None) -> int:
    if port is None:
        return whole(os.environ.get("PALAN_PORT", str(PORT)), "PALAN_PORT", 0, 65535)
    return whole(str(port), "the port", 0, 65535)


def is_loopback(host: str) -> bool:
    """Tell whether an address reaches this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    # A port in TIME_WAIT after a restart may be taken again; one that another process listens on may not.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(512)
    except (OSError, UnicodeError) as error:  # a name that cannot be looked up, such as one with an empty label
        listener.close()
        if isinstance(error, PermissionError):
            raise PalanError(f"port {port} may not be used by you", f"palan serve --port {PORT}") from error
        if not isinstance(error, OSError) or isinstance(error, socket.gaierror) or error.errno == 99:
            raise PalanError(f"{host} is no address of this machine", "palan serve --host 127.0.0.1") from error
        raise PalanError(f"port {port} is taken: {error.strerror}", f"palan serve --port {port + 1}   (or stop what listens there)") from error
    listener.setblocking(False)
    return listener


def _config(site: Site) -> Any:
    import uvicorn
    from uvicorn.importer import import_from_string

    app = import_from_string(APPLICATION)(site)
    return uvicorn.Config(app, http=import_from_string("palan.http.together:Protocol"), access_log=False, log_level="warning", server_header=False, timeout_graceful_shutdown=DRAIN_SECONDS, timeout_keep_alive=30, lifespan="off", ws="none")
