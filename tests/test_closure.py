"""An edit of anything that a model can reach makes a new version; an edit of anything else does not."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest

from palan.errors import NotFound, PalanError
from palan.runs.closure import Closure, closure

MODEL = '''"""A model."""
import numpy as np
from dataclasses import dataclass
from helpers import scale
import constants
from shapes.round import Circle as Round
from shapes import square
from .beside import near
import deep.down.below

LIMIT = 3.0
TABLE = {"a": 1}
unrelated_constant = 7


def helper(x, most=LIMIT):
    # keep it small
    return min(x, most)


def traced(function):
    return function


def unrelated(x):
    return x - 1


class Base:
    offset = 1

    def start(self):
        return self.offset


@dataclass
class Model(Base):
    """Decides."""
    rate: float = 0.1
    order = sorted(TABLE, key=lambda name: -TABLE[name])

    def decide(self, rows):
        def nested(value):
            return value * 2
        return np.asarray([nested(helper(scale(x))) for x in rows]) * constants.WEIGHT

    @traced
    def check(self, rows, decisions):
        from lazily import rule
        yield from rule(rows, Round(), square.side(), near(), deep.down.below.bottom())


if __name__ == "__main__":
    print(Model())
'''

SOURCES = {
    "model.py": MODEL,
    "helpers.py": "FACTOR = 2\n\n\ndef scale(x):\n    return x * FACTOR\n\n\ndef unused(x):\n    return x\n",
    "constants.py": "WEIGHT = 1.5\nOTHER = 2\n",
    "shapes/__init__.py": "SHAPES = []\n",
    "shapes/round.py": "class Circle:\n    radius = 1\n",
    "shapes/square.py": "def side():\n    return 4\n",
    "beside.py": "def near():\n    return 0\n",
    "deep/down/below.py": "def bottom():\n    return 10\n",
    "lazily.py": "def rule(*things):\n    return things\n",
    "stranger.py": "x = 1\n",
}


def of(sources: Mapping[str, str] = SOURCES, versions: Mapping[str, str] | None = None, entry: str = "model.py:Model") -> Closure:
    known = {"numpy": "2.0", "polars": "1.0", **(versions or {})}
    return closure(entry, sources, lambda name: (name, known[name]) if name in known else None)


def edited(old: str, new: str, file: str = "model.py") -> Closure:
    assert SOURCES[file].count(old) == 1, (file, old)
    return of({**SOURCES, file: SOURCES[file].replace(old, new)})


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("model.py", "return min(x, most)", "return max(x, most)", id="a helper"),
        pytest.param("model.py", "LIMIT = 3.0", "LIMIT = 4.0", id="a constant"),
        pytest.param("model.py", "* constants.WEIGHT", "/ constants.WEIGHT", id="a method"),
        pytest.param("model.py", "most=LIMIT", "most=2.0", id="a default argument"),
        pytest.param("model.py", "    @traced\n", "", id="a decorator that goes"),
        pytest.param("model.py", "    return function", "    return staticmethod(function)", id="a decorator's code"),
        pytest.param("model.py", "return self.offset", "return -self.offset", id="a base class"),
        pytest.param("model.py", "class Model(Base)", "class Model", id="the list of bases"),
        pytest.param("model.py", "value * 2", "value * 3", id="a nested function"),
        pytest.param("model.py", "rate: float = 0.1", "rate: float = 0.2", id="a field"),
        pytest.param("model.py", "offset = 1", "offset = 2", id="a class attribute of the base"),
        pytest.param("model.py", "-TABLE[name]", "TABLE[name]", id="a lambda"),
        pytest.param("model.py", '{"a": 1}', '{"a": 2}', id="a table that only the class body reads"),
        pytest.param("model.py", "from helpers import scale", "from helpers import unused as scale", id="what an alias stands for"),
        pytest.param("model.py", "import numpy as np", "import polars as np", id="which library an alias stands for"),
        pytest.param("model.py", "from dataclasses import dataclass", "from functools import cache as dataclass", id="what is taken from the standard library"),
        pytest.param("helpers.py", "x * FACTOR", "x + FACTOR", id="from module import name"),
        pytest.param("helpers.py", "FACTOR = 2", "FACTOR = 3", id="a constant of a helper's module"),
        pytest.param("constants.py", "WEIGHT = 1.5", "WEIGHT = 1.6", id="import module, module.name"),
        pytest.param("shapes/round.py", "radius = 1", "radius = 2", id="from package.module import name as other"),
        pytest.param("shapes/square.py", "return 4", "return 5", id="from package import module"),
        pytest.param("shapes/__init__.py", "SHAPES = []", "print('loaded')", id="what importing the package runs"),
        pytest.param("beside.py", "return 0", "return 1", id="from .module import name"),
        pytest.param("deep/down/below.py", "return 10", "return 11", id="import folder.folder.module"),
        pytest.param("lazily.py", "return things", "return things[1:]", id="an import inside a method"),
    ],
)
def test_an_edit_of_what_is_reached_invalidates(file: str, old: str, new: str) -> None:
    assert edited(old, new, file).digest != of().digest


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("model.py", "    # keep it small\n", "    # keep it smaller\n", id="a comment"),
        pytest.param("model.py", '    """Decides."""\n', '    """Decides well."""\n', id="a docstring of a class"),
        pytest.param("model.py", '"""A model."""\n', '"""A better model."""\n', id="a docstring of the module"),
        pytest.param("model.py", "    # keep it small\n", '    """Keep it small."""\n', id="a docstring that comes"),
        pytest.param("model.py", "LIMIT = 3.0\n", "\n\n\n\nLIMIT = 3.0\n", id="blank lines"),
        pytest.param("model.py", "LIMIT = 3.0\nTABLE = {\"a\": 1}\n", "TABLE = {\"a\": 1}\nLIMIT = 3.0\n", id="a moved line"),
        pytest.param("model.py", "return min(x, most)", "return (min((x), most))", id="redundant brackets"),
        pytest.param("model.py", '{"a": 1}', "{'a': 1}", id="other quotes"),
        pytest.param("model.py", "return min(x, most)", "return min(\n        x,\n        most,\n    )", id="a broken line"),
        pytest.param("model.py", "return x - 1", "return x - 2", id="an unrelated function"),
        pytest.param("model.py", "unrelated_constant = 7", "unrelated_constant = 8", id="an unrelated constant"),
        pytest.param("model.py", "print(Model())", "print(Model(), 1)", id="what runs only as a script"),
        pytest.param("helpers.py", "    return x\n", "    return 2 * x\n", id="an unrelated function of a helper's module"),
        pytest.param("constants.py", "OTHER = 2", "OTHER = 3", id="an unrelated constant of a module"),
        pytest.param("stranger.py", "x = 1", "x = 2", id="a file that nothing imports"),
    ],
)
def test_an_edit_of_anything_else_does_not(file: str, old: str, new: str) -> None:
    assert edited(old, new, file).digest == of().digest


LOCALS = """
import polars as pl

