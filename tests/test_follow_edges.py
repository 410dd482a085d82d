"""Following at its edges: the work that is followed is never harmed, and what is logged is what the library itself says."""

from __future__ import annotations

import pickle
import re
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import palan
from palan.flows.courier import Courier
from palan.flows.project import Project, open_project
from palan.flows.runs import curve, run_page, search
from palan.flows.track import start

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


@contextmanager
def full(project: Project, room: int) -> Iterator[None]:
    """Let no file of this process grow any more once so many bytes are appended to what is logged."""
    used = max(file.stat().st_size for file in (project.folder / "blocks").rglob("*") if file.is_file())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (used + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# what is the same for all


def test_a_disk_that_is_full_ends_the_reports_and_not_the_work(project: Project, capfd: pytest.CaptureFixture[str]) -> None:
    import gymnasium
    import lightgbm
    import optuna
    from sklearn.model_selection import GridSearchCV
    from sklearn.tree import DecisionTreeClassifier

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    x, y = data()
    for room in (0, 300, 1500):
        env, study, grid = gymnasium.make("CartPole-v1"), optuna.create_study(), GridSearchCV(DecisionTreeClassifier(), {"max_depth": [1, 2, 3, 4]}, cv=3)
        for what, work in {
            grid: lambda grid=grid: grid.fit(x, y),
            study: lambda study=study: study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=6),
            env: lambda env=env: [env.reset(seed=step) if step % 30 == 0 else env.step(step % 2) for step in range(900)],
        }.items():
            run = palan.follow(what, "filling", project=project)
            with full(project, room):
                work()
                if room:
                    run.end()  # which cannot be written either
            run.end()
            assert type(what) is what.__class__
            assert capfd.readouterr().err.count("following stopped") == 1
            found = run_page(project, run.id)
            assert found["status"] == "done"
            assert room or found["tags"]["following"].endswith("cannot be written: File too large")
        assert (len(study.trials), len(grid.cv_results_["params"]), grid.best_score_ > 0.5) == (6, 4, True)
        sets = lightgbm.Dataset(x, y)
        train = palan.follow(lightgbm.train, "filling", project=project)
        with full(project, room // 5):
            assert train({"objective": "binary", "verbose": -1, "num_threads": 1}, sets, 12, valid_sets=[sets]).num_trees() == 12
        assert capfd.readouterr().err.count("following stopped") == 1


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


def test_what_a_search_is_made_of_does_not_hide_what_it_found(project: Project) -> None:
    import joblib
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, RandomizedSearchCV

    class Fussy(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
        def __init__(self, k: int = 0) -> None:
            self.k = k

        def fit(self, features: Any, labels: Any) -> Any:
            if self.k == 2:
                raise ValueError("not two")
            self.classes_ = np.unique(labels)
            return self

        def predict(self, features: Any) -> Any:
            return np.zeros(len(features), int)

    x, y = data()
    grid = GridSearchCV(Fussy(), {"k": [2, None, 1]}, cv=3, scoring=lambda *_: 0.5, refit=False)
    with palan.follow(grid, "fussy", project=project):
        grid.fit(x, y)
    whole, failed, none, one = runs(project, "experiment = 'fussy'")
    assert whole["metrics"] == {"candidates": 3.0, "objective": 0.5}
    assert whole["params"]["scoring"].endswith("<lambda>>")  # where it lies would differ from run to run
    assert (failed["status"], failed["reason"], none["status"], none["params"], one["params"]) == ("failed", "a score of it is no number", "done", {"k": "None"}, {"k": "1"})
    random = RandomizedSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, n_iter=2, random_state=np.int64(7), scoring=["accuracy", "roc_auc"], refit=False)
    with palan.follow(random, "random", project=project) as first, palan.follow(random, "random", project=project) as second:
        random.fit(x, y)
    for run in (first, second):
        assert run_page(project, run.id)["params"]["seed"] == "7"
        scores = [each["metrics"]["mean_test_roc_auc"] for each in runs(project, f"parent = '{run.id}' and name LIKE 'candidate%'")]
        assert scores == random.cv_results_["mean_test_roc_auc"].tolist()
    model = CalibratedClassifierCV(LogisticRegression(C=0.5))
    before = joblib.hash(LogisticRegression()), joblib.hash(model)
    with palan.follow(model, "calibrated", project=project) as run:
        assert joblib.hash(model) == before[1]
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.dumps(model, protocol) == pickle.dumps(CalibratedClassifierCV(LogisticRegression(C=0.5)), protocol)
        model.fit(x, y)
    params = run_page(project, run.id)["params"]
    assert (params["estimator"], params["estimator.estimator"]) == ("CalibratedClassifierCV", "LogisticRegression(C=0.5)")


# Optuna


def test_a_study_is_asked_only_of_trials_that_may_be_the_best(project: Project) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    asked: list[str] = []

    class Storage(optuna.storages.InMemoryStorage):
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            return super().__getattribute__(name)

    def objective(trial: Any) -> float:
        return float(trial.number + trial.suggest_int("n", 1, 1))

    def asks(follow: bool) -> Counter[str]:
        study = optuna.create_study(storage=Storage(), sampler=optuna.samplers.RandomSampler(seed=1))
        asked.clear()
        with palan.follow(study, project=project) if follow else nullcontext():
            study.optimize(objective, n_trials=40)
        return Counter(asked)

    more = asks(follow=True) - asks(follow=False)
    assert more["get_best_trial"] <= 2  # as it begins, and after the first trial: none was better
    assert sum(more.values()) < 20

    carried: list[int] = []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    with start("far", project=project) as run:  # nor does a trial wait for what is carried elsewhere
        run.place = msgspec.structs.replace(run.place, courier=Courier(lambda: carried.append(1), "far"))
        palan.follow(study, run=run)
        study.optimize(objective, n_trials=40)
    assert len(runs(project, "experiment = 'far'")) == 41
    assert 1 <= len(carried) < 20


def test_the_best_of_a_study_is_what_optuna_says_of_threads_other_processes_and_constraints(project: Project) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=30, constraints_func=lambda trial: (0.5 - trial.params["x"],))
    bound = optuna.create_study(sampler=sampler)
    with palan.follow(bound, project=project) as run:
        bound.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=25)
    best = curve(project, run.id, "objective")
    assert best["values"] == sorted(best["values"], reverse=True)
    assert (best["values"][-1], best["steps"][-1]) == (bound.best_value, bound.best_trial.number)
    assert best["values"][-1] >= 0.5 > min(trial.value for trial in bound.trials)

    storage = optuna.storages.InMemoryStorage()
    here = optuna.create_study(study_name="shared", storage=storage, direction="maximize")
    there = optuna.load_study(study_name="shared", storage=storage)
    lock = threading.Barrier(3)

    def objective(trial: Any) -> float:
        if trial.number < 3:
            lock.wait()  # three at once
        elif trial.number == 6:
            there.add_trial(optuna.trial.create_trial(value=100.0))
        elif trial.number == 9:
            raise KeyboardInterrupt
        return {4: 50.0, 8: 99.0}.get(trial.number, 7.0 - trial.number)

    with pytest.raises(KeyboardInterrupt), palan.follow(here, project=project) as run:
        here.optimize(objective, n_trials=6, n_jobs=3)
        here.optimize(objective, n_trials=6)
    assert curve(project, run.id, "objective")["values"][-1] == 50.0  # the better ones are not of this process, or not better
    assert [each["status"] for each in runs(project, f"parent = '{run.id}'", "name")][-1] == "killed"
    with palan.follow(there, project=project) as run:
        there.tell(there.ask(), 101.0)
    assert curve(project, run.id, "objective")["values"] == [100.0, 101.0]


