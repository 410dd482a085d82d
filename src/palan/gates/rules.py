"""What must hold before a release: each gate is a pure function from figures to a finding.

A finding says pass, fail or "cannot tell", in a sentence, with the figures behind it. "Cannot tell" is an answer: too
little evidence is not a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from palan.core import Field, Schema
from palan.gates.nouns import Finding, Verdict
from palan.gates.paired import Interval, binomial_interval, by_segment, gained, interval, non_inferior
from palan.models.contract import Violation


def champion(
    candidate: npt.ArrayLike,
    champion: npt.ArrayLike,
    *,
    margin: float = 0.0,
    confidence: float = 0.95,
    days: Sequence[Any] | npt.NDArray[Any] | None = None,
    segments: Mapping[str, Sequence[Any]] | None = None,
) -> Finding:
    """Compare losses on the same decisions: not worse than the champion by more than the margin, in no segment.

    Args:
        candidate, champion: shape (n,), loss of each decision; the same decisions in the same order.
        margin: what may be lost per decision; negative: what must be gained.
        days: shape (n,), sortable; the blocks that are independent of one another but for their neighbours.
        segments: column name -> shape (n,) labels. A segment fails the gate only where harm is shown (Holm-corrected),
            with the margin doubled: a part may pay for the whole, within reason.
    """
    judged = non_inferior(candidate, champion, margin=margin, blocks=days, confidence=confidence, serial=days is not None)
    verdict, text = judged.verdict, judged.text
    figures: dict[str, Any] = {"difference": _plain(judged.interval), "margin": margin}
    differences = np.asarray(candidate, dtype=np.float64) - np.asarray(champion, dtype=np.float64)
    figures["losses"] = {"candidate": _mean(candidate), "champion": _mean(champion)}
    worst: list[dict[str, Any]] = []
    for column, labels in (segments or {}).items():
        parts = by_segment(differences, labels, margin=2 * max(margin, 0.0), blocks=days, confidence=confidence, serial=days is not None)
        worst += [{"column": column, "segment": part.name, "harm": part.harm, "worse": part.worse, **_plain(part.interval)} for part in parts]
    worst.sort(key=lambda row: (row["harm"], -row["mean"]))
    figures["segments"] = worst
    if worst and worst[0]["worse"]:
        first = worst[0]
        verdict = "fail"
        text += f"; {first['column']} {first['segment']} is harmed: {gained(-first['mean'])} a decision over {first['rows']:,} decisions"
    return Finding("champion", verdict, text, figures)


def _mean(values: npt.ArrayLike) -> float | None:
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()) if array.size else None


def _plain(found: Interval) -> dict[str, Any]:
    """An interval as JSON can hold it: unknown bounds are None."""
    return {
        "mean": found.mean,
        "low": found.low if math.isfinite(found.low) else None,
        "high": found.high if math.isfinite(found.high) else None,
        "rows": found.rows,
        "blocks": found.blocks,
    }


def golden(cases: Sequence[Mapping[str, Any]], got: Sequence[Any]) -> Finding:
    """Compare outputs with the golden cases `{"input", "output", "tolerance"?}`: all must match.

    Numbers match within the case's absolute tolerance (default 1e-9); of a mapping only the expected keys are compared.
    """
    if not cases:
        return Finding("golden", "cannot tell", "there are no golden cases")
    if len(cases) != len(got):
        return Finding("golden", "fail", f"{len(cases)} golden cases but {len(got)} outputs", {"cases": len(cases)})
    wrong = []
    for place, (case, output) in enumerate(zip(cases, got, strict=True), start=1):
        why = _mismatch(case.get("output"), output, float(case.get("tolerance", 1e-9)), "output")
        if why:
            wrong.append({"case": place, "name": str(case.get("name", "")), "why": why, "input": case.get("input")})
    figures = {"cases": len(cases), "wrong": wrong}
    if wrong:
        first = wrong[0]
        return Finding("golden", "fail", f"{len(wrong)} of {len(cases)} golden cases differ; case {first['case']}: {first['why']}", figures)
    return Finding("golden", "pass", f"all {len(cases)} golden cases match", figures)


def _mismatch(expected: Any, got: Any, tolerance: float, where: str) -> str:
    """Return what differs first, or an empty string."""
    if not isinstance(expected, Mapping) and isinstance(got, Mapping) and len(got) == 1:
        got = next(iter(got.values()))  # one output column, written without its name
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            return f"{where} is {got!r}, expected a mapping"
        parts = (_mismatch(value, got[key], tolerance, f"{where}.{key}") if key in got else f"{where}.{key} is missing" for key, value in expected.items())
        return next((part for part in parts if part), "")
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            return f"{where} is {got!r}, expected {len(expected)} elements"
        pairs = enumerate(zip(expected, got, strict=True))
        return next((part for part in (_mismatch(a, b, tolerance, f"{where}[{i}]") for i, (a, b) in pairs) if part), "")
    if isinstance(expected, bool) or isinstance(got, bool) or not (isinstance(expected, (int, float)) and isinstance(got, (int, float))):
        return "" if expected == got and type(expected) is type(got) else f"{where} is {got!r}, expected {expected!r}"
    if expected == got or abs(expected - got) <= tolerance:  # equal first: infinities are equal but have no distance
        return ""
    return f"{where} is {got:.6g}, expected {expected:.6g} ± {tolerance:g}"


def feasibility(violations: Mapping[str, Sequence[Violation]]) -> Finding:
    """Judge the independent checks of plans: instance name -> what its check found (an empty list where nothing)."""
    if not violations:
        return Finding("feasibility", "cannot tell", "no plan was checked")
    broken = {name: found for name, found in violations.items() if found}
    rules: dict[str, int] = {}
    for found in broken.values():
        for violation in found:
            rules[violation.rule] = rules.get(violation.rule, 0) + 1
    figures = {"plans": len(violations), "broken": sorted(broken), "rules": rules}
    if not broken:
        return Finding("feasibility", "pass", f"no violation in {len(violations)} plans", figures)
    name, found = next(iter(broken.items()))
    first = found[0]
    example = first.message or f"{first.rule} {first.where}".strip()
    return Finding("feasibility", "fail", f"{len(broken)} of {len(violations)} plans break a rule; {name}: {example}", figures)


def bound_sane(
    objective: float | None, bound: float | None, sense: str, *, recomputed: float | None = None, tolerance: float = 1e-6
) -> Finding:
    """A solver cannot beat its own bound, and its objective must be the one recomputed from the data.

    `sense` is minimize or maximize; `tolerance` is relative to max(1, |objective|), as solvers mean it.
    """
    figures = {"objective": objective, "bound": bound, "sense": sense, "recomputed": recomputed}
    if objective is None:
        return Finding("bound_sane", "cannot tell", "there is no objective to judge", figures)
    if not math.isfinite(objective) or (bound is not None and math.isnan(bound)):
        return Finding("bound_sane", "fail", f"objective {objective} and bound {bound} are not numbers to decide by", figures)
    slack = tolerance * max(1.0, abs(objective))
    if recomputed is not None and not abs(recomputed - objective) <= slack:
        return Finding("bound_sane", "fail", f"the objective is reported as {objective:.6g}, but is {recomputed:.6g} when recomputed from the plan", figures)
    if bound is None:
        return Finding("bound_sane", "cannot tell", f"objective {objective:.6g} comes without a bound", figures)
    better_than_possible = objective - bound if sense == "maximize" else bound - objective
    if better_than_possible > slack:
        return Finding("bound_sane", "fail", f"objective {objective:.6g} is better than its bound {bound:.6g}: one of them is wrong", figures)
    gap = abs(objective - bound) / max(abs(objective), 1e-9)
    return Finding("bound_sane", "pass", f"objective {objective:.6g} within {gap:.2%} of its bound", figures | {"gap": gap})


def latency(seconds: Sequence[float], limit: float) -> Finding:
    """Judge whether 95% of the decisions are answered within `limit` seconds.

    fail only where the exact lower bound of the share that is late exceeds 5 %: one slow answer in a busy minute is
    not yet a slow model. With fewer than 20 answers all of them must be in time.
    """
    if not seconds:
        return Finding("latency", "cannot tell", "no answer was timed", {"limit": limit})
    times = np.asarray(seconds, dtype=np.float64)
    late, n = int((times > limit).sum()), len(times)
    p95 = float(np.quantile(times, 0.95, method="higher"))
    figures = {"limit": limit, "p50": float(np.median(times)), "p95": p95, "max": float(times.max()), "answers": n, "late": late}
    text = f"95% of {n} answers within {_time(p95)}, the limit is {_time(limit)}"
    if late == 0 or (n >= 20 and p95 <= limit):
        return Finding("latency", "pass", text, figures)
    verdict: Verdict = "fail" if binomial_interval(late, n, 0.90)[0] > 0.05 else "cannot tell"
    return Finding("latency", verdict, f"{text}; {late} were late", figures)


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def decision_diff(
    old: pl.DataFrame | Sequence[Any],
    new: pl.DataFrame | Sequence[Any],
    *,
    keys: Sequence[str] | None = None,
    most: float | None = None,
    tolerance: float = 1e-9,
    examples: int = 5,
    what: str = "recent decisions",
) -> Finding:
    """Show what a change does to recent decisions: the share that differs, by how much, and which ones most.

    Args:
        old, new: outputs for the same decisions in the same order: frames of output columns, or plans as plain values.
        keys: what to call each decision; its position otherwise.
        most: the largest share that may change; None reports without judging.
        tolerance: numbers closer than this are the same.
        examples: how many of the largest changes are kept.
        what: what the decisions are to the reader.
    """
    count = len(old)
    if count != len(new):
        return Finding("decision_diff", "fail", f"{count} decisions before but {len(new)} after", {"before": count, "after": len(new)})
    if count == 0:
        return Finding("decision_diff", "cannot tell", f"there are no {what} to compare", {"decisions": 0})
    names = list(keys) if keys is not None else [str(i) for i in range(count)]
    if isinstance(old, pl.DataFrame) and isinstance(new, pl.DataFrame):
        if old.columns != new.columns:
            text = f"the outputs were {', '.join(old.columns)} and are now {', '.join(new.columns)}"
            return Finding("decision_diff", "fail", text, {"before": old.columns, "after": new.columns})
        sizes = _frame_distance(old, new, tolerance)
    else:
        sizes = np.array([_plan_distance(a, b, tolerance) for a, b in zip(list(old), list(new), strict=True)], dtype=np.float64)
    changed = np.flatnonzero(sizes > 0)
    share = len(changed) / count
    order = changed[np.argsort(-sizes[changed], kind="stable")][:examples]
    shown = [{"key": names[i], "old": _row(old, int(i)), "new": _row(new, int(i)), "size": float(sizes[i])} for i in order]
    figures = {
        "decisions": count,
        "changed": len(changed),
        "share": share,
        "mean_change": float(sizes[changed].mean()) if len(changed) else 0.0,
        "largest_change": float(sizes.max()),
        "examples": shown,
    }
    text = f"{len(changed)} of {count} {what} change ({share:.2%})"
    if shown:
        text += f"; the most in {shown[0]['key']}: {_short(shown[0]['old'])} becomes {_short(shown[0]['new'])}"
    if most is not None and share > most:
        return Finding("decision_diff", "fail", f"{text}; at most {most:.2%} may", figures)
    return Finding("decision_diff", "pass", text, figures)


def _frame_distance(old: pl.DataFrame, new: pl.DataFrame, tolerance: float) -> npt.NDArray[np.float64]:
    """Largest change over the output columns of each row: |difference| of numbers, 1 where anything else differs."""
    sizes = np.zeros(old.height)
    for column in old.columns:
        before, after = old[column], new[column]
        if before.dtype.is_numeric() and after.dtype.is_numeric():
            a, b = before.cast(pl.Float64).to_numpy(), after.cast(pl.Float64).to_numpy()
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            with np.errstate(invalid="ignore"):
                size = np.where(same, 0.0, np.nan_to_num(np.abs(a - b), nan=1.0, posinf=1e308))
            size[size <= tolerance] = 0.0
        elif before.dtype == after.dtype:
            size = before.ne_missing(after).cast(pl.Float64).to_numpy()
        else:
            size = np.array([float(a != b) for a, b in zip(before.to_list(), after.to_list(), strict=True)])
        sizes = np.maximum(sizes, size)
    return sizes


def _plan_distance(old: Any, new: Any, tolerance: float) -> float:
    """Number of leaves of two plain values that differ (a missing one counts as one)."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        shared = old.keys() & new.keys()
        return len(old.keys() ^ new.keys()) + sum(_plan_distance(old[key], new[key], tolerance) for key in shared)
    if isinstance(old, (list, tuple)) and isinstance(new, (list, tuple)):
        return abs(len(old) - len(new)) + sum(_plan_distance(a, b, tolerance) for a, b in zip(old, new, strict=False))
    if isinstance(old, float) and isinstance(new, (int, float)):
        return float(not (old == new or abs(old - new) <= tolerance))
    return float(old != new)


