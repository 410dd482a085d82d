"""An open project: its folder, its file, its store, its clock, and who acts."""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from palan.core import Clock, utcnow
from palan.errors import Corrupt, NotFound, PalanError, nearest
from palan.flows.config import Config, DataConfig, ModelConfig, load
from palan.flows.root import FILE, find_root
from palan.ledger import Entry, Head, link
from palan.stores import open_store
from palan.stores.contract import Store

KEY_BYTES = 32

Tell = Callable[[str], None]


def silent(_message: str) -> None:
    """Tell nobody."""


class Project(msgspec.Struct):
    """What every verb is given."""

    root: Path
    config: Config
    store: Store
    clock: Clock
    actor: str
    tell: Tell = silent

    def model(self, name: str) -> ModelConfig:
        """Return the model's configuration.

        Raises:
            NotFound: with the nearest name.
        """
        if name not in self.config.models:
            raise NotFound(f'no model "{name}"', f"{nearest(name, self.config.models)}  palan status".strip())
        return self.config.models[name]

    def data(self, name: str) -> DataConfig:
        if name not in self.config.data:
            raise NotFound(f'no data "{name}"', f"{nearest(name, self.config.data)}  palan status".strip())
        return self.config.data[name]

    @property
    def folder(self) -> Path:
        """The store's own folder, where caches and the key may lie."""
        return self.root / self.config.store


def open_project(
    path: Path | str | None = None, *, clock: Clock = utcnow, actor: str = "", tell: Tell = silent
) -> Project:
    """Open the project at `path` (or around the current folder) with its store."""
    root = find_root(path)
    config = load(root / FILE)
    return Project(root, config, open_store(config.store, root), clock, actor or _actor(), tell)


def _actor() -> str:
    try:
        return os.environ.get("PALAN_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        return f"uid-{os.getuid()}"


def record(project: Project, verb: str, subject: str, reason: str = "", **detail: Any) -> Entry:
    """Append to the ledger, durably; inside a transaction, with it."""
    records = project.store.records
    with records.transaction(durable=True):
        last = records.find(Entry, order="-seq", limit=1)
        entry = link(
            last[0] if last else None,
            time=project.clock(),
            actor=project.actor,
            verb=verb,
            subject=subject,
            reason=reason,
            detail=detail,
        )
        if not records.add(entry):
            raise PalanError("the ledger has two entries with one number", "palan log --verify")
        records.put(Head("ledger", entry.seq, entry.digest, head_seal(project, entry.seq, entry.digest)))
    return entry


def head_seal(project: Project, seq: int, digest: str) -> str:
    """Return the HMAC-SHA256 that binds the end of the ledger to this project's key."""
    return hmac.new(key(project), f"{seq} {digest}".encode(), hashlib.sha256).hexdigest()


def key(project: Project) -> bytes:
    """Return the project's signing key, made at first use and readable by its owner alone."""
    path = project.folder / "key"
    if not path.exists():
        _make_key(path)
    found = path.read_bytes()
    if len(found) != KEY_BYTES:
        raise Corrupt(
            f"{path} is damaged: {KEY_BYTES} bytes were written, {len(found)} are there",
            "restore it from a backup; versions and ledger are signed with it",
        )
    return found


def _make_key(path: Path) -> None:
    import secrets

    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".key-{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: its key is the one
            os.link(temp, path)  # whole or not at all, and never over a key that is there
    finally:
        temp.unlink(missing_ok=True)
