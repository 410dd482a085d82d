"""Random expressions on adversarial rows: what a batch answers against what one row at a time answers.

    python tests/expressions.py --seed 7 --rounds 2000 --rows 500
"""

from __future__ import annotations

import argparse
import math
import struct
import warnings
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl

from palan.data.scalar import Scalar, compile_rows
from palan.errors import PalanError

PARIS = ZoneInfo("Europe/Paris")
SCHEMA: dict[str, pl.DataType] = {
    "i": pl.Int64(), "j": pl.Int64(), "k": pl.Int32(), "u": pl.UInt8(), "f": pl.Float64(), "g": pl.Float64(), "h": pl.Float32(),
    "b": pl.Boolean(), "p": pl.Boolean(), "s": pl.String(), "t": pl.String(), "d": pl.Date(), "e": pl.Date(),
    "m": pl.Datetime("us"), "n": pl.Datetime("us"), "z": pl.Datetime("us", "Europe/Paris"), "w": pl.Duration("us"),
}  # fmt: skip

WHOLE = [0, 1, -1, 2, 3, 7, 10, -10, 2**40, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63), 2**31, 255]
REAL = [0.0, -0.0, 1.0, -1.0, 0.1, 0.3, 2.5, -2.5, 3.5, 7.25, 1e300, -1e300, 5e-324, 1e-310, math.nan, math.inf, -math.inf, 2.0**40, 2.0**53, 1e15 + 0.5, 0.49999999999999994, 123456.789, 709.5]
TEXT = ["", "a", "abc", "ABC", " a b ", "Straße", "ÉCOLE", "e\u0301", "İstanbul", "ΑΣ", "日本語", "\U0001f600x", "12", "-7", "+5", "1.5", "1e3", "x\n", "a.b", "\x1cq\u2003", "aXbXc", "99999999999999999999"]
DAYS = [date(1, 1, 1), date(9999, 12, 31), date(1970, 1, 1), date(2000, 2, 29), date(1969, 12, 31), date(2024, 12, 31), date(1900, 3, 1)]
TIMES = [datetime(*parts, tzinfo=UTC).replace(tzinfo=None) for parts in ((1, 1, 1), (9999, 12, 31, 23, 59, 59, 999999), (1970, 1, 1), (1969, 12, 31, 23, 59, 59, 999999), (2024, 3, 31, 1, 59, 59), (2024, 3, 31, 2, 0), (2024, 10, 27, 0, 30), (2024, 10, 27, 1, 30), (2013, 7, 14, 12, 34, 56, 789))]
SPANS = [timedelta(0), timedelta(microseconds=-1), timedelta(days=1), timedelta(days=-3, seconds=5), timedelta(hours=36, microseconds=7)]


def rows(random: Random, count: int) -> list[dict[str, Any]]:
    """Make rows of what breaks things, mixed with ordinary values."""
    pools: dict[str, Callable[[], Any]] = {
        "i": lambda: random.choice(WHOLE) if random.random() < 0.7 else random.randrange(-1000, 1000),
        "k": lambda: random.choice([0, 1, -1, 2**31 - 1, -(2**31), 7, -100]),
        "u": lambda: random.choice([0, 1, 255, 128, 7]),
        "f": lambda: random.choice(REAL) if random.random() < 0.6 else random.gauss(0, 100),
        "h": lambda: struct.unpack("f", struct.pack("f", random.choice([0.0, -0.0, 0.1, 1.5, -3.3, 3e38, 1e-45, math.nan, math.inf, 16777217.0])))[0],
        "b": lambda: random.random() < 0.5,
        "s": lambda: random.choice(TEXT),
        "d": lambda: random.choice(DAYS),
        "m": lambda: random.choice(TIMES) if random.random() < 0.7 else TIMES[-1] + timedelta(seconds=random.randrange(10**8)),
        "z": lambda: (datetime(1971, 1, 1, tzinfo=UTC) + timedelta(seconds=random.randrange(10**9)) if random.random() < 0.5 else random.choice(TIMES[2:]).replace(tzinfo=UTC)).astimezone(PARIS),
        "w": lambda: random.choice(SPANS),
    }
    same = {"j": "i", "g": "f", "p": "b", "t": "s", "e": "d", "n": "m"}
    return [{name: None if random.random() < 0.12 else pools[same.get(name, name)]() for name in SCHEMA} for _ in range(count)]


