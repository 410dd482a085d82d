"""Every SQL statement that palan runs, by name. Identifiers come from the nouns' own fields; values are always bound."""

from __future__ import annotations

import re
import types
import typing
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from palan.core import stamp, unstamp
from palan.errors import Corrupt, PalanError
from palan.stores.contract import Records

if TYPE_CHECKING:
    from palan.runs.search import Condition, Order

T = TypeVar("T")

TAKE_LEASE = """
insert into lease (name, holder, token, expires) values (:name, :holder, 1, :expires)
on conflict (name) do update set
  token = case when lease.holder = :holder then lease.token else lease.token + 1 end,
  holder = :holder,
  expires = :expires
where lease.holder = :holder or lease.expires <= :now
returning token
"""
HELD = "select 1 from lease where name = ? and holder = ? and token = ?"
FREE_LEASE = "update lease set holder = '', expires = '' where name = :name and token = :token"

# What only PostgreSQL is told. Several projects may share a database, each with a schema of its own: hence its name in the lock.

SESSION = """
set synchronous_commit = on; set client_encoding = 'utf8'; set default_transaction_isolation = 'read committed';
set idle_in_transaction_session_timeout = '20s'; set standard_conforming_strings = on
"""
LOCK_TIMEOUT = "select set_config('lock_timeout', :wait, false)"
SERVER = "select current_setting('server_encoding'), current_schema()"
# Not to_regclass: while its transaction lasts, that goes on saying what it said before another process had made the table.
IS_MIGRATED = "select exists (select from pg_tables where schemaname = current_schema() and tablename = 'palan_migration')"
BEGIN_ALONE = "begin; select pg_advisory_xact_lock(hashtext('palan ' || current_schema()), 0)"
BEGIN_BESIDE = "begin; select pg_advisory_xact_lock_shared(hashtext('palan ' || current_schema()), 0)"
BEGIN_SNAPSHOT = "begin isolation level repeatable read read only; set local idle_in_transaction_session_timeout = 0"
COMMIT = "commit"
ROLLBACK = "rollback"
MIGRATIONS = "create table palan_migration (number integer primary key, time timestamptz not null default now())"
NEWEST_MIGRATION = "select coalesce(max(number), 0) from palan_migration"
MIGRATED = "insert into palan_migration (number) values (:number)"
TABLES = "select table_name from information_schema.tables where table_schema = current_schema() and table_type = 'BASE TABLE' and table_name <> 'block' order by 1"
INDEXES = "select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid where c.relnamespace = current_schema()::regnamespace and not i.indisvalid"

