"""Start worker processes in milliseconds: each is a fork of a template that has imported the model's libraries already.

To import scikit-learn and skops takes seconds, to fork a process that has done so takes milliseconds: for a canary, a
retraining, a trial of a remedy, and for the child that takes the place of one that was killed at its deadline. There is
one template for each set of libraries and environment, so libraries that cannot be loaded together never are. A template
runs no code of the user and holds no model: every child begins as new.

Where there is no safe fork (not Linux, a library that starts threads or dies when it is imported), a fresh interpreter
is started instead.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import msgspec

from palan.engines import worker

_IMPORT = re.compile(r"^(?:from[ \t]+([\w.]+)[ \t]+import|import[ \t]+([\w., \t]+))", re.MULTILINE)
_NEEDED_BY = {"sklearn": "skops.io"}  # what palan imports to keep the state of such a model
_MESSAGE = 1 << 20


def libraries(folder: Path, files: Sequence[str]) -> tuple[str, ...]:
    """Return the modules that these files and what they import from the folder import at their top level, and that are not in the folder."""
    found: set[str] = set()
    seen: set[Path] = set()
    todo = [folder / file for file in files]
    while todo:
        path = todo.pop()
        if path in seen or path.suffix != ".py" or not path.is_file():
            continue
        seen.add(path)
        for module in _imported(path.read_text(errors="replace")):
            own = [place.joinpath(*module.split(".")).with_suffix(".py") for place in dict.fromkeys([path.parent, folder])]
            own += [each.with_suffix("") / "__init__.py" for each in own]
            if any(each.is_file() for each in own):
                todo += own
            elif module.split(".")[0] not in sys.stdlib_module_names:
                found.add(module)
    return tuple(sorted(found | {more for name, more in _NEEDED_BY.items() if any(each.split(".")[0] == name for each in found)}))


def _imported(text: str) -> Iterator[str]:
    for one, several in _IMPORT.findall(text):
        for name in [one] if one else several.split(","):
            if module := name.split()[0].strip("."):
                yield module


class Child:
    """A forked worker: the part of `subprocess.Popen` that a lane needs."""

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, status: int) -> None:
        self.pid = pid
        self.stdin: BinaryIO = open(stdin, "wb", buffering=0)  # noqa: SIM115
        self.stdout: BinaryIO = open(stdout, "rb", buffering=0)  # noqa: SIM115
        self.stderr: BinaryIO = open(stderr, "rb", buffering=0)  # noqa: SIM115
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        with self._lock:
            if self.returncode is None:
                waiting = select.poll()
                waiting.register(self._status, select.POLLIN)
                if not waiting.poll(None if timeout is None else timeout * 1000):
                    raise subprocess.TimeoutExpired("worker", timeout or 0.0)
                told = os.read(self._status, 8)
                os.close(self._status)
                # without a word the template itself has ended, and its children with it
                self.returncode = int(told) if told else -signal.SIGKILL
            return self.returncode


Process = subprocess.Popen[bytes] | Child


class Template:
    """The parent's end of one template process."""

    def __init__(self, names: Sequence[str], env: Mapping[str, str]) -> None:
        self.forks = 0
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "palan.engines.forks", str(os.getpid()), *names],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # an import that fails is told by the child that tries it again
                env=env,
                start_new_session=True,
            )

    def fork(self, folder: Path, env: Mapping[str, str], seconds: float) -> Child | None:
        """Return a new child that works in the folder, or None where this template cannot fork."""
        ours: list[int] = []
        theirs: list[int] = []
        for number in range(4):
            reading, writing = os.pipe()
            ours.append(writing if number == 0 else reading)
            theirs.append(reading if number == 0 else writing)
        try:
            self._socket.settimeout(seconds)
            socket.send_fds(self._socket, [msgspec.msgpack.encode((str(folder), env))], theirs)
            pid = int(self._socket.recv(32) or b"0")
        except (OSError, ValueError):
            pid = 0
        finally:
            for fd in theirs:
                os.close(fd)
        if pid:
            self.forks += 1
            return Child(pid, *ours)
        for fd in ours:
            os.close(fd)
        if not self.forks:
            self._process.kill()
        self.close()
        return None

    def close(self) -> None:
        """Let the template end with the last of its children."""
        self._socket.close()
        threading.Thread(target=self._process.wait, daemon=True, name="palan-template").start()


_Key = tuple[tuple[str, ...], tuple[tuple[str, str], ...]]

MOST = 8
"""How many templates wait for work; the one that was used longest ago ends first."""

_templates: OrderedDict[_Key, Template | None] = OrderedDict()


def start(folder: Path, files: Sequence[str], env: Mapping[str, str], more: Mapping[str, str], seconds: float) -> Process:
    """Start a worker in the folder, ready to open what is in these files.

    Call it from one thread that stays: Linux ends a child with the thread that started it.

    Args:
        env: the environment of the child; of it `more` may change what its libraries do when they are imported.
        seconds: how long the imports may take.
    """
    if sys.platform == "linux":
        child = _forked((libraries(folder, files), tuple(sorted(more.items()))), folder, env, seconds)
        if child is not None:
            return child
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "palan.engines.worker", str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=folder,
        env=env,
        start_new_session=True,  # Ctrl-C in the terminal is for the parent, which then ends its children in good order
    )


def _forked(key: _Key, folder: Path, env: Mapping[str, str], seconds: float) -> Child | None:
    while True:
        if key not in _templates:
            _templates[key] = Template(key[0], env)
        _templates.move_to_end(key)
        while len(_templates) > MOST:
            _, oldest = _templates.popitem(last=False)
            if oldest is not None:
                oldest.close()
        template = _templates[key]
        if template is None:
            return None
        child = template.fork(folder, env, seconds)
        if child is not None:
            return child
        if template.forks:
            del _templates[key]  # it was killed: another one can do what it did
        else:
            _templates[key] = None


# -- the template's side -------------------------------------------------------------------------------------------------


def main() -> None:
    """Import the libraries, then fork a worker for each request until nobody asks any more."""
    control = socket.socket(fileno=os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    worker.die_with(int(sys.argv[1]))
    for name in sys.argv[2:]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    if threading.active_count() > 1:
        os._exit(1)  # a thread would be missing in the children
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the children
    woken, wake = os.pipe()
    for fd in (woken, wake):
        os.set_blocking(fd, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    children: dict[int, int] = {}
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    asked = True
    while asked or children:
        for fd, _ in waiting.poll():
            if fd == woken:
                os.read(woken, _MESSAGE)
                _reap(children)
                continue
            message, fds, *_ = socket.recv_fds(control, _MESSAGE, 4)
            if not message:
                asked = False
                waiting.unregister(control)
                continue
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (control.detach(), woken, wake, fds[3], *children.values()):
                    os.close(other)
                folder, env = msgspec.msgpack.decode(message)
                _become(folder, env, fds[:3])
                worker.main(os.getppid())
                os._exit(0)
            children[pid] = fds[3]
            for other in fds[:3]:
                os.close(other)
            control.send(b"%d" % pid)


def _reap(children: dict[int, int]) -> None:
    """Tell the parent how each child has ended that did."""
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        told = children.pop(pid)
        with contextlib.suppress(OSError):
            os.write(told, b"%d" % os.waitstatus_to_exitcode(status))
        os.close(told)


def _become(folder: str, env: Mapping[str, str], fds: Sequence[int]) -> None:
    os.setsid()
    os.environ.clear()
    os.environ.update(env)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)


if __name__ == "__main__":
    main()
