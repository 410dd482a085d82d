"""A candidate is judged against the champion: intervals that hold, verdicts that do not flatter, gates that explain."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palan.core import Field, Schema
from palan.errors import PalanError
from palan.gates import paired, rules
from palan.gates.spec import GateSpec, parse
from palan.models.contract import Violation


def ar1(rng: np.random.Generator, n: int, rho: float) -> np.ndarray:
    values = np.zeros(n + 20)
    noise = rng.normal(size=n + 20) * math.sqrt(1 - rho * rho)
    for i in range(1, n + 20):
        values[i] = rho * values[i - 1] + noise[i]
    return values[20:]


# --- distributions ------------------------------------------------------------------------------------------------


def test_student_and_binomial_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the sklearn extra")
    for freedom in (1, 2.5, 7, 30, 500):
        for p in (0.01, 0.2, 0.5, 0.9, 0.961, 0.9997):
            assert paired.t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-8, abs=1e-9)
        for t in (-4.0, -0.3, 0.0, 1.7, 6.0):
            assert paired.t_cdf(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-10)
    for k, n in ((0, 5), (3, 20), (20, 20)):
        exact = stats.binomtest(k, n).proportion_ci()
        assert paired.binomial_interval(k, n) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert paired.sign_test([-1, -2, -3, -4, 5, 0]) == pytest.approx(stats.binomtest(4, 5, alternative="greater").pvalue)


def test_student_against_printed_tables():
    assert paired.t_quantile(0.975, 10) == pytest.approx(2.228, abs=5e-4)
    assert paired.t_quantile(0.95, 4) == pytest.approx(2.132, abs=5e-4)


# --- intervals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "rho"), [(7, 0.0), (14, 0.3), (28, 0.0), (28, 0.3)])
def test_equal_models_are_promoted_in_at_most_one_of_twenty_trials(days, rho):
    rng = np.random.default_rng(days)
    blocks = np.repeat(np.arange(days), 20)
    trials, promoted = 600, 0
    for _ in range(trials):
        losses = np.repeat(ar1(rng, days, rho) * 0.3, 20) + rng.normal(size=days * 20)
        promoted += paired.non_inferior(losses, np.zeros_like(losses), blocks=blocks, serial=True).verdict == "pass"
    # 5 % nominal; the bound is the 99 % point of a binomial around it.
    assert promoted / trials <= 0.05 + 2.33 * math.sqrt(0.05 * 0.95 / trials)


def test_a_model_worse_by_the_margin_passes_in_at_most_one_of_twenty_trials_and_one_within_it_usually():
    rng = np.random.default_rng(3)
    blocks = np.repeat(np.arange(28), 30)
    verdicts = {worse: [] for worse in (0.0, 0.1)}
    for worse, seen in verdicts.items():
        for _ in range(300):
            champion = rng.gamma(2.0, size=840)
            candidate = champion + worse + rng.normal(scale=0.5, size=840)
            seen.append(paired.non_inferior(candidate, champion, margin=0.1, blocks=blocks, serial=True).verdict)
    assert verdicts[0.1].count("pass") / 300 <= 0.08
    assert verdicts[0.0].count("pass") / 300 >= 0.95


def test_ignoring_days_would_promote_too_often():
    rng = np.random.default_rng(5)
    blocks = np.repeat(np.arange(14), 50)
    naive = honest = 0
    for _ in range(300):
        losses = np.repeat(rng.normal(size=14) * 0.4, 50) + rng.normal(size=700)
        naive += paired.non_inferior(losses, np.zeros(700)).verdict == "pass"
        honest += paired.non_inferior(losses, np.zeros(700), blocks=blocks).verdict == "pass"
    assert naive / 300 > 0.15 > 0.09 > honest / 300


def test_bootstrap_covers_skewed_losses_and_repeats_itself():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        found = paired.interval(rng.exponential(size=60), confidence=0.9, method="bootstrap", resamples=400, seed=7)
        covered += found.low <= 1.0 <= found.high
    assert 0.84 <= covered / 200 <= 0.96
    values = rng.exponential(size=60)
    assert paired.interval(values, method="bootstrap", seed=1) == paired.interval(values, method="bootstrap", seed=1)


def test_rows_weigh_equally_though_days_differ_in_size():
    values = np.array([1.0, 1, 1, 1, 5, 3])
    found = paired.interval(values, ["mon"] * 4 + ["tue", "wed"])
    assert found.mean == pytest.approx(values.mean())
    assert (found.rows, found.blocks) == (6, 3)


def test_exact_bounds_for_right_or_wrong_answers():
    champion = np.r_[np.ones(10), np.zeros(190)]
    candidate = np.r_[np.zeros(9), np.ones(1), np.zeros(190)]
    judged = paired.non_inferior(candidate, champion)
    assert judged.verdict == "pass"
    assert judged.interval.method == "exact"
    assert paired.non_inferior(champion, candidate, margin=0.0).verdict == "fail"
    assert paired.non_inferior(np.r_[1.0, np.zeros(199)], np.zeros(200)).verdict == "cannot tell"


def test_identical_losses_pass_only_where_no_gain_is_asked():
    same = np.linspace(0, 1, 50)
    assert paired.non_inferior(same, same).verdict == "pass"
    assert paired.non_inferior(same, same, margin=-0.01).verdict == "fail"


def test_two_days_are_not_evidence():
    judged = paired.non_inferior([0.0, 0.1, 0.0, 0.1], [1.0, 1.1, 1.0, 1.1], blocks=[1, 1, 2, 2])
    assert judged.verdict == "cannot tell"
    assert "too few" in judged.text


def test_broken_losses_are_refused():
    with pytest.raises(PalanError, match="1 of 2 paired losses"):
        paired.interval([1.0, float("nan")])
    with pytest.raises(PalanError, match="3 losses but 2 blocks"):
        paired.interval([1.0, 2.0, 3.0], [1, 2])
    with pytest.raises(PalanError, match="2 losses of the candidate but 1"):
        paired.non_inferior([1.0, 2.0], [1.0])


# --- segments -----------------------------------------------------------------------------------------------------


def test_the_harmed_segment_is_named_and_harmless_ones_are_not():
    rng = np.random.default_rng(2)
    segments = np.repeat(["EWR", "JFK", "LGA"], 400)
    days = np.tile(np.repeat(np.arange(20), 20), 3)
    differences = rng.normal(-0.05, 0.5, size=1200) + np.where(segments == "JFK", 0.4, 0.0)
    found = paired.by_segment(differences, segments, blocks=days)
    assert found[0].name == "JFK" and found[0].worse
    assert not any(part.worse for part in found[1:])


def test_many_harmless_segments_rarely_produce_a_name():
    rng = np.random.default_rng(4)
    segments = np.repeat(np.arange(20), 40)
    named = sum(any(part.worse for part in paired.by_segment(rng.normal(size=800), segments)) for _ in range(100))
    assert named <= 11  # 5 nominal


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_only_raises_and_keeps_the_order(p_values):
    adjusted = paired.holm(p_values)
    assert all(after >= before for before, after in zip(p_values, adjusted, strict=True))
    for i, first in enumerate(p_values):
        for j, second in enumerate(p_values):
            assert not first < second or adjusted[i] <= adjusted[j]


# --- sizes --------------------------------------------------------------------------------------------------------


def test_shifted_geometric_mean_and_ratio():
    assert paired.shifted_geometric_mean([3.0, 3.0]) == pytest.approx(3.0)
    assert paired.shifted_geometric_mean([0.0, 99.0], shift=1.0) == pytest.approx(9.0)
    slower = paired.geometric_ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0], shift=1e-9)
    assert slower.mean == pytest.approx(2.0)
    with pytest.raises(PalanError, match="larger shift"):
        paired.shifted_geometric_mean([-2.0])


# --- gates --------------------------------------------------------------------------------------------------------


def test_gate_lines_are_read():
    assert parse("champion margin=0.002") == GateSpec("champion", {"margin": 0.002})
    assert parse("latency 50ms").options["limit"] == pytest.approx(0.05)
    assert parse("latency limit=2s").options["limit"] == 2.0
    assert parse("decision_diff 5%").options["most"] == pytest.approx(0.05)
    assert parse("golden") == GateSpec("golden", {})


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("champoin", 'no gate "champoin"', 'did you mean "champion"?'),
        ("champion margn=1", 'champion does not take "margn"', 'did you mean "margin"?'),
        ("champion margin=low", 'margin cannot be "low"', "for example margin=0.002"),
        ("latency 50parsecs", 'limit cannot be "50parsecs"', "for example limit=50ms"),
        ("golden 3", 'golden does not take "3"', "it takes no options"),
        ("decision_diff 500%", 'most cannot be "500%"', "for example most=5%"),
        ("latency -1", 'limit cannot be "-1"', "for example limit=50ms"),
        ("latency 0ms", 'limit cannot be "0ms"', "for example limit=50ms"),
        ("latency 1e999s", 'limit cannot be "1e999s"', "for example limit=50ms"),
        ("champion margin=nan", 'margin cannot be "nan"', "for example margin=0.002"),
        ("champion margin=inf", 'margin cannot be "inf"', "for example margin=0.002"),
        ("champion confidence=100%", 'confidence cannot be "100%"', "for example confidence=95%"),
        ("beats_baselines confidence=0.5", 'confidence cannot be "0.5"', "for example confidence=95%"),
        ("bound_sane tolerance=-1", 'tolerance cannot be "-1"', "for example tolerance=1e-6"),
        ("", "a gate is empty", "write one of"),
    ],
)
def test_a_wrong_gate_line_says_what_would_do(line, what, hint):
    with pytest.raises(PalanError) as caught:
        parse(line)
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_champion_gate_fails_for_a_harmed_segment_though_the_mean_is_better():
    rng = np.random.default_rng(8)
    origin = np.repeat(["EWR", "JFK", "LGA"], 300)
    days = np.tile(np.repeat(np.arange(15), 20), 3)
    champion = rng.gamma(2.0, size=900)
    candidate = champion + np.where(origin == "LGA", 0.3, -0.4) + rng.normal(scale=0.2, size=900)
    finding = rules.champion(candidate, champion, days=days, segments={"origin": origin})
    assert finding.verdict == "fail"
    assert "origin LGA is harmed" in finding.text
    assert finding.figures["difference"]["high"] < 0
    assert rules.champion(candidate, champion, days=days).verdict == "pass"


def test_golden_cases_compare_nested_outputs():
    cases = [
        {"input": {"x": 1}, "output": 0.30, "tolerance": 0.05},
        {"input": {"x": 2}, "output": {"offer": "meal", "amount": 12}, "tolerance": 0},
        {"input": {"x": 3}, "output": [1, 2.0]},
    ]
    good = [{"output": 0.33}, {"offer": "meal", "amount": 12, "rule": 4}, [1, 2.0]]
    assert rules.golden(cases, good).verdict == "pass"
    bad = [0.36, {"offer": "hotel", "amount": 12}, [1, 2.0]]
    finding = rules.golden(cases, bad)
    assert finding.verdict == "fail"
    assert finding.text == "2 of 3 golden cases differ; case 1: output is 0.36, expected 0.3 ± 0.05"
    assert finding.figures["wrong"][1]["why"] == "output.offer is 'hotel', expected 'meal'"
    assert rules.golden([{"output": True}], [1]).verdict == "fail"
    assert rules.golden([{"output": 1.0}], [float("nan")]).verdict == "fail"
    assert rules.golden([], []).verdict == "cannot tell"


def test_feasibility_names_plan_and_rule():
    assert rules.feasibility({"a": [], "b": []}).verdict == "pass"
    finding = rules.feasibility({"a": [], "b": [Violation("overlap", "gate 7", 4.0)]})
    assert finding.verdict == "fail"
    assert "b: overlap gate 7" in finding.text
    assert rules.feasibility({}).verdict == "cannot tell"


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ((100.0, 99.0, "minimize"), "pass"),
        ((100.0, 101.0, "minimize"), "fail"),
        ((100.0, 101.0, "maximize"), "pass"),
        ((100.0, 99.0, "maximize"), "fail"),
        ((100.0, 100.00001, "minimize"), "pass"),
        ((100.0, None, "minimize"), "cannot tell"),
        ((None, 1.0, "minimize"), "cannot tell"),
        ((float("nan"), 1.0, "minimize"), "fail"),
        ((1.0, float("nan"), "minimize"), "fail"),
    ],
)
def test_an_objective_cannot_beat_its_bound(figures, verdict):
    assert rules.bound_sane(*figures).verdict == verdict


def test_a_reported_objective_must_be_the_recomputed_one():
    assert rules.bound_sane(100.0, 99.0, "minimize", recomputed=100.0).verdict == "pass"
    assert "is 103 when recomputed" in rules.bound_sane(100.0, 99.0, "minimize", recomputed=103.0).text


def test_latency_is_judged_by_the_share_that_is_late():
    assert rules.latency([0.01] * 100, 0.05).verdict == "pass"
    assert rules.latency([0.01] * 97 + [0.5] * 3, 0.05).verdict == "pass"
    assert rules.latency([0.01] * 94 + [0.5] * 6, 0.05).verdict == "cannot tell"
    assert rules.latency([0.01] * 50 + [0.5] * 50, 0.05).verdict == "fail"
    assert rules.latency([1.0, 2.0, 3.0], 5.0).verdict == "pass"
    assert rules.latency([1.0, 2.0, 6.0], 5.0).verdict == "cannot tell"
    assert rules.latency([], 5.0).verdict == "cannot tell"


def test_decision_diff_of_rows_names_the_largest_change():
    old = pl.DataFrame({"p": [0.1, 0.2, 0.3, None], "offer": ["a", "b", "c", "d"]})
    new = pl.DataFrame({"p": [0.1, 0.9, 0.31, None], "offer": ["a", "b", "c", "d"]})
    finding = rules.decision_diff(old, new, keys=["k0", "k1", "k2", "k3"], most=0.6)
    assert finding.verdict == "pass"
    assert finding.figures["changed"] == 2
    assert finding.figures["examples"][0]["key"] == "k1"
    assert rules.decision_diff(old, new, most=0.25).verdict == "fail"
    assert rules.decision_diff(old, new, tolerance=0.05).figures["changed"] == 1
    assert rules.decision_diff(old, new.drop("offer")).verdict == "fail"


def test_decision_diff_of_plans_counts_what_moved():
    old = [{"assignments": {"UA1": "A1", "UA2": "A2"}}, {"assignments": {"B61": "T5"}}]
    new = [{"assignments": {"UA1": "A2", "UA2": "A1"}}, {"assignments": {"B61": "T5"}}]
    finding = rules.decision_diff(old, new)
    assert (finding.figures["changed"], finding.figures["largest_change"]) == (1, 2.0)


def test_a_release_may_not_break_callers():
    old = Schema("rows", (Field("temp", "float", True, -30, 120), Field("origin", "str", values=("EWR", "JFK"))))
    wider = Schema("rows", (Field("temp", "float", True, -40, 130), Field("origin", "str", values=("EWR", "JFK", "LGA")), Field("seats", "int", True)))
    assert rules.schema_compatible(old, wider).verdict == "pass"
    back = rules.schema_compatible(wider, old)
    assert back.verdict == "fail"
    assert set(back.figures["problems"]) == {
        "seats is no longer accepted",
        "temp must now be at least -30",
        "temp must now be at most 120",
        "origin may no longer be LGA",
    }
    needed = Schema("rows", (*old.fields, Field("seats", "int")))
    assert rules.schema_compatible(old, needed).text == "seats is new and must be sent"
    nested = Schema("instance", (Field("flights", "list", item=Field("", "map", fields=(Field("id", "int"),))),))
    retyped = Schema("instance", (Field("flights", "list", item=Field("", "map", fields=(Field("id", "str"),))),))
    assert rules.schema_compatible(nested, retyped).text == "flights[].id was int and must now be str"


def test_table_problems_are_shown_with_their_counter_example():
    assert rules.table_checks([]).verdict == "pass"
    finding = rules.table_checks([{"kind": "gap", "text": "no row decides", "example": {"delay": 15}}])
    assert finding.verdict == "fail"
    assert finding.text == "1 gap: no row decides (for example delay=15)"
    assert rules.table_checks([{"kind": "unknown", "text": "gave up", "example": {}}]).verdict == "cannot tell"


def test_a_policy_must_beat_every_baseline():
    rng = np.random.default_rng(0)
    luck = rng.normal(size=200)
    returns = list(luck + 1.0)
    baselines = {"random": list(luck), "wait": list(luck + 0.95 + np.tile([2.0, -2.0], 100))}
    finding = rules.beats_baselines(returns, baselines)
    assert finding.verdict == "cannot tell"
    assert "wait" in finding.text
    assert rules.beats_baselines(returns, {"random": baselines["random"]}).verdict == "pass"
    assert rules.beats_baselines(list(luck), {"leave": returns}).verdict == "fail"
    assert rules.beats_baselines(returns, {}).verdict == "cannot tell"


@pytest.mark.parametrize(
    ("low", "gain", "high", "text"),
    [
        (0.016, 0.0238, 0.0317, "gained 0.0238 a decision against the champion (90% interval: a gain of 0.016 to 0.0317)"),
        (-0.03, -0.02, -0.01, "lost 0.02 a decision against the champion (90% interval: a loss of 0.01 to 0.03)"),
        (-0.0366, -0.0161, 0.0043, "no measurable difference from the champion: lost 0.0161 a decision by the estimate (90% interval: a loss of 0.0366 to a gain of 0.0043)"),
        (-math.inf, 0.2, math.inf, "gained 0.2 a decision against the champion, over too few days to tell it from chance"),
    ],
)
def test_a_gain_is_a_positive_number_with_its_verb(low: float, gain: float, high: float, text: str) -> None:
    assert paired.told(low, gain, high, "the champion") == text
