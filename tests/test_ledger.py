"""Whoever changes the ledger behind palan's back is found out by `palan log --verify`."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from palan.cli import main
from palan.core import Version
from palan.flows.log import log
from palan.flows.project import Project, open_project, record
from palan.ledger import GENESIS, Entry, Head, link, seal, sentence, verify

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    (tmp_path / "palan.toml").write_text('[project]\nname = "bakery"\n', encoding="utf-8")
    ticks = iter(range(1000))
    opened = open_project(tmp_path, clock=lambda: NOON + timedelta(minutes=next(ticks)), actor="ada")
    for number in range(1, 7):
        record(opened, "built", f"rolls@{number}", "a new day", rows=number * 1000, loss=0.1 / number, deep={"why": ["é", None]})
    yield opened
    opened.store.records.close()


def tamper(project: Project, *statements: str) -> None:
    """Change the database as somebody would who knows SQL and the schema."""
    db = sqlite3.connect(project.folder / "palan.db", isolation_level=None)
    db.execute("drop trigger entry_is_never_edited")
    db.execute("drop trigger entry_is_never_removed")
    for statement in statements:
        db.execute(statement)
    db.close()


def breaks(project: Project, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run `palan log --verify` and return what it says, its exit code checked."""
    found = log(project, verify=True)["breaks"]
    with pytest.raises(SystemExit) as ended:
        main(["--project", str(project.root), "log", "--verify"])
    said = capsys.readouterr().out
    assert ended.value.code == (1 if found else 0)
    assert f"{len(found)} breaks" in said
    for each in found:
        assert each["what"] in said
    return [each["what"] for each in found]


