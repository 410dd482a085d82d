"""Files as they come: in any encoding, with any decimal sign and date, and read as what they say or kept apart with a reason."""

from __future__ import annotations

import csv
import gzip
import io
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from palan.data import compressed, formats, reading
from palan.data.contract import Contract, parse
from palan.data.formats import Written
from palan.data.reading import BROKEN, Layout, batches
from palan.data.verdict import Checked, verify
from palan.errors import PalanError


def table(**said: Any) -> Contract:
    return parse("sales", {"source": "x", "columns": {"id": "int", "price": "float?", "day": "date?", "at": "time?", "paid": "bool?", "shop": "str?"}, **said})


def read(data: bytes, contract: Contract | None = None, history: dict[str, Written] | None = None) -> tuple[Checked, dict[str, Written], Layout]:
    contract, layout = contract or table(), Layout()
    found = formats.survey(batches(io.BytesIO(data), ".csv", contract, layout), contract, history or {})
    frames = list(formats.plainly(batches(io.BytesIO(data), ".csv", contract, layout), contract, found))
    return verify(pl.concat(frames), contract), found, layout


def column(name: str, *texts: str, **said: Any) -> tuple[Checked, dict[str, Written], Layout]:
    out = io.StringIO()
    csv.writer(out, delimiter=";").writerows([["id", name], *([str(number), text] for number, text in enumerate(texts))])
    return read(out.getvalue().encode(), table(**said))


LOCALES = {"en": (",", "."), "de": (".", ","), "fr": ("\u202f", ","), "se": (" ", ","), "ch": ("'", "."), "none": ("", "."), "none comma": ("", ",")}
DATES = {"iso": "%Y-%m-%d", "de": "%d.%m.%Y", "uk": "%d/%m/%Y", "us": "%m/%d/%Y", "jp": "%Y/%m/%d", "compact": "%Y%m%d"}


@pytest.mark.parametrize("seed", range(4))
def test_values_written_in_each_place_are_read_as_the_values_that_they_are(seed: int) -> None:
    chance = random.Random(seed)
    for (group, sign), form in [(each, chance.choice(list(DATES.values()))) for each in LOCALES.values()]:
        numbers = [round(chance.uniform(-1, 1) * 10 ** chance.randint(0, 8), 2) + 0.0 for _ in range(60)] + [1234567.25, -0.5]
        days = [datetime(2013, 1, 1, tzinfo=UTC) + timedelta(days=chance.randrange(4000), minutes=chance.randrange(1440)) for _ in numbers] + [datetime(2013, 5, 31, tzinfo=UTC)]
        numbers.append(3.0)
        encoding = chance.choice(["utf-8", "utf-8-sig", "utf-16", "utf-8"])
        mark = chance.choice(";\t|")
        out = io.StringIO()
        writer = csv.writer(out, delimiter=mark, lineterminator=chance.choice(["\n", "\r\n"]))
        writer.writerow(["id", "price", "day", "at", "paid", "shop"])
        for number, (price, day) in enumerate(zip(numbers, days, strict=True)):
            text = f"{price:,.2f}".replace(",", "_").replace(".", sign).replace("_", group)
            clock = day.strftime(form + " %H:%M") if form != "%Y%m%d" else day.strftime("%Y-%m-%d %H:%M")
            writer.writerow([number, text, day.strftime(form), clock, chance.choice(["ja", "nein"]), 'é "x"\ny'])
        checked, _, layout = read(out.getvalue().encode(encoding))
        assert checked.bad.height == 0, (group, sign, form, checked.verdict.text)
        assert checked.good["price"].to_list() == numbers
        assert checked.good["day"].to_list() == [day.date() for day in days]
        assert checked.good["at"].to_list() == days
        assert layout.delimiter == mark