def _row(values: pl.DataFrame | Sequence[Any], place: int) -> Any:
    if not isinstance(values, pl.DataFrame):
        return values[place]
    row = values.row(place, named=True)
    return next(iter(row.values())) if len(row) == 1 else row


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


_WIDER = {("int", "float"), ("date", "time")}


def schema_compatible(old: Schema, new: Schema) -> Finding:
    """Judge whether every input that fits the old schema fits the new one: callers need not change on a release."""
    problems = [] if old.shape == new.shape else [f"the model took {old.shape} and now takes {new.shape}"]
    problems += _narrower(old.fields, new.fields, "")
    figures = {"problems": problems, "added": sorted(set(new.names) - set(old.names))}
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Finding("schema_compatible", "fail", problems[0] + more, figures)
    return Finding("schema_compatible", "pass", "every request of today is still accepted", figures)


def _narrower(old: Sequence[Field], new: Sequence[Field], path: str) -> list[str]:
    after = {part.name: part for part in new}
    before = {part.name: part for part in old}
    problems = [f"{path}{name} is no longer accepted" for name in before if name not in after]
    problems += [f"{path}{name} is new and must be sent" for name, part in after.items() if name not in before and not part.nullable]
    for name in before.keys() & after.keys():
        problems += _narrower_field(before[name], after[name], path + name)
    return problems


