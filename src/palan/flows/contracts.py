"""Contracts as a whole: inferred from files, written and read as documents of the Open Data Contract Standard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palan.core import counted
from palan.errors import Conflict, Invalid, MissingExtra, NotFound, PalanError
from palan.flows import fetch, tables
from palan.flows.look import cells_as, column_of, rows_in
from palan.flows.project import Project
from palan.flows.root import FILE

if TYPE_CHECKING:
    import polars as pl

NEWEST = 24
"""Files from which a contract is inferred at most."""

ROWS = 500_000
"""Rows from which a contract is inferred at most."""


def infer(project: Project, name: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the files of a table, or others, hold and much like them would hold: lines for palan.toml, with reasons.

    Several files are batches whose differences say what may differ; of a single one, its pieces are.

    Raises:
        NotFound: no such table, or no file matches.
        PalanError: a file that cannot be read, or holds no rows.
    """
    from palan.data.infer import infer as verb

    config = project.data(name)
    if not files and not config.source:
        raise PalanError(f'data "{name}" is made by {config.transform}, not delivered', f"palan data infer {name} --from FILE")
    source = fetch.source_of(project, name) if config.source else None
    if files or source is None or source.kind == "files":
        pattern = config.source if source else ""
        paths = [Path(each) for each in files] if files else sorted(path for path in project.root.glob(pattern) if path.is_file())
        if not paths:
            raise NotFound(f"nothing matches {pattern} in {project.root}", f"palan data infer {name} --from FILE")
        names, cursor = [str(path) for path in paths[-NEWEST:]], ""
        frames, whole = _newest(project, paths)
    else:
        names, cursor = [source.shown], source.cursor
        frames = fetch.sample(project, tables.contract_of(project, name), source)
        whole = frames[0].height < fetch.SAMPLE
    found = verb(typed(frames), key=config.key, time=config.time, cursor=cursor, whole=whole)
    rows = sum(frame.height for frame in frames)
    return {
        "data": name,
        "files": names,
        "rows": rows,
        "settings": [{"line": line, "why": why} for line, why in found.settings],
        "columns": [{"line": line, "why": why} for line, why in found.columns],
        "toml": found.text(name),
        "text": f"{counted(rows, 'row')} of {counted(len(frames), 'file') if names != [source.shown if source else ''] else names[0]}",
    }


def typed(frames: Sequence[pl.DataFrame]) -> list[pl.DataFrame]:
    """Return frames of cells as they came, each column read as what most of its cells are."""
    import polars as pl

    batches: list[dict[str, pl.Series]] = [{} for _ in frames]
    for column in dict.fromkeys(column for frame in frames for column in frame.columns):
        here = [(batch, frame[column]) for batch, frame in zip(batches, frames, strict=True) if column in frame.columns]
        told = pl.concat([each.cast(pl.String, strict=False) for _, each in here]) if len({each.dtype for _, each in here}) > 1 else pl.concat([each for _, each in here])
        kind = column_of(told).field.type
        for batch, each in here:
            batch[column] = cells_as(kind, each)
    return [pl.DataFrame(batch) for batch in batches]


def add(project: Project, name: str, said: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
    """Look at a source, and write its `[data.NAME]` table at the end of palan.toml.

    Args:
        said: what is known of it: `source`, and `query`, `cursor`, `key`, `time` and so on as palan.toml has them.

    Returns the `lines` that were written, how many `rows` were looked at, and what to do `next`.

    Raises:
        Conflict: palan.toml has such a table.
        PalanError: the source cannot be read as what it is, or has no rows.
    """
    from palan.data import sources
    from palan.data.contract import Contract
    from palan.data.infer import infer as verb
    from palan.flows import config
    from palan.stores.files import write_atomically

    if name in project.config.data:
        raise Conflict(f'palan.toml has [data.{name}] already', f"palan data infer {name}; or choose another name")
    if not config.NAME.fullmatch(name):
        raise Invalid(f'"{name}" is no name of a table', "letters, digits, _ and -", field="name", value=name)
    source = sources.parse(name, said)
    path = project.root / FILE
    text = path.read_text(encoding="utf-8")
    _checked(path, text, _data_lines(name, said))  # what cannot stand there is said before anything is asked for
    if source.kind == "files":
        paths = sorted(each for each in project.root.glob(source.address) if each.is_file() and not each.name.startswith("."))
        if not paths:
            raise NotFound(f"nothing matches {source.address} in {project.root}", f"put files there, then: palan data add {name} ...")
        frames, whole = _newest(project, paths)
    else:
        frames = fetch.sample(project, Contract(name, source=source.address), source)
        whole = frames[0].height < fetch.SAMPLE
    batches = typed(frames)
    times = [column for column, kind in batches[-1].schema.items() if kind.is_temporal()]
    settings = {**said, "time": said.get("time") or "".join(times[:1])}
    found = verb(batches, key=list(said.get("key", ())), time=settings["time"], cursor=source.cursor, whole=whole)
    lines = _data_lines(name, settings) + found.text(name)
    _checked(path, text, lines)
    if not dry_run:
        write_atomically(path, _with(text, lines).encode())
    return {"data": name, "rows": sum(frame.height for frame in frames), "lines": lines, "written": not dry_run, "next": f"palan data add {name} ... without --dry-run" if dry_run else f"palan ingest {name}"}


def _data_lines(name: str, said: Mapping[str, Any]) -> str:
    return "\n".join([f"[data.{name}]", *(f"{key} = {_toml(value)}" for key, value in said.items() if value)]) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(each)}" for key, each in value.items()) + " }"
    return "[" + ", ".join(_toml(each) for each in value) + "]" if isinstance(value, list | tuple) else json.dumps(value, ensure_ascii=False)