def expression(random: Random, depth: int, kind: str = "") -> pl.Expr:
    """Make an expression of a kind: whole, real, true, text, day, time or span."""
    kind = kind or random.choice(["whole", "real", "real", "true", "text", "time"])

    def one(of: str) -> pl.Expr:
        return expression(random, depth - 1, of)

    if depth <= 0:
        if random.random() < 0.15 and kind in {"whole", "real", "text", "true"}:
            return pl.lit({"whole": random.choice([0, 1, 3, -7, 300]), "real": random.choice([0.0, 0.1, -2.5, 3.0, 1e10, 7.0]), "text": random.choice(TEXT[:8]), "true": random.random() < 0.5}[kind])
        return pl.col(random.choice({"whole": "ijku", "real": "fgfgh", "true": "bp", "text": "st", "day": "de", "time": "mn", "span": "w", "zoned": "z"}[kind]))
    either = [lambda: pl.when(one("true")).then(one(kind)).otherwise(one(kind)), lambda: pl.coalesce(one(kind), one(kind)), lambda: one(kind).fill_null(one(kind)), lambda: one(kind).alias("q")]
    number = random.choice(["whole", "real"])
    constant = random.choice([1, 2, 3, -7, 10, 0])
    choices: dict[str, list[Callable[[], pl.Expr]]] = {
        "whole": [
            lambda: one("whole") + one("whole"), lambda: one("whole") - one("whole"), lambda: one("whole") * one("whole"), lambda: one("whole") // one("whole"), lambda: one("whole") % one("whole"),
            lambda: one("whole") + constant, lambda: constant - one("whole"), lambda: one("whole") // constant, lambda: one("whole") % constant, lambda: constant % one("whole"), lambda: one("whole").abs(), lambda: -pl.col("i"), lambda: one("whole").sign(), lambda: one("whole").clip(0, 100),
            lambda: one("whole") ** 2, lambda: one("real").cast(pl.Int64, strict=False), lambda: one("real").cast(pl.Int32, strict=False), lambda: one("whole").cast(pl.Int16, strict=False), lambda: one("true").cast(pl.Int64), lambda: one("text").cast(pl.Int64, strict=False),
            lambda: one("text").str.len_chars(), lambda: one("text").str.len_bytes(), lambda: one("whole").replace({1: 5, 7: -7}), lambda: one("text").replace_strict({"a": 1, "abc": 2}, default=None), lambda: pl.max_horizontal(one("whole"), one("whole")), lambda: pl.min_horizontal(one("whole"), 3), lambda: pl.sum_horizontal(one("whole"), one("whole")),
            lambda: getattr(random.choice([one("day"), one("time"), one("zoned")]).dt, random.choice(["year", "month", "day", "weekday", "ordinal_day", "quarter"]))(), lambda: getattr(random.choice([one("time"), one("zoned")]).dt, random.choice(["hour", "minute", "second"]))(), lambda: getattr(one("span").dt, random.choice(["total_seconds", "total_minutes", "total_hours", "total_days"]))(), lambda: one("whole").round(1), lambda: one("whole").floor(), lambda: pl.sql_expr(random.choice(["i % j", "i * k", "k % 7", "u * u", "i % u", "-7 % j"])),
        ],
        "real": [
            lambda: one("real") + one(number), lambda: one(number) - one("real"), lambda: one("real") * one(number), lambda: one(number) / one(number), lambda: one(number) / constant, lambda: one(number) / 0.3, lambda: constant / one(number), lambda: one("real") // one("real"), lambda: one("real") % one("real"), lambda: one("real") // 0.3, lambda: one("real") % constant, lambda: one("real") + 0.1,
            lambda: one(number).sqrt(), lambda: one("real").log(), lambda: one("real").log(10), lambda: one("real").log1p(), lambda: one("real").exp(), lambda: one("real").sin(), lambda: one("real").cos(), lambda: one("real").tanh(), lambda: one("real").abs(), lambda: -one("real"), lambda: one("real").floor(), lambda: one("real").ceil(), lambda: one("real").round(), lambda: one("real").round(2), lambda: one("real").sign(),
            lambda: one("real") ** 2, lambda: one("real") ** one("real"), lambda: one("real") ** 0.5, lambda: one("real").clip(-1, 2.5), lambda: one("real").clip(lower_bound=0), lambda: one("real").fill_nan(0.0), lambda: one("real").fill_nan(None), lambda: pl.max_horizontal(one("real"), one(number)), lambda: pl.min_horizontal(one("real"), one("real"), 0.5), lambda: pl.sum_horizontal(one("real"), one(number)), lambda: one(number).cast(pl.Float64), lambda: one("real").cast(pl.Float32), lambda: one("true") * one("real"), lambda: pl.sql_expr(random.choice(["f * g", "f / g", "f % g", "i / j", "f % 2.5e0", "i * f", "ROUND(f, 2)", "f / 3", "k % f"])), lambda: one("text").cast(pl.Float64, strict=False),
        ],
        "true": [
            lambda: one("real") > one(number), lambda: one(number) <= one("real"), lambda: one("real") == one("real"), lambda: one("real") != one("real"), lambda: one(number) < constant, lambda: one(number) >= 0.1, lambda: one("whole") == one("whole"), lambda: one("whole") > one("whole"), lambda: one("text") < one("text"), lambda: one("text") == "a", lambda: one("day") < one("day"), lambda: one("time") >= one("time"), lambda: one("true") == one("true"),
            lambda: one("true") & one("true"), lambda: one("true") | one("true"), lambda: one("true") ^ one("true"), lambda: ~one("true"), lambda: one(kind).is_null(), lambda: one("real").is_not_null(), lambda: one(number).is_nan(), lambda: one(number).is_finite(), lambda: one("real").is_infinite(), lambda: one("real").is_not_nan(), lambda: pl.col("i").is_in([1, 7, None]), lambda: pl.col("f").is_in([1.0, math.nan]), lambda: one("text").is_in(["a", ""]),
            lambda: one(number).is_between(constant, 5), lambda: one("real").is_between(one("real"), 2.0, closed="left"), lambda: one("text").str.contains("a", literal=True), lambda: one("text").str.contains(r"^[a-z]+\d*$"), lambda: one("text").str.contains("a.b|X"), lambda: one("text").str.starts_with("a"), lambda: one("text").str.ends_with(one("text")), lambda: one(number).cast(pl.Boolean), lambda: pl.all_horizontal(one("true"), one("true")), lambda: pl.any_horizontal(one("true"), one("true")),
        ],
        "text": [
            lambda: one("text").str.to_lowercase(), lambda: one("text").str.to_uppercase(), lambda: one("text").str.strip_chars(), lambda: one("text").str.strip_chars("aX"), lambda: one("text").str.strip_chars_start(), lambda: one("text").str.strip_chars_end("c "), lambda: one("text").str.slice(1, 2), lambda: one("text").str.slice(-3, 2), lambda: one("text").str.slice(-2), lambda: one("text").str.head(random.choice([-1, 0, 2])), lambda: one("text").str.tail(random.choice([-1, 0, 2])),
            lambda: one("text").str.replace("a", "zz", literal=True), lambda: one("text").str.replace_all("X", ""), lambda: one("text").str.replace_all(r"\d+", "#"), lambda: one("text").str.replace("[a-c]", "q"), lambda: one("text") + one("text"), lambda: pl.concat_str(one("text"), one("text"), separator="-"), lambda: pl.concat_str(one("text"), one("text"), ignore_nulls=True), lambda: one("whole").cast(pl.String), lambda: one("true").cast(pl.String), lambda: one("text").replace({"a": "A", "": "none"}), lambda: one("whole").replace_strict({1: "one"}, default="many"),
        ],
        "day": [lambda: one("time").dt.date(), lambda: one("time").cast(pl.Date)],
        "time": [lambda: one("time").dt.truncate(random.choice(["1h", "15m", "1d", "1w"])), lambda: one("day").cast(pl.Datetime("us")), lambda: one("time") + one("span"), lambda: one("time") - one("span"), lambda: one("zoned").dt.replace_time_zone(None)],
        "span": [lambda: one("time") - one("time"), lambda: one("span") + one("span")],
        "zoned": [lambda: one("zoned").dt.convert_time_zone("Europe/Paris")],
    }  # fmt: skip
    return random.choice([*choices[kind] * 2, *either])()


