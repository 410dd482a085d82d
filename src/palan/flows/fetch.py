"""Deliveries: files that lie in the project or elsewhere, and rows that are asked for. Each is one file on this machine when it is judged."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import replace

from palan.core import digest_of, stamp
from palan.data import sources
from palan.data.contract import Contract
from palan.data.nouns import DataVersion
from palan.data.sources import Mark, Source
from palan.errors import Invalid, NotFound, PalanError, nearest
from palan.flows import deliveries
from palan.flows.deliveries import Seen
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl

    from palan.flows import buckets

SAMPLE = 100_000
"""Rows of a source that are looked at."""

KEPT_FREE = 256 << 20
"""Bytes of the disk that are left free, however much comes."""

LOOK_EVERY = 64 << 20
"""Bytes after which the disk is looked at again."""

FILES = 4
"""Files elsewhere that are looked at, the last ones by name."""


class Delivery(msgspec.Struct, frozen=True):
    """A delivery on this machine. `source` is what it is called, `place` what the version knows it by. Of `rows` that were asked for,
    `since` is where the `cursor` began."""

    source: str
    place: str
    path: Path
    content: str
    looked: Seen | None = None
    cursor: str = ""
    since: Mark | None = None
    rows: bool = False


class Arrival(Protocol):
    """Something that may have been delivered."""

    def come(self, known: Mapping[str, str], seen: dict[str, Seen]) -> Delivery | None:
        """Return the delivery on this machine; None where it was taken in as it is.

        Raises:
            PalanError: it cannot be had.
        """


def source_of(project: Project, name: str) -> Source:
    return sources.parse(name, project.data(name).table)


def arrivals(project: Project, contract: Contract, newest: DataVersion | None) -> Sequence[Arrival]:
    """Return what may have come for a table, in the order in which it is to be taken in.

    Raises:
        PalanError: the place where deliveries lie cannot be looked at, or the cursor does not fit the contract.
    """
    source = source_of(project, contract.name)
    spool = project.folder / "spool" / contract.name
    if source.kind == "files":
        return [_File(project, path, contract.name) for path in files(project, contract.name)]
    if source.kind in ("web", "bucket"):
        found = _elsewhere(source, spool, contract.name)
        if not found and newest is None:
            raise NotFound(f"nothing matches {source.shown}", f"put files there, or change source in [data.{contract.name}]")
        return found
    return [_Rows(project, contract, source, spool, newest)]


def _elsewhere(source: Source, spool: Path, name: str) -> Sequence[Arrival]:
    """Return the files that lie on a web server or in a bucket."""
    if source.kind == "bucket":
        from palan.flows import buckets

        return [_Remote(source, spool, each, name) for each in buckets.listed(source, name)]
    return [_Web(source, spool, name)]


def files(project: Project, name: str) -> list[Path]:
    """Return the files that the source of a table matches.

    Raises:
        PalanError: it is no pattern.
    """
    pattern = project.config.data[name].source
    try:
        return sorted(path for path in project.root.glob(pattern) if not path.name.startswith("."))
    except (NotImplementedError, ValueError) as error:
        raise PalanError(f'source = "{pattern}" of data "{name}" is no pattern within the project', 'source = "feed/*.csv"') from error


def delivers(project: Project, name: str) -> bool:
    """Tell whether there may be something to take in, without asking anybody else."""
    return source_of(project, name).kind != "files" or any(project.root.glob(project.config.data[name].source))


class _File(msgspec.Struct, frozen=True):
    """A file of the project."""

    project: Project
    path: Path
    data: str

    def come(self, known: Mapping[str, str], seen: dict[str, Seen]) -> Delivery | None:
        path, source = self.path, _called(self.project, self.path)
        try:
            now = deliveries.look(path)
            if not path.is_file():
                raise PalanError(f'{source} is not a file, but matches source of data "{self.data}"', "move it, or make the source narrower")
            if source in known and deliveries.unchanged(seen.get(source), now, known[source]):
                return None
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not path.is_symlink():
                return None  # it went while the others were read: what it said before stays
            raise unreadable(source, path, error) from error
        seen[source] = replace(now, content=content)
        return None if known.get(source) == content else Delivery(source, source, path, content, now)


class _Remote(msgspec.Struct, frozen=True):
    """An object of a bucket."""

    source: Source
    spool: Path
    remote: buckets.Remote
    data: str

    def come(self, known: Mapping[str, str], seen: dict[str, Seen]) -> Delivery | None:
        from palan.flows import buckets

        remote = self.remote
        name, before = remote.name, seen.get(remote.name)
        if before is not None and remote.etag and (before.etag, before.size) == (remote.etag, remote.size) and known.get(name) == before.content:
            return None
        path = _place(self.spool, [name, remote.etag, remote.size, remote.changed], _ending(name, self.source.format))
        if not (remote.etag and path.is_file()):  # else a run that was killed had fetched it
            _whole(path, lambda temp: buckets.download(self.source, remote, temp, self.data))
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        seen[name] = Seen(remote.size, remote.changed, time.time_ns(), content, remote.etag)
        return None if known.get(name) == content else Delivery(name, name, path, content)


class _Web(msgspec.Struct, frozen=True):
    """A file on a web server."""

    source: Source
    spool: Path
    data: str

    def come(self, known: Mapping[str, str], seen: dict[str, Seen]) -> Delivery | None:
        from palan.flows import web

        name = self.source.place
        before = seen.get(name)
        path = _place(self.spool, [name], _ending(name, self.source.format))
        taken = before if before is not None and before.content == known.get(name) else None
        found = _whole(path, lambda temp: web.download(self.source, temp, taken, self.data))
        if found is None:
            return None
        seen[name] = found
        return None if known.get(name) == found.content else Delivery(name, name, path, found.content)


class _Rows(msgspec.Struct, frozen=True):
    """Rows that are asked for, from where the cursor has come to."""

    project: Project
    contract: Contract
    source: Source
    spool: Path
    newest: DataVersion | None

    def come(self, known: Mapping[str, str], seen: dict[str, Seen]) -> Delivery | None:
        source, name = self.source, self.contract.name
        since = sources.since(source, _cursor_type(self.contract, source), known.get(source.place, "")) if source.cursor else None
        now = time.time_ns()
        path = _place(self.spool, [source.place], "ndjson" if source.kind == "api" else "parquet")
        self.project.tell(f"{name}: asking {source.shown}{'' if since is None else f' from {sources.mark_text(since)}'}")
        rows = _whole(path, lambda temp: _asked(self.project, self.contract, source, since, temp))
        if source.kind == "api" and not rows:
            return None
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        before, version = seen.get(source.place), self.newest.id if self.newest else ""
        if known.get(source.place) == content or (before is not None and version and (before.content, before.etag) == (content, version)):
            return None  # the same answer, from the same state
        seen[source.place] = Seen(path.stat().st_size, 0, now, content, version)
        return Delivery(f"{source.shown} {stamp(self.project.clock())}", source.place, path, content, cursor=source.cursor, since=since, rows=True)


def sample(project: Project, contract: Contract, source: Source) -> list[pl.DataFrame]:
    """Return rows to look at as they came, a frame for each file, from where the cursor begins: about SAMPLE of them at most.

    Raises:
        PalanError: they cannot be had, or there are none.
    """
    from palan.flows.look import rows_in

    spool = project.folder / "spool" / f"{contract.name} looked at"
    try:
        if source.kind in ("web", "bucket"):
            came = [each.come({}, {}) for each in _elsewhere(source, spool, contract.name)[-FILES:]]
            paths = [each.path for each in came if each is not None]
        else:
            since = sources.since(source, _kind_of(source.start), "") if source.start else None
            paths = [_place(spool, [source.place], "ndjson" if source.kind == "api" else "parquet")]
            if not _whole(paths[0], lambda temp: _asked(project, contract, source, since, temp, most=SAMPLE)):
                paths = []
        frames = [rows_in(path, SAMPLE)[0] for path in paths]
    finally:
        shutil.rmtree(spool, ignore_errors=True)
    if not any(frame.height for frame in frames):
        raise NotFound(f"{source.shown} gives no rows", "look at it again when there are some")
    return frames


def _kind_of(text: str) -> str:
    """Guess the type of a cursor from where it begins."""
    for kind in ("int", "date", "time"):
        with suppress(Invalid):
            sources.mark(text, kind)
            return kind
    return "str"


def _asked(project: Project, contract: Contract, source: Source, since: Mark | None, to: Path, *, most: int | None = None) -> int:
    """Fetch rows into a file, about so many at most, and return how many."""
    if source.kind == "function":
        from palan.engines.lanes import Worker
        from palan.engines.worker import SOURCE

        with Worker(project.root, source.address, kind=SOURCE) as worker:
            return worker.fetch(to, since="" if since is None else sources.mark_text(since), kind=_kind(contract, source), query=_query(project, source), cursor=source.cursor, most=most)
    if source.kind == "api":
        from palan.flows import web

        return web.pages(source, since, to, contract.name, most)
    from palan.engines.spool import Spool

    spool = Spool(to)
    try:
        with closing(_of_database(project, source, since)) as batches:
            for rows in batches:
                spool.add(_told_times(rows, contract))
                if most and spool.rows >= most:
                    break
        return spool.close()
    finally:
        spool.drop()


def _of_database(project: Project, source: Source, since: Mark | None) -> Generator[pl.DataFrame]:
    from palan.engines import queries

    query = _query(project, source)
    if source.kind == "sqlite":
        return queries.sqlite(project.root / source.address, query, source.cursor, since)
    address = sources.environment(source.address, os.environ, "source")
    return queries.postgresql(address, query, source.cursor, since)


def _query(project: Project, source: Source) -> str:
    """Return the SQL of a source: what stands there, or in the file that it names."""
    if not source.query.endswith(".sql"):
        return source.query
    path = project.root / source.query
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        beside = [each.relative_to(project.root).as_posix() for each in project.root.glob("**/*.sql")]
        raise NotFound(f'query = "{source.query}" cannot be read: {getattr(error, "strerror", "") or "it is not UTF-8 text"}', nearest(source.query, beside) or "name a file of the project") from error


def _told_times(rows: pl.DataFrame, contract: Contract) -> pl.DataFrame:
    """Return numbers that are to be times as text, which can be read as seconds since 1970: a database may have no type for it."""
    import polars as pl

    times = [field.name for field in contract.columns if field.type in ("time", "date") and field.name in rows.columns and rows.schema[field.name].is_numeric()]
    return rows.with_columns(pl.col(times).cast(pl.String))


def _kind(contract: Contract, source: Source) -> str:
    """Return the type of the cursor; of a source that is only looked at, as it seems."""
    if not source.cursor:
        return ""
    return _cursor_type(contract, source) if contract.columns else _kind_of(source.start)


def _cursor_type(contract: Contract, source: Source) -> str:
    """Return the type of the cursor.

    Raises:
        Invalid: it is no column of the contract, or may be missing.
    """
    name = contract.name
    if source.cursor not in contract.names:
        raise Invalid(f'cursor = "{source.cursor}" of data "{name}" is none of its columns', nearest(source.cursor, contract.names) or f'{source.cursor} = "time" under [data.{name}.columns]', field="cursor")
    field = contract.field(source.cursor)
    if field.nullable:
        raise Invalid(f'cursor = "{source.cursor}" of data "{name}" may be missing, and a row without it would never be asked for', f'{source.cursor} = "{field.type}" under [data.{name}.columns]', field="cursor")
    return field.type


def asked_for(batches: Iterator[pl.DataFrame], contract: Contract, came: Delivery) -> Iterator[pl.DataFrame]:
    """Yield what was asked for of rows: a source may give more, which is known."""
    from palan.data.verdict import read_as

    cursor = came.cursor if came.since is not None else ""
    for batch in batches:
        if not cursor:
            yield batch
            continue
        if cursor not in batch.columns and batch.height:
            raise NotFound(f'cursor = "{cursor}" is no column of what came', nearest(cursor, batch.columns) or f"it has {', '.join(batch.columns[:12])}")
        yield batch.filter((read_as(contract.field(cursor).type, batch[cursor]) >= came.since).fill_null(True)) if batch.height else batch


def stored(project: Project, contract: Contract, parts: Sequence[str], masks: Mapping[str, Sequence[str]], came: Delivery) -> Iterator[pl.DataFrame]:
    """Yield the stored rows, those of these parts, from where rows were asked for."""
    import polars as pl

    from palan.flows import tables

    rows = tables.scan_parts(project, parts, masks, contract)
    if came.since is not None:
        rows = rows.filter(pl.col(came.cursor) >= pl.lit(came.since))
    yield from rows.collect_batches(chunk_size=tables.PART_ROWS)


def marked(project: Project, contract: Contract, source: Source, parts: Sequence[str], known: str) -> dict[str, Any]:
    """Return how far the cursor has come with the rows of these parts (`mark`), and how many rows came `late`: from before where it was.

    A time in the future is no mark: rows would be left out until it has come.
    """
    import polars as pl

    from palan.flows import tables

    kind = contract.field(source.cursor).type
    if not parts:
        return {"mark": known, "late": 0}
    column, before = pl.col(source.cursor), sources.mark(known, kind, "the cursor") if known else None
    late = pl.lit(0) if before is None else (column < pl.lit(before)).sum()
    now = project.clock()
    most = {"time": column.clip(upper_bound=pl.lit(now)), "date": column.clip(upper_bound=pl.lit(now.date()))}.get(kind, column).max()
    found, count = tables.scan_parts(project, parts, {}, contract).select(most.alias("most"), late.alias("late")).collect().row(0)
    newest = found if before is None else max(found, before)
    return {"mark": sources.mark_text(newest), "late": int(count)}


def swept(project: Project, name: str) -> None:
    """Leave nothing of what was fetched for a table: it is taken in, or has to be fetched anew."""
    shutil.rmtree(project.folder / "spool" / name, ignore_errors=True)


def _place(spool: Path, what: object, ending: str) -> Path:
    spool.mkdir(parents=True, exist_ok=True)
    return spool / f"{digest_of(what)[:26]}.{ending}"


def _ending(name: str, format: str) -> str:
    return format or ".".join(name.rpartition("/")[2].split(".")[1:][-2:])


def room(to: Path, size: int) -> None:
    """Refuse what would fill the disk.

    Raises:
        OSError: it would.
    """
    free = shutil.disk_usage(to.parent).free
    if size > free - KEPT_FREE:
        raise OSError(28, f"{size >> 20:,} MB do not fit into {free >> 20:,} MB")


def _whole(path: Path, fetch: Any) -> Any:
    """Let a file be fetched, and give it its name when it is there whole."""
    temp = path.with_name(f"{path.stem}.part")
    try:
        found = fetch(temp)
        if temp.is_file():
            temp.replace(path)
        return found
    except OSError as error:
        raise PalanError(f"{path.parent} cannot be written: {error.strerror}", "make room on that disk; nothing was taken in") from error
    finally:
        temp.unlink(missing_ok=True)


def _called(project: Project, path: Path) -> str:
    """Return what a file is called in the records."""
    source = path.relative_to(project.root).as_posix()
    if not source.isprintable():  # a line end in it would forge the next line of a log
        text = os.fsencode(source).decode(errors="backslashreplace")
        shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
        raise PalanError(f"the name of {shown} is not UTF-8 text that can be printed", "rename the file")
    return source


def unreadable(source: str, path: Path, error: OSError) -> PalanError:
    if isinstance(error, FileNotFoundError):
        return PalanError(f"{source} {'is a link to nothing' if path.is_symlink() else 'went while it was read'}", f"ls -l {path}")
    denied = isinstance(error, PermissionError)
    return PalanError(f"{source} cannot be read: {error.strerror}", f"{'chmod u+r' if denied else 'see what it is: ls -l'} {path}")
