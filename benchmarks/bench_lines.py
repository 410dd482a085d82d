"""How much does somebody write, and have to know, for one job: a source, twelve rules, a quarantine with reasons, a schedule?

Runs the programs of benchmarks/lines on the same three deliveries (one comes again, corrected), compares what they keep, and
counts lines and concepts. A concept is a name of the tool's own that has to be looked up: what is taken from its modules, what
is called or read on what it returns, its keyword arguments; in palan.toml each setting, and each word of a column's text.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import polars as pl
from measure import AS_JSON, machine

HERE = Path(__file__).parent
PROGRAMS = {"palan": "palan.toml", "pandera": "with_pandera.py", "Great Expectations": "with_great_expectations.py"}
TOOLS = {"pandera": ("pa",), "Great Expectations": ("gx", "gxe")}
SCHEDULE = {"palan": "0 6 * * *  cd /srv/trips && palan ingest", "pandera": "0 6 * * *  python /srv/with_pandera.py /srv/trips", "Great Expectations": "0 6 * * *  python /srv/with_great_expectations.py /srv/trips"}

HEAD = "id,at,code,carrier,plane,dep,arr,dist,temp,wind,seats,note\n"
GOOD = "{id},2026-01-0{day}T08:00Z,AAA{id},UA,7,10,12,900,40.5,3,150,ok\n"
BAD = {
    "a number that is none": GOOD.replace("40.5", "warm"),
    "a range": GOOD.replace("40.5", "900"),
    "a set": GOOD.replace("UA", "XX"),
    "a pattern": GOOD.replace("AAA", "a-"),
    "a missing value": GOOD.replace(",150,", ",,"),
    "two columns": GOOD.replace("10,12", "900,12"),
    "a time that is none": GOOD.replace("2026-01-0{day}T08:00Z", "yesterday"),
    "a whole number": GOOD.replace(",7,", ",7.5,"),
}


def deliveries() -> list[dict[str, str]]:
    """Return what is delivered on three days: clean and broken rows, a key twice, the first file again with a row put right."""
    monday = HEAD + "".join(GOOD.format(id=100 + number, day=1) for number in range(20)) + "".join(line.format(id=200 + number, day=1) for number, line in enumerate(BAD.values()))
    tuesday = HEAD + "".join(GOOD.format(id=300 + number, day=2) for number in range(20)) + GOOD.format(id=300, day=2).replace(",ok", ",late")
    return [{"monday.csv": monday}, {"tuesday.csv": tuesday}, {"monday.csv": monday.replace("warm", "41")}]


def run(tool: str, root: Path) -> None:
    if tool == "palan":
        (root / "palan.toml").write_text((HERE / "lines" / "palan.toml").read_text())
        command = [str(Path(sys.executable).with_name("palan")), "-p", str(root), "ingest"]
    else:
        python = os.environ.get("PEERS_DATA", str(HERE.parent / ".venv-peers-data" / "bin" / "python"))
        command = [python, str(HERE / "lines" / PROGRAMS[tool]), str(root)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def kept(tool: str, root: Path) -> tuple[int, int]:
    """Return how many rows the table and the quarantine have."""
    if tool != "palan":
        return pl.read_parquet(root / "trips.parquet", columns=["id"]).height, sum(pl.read_parquet(path, columns=["line"]).height for path in (root / "quarantine").glob("*.parquet"))
    from palan.flows import quarantine, tables
    from palan.flows.project import open_project

    project = open_project(root)
    try:
        return tables.find_data_version(project, "trips").rows, sum(each.rows for each in quarantine.waiting(project, "trips"))
    finally:
        project.store.records.close()


def lines(text: str) -> int:
    """Count lines that say something: no blank ones, no comments, no docstrings."""
    text = re.sub(r'^\s*""".*?"""\s*$', "", text, flags=re.M | re.S)
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())


def concepts(tool: str, text: str) -> set[str]:
    if tool == "palan":
        table = tomllib.loads(text)["data"]["trips"]
        words = {re.sub(r"-?[\d.]+", "0", word) if ".." in word else word for column in table["columns"].values() for word in column.split()[:2] if word.islower() or ".." in word}
        return {"[data.NAME]", "palan ingest", *(name for name in table), *words}
    tree, own = ast.parse(text), set(TOOLS[tool])
    found: set[str] = set()
    mine = set(own)  # names that hold what the tool made
    for _ in range(4):
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign | ast.For | ast.comprehension | ast.ExceptHandler | ast.With):
                value = node.value if isinstance(node, ast.Assign) else node.iter if isinstance(node, ast.For | ast.comprehension) else node.type if isinstance(node, ast.ExceptHandler) else None
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.For | ast.comprehension) else None
                if value is not None and _root(value) in mine:
                    mine |= {node.name} if isinstance(node, ast.ExceptHandler) and node.name else {each.id for each in ast.walk(target) if isinstance(each, ast.Name)} if target else set()
            if isinstance(node, ast.Lambda) and tool == "pandera":
                mine |= {argument.arg for argument in node.args.args}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _root(node) in mine:
            found.add(node.attr)
        if isinstance(node, ast.Call) and _root(node.func) in mine:
            found |= {keyword.arg for keyword in node.keywords if keyword.arg}
    return found


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute | ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def main() -> None:
    machine("polars")
    for tool, name in PROGRAMS.items():
        text = (HERE / "lines" / name).read_text()
        names = concepts(tool, text)
        with tempfile.TemporaryDirectory() as place:
            root = Path(place)
            (root / "feed").mkdir()
            told = []
            for day in deliveries():
                for file, rows in day.items():
                    (root / "feed" / file).write_text(rows)
                run(tool, root)
                run(tool, root)  # a second time on the same day adds nothing
                told.append("{} + {}".format(*kept(tool, root)))
        count = lines(text) + lines(SCHEDULE[tool])
        if AS_JSON:
            print(json.dumps({"tool": tool, "lines": count, "concepts": len(names), "kept": told}))
            continue
        print(f"  {tool:<20} {count:>4} lines {len(names):>4} concepts   rows in the table + in quarantine, day by day: {', '.join(told)}")
        if "--names" in sys.argv:
            print("      " + " ".join(sorted(names)))


if __name__ == "__main__":
    main()
