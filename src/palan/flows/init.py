"""`palan init`: a project that runs, from a template of one kind, or around code or a decision table that is there."""

from __future__ import annotations

import ast
import errno
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from palan.errors import NotFound, PalanError, nearest
from palan.flows.look import ENDINGS, Looked, data_part, look, tables_in, toml_key
from palan.flows.root import FILE
from palan.models.contract import KINDS, SHAPE
from palan.stores.files import write_atomically

if TYPE_CHECKING:
    from palan.models.table import Cell, Table

TEMPLATES = Path(__file__).parent / "templates"
DEFAULT = "estimator"
CASES = 5
"""Golden cases that are written for a decision table."""

_LIBRARIES = {"highspy": "highs", "gymnasium": "gym", "sklearn": "sklearn"}
_VERBS = ("formulate", "act", "fit", "decide", "predict", "predict_proba", "check", "score", "objective", "interpret", "environment", "table")
SOLVER = "highspy"
_LEARNERS = ("Classifier", "Regressor", "Regression", "Pipeline", "make_pipeline", "CV", "SVC", "SVR")


def init(folder: Path | str = ".", *, source: str = "", kind: str = "") -> dict[str, Any]:
    """Make a project in a folder and return {"files": [...], "missing": [...], "next": "..."}; nothing is overwritten.

    Without a source it is a template of the kind (an estimator by default), which runs as it is. A Python file is read,
    never imported, and palan.toml is written around the models in it, with what is missing said in comments. A decision
    table in CSV becomes a rules project with a golden file of its own answers, to be looked through.

    Where a table lies in the folder (or in its folder data), or is the source, its columns are read: it becomes the
    data, beside a plain estimator of its last column of numbers, or beside the models of the Python file.

    palan.toml is written last: an init that was killed is simply done again.

    Raises:
        NotFound: no such source.
        PalanError: there is a project already, another file is in the way, or the folder cannot be written.
    """
    root = Path(folder)
    if kind and kind not in KINDS:
        raise PalanError(f'there is no kind "{kind}"', nearest(kind, KINDS) or f"one of {', '.join(KINDS)}")
    try:
        if (root / FILE).exists():
            raise PalanError(f"{root / FILE} is there already, and init overwrites nothing", "palan status   (or: palan init --into ANOTHER-FOLDER)")
        made = _around(root, Path(source), kind) if source else _begin(root, kind or DEFAULT)
        return _write(root, made)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = f"chmod u+rwx {root}   (or: palan init --into ANOTHER-FOLDER)"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            hint = "a file is where the folder would be: palan init --into ANOTHER-FOLDER"
        else:
            hint = "check the disk and the path"
        raise PalanError(f"{error.filename or root} cannot be used: {error.strerror}", hint) from error


class _Plan(msgspec.Struct, frozen=True):
    """The files to write (palan.toml among them), what is still missing, and the next thing to type."""

    files: Mapping[str, bytes]
    missing: Sequence[str]
    next: str


def _write(root: Path, plan: _Plan) -> dict[str, Any]:
    files = dict(plan.files)
    if not (root / ".gitignore").exists():
        files[".gitignore"] = b"# the store: decisions, versions, the ledger\n.palan/\n__pycache__/\n"
    for path, content in files.items():
        there = root / path
        if there.exists() and there.read_bytes() != content:
            raise PalanError(f"{there} is there already, and init overwrites nothing", "move it away, or: palan init --into ANOTHER-FOLDER")
    for path in sorted(files, key=lambda path: path == FILE):
        if not (root / path).exists():
            write_atomically(root / path, files[path])
    return {"files": [str(root / path) for path in sorted(files)], "missing": list(plan.missing), "next": plan.next}


def _named(root: Path) -> str:
    return json.dumps(root.resolve().name or "project", ensure_ascii=False)


def _steps(root: Path, steps: Sequence[str], libraries: Sequence[str] = ()) -> str:
    """Join what is to be typed into one line that works from the folder where init was typed."""
    first = [] if root.resolve() == Path.cwd() else [f"cd {root}"]
    extras = sorted({_LIBRARIES[name] for name in libraries if name in _LIBRARIES and find_spec(name) is None})
    first += [f'pip install "palan[{",".join(extras)}]"'] if extras else []
    return " && ".join([*first, *steps])