total = 0


def helper(rows, *, start=0):
    total = start
    for row in rows:
        total += row
    return total


class Model:
    def decide(self, rows):
        seen = [value for value in rows if value]

        def nested(value):
            part = value + len(seen)
            return lambda more: part + more

        try:
            best = max(seen, key=lambda each: nested(each)(1))
        except ValueError as error:
            return error
        with open("x") as file:
            return helper(seen, start=best), file, f"rows {rows}"

    def look(self, rows):
        frame = pl.DataFrame(rows)
        return pl.sql("select * from frame"), pl.sql(QUERY)

    def log(self, rows):
        count = len(rows)
        return f"{count=}", {"height": count}

    def shared(self):
        state = 1

        def inner():
            nonlocal state
            state = 2
        class Part:
            size = state
        return inner, Part


QUERY = "select * from frame"
"""


def renamed(**names: str) -> str:
    text = LOCALS
    for old, new in names.items():
        text = re.sub(rf"\b{old}\b", new, text)
    return text


@pytest.mark.parametrize(
    ("names", "same"),
    [
        ({"row": "each_row"}, True),
        ({"seen": "known"}, True),
        ({"part": "piece"}, True),
        ({"best": "top"}, True),
        ({"file": "handle"}, True),
        ({"seen": "other", "best": "seen", "other": "best"}, True),
        pytest.param({"start": "begin"}, False, id="a parameter, which a caller names"),
        pytest.param({"nested": "within"}, False, id="an inner function, which knows its name"),
        pytest.param({"frame": "table"}, False, id="a frame that SQL finds by its name"),
        pytest.param({"count": "number"}, False, id="a name that a string shows"),
        pytest.param({"state": "mode"}, False, id="a name that is shared"),
        pytest.param({"size": "width"}, False, id="an attribute of an inner class"),
        pytest.param({"error": "failure"}, False, id="the name of an exception"),
        pytest.param({"total": "amount"}, False, id="a name of the module as well"),
    ],
)
def test_what_a_local_variable_is_called_does_not_count(names: dict[str, str], same: bool) -> None:
    before, after = (of({"model.py": text}) for text in (LOCALS, renamed(**names)))
    assert (after.digest == before.digest) is same


def test_an_edit_that_only_looks_like_a_rename_counts() -> None:
    text = "x = 1\n\n\nclass Model:\n    def decide(self, rows):\n        y, z = rows\n        return {}\n"
    assert len({of({"model.py": text.format(end)}).digest for end in ("y - z", "z - y", "y - x", "x - y", "locals()", "[y for y in rows]", "[a for a in rows]")}) == 7


def test_another_version_of_a_library_invalidates_and_one_that_is_not_used_does_not() -> None:
    assert of().distributions == {"numpy": "2.0"}
    assert of(versions={"numpy": "2.1"}).digest != of().digest
    assert of(versions={"polars": "9"}).digest == of().digest


def test_the_closure_names_what_changed() -> None:
    old, new = of().to_dict(), edited("return min(x, most)", "return max(x, most)").to_dict()
    assert {name for name in old if old[name] != new[name]} == {"model.py:helper"}


def test_every_file_that_importing_the_model_runs_travels_with_it() -> None:
    sources = {
        "model.py": "import setup_logging\nfrom helpers import unused\nimport pkg.sub\n\n\nclass Model:\n    pass\n",
        "setup_logging.py": "import deeper\n",
        "deeper.py": "import os\nos.environ['X'] = '1'\n",
        "helpers.py": "def unused():\n    return 1\n",
        "pkg/__init__.py": "",
        "pkg/sub.py": "A = 1\n",
    }
    found = of(sources)
    assert set(found.files) == set(sources)
    assert of({**sources, "deeper.py": "import os\nos.environ['X'] = '2'\n"}).digest != found.digest
    assert of({**sources, "helpers.py": "def unused():\n    return 2\n"}).digest == found.digest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("for name in ('a',):\n    RULES[name] = 1", "for name in ('a',):\n    RULES[name] = 2", id="a loop"),
        pytest.param("[RULES.setdefault(name, 1) for name in 'ab']", "[RULES.setdefault(name, 2) for name in 'ab']", id="a comprehension"),
        pytest.param("RULES['a'] = 1", "RULES['a'] = 2", id="an item"),
        pytest.param("RULES.kind = other = 1", "RULES.kind = other = 2", id="an attribute"),
        pytest.param("RULES.update(a=1)", "RULES.update(a=2)", id="a call"),
        pytest.param("@register\ndef rule():\n    return 1", "@register\ndef rule():\n    return 2", id="a decorator of ours"),
        pytest.param("class Rule(Base):\n    x = 1", "class Rule(Base):\n    x = 2", id="a subclass that registers itself"),
        pytest.param("try:\n    from fast import f\nexcept ImportError:\n    from slow import f", "try:\n    from fast import f\nexcept ImportError:\n    from slower import f", id="an import that may fail"),
    ],
)
def test_what_a_module_does_when_it_is_imported_counts(before: str, after: str) -> None:
    text = """
