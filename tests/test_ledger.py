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
from palan.errors import Corrupt
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
    db.execute("drop trigger if exists entry_is_never_edited")
    db.execute("drop trigger if exists entry_is_never_removed")
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


# --- a break is never healed ---


def cut(project: Project) -> str:
    tamper(project, "delete from entry where seq > 3")
    return "the ledger ended at entry 6, but what is stored ends at 3"


def rewrite(project: Project) -> str:
    """An edit with every digest after it recomputed, and the note of the end moved along: all but the key."""
    entries = project.store.records.find(Entry)
    forged: list[Entry] = entries[:2]
    for entry in entries[2:]:
        changed = replace(entry, prev=forged[-1].digest, reason="it was bob")
        forged.append(replace(changed, digest=seal(changed)))
    tamper(project, "delete from entry where seq > 2", f"update head set digest = '{forged[-1].digest}'")
    for entry in forged[2:]:
        project.store.records.add(entry)
    return "the note of where the ledger ends was not written by this project"


def drop_the_note(project: Project) -> str:
    tamper(project, "delete from entry where seq > 5", "delete from head")
    return "the note of where the ledger ends was not written by this project"


def replace_the_last(project: Project) -> str:
    last = project.store.records.find(Entry)[-1]
    forged = replace(last, reason="nothing happened")
    tamper(project, "delete from entry where seq = 6")
    project.store.records.add(replace(forged, digest=seal(forged)))
    return "the ledger ended with another entry 6 than the one that is stored"


@pytest.mark.parametrize("way", [cut, rewrite, drop_the_note, replace_the_last])
def test_no_later_entry_heals_a_break(project: Project, capsys: pytest.CaptureFixture[str], way: Callable[[Project], str]) -> None:
    what = way(project)
    assert breaks(project, capsys) == [what]
    said: list[str] = []
    told = open_project(project.root, tell=said.append)
    for _ in range(3):
        record(told, "released", "rolls@6", "good")
    (found,) = breaks(project, capsys)
    assert found.endswith(f"tells of a break before it: {what}")
    assert said == [f"the ledger was changed behind palan's back: {what}; palan log --verify"]
    tamper(project, "delete from entry where verb in ('broken', 'released')")  # and the entry that tells of it cannot be taken out either
    record(told, "released", "rolls@6", "good")
    assert len(breaks(project, capsys)) >= 1


def test_an_older_note_with_its_entries_cut_is_seen_at_the_next_entry(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    yesterday = project.store.records.get(Head, "ledger")
    assert yesterday is not None
    record(project, "released", "rolls@6", "good")
    project.store.records.put(yesterday)
    record(project, "released", "rolls@6", "better")
    (found,) = breaks(project, capsys)
    assert found == "entry 8 tells of a break before it: the ledger ended at entry 6, but what is stored ends at 7"


def test_a_ledger_emptied_beside_a_log_of_decisions_is_no_new_one(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.store.blocks.append("decisions/rolls", [b"x"])
    tamper(project, "delete from entry", "delete from head")
    record(project, "built", "rolls@1", "again")
    assert breaks(project, capsys) == ["entry 1 tells of a break before it: the ledger is empty, but decisions were logged"]


# --- the key and the database belong to the ledger ---


def test_a_lost_key_is_not_replaced_in_silence(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    path = project.folder / "key"
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(Corrupt, match=r"the key .* is gone: ledger and versions are signed with it") as refused:
        record(project, "built", "rolls@7", "unsigned")
    assert "restore it from a backup" in refused.value.hint and not path.exists()
    assert breaks(project, capsys) == [refused.value.what]
    path.write_bytes(kept[::-1])  # the way out without a backup: a new key, and a break for ever
    record(project, "built", "rolls@7", "with a new key")
    assert breaks(project, capsys) == ["entry 7 tells of a break before it: the note of where the ledger ends was not written by this project"]


def test_a_store_without_its_database_is_refused(project: Project) -> None:
    project.store.blobs.put(b"a part")
    project.store.records.close()
    path = project.folder / "palan.db"
    whole = path.read_bytes()
    for left in (None, b""):
        path.unlink()
        if left is not None:
            path.write_bytes(left)
        with pytest.raises(Corrupt, match="is gone, with the ledger, but key and blobs are there") as refused:
            open_project(project.root)
        assert refused.value.hint.startswith("restore it from a backup") and (left is None) != path.exists()
        path.write_bytes(whole)
    assert log(open_project(project.root), verify=True)["breaks"] == []


def test_a_note_of_the_end_that_cannot_be_read_is_said_and_not_repaired(project: Project) -> None:
    tamper(project, "update head set seq = 'six'")
    with pytest.raises(Corrupt, match=r'the head "ledger" is damaged at seq'):
        record(project, "built", "rolls@7")
    assert len(project.store.records.find(Entry)) == 6
