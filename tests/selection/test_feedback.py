"""The feedback log: what it says is what the store has, after tears, damage, failed writes and lost stores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observed import FEEDBACKS, NaiveStore, Opener, observation

from cwd.errors import CwdError
from cwd.selection import feedback, feedback_log
from cwd.selection.feedback import FeedbackLog, Journal, histories, log_files, rebuild, restore
from cwd.selection.feedback_log import has_dropped
from cwd.selection.observation import Observation
from cwd.selection.states import SqliteStates, States

_runs = itertools.count()


def same(store: States, folder: Path) -> bool:
    """Is the store, byte by byte, what the logs of the folder make?"""
    return {(app, context): entry.to_bytes() for app, context, entry in store.entries()} == {
        key: entry.to_bytes() for key, entry in rebuild(folder).items()}


@given(FEEDBACKS, st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["go on", "reopen", "lose"])), min_size=14, max_size=14),
       st.sampled_from([1, 500, 1 << 20]))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_log_makes_the_store(tmp_path: Path, feedbacks: list[tuple], turns: list[tuple[int, str]], part_bytes: int) -> None:
    """Two journals on one store and folder, in turns; one is closed and opened again, or dies between the store and its log.

    In parts of one frame each, of a few, and in one.
    """
    place = tmp_path / str(next(_runs))
    place.mkdir()
    path, folder, naive = place / "states.sqlite", place / "log", NaiveStore()
    stores = [SqliteStates(path), SqliteStates(path)]
    journals = [Journal(store, folder, part_bytes) for store in stores]
    observations = [observation(number, *rest) for number, *rest in feedbacks]
    for turn, (size, then) in enumerate(turns):
        batch, observations, number = observations[:size], observations[size:], turn % 2
        wanted = naive.apply(batch)
        if then == "lose" and batch:
            # the store has it, and the process dies before the log does
            stores[number].apply(batch, journals[number]._log.log_id)
        else:
            assert journals[number].add_all(batch) == wanted
        if then != "go on":
            journals[number].close()
            stores[number].close()
            stores[number] = SqliteStates(path)
            journals[number] = Journal(stores[number], folder, part_bytes)
            assert same(stores[number], folder)
    assert {(app, context): entry for app, context, entry in stores[0].entries()} == naive.entries
    assert same(stores[0], folder)
    assert len({path.name[:13] for path in log_files(folder)}) == 2
    assert part_bytes > 500 or len(log_files(folder)) >= len(naive.ids) // 8
    told = [one.feedback_id for history in histories(folder) for one in history.observations]
    assert sorted(told) == sorted(naive.ids)
    for closing in (*journals, *stores):
        closing.close()


def test_feedback_twice_changes_nothing(opener: Opener, tmp_path: Path) -> None:
    store, folder = opener(), tmp_path / "log"
    journal = Journal(store, folder)
    assert journal.add(observation(1)) and journal.add(observation(2, "ann"))
    before = ([(app, context, entry.to_bytes()) for app, context, entry in store.entries()],
              [path.read_bytes() for path in log_files(folder)])
    assert not journal.add(observation(1)) and journal.add_all([observation(2, "ann"), observation(1)]) == [False, False]
    # the same id says nothing new, whatever comes with it
    assert not journal.add(observation(1, "bob", loss=0.0))
    after = ([(app, context, entry.to_bytes()) for app, context, entry in store.entries()],
             [path.read_bytes() for path in log_files(folder)])
    assert before == after and same(store, folder)
    journal.close()


def test_a_torn_end_is_cut_off_wherever_it_tore(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    records = [observation(number).to_bytes(number + 1) for number in range(3)]
    sizes = []
    for record in records:
        log.append([record])
        sizes.append(log.path.stat().st_size)
    log.close()
    whole = log.path.read_bytes()
    for length in range(len(whole)):
        for tail in (b"", b"\0" * 40):
            torn = whole[:length] + tail
            log.path.write_bytes(torn)
            log = FeedbackLog(tmp_path)
            # a frame that ends in a zero may be made whole by one
            kept = sum(torn.startswith(whole[:size]) for size in sizes)
            assert log.path.stat().st_size == (sizes[kept - 1] if kept else 16)
            assert log.last == (records[kept - 1] if kept else b"")
            log.append([b"\xc0"])
            log.close()
            assert list(feedback_log.Scan(log.path).records()) == [*records[:kept], b"\xc0"]


def test_damage_is_never_cut(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    log.append([observation(0).to_bytes(1)])
    first = log.path.stat().st_size
    for number in (1, 2):
        log.append([observation(number).to_bytes(number + 1)])
    log.close()
    whole = log.path.read_bytes()
    # all bytes of the magic and of the first frame; the log's id is any
    for place in (*range(8), *range(16, first)):
        log.path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1:])
        with pytest.raises(CwdError, match="damaged|not a feedback log"):
            FeedbackLog(tmp_path)
        with pytest.raises(CwdError):
            rebuild(tmp_path)
        assert len(log.path.read_bytes()) == len(whole)
    log.path.write_bytes(whole)
    assert rebuild(tmp_path)["app", ""].version == 3


def test_each_process_has_a_file_of_its_own(tmp_path: Path) -> None:
    first, second = FeedbackLog(tmp_path), FeedbackLog(tmp_path)
    assert first.path != second.path and first.log_id != second.log_id
    first.close()
    again = FeedbackLog(tmp_path)
    assert (again.path, again.log_id) == (first.path, first.log_id)
    for log in (again, second):
        log.close()
    with pytest.raises(CwdError):
        FeedbackLog(tmp_path / "feedback-0000.log")


def test_a_write_that_fails_is_made_good(opener: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full in the middle of a frame: no acknowledgement, and nothing lost or doubled when it has room again."""
    store, folder = opener(), tmp_path / "log"
    journal = Journal(store, folder)
    journal.add(observation(1))
    real = os.pwrite

    def full(file: int, data: bytes, offset: int) -> int:
        if len(data) > 5:
            return real(file, data[:5], offset)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda file, data, offset: full(file, data[:9 - (offset > 300)], offset))
        for _ in range(2):
            with pytest.raises(CwdError, match="No space"):
                journal.add(observation(2))
    # the store has it, so the id is known; but it is only acknowledged once the log has it too
    assert rebuild(folder)["app", ""].version == 1
    assert not journal.add(observation(2))
    assert same(store, folder) and rebuild(folder)["app", ""].version == 2
    journal.close()


