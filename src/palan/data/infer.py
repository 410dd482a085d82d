"""A contract from rows that somebody trusts, wide enough that the next good delivery keeps it.

What differs between batches that were all good may differ as much again. So a band is a prediction interval for one more
batch, on a scale where its number may vary freely; of a single batch, pieces of it in the order of time stand for batches.
What a few batches cannot tell is left out, because a contract that stops good rows is switched off.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from statistics import fmean, stdev

import msgspec
import polars as pl

from palan.core import Field, FieldType
from palan.data.contract import OPEN, Band, Column, column_toml, parse
from palan.errors import PalanError

PIECES = 8
"""Into how many a single batch is cut."""

# 0.9995 quantiles of Student's t for 1, 2, 3 ... degrees of freedom: a table has some dozens of bands
_T = (636.6, 31.6, 12.9, 8.6, 6.9, 6.0, 5.4, 5.0, 4.8, 4.6, 4.4, 4.3, 4.2, 4.1, 4.1, 4.0, 4.0, 3.9, 3.9, 3.8)

_SHAPES = ((r"[A-Z]", "[A-Z]"), (r"[a-z]", "[a-z]"), (r"[0-9]", "[0-9]"), (r"[A-Z0-9]", "[A-Z0-9]"), (r"[a-z0-9]", "[a-z0-9]"))


class Inferred(msgspec.Struct, frozen=True):
    """A contract as text for palan.toml, where each line says in a comment what it rests on."""

    settings: tuple[tuple[str, str], ...]
    columns: tuple[tuple[str, str], ...]

    def text(self, name: str) -> str:
        """Return the lines that follow `source` in `[data.NAME]`."""
        return _lined(self.settings) + f"[data.{name}.columns]\n" + _lined(self.columns)


def infer(batches: Sequence[pl.DataFrame], *, key: Sequence[str] = (), time: str = "", cursor: str = "", whole: bool = True) -> Inferred:
    """Return what these batches, and batches much like them, keep. Columns are in their types; a text stays one.

    Of rows that are asked for by a `cursor`, a delivery has few or many: nothing is said of it as a whole. Batches that are not
    `whole` do not tell how many rows there are.

    Raises:
        PalanError: there are no rows, or a column holds what no contract describes.
    """
    batches = [batch for batch in batches if batch.height]
    if not batches or not batches[0].width:
        raise PalanError("cannot infer a contract from a table without rows", "give a file with some rows that you trust")
    if time and all(time in batch.columns for batch in batches):
        batches = sorted((batch.sort(time) for batch in batches), key=lambda batch: str(batch[time][0]))
    names = list(dict.fromkeys(name for batch in batches for name in batch.columns))
    columns = [_column([batch[name] for batch in batches if name in batch.columns], sum(batch.height for batch in batches if name not in batch.columns), name in (*key, time, cursor), not cursor) for name in names]
    settings = [] if cursor or not whole else _rows([batch.height for batch in batches])
    alone = [] if key else [name for name in names if all(name in batch.columns for batch in batches) and _identifies(pl.concat([batch[name] for batch in batches], rechunk=False))]
    if alone:
        settings.insert(0, (f'key = ["{alone[0]}"]', "no value of it came twice; the same key again is a correction"))
    return Inferred(tuple(settings), tuple(columns))


def _identifies(column: pl.Series) -> bool:
    return len(column) >= 100 and (column.dtype.is_integer() or column.dtype == pl.String) and not column.null_count() and column.is_unique().all()


def _rows(counts: Sequence[int]) -> list[tuple[str, str]]:
    if len(counts) > 2:
        low, high = _interval([math.log(count) for count in counts])
        # that all were alike may be the supplier's setting: half as many or twice as many are no fault yet
        low, high = min(low, math.log(min(counts) / 2)), max(high, math.log(max(counts) * 2))
        wide, why = (math.exp(max(low, -1.0)), math.exp(min(high, 30.0))), f"{len(counts)} batches of {min(counts):,} to {max(counts):,}"
    else:
        wide, why = (min(counts) / 5, max(counts) * 5), f"{' and '.join(f'{each:,}' for each in counts)} seen: a fifth to five times of that"
    return [(f'rows = "{max(1, math.floor(wide[0]))}..{_round_up(wide[1])}"', why)]


def _round_up(number: float) -> int:
    step = 10.0 ** max(0, math.floor(math.log10(number)) - 1)
    return int(math.ceil(number / step) * step)


def _column(parts: Sequence[pl.Series], absent: int, needed: bool, bands: bool) -> tuple[str, str]:
    """Return the line of one column, and what it rests on."""
    name = parts[0].name
    kind, parts = _kind(parts)
    whole = pl.concat(parts)
    present, why = whole.drop_nulls(), []
    nulls, rows = whole.null_count() + absent, len(whole) + absent
    several = len(parts) > 2
    # that a value never was missing so far is no rule: of 26,000 hours a real station left out one
    nullable = bool(nulls) or not needed
    field, more = Field(name, kind, nullable), Column(name)
    if kind in ("int", "float") and len(present):
        numbers = present.cast(pl.Float64).filter(present.cast(pl.Float64).is_finite())
        if needed:
            why.append("identifies: no range")
        elif len(numbers) and _varies(parts, numbers):
            field = msgspec.structs.replace(field, **dict(zip(("minimum", "maximum"), _range(numbers, whole=kind == "int"), strict=True)))
            why.append(f"{_short(numbers.min())} to {_short(numbers.max())}, widened")
            mean = _band(_means(_pieces(parts)), _means(_cut(parts))) if bands else OPEN
            if mean != OPEN and (field.minimum is None or field.maximum is None or _narrower(mean, (field.minimum, field.maximum))):
                more = msgspec.structs.replace(more, mean=mean)
                why.append(f"means of {'batches' if several else 'pieces'} lie close")
        elif len(numbers):
            why.append("counts on or never varies: no range")
    elif kind == "str" and len(present):
        field, said = _words(field, present)
        why.append(said)
    if bands and nulls and not absent:
        shares = [(piece.null_count() + 0.5, len(piece) + 1) for piece in _pieces(parts)]
        band = _share_band(shares)
        if band[1] is not None and band[1] < 0.9:
            more = msgspec.structs.replace(more, nulls=band)
    elif bands and nullable and rows >= 100:
        more = msgspec.structs.replace(more, nulls=(None, _percent(min(1.0, 30 / rows + 0.02))))
    why.append(f"{nulls:,} of {rows:,} missing" if nulls else "never missing" if needed else f"none of {rows:,} missing; take the ? away where none may be")
    return f"{_key(name)} = {_checked(field, more)}", ", ".join(why)


def _checked(field: Field, more: Column) -> str:
    said = column_toml(field, more)
    parse("inferred", {"source": "x", "columns": tomllib.loads(f"{_key(field.name)} = {said}")})
    return said


def _kind(parts: Sequence[pl.Series]) -> tuple[FieldType, Sequence[pl.Series]]:
    """Return the type that all parts of a column have."""
    dtype = next((each.dtype for each in parts if each.dtype != pl.Null), pl.Null())
    if dtype.is_integer() or dtype.is_float() or dtype.is_decimal():
        whole = all(each.dtype.is_integer() or each.dtype == pl.Null for each in parts)
        return ("int", [each.cast(pl.Int64) for each in parts]) if whole else ("float", [each.cast(pl.Float64) for each in parts])
    if dtype == pl.Boolean:
        return "bool", parts
    if isinstance(dtype, pl.Datetime):
        return "time", [each.cast(pl.Datetime("us")) if each.dtype == pl.Null else each for each in parts]
    if dtype == pl.Date:
        return "date", parts
    if dtype not in (pl.Null, pl.String) and not isinstance(dtype, pl.Categorical | pl.Enum):
        raise PalanError(f'column "{parts[0].name}" holds {dtype}, which a contract cannot describe', "keep plain values: numbers, text, true/false, times, dates")
    texts = [each.cast(pl.String) for each in parts]
    present = pl.concat(texts).drop_nulls()
    for kind, pattern in (("date", r"^\d{4}-\d\d-\d\d$"), ("time", r"^\d{4}-\d\d-\d\d[T ]\d\d:\d\d")):
        if len(present) and present.str.contains(pattern).all():
            return ("date" if kind == "date" else "time"), texts
    return "str", texts


def _pieces(parts: Sequence[pl.Series]) -> list[pl.Series]:
    """Return the batches; of one or two, pieces of them in their order."""
    return list(parts) if len(parts) > 2 else _cut(parts)


def _cut(parts: Sequence[pl.Series]) -> list[pl.Series]:
    """Return the pieces of all batches, in their order."""
    sizes = [math.ceil(len(part) / PIECES) for part in parts]
    return [part[begin : begin + size] for part, size in zip(parts, sizes, strict=True) if size >= 10 for begin in range(0, len(part), size)]


def _means(parts: Sequence[pl.Series]) -> list[float]:
    finite = (each.filter(each.is_finite()) for each in (part.cast(pl.Float64) for part in parts))
    return [value for each in finite if isinstance(value := each.mean(), float)]


def _varies(parts: Sequence[pl.Series], numbers: pl.Series) -> bool:
    """Tell whether numbers go up and down: one that stays, or counts on, will be another one soon."""
    constant = all(part.drop_nulls().n_unique() <= 1 for part in parts)
    return not constant and not numbers.is_sorted() and not numbers.is_sorted(descending=True)


def _range(numbers: pl.Series, *, whole: bool) -> Band:
    """Widen what was seen by its span on either side, but not across zero where the values begin or end at it."""
    low, high = (float(each) for each in (numbers.min(), numbers.max()) if isinstance(each, int | float))
    span = high - low or max(abs(high), 1.0)
    step = 10.0 ** math.floor(math.log10(span))
    wide_low, wide_high = math.floor((low - span) / step) * step, math.ceil((high + span) / step) * step
    # values that often are zero are counts or amounts: zero is their floor. 0.3 °C is just a cold night
    often = whole or (numbers == 0).sum() >= 0.2 * len(numbers)
    if often and 0 <= low <= 0.02 * span:
        wide_low = 0.0
    if often and -0.02 * span <= high <= 0:
        wide_high = 0.0
    # far out beyond nearly all others are amounts that can be ten times as large another day
    usual = numbers.quantile(0.99)
    if wide_low == 0.0 and usual is not None and high > 3 * usual:
        wide_high = math.ceil(10 * high / step) * step
    digits = max(0, -math.floor(math.log10(step)))
    return (float(math.floor(wide_low)), float(math.ceil(wide_high))) if whole else (round(wide_low, digits), round(wide_high, digits))


def _words(field: Field, present: pl.Series) -> tuple[Field, str]:
    """Return what texts have in common: few values that all come often, or one shape."""
    counts = present.value_counts(sort=True)
    least, most = counts["count"].min(), len(counts)
    # a set is only worth writing down when every value came back often: otherwise tomorrow brings a new one
    if len(present) >= 100 and 2 <= most <= 20 and isinstance(least, int) and least >= max(10, 0.02 * len(present)):
        return msgspec.structs.replace(field, values=tuple(present.unique().sort().to_list())), f"{most} values, each seen often"
    shape = _shape(present) if len(present) >= 100 and most >= 10 else ""
    if shape:
        return msgspec.structs.replace(field, pattern=shape), f"{most:,} values of one shape"
    return field, f"{most:,} different values"


def _shape(present: pl.Series) -> str:
    """Return the regular expression that all texts match place by place, "" where they differ."""
    sizes = present.str.len_chars()
    size = sizes[0]
    if not isinstance(size, int) or not 2 <= size <= 12 or sizes.n_unique() > 1:
        return ""
    classes = []
    for place in range(size):
        letters = present.str.slice(place, 1)
        found = next((said for test, said in _SHAPES if letters.str.contains(f"^{test}$").all()), "")
        if not found and letters.n_unique() > 1:
            return ""
        classes.append(found or re.escape(str(letters[0])))
    text = "".join(classes)
    return "^" + re.sub(r"(\[[^]]+\])\1+", lambda run: f"{run[1]}{{{len(run[0]) // len(run[1])}}}", text) + "$"


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Return where one more of these will lie, if it varies as they do."""
    count = len(values)
    reach = _T[min(count - 1, len(_T)) - 1] * stdev(values) * math.sqrt(1 + 1 / count)
    return fmean(values) - reach, fmean(values) + reach


