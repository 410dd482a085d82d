"""Where things are kept: one address opens records, blocks and blobs."""

from __future__ import annotations

import re
from pathlib import Path

from palan.errors import Corrupt, PalanError
from palan.stores.contract import Blobs, Store

BUCKET = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])((?:/[A-Za-z0-9_.-]+)*)")
"""The address of a bucket, and of a prefix in it."""

DATABASES = ("postgresql://", "postgres://")


def folder_of(address: str, root: Path) -> Path:
    """Return the folder where key and caches lie, and whatever else of the store is not kept elsewhere."""
    return root / (".palan" if "://" in address else address)


def shown(address: str) -> str:
    """Return the address as it may be shown to anybody."""
    password = password_in(address)
    return address.replace(password, "***") if password else address


def password_in(address: str) -> str:
    """Return the password that stands in an address, as it is written there."""
    from urllib.parse import urlsplit  # only an address with a password needs it

    if "://" not in address:
        return ""
    try:
        parts = urlsplit(address)
        named = [value for key, _, value in (each.partition("=") for each in parts.query.split("&")) if key == "password"]
        return parts.password or (named[0] if named else "")
    except ValueError:  # no address that can be read: then nothing of it is shown
        return address.partition("://")[2]


def open_store(address: str, root: Path, blobs: str = "") -> Store:
    """Open the store at `address`: a folder, relative to the project's `root`, or a database: `postgresql://user@host/database`.

    `blobs` may lie elsewhere: `s3://bucket/prefix`.

    Raises:
        PalanError: the folder cannot be opened, or the address is of a kind that this palan does not know.
        Corrupt: the records are gone, but what they belong to is there. A new ledger must not begin over it.
    """
    folder = folder_of(address, root)
    if address.startswith(DATABASES):
        return _on_postgres(address, folder, blobs)
    if "://" in address:
        raise PalanError(f'the store "{shown(address)}" is of an unknown kind', 'in palan.toml: [project] store = ".palan", or "postgresql://user@host/database"')
    from palan.stores.segments import SegmentBlocks
    from palan.stores.sqlite import SQLiteRecords

    records = folder / "palan.db"
    left = [name for name in ("key", "blobs", "blocks") if (folder / name).exists()] if _is_missing(records) else []
    if left:
        raise Corrupt(f"{records} is gone, with the ledger, but {' and '.join(left)} are there", f"restore it from a backup; or, to begin anew: mv {folder} {folder}.old")
    return Store(SQLiteRecords(records), SegmentBlocks(folder / "blocks"), _blobs(blobs, folder))


def _on_postgres(address: str, folder: Path, blobs: str) -> Store:
    from palan.stores.postgres import PostgresBlocks, PostgresRecords, Server

    left = any((folder / name).exists() for name in ("key", "blobs", "palan.db"))
    server = Server(address, may_begin=not left)
    kept = _blobs(blobs, folder)
    return Store(PostgresRecords(server), PostgresBlocks(server, kept if blobs else None), kept)


def _blobs(address: str, folder: Path) -> Blobs:
    if address:
        from palan.stores.s3 import S3Blobs

        return S3Blobs(address)
    from palan.stores.files import FileBlobs

    return FileBlobs(folder / "blobs")


def _is_missing(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True
    except OSError:  # it may be there: whoever opens it says what is wrong
        return False