@pytest.mark.parametrize(
    ("name", "texts", "values", "bad"),
    [
        pytest.param("price", ["1.234,56", "1.234"], [1234.56, 1234.0], 0, id="the file tells which sign is the decimal one"),
        pytest.param("price", ["1,234.56", "1,234"], [1234.56, 1234.0], 0, id="and the other way round"),
        pytest.param("price", ["1,234", "2,500"], [], 2, id="nothing tells"),
        pytest.param("price", ["1,5", "2.5", "1,234"], [2.5], 2, id="both signs"),
        pytest.param("price", [*["1,5"] * 50, "2.5"], [1.5] * 50, 1, id="one odd value among many"),
        pytest.param("price", ["1.5", "NA", "-", "n/a"], [1.5, None, None, None], 0, id="null words"),
        pytest.param("price", ["1.5", "twelve"], [1.5], 1, id="no number"),
        pytest.param("day", ["01/02/2013", "13/02/2013"], ["2013-02-01", "2013-02-13"], 0, id="a day over twelve"),
        pytest.param("day", ["01/02/2013", "02/13/2013"], ["2013-01-02", "2013-02-13"], 0, id="a month cannot be over twelve"),
        pytest.param("day", ["01/02/2013", "03/04/2013"], [], 2, id="day or month"),
        pytest.param("day", ["01.02.2013", "31.02.2013"], ["2013-02-01"], 1, id="no such day"),
        pytest.param("day", ["0001-01-01", "9999-12-31"], ["0001-01-01", "9999-12-31"], 0, id="the ends of time"),
        pytest.param("at", ["1357000000", "1357000000000"], ["2013-01-01 00:26:40+00:00"] * 2, 0, id="epoch"),
        pytest.param("at", ["31.12.2013 8:05", "2013-12-31T08:05:00+01:00"], ["2013-12-31 08:05:00+00:00", "2013-12-31 07:05:00+00:00"], 0, id="with and without zone"),
        pytest.param("paid", ["ja", "Nein", "maybe"], [True, False], 1, id="words for true and false"),
        pytest.param("shop", ["NA", "-"], ["NA", "-"], 0, id="text stays as it is"),
    ],
)
def test_a_column_is_decided_by_all_its_values_or_kept_apart(name: str, texts: list[str], values: list[Any], bad: int) -> None:
    checked, _, _ = column(name, *texts)
    found = checked.good[name].to_list()
    assert [str(each) if isinstance(each, datetime) or hasattr(each, "year") else each for each in found] == values
    assert checked.bad.height == bad
    raw = [each for each in texts if each in checked.bad[name].to_list()]
    assert len(raw) == bad  # as it came


def test_a_setting_or_the_history_of_the_table_decides_what_the_file_leaves_open() -> None:
    assert column("price", "1,234", decimal=",")[0].good["price"].to_list() == [1.234]
    assert column("price", "1,234", decimal=".")[0].good["price"].to_list() == [1234.0]
    assert str(column("day", "01/02/2013", dates="mdy")[0].good["day"][0]) == "2013-01-02"
    assert column("shop", "NA", "so", nulls=["NA"])[0].good["shop"].to_list() == [None, "so"]
    assert column("price", "NA", nulls=["none"])[0].bad.height == 1
    history = column("price", "1,5")[1]
    checked, found, _ = read(b"id;price\n1;1.234\n", history=history)
    assert checked.good["price"].to_list() == [1234.0]
    assert found["price"].why == "the deliveries before"
    assert formats.changed({"price": Written(decimal=".")}, history) == ["price has decimal point, before it had decimal comma"]
    with pytest.raises(PalanError, match="is no encoding of text"):
        table(encoding="latin-99")


def test_the_header_may_stand_lower_be_written_otherwise_and_come_again() -> None:
    checked, _, layout = read(b"Report of sales\n\nID;Price ;SHOP\n1;2,5;a\nID;Price ;SHOP\n2;1,5;b\nTotal;4,0;\n")
    assert layout.skipped == 2 and layout.renamed == {"ID": "id", "Price": "price", "SHOP": "shop"}
    assert checked.good["price"].to_list() == [2.5, 1.5]
    reasons = checked.bad.select("palan_line", "palan_reasons").rows()
    assert reasons == [(5, ["line repeats the header"]), (7, ["id is not an int"])]


