"""`palan.toml`: what a project declares, read strictly, and who set each value."""

# Annotations are not postponed here: a setting's own carries how it is read, and texts would be compiled at each start.

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from palan.data import sources
from palan.errors import Invalid, PalanError, nearest
from palan.flows.root import FILE
from palan.models.contract import KINDS
from palan.stores import BUCKET, password_in, shown

if TYPE_CHECKING:
    from palan.flows.project import Project

COSTS = ("review", "train", "switch")
SHORTEST = timedelta(hours=1)
"""The shortest window that is watched: in less, no model answers enough to be compared."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
LONGEST = 1000 * 366 * 86400.0
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class Wrong(Exception):
    """A value that does not fit; the caller knows the line."""


def duration(value: object) -> timedelta:
    """Read "50ms", "5s", "2h", "7d" or plain seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|min|m|h|d|w)", str(value))
    seconds = -1.0
    if found:
        seconds = float(found[1]) * _UNITS[found[2]]
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    if not 0 <= seconds <= LONGEST:  # not even of infinity and of no number
        raise Wrong('a duration such as "50ms", "5s", "2h" or "7d"')
    return timedelta(seconds=seconds)


def _positive(value: object) -> timedelta:
    found = duration(value)
    if not found:
        raise Wrong("a duration above zero")
    return found


def share(value: object) -> float:
    """Read "20%" or 0.2."""
    text = str(value).strip()
    try:
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1:
        raise Wrong('a share such as "20%" or 0.2')
    return number


def _canary(value: object) -> tuple[float, timedelta]:
    part, _, rest = str(value).partition(" for ")
    if not rest:
        raise Wrong('a share and a time, such as "20% for 7d"')
    return share(part), duration(rest.strip())


def _window(value: object) -> timedelta:
    found = duration(value)
    if found < SHORTEST:
        raise Wrong("a window of 1h at least")
    return found


def _slot(value: object) -> timedelta:
    found = duration(value)
    if found < timedelta(minutes=1):
        raise Wrong("a duration of 1m at least")
    return found


def _time_of_day(value: object) -> timedelta:
    found = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", str(value))
    if not found:
        raise Wrong('a time of day in UTC, such as "06:30"')
    return timedelta(hours=int(found[1]), minutes=int(found[2]))


def _budget(value: object) -> timedelta:
    found = re.fullmatch(r"1 per (.+)", str(value))
    if not found:
        raise Wrong('an alarm budget such as "1 per 180d"')
    return _positive(found[1])


def _one_of(*allowed: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in allowed:
            raise Wrong("one of " + ", ".join(allowed))
        return str(value)

    return read


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Wrong("a text in quotes")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 1000:
        raise Wrong("a whole number from 1 to 1000")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Wrong('a list of texts, such as ["a", "b"]')
    return tuple(value)


def _names(value: object) -> tuple[str, ...]:
    names = _texts(value)
    if not names or not all(names):
        raise Wrong('a list of names, such as ["a", "b"]; leave it out where there are none')
    if len(set(names)) < len(names):
        raise Wrong("a list of different names")
    return names


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Wrong("a table, such as { a = 1 }")
    return value


def _tables(value: object) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise Wrong("a list of tables")
    return tuple(value)


def _number_table(value: object) -> dict[str, float]:
    table = _table(value)
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in table.values()):
        raise Wrong("a table of numbers")
    return {key: float(each) for key, each in table.items()}


def _costs(value: object) -> dict[str, float]:
    costs = _number_table(value)
    for name, cost in costs.items():
        if name not in COSTS:
            raise Wrong(f"made of {', '.join(COSTS)} ({nearest(name, COSTS) or name})")
        if not isfinite(cost):
            raise Wrong("a table of numbers")
    return costs


class Option(msgspec.Struct, frozen=True):
    """How a setting is read, and what it is for."""

    read: Callable[[object], Any]
    help: str