def test_what_a_trial_was_given_is_seen_as_soon_as_it_reports(project: Project) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    seen: list[dict[str, Any]] = []

    def objective(trial: Any) -> float:
        trial.suggest_categorical("layers", [(8, 8)])
        trial.report(0.5, 0)
        trial.report(0.25, 0)  # Optuna takes a step once
        seen.extend(runs(project, "name LIKE 'trial%'"))
        trial.suggest_int("late", 3, 3)
        trial.set_user_attr("note", "x" * 20_000)
        assert isinstance(trial, optuna.Trial) and type(trial).__name__ == "Trial"
        return 1.0

    study = optuna.create_study(storage=optuna.storages.InMemoryStorage())
    with palan.follow(study, project=project):
        study.optimize(objective, n_trials=1)
        copied = pickle.loads(pickle.dumps(study))
        copied.optimize(lambda trial: 2.0, n_trials=1)  # which nobody follows
    assert [(each["status"], each["params"], each["metrics"]) for each in seen] == [("running", {"layers": "(8, 8)"}, {"reported": 0.5})]
    (after,) = runs(project, "name LIKE 'trial%'")
    assert (after["params"], after["metrics"]) == ({"layers": "(8, 8)", "late": "3"}, {"reported": 0.5, "objective": 1.0})
    assert len(after["tags"]["note"]) == 1000


# LightGBM and XGBoost