@pytest.mark.parametrize("backup", [False, True])
def test_a_lost_store_comes_back_from_the_log(opener: Opener, tmp_path: Path, backup: bool) -> None:
    folder = tmp_path / "log"
    first = SqliteStates(tmp_path / "first.sqlite")
    journal = Journal(first, folder)
    for number in range(6):
        journal.add(observation(number, ("", "ann")[number % 2], entry=first.get("app", "")))
    journal.close()
    store = opener()
    if backup:
        store.apply([observation(0)], "another log")
    opened = Journal(store, folder)
    assert same(store, folder) and store.get("app", "ann").version == 3
    # ids came back too
    assert not opened.add(observation(3)) and opened.add(observation(7))
    assert same(store, folder) and restore(store, folder) == 0
    opened.close()
    first.close()


def test_logs_that_are_not_one_history_are_refused(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path)
    log.append([observation(1).to_bytes(1), observation(3).to_bytes(3)])
    with pytest.raises(CwdError, match="version 2"):
        rebuild(tmp_path)
    log.append([observation(2).to_bytes(2), observation(2).to_bytes(2)])
    assert [one.feedback_id for one in histories(tmp_path)[0].observations] == ["feedback-1", "feedback-2", "feedback-3"]
    log.append([observation(9).to_bytes(2)])
    with pytest.raises(CwdError, match="two different"):
        rebuild(tmp_path)
    assert histories(tmp_path, "another app") == [] == histories(tmp_path / "nowhere")
    log.close()


def test_very_many_at_once_are_several_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "_PAYLOAD_BYTES_AIM", 1000)
    store = SqliteStates(tmp_path / "states.sqlite")
    journal = Journal(store, tmp_path)
    appended: list[Sequence[bytes]] = []
    real = journal._log.append
    monkeypatch.setattr(journal._log, "append", lambda records: (appended.append(records), real(records)))
    assert all(journal.add_all([observation(number) for number in range(40)]))
    assert len(appended) > 3 and sum(map(len, appended)) == 40
    assert same(store, tmp_path) and store.unlogged(journal._log.log_id) == []
    assert [Observation.from_bytes(record)[0] for part in appended for record in part] == list(range(1, 41))
    journal.close()
    store.close()


@pytest.mark.parametrize("call", ["open", "pwrite", "fsync", "ftruncate", "close"])
def test_a_process_that_dies_anywhere_in_a_rotation_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str,
                                                                  ) -> None:
    """Every call of the system ends it once, before and after it was done; the next process goes on."""
    real = getattr(os, call)
    died = 0
    for at in itertools.count():
        before = died
        for after in (False, True):
            place = tmp_path / f"{call}-{at}-{after}"
            place.mkdir()
            store = SqliteStates(place / "states.sqlite")
            journal, calls, acknowledged = Journal(store, place / "log", 400), itertools.count(), []

            def dying(*arguments: object, **options: object) -> object:
                if next(calls) != at:
                    return real(*arguments, **options)
                if after:
                    real(*arguments, **options)
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(feedback_log.os, call, dying)
                try:
                    for number in range(8):
                        journal.add(observation(number))
                        acknowledged.append(f"feedback-{number}")
                except KeyboardInterrupt:
                    died += 1
            store.close()
            _let_go(journal)
            store = SqliteStates(place / "states.sqlite")
            journal = Journal(store, place / "log", 400)
            told = [one.feedback_id for history in histories(place / "log") for one in history.observations]
            assert same(store, place / "log") and set(acknowledged) <= set(told) and len(told) <= len(acknowledged) + 1
            assert [journal.add(observation(number)) for number in range(9)] == [
                f"feedback-{number}" not in told for number in range(9)]
            assert same(store, place / "log") and len(log_files(place / "log")) >= 3
            journal.close()
            store.close()
        if died == before:
            break  # there are no more such calls
    assert died >= 4


