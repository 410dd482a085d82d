"""The code that a definition depends on, found by reading the sources, never by running them.

The closure of `file.py:Name` is the normalised syntax tree of Name and of all first-party code that it can reach:
helpers, methods, constants, base classes, decorators, and what the modules on the way do when they are imported.
Comments, docstrings, layout and the names of local variables do not count. Third-party code enters as distribution and version. Where reading cannot
tell, more is included rather than less.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import msgspec

from palan.core import digest, digest_of
from palan.errors import NotFound, PalanError, nearest

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_BY_NAME = {"globals", "vars", "eval", "exec"}  # reach any name of the module
_BY_MODULE = {"import_module", "__import__"}  # reach any module
_READS_FRAMES = {"locals", "vars", "dir", "eval", "exec", "sql", "query", "evaluate", "_getframe", "currentframe", "stack"}
"""Calls that may look up the caller's variables by their names, as SQL over data frames does."""
_REGISTERING = ("__init_subclass__", "__subclasses__", "metaclass")  # a class counts without being named

_MODULE, _ALL = "(module)", "*"

_Import = tuple[str, str]
"""(module, what is taken from it, or "" for the module itself)."""


class Closure(msgspec.Struct, frozen=True):
    """`parts` maps "file.py:name" to the digest of its code; `distributions` third-party names to versions."""

    entry: str
    parts: Mapping[str, str]
    files: tuple[str, ...]
    distributions: Mapping[str, str]

    @property
    def digest(self) -> str:
        return digest_of(self.to_dict())

    def to_dict(self) -> dict[str, str]:
        """Return every part with its digest or version: what a step writes down, so that `why` can name what changed."""
        third = {f"distribution {name}": version for name, version in self.distributions.items()}
        return {"entry": self.entry, **self.parts, **third}


class _Module(msgspec.Struct):
    """What one source file binds at its top level, and what runs when it is imported."""

    bound: dict[str, list[ast.stmt]] = {}
    effects: list[ast.stmt] = []
    imports: dict[str, list[_Import]] = {}  # alias -> where it may come from
    stars: list[str] = []


def closure(entry: str, sources: Mapping[str, str], version_of: Callable[[str], tuple[str, str] | None], *, whole: Sequence[str] = ()) -> Closure:
    """Return the closure of `entry` ("file.py:Name") over `sources` (path relative to the project -> text).

    Of the files `whole` everything belongs to it.
    `version_of` maps a top-level import name to (distribution, version), or None for what is not installed. Imports are
    looked up from the project's folder, then from the folder of the entry's file, as where the model runs.

    Raises:
        NotFound: no such file or no such name in it, with the nearest one.
        PalanError: a source is not Python.
    """
    file, _, name = entry.partition(":")
    for each in (file, *whole):
        if each not in sources:
            raise NotFound(f"there is no {each} in the project", nearest(each, sources) or f"check `{'model' if each == file else 'features'} =` in palan.toml")
    walk = _Walk(sources, version_of, PurePosixPath(file).parent)
    module = walk.module(file)
    if name not in module.bound and name not in module.imports:
        raise NotFound(f"{file} defines no {name}", nearest(name, module.bound) or f"define {name} in {file}")
    walk.reach(file, name)
    for each in whole:
        walk.reach(each, _ALL)
    return Closure(entry, dict(sorted(walk.parts.items())), tuple(sorted(walk.files)), dict(sorted(walk.third.items())))


