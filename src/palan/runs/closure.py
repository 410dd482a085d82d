"""The code that a definition depends on, found by reading the sources, never by running them.

The closure of `file.py:Name` is the normalised syntax tree of Name and of all first-party code that it can reach:
helpers, methods, constants, base classes, decorators. Comments, docstrings and layout do not count. Third-party code
enters as distribution and version. Where reading cannot tell, more is included rather than less.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from palan.core import digest, digest_of
from palan.errors import NotFound, PalanError, nearest

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True, slots=True)
class Closure:
    """`parts` maps "file.py:name" to the digest of its code; `distributions` third-party names to versions."""

    entry: str
    parts: Mapping[str, str]
    files: tuple[str, ...]
    distributions: Mapping[str, str]

    @property
    def digest(self) -> str:
        return digest_of([self.entry, self.parts, self.distributions])


@dataclass(slots=True)
class _Module:
    """What one source file binds at its top level."""

    bound: dict[str, list[ast.stmt]] = field(default_factory=dict)
    effects: list[ast.stmt] = field(default_factory=list)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)  # alias -> (module, attribute or "")
    stars: list[str] = field(default_factory=list)


def closure(entry: str, sources: Mapping[str, str], version_of: Callable[[str], tuple[str, str] | None]) -> Closure:
    """Return the closure of `entry` ("file.py:Name") over `sources` (path relative to the project -> text).

    `version_of` maps a top-level import name to (distribution, version), or None for what is not installed.

    Raises:
        NotFound: no such file or no such name in it, with the nearest one.
        PalanError: a source is not Python.
    """
    file, _, name = entry.partition(":")
    if file not in sources:
        raise NotFound(f"there is no {file} in the project", nearest(file, sources) or "check `model =` in palan.toml")
    walk = _Walk(sources, version_of)
    module = walk.module(file)
    if name not in module.bound and name not in module.imports:
        raise NotFound(f"{file} defines no {name}", nearest(name, module.bound) or f"define {name} in {file}")
    walk.reach(file, name)
    return Closure(entry, dict(sorted(walk.parts.items())), tuple(sorted(walk.files)), dict(sorted(walk.third.items())))


class _Walk:
    """A walk over names, each visited once."""

    def __init__(self, sources: Mapping[str, str], version_of: Callable[[str], tuple[str, str] | None]) -> None:
        self.sources = sources
        self.version_of = version_of
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
            yield from self._visit_nodes(file, "(module)", module.effects)
            package = PurePosixPath(file).parent
            while str(package) != ".":  # importing a.b runs a/__init__.py
                if f"{package}/__init__.py" in self.sources:
                    yield f"{package}/__init__.py", "(module)"
                package = package.parent
        if name == "*":
            for each in (*module.bound, *module.imports):
                yield file, each
        elif name in module.bound:
            yield from self._visit_nodes(file, name, module.bound[name])
        elif name in module.imports:
            yield from self._import(file, *module.imports[name])
        else:
            for star in module.stars:
                yield from self._import(file, star, name)

    def _visit_nodes(self, file: str, name: str, nodes: list[ast.stmt]) -> Iterator[tuple[str, str]]:
        module = self.module(file)
        if nodes:
            self.parts[f"{file}:{name}"] = digest("".join(_dump(node) for node in nodes).encode())
        for node in nodes:
            aliases = dict(module.imports)
            for inner in ast.walk(node):
                if isinstance(inner, ast.Import | ast.ImportFrom):
                    local = _Module()
                    _read_import(inner, file, local)
                    aliases.update(local.imports)
                    for module_name, attribute in local.imports.values():
                        yield from self._import(file, module_name, attribute)
            whole = _whole_uses(node)
            for used, attribute in _uses(node):
                if used in aliases:
                    source, member = aliases[used]
                    if not member and used not in whole:
                        if attribute:  # a bare module name reaches nothing by itself
                            yield from self._import(file, source, attribute)
                    else:
                        yield from self._import(file, source, member or "*")
                elif used in module.bound or module.stars:
                    yield file, used

    def _import(self, file: str, source: str, attribute: str) -> Iterator[tuple[str, str]]:
        """Yield what `from source import attribute` ("" or "*": all of it) brings in."""
        path = source.replace(".", "/")
        submodule = f"{path}/{attribute}.py" if path else f"{attribute}.py"
        if submodule in self.sources:
            yield submodule, "*"
            return
        for candidate in (f"{path}.py", f"{path}/__init__.py"):
            if candidate in self.sources:
                yield candidate, attribute or "*"
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
            names = {
                each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)
            }
            names |= {each.name for each in ast.walk(node) if isinstance(each, _DEFINITIONS)}
            for each in ast.walk(node):
                if isinstance(each, ast.Import | ast.ImportFrom):
                    _read_import(each, file, module)
            for name in names:
                module.bound.setdefault(name, []).append(node)
            if not names and not _is_main_guard(node):
                module.effects.append(node)
    return module


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).replace('"', "'") == "__name__ == '__main__'"


def _read_import(node: ast.Import | ast.ImportFrom, file: str, module: _Module) -> None:
    if isinstance(node, ast.Import):
        for alias in node.names:
            # `import a.b` binds a; `import a.b as c` binds a.b
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            module.imports[alias.asname or name] = (name, "")
            if not alias.asname and "." in alias.name:
                module.imports[f"{alias.name}"] = (alias.name, "")
        return
    source = node.module or ""
    if node.level:
        package = PurePosixPath(file).parents[node.level - 1]
        source = ".".join([*package.parts, *([source] if source else [])])
    for alias in node.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            module.imports[alias.asname or alias.name] = (source, alias.name)


def _uses(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield (name, attribute taken from it or "") for every name that is read; dotted paths in full as well."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            yield inner.id, ""
        elif isinstance(inner, ast.Attribute):
            path: list[str] = []
            value: ast.expr = inner
            while isinstance(value, ast.Attribute):
                path.append(value.attr)
                value = value.value
            if isinstance(value, ast.Name):
                names = [value.id, *reversed(path)]
                yield ".".join(names[:-1]), names[-1]


def _whole_uses(node: ast.AST) -> set[str]:
    """Return the names that are used otherwise than by taking an attribute: the object itself travels."""
    owners = {id(inner.value) for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    return {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name) and id(inner) not in owners}


class _Normalise(ast.NodeTransformer):
    """Drops docstrings and bare constants, which change nothing."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [each for each in body if not (isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant))]
            node.body = kept or [ast.Pass()]  # type: ignore[attr-defined]
        return node


def _dump(node: ast.stmt) -> str:
    copy = ast.parse(ast.unparse(node))  # a copy without positions, comments and redundant brackets
    return ast.dump(_Normalise().visit(copy))