def _with(text: str, lines: str) -> str:
    return f"{text.rstrip()}\n\n{lines}" if text.strip() else lines


def _checked(path: Path, text: str, lines: str) -> None:
    """Refuse what palan.toml could not be read with."""
    from palan.flows import config

    config.read(path, _with(text, lines))


def _newest(project: Project, paths: Sequence[Path]) -> tuple[list[pl.DataFrame], bool]:
    """Return the rows of the newest files as they came, NEWEST files and ROWS rows at most, and whether each is there with all its rows."""
    frames: list[pl.DataFrame] = []
    whole = True
    for path in reversed(paths[-NEWEST:]):
        left = ROWS - sum(frame.height for frame in frames)
        if left <= 0:
            break
        try:
            frame, all_of_it = rows_in(path if path.is_absolute() else project.root / path, left)
        except PalanError as error:
            raise PalanError(f"{path}{'' if error.what.startswith('cannot be read') else ':'} {error.what}", error.hint) from error
        if not all_of_it and frames:
            break
        frames.insert(0, frame)
        whole = whole and all_of_it
    return frames, whole


def export(project: Project, name: str, path: Path) -> dict[str, Any]:
    """Write the contract of a table as an ODCS document.

    Raises:
        NotFound: no such table.
        Conflict: the file is there already.
        PalanError: the table has no columns, or the document would not be one of the standard.
    """
    yaml = _yaml()
    from palan.data.odcs import to_odcs

    contract = tables.contract_of(project, name)
    newest = tables.latest(project, name)
    document = to_odcs(contract, version=f"{newest.number if newest else 1}.0.0", id=f"{project.config.name}-{name}")
    _check(document, f'the contract of "{name}"')
    if path.exists():
        raise Conflict(f"{path} is there already", "give another name")
    try:
        path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise PalanError(f"{path} cannot be written: {error.strerror}", "give a place that is there") from error
    return {"data": name, "file": str(path), "columns": len(contract.columns), "text": f"{name}: {counted(len(contract.columns), 'column')} in {path}"}


def read_document(path: Path, *, table: str = "") -> dict[str, Any]:
    """Read a table of an ODCS document: lines for palan.toml, and what the document says besides.

    Raises:
        PalanError: the file is no ODCS v3 document, has no such table, or says of a column what no contract can.
    """
    yaml = _yaml()
    from palan.data.contract import parse, to_toml
    from palan.data.odcs import from_odcs

    try:
        document = yaml.load(path.read_text(encoding="utf-8"), _plain(yaml))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        said = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise PalanError(f"{path} cannot be read: {said}", "give a YAML file of the Open Data Contract Standard, v3") from error
    _check(document, str(path))
    name, said_, left = from_odcs(document, table=table)
    if not said_.get("source") and not said_.get("transform"):
        said_["source"] = f"feed/{name}*.csv"
    contract = parse(name, said_)
    return {"data": name, "toml": to_toml(contract), "columns": len(contract.columns), "left out": left}


def _yaml() -> Any:
    try:
        import yaml
    except ImportError:
        raise MissingExtra("pyyaml", "odcs", "an Open Data Contract") from None
    return yaml


def _plain(yaml: Any) -> Any:
    """Return a loader that leaves times as they are written, as JSON would."""
    resolvers = {first: [(tag, form) for tag, form in forms if not tag.endswith(":timestamp")] for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()}
    return type("_Plain", (yaml.SafeLoader,), {"yaml_implicit_resolvers": resolvers})


def _check(document: object, what: str) -> None:
    try:
        import jsonschema
    except ImportError:
        raise MissingExtra("jsonschema", "odcs", "an Open Data Contract") from None
    import json

    schema = json.loads(resources.files("palan.flows").joinpath("odcs/odcs-json-schema-v3.1.0.json").read_text(encoding="utf-8"))
    problem = jsonschema.exceptions.best_match(jsonschema.Draft201909Validator(schema).iter_errors(document))
    if problem is not None:
        place = " ".join(str(each) for each in problem.absolute_path)
        raise Invalid(f"{what} is no ODCS document: {place + ': ' if place else ''}{problem.message[:200]}", "https://bitol-io.github.io/open-data-contract-standard", field=place)
