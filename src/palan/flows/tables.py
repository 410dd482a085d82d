"""Reading data: a version's rows (merge on read), tables made by a transformation, and what a model learns from."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from palan.core import digest_of, is_whole, utc
from palan.data import contract as contracts
from palan.data.nouns import DataVersion, Repair
from palan.data.sources import SECRET
from palan.errors import NotFound, PalanError, nearest
from palan.flows import packages
from palan.flows.project import Project
from palan.runs.run import Run

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from palan.data.doctor import Hypothesis
    from palan.flows.journal import Journal


_one_at_a_time = threading.RLock()

ROW = "palan_row"

PART_ROWS = 1_000_000
PART_BYTES = 256 << 20
"""What a part holds at most, before it is compressed, and a batch: enough for few parts, little enough for memory."""

RULES = ("columns", "checks", "rules", "severity", "decimal", "dates", "nulls")
"""The part of `[data.NAME]` that rows are judged by."""

JUDGED = "judged by"
"""Where a data version keeps, in its verdict, what palan.toml said of the table when its rows were judged."""

SUSPECT = "suspect"
"""Where a data version keeps what the data doctor suspects, in its verdict."""

LINEAGE = "lineage"
"""Where a table that is made keeps which columns each of its columns comes from, in its verdict."""

ACCEPTED = "accepted"
"""Where a suspicion that somebody took for no fault keeps the reason, in its evidence."""

REPAIRED = "repaired"
"""Where a suspicion whose repair was accepted keeps the reason, in its evidence."""

BUT = "but"
"""Where a suspicion keeps, in its evidence, the parts of its days that came later and of which it was not said again."""

LAID = "laid"
"""Where a data version keeps, in its verdict, what accepted repairs lay over the rows as they came."""


def contract_of(project: Project, name: str) -> contracts.Contract:
    """Return the contract of a table, as palan.toml declares it."""
    return contracts.parse(name, project.data(name).table)


def rules_digest(project: Project, name: str) -> str:
    """Return the digest of the part of `[data.NAME]` that stored rows were judged by: each version keeps it."""
    return digest_of({key: value for key, value in project.data(name).table.items() if key in RULES})


def known(project: Project, contract: contracts.Contract) -> dict[str, pl.Series]:
    """Return what the newest versions of other tables hold in the columns that this one refers to, as `TABLE.COLUMN`.

    Raises:
        PalanError: there is no such table or column, or nothing was ingested into it.
    """
    found: dict[str, pl.Series] = {}
    for each in contract.more:
        if not each.of or each.of in found:
            continue
        table, _, column = each.of.partition(".")
        where = f'column "{each.name}" of data "{contract.name}" is of {each.of}'
        if table not in project.config.data:
            raise PalanError(f'{where}, but there is no data "{table}"', nearest(table, project.config.data) or f"known here: {', '.join(project.config.data)}")
        version = latest(project, table)
        if version is None or not version.parts:
            raise PalanError(f"{where}, but {table} is empty", f"palan {'ingest' if project.data(table).source else 'build'} {table}")
        rows = scan(project, version)
        names = rows.collect_schema().names()
        if column not in names:
            raise PalanError(f'{where}, which has no column "{column}"', nearest(column, names) or f"it has {', '.join(names[:12])}")
        found[each.of] = rows.select(column).unique().collect(engine="streaming").to_series()
    return found


def latest(project: Project, name: str) -> DataVersion | None:
    """Return the newest version of a table, None when nothing was ingested or built."""
    found = project.store.records.find(DataVersion, order="-number", limit=1, data=name)
    return found[0] if found else None


def find_data_version(project: Project, ref: str) -> DataVersion:
    """Return a data version by "weather" (the newest), "weather@3", "weather@2013-04-01" (as it was then: the newest one
    that had been made by the end of that day, or by a time such as 2013-04-01T12:00Z) or "weather@RUN" (what a run had).

    Raises:
        NotFound: there is no such table or version.
    """
    name, _, which = ref.partition("@")
    project.data(name)
    newest = latest(project, name)
    if newest is None:
        raise NotFound(f'data "{name}" is empty', f"palan ingest {name}")
    if not which:
        return newest
    find = project.store.records.find
    if is_whole(which):
        found = find(DataVersion, data=name, number=int(which) if len(which) < 19 else -1)
    elif moment := _moment(which):
        found = [each for each in find(DataVersion, order="-number", data=name) if each.time <= moment][:1]
    else:
        runs = [run for run in find(Run, id=which) if name in run.data]
        found = find(DataVersion, data=name, number=runs[0].data[name]) if runs else find(DataVersion, order="-number", limit=1, data=name, run=which)
    if not found:
        known = [each.ref for each in find(DataVersion, order="-number", limit=5, data=name)]
        raise NotFound(f"there is no {ref}", f"known: {', '.join(known)}")
    return found[0]


def _moment(text: str) -> datetime | None:
    """Return a time, or the end of a day, in UTC where nothing else is said; None of a text that is neither."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    whole_day = re.fullmatch(r"\d{4}-?(\d\d-?\d\d|W\d\d-?\d?)", text) is not None
    return utc(found.replace(tzinfo=found.tzinfo or UTC)) + (timedelta(days=1, microseconds=-1) if whole_day else timedelta())


