"""Following what works by itself: searches, trainings, solves and environments log themselves, through the real libraries."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import palan
from palan.errors import Invalid
from palan.flows.project import Project, open_project
from palan.flows.runs import curve, run_page, search
from palan.flows.track import start

HEAD = """
import palan
from palan.flows.runs import curve, search
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    (tmp_path / "palan.toml").write_text('[project]\nname = "tuning"\n', encoding="utf-8")
    return open_project(tmp_path)


def runs(project: Project, where: str = "", *order: str) -> list[dict[str, Any]]:
    return list(search(project, where, order=order or ["time"])["runs"])


def alone(project: Project, code: str) -> str:
    """Run a script in a process of its own: not all solvers can be loaded beside each other."""
    done = subprocess.run([sys.executable, "-c", HEAD + textwrap.dedent(code)], cwd=project.root, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def data(rows: int = 200) -> tuple[Any, Any]:
    random = np.random.default_rng(3)
    x = random.normal(size=(rows, 4))
    return x, (x[:, 0] + 0.3 * random.normal(size=rows) > 0).astype(int)


# scikit-learn


def test_each_candidate_of_a_search_is_a_run(project: Project) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    x, y = data()
    grid = GridSearchCV(LogisticRegression(), {"C": [0.01, 0.1, 1.0]}, cv=4)
    with palan.follow(grid, "grid", project=project) as run:
        assert grid.fit(x, y) is grid
    assert type(grid) is GridSearchCV
    whole = run_page(project, run.id)
    assert whole["metrics"]["objective"] == pytest.approx(grid.best_score_)
    assert (whole["params"]["estimator"], whole["params"]["best.C"]) == ("LogisticRegression", str(grid.best_params_["C"]))
    found = runs(project, f"parent = '{run.id}'", "metrics.rank_test_score")
    assert {float(each["params"]["C"]): each["metrics"]["mean_test_score"] for each in found} == dict(zip([0.01, 0.1, 1.0], grid.cv_results_["mean_test_score"], strict=True))
    assert found[0]["params"]["C"] == str(grid.best_params_["C"])
    best = curve(project, found[0]["run"], "test_score")
    assert best["values"] == [grid.cv_results_[f"split{split}_test_score"][grid.best_index_] for split in range(4)]


def test_what_is_followed_can_be_pickled_cloned_and_looked_at(project: Project) -> None:
    import inspect

    from sklearn.base import clone
    from sklearn.neural_network import MLPClassifier

    x, y = data()
    net = MLPClassifier((4,), max_iter=5, random_state=1)
    plain = inspect.signature(net.fit)
    with palan.follow(net, project=project):
        assert inspect.signature(net.fit) == plain
        again, twin = pickle.loads(pickle.dumps(net)), copy.deepcopy(net)
        clone(net).fit(x, y)
        again.fit(x, y)
        twin.fit(x, y)
    (found,) = runs(project)
    assert found["metrics"] == {}  # only the one that is followed reports


def test_iterations_that_an_estimator_keeps_become_curves(project: Project) -> None:
    from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
    from sklearn.neural_network import MLPClassifier

    x, y = data()
    net = MLPClassifier((4,), max_iter=7, random_state=1, tol=0)
    trees = GradientBoostingClassifier(n_estimators=9)
    forest = RandomForestClassifier(3, oob_score=True, n_jobs=2)
    for each in (net, trees, forest):
        with palan.follow(each, type(each).__name__, project=project):
            each.fit(x, y)
    first, second, third = runs(project)
    assert curve(project, first["run"], "loss_curve")["values"] == net.loss_curve_
    assert first["params"]["max_iter"] == "7"
    assert curve(project, second["run"], "train_score")["values"] == trees.train_score_.tolist()
    assert third["metrics"]["oob_score"] == pytest.approx(forest.oob_score_)


def test_a_fit_that_fails_is_a_run_that_failed(project: Project) -> None:
    from sklearn.linear_model import LinearRegression

    model = LinearRegression()
    with pytest.raises(ValueError, match="inconsistent"), palan.follow(model, project=project):
        model.fit([[1.0]], [1.0, 2.0])
    (found,) = runs(project)
    assert (found["status"], "inconsistent" in found["reason"]) == ("failed", True)
    assert type(model) is LinearRegression


# Optuna


def test_each_trial_of_a_study_is_a_run(project: Project) -> None:
    optuna = pytest.importorskip("optuna", reason="no Optuna: pip install optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))

    def objective(trial: Any) -> float | None:
        x = trial.suggest_float("x", -2, 2)
        if trial.number == 3:
            raise ValueError("no such x")
        for step in range(3):
            trial.report(x + step, step)
            if trial.number == 4 and step == 1:
                raise optuna.TrialPruned
        if trial.number == 5:
            return None
        with start("inner", project=project):
            return float(x * x)

    with palan.follow(study, "tuning", project=project) as run:
        study.optimize(objective, n_trials=8, catch=ValueError)
    assert type(study) is optuna.Study
    trials = {each["name"]: each for each in runs(project, f"parent = '{run.id}'")}
    assert [trials[f"trial {number}"]["status"] for number in range(8)] == ["done", "done", "done", "failed", "done", "failed", "done", "done"]
    assert trials["trial 3"]["reason"] == "ValueError: no such x"
    assert trials["trial 4"]["tags"] == {"status": "pruned"}
    assert "objective" not in trials["trial 4"]["metrics"]
    assert curve(project, trials["trial 4"]["run"], "reported")["values"] == pytest.approx([study.trials[4].params["x"], study.trials[4].params["x"] + 1])
    assert "returned None" in trials["trial 5"]["reason"]
    for number in (0, 1, 2, 6, 7):
        told = trials[f"trial {number}"]
        assert float(told["params"]["x"]) == study.trials[number].params["x"]
        assert told["metrics"]["objective"] == study.trials[number].value
        assert len(runs(project, f"parent = '{told['run']}' and experiment = 'inner'")) == 1
    whole = run_page(project, run.id)
    assert (whole["metrics"]["objective"], whole["params"]["direction"]) == (study.best_value, "minimize")
    assert curve(project, run.id, "objective")["steps"][-1] == study.best_trial.number


def test_trials_of_several_threads_and_of_ask_and_tell_are_runs(project: Project) -> None:
    optuna = pytest.importorskip("optuna", reason="no Optuna: pip install optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["minimize", "maximize"])
    with palan.follow(study, project=project) as run:
        study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 2.0), n_trials=12, n_jobs=3)
        trial = study.ask()
        trial.suggest_int("n", 7, 7)
        study.tell(trial, [1.0, 3.0])
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
    found = runs(project, f"parent = '{run.id}'", "name")
    assert sorted(each["name"] for each in found) == sorted(f"trial {number}" for number in range(14))
    told = {each["name"]: each for each in found}
    assert (told["trial 12"]["params"], told["trial 12"]["metrics"]) == ({"n": "7"}, {"objective.0": 1.0, "objective.1": 3.0})
    assert told["trial 13"]["status"] == "failed"


def test_an_objective_that_raises_ends_the_study_and_its_run(project: Project) -> None:
    optuna = pytest.importorskip("optuna", reason="no Optuna: pip install optuna")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study()

    def objective(trial: Any) -> float:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError), palan.follow(study, project=project):
        study.optimize(objective, n_trials=3)
    assert [(each["status"], each["reason"]) for each in runs(project)] == [("failed", "RuntimeError: out of memory")] * 2


