"""Profiles of windows: what they keep, how they add up, and that distances from them are those of the raw rows."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palan.drift import compare
from palan.drift.profile import Profile, freeze, from_bytes, merge, profile
from palan.errors import Corrupt, PalanError


def weather(n: int, seed: int = 0, warmer: float = 0.0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rain = np.where(rng.random(n) < 0.9, 0.0, rng.exponential(size=n))
    return pl.DataFrame(
        {
            "temp": rng.normal(50 + warmer, 15, size=n),
            "precip": rain,
            "hour": rng.integers(5, 23, size=n),
            "carrier": rng.choice(["UA", "B6", "EV", "DL"], size=n, p=[0.4, 0.3, 0.2, 0.1]),
            "cancelled": rng.random(n) < 0.02,
        }
    )


# --- profiles -----------------------------------------------------------------------------------------------------


def test_a_profile_keeps_counts_sums_and_extremes():
    reference = freeze(pl.DataFrame({"x": [1.0, 2.0, 2.0, 4.0], "c": ["a", "a", "b", "b"]}))
    seen = profile(pl.DataFrame({"x": [0.5, 2.0, 2.5, 9.0, None, float("nan")], "c": ["a", "z", None, "b", "a", "a"]}), reference)
    x, c = seen.columns["x"], seen.columns["c"]
    assert reference.columns["x"].edges[:3] == [1.0, 2.0, 4.0]
    assert x.counts == [1, 0, 2, 0, 1]  # below, 1, 2 and up to 4, 4, never seen
    assert (x.n, x.nulls, x.total, x.minimum, x.maximum) == (4, 2, 14.0, 0.5, 9.0)
    assert x.sums == [0.5, 0.0, 4.5, 0.0, 9.0]
    assert c.counts == [3, 1, 1]  # a, b, the rest
    assert c.nulls == 1


def test_no_rain_is_one_bin_and_the_reference_itself_is_never_outside():
    frame = weather(5000)
    reference = freeze(frame)
    seen = profile(frame, reference)
    assert seen.columns["precip"].counts[1] == int((frame["precip"] == 0).sum())
    for column in ("temp", "precip", "hour"):
        assert seen.columns[column].counts[0] == 0
        assert seen.columns[column].counts[-1] == 0
    assert max(seen.columns["temp"].counts) <= 2 * 5000 / 254


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=5, unique=True))
def test_profiles_of_days_add_up_to_the_profile_of_the_week(cuts):
    frame = weather(400)
    reference = freeze(weather(1000, seed=9))
    edges = [0, *sorted(cuts), 400]
    parts = [profile(frame[a:b], reference) for a, b in pairwise(edges)]
    added, whole = merge(parts), profile(frame, reference)
    for name, column in whole.columns.items():
        other = added.columns[name]
        assert (other.n, other.nulls, other.counts, other.minimum, other.maximum) == (column.n, column.nulls, column.counts, column.minimum, column.maximum)
        assert other.total == pytest.approx(column.total)
        assert other.sums == pytest.approx(column.sums)


def test_profiles_are_small_and_survive_their_bytes():
    frame = weather(20_000)
    seen = profile(frame, freeze(frame))
    data = seen.to_bytes()
    assert from_bytes(data) == seen
    assert len(data) / len(seen.columns) < 2000
    with pytest.raises(Corrupt, match="not a profile"):
        from_bytes(data[:50])


def test_missing_columns_count_as_null_and_unfit_types_are_left_out():
    frame = weather(100).with_columns(when=pl.lit(datetime(2013, 1, 1, tzinfo=UTC)), tags=pl.lit([["a"]]), empty=pl.lit(None, dtype=pl.Float64))
    reference = freeze(frame)
    assert set(reference.columns) == {"temp", "precip", "hour", "carrier", "cancelled"}
    seen = profile(frame.drop("temp", "carrier"), reference)
    assert seen.columns["temp"].nulls == seen.columns["carrier"].nulls == 100
    as_text = profile(frame.with_columns(pl.col("hour").cast(pl.String)), reference)
    assert as_text.columns["hour"] == profile(frame, reference).columns["hour"]


def test_profiles_of_different_bins_never_mix():
    frame = weather(100)
    with pytest.raises(PalanError, match="different bins"):
        merge([profile(frame, freeze(frame)), profile(frame, freeze(weather(100, seed=1)))])
    with pytest.raises(PalanError, match='no column "tempp"'):
        freeze(frame, ["tempp"])
    with pytest.raises(PalanError, match="no profiles"):
        merge([])


# --- distances, against the raw rows ------------------------------------------------------------------------------


def exact_ks(a: np.ndarray, b: np.ndarray) -> float:
    places = np.concatenate([a, b])
    first = np.searchsorted(np.sort(a), places, side="right") / len(a)
    second = np.searchsorted(np.sort(b), places, side="right") / len(b)
    return float(np.abs(first - second).max())


def exact_wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    places = np.sort(np.concatenate([a, b]))
    first = np.searchsorted(np.sort(a), places[:-1], side="right") / len(a)
    second = np.searchsorted(np.sort(b), places[:-1], side="right") / len(b)
    return float(np.abs(first - second) @ np.diff(places))


def two(before: pl.DataFrame, after: pl.DataFrame) -> tuple[Profile, Profile]:
    reference = freeze(before)
    return profile(before, reference), profile(after, reference)


@pytest.mark.parametrize("warmer", [0.0, 3.0, 20.0, 200.0])
def test_distances_of_numbers_are_those_of_the_raw_rows(warmer):
    before, after = weather(4000), weather(3000, seed=1, warmer=warmer)
    a, b = two(before, after)
    for column in ("temp", "precip", "hour"):
        raw = before[column].cast(pl.Float64).to_numpy(), after[column].cast(pl.Float64).to_numpy()
        first, second = a.columns[column], b.columns[column]
        fullest = 1.5 / 254 + max(c / max(second.n, 1) for c in second.counts[1:-1]) if column != "hour" else 0.0
        assert compare.ks(first, second) <= exact_ks(*raw) + 1e-12
        assert compare.ks(first, second) == pytest.approx(exact_ks(*raw), abs=fullest + 1e-12)
        assert compare.wasserstein(first, second) == pytest.approx(exact_wasserstein(*raw), rel=0.02, abs=0.05)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 20), min_size=1, max_size=60), st.lists(st.integers(-5, 20), min_size=1, max_size=60))
def test_distances_of_whole_numbers_are_exact(first, second):
    everything = pl.DataFrame({"x": list(range(-5, 21))})
    reference = freeze(everything)
    a = profile(pl.DataFrame({"x": first}), reference).columns["x"]
    b = profile(pl.DataFrame({"x": second}), reference).columns["x"]
    raw = np.array(first, dtype=float), np.array(second, dtype=float)
    assert compare.ks(a, b) == pytest.approx(exact_ks(*raw))
    assert compare.wasserstein(a, b) == pytest.approx(exact_wasserstein(*raw))
    assert compare.ks(a, b) == compare.ks(b, a)
    assert compare.distance(a, a) == 0.0


def test_distances_of_texts_by_hand():
    before = pl.DataFrame({"c": ["a"] * 50 + ["b"] * 50})
    after = pl.DataFrame({"c": ["a"] * 20 + ["b"] * 60 + ["new"] * 10 + [None] * 10})
    a, b = (part.columns["c"] for part in two(before, after))
    p, q = np.array([0.5, 0.5, 0, 0]), np.array([0.2, 0.6, 0.1, 0.1])
    middle = (p + q) / 2
    entropy = sum(float(x[i] * math.log2(x[i] / middle[i])) for x in (p, q) for i in range(4) if x[i] > 0) / 2
    assert compare.jensen_shannon(a, b) == pytest.approx(math.sqrt(entropy))
    assert compare.distance(a, b) == pytest.approx(0.3)
    assert compare.jensen_shannon(a, a) == 0.0
    with pytest.raises(PalanError, match="no order"):
        compare.ks(a, b)


def test_psi_is_the_usual_figure():
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=20_000), rng.normal(0.5, size=20_000)
    a, b = two(pl.DataFrame({"x": before}), pl.DataFrame({"x": after}))
    edges = np.quantile(before, np.linspace(0.1, 0.9, 9))
    p = np.bincount(np.searchsorted(edges, before), minlength=10) / 20_000
    q = np.bincount(np.searchsorted(edges, after), minlength=10) / 20_000
    assert compare.psi(a.columns["x"], b.columns["x"]) == pytest.approx(float(((q - p) * np.log(q / p)).sum()), rel=0.05)
    assert compare.psi(a.columns["x"], a.columns["x"]) == 0.0


def test_chi_square_agrees_with_a_hand_computation_and_holds_its_level():
    a, b = (part.columns["c"] for part in two(pl.DataFrame({"c": ["a"] * 30 + ["b"] * 70}), pl.DataFrame({"c": ["a"] * 50 + ["b"] * 50})))
    statistic, freedom, p = compare.chi_square(a, b)
    assert (statistic, freedom) == (pytest.approx(8.3333333), 1)
    assert p == pytest.approx(0.0038924, rel=1e-4)
    rejected = 0
    reference = freeze(weather(5000))
    for seed in range(150):
        both = profile(weather(500, seed=seed + 10), reference), profile(weather(800, seed=seed + 1000), reference)
        rejected += compare.chi_square(both[0].columns["temp"], both[1].columns["temp"])[2] < 0.05
    assert rejected <= 15


def test_the_chi_square_tail_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the sklearn extra")
    for freedom in (1, 2, 9, 255):
        for statistic in (0.01, 0.5, 3.84, 20.0, 260.0, 700.0):
            assert compare.chi_square_tail(statistic, freedom) == pytest.approx(stats.chi2.sf(statistic, freedom), rel=1e-7, abs=1e-14)


def test_nulls_that_appear_are_a_distance():
    before = weather(1000)
    a, b = two(before, before.with_columns(temp=pl.when(pl.int_range(1000) % 2 == 0).then(pl.col("temp"))))
    assert compare.distance(a.columns["temp"], b.columns["temp"]) == pytest.approx(0.5)
    assert compare.ks(a.columns["temp"], b.columns["temp"]) < 0.05


def test_empty_windows_are_no_distance_and_no_crash():
    before = weather(100)
    a, b = two(before, before.clear())
    for name in a.columns:
        compare.psi(a.columns[name], b.columns[name])
        compare.chi_square(a.columns[name], b.columns[name])
        compare.jensen_shannon(a.columns[name], b.columns[name])
    assert compare.wasserstein(a.columns["temp"], b.columns["temp"]) == 0.0