def _narrower_field(a: Field, b: Field, path: str) -> list[str]:
    if b.type == "any":
        return []
    if a.type != b.type and (a.type, b.type) not in _WIDER:
        return [f"{path} was {a.type} and must now be {b.type}"]
    problems = [f"{path} may no longer be empty"] if a.nullable and not b.nullable else []
    if b.minimum is not None and (a.minimum is None or a.minimum < b.minimum):
        problems.append(f"{path} must now be at least {b.minimum:g}")
    if b.maximum is not None and (a.maximum is None or a.maximum > b.maximum):
        problems.append(f"{path} must now be at most {b.maximum:g}")
    lost = sorted(set(a.values) - set(b.values))
    if b.values and not a.values:
        problems.append(f"{path} must now be one of {', '.join(b.values[:5])}")
    elif b.values and lost:
        problems.append(f"{path} may no longer be {', '.join(lost[:5])}")
    if a.item is not None and b.item is not None:
        problems += _narrower_field(a.item, b.item, f"{path}[]")
    return problems + _narrower(a.fields, b.fields, f"{path}.")


def table_checks(problems: Sequence[Mapping[str, Any]]) -> Finding:
    """Judge what the table's own check found: `{"kind", "text", "example"}` each, as models.table.check_table gives them.

    A kind `unknown` (the search was given up) is no fault, but without other findings it cannot be called a pass.
    """
    kinds: dict[str, int] = {}
    for problem in problems:
        kind = str(problem.get("kind", "problem"))
        kinds[kind] = kinds.get(kind, 0) + 1
    figures = {"kinds": kinds, "problems": [dict(problem) for problem in problems]}
    if not problems:
        return Finding("table_checks", "pass", "the table decides every input, each row can fire, and no two rows conflict", figures)
    known = [problem for problem in problems if problem.get("kind") != "unknown"]
    verdict: Verdict = "fail" if known else "cannot tell"
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    told = [_problem(each) for each in (known or problems)[:SHOWN]]
    more = len(known or problems) - len(told)
    return Finding("table_checks", verdict, f"{counted}: {'; '.join(told)}" + (f"; and {more} more, with --json" if more else ""), figures)