NEW_WRITER = "insert into writer default values returning id"
LOCK_WRITER = "select pg_try_advisory_lock(hashtext('palan ' || current_schema()), :writer::int)"
FREE_WRITER = "select pg_advisory_unlock_all()"
# A server that was restarted has forgotten who writes: for a moment, what was opened before is taken to be written still.
WRITERS = """
select w.id, w.opened < pg_postmaster_start_time() and pg_postmaster_start_time() > now() - interval '10 s' or exists (
  select from pg_locks l where l.locktype = 'advisory' and l.granted and l.objsubid = 2 and l.objid::bigint = w.id
  and l.classid::bigint = (hashtext('palan ' || current_schema())::bigint & 4294967295)
  and l.database = (select oid from pg_database where datname = current_database())
) from writer w where exists (select from segment s where s.writer = w.id and s.stream = :stream and not s.sealed)
"""
OPEN_SEGMENT = "insert into segment (writer, stream) values (:writer, :stream) returning id"
APPEND = """
with grown as (
  update segment set size = :ends where id = :id and size = :begins and not sealed returning id
)
insert into block (segment, begins, ends, frames) select id, :begins::bigint, :ends::bigint, :frames::bytea from grown
"""
SEGMENT_SIZE = "select size from segment where id = :id"
SEGMENTS = "select writer, id, size, blob from segment where stream = :stream and size > 0 order by id"
SEGMENT = "select size, blob from segment where id = :id"
STREAMS = "select distinct stream from segment where size > 0 order by stream"
ALL_SEGMENTS = "select stream, writer, id, size, blob from segment where size > 0 order by stream, id"
SHIPPED = "select distinct blob from segment where blob <> '' order by blob"
BLOCKS = """
select begins, ends, frames from block where segment = :id and ends > :after and begins < :after + :window order by ends
"""
SHORT_SEGMENTS = """
select s.stream, s.writer, s.id, s.size, coalesce(sum(octet_length(b.frames)), 0)::bigint from segment s left join block b on b.segment = s.id where s.blob = ''
group by s.id having coalesce(sum(octet_length(b.frames)), 0) <> s.size order by s.stream, s.id
"""
CLOSED_SEGMENTS = """
select writer, id, size from segment where stream = :stream and not sealed
and pg_try_advisory_xact_lock(hashtext('palan ' || current_schema()), writer) order by id for update skip locked
"""
CLEAR_BLOCKS = "delete from block where segment = :id"
COPY_BLOCKS = "copy block (segment, begins, ends, frames) from stdin (format binary)"
GROW = "update segment set size = :ends where id = :id and size = :begins and not sealed"
SHIP_SEGMENT = "update segment set sealed = true, blob = :blob where id = :id"
SEAL_SEGMENT = "update segment set sealed = true where id = :id"
DROP_SEGMENT = "delete from segment where id = :id"


def migrations() -> dict[int, Path]:
    return {int(file.stem): file for file in Path(__file__).with_name("migrations").glob("????.sql")}


_TYPES = {"text": 'text collate "C"', "integer": "bigint", "real": "double precision", "blob": "bytea"}
"""What PostgreSQL calls the types of a shared migration: text in the order of its bytes, numbers of 64 bits."""


def script(migration: Path, database: str) -> str:
    """Return the statements of a migration: those that both databases share, then those of this one alone."""
    shared, own = migration.read_text(encoding="utf-8"), migration.with_suffix(f".{database}.sql")
    if database == "postgres":  # a type is what stands after the name of a column
        shared = re.sub(r"(?<=\w )(text|integer|real|blob)\b", lambda found: _TYPES[found[0]], shared).replace(") without rowid;", ");")
    return shared + (own.read_text(encoding="utf-8") if own.exists() else "")


@cache
def bound(statement: str) -> bytes:
    """Return a statement with the placeholders that psycopg binds, in the place of `?` and `:name`."""
    marks = re.sub(r"\?|(?<!:):(\w+)", lambda found: f"%({found[1]})s" if found[1] else "%s", statement.replace("%", "%%"))
    return marks.encode()

Encode = Callable[[Any], Any]


class Table(msgspec.Struct, frozen=True):
    """How one noun lies in its table: the statements, and a codec per column."""

    name: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    nullable: frozenset[str]
    encoders: tuple[Encode, ...]
    encoded: tuple[int, ...]  # the places of columns that are not kept as they are
    rows: types.GenericAlias | None  # a list of the noun, where it is laid out as its rows are
    sound: set[tuple[type, ...]]  # the types of the columns of rows that were read without fault
    decoders: tuple[Encode, ...]
    insert: str
    replace: str
    insert_new: str
    insert_held: str
    swap: str
    delete: str
    select: str

    def row(self, noun: Any) -> Sequence[Any]:
        row = msgspec.structs.astuple(noun)
        if not self.encoded:
            return row
        encoded = list(row)
        for place in self.encoded:
            encoded[place] = self.encoders[place](row[place])
        return encoded

    @property
    def key(self) -> str:
        return self.keys[0]

    def bind(self, column: str, value: object) -> Any:
        return self.encoders[self.columns.index(column)](value) if column in self.columns else value


def _same(value: Any) -> Any:
    return value


