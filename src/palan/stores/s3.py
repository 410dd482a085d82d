"""Blobs on a server that speaks the S3 protocol (extra `s3`): one object for each, named by its SHA-256.

Where the server is and who asks is told by the usual variables: AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN. No secret stands in palan.toml.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from palan.core import utcnow
from palan.errors import Corrupt, MissingExtra, NotFound, PalanError
from palan.stores import BUCKET
from palan.stores.contract import Blobs
from palan.stores.files import CHUNK, chunks, is_digest, is_sound, lay_out, proven

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
    from obstore.store import S3Store
except ImportError as error:
    raise MissingExtra("obstore", "s3", "a store on S3") from error

T = TypeVar("T")

PART = 8 << 20
"""Bytes that are sent in one request; `AT_ONCE` of them are in memory at the most."""

AT_ONCE = 4
MOST_PARTS = 9_000  # of 10,000 that an upload may have
MOST_COPIED = 5 << 30
"""The largest object that a server copies in one request: larger ones are not swept."""

YOUNG = timedelta(hours=1)
"""How long after it was written a blob that is put again is left as it is: an older one is written anew, so that it tells when."""

ASIDE = "aside/"
PROBE = "create-if-absent.probe"
_CREDENTIALS = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class S3Blobs(Blobs):
    """Blobs below one prefix of one bucket."""

    def __init__(self, address: str) -> None:
        found = BUCKET.fullmatch(address)
        if not found:
            raise PalanError("the blobs' address names no bucket", 'in palan.toml: [project] blobs = "s3://bucket/prefix"')
        self.address, self._bucket, self._server, self._pid = address, found[1], server(), os.getpid()
        with self._explained():
            self._store = S3Store(
                self._bucket,
                prefix=found[2].strip("/") or None,
                client_options={
                    "allow_http": self._server.startswith("http://"),
                    "connect_timeout": timedelta(seconds=3),
                    "read_timeout": timedelta(seconds=30),  # without a byte
                    "timeout": timedelta(days=1),  # a large blob takes its time
                },
                retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
            )
        self._probe()

    def _probe(self) -> None:
        """Refuse a server that replaces an object which it was told to create: two requests the first time, one ever after."""
        for _ in range(2):
            if not self._create(PROBE, b"palan"):
                return
        raise PalanError(
            f"{self._server} ignores create-if-absent (If-None-Match): of two processes that store one name, both would be told that theirs is there",
            "use a server that keeps to it: AWS, and the present versions of MinIO, Ceph and SeaweedFS",
        )

    def put(self, data: bytes | Path) -> str:
        if isinstance(data, bytes):
            key = hashlib.sha256(data).hexdigest()
            self._keep(key, len(data), lambda: _slices(data))
            return key
        if not data.is_file():
            raise NotFound(f"there is no file {data}", "give the path of a file")
        try:
            sha, size = hashlib.sha256(), 0
            for chunk in chunks(data):
                sha.update(chunk)
                size += len(chunk)
            self._keep(sha.hexdigest(), size, lambda: _unchanged(sha.hexdigest(), data))
        except OSError as error:
            raise PalanError(f"{data} cannot be read: {error.strerror}", f"chmod u+r {data}") from error
        return sha.hexdigest()

    def _keep(self, key: str, size: int, read: Callable[[], Iterable[bytes]]) -> None:
        """Store what `read` yields, once."""
        if size <= PART:
            data = b"".join(read())
            if not self._create(key, data) and not self._is_put(key):
                with self._explained():
                    obstore.put(self._store, key, data, use_multipart=False)
        elif not self._is_put(key):
            # An upload in parts takes no condition. Nor need it one: whoever else stores this name stores the same bytes.
            with self._explained():
                obstore.put(self._store, key, iter(read()), chunk_size=max(PART, size // MOST_PARTS), max_concurrency=AT_ONCE)

    def _is_put(self, key: str) -> bool:
        """Tell whether the object is there, whole, and so young that it counts as put now; else it is written again."""
        return self.touch(key) and is_sound(self, key)

    def _head(self, name: str) -> tuple[datetime, int] | None:
        """Return when an object was written, by the server's clock, and its size; None if there is none."""
        try:
            with self._explained(name):
                found = obstore.head(self._store, name)
        except NotFound:
            return None
        return found["last_modified"], found["size"]

    def touch(self, key: str) -> bool:
        found = self._head(self._name(key))
        return found is not None and found[0] > utcnow() - YOUNG

    def unused(self, before: datetime) -> Iterator[tuple[str, int]]:
        with self._explained():
            for page in obstore.list(self._store):
                yield from ((each["path"], each["size"]) for each in page if is_digest(each["path"]) and each["last_modified"] < before - YOUNG)

    def remove(self, key: str, before: datetime) -> int | None:
        """Put a blob aside. No server removes an object on the condition that nobody wrote it since: who reads one that was
        written in between is given what was put aside, until `settle` brings it back or removes it."""
        found = self._head(self._name(key))
        if found is None or found[0] >= before - YOUNG or found[1] > MOST_COPIED:
            return None
        with self._explained(key):
            obstore.copy(self._store, key, ASIDE + key)
            obstore.delete(self._store, key)
        return found[1]

    def settle(self, named: Collection[str], before: datetime) -> None:
        with self._explained():
            aside = [(each["path"], each["last_modified"]) for page in obstore.list(self._store, prefix=ASIDE.rstrip("/")) for each in page]
            for path, since in aside:
                key = path.removeprefix(ASIDE)
                if key in named and self._head(key) is None:
                    obstore.copy(self._store, path, key)
                if since < before:  # not sooner: another sweep may be about to remove what is in its place
                    obstore.delete(self._store, path)

    def _bring_back(self, key: str) -> bool:
        """Copy back a blob that was put aside, and is asked for."""
        if self._head(ASIDE + key) is None:
            return False
        with self._explained(key):
            obstore.copy(self._store, ASIDE + key, key)
        return True

    def _create(self, name: str, data: bytes) -> bool:
        """Make the object; False, and nothing is changed, if its name is taken."""
        with self._explained():
            try:
                obstore.put(self._store, name, data, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def get(self, key: str, into: Path | None = None) -> bytes:
        return self._found(key, lambda: self._get(key, into))

    def _get(self, key: str, into: Path | None) -> bytes:
        with self._explained(key):
            if into is None:
                return b"".join(proven(key, [bytes(obstore.get(self._store, self._name(key)).bytes())], self._place(key)))
            try:
                lay_out(self._read(key), into)
            except OSError as error:
                if error.errno is None:
                    raise
                raise PalanError(f"{error.filename or into} cannot be laid out: {error.strerror}", f"check its space and rights: df {into.parent}") from error
            return b""

    def _read(self, key: str) -> Iterator[bytes]:
        return proven(key, obstore.get(self._store, self._name(key)).stream(min_chunk_size=CHUNK), self._place(key))

    def has(self, key: str) -> bool:
        return self._head(self._name(key)) is not None or self._bring_back(key)

    def names(self) -> Iterator[str]:
        with self._explained():
            for page in obstore.list(self._store):
                yield from (each["path"] for each in page if is_digest(each["path"]))

    def verify(self, key: str) -> int:
        return self._found(key, lambda: self._verify(key))

    def _verify(self, key: str) -> int:
        with self._explained(key):
            return sum(len(chunk) for chunk in self._read(key))

    def _found(self, key: str, read: Callable[[], T]) -> T:
        """Read a blob; once more if it was put aside, and is back now."""
        try:
            return read()
        except NotFound:
            if not is_digest(key) or not self._bring_back(key):
                raise
            return read()

    def _name(self, key: str) -> str:
        if not is_digest(key):
            raise NotFound(f"{key!r} is not the name of a blob", "a blob is named by its SHA-256 in hex")
        return key

    def _place(self, key: str) -> str:
        return f"{self.address}/{key}"

    @contextmanager
    def _explained(self, key: str = "") -> Iterator[None]:
        """Turn what the library says into what is wrong and what to do, without its pages of detail."""
        if self._pid != os.getpid():  # the library's threads are not in a fork: it would wait for them for ever
            raise PalanError("a forked process cannot use the S3 connection of its parent", "start it anew: multiprocessing.get_context('spawn')")
        try:
            yield
        except (BaseError, FileNotFoundError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of a file on this machine
                raise
            raise self._error(error, key) from error

    def _error(self, error: Exception, key: str) -> PalanError:
        text = str(error)
        code = _first(r"<Code>(\w+)</Code>", text) or _first(r"status code: (\d+ [A-Za-z ]+\w)", text)
        if isinstance(error, FileNotFoundError):
            if code == "NoSuchBucket" or not key:
                return PalanError(f'{self._server} has no bucket "{self._bucket}"', "make it, or name another one in palan.toml: [project] blobs")
            return NotFound(f"blob {key[:12]} is not in {self.address}", "restore it from a backup, or from an older version of the object")
        if isinstance(error, PermissionDeniedError | UnauthenticatedError):
            hint = f"let it get, put and list objects of {self._bucket}" if code == "AccessDenied" else f"{_CREDENTIALS} to ones that it knows"
            return PalanError(f"{self._server} refused the credentials ({code})", hint)
        if "/latest/api/token" in text or "/latest/meta-data" in text or "redential" in text:
            return PalanError(f"there are no credentials for {self.address}", _CREDENTIALS)
        if code:
            return PalanError(f"{self._server} did not do it ({code})", "look at the server's own log, and at AWS_REGION; --debug shows its answer")
        return PalanError(f"no S3 server answers at {self._server}", "check AWS_ENDPOINT_URL and the network, then try again; --debug shows more")


def server() -> str:
    """Return where the server is, for people: the library reads the same variables."""
    found = next((os.environ[name] for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT") if os.environ.get(name)), "")
    if not found:
        return "AWS S3"
    if not re.fullmatch(r"https?://[^\s/@?#]+/?", found):
        raise PalanError("AWS_ENDPOINT_URL is no address of a server", "export AWS_ENDPOINT_URL=https://s3.example.com")
    return found.rstrip("/")


def _slices(data: bytes) -> Iterator[bytes]:
    return (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))


def _unchanged(key: str, file: Path) -> Iterator[bytes]:
    """Read the file once more; where it is not what it was, the upload ends without an object."""
    try:
        yield from proven(key, chunks(file), str(file))
    except Corrupt as error:
        raise PalanError(f"{file} was changed while it was stored", "store it once nobody writes it any more") from error


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