def test_text_that_is_not_utf8_is_cp1252_where_all_of_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1 << 20, 16):
        monkeypatch.setattr(reading, "PIECE", size)
        text = "id,shop\n" + "1,plain\n" * 5 + "2,Café €\n3,Ünder\n"
        checked, _, layout = read(text.encode("cp1252"))
        assert checked.good["shop"].to_list()[-2:] == ["Café €", "Ünder"] and layout.encoding == "cp1252"
        assert read(text.encode())[2].encoding == "utf-8"
        assert read(text.encode("utf-16"))[2].encoding == "utf-16"
        assert read(text.encode("cp1250", "replace"), table(encoding="cp1250"))[2].encoding == "cp1250"
        with pytest.raises(PalanError, match="line 3 is"):
            read("id,shop\n1,é\n".encode() + "2,é\n".encode("cp1252"))
        with pytest.raises(PalanError, match="not cp1252"):
            read(b"id,shop\n1,\x81\n")


def test_a_compressed_file_is_read_as_it_expands_and_within_bounds(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"id,shop\n1,a\n"))
    with path.open("rb") as raw, compressed.expanded(raw, path.name, path.stat().st_size) as file:
        assert pl.concat(batches(file, compressed.suffix_of(path.name), table()))["shop"].to_list() == ["a"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(PalanError, match="cut off or damaged"), path.open("rb") as raw, compressed.expanded(raw, path.name, path.stat().st_size) as file:
        list(batches(file, ".csv", table()))
    monkeypatch.setattr(compressed, "LEAST", 1 << 20)
    path.write_bytes(gzip.compress(b"id,shop\n" + b"1,a\n" * 4_000_000))
    monkeypatch.setattr(reading, "PIECE", 1 << 20)
    with pytest.raises(PalanError, match="expands to more than"), path.open("rb") as raw, compressed.expanded(raw, path.name, path.stat().st_size) as file:
        list(batches(file, ".csv", table()))


def test_old_line_ends_and_a_last_line_without_end() -> None:
    for text in (b"id,shop\r1,a\r2,b", b"id,shop\r\n1,a\r\n2,b", b"id,shop\n1,a\n2,b"):
        checked, _, _ = read(text)
        assert checked.good["shop"].to_list() == ["a", "b"]


def test_numbers_that_are_none_are_kept_apart() -> None:
    checked, _, _ = column("price", "NaN", "inf", "-Infinity", "1e400", "2")
    assert checked.good["price"].to_list() == [2.0] and checked.bad.height == 4
    assert BROKEN not in checked.good.columns


def test_a_project_says_how_each_file_was_read_and_takes_what_a_setting_decides_later(tmp_path: Any) -> None:
    from palan.flows.ingest import ingest
    from palan.flows.project import open_project

    def config(more: str = "") -> None:
        (tmp_path / "palan.toml").write_text(f"""[project]
name = "shop"

[data.sales]
source = "feed/*.csv*"
key = ["id"]
{more}
[data.sales.columns]
id = "int"
price = "float?"
""")

    def take() -> dict[str, Any]:
        project = open_project(tmp_path)
        try:
            return ingest(project, "sales")[0]
        finally:
            project.store.records.close()

    config()
    (tmp_path / "feed").mkdir()
    (tmp_path / "feed" / "a.csv").write_text("id;price\n1;1,234\n2;\n")
    first = take()
    assert first["rows"] == 1 and first["waiting"] == 1
    assert first["read"]["feed/a.csv"]["columns"]["price"]["decimal"] == "?"
    config('decimal = ","\n')
    second = take()
    assert second["rows"] == 1 and second["waiting"] == 0
    config()
    (tmp_path / "feed" / "b.csv.gz").write_bytes(gzip.compress("id;price\n3;1.234,50\n4;NA\n".encode("utf-16")))
    with pytest.raises(PalanError, match="leads out of the project"):
        (tmp_path / "palan.toml").write_text((tmp_path / "palan.toml").read_text().replace("feed/", "feed/../../"))
        take()
    config()
    third = take()
    assert third["rows"] == 2 and third["read"]["feed/b.csv.gz"]["encoding"] == "utf-16"
    (tmp_path / "feed" / "c.csv").write_text("id;price\n5;1,234.5\n")
    assert any("price has decimal point, before it had decimal comma" in each for each in take()["warnings"])
