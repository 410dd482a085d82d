"""Every state that a table had stays readable: by number, by day, by run; and what lies between two of them can be told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from palan.cli.commands import cli
from palan.errors import Conflict, NotFound, PalanError
from palan.flows import tables
from palan.flows.gc import gc
from palan.flows.ingest import ingest
from palan.flows.project import Project, open_project
from palan.flows.verify import verify
from palan.flows.versions import difference, export, versions

TOML = """
[data.stock]
source = "feed/*"
key = ["shop", "item"]
[data.stock.columns]
shop = "str"
item = "int"
left = "float?"
note = "str?"
[data.empty]
source = "none/*"
[data.empty.columns]
id = "int"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    monkeypatch.setattr(tables, "PART_ROWS", 3)
    (tmp_path / "palan.toml").write_text(TOML, encoding="utf-8")
    (tmp_path / "feed").mkdir()
    days = iter(datetime(2026, 3, 1, 12, tzinfo=UTC) + timedelta(days=day) for day in range(1000))
    last = [next(days)]
    opened = open_project(tmp_path, clock=lambda: last[0])
    for name, rows in (
        ("1.csv", [("A", number, number / 2, "") for number in range(8)]),
        ("2.csv", [("A", 3, 99.0, "counted"), ("B", 1, 5.0, "")]),
        ("3.csv", [("A", 3, 98.0, "counted"), ("A", 5, 2.5, "as it was")]),
    ):
        lines = "".join(f"{shop},{item},{left},{note}\n" for shop, item, left, note in rows)
        (tmp_path / "feed" / name).write_text("shop,item,left,note\n" + lines, encoding="utf-8")
        ingest(opened, "stock")
        last[0] = next(days)
    yield opened
    opened.store.records.close()


def rows(project: Project, ref: str) -> dict[tuple[str, int], float]:
    frame = tables.read(project, tables.find_data_version(project, ref))
    assert frame.select("shop", "item").is_unique().all()
    return {(shop, item): left for shop, item, left in frame.select("shop", "item", "left").rows()}


def test_a_version_reads_as_it_was_whatever_came_later(project: Project) -> None:
    first = {("A", number): number / 2 for number in range(8)}
    assert rows(project, "stock@1") == first
    assert rows(project, "stock@2") == {**first, ("A", 3): 99.0, ("B", 1): 5.0}
    assert rows(project, "stock") == rows(project, "stock@3") == {**first, ("A", 3): 98.0, ("B", 1): 5.0}
    newest = tables.latest(project, "stock")
    assert newest is not None and newest.rows == 9 and len(newest.parts) == 3 and sum(map(len, (newest.masks or {}).values())) == 3


def test_a_version_is_named_by_a_day_a_time_or_a_run(project: Project) -> None:
    for ref, number in {"2026-03-01": 1, "2026-03-02": 2, "2026-03-02T11:59:59Z": 1, "2026-03-02T12:00+00:00": 2, "2026-03-02T14:00+02:00": 2, "2030-01-01": 3}.items():
        assert tables.find_data_version(project, f"stock@{ref}").number == number, ref
    second = tables.find_data_version(project, "stock@2")
    assert tables.find_data_version(project, f"stock@{second.run}") == second
    for ref in ("2026-02-28", "9", "99999999999999999999", "nobody", "2026-13-01"):
        with pytest.raises(NotFound, match=f"there is no stock@{ref}") as refused:
            tables.find_data_version(project, f"stock@{ref}")
        assert "known: stock@3, stock@2, stock@1" in refused.value.hint
    with pytest.raises(NotFound, match='data "empty" is empty'):
        tables.find_data_version(project, "empty@1")


def test_a_difference_says_which_rows_and_which_cells(project: Project) -> None:
    found = difference(project, "stock@1", "stock@2")
    assert found["rows"] == {"before": 8, "after": 9, "added": 1, "removed": 0, "changed": 1}
    assert found["changed"] == {"left": 1, "note": 1}
    assert found["examples"] == [{"key": {"shop": "A", "item": 3}, "cells": {"left": [1.5, 99.0], "note": [None, "counted"]}}]
    assert found["text"] == "stock@1 -> stock@2: 1 row added, 1 row changed"
    back = difference(project, "stock@2", "stock@1")
    assert back["rows"] == {"before": 9, "after": 8, "added": 0, "removed": 1, "changed": 1}
    whole = difference(project, "stock@1", "stock@3")
    assert whole["rows"]["changed"] == 2 and whole["changed"] == {"note": 2, "left": 1}
    assert difference(project, "stock@3", "stock@3")["text"] == "stock@3 -> stock@3: the same rows"
    assert difference(project, "stock@1", "stock@3", shown=0)["examples"] == []


def test_a_difference_is_right_whatever_the_two_versions_share(project: Project) -> None:
    for old in (1, 2, 3):
        for new in (1, 2, 3):
            was, now = rows(project, f"stock@{old}"), rows(project, f"stock@{new}")
            told = difference(project, f"stock@{old}", f"stock@{new}")
            assert (told["rows"]["added"], told["rows"]["removed"]) == (len(now.keys() - was.keys()), len(was.keys() - now.keys()))
            assert told["changed"].get("left", 0) == sum(was[key] != now[key] for key in was.keys() & now.keys())