class _Walk:
    """A walk over names, each visited once."""

    def __init__(
        self, sources: Mapping[str, str], version_of: Callable[[str], tuple[str, str] | None], beside: PurePosixPath
    ) -> None:
        self.sources = sources
        self.version_of = version_of
        self.roots = list(dict.fromkeys(["", "" if str(beside) == "." else f"{beside}/"]))
        self.registering = any(word in text for text in sources.values() for word in _REGISTERING)
        self.parts: dict[str, str] = {}
        self.files: set[str] = set()
        self.third: dict[str, str] = {}
        self._modules: dict[str, _Module] = {}
        self._seen: set[tuple[str, str]] = set()

    def module(self, file: str) -> _Module:
        if file not in self._modules:
            try:
                tree = ast.parse(self.sources[file])
            except SyntaxError as error:
                raise PalanError(f"{file} line {error.lineno}: {error.msg}", "put that line right") from error
            except ValueError as error:
                raise PalanError(f"{file} is not Python: {error}", "save it again as plain text") from error
            self._modules[file] = _read(tree, file)
        return self._modules[file]

    def reach(self, file: str, name: str) -> None:
        """Add what `name` means at the top level of `file`, and everything that it can reach."""
        todo = [(file, name)]
        while todo:
            at = todo.pop()
            if at not in self._seen:
                self._seen.add(at)
                todo.extend(self._visit(*at))

    def _visit(self, file: str, name: str) -> Iterator[tuple[str, str]]:
        module = self.module(file)
        if file not in self.files:
            self.files.add(file)
            yield from self._load(file, module)
        if name == _MODULE:
            return
        if name == _ALL:
            for each in (*module.bound, *module.imports):
                yield file, each
            for star in module.stars:
                yield from self._import(star, _ALL)
            return
        if name in module.bound:
            yield from self._visit_nodes(file, name, module.bound[name])
        if name in module.imports:
            # What a name is imported from is code as well: mean and median come from one distribution.
            self.parts[f"{file}:import {name}"] = digest_of(module.imports[name])
            for source, attribute in module.imports[name]:
                yield from self._import(source, attribute or _ALL)
        if name not in module.bound and name not in module.imports:
            for star in module.stars:
                yield from self._import(star, name)
            if "__getattr__" in module.bound:
                yield file, "__getattr__"

    def _load(self, file: str, module: _Module) -> Iterator[tuple[str, str]]:
        """Yield what importing a file runs: its effects, the packages that hold it, and every module it imports."""
        registering = [
            node
            for nodes in module.bound.values()
            for node in nodes
            if self._registers(node, module) and node not in module.effects
        ]
        yield from self._visit_nodes(file, _MODULE, [*module.effects, *registering])
        package = PurePosixPath(file).parent
        while str(package) != ".":  # importing a.b runs a/__init__.py
            if f"{package}/__init__.py" in self.sources:
                yield f"{package}/__init__.py", _MODULE
            package = package.parent
        for source, attribute in [*(each for found in module.imports.values() for each in found), *((star, "") for star in module.stars)]:
            for place, _ in self._import(source, attribute or _MODULE):
                yield place, _MODULE

    def _registers(self, node: ast.stmt, module: _Module) -> bool:
        """Tell whether a definition may be found without its name: by a decorator of ours, or through its base class."""
        if not isinstance(node, _DEFINITIONS):
            return False
        if isinstance(node, ast.ClassDef) and self.registering and (node.bases or node.keywords):
            return True
        names = {each.id for decorator in node.decorator_list for each in ast.walk(decorator) if isinstance(each, ast.Name)}
        return any(
            name in module.bound or any(True for source, attribute in module.imports.get(name, ()) for _ in self._places(source, attribute))
            for name in names
        )

    def _visit_nodes(self, file: str, name: str, nodes: list[ast.stmt]) -> Iterator[tuple[str, str]]:
        module = self.module(file)
        if nodes:
            self.parts[f"{file}:{name}"] = digest("".join(_dump(node) for node in nodes).encode())
        for node in nodes:
            local = _Module()
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    _read_import(inner, file, local)
            for found in local.imports.values():
                for source, attribute in found:
                    yield from self._import(source, attribute or _MODULE)
            for star in local.stars:
                yield from self._import(star, _ALL)
            for path in _uses(node):
                yield from self._use(file, module, local, path)

    def _use(self, file: str, module: _Module, local: _Module, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Yield what `a` or `a.b.c` may reach: path is ("a",) or ("a", "b", "c")."""
        name = path[0]
        if name in _BY_NAME and name not in module.bound:
            yield file, _ALL
        if path[-1] in _BY_MODULE or path[:2] == ("sys", "modules"):
            for each in self.sources:
                yield each, _ALL
        for source, attribute in local.imports.get(name, ()):
            yield from self._follow(source, attribute, path[1:])
        if name in module.imports and len(path) > 1 and all(not attribute for _, attribute in module.imports[name]):
            # Of a whole module only what is taken from it counts.
            self.parts[f"{file}:import {name}"] = digest_of(module.imports[name])
            for source, _ in module.imports[name]:
                yield from self._follow(source, "", path[1:])
            if name in module.bound:
                yield file, name
        elif name in module.imports or name in module.bound or (name and module.stars):
            yield file, name

    def _follow(self, source: str, attribute: str, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """Yield what `source.attribute` followed by attributes reaches: as deep as the path names modules."""
        if attribute:
            yield from self._import(source, attribute)
            return
        while path and any(True for _ in self._places(".".join([source, path[0]]), "")):
            yield from self._import(source, _MODULE)
            source, path = ".".join([source, path[0]]), path[1:]
        yield from self._import(source, path[0] if path else _ALL)

    def _places(self, source: str, attribute: str) -> Iterator[str]:
        """Yield the file that holds a first-party module, at the first root that has it."""
        path = "/".join(part for part in (source.replace(".", "/"), attribute) if part)
        for root in self.roots:
            for candidate in (f"{root}{path}.py", f"{root}{path}/__init__.py"):
                if path and candidate in self.sources:
                    yield candidate
                    return

    def _import(self, source: str, attribute: str) -> Iterator[tuple[str, str]]:
        """Yield what `from source import attribute` brings in ("*": all of it, "(module)": what its import runs)."""
        plain = attribute not in (_ALL, _MODULE)
        for file in self._places(source, attribute) if plain else ():
            yield file, _ALL  # a submodule
            return
        for file in self._places(source, ""):
            yield file, attribute
            return
        inside = [file for root in self.roots for file in self.sources if source and file.startswith(f"{root}{source.replace('.', '/')}/")]
        if inside:  # a folder without __init__.py
            for file in inside if attribute != _MODULE else ():
                yield file, _ALL
            return
        top = source.partition(".")[0]
        if top and top not in sys.stdlib_module_names:
            found = self.version_of(top)
            name, version = found or (top, "missing")
            self.third[name] = version


def _read(tree: ast.Module, file: str) -> _Module:
    module = _Module()
    for node in tree.body:
        if isinstance(node, _DEFINITIONS):
            module.bound.setdefault(node.name, []).append(node)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            _read_import(node, file, module)
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring or an ellipsis
        else:
            outside = list(_outside_functions(node))
            names = {each.id for each in outside if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
            names |= {each.name for each in outside if isinstance(each, _DEFINITIONS)}
            for each in outside:
                if isinstance(each, ast.Import | ast.ImportFrom):
                    _read_import(each, file, module)
            for name in names:
                module.bound.setdefault(name, []).append(node)
            if not _only_binds(node) and not _is_main_guard(node):
                module.effects.append(node)
    return module


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Walk a statement without the insides of the functions in it."""
    yield node
    if not isinstance(node, _FUNCTIONS):
        for child in ast.iter_child_nodes(node):
            yield from _outside_functions(child)


def _only_binds(node: ast.stmt) -> bool:
    """Tell whether a statement does no more than give names to values."""
    if isinstance(node, ast.Assign):
        parts = [part for target in node.targets for part in ast.walk(target)]
    elif isinstance(node, ast.AnnAssign | ast.AugAssign):
        parts = list(ast.walk(node.target))
    else:
        return isinstance(node, ast.Pass)
    return not any(isinstance(part, ast.Attribute | ast.Subscript) for part in parts)


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).replace('"', "'") == "__name__ == '__main__'"