def _only(*kinds: type) -> Encode:
    """Return what lets a value of these kinds through: a column of SQLite may hold any."""

    def decode(value: Any) -> Any:
        if type(value) not in kinds:
            raise TypeError(f"{value!r:.40} is not {' or '.join(kind.__name__ for kind in kinds)}")
        return value

    return decode


def _codec(hint: Any) -> tuple[Encode, Encode]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    plain = {part for part in (typing.get_args(hint) if union else (hint,)) if part is not type(None)}
    if any(typing.get_origin(part) is typing.Annotated and datetime in typing.get_args(part) for part in plain):  # a time that is read as its text
        return (lambda v: stamp(v) if isinstance(v, datetime) else v), _same
    if plain == {datetime}:
        return (lambda v: None if v is None else stamp(v)), (lambda v: None if v is None else unstamp(v))
    if plain == {bool}:
        return (lambda v: None if v is None else int(v)), (lambda v: None if v is None else bool(v))
    if plain <= {str, int, float, bytes}:
        return _same, _only(*plain, *([type(None)] if union else []))
    if typing.get_origin(hint) is typing.Literal:
        return _same, _same
    encoder, decoder = msgspec.json.Encoder(), msgspec.json.Decoder(hint)

    def encode(value: Any) -> str:
        text = encoder.encode(value)
        decoder.decode(text)  # what could not be read back (a NaN among numbers) is refused now, not for ever after
        return text.decode()

    return encode, decoder.decode


def table(noun: type) -> Table:
    """Return the table of a noun, worked out once."""
    return _table(noun)


@cache
def _table(noun: Any) -> Table:
    """Return the table of a noun: its class name in snake case, its first field the key, or the fields that its `KEY` names."""
    fields = msgspec.structs.fields(noun)
    columns = tuple(field.name for field in fields)
    codecs = [_codec(field.type) for field in fields]
    name = getattr(noun, "TABLE", re.sub(r"(?<!^)([A-Z])", r"_\1", noun.__name__).lower())
    keys = getattr(noun, "KEY", columns[:1])
    marks = ", ".join("?" * len(columns))
    insert = " ".join(["insert into", name, "(", ", ".join(columns), ") values (", marks, ")"])
    update = ", ".join(f"{column} = excluded.{column}" for column in columns if column not in keys)
    assign = ", ".join(f"{column} = ?" for column in columns)
    return Table(
        name=name,
        keys=keys,
        columns=columns,
        nullable=frozenset(field.name for field in fields if type(None) in typing.get_args(field.type)),
        encoders=tuple(encode for encode, _ in codecs),
        sound=set(),
        encoded=tuple(place for place, (encode, decode) in enumerate(codecs) if encode is not _same and decode is not _same),
        rows=types.GenericAlias(list, (noun,)) if noun.__struct_config__.array_like and all(encode is _same for encode, _ in codecs) else None,
        decoders=tuple(decode for _, decode in codecs),
        insert=insert,
        replace=" ".join([insert, "on conflict (", ", ".join(keys), ") do update set", update]),
        insert_new=" ".join([insert, "on conflict do nothing"]),
        insert_held=" ".join(["insert into", name, "(", ", ".join(columns), ") select", marks, "from (", HELD, "{lock} ) held where true on conflict do nothing"]),
        swap=" ".join(["update", name, "set", assign, "where", keys[0], "= ? and epoch = ?"]),
        delete=" ".join(["delete from", name, "where", " and ".join(f"{key} = ?" for key in keys)]),
        select=" ".join(["select", ", ".join(columns), "from", name]),
    )


