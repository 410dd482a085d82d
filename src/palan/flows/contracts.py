"""Contracts as a whole: inferred from files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palan.core import Field, counted
from palan.data.contract import Contract
from palan.errors import NotFound, PalanError
from palan.flows.look import column_of, header
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
    frame = parse_file(data, path.suffix, Contract(path.stem, tuple(Field(each, "str", True) for each in header(data))))
    frame = frame.filter(frame[BROKEN].is_null()) if BROKEN in frame.columns else frame
    return frame.drop([each for each in (LINE, BROKEN) if each in frame.columns])