# LightGBM and XGBoost


def test_every_evaluation_of_lightgbm_is_a_point(project: Project) -> None:
    lightgbm = pytest.importorskip("lightgbm", reason="no LightGBM: pip install lightgbm")
    x, y = data()
    kept: dict[str, Any] = {}
    params = {"objective": "binary", "metric": ["auc", "binary_logloss"], "verbose": -1, "num_threads": 1}
    sets = lightgbm.Dataset(x[:150], y[:150]), lightgbm.Dataset(x[150:], y[150:])
    train = palan.follow(lightgbm.train, "boosting", project=project, seed=5)
    booster = train(params, sets[0], num_boost_round=30, valid_sets=[sets[1]], valid_names=["val"], callbacks=[lightgbm.early_stopping(3, verbose=False), lightgbm.record_evaluation(kept)])
    (found,) = runs(project)
    assert curve(project, found["run"], "val/auc")["values"] == kept["val"]["auc"]
    assert (found["metrics"]["best_iteration"], found["status"], found["params"]["seed"]) == (booster.best_iteration, "done", "5")
    folds = palan.follow(lightgbm.cv, "folds", project=project)({**params, "metric": "auc"}, lightgbm.Dataset(x, y), num_boost_round=4, nfold=3)
    (second,) = runs(project, "experiment = 'folds'")
    assert curve(project, second["run"], "valid/auc")["values"] == folds["valid auc-mean"]
    assert curve(project, second["run"], "valid/auc/std")["values"] == folds["valid auc-stdv"]
    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)
    with palan.follow(model, "estimator", project=project) as run:
        model.fit(x[:150], y[:150], eval_set=[(x[150:], y[150:])])
    assert curve(project, run.id, "valid_0/binary_logloss")["values"] == model.evals_result_["valid_0"]["binary_logloss"]
    assert pickle.loads(pickle.dumps(model)).predict(x).shape == (200,)


