"""Contracts as a whole: inferred from files, written and read as documents of the Open Data Contract Standard."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palan.core import counted
from palan.errors import Conflict, Invalid, MissingExtra, NotFound, PalanError
from palan.flows import tables
from palan.flows.look import bare, column_of
from palan.flows.project import Project

if TYPE_CHECKING:
    import polars as pl

NEWEST = 24
"""Files from which a contract is inferred at most."""


def infer(project: Project, name: str, files: Sequence[str] = ()) -> dict[str, Any]:
    """Return what the files of a table, or others, hold and much like them would hold: lines for palan.toml, with reasons.

    Several files are batches whose differences say what may differ; of a single one, its pieces are.

    Raises:
        NotFound: no such table, or no file matches.
        PalanError: a file that cannot be read, or holds no rows.
    """
    from palan.data.infer import infer as verb
    from palan.data.verdict import read_as

    config = project.data(name)
    if not files and not config.source:
        raise PalanError(f'data "{name}" is made by {config.transform}, not delivered', f"palan data infer {name} --from FILE")
    wanted = list(files) or [config.source]
    paths = sorted({path for each in wanted for path in project.root.glob(each) if path.is_file()}) if not files else [Path(each) for each in files]
    if not paths:
        raise NotFound(f"nothing matches {wanted[0]} in {project.root}", f"palan data infer {name} --from FILE")
    frames = [_texts(project, path) for path in paths[-NEWEST:]]
    batches: list[dict[str, pl.Series]] = [{} for _ in frames]
    import polars as pl

    for column in dict.fromkeys(column for frame in frames for column in frame.columns):
        here = [(batch, frame[column]) for batch, frame in zip(batches, frames, strict=True) if column in frame.columns]
        told = pl.concat([each.cast(pl.String, strict=False) for _, each in here]) if len({each.dtype for _, each in here}) > 1 else pl.concat([each for _, each in here])
        kind = column_of(told).field.type
        for batch, each in here:
            batch[column] = read_as(kind, each)
    found = verb([pl.DataFrame(batch) for batch in batches], key=config.key, time=config.time)
    rows = sum(frame.height for frame in frames)
    return {
        "data": name,
        "files": [str(path) for path in paths[-NEWEST:]],
        "rows": rows,
        "settings": [{"line": line, "why": why} for line, why in found.settings],
        "columns": [{"line": line, "why": why} for line, why in found.columns],
        "toml": found.text(name),
        "text": f"{counted(rows, 'row')} of {counted(len(frames), 'file')}",
    }


def _texts(project: Project, path: Path) -> pl.DataFrame:
    """Return the rows of a file as they came, without lines that cannot be read."""
    from palan.data.reading import BROKEN, LINE, parse_file

    path = path if path.is_absolute() else project.root / path
    try:
        data = path.read_bytes()
    except OSError as error:
        raise PalanError(f"{path} cannot be read: {error.strerror}", "give a file that is there") from error
    frame = parse_file(data, path.suffix, bare(path, data))
    frame = frame.filter(frame[BROKEN].is_null()) if BROKEN in frame.columns else frame
    return frame.drop([each for each in (LINE, BROKEN) if each in frame.columns])


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