def _begin(root: Path, kind: str) -> _Plan:
    template = _from_template(root, kind)
    found = [path for path in tables_in(root) if not _same(path, template.files.get(path.relative_to(root).as_posix()))]
    if not found:
        return template
    if kind != DEFAULT:
        shown = found[0].relative_to(root).as_posix()
        return msgspec.structs.replace(template, missing=[f"data: {shown} was left alone; palan init {shown} --into ANOTHER-FOLDER makes a project around it"])
    return _around_data(root, found[0], found[1:])


def _same(path: Path, content: bytes | None) -> bool:
    return content is not None and path.read_bytes() == content


def _around_data(root: Path, source: Path, others: Sequence[Path]) -> _Plan:
    """Make a project around a table: its contract, and a plain estimator of its last column of numbers."""
    path, files = _placed(root, source)
    table = look(source, path)
    missing = _others(root, path, others)
    parts = [f"[project]\nname = {_named(root)}\n", data_part(table, table.name)]
    outcome = table.outcome
    if not outcome:
        files[FILE] = "\n".join([*parts, "# [models.NAME]                       # TODO: what decides; palan init --kind estimator --into EXAMPLE shows one\n"]).encode()
        missing.append(f"model: {path} has no column of numbers that another could tell; write [models.NAME] for what decides")
        return _Plan(files, missing, _steps(root, ["palan ingest"]))
    inputs = table.inputs_for(outcome)
    name = _model_name(outcome, table.name)
    types = {each.field.name: each.field.type for each in table.columns}
    code = (TEMPLATES / "own" / "model.py").read_text(encoding="utf-8")
    numbers, words = ([each for each in inputs if (types[each] == "str") is text] for text in (False, True))
    for mark, value in (('["NUMBERS"]', numbers), ('["WORDS"]', words), ('"OUTCOME"', outcome)):
        code = code.replace(mark, json.dumps(value, ensure_ascii=False), 1)
    files["model.py"] = code.encode()
    files["example.json"] = msgspec.json.encode([{each: table.first[each] for each in inputs}]) + b"\n"
    parts.append(
        f"""[models.{name}]
model = "model.py:Model"              # least squares, to begin with
data = "{table.name}"
inputs = {json.dumps(inputs, ensure_ascii=False)}  # TODO: leave only what is known when the question is asked
outcome = {json.dumps(outcome, ensure_ascii=False)}  # TODO: guessed, the last column of numbers; model.py says it too
gates = ["champion", "latency 50ms"]
"""
        + (f"key = {json.dumps(table.key, ensure_ascii=False)}\n" if table.key else '# key = "id"                        # the caller\'s own name of a row: outcomes come back by it\n')
    )
    files[FILE] = "\n".join(parts).encode()
    missing.append(f"outcome: it was guessed that {outcome} is to be told from {_shortly(inputs)}: look at [models.{name}] and model.py")
    steps = ["palan ingest", f"palan build {name}", f"palan check {name}", f"palan release {name}", f"palan decide {name} --input example.json"]
    return _Plan(files, missing, _steps(root, steps))


def _others(root: Path, path: str, others: Sequence[Path]) -> list[str]:
    if not others:
        return []
    shown = [each.relative_to(root).as_posix() for each in others]
    return [f"data: {path} was taken, {_shortly(shown)} {'was' if len(shown) == 1 else 'were'} not; to take another: palan init {shown[0]} --into ANOTHER-FOLDER"]


