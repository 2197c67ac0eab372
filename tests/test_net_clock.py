"""The clock, the host's id, and the offset filter against its naive twin and against the truth."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cwd.client import connection
from cwd.controller import rare
from cwd.net import clock, host_id
from cwd.worker import session


def test_monotonic_is_pythons() -> None:
    before = time.monotonic_ns()
    now = clock.monotonic_ns()
    assert before <= now <= time.monotonic_ns()


@pytest.fixture
def fresh_id() -> Iterator[None]:
    """The host's id is read anew in the test, and after it."""
    host_id.host_id.cache_clear()
    yield
    host_id.host_id.cache_clear()


def test_the_host_id_is_the_same_in_every_process() -> None:
    other = subprocess.run([sys.executable, "-c", "import sys\nfrom cwd.net.host_id import host_id\n"
                            "assert 'numba' not in sys.modules\nprint(host_id().hex())"],
                           capture_output=True, text=True, check=True)
    assert len(host_id.host_id()) == 16 and other.stdout.strip() == host_id.host_id().hex()


@pytest.mark.parametrize("content", [None, "", "not hexadecimal\n", "abcd\n"])
def test_without_a_boot_id_nobody_is_taken_for_a_neighbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_id: None,
                                                          content: str | None) -> None:
    path = tmp_path / "boot_id"
    if content is not None:
        path.write_text(content)
    monkeypatch.setattr(host_id, "_BOOT_ID", path)
    ours = host_id.host_id()
    assert len(ours) == 16 and ours != bytes(16) and ours == host_id.host_id()
    host_id.host_id.cache_clear()  # as in another process
    assert host_id.host_id() != ours


def test_a_shifted_time_namespace_is_another_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_id: None) -> None:
    path, offsets = tmp_path / "boot_id", tmp_path / "offsets"
    path.write_text("00000000-0000-0000-0000-0000000000ff\n")
    monkeypatch.setattr(host_id, "_BOOT_ID", path)
    monkeypatch.setattr(host_id, "_OFFSETS", offsets)
    found = set()
    for seconds in (0, 86_400, -1):
        offsets.write_text(f"monotonic  {seconds}  0\nboottime   0   0\n")
        host_id.host_id.cache_clear()
        found.add(host_id.host_id())
    assert len(found) == 3 and bytes(15) + b"\xff" in found


def test_client_and_controller_tell_the_same_host() -> None:
    """Both ends of a connection must have the id from one place."""
    for module in (connection, rare, session):
        assert module.host_id is host_id.host_id