def test_every_evaluation_of_xgboost_is_a_point(project: Project) -> None:
    xgboost = pytest.importorskip("xgboost", reason="no XGBoost: pip install xgboost-cpu")
    x, y = data()
    kept: dict[str, Any] = {}
    params = {"objective": "binary:logistic", "eval_metric": ["auc", "logloss"], "nthread": 1}
    sets = xgboost.DMatrix(x[:150], y[:150]), xgboost.DMatrix(x[150:], y[150:])
    train = palan.follow(xgboost.train, "boosting", project=project)
    booster = train(params, sets[0], num_boost_round=30, evals=[(sets[1], "val")], early_stopping_rounds=3, evals_result=kept, verbose_eval=False)
    (found,) = runs(project)
    assert curve(project, found["run"], "val/auc")["values"] == kept["val"]["auc"]
    assert found["metrics"].get("best_iteration", 0) == booster.best_iteration
    folds = palan.follow(xgboost.cv, "folds", project=project)({**params, "eval_metric": "auc"}, xgboost.DMatrix(x, y), num_boost_round=4, nfold=3, as_pandas=False)
    (second,) = runs(project, "experiment = 'folds'")
    assert curve(project, second["run"], "test/auc")["values"] == pytest.approx(folds["test-auc-mean"])
    model = xgboost.XGBClassifier(n_estimators=5, n_jobs=1)
    with palan.follow(model, "estimator", project=project) as run:
        model.fit(x[:150], y[:150], eval_set=[(x[150:], y[150:])], verbose=False)
    assert curve(project, run.id, "validation_0/logloss")["values"] == model.evals_result()["validation_0"]["logloss"]
    assert model.get_params()["callbacks"] is None


# Solvers

KNAPSACK = """
import random
random.seed(4)
worth = [random.randint(20, 90) for _ in range(40)]
sizes = [[random.randint(5, 60) for _ in range(40)] for _ in range(5)]
room = [sum(row) // 3 for row in sizes]
"""


def _solved(project: Project, solver: str) -> dict[str, Any]:
    found = runs(project, "experiment = 'packing'")[0]
    assert (found["status"], found["tags"]["status"]) == ("done", "optimal")
    assert found["tags"]["solver"].startswith(solver)
    assert found["metrics"]["objective"] == pytest.approx(found["metrics"]["bound"], rel=1e-3)
    assert found["metrics"]["gap"] < 1e-3
    objectives = curve(project, found["run"], "objective")["values"]
    assert len(objectives) >= 2 and objectives == sorted(objectives)
    assert curve(project, found["run"], "incumbents")["values"][-1] >= 1
    assert len(runs(project, "metrics.gap < 0.01 and tags.status = 'optimal' and params.instance = 'knapsack'")) == 1
    return found


