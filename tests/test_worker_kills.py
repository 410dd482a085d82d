"""A model in a process of its own can loop, print, die or be killed: the caller goes on, and keeps the best answer so far."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from palan.core import Field, Schema
from palan.engines.lanes import Worker
from palan.errors import ModelFailed, NotFound, PalanError
from palan.models.contract import Incumbent
from processes import gone

CODE = '''
import os, signal, subprocess, sys, time
from dataclasses import dataclass

import numpy as np
from palan.models.contract import Violation

print("loaded")


@dataclass
class Mean:
    add: float = 0.0

    def fit(self, data):
        self.mean = float(data["y"].mean())

    def decide(self, rows):
        if "die" in rows.columns:
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if "sleep" in rows.columns:
            time.sleep(60)
        if "exit" in rows.columns:
            sys.exit("enough")
        return np.full(rows.height, self.mean + self.add)

    def score(self, decisions, outcomes):
        return np.abs(decisions["output"].to_numpy() - outcomes)


class Search:
    """Counts, one incumbent every 10 ms, and may then be as stubborn as the instance says."""

    def decide(self, instance, ctx):
        n = 0
        while not ctx.cancelled():
            n += 1
            ctx.incumbent({"n": n, "seed": ctx.seed}, objective=-float(n))
            time.sleep(0.01)
            if n == instance.get("then_stop_listening"):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                while True:
                    pass
            if n == instance.get("then_die"):
                os._exit(3)
        return {"n": n, "seed": ctx.seed}

    def check(self, instance, plan):
        if plan["n"] == 3:
            yield Violation("not three", amount=3)


class Mute:
    def decide(self, instance, ctx):
        while True:
            pass


class Parent:
    """Starts a process of its own, as solvers do."""

    def decide(self, rows):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return [child.pid]


class Chatty:
    def decide(self, rows):
        for i in range(20_000):
            print("line", i, "x" * 50)
        os.write(1, b"straight to the descriptor\\n")
        input_is_empty = sys.stdin.read() == ""
        return [input_is_empty] * rows.height
'''

ROWS = pl.DataFrame({"x": [1.0, 2.0]})
DATA = pl.DataFrame({"x": [1.0, 2.0], "y": [3.0, 5.0]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    (place / "model.py").write_text(CODE)
    (place / "broken.py").write_text("x = 1\ny = x +\n")
    (place / "needs.py").write_text("import no_such_library\n")
    (place / "table.csv").write_text("x, -> size\n< 2, small\n-, large\n")
    return place


@pytest.fixture(scope="module")
def mean(folder: Path) -> Iterator[Worker]:
    with Worker(folder, "model.py:Mean", params={"add": 1.0}) as worker:
        worker.fit(DATA)
        yield worker


@pytest.fixture(scope="module")
def search(folder: Path) -> Iterator[Worker]:
    with Worker(folder, "model.py:Search") as worker:
        yield worker


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="only Linux tells how long a process had no processor")
def test_what_other_processes_take_is_told_apart_from_what_the_model_takes(mean: Worker) -> None:
    mean.decide(ROWS)
    before = mean.queued()
    assert mean.pid is not None
    one = min(os.sched_getaffinity(mean.pid))
    every = os.sched_getaffinity(mean.pid)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        for pid in (busy.pid, mean.pid):
            os.sched_setaffinity(pid, {one})
        until = time.monotonic() + 20
        while mean.queued() < before + 0.001 and time.monotonic() < until:
            mean.decide(ROWS)
    finally:
        busy.kill()
        busy.wait()
        os.sched_setaffinity(mean.pid, every)
    assert mean.queued() >= before + 0.001


def test_a_fitted_model_moves_to_another_process_as_data(folder: Path, mean: Worker) -> None:
    state = mean.fit(DATA)
    assert set(state) == {"state.json"}
    with Worker(folder, "model.py:Mean", state=state) as other:
        assert other.decide(ROWS)["output"].to_list() == [4.0, 4.0]
    assert mean.decide(ROWS)["output"].to_list() == [5.0, 5.0]
    assert mean.score(mean.decide(ROWS), pl.Series([5.0, 7.0])) == [0.0, 2.0]
    assert mean.open() == {"kind": "estimator", "name": "Mean", "verbs": ["fit", "score"], "params": {"add": 1.0}}


def test_a_decision_table_needs_no_python(folder: Path) -> None:
    with Worker(folder, "table.csv") as worker:
        assert worker.kind == "rules"
        assert worker.decide(ROWS)["size"].to_list() == ["small", "large"]
        assert worker.table(Schema("rows", (Field("x", "float"),))) == []


def test_a_crash_is_told_with_its_last_words_and_the_next_call_works(mean: Worker) -> None:
    before = mean.open() and mean.pid
    with pytest.raises(ModelFailed) as failed:
        mean.decide(pl.DataFrame({"die": [1]}))
    assert "SIGSEGV" in failed.value.what
    assert "last words" in failed.value.log
    assert mean.decide(ROWS)["output"].to_list() == [5.0, 5.0]
    assert mean.pid != before


def test_a_kill_from_outside_between_two_calls_goes_unnoticed(mean: Worker) -> None:
    mean.decide(ROWS)
    assert mean.pid is not None
    os.kill(mean.pid, signal.SIGKILL)
    time.sleep(0.05)
    assert mean.decide(ROWS)["output"].to_list() == [5.0, 5.0]


def test_a_decision_that_takes_too_long_is_ended(mean: Worker) -> None:
    start = time.monotonic()
    with pytest.raises(ModelFailed) as failed:
        mean.decide(pl.DataFrame({"sleep": [1]}), time_limit=0.2)
    assert failed.value.status == "timeout"
    assert time.monotonic() - start < 3


def test_sys_exit_in_a_model_is_an_error_not_an_end(mean: Worker) -> None:
    mean.decide(ROWS)
    before = mean.pid
    with pytest.raises(ModelFailed, match="SystemExit: enough"):
        mean.decide(pl.DataFrame({"exit": [1]}))
    assert mean.pid == before


def test_a_search_that_listens_ends_at_its_deadline(search: Worker) -> None:
    search.open()
    streamed: list[Incumbent] = []
    result = search.solve({}, seed=9, time_limit=0.3, on_incumbent=streamed.append)
    assert result.status == "feasible"
    assert result.output == {"n": len(streamed), "seed": 9}
    assert not result.evidence
    assert 0.25 < result.seconds < 1.5


def test_the_best_answer_survives_a_search_that_must_be_killed(search: Worker) -> None:
    search.open()
    pid = search.pid
    result = search.solve({"then_stop_listening": 3}, time_limit=0.3, hard_limit=0.6)
    assert result.status == "feasible"
    assert result.output == {"n": 3, "seed": 0}
    assert "killed" in result.evidence["degraded"]
    assert [v.rule for v in result.violations] == ["not three"], "what a killed search left is checked like any other plan"
    assert pid is not None
    assert gone(pid), "SIGKILL follows where SIGTERM is ignored"


def test_the_best_answer_survives_a_crash(search: Worker) -> None:
    result = search.solve({"then_die": 2}, time_limit=5.0)
    assert result.output == {"n": 2, "seed": 0}
    assert "exit code 3" in result.evidence["degraded"]
    assert len(result.incumbents) == 2


def test_a_search_without_any_answer_says_timeout(folder: Path) -> None:
    with Worker(folder, "model.py:Mute") as worker:
        worker.open()
        result = worker.solve({}, time_limit=0.1, hard_limit=0.3)
        assert (result.status, result.output) == ("timeout", None)
        assert "killed" in result.evidence["degraded"]


def test_stop_and_keep(search: Worker) -> None:
    search.open()
    streamed = threading.Event()

    def stop() -> None:
        streamed.wait(10)
        search.cancel()

    thread = threading.Thread(target=stop)
    thread.start()
    result = search.solve({}, time_limit=30.0, on_incumbent=lambda found: streamed.set())
    thread.join()
    assert result.status == "feasible"
    assert result.output["n"] >= 1
    assert result.seconds < 10
    assert search.solve({}, time_limit=0.05).status == "feasible", "the wish to stop was for that solve only"


def test_calls_from_many_threads_queue_up(mean: Worker) -> None:
    answers: list[list[float]] = []

    def ask(i: int) -> None:
        for n in range(1, 6):
            answers.append(mean.decide(pl.DataFrame({"x": [0.0] * (n + i)}))["output"].to_list())

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(len, answers)) == sorted(n + i for i in range(4) for n in range(1, 6))
    assert all(set(answer) == {5.0} for answer in answers)


def test_prints_never_reach_the_protocol_or_fill_a_pipe(folder: Path) -> None:
    with Worker(folder, "model.py:Chatty") as worker:
        assert worker.decide(ROWS)["output"].to_list() == [True, True]
        worker.ping()
        time.sleep(0.1)
        assert "straight to the descriptor" in worker.log
        assert len(worker.log.splitlines()) <= 200


def test_large_batches_pass_both_ways(mean: Worker) -> None:
    rows = pl.DataFrame({"x": range(300_000), "text": ["some text"] * 300_000})
    assert mean.decide(rows).height == 300_000


def test_close_ends_a_call_in_the_middle_and_leaves_no_process(folder: Path) -> None:
    worker = Worker(folder, "model.py:Mute")
    worker.open()
    pid = worker.pid
    thread = threading.Timer(0.2, worker.close)
    thread.start()
    result = worker.solve({})
    thread.join()
    assert result.status == "cancelled"
    assert pid is not None
    assert gone(pid)
    worker.close()
    with pytest.raises(ModelFailed, match="closed"):
        worker.ping()


def test_what_the_model_started_ends_with_it(folder: Path) -> None:
    with Worker(folder, "model.py:Parent") as worker:
        pid = worker.decide(ROWS.head(1))["output"].item()
    assert gone(pid)


PARENT = """
import sys, threading, time
from pathlib import Path
from palan.engines.lanes import Worker