def read(project: Project, version: DataVersion) -> pl.DataFrame:
    """Return a version's rows; of rows with one key the one that was delivered last."""
    return scan(project, version).collect()


def scan(project: Project, version: DataVersion) -> pl.LazyFrame:
    """Return a version's rows, of which only what is asked for will be read."""
    import polars as pl

    contract = contract_of(project, version.data)
    if not version.parts:
        return pl.LazyFrame({field.name: [] for field in contract.columns})
    rows = scan_parts(project, version.parts, version.masks or {}, contract)
    if version.masks is None and len(version.parts) > 1:
        names = rows.collect_schema().names()
        key = [name for name in version.verdict.get("key", contract.key) if name in names]
        return rows.unique(subset=key, keep="last", maintain_order=True) if key else rows
    return rows


def scan_parts(project: Project, parts: Sequence[str], masks: Mapping[str, Sequence[str]], contract: contracts.Contract) -> pl.LazyFrame:
    """Return the rows of these parts, one at least, in their order, without those that are masked."""
    import polars as pl

    scans = [unmasked(project, part, masks.get(part, ())) for part in parts]
    schemas = [each.collect_schema() for each in scans]
    if all(each == schemas[0] for each in schemas):
        return scans[0] if len(scans) == 1 else pl.concat(scans)

    from palan.data.verdict import alike_casts  # loads NumPy, which who only looks need not wait for

    casts = alike_casts(schemas, contract)
    alike = [each.with_columns(cast) if cast else each for each, cast in zip(scans, casts, strict=True)]
    return alike[0] if len(alike) == 1 else pl.concat(alike, how="diagonal_relaxed")


def unmasked(project: Project, part: str, masks: Sequence[str], *, numbered: bool = False) -> pl.LazyFrame:
    """Return the rows of a part that count; `numbered`: with their place in it, as `palan_row`."""
    import polars as pl

    rows = scan_frame(project, part, numbered=numbered or bool(masks))
    if masks:
        hidden = pl.Series(mask_of(project, masks), dtype=pl.UInt32)
        rows = rows.filter(~pl.col(ROW).is_in(hidden.implode()))
    return rows if numbered or not masks else rows.drop(ROW)


def mask_of(project: Project, masks: Sequence[str]) -> NDArray[np.uint32]:
    """Return the rows that these masks hide."""
    import numpy as np

    return np.concatenate([np.zeros(0, np.uint32), *(np.frombuffer(project.store.blobs.get(each), "<u4") for each in masks)])


def store_mask(project: Project, rows: NDArray[Any]) -> str:
    """Keep the numbers of rows that are to be hidden."""
    return project.store.blobs.put(rows.astype("<u4").tobytes())