def test_a_solve_of_highs_tells_incumbents_bound_and_gap(project: Project) -> None:
    out = alone(project, KNAPSACK + """
import highspy
h = highspy.Highs()
h.setOptionValue("output_flag", False)
h.setOptionValue("random_seed", 7)
take = [h.addBinary() for _ in worth]
for row, most in zip(sizes, room):
    h.addConstr(sum(s * t for s, t in zip(row, take)) <= most)
with palan.follow(h, "packing", instance="knapsack") as run:
    h.maximize(sum(w * t for w, t in zip(worth, take)))
print(h.getInfo().objective_function_value, h.getInfo().mip_dual_bound)
import signal
handler = signal.getsignal(signal.SIGINT)
def mine(event):
    h.cbMipImprovingSolution.unsubscribe(mine)
    signal.raise_signal(signal.SIGINT)
h.clearSolver()
h.cbMipImprovingSolution.subscribe(mine)
try:
    with palan.follow(h, "interrupted"):
        h.run()
    raise AssertionError("it was not interrupted")
except KeyboardInterrupt:
    assert h.getModelStatus() == highspy.HighsModelStatus.kInterrupt, h.getModelStatus()
assert signal.getsignal(signal.SIGINT) is handler and type(h) is highspy.Highs
h.run()
print(h.getInfo().objective_function_value)
""")
    stopped = runs(project, "experiment = 'interrupted'")[0]
    assert (stopped["status"], stopped["reason"], stopped["tags"]["status"], stopped["metrics"]["incumbents"] >= 1) == ("killed", "KeyboardInterrupt", "feasible", True)
    objective, bound, again = map(float, out.split()[-3:])  # HiGHS 1.16 says its name first
    assert again == pytest.approx(objective)  # the solver is as good as ever
    found = _solved(project, "HiGHS 1.")
    assert (found["metrics"]["objective"], found["metrics"]["bound"]) == (pytest.approx(objective), pytest.approx(bound))
    assert found["params"] == {"instance": "knapsack", "seed": "7"}


def test_a_program_without_a_plan_says_so_and_one_without_integers_is_followed_too(project: Project) -> None:
    alone(project, """
    import highspy
    for rows in (1, -1):
        h = highspy.Highs()
        h.setOptionValue("output_flag", False)
        x = h.addVariable(lb=0, ub=5)
        h.addConstr(x <= rows)
        with palan.follow(h, "continuous"):
            h.maximize(2 * x)
    h.writeModel("late.mps")
    h = highspy.Highs()
    h.setOptionValue("output_flag", False)
    with palan.follow(h, "late"):
        h.readModel("late.mps")
        h.setOptionValue("random_seed", 9)
        h.changeColIntegrality(0, highspy.HighsVarType.kInteger)
        h.changeRowBounds(0, -1e30, 2.5)
        seen = []
        h.cbMipImprovingSolution.subscribe(lambda event: seen.append(event.data_out.objective_function_value))
        h.run()
        h.changeObjectiveSense(highspy.ObjSense.kMinimize)
        h.changeRowBounds(0, 1.5, 2.5)
        h.run()
    assert seen[-1] == 4.0, seen
    """)
    third = runs(project, "experiment = 'late'")[0]
    assert (third["params"], third["metrics"]["objective"], third["metrics"]["bound"]) == ({"instance": "late", "seed": "9"}, 4.0, 4.0)
    assert curve(project, third["run"], "objective")["values"] == [4.0] * int(third["metrics"]["incumbents"] + 1)
    first, second = runs(project, "experiment = 'continuous'")
    assert (first["tags"]["status"], first["metrics"]["objective"], first["metrics"]["gap"]) == ("optimal", 2.0, 0.0)
    assert (second["tags"]["status"], "objective" in second["metrics"]) == ("infeasible", False)