def find(
    of: Table,
    where: Mapping[str, object],
    order: str,
    limit: int | None,
    since: datetime | None,
    until: datetime | None,
) -> tuple[str, list[Any]]:
    """Return the statement and its values for `Records.find`."""
    clauses, values = _equal(of, where)
    for test, bound in ((">=", since), ("<", until)):
        if bound is not None:
            clauses.append(f"time {test} ?")
            values.append(stamp(bound))
    by = order.lstrip("-") or of.key
    if by not in of.columns:
        raise TypeError(f"{of.name} has no field {by}")
    direction = " desc" if order.startswith("-") else ""
    # As SQLite does by itself; said only where there can be nulls, because PostgreSQL then uses no index for the order.
    nulls = (" nulls last" if direction else " nulls first") if by in of.nullable else ""
    ordered = [f"{by}{direction}{nulls}", *(f"{name}{direction}" for name in of.keys if name != by)]
    parts = [of.select]
    if clauses:
        parts += ["where", " and ".join(clauses)]
    parts += ["order by", ", ".join(ordered)]
    if limit is not None:
        parts.append("limit ?")
        values.append(limit)
    return " ".join(parts), values


def texts(of: Table, field: str, where: Mapping[str, object], packed: str) -> tuple[str, list[Any]]:
    """Return the statement and its values for `Records.texts`; `packed` makes one JSON object of two columns."""
    clauses, values = _equal(of, where)
    by = ", ".join(of.keys[:-1])
    told = packed.format(key=of.keys[-1], field=field)
    return " ".join(["select", by, ",", told, "from", of.name, "where", " and ".join(clauses), "group by", by]), values


def claim(
    of: Table, changes: Mapping[str, object], order: Sequence[str], limit: int, but: Mapping[str, Sequence[str]], where: Mapping[str, object], lock: str
) -> tuple[str, list[Any]]:
    """Return the statement and its values for `Records.claim`; `lock` keeps others from the rows that are chosen."""
    clauses, values = _equal(of, where)
    for column, some in but.items():
        clauses.append(f"{column} not in ({', '.join('?' * len(some))})")
        values += [of.bind(column, each) for each in some]
    ordered = ", ".join(f"{name.lstrip('-')}{' desc' if name.startswith('-') else ''}" for name in order)
    chosen = " ".join(["with chosen as (select", of.key, "from", of.name, "where", " and ".join(clauses), "order by", ordered, "limit ?", lock])
    assign = ", ".join(f"{name} = ?" for name in changes)
    update = " ".join([") update", of.name, "set", assign, "where", of.key, "in (select", of.key, "from chosen) returning", ", ".join(of.columns)])
    return chosen + update, [*values, limit, *(of.bind(name, value) for name, value in changes.items())]


def _equal(of: Table, where: Mapping[str, object]) -> tuple[list[str], list[Any]]:
    """Return the clauses of the fields that have to equal a value, or any of several, and what they are bound to."""
    clauses: list[str] = []
    values: list[Any] = []

    def clause(column: str, test: str, bound: Iterable[Any]) -> None:
        clauses.append(f"{column} {test}")
        values.extend(bound)

    for column, value in where.items():
        if column not in of.columns and column not in of.keys:  # of a key not every part is shown
            raise TypeError(f"{of.name} has no field {column}")
        if value is None:
            clause(column, "is null", [])
        elif value in ([], ()):
            clauses.append("1 = 0")
        elif isinstance(value, list | tuple):
            marks = ", ".join("?" * len(value))
            clause(column, f"in ({marks})", [of.bind(column, each) for each in value])
        else:
            clause(column, "= ?", [of.bind(column, value)])
    return clauses, values


PAGE = 500
"""How many rows a walk holds in memory at a time."""


def page(of: Table, after: Sequence[Any] = ()) -> tuple[str, list[Any]]:
    """Return the statement, and its values, for the rows that follow the one that begins with `after`, in the order of their keys."""
    keys, values = ", ".join(of.keys), list(after[: len(of.keys)])
    where = f"where ({keys}) > ({', '.join('?' * len(values))})" if values else ""
    return f"{of.select} {where} order by {keys} limit {PAGE}", values