def _shortly(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _model_name(outcome: str, data: str) -> str:
    """Name a model by what it tells, and never as its data: `NAME@1` has to mean one thing."""
    name = "".join(each if each.isalnum() and each.isascii() else "_" for each in outcome.lower()).strip("_")
    return name if name and name != data else f"{name}_model".strip("_")


def _from_template(root: Path, kind: str) -> _Plan:
    files = {path.relative_to(TEMPLATES / kind).as_posix(): path.read_bytes() for path in sorted((TEMPLATES / kind).rglob("*")) if _is_ours(path)}
    files[FILE] = files[FILE].replace(b'"NAME"', _named(root).encode())
    code = next((text for path, text in files.items() if path.endswith(".py")), b"")
    name = next(path for path in files if path.startswith("golden/")).removeprefix("golden/").removesuffix(".json")
    steps = ["palan ingest", f"palan build {name}", f"palan check {name}", f"palan release {name}", f"palan decide {name} --input example.json"]
    return _Plan(files, [], _steps(root, steps, _imports(ast.parse(code))))


def _is_ours(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _around(root: Path, source: Path, kind: str) -> _Plan:
    if not source.is_file():
        near = nearest(source.name, (each.name for each in source.parent.iterdir())) if source.parent.is_dir() else ""
        raise NotFound(f"there is no file {source}", near or "give a .py file with a model, or a decision table in .csv")
    if source.suffix.lower() in ENDINGS and kind != "rules" and not _is_rules(source):
        if kind not in ("", DEFAULT):
            raise PalanError(f"around a table palan begins a model of kind {DEFAULT}, not {kind}", f"palan init {source}")
        return _around_data(root, source, ())
    if source.suffix == ".csv":
        if kind not in ("", "rules"):
            raise PalanError(f"a decision table is a model of kind rules, not {kind}", f"palan init {source}")
        return _around_table(root, source)
    if source.suffix != ".py":
        raise PalanError(f"{source} is neither Python nor a table", "give a .py file with a model, a decision table in .csv, or a table in .csv or .parquet")
    return _around_code(root, source, kind)


def _is_rules(source: Path) -> bool:
    """Tell whether a table names outputs, as a decision table does."""
    with source.open("rb") as file:
        head = file.read(65536)
    return source.suffix == ".csv" and any(cell.strip().strip('"').startswith("->") for line in head.decode(errors="replace").splitlines()[:20] for cell in line.split(","))


def _placed(root: Path, source: Path) -> tuple[str, dict[str, bytes]]:
    """Return the source's path inside the project, and the file itself where it has to be copied in."""
    try:
        return source.resolve().relative_to(root.resolve()).as_posix(), {}
    except ValueError:
        return source.name, {source.name: source.read_bytes()}


# -- around Python ---------------------------------------------------------------------------------------------------


class Found(msgspec.Struct, frozen=True):
    """A model in a Python file: its kind, whether palan.toml has to say it, its verbs, and the columns that it reads."""

    name: str
    kind: str
    declare: bool
    verbs: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    learns: tuple[str, ...] = ()  # columns that fit() reads and decide() does not: the outcome is among them


def found_in(text: str) -> list[Found]:
    """Return the models that a Python file defines at its top level, by reading it.

    Classes with a verb of a model come first; functions and finished scikit-learn objects count where there is no class.

    Raises:
        SyntaxError: it is not Python.
    """
    tree = ast.parse(text)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    models = [each for node in classes.values() if (each := _of_class(node, classes)) is not None]
    if models:
        return models
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    solving = _solving(tree, functions)
    found = []
    for node in tree.body:
        each = _of_function(node, solving) if isinstance(node, ast.FunctionDef) else _of_object(node) if isinstance(node, ast.Assign) else None
        if each is not None:
            found.append(each)
    return found or _deciding(functions, solving)


def _solving(tree: ast.Module, functions: Mapping[str, ast.FunctionDef]) -> set[str]:
    """Return the functions that work with a solver, by themselves or by another one that they call."""
    bound = {SOLVER}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            bound |= {each.asname or SOLVER for each in node.names if each.name.partition(".")[0] == SOLVER}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == SOLVER:
            bound |= {each.asname or each.name for each in node.names}
    grown = True
    while grown:
        more = {name for name, node in functions.items() if name not in bound and (_named_in(node) & bound)}
        bound |= more
        grown = bool(more)
    return bound & set(functions)


def _named_in(node: ast.FunctionDef) -> set[str]:
    inside = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    imported = {SOLVER for each in ast.walk(node) if isinstance(each, ast.ImportFrom) and (each.module or "").partition(".")[0] == SOLVER}
    return inside | imported


def _deciding(functions: Mapping[str, ast.FunctionDef], solving: set[str]) -> list[Found]:
    """Return the functions of one thing that give something back, apart from those that only help another of them.

    Their arguments' names tell nothing: such a one is taken as deciding one instance.
    """
    able = {name: node for name, node in functions.items() if not name.startswith("_") and len(_required(node)) == 1 and _gives(node)}
    helping = {each for name, node in able.items() for each in _named_in(node) if each != name}
    return [Found(name, "program" if name in solving else "heuristic", False, ("decide",)) for name in able if name not in helping]


def _gives(node: ast.FunctionDef) -> bool:
    return any(isinstance(each, ast.Return) and each.value is not None for each in ast.walk(node))


def _of_class(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Found | None:
    bases = {each.id if isinstance(each, ast.Name) else each.attr for each in node.bases if isinstance(each, ast.Name | ast.Attribute)}
    if node.name.startswith("_") or bases & {"Protocol", "ABC"}:
        return None
    methods = _methods(node, classes)
    # predict_proba of a wrapped object is the library's business; what the class itself defines tells its kind.
    if "formulate" in methods:
        kind = "program"
    elif "act" in methods:
        kind = "policy"
    elif "decide" in methods and (len(_required(methods["decide"])) >= 3 or _required(methods["decide"])[1:] == ["instance"]):
        kind = "heuristic"
    elif "decide" in methods:
        kind = "estimator" if "fit" in methods else "rules"
    elif "predict" in methods or "predict_proba" in methods:
        kind = "estimator"
    else:
        return None
    answering = [methods[verb] for verb in ("decide", "act", "predict", "predict_proba") if verb in methods]
    inputs = tuple(dict.fromkeys(name for method in answering for name in _columns(method)))
    learns = tuple(name for name in dict.fromkeys(_columns(methods["fit"])) if name not in inputs) if "fit" in methods else ()
    return Found(node.name, kind, False, tuple(verb for verb in _VERBS if verb in methods), inputs, learns)


def _methods(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> dict[str, ast.FunctionDef]:
    """Return a class's methods with those of its bases in the same file."""
    found: dict[str, ast.FunctionDef] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes and classes[base.id] is not node:
            others = {name: each for name, each in classes.items() if name != node.name}
            found |= _methods(classes[base.id], others)
    return found | {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}


def _required(node: ast.FunctionDef) -> list[str]:
    names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
    return names[: len(names) - len(node.args.defaults)] if node.args.defaults else names


def _of_function(node: ast.FunctionDef, solving: set[str]) -> Found | None:
    """Read a function as `models.adapt` does: the names of its arguments tell the kind."""
    names = _required(node)
    if node.name.startswith("_"):
        return None
    if len(names) == 2 and names[1] in ("ctx", "context"):
        return Found(node.name, "heuristic", False, ("decide",))
    told = {"rows": "rules", "observation": "policy", "instance": "program" if node.name in solving else "heuristic"}
    if len(names) == 1 and names[0] in told:
        return Found(node.name, told[names[0]], False, ("decide",), tuple(_columns(node)))
    if len(names) == 1 and node.name in ("decide", "predict"):
        return Found(node.name, "rules", True, ("decide",), tuple(_columns(node)))
    return None


def _of_object(node: ast.Assign) -> Found | None:
    """Recognise `model = GradientBoostingClassifier(...)` and its like."""
    target, value = node.targets[0], node.value
    if not (isinstance(target, ast.Name) and isinstance(value, ast.Call)):
        return None
    called = value.func.attr if isinstance(value.func, ast.Attribute) else value.func.id if isinstance(value.func, ast.Name) else ""
    return Found(target.id, "estimator", False, ("fit", "predict", "score")) if called.endswith(_LEARNERS) else None


def _columns(node: ast.FunctionDef) -> Iterator[str]:
    """Yield the columns that a method names, as they come: rows["x"], pl.col("x"), rows.select("x", ...)."""
    expressions = [each for each in ast.walk(node) if isinstance(each, ast.expr)]
    for inner in sorted(expressions, key=lambda each: (each.lineno, each.col_offset)):
        texts: Sequence[ast.expr] = ()
        if isinstance(inner, ast.Subscript) and isinstance(inner.ctx, ast.Load):
            texts = inner.slice.elts if isinstance(inner.slice, ast.List | ast.Tuple) else [inner.slice]
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute) and inner.func.attr in ("col", "select", "get_column"):
            texts = inner.args
        yield from (each.value for each in texts if isinstance(each, ast.Constant) and isinstance(each.value, str))


def _imports(tree: ast.Module) -> list[str]:
    """Return the top-level packages that a file imports."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append(node.module.partition(".")[0])
    return found


def _around_code(root: Path, source: Path, kind: str) -> _Plan:
    try:
        text = source.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except UnicodeDecodeError as error:
        raise PalanError(f"{source} is not UTF-8 text: {error.reason}", "save it as UTF-8") from error
    except (SyntaxError, ValueError) as error:
        line = f" line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise PalanError(f"{source}{line} is not Python: {getattr(error, 'msg', error)}", "put that line right") from error
    found = found_in(text)
    if not found:
        hint = "give it a function plan(instance) or decide(rows), or a class with decide(self, rows): palan init --kind estimator --into EXAMPLE shows one"
        raise PalanError(f"{source} defines nothing that decides: no class with decide, formulate, act or predict, and no function of one argument that returns something", hint)
    path, files = _placed(root, source)
    missing = [f"{source.name} line {line}: {code} runs whenever palan imports the file, in another folder: {BELOW}" for line, code in _reading(tree)]
    parts = [f"[project]\nname = {_named(root)}\n"]
    rows = [each for each in found if SHAPE[kind or each.kind] == "rows"]
    tables = tables_in(root) if rows else []
    table = look(tables[0], tables[0].relative_to(root).as_posix()) if tables else None
    data = table.name if table and table.name not in {each.name.lower() for each in found} else "history"
    if table:
        parts.append(data_part(table, data))
        missing += _others(root, table.path, tables[1:])
    elif rows:
        parts.append(_data_part(next((each for each in rows if each.verbs and "fit" in each.verbs), rows[0])))
        missing.append("data: say in [data.history] which files hold it, and what each column may hold")
    for each in found:
        parts.append(_model_part(path, each, kind, missing, data, table))
    files[FILE] = "\n".join(parts).encode()
    first = found[0].name.lower()
    steps = ["palan ingest", f"palan build {first}"] if rows else [f"palan build {first}"]
    return _Plan(files, missing, f"edit {root / FILE}, then: {_steps(root, steps, _imports(tree))}")


BELOW = 'put reading and fitting below if __name__ == "__main__":, and declare the file as [data.NAME]'


def _reading(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of what reads a file at the top level of a script."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef | ast.If):
            continue
        for each in ast.walk(statement):
            if isinstance(each, ast.Call):
                called = each.func.attr if isinstance(each.func, ast.Attribute) else each.func.id if isinstance(each.func, ast.Name) else ""
                if called.startswith(("read_", "scan_")) or called in ("open", "loadtxt", "genfromtxt"):
                    yield each.lineno, ast.unparse(each)[:60]


def _data_part(model: Found) -> str:
    columns = [*model.inputs, *model.learns] or ["temp", "sold"]
    lines = [
        "[data.history]",
        'source = "data/*.csv"               # TODO: your files: .csv .parquet .ndjson; new ones are taken in once',
        '# key = ["id"]                      # what identifies a row; the same key again is a correction',
        '# time = "day"                      # when a row happened: the watch and honest comparisons need it',
        "[data.history.columns]              # TODO: type[?] [range | in values] [unit]; ? may be empty",
        *(f'{toml_key(name)} = "float?"' for name in columns),
    ]
    return "\n".join(lines) + "\n"


def _model_part(path: str, each: Found, kind: str, missing: list[str], data: str, table: Looked | None) -> str:
    name, known = each.name.lower(), kind or each.kind
    lines = [f"[models.{name}]", f"model = {json.dumps(f'{path}:{each.name}')}"]
    if each.declare or (kind and kind != each.kind):
        lines.append(f'kind = "{known}"')

    def lacks(verb: str, line: str) -> None:
        if verb not in each.verbs:
            lines.append(f"# {each.name} has no {line}")
            missing.append(f"{verb}: {each.name} has no {line}")

    if SHAPE[known] == "instance":
        lines += ['instances = "instances/*.json"       # TODO: put real instances there, one JSON file each', 'time_limit = "10s"                    # of one decision']
        missing.append(f"instances: put at least one real input of {each.name} into instances/ as JSON")
        lacks("check", "check(self, instance, plan): without it no gate can tell whether a plan is allowed")
        if known == "heuristic":
            lacks("objective", "objective(self, instance, plan): without it no gate can tell whether a change makes plans worse")
    else:
        known_columns = [column.field.name for column in table.columns] if table else []
        learnt = [name for name in each.learns if name in known_columns]
        guess = learnt[0] if learnt else table.outcome if table and "fit" in each.verbs else ""
        inputs = list(each.inputs) or (table.inputs_for(guess) if table else []) or ["temp"]
        outcome = guess or (each.learns[0] if each.learns else "sold")
        row = table.key if table else ""
        lines += [
            f'data = "{data}"'.ljust(36) + ("# what fit() learns from, and what the inputs may hold" if "fit" in each.verbs else "# what the inputs may hold"),
            f"inputs = {json.dumps(inputs, ensure_ascii=False)}  # TODO: the columns that a caller sends" + (", as decide() reads them" if each.inputs else ""),
            f"{'' if guess else '# '}outcome = {json.dumps(outcome, ensure_ascii=False)}".ljust(36) + ("# TODO: guessed; the column that is known only later" if guess else "# the column that is known only later"),
            f"{'' if row else '# '}key = {json.dumps(row or 'id', ensure_ascii=False)}".ljust(36) + "# the caller's own name of a row: outcomes come back by it",
        ]
        absent = [name for name in inputs if name not in known_columns] if table else []
        if absent:
            missing.append(f"data: {table.path if table else ''} has no column {_shortly(absent)}, which {each.name} reads")
        lacks("score", "score(self, decisions, outcomes): without it versions cannot be compared, nor harm be seen")
        lacks("check", "check(self, rows, decisions): say there what must hold of every answer")
    if known == "policy":
        lacks("environment", "environment(self): without it nothing can tell whether it beats a constant action")
    lines.append(f'# golden = "golden/{name}.json"      # [{{"input": {{...}}, "output": ..., "tolerance": 0.05}}]: what must stay')
    missing.append(f"golden: write some inputs of {name} with the answers that must stay")
    return "\n".join(lines) + "\n"


# -- around a decision table -----------------------------------------------------------------------------------------


def _around_table(root: Path, source: Path) -> _Plan:
    from palan.models.table import parse

    data = source.read_bytes()
    table = parse(data, str(source))
    path, files = _placed(root, source)
    name = "".join(each if each.isalnum() else "_" for each in source.stem.lower()).strip("_") or "rules"
    golden = f"golden/{name}.json"
    cases = _golden(table)
    lines = ",\n".join("  " + json.dumps(case, ensure_ascii=False) for case in cases)
    files[golden] = f"[\n{lines}\n]\n".encode()
    files["example.json"] = (json.dumps([cases[0]["input"]], ensure_ascii=False) + "\n").encode()
    files[FILE] = f"""[project]
name = {_named(root)}

[models.{name}]
model = {json.dumps(path)}
golden = "{golden}"       # TODO: what the table answers today; look through it, and add the cases that matter
gates = ["golden", "table_checks", "latency 50ms"]  # table_checks: no gap, no overlap, no rule that never fires
# Without data the inputs may hold anything of the golden cases' types. Declare [data.NAME] with the columns' ranges,
# and data = "NAME", inputs = [...] here, to have gaps judged over what really comes.
""".encode()
    missing = ["data: the ranges of the inputs, so that gaps are judged over what really comes"]
    steps = [f"palan build {name}", f"palan check {name}", f"palan release {name}", f"palan decide {name} --input example.json"]
    return _Plan(files, missing, _steps(root, steps))


def _golden(table: Table) -> list[dict[str, Any]]:
    """Return an input for each of the first rules, with what the table answers to it now."""
    import polars as pl

    from palan.models.table import FIRED, decide

    columns = {name: _samples([rule.cells[place] for rule in table.rules])[:CASES] for place, name in enumerate(table.inputs)}
    inputs = pl.DataFrame(columns)
    outputs = decide(table, inputs).drop(FIRED)
    cases = [{"input": given, "output": told} for given, told in zip(inputs.to_dicts(), outputs.to_dicts(), strict=True)]
    return [case for place, case in enumerate(cases) if case not in cases[:place]]


def _samples(cells: Sequence[Cell]) -> list[Any]:
    """Return a value for each cell of a column that satisfies it, all of one type."""
    conditions = [cell for cell in cells if not (cell.any or cell.null)]
    pick: Callable[[Cell], Any] = _text_in
    if not conditions:
        return [None if cell.null else 0.0 for cell in cells]
    if all(cell.flag is not None for cell in conditions):
        pick = _flag_in
    elif all(cell.intervals is not None for cell in conditions):
        pick = _number_in
    usual = pick(conditions[0])
    return [None if cell.null else usual if cell.any else pick(cell) for cell in cells]


def _flag_in(cell: Cell) -> bool:
    return bool(cell.flag)


def _number_in(cell: Cell) -> float:
    low, low_in, high, high_in = (cell.intervals or ((0.0, True, 0.0, True),))[0]
    if low_in:
        return low
    if high_in:
        return high
    if isfinite(low) and isfinite(high):
        return (low + high) / 2
    return low + 1.0 if isfinite(low) else high - 1.0 if isfinite(high) else 0.0


def _text_in(cell: Cell) -> str:
    texts = sorted(cell.texts or ())
    if not cell.negated:
        return texts[0]
    return next(word for word in ("other", *(f"other {number}" for number in range(len(texts) + 1))) if word not in texts)
