"""Small mergeable profiles: what a column held in a window, against bins frozen once, so any two windows compare.

A profile of a window is the sum of the profiles of its days: nothing needs the raw rows again. Empty values and NaN
count as nulls; times, lists and structures are not profiled.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from palan.core import digest
from palan.errors import Corrupt, PalanError

BINS = 256
CATEGORIES = 256


class ColumnReference(msgspec.Struct, frozen=True, kw_only=True):
    """The frozen bins of one column.

    Of numbers: sorted `edges`; bin i holds edges[i-1] <= value < edges[i], the first bin everything below and the last
    everything from the last edge on. Of texts: the most frequent `categories`; one more bin holds the rest.
    """

    kind: str  # number | text
    edges: list[float] = []
    categories: list[str] = []

    @property
    def bins(self) -> int:
        return len(self.edges) + 1 if self.kind == "number" else len(self.categories) + 1


class Reference(msgspec.Struct, frozen=True):
    """The bins of all columns. `id` is their digest: profiles of different references never mix."""

    id: str
    columns: dict[str, ColumnReference]


class ColumnProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What one column held: `n` values and `nulls`; counts and (of numbers) sums per bin; moments and extremes."""

    n: int
    nulls: int
    counts: list[int]
    sums: list[float] = []
    total: float = 0.0
    squares: float = 0.0
    minimum: float | None = None
    maximum: float | None = None

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n and self.sums else None


class Profile(msgspec.Struct, frozen=True):
    """The profile of one window: `reference` is the id of the bins, `rows` the rows seen."""

    reference: str
    rows: int
    columns: dict[str, ColumnProfile]

    def to_bytes(self) -> bytes:
        """Return a compact form: about 1 kB a numeric column."""
        return zlib.compress(msgspec.msgpack.encode(self), level=6)


def from_bytes(data: bytes) -> Profile:
    """Read what `Profile.to_bytes` wrote.

    Raises:
        Corrupt: the bytes are not a profile.
    """
    try:
        return msgspec.msgpack.decode(zlib.decompress(data), type=Profile)
    except (zlib.error, msgspec.MsgspecError) as error:
        raise Corrupt(f"these {len(data)} bytes are not a profile: {error}") from error


def freeze(frame: pl.DataFrame, columns: Sequence[str] | None = None) -> Reference:
    """Freeze the bins: 256 of equal frequency for each numeric column, the 256 most frequent values of each text.

    Columns of other types are left out, and so are columns without any value.

    Raises:
        PalanError: a named column is not in the frame.
    """
    missing = [name for name in columns or () if name not in frame.columns]
    if missing:
        raise PalanError(f'there is no column "{missing[0]}" to profile', "columns are: " + ", ".join(frame.columns))
    found: dict[str, ColumnReference] = {}
    for name in frame.columns if columns is None else columns:
        values = _values(frame[name])
        if values is None or not len(values):
            continue
        if isinstance(values, pl.Series):
            ranked = values.value_counts().sort("count", name, descending=[True, False]).head(CATEGORIES)
            found[name] = ColumnReference(kind="text", categories=ranked[name].to_list())
        else:
            found[name] = ColumnReference(kind="number", edges=_edges(values))
    body = msgspec.json.encode({name: found[name] for name in sorted(found)})
    return Reference(digest(body)[:16], found)


def _values(series: pl.Series) -> npt.NDArray[np.float64] | pl.Series | None:
    """Return the finite numbers, the texts, or None for a type that is not profiled."""
    if series.dtype == pl.Boolean or isinstance(series.dtype, (pl.Categorical, pl.Enum)):
        series = series.cast(pl.String)
    if series.dtype == pl.String:
        return series.drop_nulls()
    if not series.dtype.is_numeric():
        return None
    numbers = series.drop_nulls().cast(pl.Float64).to_numpy()
    return numbers[np.isfinite(numbers)]  # type: ignore[no-any-return]