worker = Worker(Path(sys.argv[1]), "model.py:Mute")
opener = threading.Thread(target=worker.open)  # Linux would end the child together with the thread that started it
opener.start()
opener.join()
time.sleep(0.3)
worker.ping()
threading.Thread(target=lambda: worker.solve({}), daemon=True).start()
time.sleep(0.2)
print(worker.pid, flush=True)
time.sleep(60)
"""


def test_no_orphan_outlives_a_killed_parent(folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT, str(folder)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert not gone(child, 0.1)
        parent.kill()
        assert gone(child), "a model in an endless loop went on without its parent"


def test_no_worker_is_left_when_the_program_ends(folder: Path) -> None:
    script = PARENT.replace("time.sleep(60)", "")
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=30, check=True)
    assert gone(int(done.stdout))


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        ("modle.py:Mean", NotFound, 'did you mean "model.py"?'),
        ("model.py:Maen", NotFound, 'did you mean "Mean"?'),
        ("broken.py:Mean", ModelFailed, "SyntaxError"),
        ("needs.py:Mean", PalanError, "pip install no_such_library"),
        ("model.py", PalanError, "file.py:Class"),
    ],
)
def test_what_cannot_be_loaded_is_told_with_a_hint(folder: Path, entry: str, error: type[PalanError], words: str) -> None:
    with Worker(folder, entry) as worker, pytest.raises(error) as failed:
        worker.open()
    assert words in str(failed.value)
    assert worker.pid is None


def test_a_mistyped_parameter_is_refused_by_the_worker_too(folder: Path) -> None:
    with Worker(folder, "model.py:Mean", params={"ad": 1.0}) as worker, pytest.raises(PalanError, match="no parameter 'ad'"):
        worker.open()


def test_rows_are_not_an_instance(mean: Worker) -> None:
    with pytest.raises(PalanError, match="decides rows, not an instance"):
        mean.solve({})


@pytest.fixture
def libraries(tmp_path: Path) -> Path:
    """Third-party modules beside a model that imports them."""
    place = tmp_path / "site"
    place.mkdir()
    (place / "lib_counts.py").write_text("import os\nwith open(os.environ['COUNTED'], 'a') as file:\n    file.write(f'{os.getpid()}\\n')\n")
    (place / "lib_threads.py").write_text("import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n")
    (place / "lib_dies.py").write_text("import os\nos.write(2, b'this machine is too old')\nos._exit(7)\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "near.py").write_text("import lib_counts\n")
    body = "\n\ndef decide(rows):\n    import os, threading\n    return [[os.getpid(), threading.active_count()]] * rows.height\n"
    for name in ("near", "lib_threads", "lib_dies", "lib_missing"):
        (tmp_path / "model" / f"with_{name}.py").write_text(f"import {name}{body}")
    return tmp_path


def _with(libraries: Path, name: str) -> Worker:
    env = {"PYTHONPATH": str(libraries / "site"), "COUNTED": str(libraries / "counted")}
    return Worker(libraries / "model", f"with_{name}.py:decide", kind="rules", env=env)


def test_libraries_are_imported_once_for_all_workers_that_need_them(libraries: Path) -> None:
    pids = set()
    for _ in range(3):
        with _with(libraries, "near") as worker:
            pids.add(worker.decide(ROWS).row(0)[0])
    assert len(pids) == 3, "each worker is a process of its own"
    counted = (libraries / "counted").read_text().split()
    assert len(counted) == 1
    assert int(counted[0]) not in pids


def test_a_worker_starts_again_when_its_template_was_killed(libraries: Path) -> None:
    with _with(libraries, "near") as worker:
        worker.open()
        pid = worker.pid
        os.kill(int((libraries / "counted").read_text()), signal.SIGKILL)
        assert pid is not None
        assert gone(pid), "a child ends with what started it"
        until = time.monotonic() + 5
        while worker.pid is not None and time.monotonic() < until:
            time.sleep(0.01)  # a template of many threads ends bit by bit
        assert worker.decide(ROWS).height == 2
        with _with(libraries, "near") as other:
            assert other.decide(ROWS).height == 2
    assert len((libraries / "counted").read_text().split()) == 2, "one more template, and none of them forgotten"


def test_a_library_that_starts_a_thread_has_it_in_the_worker(libraries: Path) -> None:
    with _with(libraries, "lib_threads") as worker:
        assert worker.decide(ROWS).row(0)[1] >= 2 + 1, "the main one, the watch for the caller, and the library's"


@pytest.mark.parametrize(("name", "told"), [("lib_dies", "exit code 7: this machine is too old"), ("lib_missing", "needs lib_missing, which is not installed")])
def test_a_library_that_cannot_be_imported_is_told_by_name(libraries: Path, name: str, told: str) -> None:
    with _with(libraries, name) as worker, pytest.raises(PalanError, match=told):
        worker.decide(ROWS)


HOSTILE = '''
import os, signal, time
import numpy as np
import polars as pl


class Unreadable(Exception):
    def __str__(self):
        raise ValueError("not even that")


class Half(Exception):
    def __str__(self):
        return "half a character: \\ud800"


def _raise(error):
    raise error


def _fork_and_die(rows):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


def _write_everywhere(rows):
    for fd in range(3, 10):
        try:
            os.write(fd, b"\\0\\0\\0\\x01\\xc1")
        except OSError:
            pass
    return [0] * rows.height


def decide(rows):
    n = rows.height
    return {
        "long": lambda: np.full(n, 1.5, dtype=np.longdouble),
        "complex": lambda: np.full(n, 1j),
        "structured": lambda: np.zeros(n, dtype=[("a", "i4"), ("b", "f8")]),
        "objects": lambda: [object()] * n,
        "object series": lambda: pl.Series([object()] * n, dtype=pl.Object),
        "objects in a frame": lambda: {"x": np.array([object()] * n)},
        "masked": lambda: np.ma.masked_array(np.arange(n, dtype=float), mask=[i > 0 for i in range(n)]),
        "masked in a dict": lambda: {"x": np.ma.masked_array(np.arange(n), mask=True)},
        "huge": lambda: [2**70] * n,
        "unreadable": lambda: _raise(Unreadable()),
        "half": lambda: _raise(Half()),
        "silent": lambda: _raise(RuntimeError()),
        "interrupt": lambda: _raise(KeyboardInterrupt()),
        "generator exit": lambda: _raise(GeneratorExit()),
        "fork and die": lambda: _fork_and_die(rows),
        "write everywhere": lambda: _write_everywhere(rows),
    }[rows["do"][0]]()


def plan(instance, ctx):
    return {"n": 2**70}
'''


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    place = tmp_path_factory.mktemp("hostile")
    (place / "hostile.py").write_text(HOSTILE)
    with Worker(place, "hostile.py:decide", kind="rules") as worker:
        yield worker


def _asked(hostile: Worker, what: str) -> pl.DataFrame:
    return hostile.decide(pl.DataFrame({"do": [what] * 2}), time_limit=20)


def test_answers_of_unusual_types_are_values_or_nothing(hostile: Worker) -> None:
    assert _asked(hostile, "long")["output"].to_list() == [1.5, 1.5]
    assert _asked(hostile, "masked")["output"].to_list() == [0.0, None]
    assert _asked(hostile, "masked in a dict")["x"].to_list() == [None, None]


@pytest.mark.parametrize("what", ["complex", "structured", "objects", "object series", "objects in a frame", "huge"])
def test_answers_that_are_no_values_are_refused_and_not_shown_as_bytes(hostile: Worker, what: str) -> None:
    with pytest.raises(ModelFailed):
        _asked(hostile, what)
    assert _asked(hostile, "long").height == 2


@pytest.mark.parametrize(
    ("what", "told"),
    [("unreadable", "Unreadable: <exception str"), ("half", "Half: half a character: ?"), ("silent", "RuntimeError "), ("interrupt", "KeyboardInterrupt"), ("generator exit", "GeneratorExit")],
)
def test_whatever_a_model_raises_ends_its_answer_and_not_its_process(hostile: Worker, what: str, told: str) -> None:
    hostile.open()
    before = hostile.pid
    with pytest.raises(ModelFailed, match=told):
        _asked(hostile, what)
    assert hostile.pid == before


def test_a_death_is_noticed_while_a_child_of_it_holds_the_pipe(hostile: Worker) -> None:
    started = time.monotonic()
    with pytest.raises(ModelFailed, match="SIGKILL"):
        _asked(hostile, "fork and die")
    assert time.monotonic() - started < 10
    assert _asked(hostile, "long").height == 2


def test_a_model_that_writes_into_the_pipe_of_its_answers_fails_alone(hostile: Worker) -> None:
    with pytest.raises(ModelFailed, match="wrote into the pipe"):
        _asked(hostile, "write everywhere")
    assert _asked(hostile, "long").height == 2


def test_a_number_that_no_message_can_hold_is_refused_before_it_is_sent(search: Worker) -> None:
    with pytest.raises(PalanError, match="cannot be sent"):
        search.solve({"n": 2**70}, time_limit=1.0)


def test_a_plan_that_no_message_can_hold_is_an_error_of_the_model(hostile: Worker) -> None:
    with Worker(hostile.folder, "hostile.py:plan", kind="heuristic") as worker, pytest.raises(ModelFailed, match="cannot be passed on"):
        worker.solve({}, time_limit=5.0)


@pytest.mark.parametrize("name", ["calendar", "numpy"])
def test_a_file_that_nobody_could_import_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("month_name = ['mine'] * 13\n")
    (tmp_path / "m.py").write_text(f"import {name}\n\n\ndef decide(rows):\n    return [{name}.month_name[1]] * rows.height\n")
    with Worker(tmp_path, "m.py:decide", kind="rules") as worker, pytest.raises(PalanError, match=f"{name}.py has the name of"):
        worker.decide(ROWS)