def test_a_training_is_called_as_ever_and_fails_as_ever(project: Project) -> None:
    import lightgbm
    import xgboost

    x, y = data()
    sets, params = lightgbm.Dataset(x, y, free_raw_data=False), {"objective": "binary", "verbose": -1, "num_threads": 1}
    with start("boosting", project=project) as run:
        train = palan.follow(lightgbm.train, run=run, note="two in one")
        first = train(params, sets, 3, [sets], ["all"], None, None, False, [lightgbm.log_evaluation(0)])
        train(params=params, train_set=sets, num_boost_round=2, valid_sets=[sets], valid_names=["all"], init_model=first)
    assert curve(project, run.id, "all/binary_logloss")["steps"] == [0, 1, 2, 3, 4]
    assert run_page(project, run.id)["params"]["note"] == "two in one"
    assert train(params, sets, 2).num_trees() == 2  # the run has ended
    matrix, plain = xgboost.DMatrix(x, y), {"objective": "binary:logistic", "nthread": 1}
    folds = palan.follow(xgboost.cv, "folds", project=project)(plain, matrix, 4, 3, as_pandas=False)  # by place, as it still takes them
    (found,) = runs(project, "experiment = 'folds'")
    assert curve(project, found["run"], "test/logloss")["values"] == pytest.approx(folds["test-logloss-mean"])
    for wrong in (lightgbm.train, xgboost.train):
        with pytest.raises(TypeError) as expected:
            wrong(params, bogus=1)
        with pytest.raises(TypeError, match=re.escape(str(expected.value))):
            palan.follow(wrong, "wrong", project=project)(params, bogus=1)
    model = xgboost.XGBClassifier(n_estimators=2, n_jobs=1, random_state=np.int64(3))
    with pytest.raises(xgboost.core.XGBoostError), palan.follow(model, "model", project=project):
        model.fit(x, y[:10])
    (found,) = runs(project, "experiment = 'model'")
    assert model.callbacks is None
    assert (found["params"]["seed"], found["params"]["estimator"]) == ("3", "XGBClassifier")
    assert "Check failed" in found["reason"]  # the first of many lines, not the last

    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        palan.follow(lightgbm.train, "stopped", project=project)(params, sets, 3, valid_sets=[sets], callbacks=[stop])
    (found,) = runs(project, "experiment = 'stopped'")
    assert (found["status"], "training/binary_logloss" in found["metrics"]) == ("killed", True)


# gymnasium


def test_episodes_are_counted_whoever_resets(project: Project) -> None:
    import gymnasium
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
    from gymnasium.wrappers import Autoreset, RecordEpisodeStatistics

    class Short(gymnasium.Env[Any, Any]):
        observation_space, action_space = gymnasium.spaces.Box(0, 1, (1,)), gymnasium.spaces.Discrete(2)
        steps = 0

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.steps = 0
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            self.steps += 1
            return np.zeros(1, dtype=np.float32), np.array([2.0]), False, self.steps == 4 + action, {}

    def make() -> Any:
        return RecordEpisodeStatistics(gymnasium.make("CartPole-v1", max_episode_steps=12))

    short, itself = Short(), Autoreset(make())
    with palan.follow(short, project=project) as run:
        for action in (0, 1):
            short.reset()
            while not short.step(action)[3]:
                pass
        short.reset()
        short.step(0)  # an episode that is left is none
        short.reset()
    assert (curve(project, run.id, "length")["values"], curve(project, run.id, "return")["values"]) == ([4.0, 5.0], [8.0, 10.0])
    with palan.follow(itself, project=project) as run:
        itself.reset(seed=1)
        for step in range(60):
            itself.step(step % 2)
    assert curve(project, run.id, "length")["values"] == list(itself.get_wrapper_attr("length_queue"))
    disabled, beside = SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.DISABLED), AsyncVectorEnv([make])
    over, own = np.zeros(2, dtype=bool), []
    with palan.follow(disabled, project=project) as run:
        disabled.reset(seed=[4, 5])
        for step in range(60):
            if over.any():
                disabled.reset(options={"reset_mask": over})
            _, _, terminated, truncated, _ = disabled.step(np.array([step % 2, 1]))
            over = terminated | truncated
    for each in disabled.envs:
        own += list(each.get_wrapper_attr("length_queue"))
    assert sorted(curve(project, run.id, "length")["values"]) == sorted(own)
    assert run_page(project, run.id)["params"]["seed"] == "[4, 5]"
    with palan.follow(beside, project=project) as run:
        beside.reset_async(seed=1)
        beside.reset_wait()
        for step in range(30):
            beside.step_async(np.array([step % 2]))
            beside.step_wait()
    (lengths,) = beside.call("get_wrapper_attr", "length_queue")
    beside.close()
    assert curve(project, run.id, "length")["values"] == list(lengths)
