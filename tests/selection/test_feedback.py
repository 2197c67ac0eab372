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
from cwd.selection import feedback
from cwd.selection.feedback import FeedbackLog, Journal, histories, log_files, rebuild, restore
from cwd.selection.observation import Observation
from cwd.selection.states import SqliteStates, States

_runs = itertools.count()


def same(store: States, folder: Path) -> bool:
    """Is the store, byte by byte, what the logs of the folder make?"""
    return {(app, context): entry.to_bytes() for app, context, entry in store.entries()} == {
        key: entry.to_bytes() for key, entry in rebuild(folder).items()}


@given(FEEDBACKS, st.lists(st.tuples(st.integers(1, 3), st.sampled_from(["go on", "reopen", "lose"])), min_size=14, max_size=14))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_log_makes_the_store(tmp_path: Path, feedbacks: list[tuple], turns: list[tuple[int, str]]) -> None:
    """Two journals on one store and folder, in turns; one is closed and opened again, or dies between the store and its log."""
    place = tmp_path / str(next(_runs))
    place.mkdir()
    path, folder, naive = place / "states.sqlite", place / "log", NaiveStore()
    stores = [SqliteStates(path), SqliteStates(path)]
    journals = [Journal(store, folder) for store in stores]
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
            journals[number] = Journal(stores[number], folder)
            assert same(stores[number], folder)
    assert {(app, context): entry for app, context, entry in stores[0].entries()} == naive.entries
    assert same(stores[0], folder)
    assert len(log_files(folder)) == 2
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
            assert list(feedback._Scan(log.path).records()) == [*records[:kept], b"\xc0"]


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
