"""kill -9 of processes that write feedback: what was acknowledged is there, once, and the log and the store agree."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from observed import observation

from cwd.selection.feedback import Journal, histories, log_files, rebuild
from cwd.selection.states import SqliteStates

pytestmark = pytest.mark.e2e
#: a new file every few feedbacks, so that some die while they begin one
PART_BYTES = 1000


def write_feedback(folder: str, begin: str) -> None:
    """In a process of its own: say each id once it is acknowledged. Every tenth is sent again."""
    store = SqliteStates(Path(folder) / "states.sqlite")
    journal = Journal(store, Path(folder) / "log", PART_BYTES)
    for number in range(int(begin), int(begin) + 100_000):
        context = ("", "ann")[number % 2]
        journal.add(observation(number, context, draw=0.37, loss=number % 3 / 2, entry=store.get("app", context)))
        os.write(1, f"{number}\n".encode())
        if number % 10 == 0:
            journal.add(observation(number, context))


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    randoms = random.Random(4)
    acknowledged: set[int] = set()
    for turn in range(6):
        # unbuffered: what one line's reading took along would be missing from the rest
        writers = [subprocess.Popen([sys.executable, __file__, str(tmp_path), str(begin)], stdout=subprocess.PIPE, bufsize=0)
                   for begin in (1_000_000 * (2 * turn + 1), 1_000_000 * (2 * turn + 2))]
        for writer in writers:
            # at work, so that it dies in the middle of something
            assert writer.stdout is not None and writer.stdout.readline()
        time.sleep(randoms.uniform(0.0, 0.15))
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
        for writer, begin in zip(writers, (2 * turn + 1, 2 * turn + 2), strict=True):
            said = writer.communicate(timeout=30)[0].decode().split("\n")[:-1]
            acknowledged |= {1_000_000 * begin, *map(int, said)}
    store = SqliteStates(tmp_path / "states.sqlite")
    # both files are taken over, and what their writers left undone is made good
    journals = [Journal(store, tmp_path / "log", PART_BYTES) for _ in range(2)]
    told = [int(one.feedback_id.partition("-")[2]) for history in histories(tmp_path / "log") for one in history.observations]
    assert len(log_files(tmp_path / "log")) >= len(told) // 8
    assert len(acknowledged) > 12 and len(told) == len(set(told))
    assert acknowledged <= set(told)
    # a writer sends one at a time: it was killed with one unacknowledged at most
    assert len(set(told) - acknowledged) <= 12
    assert {(app, context): entry.to_bytes() for app, context, entry in store.entries()} == {
        key: entry.to_bytes() for key, entry in rebuild(tmp_path / "log").items()}
    assert sum(entry.version for _, _, entry in store.entries()) == len(told)
    assert not any(journals[0].add(observation(number)) for number in sorted(acknowledged)[:50])
    for journal in journals:
        journal.close()
    store.close()


if __name__ == "__main__":
    write_feedback(*sys.argv[1:])