def _read_import(node: ast.Import | ast.ImportFrom, file: str, module: _Module) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            # `import a.b` binds a, and loads a.b; `import a.b as c` binds a.b
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            module.imports.setdefault(alias.asname or name, []).append((name, ""))
            if name != alias.name:
                module.imports.setdefault(alias.name, []).append((alias.name, ""))
        return
    source = node.module or ""
    if node.level:
        parents = PurePosixPath(file).parents
        package = parents[min(node.level, len(parents)) - 1]
        source = ".".join([*package.parts, *([source] if source else [])])
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            module.imports.setdefault(alias.asname or alias.name, []).append((source, alias.name))


def _uses(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """Yield every name that is read, each with the attributes taken from it: ("a",) or ("a", "b", "c")."""
    owned: set[int] = set()
    for inner in ast.walk(node):
        if id(inner) in owned:
            continue
        if isinstance(inner, ast.Name):
            yield (inner.id,)
        elif isinstance(inner, ast.Attribute):
            path: list[str] = []
            value: ast.expr = inner
            while isinstance(value, ast.Attribute):
                owned.add(id(value))
                path.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name):
                owned.add(id(value))
                yield (value.id, *reversed(path))
            else:
                yield ("", *reversed(path))


class _Normalise(ast.NodeTransformer):
    """Drops docstrings and bare constants, which change nothing."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
        return node


class _Rename(ast.NodeTransformer):
    """Calls the local variables of functions by number: what somebody calls them changes nothing.

    Only names that are assigned to and no more; parameters, imports, inner definitions and what a string mentions keep theirs.
    """

    def __init__(self) -> None:
        self.kept: set[str] = set()
        self.depth = 0
        self.names: dict[str, str] = {}

    def visit_Name(self, node: ast.Name) -> ast.Name:
        node.id = self.names.get(node.id, node.id)
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node, node.body)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return self._function(node, [node.body])

    def _function(self, node: _Function, body: Sequence[ast.AST]) -> ast.AST:
        if not self.depth:
            if any(_READS_FRAMES & set(path) for path in _uses(node)):
                return node
            strings = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            self.kept = {word for text in strings for word in re.findall(r"\w+", text)}
        inside = {id(each) for each in body}
        for child in ast.iter_child_nodes(node):  # decorators, defaults and annotations belong to the scope around it
            if id(child) not in inside:
                self.visit(child)
        bound, fixed = _locals(node, body)
        outer = self.names
        self.names = {name: new for name, new in outer.items() if name not in bound and name not in fixed}
        self.depth += 1
        # No name of Python's begins with a digit, so none is taken.
        self.names |= {name: f"{self.depth}.{place}" for place, name in enumerate(each for each in bound if each not in fixed | self.kept)}
        for child in body:
            self.visit(child)
        self.depth -= 1
        self.names = outer
        return node


def _locals(function: _Function, body: Sequence[ast.AST]) -> tuple[dict[str, None], set[str]]:
    """Return the names that a function assigns to, in order, and those in it that mean more than a variable."""
    bound: dict[str, None] = {}
    fixed: set[str] = set()
    for each in ast.walk(function):
        if isinstance(each, ast.Global | ast.Nonlocal):  # here or further inside: the name is shared
            fixed.update(each.names)
        elif isinstance(each, ast.ClassDef):  # what is assigned in it are its attributes
            fixed.update(inner.id for inner in ast.walk(each) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store))
    fixed.update(each.arg for each in ast.walk(function.args) if isinstance(each, ast.arg))
    todo = list(body)
    while todo:
        node = todo.pop(0)
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound[node.id] = None
        elif isinstance(node, ast.Import | ast.ImportFrom):
            fixed.update((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, (*_DEFINITIONS, ast.ExceptHandler, ast.MatchAs, ast.MatchStar)):
            fixed.add(node.name or "")
        elif isinstance(node, ast.MatchMapping) and node.rest:
            fixed.add(node.rest)
        if not isinstance(node, (*_DEFINITIONS, ast.Lambda)):
            todo.extend(ast.iter_child_nodes(node))
    return bound, fixed


def _dump(node: ast.stmt) -> str:
    copy = ast.parse(ast.unparse(node))  # a copy without positions, comments and redundant brackets
    return ast.dump(_Rename().visit(_Normalise().visit(copy)))
