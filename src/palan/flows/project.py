"""An open project: its folder, its file, its store, its clock, and who acts."""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from palan.core import Clock, utcnow
from palan.errors import Corrupt, NotFound, PalanError, nearest
from palan.flows.config import Config, DataConfig, ModelConfig, load
from palan.flows.root import FILE, find_root
from palan.ledger import BROKEN, Entry, Head, link, loose_end
from palan.stores import folder_of, open_store
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
            from palan.flows.registered import known

            raise known(self, name) or NotFound(f'no model "{name}"', f"{nearest(name, self.config.models)}  palan status".strip())
        return self.config.models[name]

    def data(self, name: str) -> DataConfig:
        if name not in self.config.data:
            raise NotFound(f'no data "{name}"', f"{nearest(name, self.config.data)}  palan status".strip())
        return self.config.data[name]

    @property
    def folder(self) -> Path:
        """The store's own folder, where caches and the key may lie."""
        return folder_of(self.config.store, self.root)


def open_project(
    path: Path | str | None = None, *, clock: Clock = utcnow, actor: str = "", tell: Tell = silent
) -> Project:
    """Open the project at `path` (or around the current folder) with its store."""
    root = find_root(path)
    config = load(root / FILE)
    return Project(root, config, open_store(config.store, root, config.blobs), clock, actor or _actor(), tell)


def _actor() -> str:
    try:
        return os.environ.get("PALAN_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        return f"uid-{os.getuid()}"


def record(project: Project, verb: str, subject: str, reason: str = "", **detail: Any) -> Entry:
    """Append to the ledger, durably; inside a transaction, with it.

    Where the ledger does not end as palan left it, an entry that says so goes first: no later entry may heal what was done.
    """
    records = project.store.records
    with records.transaction(durable=True):
        secret = key(project)  # first: with an entry in the ledger none is made any more
        newest = records.find(Entry, order="-seq", limit=1)
        last, head = newest[0] if newest else None, records.get(Head, "ledger")
        fault = loose_end(last, head, sealed=head is None or _bears(head, secret))
        if not fault and last is None and _was_serving(project):
            fault = "the ledger is empty, but decisions were logged"
        if fault:
            project.tell(f"the ledger was changed behind palan's back: {fault}; palan log --verify")
            last = _append(project, last, BROKEN, "ledger", fault, {"seq": head.seq, "digest": head.digest} if head else {})
        entry = _append(project, last, verb, subject, reason, detail)
        records.put(Head("ledger", entry.seq, entry.digest, _seal(secret, entry.seq, entry.digest)))
    return entry


def _was_serving(project: Project) -> bool:
    """Tell whether anything lies in the log but runs, which are tracked before there is anything to tell of in the ledger."""
    return any(each.name != "runs" for each in (project.folder / "blocks").glob("*"))


def _append(project: Project, last: Entry | None, verb: str, subject: str, reason: str, detail: Mapping[str, Any]) -> Entry:
    entry = link(last, time=project.clock(), actor=project.actor, verb=verb, subject=subject, reason=reason, detail=detail)
    if not project.store.records.add(entry):
        raise PalanError("the ledger has two entries with one number", "palan log --verify")
    return entry


def _seal(secret: bytes, seq: int, digest: str) -> str:
    """Return the HMAC-SHA256 that binds the end of the ledger to this project's key."""
    return hmac.new(secret, f"{seq} {digest}".encode(), hashlib.sha256).hexdigest()


def _bears(head: Head, secret: bytes) -> bool:
    return hmac.compare_digest(head.seal.encode(), _seal(secret, head.seq, head.digest).encode())


def is_sealed(project: Project, head: Head) -> bool:
    """Tell whether the note of where the ledger ends was written with this project's key."""
    return _bears(head, key(project))


def key(project: Project) -> bytes:
    """Return the project's signing key, made at first use and readable by its owner alone.

    Raises:
        Corrupt: it is damaged; or it is gone, although the ledger has entries that were sealed with it.
    """
    path = project.folder / "key"
    try:
        # In this order: another process makes the key before its first entry can be seen.
        if not path.exists() and (not project.store.records.find(Entry, limit=1) or path.exists()):
            _make_key(path)
        found = path.read_bytes()
    except FileNotFoundError as error:
        raise Corrupt(
            f"the key {path} is gone: ledger and versions are signed with it",
            f"restore it from a backup; without one, begin anew and build again: (umask 077; head -c {KEY_BYTES} /dev/urandom > {path})",
        ) from error
    except OSError as error:
        raise PalanError(f"the key {path} cannot be read or made: {error.strerror}", f"chmod u+rwx {path.parent} && chmod u+r {path}") from error
    if len(found) != KEY_BYTES:
        raise Corrupt(
            f"{path} is damaged: {KEY_BYTES} bytes were written, {len(found)} are there",
            "restore it from a backup; versions and ledger are signed with it",
        )
    return found


def _make_key(path: Path) -> None:
    import secrets

    from palan.stores.files import sync_folder

    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(f".key-{secrets.token_hex(8)}.tmp")
    try:
        with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first: its key is the one
            os.link(temp, path)  # whole or not at all, and never over a key that is there
        sync_folder(path.parent)  # what is signed with it may be on the disk before its name is
    finally:
        temp.unlink(missing_ok=True)
