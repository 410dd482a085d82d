"""Send what was tracked here to the server that it is for: whatever is acknowledged leaves the spool, all else stays in it.

Each process that tracks has a folder of its own in the spool: its segments, and the blobs that these name. One process at a
time sends a folder; when it has died, another one goes on, or `palan send`. The server says how much of a segment it has,
so nothing is there twice, whoever was killed when.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

import msgspec

from palan.core import new_id, utcnow
from palan.errors import NotFound, PalanError
from palan.flows.fold import STREAM
from palan.flows.project import Tell, silent
from palan.stores.files import FileBlobs, is_digest

if TYPE_CHECKING:
    import http.client

FORMAT = 1
"""Of what is sent: it rises when a server of before could not take it."""
PIECE = 512 << 10
"""Bytes of one request: less than what proxies take as they come."""
BEAT_SECONDS = 1.5
"""How often a process says that it is there, when it has nothing else to say."""
ANSWER_SECONDS = 30.0
KEPT_SECONDS = 900.0
"""How long a server may take to put a blob away."""


class Address(msgspec.Struct, frozen=True):
    """Where a server is."""

    url: str
    secure: bool
    host: str
    port: int
    path: str


def address(server: str) -> Address:
    """Read the address of a server.

    Raises:
        PalanError: it is none, or has a password in it.
    """
    example = "http://host:7070"
    try:
        parts = urlsplit(server if "://" in server else f"http://{server}")
        port = parts.port
    except ValueError as error:
        raise PalanError(f'"{server}" is no address of a server: {error}', f'write it as "{example}"') from None
    if parts.username is not None or parts.password is not None:
        raise PalanError("the address of the server has a name or a password in it", f"export PALAN_TOKEN=..., and write the address as {example}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise PalanError(f'"{server}" is no address of a server', f'write it as "{example}"')
    secure = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    path = parts.path.rstrip("/")
    number = port or (443 if secure else 80)
    return Address(f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}", secure, parts.hostname, number, path)


def spool() -> Path:
    """Return the folder where runs wait that are tracked for a server."""
    given = os.environ.get("XDG_STATE_HOME", "")
    try:
        return (Path(given) if given.startswith("/") else Path.home() / ".local" / "state") / "palan"
    except RuntimeError as error:  # a user without a home
        raise PalanError("there is no folder to keep runs in until they are sent", "export XDG_STATE_HOME=...   (a folder on this machine)") from error


def waiting(folder: Path) -> int:
    """Return how many bytes of a process's folder have not left it."""
    return sum(_size(path) for path in (*_segments(folder), *_blobs(folder)))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # it was sent meanwhile
        return 0


