"""Following at its edges: the work that is followed is never harmed, and what is logged is what the library itself says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import palan
from palan.flows.fold import tracked
from palan.flows.project import Project, open_project
from palan.flows.runs import run_page, search

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "palan.toml").write_text('[project]\nname = "tuning"\n', encoding="utf-8")
    return open_project(tmp_path)


def runs(project: Project, where: str = "", *order: str) -> list[dict[str, Any]]:
    return list(search(project, where, order=order or ["time"])["runs"])


def data(rows: int = 120) -> tuple[Any, Any]:
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, 4))
    return x, (x[:, 0] + 0.3 * random.normal(size=rows) > 0).astype(int)


def full(monkeypatch: pytest.MonkeyPatch, project: Project, after: int) -> list[int]:
    """Let the disk be full once so many records more are written; return what counts how often somebody tried."""
    tried: list[int] = []
    kind = type(tracked(project))
    append = kind.append

    def refused(*args: Any, **kwargs: Any) -> None:
        tried.append(1)
        if len(tried) > after:
            raise OSError(28, "No space left on device")
        append(*args, **kwargs)

    monkeypatch.setattr(kind, "append", refused)
    return tried


# what is the same for all


@pytest.mark.parametrize("after", [1, 3, 9], ids=["at once", "soon", "later"])
def test_a_disk_that_fills_up_ends_the_reports_and_not_the_work(project: Project, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], after: int) -> None:
    import gymnasium
    import lightgbm
    import optuna
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    x, y = data()
    env, study, grid = gymnasium.make("CartPole-v1"), optuna.create_study(), GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0, 2.0, 3.0]}, cv=3)
    with monkeypatch.context() as patch:
        for what, work in {
            grid: lambda: grid.fit(x, y),
            study: lambda: study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=6),
            env: lambda: [env.reset(seed=step) if step % 30 == 0 else env.step(step % 2) for step in range(600)],
            lightgbm.train: lambda: None,
        }.items():
            tried = full(patch, project, after)
            if what is lightgbm.train:
                sets = lightgbm.Dataset(x, y)
                booster = palan.follow(what, project=project)({"objective": "binary", "verbose": -1}, sets, 12, valid_sets=[sets])
                assert booster.num_trees() == 12
            else:
                run = palan.follow(what, project=project)
                work()
                run.end()
                assert type(what) is what.__class__
            assert after < len(tried) <= after + 5
            told = capfd.readouterr().err
            assert told.count("following stopped: [Errno 28] No space left on device") == 1
            patch.undo()
    assert (len(study.trials), len(grid.cv_results_["params"]), grid.best_score_ > 0.5) == (6, 4, True)


# scikit-learn


def test_candidates_of_a_search_that_halves_are_seen_while_it_goes_on(project: Project) -> None:
    from sklearn.experimental import enable_halving_search_cv  # noqa: F401
    from sklearn.model_selection import HalvingGridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    x, y = data()
    seen: list[int] = []

    def rung(estimator: Any, features: Any, labels: Any) -> float:
        seen.append(len(runs(project, "name LIKE 'candidate%'")))
        return float(estimator.score(features, labels))

    grid = {"max_depth": [None, 1, 2, 3, 4, 5]}
    plain = HalvingGridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=2, scoring=rung, random_state=1, factor=3).fit(x, y)
    seen.clear()
    followed = HalvingGridSearchCV(DecisionTreeClassifier(random_state=0), grid, cv=2, scoring=rung, random_state=1, factor=3)
    with palan.follow(followed, project=project) as run:
        followed.fit(x, y)
    assert seen[0] == 0
    assert seen[-1] == plain.n_candidates_[0]  # the first rung, while the second was judged
    assert followed.best_params_ == plain.best_params_
    assert followed.cv_results_["mean_test_score"].tolist() == plain.cv_results_["mean_test_score"].tolist()
    parts = runs(project, f"parent = '{run.id}'")
    assert [each["metrics"]["rank_test_score"] for each in parts] == plain.cv_results_["rank_test_score"].tolist()
    assert [each["metrics"]["n_resources"] for each in parts] == plain.cv_results_["n_resources"].tolist()
    assert parts[0]["params"]["max_depth"] == "None"
    assert (run_page(project, run.id)["params"]["seed"], run_page(project, run.id)["metrics"]["objective"]) == ("1", followed.best_score_)