class ReleasePolicy(msgspec.Struct, frozen=True):
    """`[models.NAME.release]`."""

    canary: Annotated[tuple[float, timedelta] | None, Option(_canary, 'share and time of a canary: "20% for 7d"')] = None


class WatchPolicy(msgspec.Struct, frozen=True):
    """`[models.NAME.watch]`."""

    window: Annotated[timedelta, Option(_window, "length of the windows that are compared")] = timedelta(days=7)
    false_pages: Annotated[timedelta, Option(_budget, 'the alarm budget: "1 per 180d"')] = timedelta(days=180)
    reference: Annotated[timedelta, Option(_positive, "history before the release that is called normal")] = timedelta(days=120)
    every: Annotated[timedelta | None, Option(_slot, "how often tick watches; else once a day, or once a window where that is shorter")] = None
    at: Annotated[timedelta, Option(_time_of_day, 'when in UTC the first slot of the day begins: "06:30"')] = timedelta(0)
    missed: Annotated[str, Option(_one_of("latest", "all", "skip"), "slots in which nobody ticked: make up for the latest, for all, or skip them")] = "latest"
    unit: Annotated[str, Option(_text, "what the loss counts, for the sentences: minutes, euros")] = ""


class ReactPolicy(msgspec.Struct, frozen=True):
    """`[models.NAME.react]`."""

    approve: Annotated[str, Option(_one_of("ask", "auto"), "who releases a remedy: ask a person, or auto")] = "ask"
    costs: Annotated[Mapping[str, float], Option(_costs, "cost of train, switch and review, in units of the loss over the horizon")] = {}
    horizon: Annotated[timedelta, Option(_positive, "how long a remedy is expected to serve")] = timedelta(days=28)
    holdout: Annotated[timedelta, Option(_positive, "recent outcomes on which remedies are tried")] = timedelta(days=14)
    cooldown: Annotated[timedelta, Option(duration, "rest between two remedies of one model")] = timedelta(days=7)


class JobsPolicy(msgspec.Struct, frozen=True):
    """`[models.NAME.jobs]`."""

    at_once: Annotated[int | None, Option(_count, "jobs that all processes together work at once; else as many as they are")] = None
    per_process: Annotated[int, Option(_count, "jobs that one process works at once")] = 1
    per_queue: Annotated[int | None, Option(_count, "jobs of one queue that are worked at once; else as many as there are")] = None


class ModelConfig(msgspec.Struct, frozen=True):
    """`[models.NAME]`."""

    name: str
    model: Annotated[str, Option(_text, "what decides: file.py:Class, file.py:function or table.csv")] = ""
    kind: Annotated[str, Option(_one_of(*KINDS), "estimator, program, rules, heuristic or policy; found out when left out")] = ""
    data: Annotated[str, Option(_text, "the data that fit() is given")] = ""
    inputs: Annotated[tuple[str, ...], Option(_names, "the columns that a caller sends")] = ()
    outcome: Annotated[str, Option(_text, "the column that is known only later")] = ""
    features: Annotated[str, Option(_text, "file.py of functions that return a pl.Expr: columns that are made of the inputs")] = ""
    key: Annotated[str, Option(_text, "the caller's own name of a row")] = ""
    params: Annotated[Mapping[str, Any], Option(_table, "parameters: fields of the class")] = {}
    golden: Annotated[str, Option(_text, "JSON file of inputs with the outputs that must stay")] = ""
    gates: Annotated[tuple[str, ...], Option(_texts, "what must hold before a release")] = ()
    segments: Annotated[tuple[str, ...], Option(_names, "inputs by which gates and alarms look closer")] = ()
    instances: Annotated[str, Option(_text, "glob of real instances (JSON)")] = ""
    fallback: Annotated[str, Option(_text, "the model that answers when this one cannot")] = ""
    time_limit: Annotated[timedelta | None, Option(_positive, "deadline of one decision")] = None
    jobs: JobsPolicy = JobsPolicy()
    release: ReleasePolicy = ReleasePolicy()
    watch: WatchPolicy = WatchPolicy()
    react: ReactPolicy = ReactPolicy()