def with_masks(masks: Mapping[str, tuple[str, ...]], more: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Return the masks of a table with one more for some of its parts."""
    return {**masks, **{part: (*masks.get(part, ()), mask) for part, mask in more.items()}}


def overtaken(project: Project, contract: contracts.Contract, parts: Sequence[str], masks: Mapping[str, Sequence[str]], by: Mapping[str, Sequence[str]]) -> dict[str, NDArray[Any]]:
    """Return the rows of these parts that have the key of a row in the parts `by`, given with their own masks; hidden rows apart."""
    import numpy as np
    import polars as pl

    from palan.data.verdict import alike_casts

    key = list(contract.key)
    new = [_ends_of(project, part, contract.key) for part in by]
    met = [part for part in parts if any(_may_meet(_ends_of(project, part, contract.key, most=SMALL), each) for each in new)]
    old = {part: unmasked(project, part, masks.get(part, ()), numbered=True) for part in met}
    schemas = {part: rows.collect_schema() for part, rows in old.items()}
    old = {part: rows for part, rows in old.items() if key and set(key) <= set(schemas[part].names())}
    if not old or not by:
        return {}
    came = scan_parts(project, list(by), by, contract).select(key)
    casts = alike_casts([*(schemas[part] for part in old), came.collect_schema()], msgspec.structs.replace(contract, columns=tuple(contract.field(name) for name in key)))
    within = _between(came, key)
    numbered = [(rows.with_columns(cast).filter(within) if within else rows.with_columns(cast)).select(*key, ROW, pl.lit(number).alias("palan_part")) for number, (rows, cast) in enumerate(zip(old.values(), casts, strict=False))]
    found = pl.concat(numbered).join(came, on=key, how="semi").select("palan_part", ROW).collect(engine="streaming")
    names = list(old)
    return {names[number]: np.sort(rows[ROW].to_numpy()) for (number,), rows in found.partition_by("palan_part", as_dict=True).items()}


SMALL = 1 << 20
"""Bytes of a part whose keys are quickly looked at."""

_Ends = Mapping[str, tuple[str, Any, Any]]

_ENDS: dict[tuple[str, str, tuple[str, ...]], _Ends] = {}
"""Where the keys of a part lie: a part never changes, and among thousands most have nothing to do with a delivery."""


def _ends_of(project: Project, part: str, key: Sequence[str], *, most: int | None = None) -> _Ends:
    """Return of each column of the key its type, its least and its largest value in a part, where it has an order; nothing of
    one that has more bytes than `most` and was not looked at yet."""
    import polars as pl

    known = (str(project.folder), part, tuple(key))
    if known not in _ENDS:
        path = project.store.blobs.path(part) if most is not None else None
        if most is not None and (path is None or path.stat().st_size > most):
            return {}
        rows = scan_frame(project, part)
        kinds = {name: dtype for name, dtype in rows.collect_schema().items() if name in key and (dtype.is_integer() or dtype.is_temporal() or dtype == pl.String)}
        ends = rows.select(*(pl.col(name).min().to_physical().alias(f"{name} least") for name in kinds), *(pl.col(name).max().to_physical().alias(f"{name} most") for name in kinds)).collect() if kinds else pl.DataFrame()
        if len(_ENDS) >= 100_000:
            _ENDS.clear()
        _ENDS[known] = {name: (str(dtype), ends[f"{name} least"].first(), ends[f"{name} most"].first()) for name, dtype in kinds.items()}
    return _ENDS[known]


def _may_meet(one: _Ends, other: _Ends) -> bool:
    """Tell whether two parts may have a key in common."""
    for name in one.keys() & other.keys():
        (kind, least, most), (other_kind, other_least, other_most) = one[name], other[name]
        if kind == other_kind and None not in (least, most, other_least, other_most) and (most < other_least or other_most < least):
            return False
    return True


def _between(rows: pl.LazyFrame, key: Sequence[str]) -> list[pl.Expr]:
    """Return what a row with the key of one of these must hold: what a file says of its smallest and largest keys spares reading it."""
    import polars as pl

    names = [name for name, dtype in rows.select(key).collect_schema().items() if dtype.is_integer() or dtype.is_temporal() or dtype == pl.String]
    ends = rows.select(*(pl.col(name).min().alias(f"{name} least") for name in names), *(pl.col(name).max().alias(f"{name} most") for name in names)).collect()
    return [pl.col(name).is_between(pl.lit(ends[f"{name} least"].first(), ends.schema[f"{name} least"]), pl.lit(ends[f"{name} most"].first(), ends.schema[f"{name} most"])) for name in names]


def told(project: Project, contract: contracts.Contract, parts: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[pl.DataFrame]:
    """Yield what these parts say, with the rows that each hides of itself: of each key what the last of them says."""
    for number, (part, own) in enumerate(parts):
        rows = unmasked(project, part, own, numbered=True)
        gone = overtaken(project, contract, [part], {part: own}, dict(parts[number + 1 :])).get(part)
        if gone is not None:
            import polars as pl

            rows = rows.filter(~pl.col(ROW).is_in(pl.Series(gone).implode()))
        yield rows.drop(ROW).collect()


def masks_of(project: Project, version: DataVersion) -> dict[str, tuple[str, ...]]:
    """Return a version's masks; those of one that has none yet are made from its key."""
    if version.masks is not None:
        return dict(version.masks)
    contract = contract_of(project, version.data)
    contract = msgspec.structs.replace(contract, key=tuple(name for name in version.verdict.get("key", contract.key) if name in contract.names))
    found = ((part, overtaken(project, contract, [part], {}, dict.fromkeys(version.parts[number + 1 :], ())).get(part)) for number, part in enumerate(version.parts))
    return {part: (store_mask(project, rows),) for part, rows in found if rows is not None}


class Writer:
    """Keeps rows as Parquet blobs of about a million rows each: `parts` has the blob and the rows of each. The table has `first` others."""

    def __init__(self, project: Project, first: int = 0) -> None:
        self.project = project
        self.parts: list[tuple[str, int]] = []
        self._first = first
        self._waiting: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame) -> None:
        if rows.height:
            self._waiting.append(rows)
        if sum(each.height for each in self._waiting) >= PART_ROWS or sum(each.estimated_size() for each in self._waiting) >= PART_BYTES:
            self.flush()

    def flush(self) -> None:
        import polars as pl

        if not self._waiting:
            return
        rows = self.kept(pl.concat(self._waiting, how="diagonal_relaxed"))
        self._waiting = []
        self.parts.append((store_frame(self.project, rows, part=self._first + len(self.parts)), rows.height))

    def kept(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows of a part as they are to be kept."""
        return rows

    def masks(self, places: NDArray[np.int64]) -> dict[str, str]:
        """Return masks that hide rows, counted from 0 over all parts."""
        masks: dict[str, str] = {}
        first = 0
        for blob, rows in self.parts:
            here = places[(places >= first) & (places < first + rows)] - first
            masks |= {blob: store_mask(self.project, here)} if len(here) else {}
            first += rows
        return masks


def store_frame(project: Project, frame: pl.DataFrame, *, part: int | None = None) -> str:
    """Keep a table as a Parquet blob and return its digest; `part`: as this one of a table's, so that no two of them are one blob."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", metadata=None if part is None else {"palan.part": str(part)})
    return project.store.blobs.put(buffer.getvalue())


def load_frame(project: Project, blob: str, columns: Sequence[str] = ()) -> pl.DataFrame:
    """Return a table, or of these columns those that it has."""
    import polars as pl

    data = io.BytesIO(project.store.blobs.get(blob))
    known = [name for name in columns if name in pl.read_parquet_schema(data)] if columns else None
    return pl.read_parquet(data, columns=known)


def scan_frame(project: Project, blob: str, *, numbered: bool = False) -> pl.LazyFrame:
    """Return a table of which only what is asked for will be read; `numbered`: with the place of each row, as `palan_row`."""
    import polars as pl

    path = project.store.blobs.path(blob)
    return pl.scan_parquet(path or io.BytesIO(project.store.blobs.get(blob)), row_index_name=ROW if numbered else None)


def add_version(
    project: Project,
    data: str,
    *,
    parts: Sequence[str],
    rows: int,
    added: int,
    run: str,
    sources: Mapping[str, str],
    verdict: Mapping[str, Any],
    masks: Mapping[str, tuple[str, ...]] = {},
) -> DataVersion:
    """Record the next version of a table, or return the newest one if it is the same. To be called in a transaction."""
    newest = latest(project, data)
    same = newest and newest.parts == tuple(parts) and dict(newest.sources) == dict(sources) and dict(newest.masks or {}) == dict(masks)
    if newest and same and newest.verdict.get("contract") == verdict.get("contract"):
        return newest
    number = newest.number + 1 if newest else 1
    version = DataVersion(
        digest_of([data, number, list(parts), dict(sources), dict(masks)]),
        data,
        number,
        project.clock(),
        tuple(parts),
        rows,
        added,
        run,
        dict(sources),
        {JUDGED: {key: value for key, value in project.data(data).table.items() if key in contracts.KEYS and key not in SECRET}, **verdict},
        dict(masks),
    )
    project.store.records.add(version)
    return version


def current(project: Project, name: str, journal: Journal, *, above: tuple[str, ...] = ()) -> DataVersion:
    """Return the newest version of a table; one that is made by a transformation is made now if its inputs changed.

    Raises:
        NotFound: an input was never ingested.
        PalanError: the transformation is not a function of known tables, or what it made breaks its contract.
    """
    config = project.data(name)
    if not config.transform:
        return find_data_version(project, name)
    if name in above:
        circle = " -> ".join([*above[above.index(name) :], name])
        raise PalanError(f"these tables are made of one another: {circle}", "let one of them have a source")
    code = packages.code_of(project, config.transform)
    inputs = _arguments(project, config.transform)
    versions = {each: current(project, each, journal, above=(*above, name)) for each in inputs}
    parts = {
        "code": code.to_dict(),
        "inputs": {each: version.id for each, version in versions.items()},
        "contract": digest_of(config.table),
    }
    with _one_at_a_time:  # of two trials that need the same table one makes it
        made = journal.step(f"transform {name}", parts, lambda: _transform(project, name, versions))
    with project.store.records.transaction():
        journal.fence()
        return add_version(
            project,
            name,
            parts=[made["blob"]],
            rows=made["rows"],
            added=made["rows"],
            run=journal.run.id,
            sources={each: version.ref for each, version in versions.items()},
            verdict=made["verdict"],
        )


def _transform(project: Project, name: str, versions: Mapping[str, DataVersion]) -> dict[str, Any]:
    from palan.data.verdict import verify
    from palan.engines.lanes import Worker
    from palan.engines.worker import TRANSFORMATION

    config = project.data(name)
    folder, _ = packages.stage(project, packages.code_of(project, config.transform))
    with Worker(folder, config.transform, kind=TRANSFORMATION, watched=True) as worker:
        frame, lineage = worker.transform({each: read(project, version) for each, version in versions.items()})
        for path in packages.undeclared(project, worker):
            project.tell(packages.unnoticed(config.transform, path))
    contract = contract_of(project, name)
    checked = verify(frame, contract, known=known(project, contract), now=project.clock())
    if checked.verdict.bad or checked.verdict.stops:
        raise PalanError(
            f'{config.transform} made rows that break the contract of "{name}": {checked.verdict.text}',
            f"put {config.transform} right, or [data.{name}.columns] in palan.toml",
        )
    told = [f"{checked.good.height:,} rows made by {config.transform}", *checked.verdict.warnings]
    project.tell(f"{name}: {'; '.join(told)}")
    verdict = checked.verdict.to_dict() | ({LINEAGE: lineage} if lineage else {})
    return {"blob": store_frame(project, checked.good), "rows": checked.good.height, "verdict": verdict}


def _arguments(project: Project, entry: str) -> list[str]:
    """Return the tables that a transformation reads: the arguments of a function, or the tables that a query names."""
    import ast

    from palan.data.sql import relations

    file, _, name = entry.partition(":")
    if file.endswith(".sql"):
        named = relations(packages.text_of(project, file))
        for table, line in named.items():
            if table not in project.config.data:
                raise PalanError(f'{file} line {line} reads "{table}", which is no data of this project', nearest(table, project.config.data) or "name each table as a [data.NAME]")
        return list(named)
    for node in ast.parse(packages.sources(project.root)[file]).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            names = [each.arg for each in node.args.args]
            for each in names:
                if each not in project.config.data:
                    hint = nearest(each, project.config.data) or "name each argument as a [data.NAME]"
                    raise PalanError(f'{entry} takes "{each}", which is no data of this project', hint)
            return names
    raise PalanError(f"{entry} is not a plain function", f"define {name}(…) with data names as arguments in {file}")


def inputs_of(project: Project, data: str) -> list[str]:
    """Return the tables that a table is made of; of one that is ingested none."""
    transform = project.data(data).transform
    return _arguments(project, transform) if transform else []


def suspicions(project: Project, data: str, *, repairs: Sequence[Repair] = (), accepted: bool = False) -> list[Hypothesis]:
    """Return what the data doctor suspects of a table, or of the tables that it is made of, as they are now.

    A suspicion stands until its rows are delivered again and do not bear it out, or until somebody accepts it or its repair:
    of those only `accepted` tells. `evidence["through"]` is the last day on which it was seen, `repairs` what would put it right. What
    these repairs, such as those of a release, put right is left out.
    """
    if inputs := inputs_of(project, data):
        found = [each for name in inputs for each in suspicions(project, name, repairs=repairs, accepted=accepted)]
        return [each for place, each in enumerate(found) if each not in found[:place]]
    newest = latest(project, data)
    kept = newest.verdict.get(SUSPECT) if newest else None
    if not kept:
        return []
    import msgspec

    from palan.data.doctor import Hypothesis

    right = [(repair.column, repair.since, repair.until) for repair in repairs]
    return [
        each
        for each in msgspec.convert(kept, list[Hypothesis])
        if (accepted or not {ACCEPTED, REPAIRED} & set(each.evidence))
        and not (each.columns and all(any(name == column and since <= each.since and (until is None or (each.until and each.until <= until)) for column, since, until in right) for name in each.columns))
    ]


def repaired(frame: pl.DataFrame, repairs: Sequence[Repair], time: str) -> pl.DataFrame:
    """Return the rows as the release's repairs put them right."""
    if not repairs or not time:
        return frame
    from palan.data.repair import apply

    return apply(frame, repairs, time)


def _not_done(project: Project, version: DataVersion, repairs: Sequence[Repair]) -> Sequence[Repair]:
    """Return a release's repairs without what the rows of the version were put right by already."""
    from palan.data.repair import but_for

    return but_for(repairs, in_force(project, version)) if repairs else repairs


def in_force(project: Project, version: DataVersion) -> list[Repair]:
    """Return the repairs that a version's rows were put right by, or those of the tables that it was made of."""
    if project.data(version.data).transform:
        return [repair for ref in version.sources.values() for repair in in_force(project, find_data_version(project, ref))]
    kept = [each for each in version.verdict.get(SUSPECT, ()) if REPAIRED in each["evidence"]]
    if not kept:
        return []
    from palan.data.doctor import Hypothesis
    from palan.flows.examine import while_seen

    return [repair for each in msgspec.convert(kept, list[Hypothesis]) for repair in while_seen(each)]


def training(
    project: Project,
    model: str,
    version: DataVersion,
    *,
    repairs: Sequence[Repair] = (),
    since: datetime | None = None,
    until: datetime | None = None,
) -> pl.DataFrame:
    """Return the rows that a model may learn from: ingested ones and answered ones whose outcome is known.

    `since` (inclusive) and `until` (exclusive) bound the event time of both.
    """
    import polars as pl

    time = contract_of(project, version.data).time
    with _one_at_a_time:
        frame = _learnable(project, model, version, repairs)
    if time and since is not None:
        frame = frame.filter(pl.col(time) >= since)
    if time and until is not None:
        frame = frame.filter(pl.col(time) < until)
    return frame


_last: dict[str, tuple[str, Any]] = {}
"""The rows that each model could learn from when it last learnt: trials differ in their bounds only."""


def _learnable(project: Project, model: str, version: DataVersion, repairs: Sequence[Repair]) -> pl.DataFrame:
    """Return all rows of a data version, and the answered ones that it does not hold yet, put right by the repairs."""
    import polars as pl

    from palan.flows import history

    config = project.model(model)
    told = len(history.outcomes(project, model))
    about = [config.outcome, config.key, config.inputs, project.data(version.data).table]
    name, state = f"{project.root} {model}", digest_of([version.id, told, repairs, about])
    known = _last.get(name)  # read once: another trial may put its own rows there meanwhile
    if known is not None and known[0] == state:
        return known[1]  # type: ignore[no-any-return]
    contract = contract_of(project, version.data)
    time, key = contract.time, config.key
    frame = read(project, version)
    if config.outcome:
        frame = frame.filter(pl.col(config.outcome).is_not_null())
    newest: Any = frame[time].max() if time and frame.height else None
    logged = history.learnable(project, model, since=newest) if time and config.outcome and key else None
    if logged is not None and logged.height:
        names = {key: "palan_key", time: "palan_time", config.outcome: "palan_outcome", **{name: name for name in config.inputs}}
        typed = logged.select(
            (pl.col(logged_as) if logged_as in logged.columns else pl.lit(None)).cast(frame.schema[name], strict=False).alias(name)
            for name, logged_as in names.items()
            if name in frame.columns
        )
        # Rows that were answered before callers sent an input hold no value of it: nothing can be learnt from them.
        typed = typed.drop_nulls([name for name in config.inputs if name in typed.columns and not contract.field(name).nullable])
        answered = repaired(typed.join(frame.select(key), on=key, how="anti"), repairs, time)
        frame = pl.concat([repaired(frame, _not_done(project, version, repairs), time), answered], how="diagonal_relaxed")
    else:
        frame = repaired(frame, _not_done(project, version, repairs), time)
    _last[name] = (state, frame)
    return frame
