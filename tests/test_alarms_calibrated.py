"""Alarms keep their budget of false pages, page real harm, and say what kind of change it is."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import msgspec
import numpy as np
import polars as pl
import pytest

from palan.core import figure
from palan.drift.calibrate import FEWEST_WINDOWS, ColumnShift, Judged, LossWindow, Thresholds, calibrate, judge, level
from palan.drift.diagnose import TITLE, Diagnosis, break_day, diagnose, shift_day, split_loss, title
from palan.drift.nouns import DIAGNOSES
from palan.drift.profile import Profile, Reference, freeze, profile
from palan.errors import PalanError
from palan.releases.nouns import Arm, Release

BUDGET = 7 / 180  # one false page in 180 days, windows of seven
HALF_YEAR = 26  # windows in 180 days


def ar1(rng: np.random.Generator, n: int, rho: float) -> np.ndarray:
    values = np.zeros(n + 30)
    noise = rng.normal(size=n + 30) * math.sqrt(1 - rho * rho)
    for i in range(1, n + 30):
        values[i] = rho * values[i - 1] + noise[i]
    return values[30:]


def week(rng: np.random.Generator, rows: int = 800, *, warmer: float = 0.0, carriers: tuple[float, ...] = (0.5, 0.3, 0.2), nulls: float = 0.0) -> pl.DataFrame:
    """A week whose days differ, as weather does: a common part that all rows share."""
    level = rng.normal() * 2
    temp = rng.normal(50 + warmer + level, 12, size=rows)
    return pl.DataFrame(
        {
            "temp": np.where(rng.random(rows) < nulls, np.nan, temp),
            "wind": rng.gamma(2.0, 5.0, size=rows),
            "hour": rng.integers(5, 23, size=rows),
            "carrier": rng.choice(["UA", "B6", "EV"], size=rows, p=list(carriers)),
        }
    )


@pytest.fixture(scope="module")
def reference() -> Reference:
    return freeze(pl.concat([week(np.random.default_rng(i)) for i in range(10)]))


def weeks(reference: Reference, seed: int, count: int) -> list[Profile]:
    rng = np.random.default_rng(seed)
    return [profile(week(rng), reference) for _ in range(count)]


@pytest.fixture(scope="module")
def normal(reference: Reference) -> Thresholds:
    rng = np.random.default_rng(7)
    losses = [LossWindow(mean=float(0.4 * math.exp(0.05 * rng.normal())), rows=800) for _ in range(17)]
    return calibrate(weeks(reference, 3, 17), losses, budget=BUDGET)


# --- the budget ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
@pytest.mark.parametrize("history", [10, 17, 34])
def test_loss_pages_of_streams_without_drift_stay_near_the_budget(rho, history):
    rng = np.random.default_rng(history)
    pages, streams = 0, 150
    for _ in range(streams):
        losses = 0.4 * np.exp(0.1 * ar1(rng, history + HALF_YEAR, rho))
        thresholds = calibrate([], losses[:history].tolist(), budget=BUDGET, relevant=0.0)
        pages += sum(judge(None, LossWindow(mean=float(loss)), thresholds).lane == "page" for loss in losses[history:])
    per_half_year = pages / streams
    assert 0.5 <= per_half_year <= 1.6  # one is the budget; pages of correlated weeks come in clusters


def test_a_threshold_that_ignores_the_small_sample_would_page_twice_as_often():
    rng = np.random.default_rng(1)
    honest = naive = 0
    for _ in range(300):
        losses = 0.4 + 0.02 * rng.normal(size=6 + HALF_YEAR)
        thresholds = calibrate([], losses[:6].tolist(), budget=BUDGET, relevant=0.0)
        assert thresholds.loss is not None
        honest += int((losses[6:] > thresholds.loss.upper).sum())
        naive += int((losses[6:] > losses[:6].mean() + 1.764 * losses[:6].std()).sum())  # 1.764: the normal quantile
    assert honest / 300 <= 1.3
    assert naive > 2 * honest


def test_columns_without_drift_stay_near_the_budget(reference):
    reports = judged = 0
    for seed in range(8):
        windows = weeks(reference, 100 + seed, 17 + HALF_YEAR)
        thresholds = calibrate(windows[:17], None, budget=BUDGET, least_move=0.0)
        for window in windows[17:]:
            reports += bool(judge(window, None, thresholds).changed)
            judged += 1
    assert reports / judged <= 2 * BUDGET


def test_a_tighter_budget_never_lowers_a_threshold(reference):
    windows = weeks(reference, 3, 12)
    losses = [0.4, 0.41, 0.38, 0.42, 0.39, 0.4, 0.43]
    loose, tight = (calibrate(windows, losses, budget=budget) for budget in (0.1, 0.01))
    assert loose.loss is not None and tight.loss is not None
    assert tight.loss.upper > loose.loss.upper
    assert all(tight.columns[name].upper > loose.columns[name].upper for name in loose.columns)


# --- what pages ---------------------------------------------------------------------------------------------------


def test_harm_is_a_page_and_says_how_much(normal, reference):
    judged = judge(weeks(reference, 50, 1)[0], LossWindow(mean=0.52, rows=800), normal)
    assert judged.lane == "page"
    assert judged.text.startswith("loss 0.52 a decision, 31% above the usual 0.39")
    assert judged.loss_high


def test_a_rise_of_a_fifth_is_found_in_most_weeks_and_a_usual_week_is_not(normal):
    rng = np.random.default_rng(11)
    found = [judge(None, LossWindow(mean=float(0.48 * math.exp(0.05 * rng.normal()))), normal).lane == "page" for _ in range(200)]
    assert np.mean(found) > 0.85
    assert judge(None, LossWindow(mean=0.41), normal).lane == "none"
    assert judge(None, LossWindow(mean=0.2), normal).lane == "none"


def test_significance_alone_is_never_a_page(reference):
    rng = np.random.default_rng(0)
    steady = [LossWindow(mean=float(0.4 + 0.0005 * rng.normal())) for _ in range(17)]
    thresholds = calibrate(weeks(reference, 3, 17), steady, budget=BUDGET)
    judged = judge(None, LossWindow(mean=0.404), thresholds)
    assert judged.lane == "digest"
    assert judged.loss_high
    assert "too small a rise to matter" in judged.text
    moved = judge(profile(week(rng, warmer=40), reference), LossWindow(mean=0.4), thresholds)
    assert moved.lane == "digest"
    assert moved.columns[0].name == "temp"
    assert not moved.loss_high


def test_a_noisy_small_window_is_given_more_room(normal):
    assert judge(None, LossWindow(mean=0.5, rows=800), normal).lane == "page"
    assert judge(None, LossWindow(mean=0.5, rows=12, error=0.12), normal).lane == "none"


def test_small_windows_are_not_unusual_for_being_rough(normal, reference):
    rng = np.random.default_rng(2)
    changed = sum(bool(judge(profile(week(rng, rows=40), reference), None, normal).changed) for _ in range(60))
    assert changed <= 6


@dataclass(frozen=True)
class Fault:
    kind: str = "unit"
    columns: tuple[str, ...] = ("temp",)
    text: str = "temp looks like °C where °F is declared"
    confidence: float = 0.9
    since: datetime = datetime(2013, 9, 3, tzinfo=UTC)
    repair: object = None
    evidence: dict[str, float] = field(default_factory=dict)


def test_a_data_fault_is_a_page_before_any_outcome_is_known(normal, reference):
    window = weeks(reference, 60, 1)[0]
    assert judge(window, None, normal, [Fault()]).lane == "page"
    assert judge(window, None, normal, [Fault(confidence=0.2)]).lane == "none"


def test_moved_columns_are_ranked_and_described(normal, reference):
    rng = np.random.default_rng(4)
    judged = judge(profile(week(rng, warmer=15, carriers=(0.1, 0.3, 0.6), nulls=0.0), reference), None, normal)
    assert {shift.name for shift in judged.changed} == {"temp", "carrier"}
    assert judged.lane == "digest"
    empty = judge(profile(week(rng, nulls=0.6), reference), None, normal)
    assert "temp (empty in 0.0% of the rows, now 5" in empty.text or "temp (empty in 0.0% of the rows, now 6" in empty.text


def test_unusual_volume_is_news(normal, reference):
    judged = judge(profile(week(np.random.default_rng(0), rows=200), reference), None, normal)
    assert judged.volume_unusual
    assert judged.lane == "digest"
    assert "200 decisions where 800 are usual" in judged.text


# --- little history -----------------------------------------------------------------------------------------------


def test_with_little_history_it_says_learning_and_never_pages(reference):
    thresholds = calibrate(weeks(reference, 3, 3), [0.4, 0.41], budget=BUDGET)
    assert thresholds.learning == "seen 3 of 5 windows of inputs and 2 of 5 windows of outcomes"
    judged = judge(profile(week(np.random.default_rng(0), warmer=80), reference), LossWindow(mean=9.0), thresholds)
    assert judged.lane == "none"
    assert judged.text.startswith("still learning")
    assert calibrate([], [], budget=BUDGET).learning


def test_few_windows_mean_wide_bounds():
    values = [0.40, 0.41, 0.39, 0.42, 0.38]
    assert level(values, BUDGET).upper > level(values * 4, BUDGET).upper > 0.42
    with pytest.raises(PalanError, match="too few"):
        level(values[: FEWEST_WINDOWS - 1], BUDGET)
    with pytest.raises(PalanError, match="not a finite"):
        level([*values, float("nan")], BUDGET)


def test_a_column_that_varies_much_can_still_be_seen_to_move(reference):
    # Distances are shares: however wide they vary in the reference, the threshold stays below all rows.
    rng = np.random.default_rng(8)
    stormy = [profile(week(rng, warmer=float(12 * rng.normal())), reference) for _ in range(17)]
    thresholds = calibrate(stormy, None, budget=BUDGET)
    assert 0.3 < thresholds.columns["temp"].upper < 1.0
    assert judge(profile(week(rng, warmer=90), reference), None, thresholds).columns[0].changed


def test_losses_that_may_be_negative_or_never_change_are_judged_too():
    assert level([-1.0, 0.5, 0.2, -0.3, 0.1], BUDGET).form == "plain"
    thresholds = calibrate([], [0.0] * 6, budget=BUDGET)
    assert judge(None, LossWindow(mean=0.0), thresholds).lane == "none"
    assert judge(None, LossWindow(mean=0.5), thresholds).lane == "page"


def test_a_budget_of_more_than_one_page_a_window_is_refused():
    with pytest.raises(PalanError) as caught:
        calibrate([], [], budget=1.5)
    assert "1 per 180d" in caught.value.hint


def test_thresholds_are_plain_values(normal, reference):
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(normal), type=Thresholds)
    assert again == normal
    with pytest.raises(PalanError, match="other bins"):
        judge(profile(week(np.random.default_rng(0)), freeze(week(np.random.default_rng(5)))), None, normal)


# --- when it began ------------------------------------------------------------------------------------------------


def days(count: int, start: date = date(2013, 9, 1)) -> list[date]:
    return [start + timedelta(days=i) for i in range(count)]


def test_the_day_of_a_step_is_found_and_a_steady_series_has_none():
    rng = np.random.default_rng(0)
    series = {day: (float(0.4 + 0.01 * rng.normal() + 0.05 * (i >= 20)), 300) for i, day in enumerate(days(28))}
    assert break_day(series) == date(2013, 9, 21)
    false = sum(break_day({day: (float(rng.normal()), 1) for day in days(28)}) is not None for _ in range(200))
    assert false <= 30
    assert break_day(dict.fromkeys(days(3), (1.0, 1))) is None


def test_the_day_on_which_inputs_moved_is_found(reference):
    rng = np.random.default_rng(0)
    seen = {day: profile(week(rng, rows=100, warmer=25 * (i >= 10)), reference) for i, day in enumerate(days(14))}
    assert shift_day(seen, "temp") == date(2013, 9, 11)
    seen = {day: profile(week(rng, rows=200, carriers=(0.5, 0.3, 0.2) if i < 5 else (0.1, 0.1, 0.8)), reference) for i, day in enumerate(days(14))}
    assert shift_day(seen, "carrier") == date(2013, 9, 6)


# --- what kind ----------------------------------------------------------------------------------------------------


def loss_of(frame: pl.DataFrame, rng: np.random.Generator, *, worse: float = 0.0) -> np.ndarray:
    """Cold hours lose more; `worse` adds the same for every input."""
    cold = np.clip((50 - frame["temp"].to_numpy()) / 40, 0, 1)
    return 0.3 + 0.4 * cold + worse + 0.1 * rng.normal(size=frame.height)


def test_colder_weeks_explain_their_loss_by_inputs_and_a_changed_world_does_not():
    rng = np.random.default_rng(3)
    before = pl.concat([week(rng, rows=3000) for _ in range(4)])
    losses = loss_of(before, rng)
    colder = week(rng, rows=4000, warmer=-20)
    shifted = split_loss(before, losses, colder, loss_of(colder, rng), ["temp", "carrier"], groups=10)
    assert shifted.total > 0.1
    assert shifted.inputs / shifted.total > 0.8
    same = week(rng, rows=4000)
    changed = split_loss(before, losses, same, loss_of(same, rng, worse=0.08), ["temp", "carrier"])
    assert changed.concept == pytest.approx(0.08, abs=0.02)
    assert changed.concept_low > 0
    assert changed.inputs + changed.concept == pytest.approx(changed.total)


def test_the_concept_interval_holds_and_allows_for_common_days():
    rng = np.random.default_rng(5)
    covered = rows_only = 0
    for _ in range(60):
        before, after = week(rng, rows=600), week(rng, rows=700)
        day = np.repeat(np.arange(14), 50)
        luck = (rng.normal(size=14) * 0.1)[day]
        first, second = rng.normal(size=600) * 0.3, rng.normal(size=700) * 0.3 + luck
        honest = split_loss(before, first, after, second, ["wind"], days=day)
        naive = split_loss(before, first, after, second, ["wind"])
        covered += honest.concept_low <= 0 <= honest.concept_high
        rows_only += naive.concept_low <= 0 <= naive.concept_high
    assert covered >= 49
    assert rows_only < covered - 6


def test_the_worst_cell_names_where_the_world_changed():
    rng = np.random.default_rng(6)
    before, after = week(rng, rows=4000), week(rng, rows=4000)
    worse = np.where(after["carrier"].to_numpy() == "EV", 0.5, 0.0)
    found = split_loss(before, rng.normal(size=4000) * 0.2, after, rng.normal(size=4000) * 0.2 + worse, ["carrier"])
    assert found.cells[0]["where"] == "carrier EV"
    assert found.cells[0]["after"] - found.cells[0]["before"] == pytest.approx(0.5, abs=0.05)


def test_inputs_without_overlap_say_nothing_about_the_concept():
    before, after = pl.DataFrame({"c": ["a"] * 50}), pl.DataFrame({"c": ["b"] * 50})
    found = split_loss(before, np.zeros(50), after, np.ones(50), ["c"])
    assert (found.shared, found.inputs, found.concept_low) == (0.0, 1.0, -np.inf)
    with pytest.raises(PalanError, match="one loss"):
        split_loss(before, [1.0], after, np.ones(50), ["c"])


def release(day: date) -> Release:
    return Release("delay", 4, datetime(day.year, day.month, day.day, 9, tzinfo=UTC), (Arm("delay@4", "champion", 1.0),))


def test_kinds_are_told_apart_in_the_order_of_their_remedies(normal, reference):
    rng = np.random.default_rng(9)
    warm = profile(week(rng, warmer=30), reference)
    usual = weeks(reference, 70, 1)[0]
    high = LossWindow(mean=0.6, rows=800)
    by_day = {day: LossWindow(mean=0.4 if i < 10 else 0.6, rows=100) for i, day in enumerate(days(17))}
    broke = days(17)[10]

    fault = diagnose(judged=judge(warm, high, normal, [Fault()]), hypotheses=[Fault(), Fault(kind="nulls", columns=("wind",), confidence=0.1)], loss_by_day=by_day, releases_since=[release(broke)])
    assert (fault.kind, fault.columns) == ("data fault", ("temp",))

    blamed = diagnose(judged=judge(warm, high, normal), loss_by_day=by_day, releases_since=[release(days(17)[2]), release(broke)])
    assert blamed.kind == "release change"
    assert "delay@4" in blamed.text

    innocent = diagnose(judged=judge(warm, high, normal), loss_by_day=by_day, releases_since=[release(days(17)[2])])
    assert (innocent.kind, innocent.columns[0]) == ("input shift", "temp")

    concept = diagnose(judged=judge(usual, high, normal), loss_by_day=by_day)
    assert (concept.kind, concept.since) == ("concept change", datetime(2013, 9, 11, tzinfo=UTC))

    harmless = diagnose(judged=judge(warm, LossWindow(mean=0.4), normal))
    assert harmless.kind == "input shift"
    assert "the loss stays within its normal range (0.4, usually 0.3" in harmless.text

    fewer = profile(week(rng, rows=150), reference)
    judged = judge(fewer, None, normal)
    counts = {day: 800 // 7 if i < 12 else 20 for i, day in enumerate(days(17))}
    volume = diagnose(judged=judged, volume=counts)
    assert (volume.kind, volume.since) == ("volume change", datetime(2013, 9, 13, tzinfo=UTC))

    calm = diagnose(judged=judge(usual, LossWindow(mean=0.4), normal))
    assert calm.kind == "unknown"
    assert {item.kind for item in (fault, blamed, innocent, concept, volume, calm)} <= set(DIAGNOSES)


def test_the_split_overrules_moved_columns(normal, reference):
    rng = np.random.default_rng(12)
    before, after = pl.concat([week(rng, rows=3000) for _ in range(3)]), week(rng, rows=4000, warmer=10)
    judged = judge(profile(after, reference), LossWindow(mean=0.6, rows=4000), normal)
    assert judged.changed
    world = split_loss(before, loss_of(before, rng), after, loss_of(after, rng, worse=0.3), ["temp"])
    assert diagnose(judged=judged, split=world).kind == "concept change"
    colder = week(rng, rows=4000, warmer=-20)
    mix = split_loss(before, loss_of(before, rng), colder, loss_of(colder, rng), ["temp"], groups=10)
    found = diagnose(judged=judged, split=mix)
    assert found.kind == "input shift"
    assert "% of the rise comes from other inputs (temp)" in found.text


# -- words -----------------------------------------------------------------------------------------------------------------


def test_a_title_is_one_line_with_what_where_and_both_days() -> None:
    columns = tuple(ColumnShift(name, 0.9, 0.2, 0.1, 0.001, True, f"{name} (90% of its rows)") for name in ("temperature_outside", "dewp", "wind"))
    began, seen = datetime(2013, 6, 24, tzinfo=UTC), datetime(2013, 7, 1, 12, tzinfo=UTC)
    high = Judged("page", "", columns, loss=0.669, loss_usual=0.4879, loss_threshold=0.62, loss_high=True)
    moved = Judged("digest", "", columns, loss=0.48, loss_usual=0.4879, loss_threshold=0.62)
    fault = "a_very_long_name_of_a_column and another_one are in °C instead of °F since 2013-06-24: put right, the days fit"
    names = tuple(each.name for each in columns)
    said = [
        title(high, Diagnosis("concept change", "it rose", began, names), began, seen),
        title(moved, Diagnosis("input shift", "they moved", began, names), began, seen),
        title(moved, Diagnosis("data fault", fault, began, ("temp",)), began, seen),
        title(moved, Diagnosis("data fault", "temp is in °C instead of °F since 2013-06-24: put right", began, ("temp",)), began, began),
        title(Judged("digest", "x" * 300), Diagnosis("unknown", "x" * 300, None, ()), began, seen),
    ]
    assert said == [
        "loss 37% above usual since 2013-06-24 (seen 2013-07-01)",
        "temperature_outside, dewp, wind moved since 2013-06-24 (seen 2013-07-01)",
        "data fault in temp since 2013-06-24 (seen 2013-07-01)",
        "temp is in °C instead of °F since 2013-06-24",
        "unknown since 2013-06-24 (seen 2013-07-01)",
    ]
    assert all(len(each) <= TITLE for each in said)


def test_a_loss_is_told_in_plain_numbers_with_its_unit_its_usual_value_and_the_limit(reference: Reference) -> None:
    months = [LossWindow(mean=mean, rows=1) for mean in (900, 2384, 4249, 505, 3081, 1467, 4560)]
    normal = calibrate(weeks(reference, 0, 7), months, budget=0.04)
    judged = judge(None, LossWindow(mean=14_645.0, rows=1), normal, unit="minutes")
    assert judged.text.startswith("loss 14,645 minutes a decision, ")
    assert re.search(r"above the usual \d,\d{3} \(limit \d{2},\d{3}\)", judged.text)
    assert "e+" not in judged.text


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.0, "0"), (0.4879360, "0.4879"), (-0.016132, "-0.01613"), (21_570.4, "21,570"), (999_999.0, "999,999"), (0.00002, "0.00002"), (12.0, "12"), (math.inf, "inf")],
)
def test_a_figure_has_no_exponent(value: float, said: str) -> None:
    assert figure(value) == said