def test_a_solve_of_cp_sat_tells_incumbents_bound_and_gap(project: Project) -> None:
    if not _installed("ortools"):
        pytest.skip("no OR-Tools: pip install ortools")
    out = alone(project, KNAPSACK + """
from ortools.sat.python import cp_model
m = cp_model.CpModel()
m.name = "knapsack"
take = [m.new_bool_var("") for _ in worth]
for row, most in zip(sizes, room):
    m.add(sum(s * t for s, t in zip(row, take)) <= most)
m.maximize(sum(w * t for w, t in zip(worth, take)))
class Mine(cp_model.CpSolverSolutionCallback):
    seen = 0
    def on_solution_callback(self):
        self.seen += 1
def refused(*args, **kwargs):
    try:
        cp_model.CpSolver.solve(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, str(error)[:60]
mine, solver = Mine(), cp_model.CpSolver()
solver.parameters.num_workers = 2
with palan.follow(solver, "packing") as run:
    solver.solve(m, mine)
assert "on_solution_callback" not in vars(mine)
print(solver.objective_value, mine.seen, type(solver) is cp_model.CpSolver, solver.best_bound_callback)
with palan.follow(solver, "again") as run:
    solver.Solve(m)
print(search(palan.open_project(), f"id = '{run.id}'")["runs"][0]["metrics"]["objective"])
bad = cp_model.CpModel()
x = bad.new_bool_var("x")
bad.add(x >= 2)
with palan.follow(solver, "again") as run:
    solver.solve(bad)
print(search(palan.open_project(), f"id = '{run.id}'")["runs"][0]["tags"]["status"])
wrong = [((None,), {}), ((m, 1), {}), ((), {}), ((m,), {"bogus": 1})]
with palan.follow(solver, "wrong"):
    for args, kwargs in wrong:
        try:
            solver.solve(*args, **kwargs)
        except Exception as error:
            assert (type(error).__name__, str(error)[:60]) == refused(cp_model.CpSolver(), *args, **kwargs), error
        else:
            raise AssertionError(args)
    solver.parameters.max_time_in_seconds = 0.0
    solver.parameters.random_seed = 5
    solver.solve(solution_callback=mine, model=m)
""")
    (hasty,) = runs(project, "experiment = 'wrong'")
    assert (hasty["tags"]["status"], hasty["params"]["seed"], "bound" in hasty["metrics"]) == ("timeout", "5", False)  # its 0 is none
    lines = out.splitlines()
    objective, seen, *left = lines[0].split()
    (found,) = runs(project, "experiment = 'packing'")
    assert found["metrics"]["objective"] == found["metrics"]["bound"] == float(objective)
    assert (int(seen), found["params"]["instance"]) == (found["metrics"]["incumbents"], "knapsack")
    assert left == ["True", "None"]
    assert lines[1:] == [objective, "infeasible"]


def test_a_solve_of_scip_tells_incumbents_bound_and_gap(project: Project) -> None:
    if not _installed("pyscipopt"):
        pytest.skip("no SCIP: pip install pyscipopt")
    out = alone(project, KNAPSACK + """
import pyscipopt
m = pyscipopt.Model("knapsack")
m.hideOutput()
take = [m.addVar(vtype="B") for _ in worth]
for row, most in zip(sizes, room):
    m.addCons(pyscipopt.quicksum(s * t for s, t in zip(row, take)) <= most)
m.setObjective(pyscipopt.quicksum(w * t for w, t in zip(worth, take)), "maximize")
with palan.follow(m, "packing") as run:
    m.optimize()
print(m.getObjVal())
with palan.follow(m, "solved already") as run:  # no handler of events can be put in now: the one of before is there
    m.optimize()
m.freeTransform()
m.setObjective(-m.getObjective(), "minimize")
m.writeProblem("mirror.cip", verbose=False)
with palan.follow(m, "mirror"):
    m.optimize()
read = pyscipopt.Model()
read.hideOutput()
with palan.follow(read, "read"):
    read.readProblem("mirror.cip")
    read.setParam("randomization/randomseedshift", 5)
    read.optimize()
alien = pyscipopt.Model()
alien.hideOutput()
alien.addVar(ub=3, obj=-1)
alien.optimize()
with palan.follow(alien, "alien"):
    alien.optimize()
bad = pyscipopt.Model()
bad.hideOutput()
x = bad.addVar(ub=1)
bad.addCons(x >= 2)
with palan.follow(bad, "packing") as run:
    bad.optimize()
print(search(palan.open_project(), f"id = '{run.id}'")["runs"][0]["tags"]["status"])
""")
    objective, status = out.split()
    assert status == "infeasible"
    mirror, read, solved, alien = (runs(project, f"experiment = '{name}'")[0] for name in ("mirror", "read", "solved already", "alien"))
    assert mirror["metrics"]["objective"] == mirror["metrics"]["bound"] == pytest.approx(-float(objective))
    assert (read["params"]["seed"], read["tags"]["status"], read["metrics"]["objective"]) == ("5", "optimal", mirror["metrics"]["objective"])
    assert len(set(curve(project, read["run"], "objective")["values"])) >= 2
    assert curve(project, read["run"], "objective")["values"] == sorted(curve(project, read["run"], "objective")["values"], reverse=True)
    assert [(each["tags"]["status"], each["metrics"]["objective"]) for each in (solved, alien)] == [("optimal", pytest.approx(float(objective))), ("optimal", -3.0)]
    found = runs(project, "experiment = 'packing'")[0]
    assert found["metrics"]["objective"] == pytest.approx(float(objective))
    assert (found["metrics"]["gap"], found["tags"]["status"], found["params"]["seed"]) == (0.0, "optimal", "0")
    assert curve(project, found["run"], "objective")["values"] == sorted(curve(project, found["run"], "objective")["values"])