SHOWN = 5
"""Problems of a table that its verdict names; all are in its figures."""


def _problem(problem: Mapping[str, Any]) -> str:
    example = ", ".join(f"{name}={value!r}" for name, value in problem.get("example", {}).items())
    return str(problem.get("text", problem.get("kind", ""))) + (f" (for example {example})" if example else "")


def beats_baselines(
    returns: Sequence[float], baselines: Mapping[str, Sequence[float]], *, margin: float = 0.0, confidence: float = 0.95
) -> Finding:
    """Compare a policy's returns with each baseline's over the same seeded episodes (higher is better).

    Every baseline must be beaten; as all must, no correction for their number is due (intersection-union, Berger 1982).
    """
    if not baselines:
        return Finding("beats_baselines", "cannot tell", "there is no baseline to compare with")
    rows: list[dict[str, Any]] = []
    for name, theirs in baselines.items():
        if len(theirs) != len(returns):
            text = f"{len(returns)} episodes of the policy but {len(theirs)} of {name}"
            return Finding("beats_baselines", "cannot tell", text, {"baseline": name})
        differences = np.asarray(returns, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
        found = interval(differences, confidence=2 * confidence - 1)
        verdict: Verdict = "pass" if found.low > margin else "fail" if found.high <= margin else "cannot tell"
        rows.append({"baseline": name, "verdict": verdict, "return": _mean(theirs), **_plain(found)})
    rank = {"fail": 0, "cannot tell": 1, "pass": 2}
    rows.sort(key=lambda row: (rank[row["verdict"]], row["mean"]))
    hardest = rows[0]
    verdict = hardest["verdict"]
    spread = "" if hardest["low"] is None else f", between {hardest['low']:+.4g} and {hardest['high']:+.4g}"
    said = {"pass": "beats every baseline", "fail": f"does not beat {hardest['baseline']}", "cannot tell": f"may or may not beat {hardest['baseline']}"}
    text = f"{said[verdict]}: {hardest['mean']:+.4g} an episode against {hardest['baseline']}{spread}"
    return Finding("beats_baselines", verdict, text, {"return": _mean(returns), "margin": margin, "baselines": rows})