def _edges(values: npt.NDArray[np.float64]) -> list[float]:
    distinct = np.unique(values)
    if len(distinct) <= BINS:
        edges = distinct  # every value its own bin: counts and whole numbers stay exact
    else:
        # Quantiles that are values, not averages of two: a point mass (no rain) falls on edges, and gets a bin alone.
        edges, times = np.unique(np.quantile(values, np.linspace(0.0, 1.0, BINS), method="inverted_cdf"), return_counts=True)
        edges = np.unique(np.concatenate([edges, np.nextafter(edges[times > 1], np.inf)]))
    past = np.nextafter(distinct[-1], np.inf)  # so that the last bin holds only what was never seen
    return [*edges.tolist(), float(past)]


def profile(frame: pl.DataFrame, reference: Reference) -> Profile:
    """Count a window into the reference's bins. A column that is missing counts as all null."""
    return Profile(reference.id, frame.height, {name: _column(frame, name, bins) for name, bins in reference.columns.items()})


def _column(frame: pl.DataFrame, name: str, reference: ColumnReference) -> ColumnProfile:
    empty = ColumnProfile(n=0, nulls=frame.height, counts=[0] * reference.bins, sums=[0.0] * reference.bins if reference.kind == "number" else [])
    if name not in frame.columns:
        return empty
    if reference.kind == "text":
        return _texts(frame[name].cast(pl.String, strict=False), reference)
    numbers = frame[name].cast(pl.Float64, strict=False).to_numpy()  # a number that arrives as text is read; what is none is NaN
    numbers = numbers[np.isfinite(numbers)]
    n = len(numbers)
    if not n:
        return empty
    ordered = np.sort(numbers)  # to look up 256 edges in many values is far quicker than many values in 256 edges
    starts = np.concatenate([[0], np.searchsorted(ordered, reference.edges)])
    counts, sums = np.diff(starts, append=n), np.zeros(reference.bins)
    sums[counts > 0] = np.add.reduceat(ordered, starts[counts > 0])
    return ColumnProfile(
        n=n,
        nulls=frame.height - n,
        counts=counts.tolist(),
        sums=sums.tolist(),
        total=float(numbers.sum()),
        squares=float(numbers @ numbers),
        minimum=float(ordered[0]),
        maximum=float(ordered[-1]),
    )


def _texts(series: pl.Series, reference: ColumnReference) -> ColumnProfile:
    place = {category: i for i, category in enumerate(reference.categories)}
    counts = [0] * reference.bins
    for text, count in series.value_counts().iter_rows():
        if text is not None:
            counts[place.get(text, len(place))] += count
    return ColumnProfile(n=series.count(), nulls=series.null_count(), counts=counts)


def merge(profiles: Sequence[Profile]) -> Profile:
    """Add profiles up: the profile of all their rows together.

    Raises:
        PalanError: there are none, or they were counted into different bins.
    """
    if not profiles:
        raise PalanError("there are no profiles to merge", "give at least one window")
    first = profiles[0]
    if len(profiles) == 1:
        return first
    if any(other.reference != first.reference for other in profiles):
        raise PalanError("these profiles were counted into different bins", "profile them again with one reference")
    columns = {name: _add([other.columns[name] for other in profiles]) for name in first.columns}
    return Profile(first.reference, sum(other.rows for other in profiles), columns)


def _add(parts: Sequence[ColumnProfile]) -> ColumnProfile:
    def over(pick: Any) -> list[Any]:
        return np.sum([pick(part) for part in parts], axis=0).tolist()  # type: ignore[no-any-return]

    return ColumnProfile(
        n=sum(part.n for part in parts),
        nulls=sum(part.nulls for part in parts),
        counts=over(lambda part: part.counts),
        sums=over(lambda part: part.sums) if parts[0].sums else [],
        total=sum(part.total for part in parts),
        squares=sum(part.squares for part in parts),
        minimum=min((part.minimum for part in parts if part.minimum is not None), default=None),
        maximum=max((part.maximum for part in parts if part.maximum is not None), default=None),
    )