class Sender:
    """Sends the folder of one process to its server, if no other process does."""

    def __init__(self, to: Address, folder: Path, token: str) -> None:
        self.to = to
        self.folder = folder
        self._token = token
        self._reset()

    @classmethod
    def begun(cls, to: Address, token: str) -> Sender:
        """Return the one of this process, with a new folder that is its own to send from the first moment on."""
        name, parent = new_id(utcnow()), spool() / quote(to.url, safe="")
        try:
            parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            (parent / f".{name}").mkdir()
            sender = cls(to, parent / f".{name}", token)
            sender._is_mine()
            sender.folder = sender.folder.rename(parent / name)
        except OSError as error:
            raise PalanError(f"{parent} cannot be written: {error.strerror}", "export XDG_STATE_HOME=...   (a folder on this machine)") from error
        return sender

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock: int | None = None
        self._link: http.client.HTTPConnection | None = None
        self._sent: dict[str, int] = {}
        self._heard: dict[str, float] = {}

    def send(self) -> None:
        """Send all that is there when this begins, unless another process sees to it.

        Raises:
            PalanError: the server is away or refuses it. It stays where it is.
        """
        if self._pid != os.getpid():
            if self._lock is not None:
                os.close(self._lock)  # the lock stays with the process that took it
            self._reset()
        if not self._is_mine():
            return
        # The newest first: what a fork appends may need what its parent appended before, and goes out after it.
        sizes = {path: path.stat().st_size for path in reversed(_segments(self.folder))}
        blobs = _blobs(self.folder)
        before = utcnow()
        for path in reversed(sizes):
            if time.monotonic() > self._heard.get(path.stem, float("-inf")) + BEAT_SECONDS:
                self._put(path.stem, self._sent.get(path.stem, 0), b"")
        for path in blobs:
            self._send_blob(path, next(iter(sizes), path).stem)
        for path, size in reversed(sizes.items()):
            self._send_bytes(path, size)
        for path in reversed(sizes):
            self._finish(path)
        kept = FileBlobs(self.folder / "blobs")
        for path in blobs:  # only now: those who name them are there as well
            kept.remove(path.name, before)
        if not _segments(self.folder) and not _blobs(self.folder):
            self._leave()

    def experiment_of(self, run: str) -> str:
        """Return the experiment of a run that the server has.

        Raises:
            NotFound: it has no such run.
            PalanError: the server is away or refuses to say.
        """
        answer = self._ask("GET", f"/v1/runs/{quote(run, safe='')}", b"", absent=True)
        if "absent" in answer:
            raise NotFound(f'{self.to.url} has no run "{run}"', "palan runs   (there)")
        return str(answer.get("experiment", ""))

    def unsent(self) -> int:
        """Return how many bytes of the folder the server has not acknowledged."""
        return sum(_size(path) for path in _blobs(self.folder)) + sum(max(_size(path) - self._sent.get(path.stem, 0), 0) for path in _segments(self.folder))

    def _is_mine(self) -> bool:
        """Have the right to send, which one process has at a time."""
        if self._lock is None:
            with suppress(FileNotFoundError):
                lock = os.open(self.folder / ".sender", os.O_RDWR | os.O_CREAT, 0o600)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._lock = lock
                except BlockingIOError:
                    os.close(lock)
        return self._lock is not None

    def _send_bytes(self, path: Path, size: int) -> None:
        with path.open("rb") as file:
            while (at := self._sent[path.stem]) < size:
                file.seek(at)
                if self._put(path.stem, at, file.read(min(PIECE, size - at))) == at:
                    raise self._no_palan()  # it took nothing, and lacks nothing

    def _finish(self, path: Path) -> None:
        """Remove a segment that nobody writes any more, once the server has all of it on its disk."""
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            size = os.fstat(file.fileno()).st_size
            if self._sent[path.stem] < size or self._put(path.stem, self._sent[path.stem], b"", ended=True) < size:
                return
            path.unlink()
            for note in path.parent.glob(f"{path.stem}.*.end"):
                note.unlink()

    def _put(self, segment: str, at: int, data: bytes, *, ended: bool = False) -> int:
        """Send bytes of a segment, and return how many of it the server has."""
        answer = self._ask("POST", f"/v1/runs/segments/{segment}?at={at}&format={FORMAT}{'&ended=1' if ended else ''}", data)
        has = answer.get("has")
        if not isinstance(has, int):
            raise self._no_palan()
        self._sent[segment] = has
        self._heard[segment] = time.monotonic()
        return has

    def _send_blob(self, path: Path, segment: str) -> None:
        if not self._ask("HEAD", f"/v1/runs/blobs/{path.name}", b"", absent=True):
            return
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._ask("PUT", f"/v1/runs/blobs/{path.name}?segment={segment}", file, size=size, seconds=KEPT_SECONDS)

    def _ask(self, method: str, path: str, body: Any, *, size: int | None = None, seconds: float = ANSWER_SECONDS, absent: bool = False) -> dict[str, Any]:
        """Return what the server answers; {"absent": True} where it has not what was asked for and may lack it."""
        status, headers, content = self._exchange(method, path, body, len(body) if size is None else size, seconds)
        if absent and status == 404 and headers.get("content-type", "").startswith("application/json"):
            return {"absent": True}
        answer: Any = {}
        with suppress(msgspec.MsgspecError):
            answer = msgspec.json.decode(content)
        if status < 300 and isinstance(answer, dict):
            return answer
        raise self._refused(status, headers, answer if isinstance(answer, dict) else {})

    def _exchange(self, method: str, path: str, body: Any, size: int, seconds: float) -> tuple[int, http.client.HTTPMessage, bytes]:
        from http.client import HTTPException

        headers = {"content-length": str(size), **({"authorization": f"Bearer {self._token}"} if self._token else {})}
        if self._link is not None and self._link.sock is None:  # the server asked to end it
            self._drop()
        for is_new in (self._link is None, True):
            try:
                link = self._link = self._link or self._connected()
                link.sock.settimeout(seconds)
                link.request(method, f"{self.to.path}{path}", body=body, headers=headers)
                answer = link.getresponse()
                return answer.status, answer.headers, answer.read()
            except (OSError, HTTPException, ValueError) as error:
                self._drop()
                # A server may end a connection that lay idle: a new one tells whether it is there.
                if is_new or isinstance(error, TimeoutError):
                    why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                    raise PalanError(f"{self.to.url} does not answer: {why}") from error
                if size and not isinstance(body, bytes):
                    body.seek(0)
        raise AssertionError("the second attempt is always a new connection")

    def _connected(self) -> http.client.HTTPConnection:
        from http.client import HTTPConnection, HTTPSConnection

        kind = HTTPSConnection if self.to.secure else HTTPConnection
        link = kind(self.to.host, self.to.port, timeout=5, blocksize=1 << 16)
        link.connect()
        return link

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    def _refused(self, status: int, headers: http.client.HTTPMessage, answer: dict[str, Any]) -> PalanError:
        self._drop()  # whoever refuses may not read on
        if status == 401:
            return PalanError(f"{self.to.url} asks for {'another' if self._token else 'a'} token", "export PALAN_TOKEN=...   (the one that it was started with)")
        if 300 <= status < 400:
            return PalanError(f"{self.to.url} is elsewhere: it answers {status}", f"PALAN_SERVER={headers.get('location', '...')}")
        if status >= 500 and "error" not in answer:
            return PalanError(f"{self.to.url} answers {status}")
        if status in (404, 405) or "error" not in answer:
            return self._no_palan(status)
        return PalanError(f"{self.to.url} refuses what is sent: {answer['error']}", str(answer.get("hint", "")))

    def _no_palan(self, status: int = 200) -> PalanError:
        return PalanError(f"{self.to.url} is no palan that takes runs: it answers {status}", "give the address of a `palan up`, of a palan as new as this one")

    def _leave(self) -> None:
        """Remove the folder, unless somebody writes to it again."""
        blobs, segments = self.folder / "blobs", self.folder / STREAM
        with suppress(OSError):
            for note in segments.glob("*.end"):
                note.unlink()
            for each in (*blobs.glob("??"), *(path for path in (segments,) if path.exists())):
                each.rmdir()
            if blobs.exists():
                (blobs / ".lock").unlink(missing_ok=True)
                blobs.rmdir()
            (self.folder / ".sender").unlink()
            self.folder.rmdir()
        self.close()

    def close(self) -> None:
        """Let others send."""
        self._drop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _segments(folder: Path) -> list[Path]:
    return sorted((folder / STREAM).glob("*.seg"))