RULES = {}


def register(function):
    RULES[function.__name__] = function
    return function


class Base:
    def __init_subclass__(cls):
        RULES[cls.__name__] = cls


class Model:
    def decide(self, rows):
        return RULES, f


def f():
    pass


%s
"""
    others = {"slow.py": "def f():\n    return 1\n", "slower.py": "def f():\n    return 2\n"}
    assert of({"model.py": text % before, **others}).digest != of({"model.py": text % after, **others}).digest
    assert of({"model.py": text % before, **others}).digest == of({"model.py": text % f"{before}  # why", **others}).digest


@pytest.mark.parametrize(
    "body",
    [
        "return globals()['rule_' + name]()",
        "return eval('rule_' + name)()",
        "import sys\n        return getattr(sys.modules[__name__], 'rule_' + name)()",
        "import importlib\n        return importlib.import_module('plug' + name).rule_a()",
        "import other\n        return getattr(other, name)()",
        "import other as module\n        return call(module)",
        "from other import *\n        return rule_a()",
    ],
)
def test_where_reading_cannot_tell_more_is_included(body: str) -> None:
    rule = "def rule_a():\n    return 1\n"
    sources = {"model.py": f"{rule}\n\nclass Model:\n    def decide(self, name):\n        {body}\n", "other.py": rule, "pluga.py": rule}
    changed = {file: text.replace("return 1", "return 2") for file, text in sources.items()}
    assert of(changed).digest != of(sources).digest
    file = "other.py" if "other" in body else "pluga.py" if "plug" in body else "model.py"
    assert of({**sources, file: changed[file]}).digest != of(sources).digest


def test_a_model_in_a_folder_finds_what_lies_beside_it_and_at_the_root() -> None:
    sources = {
        "models/delay.py": "import common\nimport shared\n\n\nclass Model:\n    def decide(self, rows):\n        return common.f(shared.g(rows))\n",
        "models/common.py": "def f(x):\n    return x\n",
        "shared.py": "def g(x):\n    return x\n",
    }
    found = of(sources, entry="models/delay.py:Model")
    assert set(found.files) == set(sources) and found.distributions == {}
    for file in ("models/common.py", "shared.py"):
        assert of({**sources, file: sources[file].replace("return x", "return -x")}, entry="models/delay.py:Model").digest != found.digest


def test_modules_that_import_one_another_and_names_that_call_themselves() -> None:
    sources = {
        "model.py": "import other\n\n\ndef decide(n):\n    return decide(n - 1) if n else other.back(n)\n",
        "other.py": "import model\n\n\ndef back(n):\n    return model.decide(n)\n",
    }
    assert of(sources, entry="model.py:decide").files == ("model.py", "other.py")


def test_names_are_told_with_the_nearest_one() -> None:
    with pytest.raises(NotFound, match=r"defines no Modle\nhint: did you mean \"Model\""):
        of(entry="model.py:Modle")
    with pytest.raises(NotFound, match=r"there is no modle.py in the project\nhint: did you mean \"model.py\""):
        of(entry="modle.py:Model")
    with pytest.raises(PalanError, match=r"helpers.py line 2: .*\nhint: put that line right"):
        of({**SOURCES, "helpers.py": "x = 1\ndef scale(:\n"})
    assert of({**SOURCES, "stranger.py": "def ("}).digest == of().digest  # nobody asks it