def _installed(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


# gymnasium


def test_each_episode_of_an_environment_is_a_point(project: Project) -> None:
    import gymnasium

    env = gymnasium.make("CartPole-v1")
    with palan.follow(env, "balance", project=project) as run:
        lengths = []
        for episode in range(4):
            env.reset(seed=episode)
            ended, length = False, 0
            while not ended:
                _, _, terminated, truncated, _ = env.step(length % 2)
                ended, length = terminated or truncated, length + 1
            lengths.append(float(length))
    env.reset()
    env.step(0)
    assert curve(project, run.id, "return")["values"] == lengths  # CartPole gives 1 a step
    assert curve(project, run.id, "length")["values"] == lengths
    found = run_page(project, run.id)
    assert found["params"] == {"instance": "CartPole-v1", "seed": "0"}


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_environments_side_by_side_count_the_steps_of_episodes_alone(project: Project, mode: str) -> None:
    import gymnasium
    from gymnasium.vector import AutoresetMode, SyncVectorEnv

    def make() -> Any:
        return gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))

    envs = SyncVectorEnv([make, make, make], autoreset_mode=AutoresetMode(mode))
    with palan.follow(envs, project=project) as run:
        envs.reset(seed=2)
        for step in range(120):
            envs.step(np.array([0, 1, step % 2]))
    own = [length for each in envs.envs for length in each.length_queue]
    assert sorted(curve(project, run.id, "length")["values"]) == sorted(float(each) for each in own)
    assert len(own) > 20


# what is the same for all


def test_it_can_log_into_a_run_that_goes_on(project: Project) -> None:
    import gymnasium

    env = gymnasium.make("CartPole-v1")
    with start("balance", project=project) as run:
        assert palan.follow(env, run=run, instance="mine") is run
        env.reset(seed=1)
        while not any(env.step(1)[2:4]):
            pass
        run.log(mine=1.0)
    (found,) = runs(project)
    assert (found["params"], found["metrics"]["mine"]) == ({"instance": "mine", "seed": "1"}, 1.0)
    assert found["metrics"]["return"] > 5
    assert type(env) is env.__class__


@pytest.mark.parametrize("what", [3, "model.lp", print, np.zeros(3), search], ids=["number", "text", "builtin", "array", "function"])
def test_what_cannot_be_followed_is_refused_with_what_can(project: Project, what: Any) -> None:
    with pytest.raises(Invalid, match=r"cannot follow (?s:.*)(scikit-learn.*Optuna.*HiGHS|@palan.track)"):
        palan.follow(what, project=project)
    assert runs(project) == []
