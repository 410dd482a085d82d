"""A file that a model reads behind palan's back is named, with what to declare; what palan knows, and libraries, are not."""

from __future__ import annotations

import json
from pathlib import Path

from palan.flows.build import build
from palan.flows.ingest import ingest
from palan.flows.project import open_project

TOML = """
[project]
name = "rolls"

[data.raw]
source = "feed/*.csv"
key = ["id"]
columns = { id = "int", warm = "float", sold = "float" }

[data.sales]
transform = "steps.py:sales"
key = ["id"]
columns = { id = "int", warm = "float", sold = "float" }

[models.rolls]
model = "rolls.py:Rolls"
data = "sales"
inputs = ["warm"]
key = "id"
"""

STEPS = """
import polars as pl

def sales(raw):
    pl.read_csv(source="{root}/holidays.csv")
    return raw
"""

ROLLS = """
import decimal
import json
from pathlib import Path
import polars as pl
import helper

TABLE = json.loads(Path("{root}/prices.json").read_text())

class Rolls:
    def fit(self, data):
        pl.read_csv("{root}/extra.csv")
        pl.read_csv("{root}/feed/one.csv")
        with open("{beside}/tax.txt") as file, open("{root}/made.txt", "w") as made:
            made.write(file.read())
        open("{root}/prices.json").close()
        import wave
        self.mean = float(data["sold"].mean())

    def decide(self, rows):
        return [self.mean] * rows.height
"""


def test_each_file_that_is_read_and_not_declared_is_named_once(tmp_path: Path) -> None:
    root, beside = tmp_path / "rolls", tmp_path / "beside"
    (root / "feed").mkdir(parents=True)
    beside.mkdir()
    (root / "palan.toml").write_text(TOML, encoding="utf-8")
    (root / "helper.py").write_text("known = 1\n", encoding="utf-8")
    for name, text in {"rolls.py": ROLLS, "steps.py": STEPS}.items():
        (root / name).write_text(text.format(root=root, beside=beside), encoding="utf-8")
    rows = "\n".join(["id,warm,sold", *(f"{number},1.0,{number}.0" for number in range(30))])
    for name in ("feed/one.csv", "extra.csv", "holidays.csv"):
        (root / name).write_text(rows, encoding="utf-8")
    (root / "prices.json").write_text(json.dumps({"roll": 0.5}), encoding="utf-8")
    (beside / "tax.txt").write_text("7 %", encoding="utf-8")
    told: list[str] = []
    project = open_project(root, tell=told.append)
    ingest(project, "raw")
    build(project, "rolls")
    named = [each for each in told if "palan does not know" in each]
    assert [each.partition(",")[0] for each in named] == ["steps.py read holidays.csv", "rolls.py read prices.json", "rolls.py read extra.csv"]
    assert named[2] == 'rolls.py read extra.csv, which palan does not know: a change of it will not be noticed; in palan.toml: [data.extra] source = "extra.csv"'
    told.clear()
    build(project, "rolls")  # nothing is done again, and it still holds
    assert [each.partition(",")[0] for each in told if "palan does not know" in each] == ["rolls.py read prices.json", "rolls.py read extra.csv"]