def test_a_difference_tells_columns_that_came_went_or_changed_their_type(project: Project) -> None:
    (project.root / "palan.toml").write_text(TOML.replace('note = "str?"', 'note = "str?"\nshelf = "int?"'), encoding="utf-8")
    later = open_project(project.root)
    (project.root / "feed" / "4.csv").write_text("shop,item,left,note,shelf\nA,0,0.0,,7\n", encoding="utf-8")
    ingest(later, "stock")
    found = difference(later, "stock@3", "stock@4")
    assert found["columns"] == {"added": {"shelf": "Int64"}, "removed": {}, "retyped": {}}
    assert found["rows"]["changed"] == 1 and found["changed"] == {"shelf": 1}
    assert "column shelf added" in found["text"] and "column shelf removed" in difference(later, "stock@4", "stock@3")["text"]


def test_tables_are_not_compared_with_others(project: Project) -> None:
    with pytest.raises(NotFound):
        difference(project, "stock@1", "stok@2")
    (project.root / "none").mkdir()
    (project.root / "none" / "1.csv").write_text("id\n1\n", encoding="utf-8")
    ingest(project, "empty")
    with pytest.raises(Conflict, match="versions of two tables"):
        difference(project, "stock@1", "empty@1")


@pytest.mark.parametrize("ending", [".parquet", ".csv", ".ndjson"])
def test_a_version_is_written_to_a_file(project: Project, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{ending}"
    assert export(project, "stock@2", path)["rows"] == 9
    read = {".parquet": pl.read_parquet, ".csv": pl.read_csv, ".ndjson": pl.read_ndjson}[ending]
    frame = read(path)
    assert dict(zip(frame.select("shop", "item").rows(), frame["left"].to_list(), strict=True)) == rows(project, "stock@2")
    with pytest.raises(Conflict, match="is there already"):
        export(project, "stock@1", path)
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".rows")] == []
    with pytest.raises(PalanError, match="ends in none of"):
        export(project, "stock@1", tmp_path / "rows.xlsx")
    with pytest.raises(PalanError, match="cannot be written"):
        export(project, "stock@1", tmp_path / "nowhere" / f"rows{ending}")


def test_the_command_line_lists_compares_and_writes(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def typed(*words: str) -> str:
        told = CliRunner().invoke(cli, ["--project", str(project.root), "data", *words], catch_exceptions=False)
        assert told.exit_code == 0, told.output
        return told.output

    assert [line.split()[:4] for line in typed().splitlines()][1] == ["stock@3", "9", "0", "2"]
    assert "next: palan data diff stock@2 stock@3" in typed("list", "stock")
    assert [each["data"] for each in json.loads(typed("list", "stock", "--json"))] == ["stock@3", "stock@2", "stock@1"]
    assert versions(project, "stock", limit=1)[0]["corrections"] == 2
    told = typed("diff", "stock@1", "stock@3", "--rows", "1")
    assert "A 3: left 1.5 -> 98.0, note nothing -> counted" in told and "and 1 more: palan data diff stock@1 stock@3 --rows 2" in told
    assert "9 rows in" in typed("export", "stock", str(project.root / "all.parquet"))
    assert "next: palan ingest empty" in typed("list", "empty")


def test_what_a_version_is_made_of_is_kept_by_gc_and_missed_by_verify(project: Project) -> None:
    newest = tables.latest(project, "stock")
    assert newest is not None and newest.masks
    gc(project, older_than=timedelta(0))
    assert rows(project, "stock@1") != rows(project, "stock") and verify(project)["findings"] == []
    mask = newest.masks[newest.parts[0]][0]
    (project.root / ".palan" / "blobs" / mask[:2] / mask).unlink()
    (finding,) = verify(project)["findings"]
    assert finding["what"].startswith(f"blob {mask} is not there, which stock@")
    with pytest.raises(NotFound, match=f"blob {mask[:12]} is not in"):
        tables.read(project, newest)


@pytest.mark.parametrize("kind", ["int", "float", "str"])
def test_of_many_deliveries_the_last_one_says_what_a_key_holds(tmp_path: Path, kind: str) -> None:
    (tmp_path / "feed").mkdir()
    (tmp_path / "palan.toml").write_text(f'[data.o]\nsource = "feed/*.csv"\nkey = ["id"]\n[data.o.columns]\nid = "{kind}"\nv = "int"\n')
    truth = {}
    for number in range(8):
        for key in range(number % 4 * 20, number % 4 * 20 + 30):
            truth[f"{key / 4}" if kind == "float" else f"{key}"] = number
        rows = [f"{key},{number}" for key, last in truth.items() if last == number]
        (tmp_path / "feed" / f"{number}.csv").write_text("\n".join(["id,v", *rows, ""]))
    project = open_project(tmp_path)
    assert ingest(project, "o")[0]["total"] == len(truth)
    found = tables.read(project, tables.find_data_version(project, "o"))
    assert {str(id): v for id, v in found.select("id", "v").iter_rows()} == truth
    project.store.records.close()