def _blobs(folder: Path) -> list[Path]:
    return [path for path in (folder / "blobs").glob("[0-9a-f][0-9a-f]/*") if is_digest(path.name)]


def asked(to: Address, run: str, token: str) -> str:
    """Return the experiment of a run, nothing where the server does not answer: it may be away for now.

    Raises:
        NotFound: the server has no such run.
    """
    sender = Sender(to, spool(), token)
    try:
        return sender.experiment_of(run)
    except NotFound:
        raise
    except PalanError:
        return ""
    finally:
        sender.close()


def left(server: str = "") -> Iterator[tuple[Address, Path]]:
    """Yield the folders that wait for a server, or for any."""
    names = [quote(address(server).url, safe="")] if server else sorted(path.name for path in spool().glob("http*"))
    for name in names:
        for folder in sorted(path for path in (spool() / name).glob("[!.]*") if path.is_dir()):
            yield address(unquote(name)), folder


def send(server: str = "", *, token: str | None = None, tell: Tell = silent) -> list[dict[str, Any]]:
    """Send what waits for a server, or for every one; return for each how much was sent, how much waits, and why.

    Raises:
        PalanError: the address is none.
    """
    token = os.environ.get("PALAN_TOKEN", "") if token is None else token
    found: dict[str, dict[str, Any]] = {}
    for to, folder in left(server):
        told = found.setdefault(to.url, {"server": to.url, "sent": 0, "waiting": 0, "why": ""})
        size = waiting(folder)
        if not told["why"]:
            tell(f"sending {size:,} bytes to {to.url}")
            sender = Sender(to, folder, token)
            try:
                sender.send()
            except PalanError as error:
                told["why"] = f"{error.what} ({error.hint})" if error.hint else error.what
            finally:
                sender.close()
        rest = waiting(folder)
        told["sent"] += size - rest
        told["waiting"] += rest
    return list(found.values())