def _let_go(journal: Journal) -> None:
    """What the end of a process does: the lock is free."""
    import fcntl

    fcntl.flock(journal._log._lock, fcntl.LOCK_UN)


def test_parts_are_one_log(tmp_path: Path) -> None:
    log = FeedbackLog(tmp_path, part_bytes=400)
    records = [observation(number).to_bytes(number + 1) for number in range(12)]
    for record in records[:9]:
        log.append([record])
    names = [path.name for path in log_files(tmp_path)]
    assert len(names) >= 4 and names[:3] == ["feedback-0000.log", "feedback-0000.000001.log", "feedback-0000.000002.log"]
    assert all(path.stat().st_size <= 400 for path in log_files(tmp_path))
    assert {path.read_bytes()[:16] for path in log_files(tmp_path)} == {bytes.fromhex("4357444642000001" + log.log_id)}
    second = FeedbackLog(tmp_path, part_bytes=400)
    assert second.path.name == "feedback-0001.log"
    second.close()
    before = log.log_id
    log.close()
    # a new part that was begun and not even has a header is gone on with; the last record is in the part before
    (tmp_path / f"feedback-0000.{len(names):06}.log").write_bytes(b"CWD")
    log = FeedbackLog(tmp_path, part_bytes=400)
    assert (log.log_id, log.last, log.path.name) == (before, records[8], f"feedback-0000.{len(names):06}.log")
    for record in records[9:]:
        log.append([record])
    log.close()
    assert rebuild(tmp_path)["app", ""].version == 12
    assert sorted(record for path in log_files(tmp_path) for record in feedback_log.Scan(path).records()) == sorted(records)
    # a part is missing, and nobody has said that it was dropped
    log_files(tmp_path)[2].unlink()
    with pytest.raises(CwdError, match="no log has"):
        rebuild(tmp_path)


def test_a_bound_drops_the_oldest_and_says_what_that_costs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, folder = SqliteStates(tmp_path / "states.sqlite"), tmp_path / "log"
    journals = [Journal(store, folder, part_bytes=1000, keep_bytes=6000) for _ in range(2)]
    assert not has_dropped(folder)
    for number in range(120):
        assert journals[number % 2].add(observation(number, ("", "ann")[number // 60], entry=store.get("app", "")))
        assert sum(path.stat().st_size for path in log_files(folder)) <= 6000 + 2 * 1000
    assert has_dropped(folder) and len(log_files(folder)) >= 4
    # the ids are the store's: what was dropped still counts once
    assert not journals[0].add(observation(0))
    kept = {history.context: history for history in histories(folder)}
    assert "ann" in kept and not kept["ann"].complete
    assert kept["ann"].versions[-1] == 60 == store.get("app", "ann").version
    with pytest.raises(CwdError, match="dropped"):
        rebuild(folder)
    for journal in journals:
        journal.close()
    lost = SqliteStates(tmp_path / "lost.sqlite")
    opened = Journal(lost, folder, part_bytes=1000, keep_bytes=6000)
    assert "goes on from the last" in caplog.text
    assert lost.get("app", "ann").version == 60 and not opened.add(observation(119, "ann"))
    # versions go on, so that what comes is told from what is there
    assert opened.add(observation(500, "ann")) and lost.get("app", "ann").version == 61
    assert [history.versions[-1] for history in histories(folder) if history.context == "ann"] == [61]
    opened.close()
    for closing in (store, lost):
        closing.close()


def test_a_store_that_meets_what_is_left_is_made_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, folder = SqliteStates(tmp_path / "states.sqlite"), tmp_path / "log"
    journal = Journal(store, folder, part_bytes=1000, keep_bytes=3000)
    entries = []
    for number in range(60):
        journal.add(observation(number, entry=store.get("app", "")))
        entries.append(store.get("app", ""))
    journal.close()
    (history,) = histories(folder)
    first = history.versions[0]
    assert 1 < first < 60
    backup = SqliteStates(tmp_path / "backup.sqlite")
    backup.restore("app", "", entries[first + 3], [])  # of version first + 4
    assert restore(backup, folder) == 1 and backup.get("app", "").to_bytes() == entries[-1].to_bytes()
    assert "goes on from" not in caplog.text
    for closing in (store, backup):
        closing.close()
