"""Files in buckets of S3, Google Cloud Storage and Azure (extra `s3`): what lies there, and each had whole or not at all.

Where the server is and who asks is told by the usual variables of each: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and so on,
GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT_NAME. No secret stands in palan.toml.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from palan.data.sources import Source
from palan.errors import MissingExtra, NotFound, PalanError
from palan.flows.fetch import LOOK_EVERY, room

try:
    import obstore
    from obstore import exceptions
    from obstore.store import from_url
except ImportError as error:
    raise MissingExtra("obstore", "s3", "a source in a bucket") from error

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import ObjectStore

LISTED = 1000
"""Objects that are listed at a time."""
CHUNK = 4 << 20
TRIES = 4
"""How often an object is asked for when no more of it came."""
PAUSE = 0.5

_PATTERN = re.compile(r"\*\*/|\*\*|\*|\?|\[[^\]/]+\]")
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_REFUSED = ("AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId", "ExpiredToken", "InvalidToken", "AuthenticationFailed", "AuthorizationFailure")
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the file of a service account",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}


class Remote(msgspec.Struct, frozen=True):
    """An object as a listing tells of it: `changed` in nanoseconds since 1970, and `etag`, what its server calls this state of it."""

    name: str
    key: str
    size: int
    changed: int
    etag: str


def listed(source: Source, data: str) -> list[Remote]:
    """Return the objects that the pattern of a source matches, by name.

    Raises:
        PalanError: the bucket cannot be listed, or a name in it cannot be printed.
    """
    place, pattern = _parts(source)
    plain = _PATTERN.split(pattern, maxsplit=1)[0]
    found: list[Remote] = []
    with _explained(source, data):
        store = _store(place)
        if plain == pattern:
            try:
                return [_remote(place, obstore.head(store, pattern))]
            except FileNotFoundError:
                return []
        wanted = _regex(pattern)
        for page in obstore.list(store, plain.rpartition("/")[0] or None, chunk_size=LISTED):
            found += [_remote(place, each) for each in page if wanted.fullmatch(each["path"]) and not each["path"].rpartition("/")[2].startswith(".")]
    return sorted(found, key=lambda each: each.name)


def download(source: Source, remote: Remote, to: Path, data: str) -> None:
    """Get one object, in the state in which it was listed, into `to`.

    Raises:
        PalanError: it cannot be had, or is another one by now.
    """
    place, _ = _parts(source)
    size, had, tries = 0, -1, 0
    with to.open("wb") as file, _explained(source, data, remote.name):
        store = _store(place)
        room(to, remote.size)
        while True:
            options: GetOptions = {"if_match": f'"{remote.etag}"'} if remote.etag else {}
            if size:
                options["range"] = {"offset": size}
            try:
                answer = obstore.get(store, remote.key, options=options)
                if not _is_same(remote, _remote(place, answer.meta)):  # a server may not keep to if_match
                    raise exceptions.PreconditionError("replaced")
                looked = size
                for chunk in answer.stream(min_chunk_size=CHUNK):
                    file.write(chunk)
                    size += len(chunk)
                    if size > looked + LOOK_EVERY:
                        looked = size
                        room(to, 0)
                if size != remote.size:
                    raise exceptions.GenericError("cut off")
                file.flush()
                os.fsync(file.fileno())  # under its name it will be taken for whole
                return
            except exceptions.GenericError:
                tries = tries + 1 if size == had else 1
                had = size
                if tries == TRIES:
                    raise
                time.sleep(PAUSE * 2**tries)


def _parts(source: Source) -> tuple[str, str]:
    """Return the address of the bucket, and the pattern within it."""
    scheme, _, rest = source.address.partition("://")
    bucket, _, pattern = rest.partition("/")
    return f"{scheme}://{bucket}", pattern


def _store(place: str) -> ObjectStore:
    from palan.stores.s3 import server

    return from_url(
        place,
        client_options={
            "allow_http": place.startswith("s3:") and server().startswith("http://"),
            "connect_timeout": timedelta(seconds=5),
            "read_timeout": timedelta(seconds=30),  # without a byte
            "timeout": timedelta(days=1),  # a large object takes its time
        },
        retry_config={"max_retries": 3, "retry_timeout": timedelta(seconds=20)},
    )


def _remote(place: str, found: obstore.ObjectMeta) -> Remote:
    name = f"{place}/{found['path']}"
    if not name.isprintable():
        raise PalanError(f"the name of {name.encode('unicode_escape').decode()} cannot be printed", "rename the object")
    return Remote(name, found["path"], found["size"], int(found["last_modified"].timestamp()) * 1_000_000_000, (found["e_tag"] or "").strip('"'))


def _is_same(before: Remote, now: Remote) -> bool:
    """Tell whether an object is in the state it was in; by its time only where there is no tag, because clocks round."""
    return (before.size, before.etag) == (now.size, now.etag) and (before.etag != "" or before.changed == now.changed)


def _regex(pattern: str) -> re.Pattern[str]:
    """Return what matches the names that a pattern of files does."""
    told = {"**/": r"(?:[^/]+/)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}
    found, place = "", 0
    for each in _PATTERN.finditer(pattern):
        part = each[0]
        found += re.escape(pattern[place : each.start()]) + (told.get(part) or "[" + re.sub(r"^!", "^", part[1:-1]).replace("\\", r"\\").replace("[", r"\[") + "]")
        place = each.end()
    return re.compile(found + re.escape(pattern[place:]))


@contextmanager
def _explained(source: Source, data: str, name: str = "") -> Iterator[None]:
    """Turn what the library says into what is wrong and what to do, without its pages of detail."""
    try:
        yield
    except (exceptions.BaseError, FileNotFoundError, PermissionError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of a file on this machine
            raise
        raise _error(error, source, data, name) from error


def _error(error: Exception, source: Source, data: str, name: str) -> PalanError:
    text, (place, _) = str(error), _parts(source)
    scheme, _, bucket = place.partition("://")
    found = re.search(r"<Code>(\w+)</Code>", text) or re.search(r"status code: (\d+ [A-Za-z ]+\w)", text)
    code = found[1] if found else ""
    what = name or place
    if isinstance(error, exceptions.PreconditionError):
        return PalanError(f"{what} was replaced while it was fetched", f"palan ingest {data}")
    if isinstance(error, FileNotFoundError) and name and code not in _NO_BUCKET:
        return PalanError(f"{what} went while it was fetched", f"palan ingest {data}")
    if isinstance(error, FileNotFoundError) or code in _NO_BUCKET:
        return NotFound(f'there is no bucket "{bucket}" at {_called(scheme)}', f"check source in [data.{data}]")
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError) or code in _REFUSED:
        return PalanError(f"{what}: {_called(scheme)} refused the credentials{f' ({code})' if code else ''}", f"let them list and get objects of {bucket}; {_CREDENTIALS[scheme]}")
    if re.search(r"/latest/(api/token|meta-data)|redential|metadata\.google|169\.254\.169\.254|[Aa]ccount", text):
        return PalanError(f"{what}: there are no credentials for it", _CREDENTIALS[scheme])
    if code:
        return PalanError(f"{what}: {_called(scheme)} did not answer as it should ({code})", f"palan ingest {data}, later; --debug shows its answer")
    return PalanError(f"{what}: no server answers at {_called(scheme)}, or not to the end", f"check the network{' and AWS_ENDPOINT_URL' if scheme == 's3' else ''}, then: palan ingest {data}; --debug shows more")


def _called(scheme: str) -> str:
    """Return what the server is called, for people."""
    from palan.stores.s3 import server

    return server() if scheme == "s3" else {"gs": "Google Cloud Storage", "az": "Azure"}[scheme]