class Naive:
    """All accepted samples kept, the bound worked out anew each time."""

    def __init__(self) -> None:
        self.best: tuple[int, int, int] | None = None  # offset, error, when

    def error(self, now: int) -> int:
        assert self.best is not None
        return self.best[1] + self.drift(now - self.best[2])

    @staticmethod
    def drift(duration: int) -> int:
        return -(-duration * clock.DRIFT_PPM // 1_000_000)

    def update(self, sent: int, peer: int, hold: int, received: int) -> bool:
        rtt = received - sent - hold
        if rtt < 0 or hold < 0:
            return False
        error = rtt // 2 + rtt % 2 + self.drift(rtt + hold)
        if self.best is not None and error > self.error(received):
            return False
        self.best = (peer - received + rtt // 2, error, received)
        return True


SAMPLES = st.lists(st.tuples(
    st.integers(0, 10**9),  # pause before the heartbeat
    st.integers(0, 10**7),  # way there
    st.integers(0, 10**7),  # hold
    st.integers(0, 10**7),  # way back
), min_size=1, max_size=50)


@example([(0, 0, 0, 100_000)], 0, clock.DRIFT_PPM // 2)  # the clocks part while the answer is on its way
@given(SAMPLES, st.integers(-(10**15), 10**15), st.integers(-clock.DRIFT_PPM // 2, clock.DRIFT_PPM // 2))
@settings(max_examples=100, deadline=None)
def test_filter_agrees_with_its_twin_and_bounds_the_truth(
    samples: list[tuple[int, int, int, int]], offset: int, drift_ppm: int,
) -> None:
    row, naive = np.zeros(1, clock.OFFSET)[0], Naive()
    now = 10**12

    def peer_clock(ours: int) -> int:
        return ours + offset + (ours - 10**12) * drift_ppm // 1_000_000

    for pause, there, hold, back in samples:
        sent = now + pause
        answered = sent + there + hold
        received = answered + back
        used = clock.offset_update(row, sent, peer_clock(answered), hold, received)
        assert used == naive.update(sent, peer_clock(answered), hold, received)
        assert naive.best is not None and row["offset_ns"] == naive.best[0]
        now = received
        for later in (0, 10**8, 10**10):
            bound = clock.offset_error_ns(row, now + later)
            assert bound == naive.error(now + later)
            wrong = abs(clock.to_peer_ns(row, now + later) - peer_clock(now + later))
            assert wrong <= bound + 4  # roundings of the simulated clock and of the halves
    assert row["samples"] == len(samples)


def test_a_short_round_trip_wins_and_ages() -> None:
    row = np.zeros(1, clock.OFFSET)[0]
    assert clock.offset_update(row, 0, 1_000_500, 0, 1_000) == 1
    assert (row["offset_ns"], row["error_ns"]) == (1_000_000, 501)
    assert clock.offset_update(row, 10_000, 1_099_000, 0, 110_000) == 0  # a worse bound
    assert row["offset_ns"] == 1_000_000
    assert clock.offset_update(row, 2_000_000_000, 2_001_050_000, 0, 2_000_100_000) == 1  # 2 s later it is the better
    assert row["error_ns"] == 50_010


def test_a_guess_gives_way_to_the_first_sample() -> None:
    row = np.zeros(1, clock.OFFSET)[0]
    clock.offset_guess(row, 5_000, 1_000)
    assert row["offset_ns"] == 4_000 and clock.offset_error_ns(row, 2_000) >= clock.UNBOUNDED_NS
    assert clock.offset_update(row, 0, 900_000_000_000, 0, 3_600_000_000_000) == 1  # an hour's round trip is better
    assert clock.offset_error_ns(row, 3_600_000_000_000) < clock.UNBOUNDED_NS


@given(st.lists(st.tuples(st.integers(0, 3 * 10**8), st.integers(0, 2 * 10**9), st.integers(0, 2 * 10**9)), min_size=1,
                max_size=40), st.integers(-(10**15), 10**15))
@settings(max_examples=100, deadline=None)
def test_the_bound_holds_where_questions_overtake_answers(questions: list[tuple[int, int, int]], offset: int) -> None:
    """Over a way slower than the heartbeats several are under way; each direction keeps its order, whatever its delays."""
    row, sent, heard, received = np.zeros(1, clock.OFFSET)[0], 10**12, 0, 0
    for pause, there, back in questions:
        sent += pause
        heard = max(heard, sent + there)
        received = max(received, heard + back)
        clock.offset_update(row, sent, heard + offset, 0, received)
        assert abs(row["offset_ns"] - offset) <= clock.offset_error_ns(row, received)


@pytest.mark.parametrize(("sent", "hold", "received"), [(100, 0, 99), (100, -1, 200), (100, 200, 250)])
def test_impossible_samples_change_nothing(sent: int, hold: int, received: int) -> None:
    row = np.zeros(1, clock.OFFSET)[0]
    assert clock.offset_update(row, sent, 5, hold, received) == 0
    assert row["samples"] == 0


def test_a_fixed_offset_stays() -> None:
    row = np.zeros(1, clock.OFFSET)[0]
    clock.offset_update(row, 0, 500, 0, 10)
    clock.offset_fix(row, 20)
    assert clock.offset_update(row, 30, 999, 0, 31) == 0
    assert (clock.to_peer_ns(row, 77), clock.from_peer_ns(row, 77), clock.offset_error_ns(row, 10**18)) == (77, 77, 0)
    clock.offset_reset(row)
    assert clock.offset_update(row, 30, 999, 0, 32) == 1
    assert clock.from_peer_ns(row, clock.to_peer_ns(row, 77)) == 77