def same(found: Any, expected: Any, dtype: pl.DataType) -> bool:
    """Equal to the last digit, or for floats to the last but one; NaN is NaN."""
    if not isinstance(expected, float) or not isinstance(found, float):
        return type(found) is type(expected) and found == expected
    if found == expected or (found != found and expected != expected):
        return True
    if dtype == pl.Float32:
        return math.isclose(found, expected, rel_tol=2.0**-23, abs_tol=2.0**-149)
    return math.nextafter(found, expected) == expected


def differences(scalar: Scalar, frame: pl.DataFrame, made: list[dict[str, Any]]) -> list[str]:
    """Say where one row at a time answers otherwise than the batch."""
    expected = scalar.batch(frame.lazy()).select(list(scalar.expressions)).collect().to_dicts()
    told = []
    for row, wanted in zip(made, expected, strict=True):
        found = scalar.row(row)
        for name, value in found.items():
            if not same(value, wanted[name], scalar.dtypes[name]):
                needed = {column: row[column] for column in scalar.columns}
                told.append(f"{scalar.expressions[name]}\n  of {needed}\n  as a row {value!r}, in the batch {wanted[name]!r}")
    return told


def campaign(seed: int, rounds: int, count: int, depth: int = 3) -> tuple[int, int, list[str], dict[str, int]]:
    """Return how many expressions were compiled and refused, every difference, and why some were refused."""
    random = Random(seed)
    compiled = refused = 0
    told: list[str] = []
    why: dict[str, int] = {}
    made = rows(random, count)
    frame = pl.DataFrame(made, schema=SCHEMA)
    for _ in range(rounds):
        wanted = expression(random, random.randint(1, depth))
        try:
            pl.DataFrame(frame).select(wanted.alias("x")).to_dicts()
            scalar = compile_rows({"x": wanted}, SCHEMA)
        except (pl.exceptions.PolarsError, PalanError, OverflowError, ValueError):
            continue  # Polars itself refuses it: mixed types, a strict cast, a year that Python has not
        if scalar.refused:
            refused += 1
            why[scalar.refused["x"]] = why.get(scalar.refused["x"], 0) + 1
            continue
        compiled += 1
        told.extend(differences(scalar, frame, made)[:1])
    return compiled, refused, told, why


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--depth", type=int, default=3)
    given = parser.parse_args()
    compiled, refused, told, why = campaign(given.seed, given.rounds, given.rows, given.depth)
    print("\n".join(told[:25]))
    for reason, times in sorted(why.items(), key=lambda each: -each[1])[:12]:
        print(f"  refused {times}: {reason}")
    print(f"{compiled} expressions × {given.rows} rows compiled, {refused} left to Polars, {len(told)} differ")