def build(noun: type, of: Table, row: Sequence[Any], restore: str = "palan.db") -> Any:
    """Return the noun that a row holds.

    Raises:
        Corrupt: a value is not of the kind that is written there.
    """
    kinds, column = tuple(map(type, row)), of.columns[0]
    try:
        if kinds in of.sound:  # read before: what is kept as it is needs no second look
            values = list(row)
            for place in of.encoded:
                column = of.columns[place]
                values[place] = of.decoders[place](row[place])
            return noun(*values)
        values = []
        for place, value in enumerate(row):
            column = of.columns[place]
            values.append(of.decoders[place](value))
        found = noun(*values)
        of.sound.add(kinds)
        return found
    except (ValueError, TypeError, AttributeError) as error:
        raise Corrupt(f'the {of.name} "{row[0]}" is damaged at {column}: {error}', f"restore {restore} from a backup") from error


_TEXTS = msgspec.json.Decoder(dict[str, str | None])


class SqlRecords(Records):
    """What both databases read in the same way."""

    kept_in = "palan.db"  # what a damaged row is restored from

    packed = "json_group_object({key}, {field})"  # walks along the key, hence in its order
    lock = ""  # what keeps others from rows that are chosen to be changed

    @abstractmethod
    def _read(self, statement: str, values: Sequence[Any]) -> list[Any]:
        """Return the rows that a statement finds."""

    @abstractmethod
    def _write(self, statement: str, values: Any) -> Sequence[Any]:
        """Change rows, and return what the statement returns."""

    def claim(
        self, noun: type[T], changes: Mapping[str, object], *, order: Sequence[str], limit: int, but: Mapping[str, Sequence[str]] | None = None, **where: object
    ) -> list[T]:
        of = table(noun)
        return [build(noun, of, row, self.kept_in) for row in self._write(*claim(of, changes, order, limit, but or {}, where, self.lock))]

    def get(self, noun: type[T], key: str | int) -> T | None:
        where: dict[str, Any] = {table(noun).key: key}
        found = self.find(noun, limit=1, **where)
        return found[0] if found else None

    def find(
        self,
        noun: type[T],
        *,
        order: str = "",
        limit: int | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        **where: object,
    ) -> list[T]:
        of = table(noun)
        statement, values = find(of, where, order, limit, since, until)
        rows = self._read(statement, values)
        if of.rows is not None:
            with suppress(msgspec.ValidationError):  # what is wrong is told below
                return list(msgspec.convert(rows, of.rows))
        return [build(noun, of, row, self.kept_in) for row in rows]

    def texts(self, noun: type, field: str, **where: Any) -> dict[tuple[str, ...], dict[str, str | None]]:
        # One row for many values: a database is asked for rows by far slower than JSON is read.
        of = table(noun)
        try:
            return {tuple(row[:-1]): _TEXTS.decode(row[-1]) for row in self._read(*texts(of, field, where, self.packed))}
        except PalanError:
            self.find(noun, **where)  # a damaged row is told by its key
            raise

    def search(
        self, noun: type[T], where: Condition | None = None, order: Sequence[Order] = (), *, after: Sequence[Any] = (), limit: int
    ) -> list[tuple[T, list[Any]]]:
        from palan.stores.search import searched  # few commands search

        return searched(self._read, noun, where, order, after, limit)

    def walk(self, noun: type[T]) -> Iterator[T | Corrupt]:
        of = table(noun)
        after: tuple[Any, ...] = ()
        while True:
            try:
                rows = self._read(*page(of, after))
            except Corrupt as error:  # pages of the table, and nobody knows which rows were on them
                yield Corrupt(f"{of.name}: {error.what}", error.hint)
                return
            for row in rows:
                try:
                    yield build(noun, of, row, self.kept_in)
                except Corrupt as error:
                    yield error
            if len(rows) < PAGE:
                return
            after = rows[-1]
