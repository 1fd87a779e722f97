"""The call journal: calls of a killed process are read once by another process, and none of a living one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.durability import call_journal
from engine.durability.call_journal import SLOTS, CallJournal, InFlightCall

DIES = """
import os, signal, sys
from pathlib import Path
from engine.durability.call_journal import CallJournal, InFlightCall
log = CallJournal(Path(sys.argv[1]))
slots = [log.begin(InFlightCall(f"call_{n}", "p", "job", "shard", 1, "openai", "m", 128, 1.5)) for n in range(5)]
log.end(slots[1])
log.begin(InFlightCall("call_again", "p", "job", "shard", 1, "openai", "m", 7, 2.5))
log.end(slots[3])
os.kill(os.getpid(), signal.SIGKILL)
"""


def note(name: str = "call") -> InFlightCall:
    return InFlightCall(name, "p", "job", "shard", 1, "openai", "m", 128, 1.5)


def test_the_calls_of_a_killed_process_are_found_once(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(tmp_path)], check=False)
    [left] = call_journal.orphaned(tmp_path)
    assert sorted(each.call_id for each in left.notes) == ["call_0", "call_2", "call_4", "call_again"]
    assert note("call_0") in left.notes
    assert list(call_journal.orphaned(tmp_path)) == []  # it is being read
    left.delete()
    assert list(tmp_path.iterdir()) == []


def test_a_living_process_s_calls_are_its_own(tmp_path: Path) -> None:
    log = CallJournal(tmp_path)
    slot = log.begin(note())
    assert list(call_journal.orphaned(tmp_path)) == []
    log.end(slot)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_what_is_under_way_at_the_end_stays_to_be_read(tmp_path: Path) -> None:
    log = CallJournal(tmp_path)
    log.begin(note())
    log.close()
    [left] = call_journal.orphaned(tmp_path)
    assert left.notes == [note()]
    left.unlock()
    [again] = call_journal.orphaned(tmp_path)
    again.delete()


def test_a_note_that_finds_no_room_costs_no_call(tmp_path: Path) -> None:
    log = CallJournal(tmp_path)
    slots = [log.begin(note()) for _ in range(SLOTS + 1)]
    assert slots[-1] is None and None not in slots[:-1]
    assert log.begin(note("x" * 2000)) is None
    log.close()
    (tmp_path / "file").write_text("")
    nowhere = CallJournal(tmp_path / "file")
    nowhere.end(nowhere.begin(note()))
    nowhere.close()