def test_an_untouched_ledger_holds(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert breaks(project, capsys) == []
    reopened = open_project(project.root)
    record(reopened, "released", "rolls@6", "good")
    assert log(reopened, verify=True)["breaks"] == []
    assert log(reopened, verify=True)["total"] == 7


@pytest.mark.parametrize(
    "change",
    ["reason = 'an old day'", "actor = 'bob'", "time = '2026-03-02T12:00:00.000000Z'", "subject = 'rolls@9'", "verb = 'checked'", "detail = '{}'"],
)
def test_an_edit_of_any_field_is_found(project: Project, capsys: pytest.CaptureFixture[str], change: str) -> None:
    tamper(project, f"update entry set {change} where seq = 3")
    assert breaks(project, capsys) == ["entry 3 was edited: its content does not match its digest"]


def test_a_number_edited_within_the_detail_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(project, "update entry set detail = replace(detail, '6000', '6001') where seq = 6")
    assert breaks(project, capsys) == ["entry 6 was edited: its content does not match its digest"]


def test_a_removal_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(project, "delete from entry where seq = 4")
    assert breaks(project, capsys) == ["entry 4 is missing or out of order: found 5 in its place"]


def test_a_removal_with_new_numbers_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(project, "delete from entry where seq = 4", "update entry set seq = seq - 1 where seq > 4")
    assert "entry 4 does not follow the one before it" in breaks(project, capsys)


def test_the_first_entry_removed_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(project, "delete from entry where seq = 1")
    assert breaks(project, capsys) == ["entry 1 is missing or out of order: found 2 in its place"]


def test_reordering_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(
        project,
        "update entry set seq = 100 where seq = 2",
        "update entry set seq = 2 where seq = 3",
        "update entry set seq = 3 where seq = 100",
    )
    found = breaks(project, capsys)
    assert "entry 2 does not follow the one before it" in found
    assert {"entry 2 was edited: its content does not match its digest", "entry 3 was edited: its content does not match its digest"} <= set(found)


def test_a_cut_tail_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(project, "delete from entry where seq > 4")
    assert breaks(project, capsys) == ["the ledger ended at entry 6, but what is stored ends at 4"]


def test_a_cut_tail_is_found_even_if_the_note_of_the_end_was_moved(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(project, "delete from entry where seq > 4", "update head set seq = 4, digest = (select digest from entry where seq = 4)")
    assert breaks(project, capsys) == ["the note of where the ledger ends was not written by this project"]


def test_a_cut_tail_is_found_even_if_the_note_of_the_end_is_gone(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    tamper(project, "delete from entry where seq > 4", "delete from head")
    assert breaks(project, capsys) == ["the note of where the ledger ends was not written by this project"]


def test_an_older_note_put_back_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    yesterday = project.store.records.get(Head, "ledger")
    assert yesterday is not None
    record(project, "released", "rolls@6", "good")
    project.store.records.put(yesterday)
    assert breaks(project, capsys) == ["the ledger ended at entry 6, but what is stored ends at 7"]


def test_a_whole_ledger_that_is_gone_is_found(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.store.records.add(Version("d" * 64, "rolls", 1, "rules", {}, "r1", NOON))
    tamper(project, "delete from entry", "delete from head")
    (found,) = breaks(project, capsys)
    assert found.startswith("the whole ledger is gone")


def test_a_forged_chain_from_the_middle_on_is_found_for_want_of_the_key(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody recomputes every digest after an edit, and moves the note of the end along: only the key is missing."""
    entries = project.store.records.find(Entry)
    forged: list[Entry] = entries[:2]
    for entry in entries[2:]:
        changed = replace(entry, prev=forged[-1].digest, reason="it was bob" if entry.seq == 3 else entry.reason)
        forged.append(replace(changed, digest=seal(changed)))
    assert verify(forged) == []
    tamper(project, "delete from entry where seq > 2")
    for entry in forged[2:]:
        project.store.records.add(entry)
    head = project.store.records.get(Head, "ledger")
    assert head is not None
    project.store.records.put(replace(head, digest=forged[-1].digest))
    assert breaks(project, capsys) == ["the note of where the ledger ends was not written by this project"]


def test_the_rule_itself_finds_what_was_done_to_any_place() -> None:
    entries: list[Entry] = []
    for number in range(8):
        entries.append(link(entries[-1] if entries else None, time=NOON, actor="ada", verb="built", subject=f"rolls@{number}", reason=""))
    head = Head("ledger", 8, entries[-1].digest, "")
    assert entries[0].prev == GENESIS and verify(entries, head) == []
    ways: list[Callable[[int], list[Entry]]] = [
        lambda at: [replace(each, actor="bob") if place == at else each for place, each in enumerate(entries)],
        lambda at: [each for place, each in enumerate(entries) if place != at],
        lambda at: [*entries[:at], *entries[at : at + 2][::-1], *entries[at + 2 :]] if at < 7 else entries[::-1],
        lambda at: [*entries[:at], entries[at], *entries[at:]],
        lambda at: entries[:at],
    ]
    for way in ways:
        for at in range(8):
            assert verify(way(at), head), (way, at)


def test_two_processes_write_one_chain(project: Project) -> None:
    others = [open_project(project.root) for _ in range(3)]
    import threading

    threads = [threading.Thread(target=lambda each=each: [record(each, "told", "rolls", "") for _ in range(15)]) for each in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log(project, verify=True)["breaks"] == [] and log(project, verify=True)["total"] == 6 + 45


def test_entries_read_as_sentences(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    entry = project.store.records.find(Entry)[0]
    assert sentence(entry) == "2026-03-01 12:00 ada built rolls@1: a new day"
    with pytest.raises(SystemExit):
        main(["--project", str(project.root), "log", "rolls@2"])
    assert capsys.readouterr().out == "2026-03-01 12:01 ada built rolls@2: a new day\n"
    assert [each["seq"] for each in log(project, "rolls", limit=2)["entries"]] == [5, 6]
    assert log(project, "roll")["entries"] == []


def test_the_key_is_made_once_and_is_nobody_elses_to_read(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from palan.errors import Corrupt
    from palan.flows.project import key

    (tmp_path / "palan.toml").write_text("", encoding="utf-8")
    opened = open_project(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: key(opened), range(16)))) == 1
    path = tmp_path / ".palan" / "key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert sorted(each.name for each in path.parent.glob("*key*")) == ["key"]
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(Corrupt, match="32 bytes were written, 9 are there"):
        key(opened)