def _band(means: Sequence[float], pieces: Sequence[float]) -> Band:
    """Return where the mean of one more batch will lie. Few batches may be alike by chance: so it varies at least as its pieces do."""
    both = [_interval(each) for each in (means, pieces) if len(each) > 2 and stdev(each)]
    if not both:
        return OPEN
    low, high = min(low for low, _ in both), max(high for _, high in both)
    step = 10.0 ** (math.floor(math.log10(high - low)) - 1)
    digits = max(0, -math.floor(math.log10(step)))
    return round(math.floor(low / step) * step, digits), round(math.ceil(high / step) * step, digits)


def _share_band(shares: Sequence[tuple[float, float]]) -> Band:
    """Return where the share of one more batch will lie, told on the scale of log odds: seven to twenty times the odds up."""
    if len(shares) < 3:
        return OPEN
    odds = [math.log(count / (rows - count)) for count, rows in shares]
    count, rows = (sum(each) for each in zip(*shares, strict=True))
    pooled = math.log(count / (rows - count))
    high = min(max(_interval(odds)[1], pooled + 2), pooled + 3)
    return None, _percent(1 / (1 + math.exp(-min(high, 30.0))))


def _percent(share: float) -> float:
    """Round up to two digits that a person reads."""
    step = 10.0 ** (math.floor(math.log10(share)) - 1)
    return min(1.0, round(math.ceil(share / step) * step, 6))


def _narrower(band: Band, other: Band) -> bool:
    """Tell whether a band of means says more than the range of the values does."""
    (low, high), (least, most) = band, other
    return low is not None and high is not None and least is not None and most is not None and (low > least or high < most) and high - low < (most - least) / 2


def _short(number: object) -> str:
    return f"{number:.6g}" if isinstance(number, int | float) else str(number)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def _lined(lines: Sequence[tuple[str, str]]) -> str:
    width = min(max((len(line) for line, _ in lines), default=0), 60)
    return "".join(f"{line:<{width}}  # {why}\n" for line, why in lines)