class DataConfig(msgspec.Struct, frozen=True):
    """`[data.NAME]`: the raw table, which `data.contract.parse` reads further."""

    name: str
    table: Mapping[str, Any]
    source: Annotated[str, Option(_text, 'where the rows are: "feed/*.csv", "s3://bucket/*.csv", "https://...", "postgresql://...", "sqlite:FILE" or "file.py:function"')] = ""
    query: Annotated[str, Option(_text, "SQL that asks a database for the rows; {since} is where the cursor has come to")] = ""
    cursor: Annotated[str, Option(_text, "the column that grows from row to row: only new rows are fetched")] = ""
    start: Annotated[str, Option(_text, 'where the cursor begins: "2024-01-01"')] = ""
    lateness: Annotated[str, Option(_text, 'how far back from where the cursor has come rows are asked for again: "2h", or "1000" of a number')] = ""
    format: Annotated[str, Option(_text, "what the files are, where their names do not tell: csv, parquet, ndjson, json, xlsx, arrow")] = ""
    headers: Annotated[Mapping[str, Any], Option(_table, 'sent to a web server: `{ Authorization = "Bearer $API_TOKEN" }`')] = {}
    params: Annotated[Mapping[str, Any], Option(_table, 'added to a web address: `{ from = "{since}", limit = 500 }`')] = {}
    records: Annotated[str, Option(_text, 'where in a page of JSON the list of rows is: "data.items"; else found out')] = ""
    next: Annotated[str, Option(_text, 'where in a page of JSON the next one is named, by its address or a token: "paging.next"')] = ""
    page: Annotated[str, Option(_text, 'the parameter that turns pages: "page" counts them from 1, "offset" counts rows; with next, what takes the token')] = ""
    transform: Annotated[str, Option(_text, "file.py:function whose arguments are named as data, or a query: file.sql, file.sql:duckdb")] = ""
    time: Annotated[str, Option(_text, "the column that says when a row happened")] = ""
    key: Annotated[tuple[str, ...], Option(_names, "the columns that identify a row")] = ()
    checks: Annotated[tuple[str, ...], Option(_texts, "Polars SQL over a row; false puts it in quarantine")] = ()
    rules: Annotated[tuple[Mapping[str, Any], ...], Option(_tables, 'checks that say how grave they are: `[[data.NAME.rules]]` with check = "..." and severity = "warn"')] = ()
    rows: Annotated[str, Option(_text, 'rows expected in a delivered file: "500..4000"')] = ""
    fresh: Annotated[str, Option(_text, 'how old the newest row of a delivery may be: "3d"')] = ""
    repair: Annotated[str, Option(_text, '`ask` (default), or `auto`: what the data doctor is sure of is put right as it comes, and can be taken back')] = ""
    severity: Annotated[Mapping[str, Any], Option(_table, 'of rows, fresh and checks: `{ rows = "stop" }`')] = {}
    encoding: Annotated[str, Option(_text, 'of delivered text, where UTF-8 or else cp1252 is wrong: "latin-1"')] = ""
    decimal: Annotated[str, Option(_text, 'the sign before a fraction, "." or ",", where a file does not tell')] = ""
    dates: Annotated[str, Option(_text, 'what comes first in 01/02/2013, "dmy" or "mdy", where a file does not tell')] = ""
    nulls: Annotated[tuple[str, ...], Option(_texts, 'the words for a missing value, in columns of every type: ["NA", "-"]')] = ()
    columns: Annotated[
        Mapping[str, Any],
        Option(_table, 'name = "type[?] [range] [length 2..5] [matches REGEX] [unique] [rising] [of TABLE.COLUMN] [unit, or in VALUES]", or a table of these with meaning, nulls, mean, quantiles, shares and severity'),
    ] = {}


@cache
def options(cls: Any) -> Sequence[tuple[str, Option | None, Any]]:
    """Return the keys of a table of palan.toml: the name, how it is read (None: a table of its own), and the default."""
    return [
        (each.name, getattr(each.type, "__metadata__", (None,))[0], each.default_factory() if each.default is msgspec.NODEFAULT else each.default)
        for each in msgspec.structs.fields(cls)
        if not each.required
    ]


class Setting(msgspec.Struct, frozen=True):
    """One value, and who set it: argument, environment, palan.toml or default."""

    name: str
    value: Any
    by: str
    help: str = ""


class Config(msgspec.Struct, frozen=True):
    """The whole file, checked."""

    name: str
    store: str
    blobs: str
    data: Mapping[str, DataConfig]
    models: Mapping[str, ModelConfig]
    settings: tuple[Setting, ...]
    notify: str = ""


ENVIRONMENT = {
    "PALAN_PROJECT": "the project's folder, instead of the current one or its parents",
    "PALAN_STORE": "where the store is, instead of [project] store",
    "PALAN_ACTOR": "who acts, for the ledger, instead of the user's name",
    "PALAN_HOST": "address that serve and up listen on",
    "PALAN_PORT": "port that serve and up listen on",
    "PALAN_SERVER": "address of a `palan up` on another machine, which runs are tracked for",
    "PALAN_TOKEN": "token that a request must carry; needed for any address but loopback",
}


def load(path: Path, environment: Mapping[str, str] | None = None) -> Config:
    """Read and check a project file.

    Raises:
        PalanError: no such file, no TOML, an unknown key or a wrong value; with its line and the nearest valid name.
    """
    try:
        return read(path, path.read_text(encoding="utf-8"), environment)
    except FileNotFoundError as error:
        raise PalanError(f"there is no {path}", "palan init") from error
    except OSError as error:
        raise PalanError(f"{path} cannot be read: {error.strerror}", f"chmod u+r {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PalanError(f"{path} is not TOML: {error}", "put that line right; https://toml.io shows the syntax") from error


def read(path: Path, text: str, environment: Mapping[str, str] | None = None) -> Config:
    """Read and check the text of a project file.

    Raises:
        PalanError: an unknown key or a wrong value.
        TOMLDecodeError: it is no TOML.
    """
    environment = os.environ if environment is None else environment
    raw = tomllib.loads(text)
    reader = _Reader(path, text)
    reader.known(raw, (), ["project", "data", "models"])
    project = reader.table(raw, ("project",))
    reader.known(project, ("project",), ["name", "store", "blobs", "notify"])
    for key, value in project.items():
        if not isinstance(value, str) or not value:
            raise reader.wrong(("project",), key, f"{value!r} is not a text in quotes", f'{key} = "..."')
    settings = [
        Setting("project.name", project.get("name", path.parent.name), FILE if "name" in project else "default"),
        _store(reader, project, environment),
        Setting("project.blobs", _blobs(reader, project), FILE if "blobs" in project else "default", "where blobs are, if not in the store: s3://bucket/prefix"),
        Setting("project.notify", _notify(reader, project), FILE if "notify" in project else "default", "address that palan tick tells of pages: https://..., or $NAME of a variable"),
    ]
    data = {}
    for name, table in reader.table(raw, ("data",)).items():
        where = ("data", name)
        reader.name(where)
        data[name] = reader.read(DataConfig, table, where, settings, name=name, table=table)
        if bool(data[name].source) == bool(data[name].transform):
            raise reader.wrong(
                where, "", "has to name either a source or a transform", 'source = "feed/*.csv", or transform = "features.py:function"'
            )
        if table.get("source"):
            _check_source(reader, name, table)
    models = {}
    for name, table in reader.table(raw, ("models",)).items():
        reader.name(("models", name))
        models[name] = reader.read(ModelConfig, table, ("models", name), settings, name=name)
    _check_references(reader, data, models)
    return Config(str(settings[0].value), str(settings[1].value), str(settings[2].value), data, models, tuple(settings), str(settings[3].value))


def _store(reader: "_Reader", project: Mapping[str, Any], environment: Mapping[str, str]) -> Setting:
    if environment.get("PALAN_STORE"):
        return Setting("project.store", environment["PALAN_STORE"], "PALAN_STORE")
    if password_in(project.get("store", "")):
        raise reader.wrong(("project",), "store", "has a password in it, which does not belong into a file", 'store = "postgresql://user@host/database", and export PGPASSWORD=...')
    return Setting("project.store", project.get("store", ".palan"), FILE if "store" in project else "default")


def _blobs(reader: "_Reader", project: Mapping[str, Any]) -> str:
    address = str(project.get("blobs", ""))
    if address and not BUCKET.fullmatch(address):  # not shown: somebody may have put a secret into it
        raise reader.wrong(("project",), "blobs", "is no address of a bucket", 'blobs = "s3://bucket/prefix"; server and credentials are told by AWS_* variables')
    return address


def _notify(reader: "_Reader", project: Mapping[str, Any]) -> str:
    address = str(project.get("notify", ""))
    if address and not re.fullmatch(r"https?://[^\s/@]+(/\S*)?|\$[A-Za-z_]\w*", address):  # not shown: it may hold a secret
        raise reader.wrong(("project",), "notify", "is no address", 'notify = "https://host/path", or "$NAME" of the variable that holds it')
    return address


def _check_source(reader: "_Reader", name: str, table: Mapping[str, Any]) -> None:
    try:
        source = sources.parse(name, table)
    except Invalid as error:
        raise reader.wrong(("data", name), error.field, error.what, error.hint) from error
    if source.kind == "files" and ".." in Path(source.address).parts:
        raise reader.wrong(("data", name), "source", f"{source.address} leads out of the project", 'source = "feed/*.csv", with a link to the folder where the files lie: ln -s')


def _check_references(reader: "_Reader", data: Mapping[str, DataConfig], models: Mapping[str, ModelConfig]) -> None:
    for model in models.values():
        where = ("models", model.name)
        if not model.model:
            raise reader.wrong(where, "", "does not say what decides", f'model = "{model.name}.py:Class"')
        if model.data and model.data not in data:
            known = ", ".join(data) or "none; declare [data.NAME]"
            raise reader.wrong(where, "data", f'there is no data "{model.data}"', nearest(model.data, data) or f"known here: {known}")
        columns = data[model.data].columns if model.data else {}
        for key, names in {"inputs": model.inputs, "outcome": (model.outcome,), "key": (model.key,)}.items():
            for each in names:
                if columns and each and each not in columns:
                    known = nearest(each, columns) or "known here: " + ", ".join(columns)
                    raise reader.wrong(where, key, f'data "{model.data}" has no column "{each}"', known)
        if model.fallback and model.fallback not in models:
            known = nearest(model.fallback, models) or "known here: " + ", ".join(models)
            raise reader.wrong(where, "fallback", f'there is no model "{model.fallback}"', known)
        if model.fallback == model.name:
            raise reader.wrong(where, "fallback", "a model is no fallback of its own", "name another model, or leave it out")
        for each in model.segments:
            if model.inputs and each not in model.inputs:
                known = nearest(each, model.inputs) or "known here: " + ", ".join(model.inputs)
                raise reader.wrong(where, "segments", f'"{each}" is none of the inputs', known)
        _check_gates(reader, model)
        _check_watch(reader, model)


def _check_gates(reader: "_Reader", model: ModelConfig) -> None:
    where = ("models", model.name)
    if model.gates:
        from palan.gates.spec import parse

        for text in model.gates:
            try:
                parse(text)
            except PalanError as error:
                raise reader.wrong(where, "gates", error.what, error.hint) from error
    path = reader.path.parent / model.golden
    if model.golden and not path.is_file():
        beside = [each.relative_to(reader.path.parent).as_posix() for each in path.parent.glob("*.json")]
        hint = nearest(model.golden, beside) or f"write golden cases there, or remove golden from [models.{model.name}]"
        raise reader.wrong(where, "golden", f"there is no file {model.golden}", hint)


def _check_watch(reader: "_Reader", model: ModelConfig) -> None:
    where, watch = ("models", model.name, "watch"), model.watch
    if watch.reference < watch.window:
        raise reader.wrong(where, "window", "is longer than the reference, the history that is called normal", 'reference = "120d" or more')
    if watch.false_pages < 2 * watch.window:
        raise reader.wrong(where, "false_pages", "is less than two windows: every other window would be a false page", 'false_pages = "1 per 180d"')


class _Reader:
    """Reads tables into values, and knows the line of every key."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()

    def line(self, where: tuple[str, ...], key: str = "") -> int:
        """Return the 1-based line of a key of a table (of the table's header when the key is not found)."""
        header, inside = 1, not where
        for number, text in enumerate(self.lines, 1):
            stripped = text.strip()
            if stripped.startswith("["):
                names = tuple(part.strip().strip("\"'") for part in stripped.strip("[]").split("#")[0].rstrip("] ").split("."))
                inside = names == where
                if inside or (header == 1 and names[: len(where)] == where):
                    header = number
                if key and names[: len(where) + 1] == (*where, key):
                    return number
            elif inside and key and re.match(rf"[\"']?{re.escape(key)}[\"']?\s*[=.]", stripped):
                return number
        if header == 1 and len(where) > 1:  # written inline, or with dots, in the table above
            return self.line(where[:-1], where[-1])
        return header

    def name(self, where: tuple[str, ...]) -> None:
        """Refuse a name that could not stand in `name@3`, in an address or in a file name."""
        if not NAME.fullmatch(where[-1]):
            raise self.wrong(where, "", f'"{where[-1]}" is no name', "letters, digits, _ and -")

    def wrong(self, where: tuple[str, ...], key: str, what: str, hint: str) -> PalanError:
        dotted = f"[{'.'.join(where)}] " if where else ""
        place = f"{self.path.name} line {self.line(where, key)}: {dotted}"
        return PalanError(f"{place}{key + ': ' if key else ''}{what}", hint)

    def known(self, table: Mapping[str, Any], where: tuple[str, ...], names: Iterable[str]) -> None:
        names = list(names)
        for key in table:
            if key not in names:
                hint = nearest(key, names) or "known here: " + ", ".join(names)
                raise self.wrong(where, key, "unknown key", hint)

    def table(self, raw: Mapping[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
        found = raw.get(where[-1], {})
        if not isinstance(found, dict) or (len(where) == 1 and where[0] != "project" and not all(
            isinstance(each, dict) for each in found.values()
        )):
            raise self.wrong(where, "", "has to be a table", f"[{'.'.join(where)}.NAME]")
        return found

    def read(
        self, cls: Any, table: Any, where: tuple[str, ...], settings: list[Setting], /, **fixed: Any
    ) -> Any:
        if not isinstance(table, dict):
            raise self.wrong(where[:-1], where[-1], "has to be a table", f"[{'.'.join(where)}]")
        keys = options(cls)
        self.known(table, where, [name for name, _, _ in keys])
        values = dict(fixed)
        for name, option, default in keys:
            dotted = ".".join((*where, name))
            if option is None:
                values[name] = self.read(type(default), table.get(name, {}), (*where, name), settings)
            elif name in table:
                try:
                    values[name] = option.read(table[name])
                except Wrong as error:
                    raise self.wrong(where, name, f"{table[name]!r} is not {error}", option.help) from error
                settings.append(Setting(dotted, table[name], FILE, option.help))
            else:
                settings.append(Setting(dotted, default, "default", option.help))
        return cls(**values)


def config(project: "Project") -> list[dict[str, Any]]:
    """Return every setting with its value and who set it."""
    rows = [
        {"name": each.name, "value": shown(each.value) if each.name == "project.store" else each.value, "by": each.by, "help": each.help} for each in project.config.settings
    ]
    for name, help_text in ENVIRONMENT.items():
        rows.append({"name": name, "value": shown(os.environ.get(name, "")) or None, "by": "environment", "help": help_text})
    return rows
