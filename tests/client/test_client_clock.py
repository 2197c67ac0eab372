"""What a client believes of the controller's clock: never further from the truth than it says, whatever the way does."""

from fractions import Fraction

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cwd.client.clock import DRIFT_PPM, ClockOffset
from cwd.net import clock as compiled

START_NS = 10**12

#: pause before the question, way there, hold, way back; a stall or a slow direction is a way that takes long
TRIPS = st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 3 * 10**9), st.integers(0, 10**7), st.integers(0, 3 * 10**9)),
                 min_size=1, max_size=30)


def theirs(ours_ns: int, offset_ns: int, drift_ppm: int) -> int:
    """What the other clock reads; rounded down, as clocks do."""
    return ours_ns + offset_ns + (ours_ns - START_NS) * drift_ppm // 1_000_000


def test_the_drift_is_one_constant() -> None:
    assert DRIFT_PPM == compiled.DRIFT_PPM


@example([(0, 0, 0, 3 * 10**9)], 0, DRIFT_PPM, True)  # they part while the answer is on its way
@example([(0, 100, 0, 100), (10**9, 0, 10**7, 2 * 10**9)], 0, -DRIFT_PPM, True)
@given(TRIPS, st.integers(-10**15, 10**15), st.integers(-DRIFT_PPM, DRIFT_PPM), st.booleans())
@settings(max_examples=200, deadline=None)
def test_the_truth_is_within_the_bound(trips: list[tuple[int, int, int, int]], offset_ns: int, drift_ppm: int,
                                       tells_hold: bool) -> None:
    clock, now_ns = ClockOffset(), START_NS
    for pause, there, hold, back in trips:
        sent_ns = now_ns + pause
        answered_ns = sent_ns + there + hold
        now_ns = answered_ns + back
        clock.sample(now_ns, sent_ns, theirs(answered_ns, offset_ns, drift_ppm), hold if tells_hold else 0)
        assert clock.known
        for later_ns in (0, 10**6, 10**10):
            at_ns = now_ns + later_ns
            wrong = abs(Fraction(clock.offset_ns - offset_ns) - Fraction((at_ns - START_NS) * drift_ppm, 1_000_000))
            assert wrong <= clock.bound_ns(at_ns) + 2  # the reading of their clock, and the half of an odd trip


@given(TRIPS)
@settings(max_examples=100, deadline=None)
def test_a_sample_never_makes_the_bound_worse(trips: list[tuple[int, int, int, int]]) -> None:
    clock, now_ns = ClockOffset(), START_NS
    for pause, there, hold, back in trips:
        now_ns += pause + there + hold + back
        before = clock.bound_ns(now_ns)
        clock.sample(now_ns, now_ns - there - hold - back, now_ns - back, hold)
        assert before < 0 or clock.bound_ns(now_ns) <= before


@given(TRIPS, st.integers(-10**15, 10**15))
@settings(max_examples=100, deadline=None)
def test_both_ends_estimate_alike(trips: list[tuple[int, int, int, int]], offset_ns: int) -> None:
    """The controller's filter of its workers and the client's of the controller are two programs of one rule."""
    import numpy as np

    row, clock, now_ns = np.zeros(1, compiled.OFFSET)[0], ClockOffset(), START_NS
    for pause, there, hold, back in trips:
        sent_ns, answered_ns = now_ns + pause, now_ns + pause + there + hold
        now_ns = answered_ns + back
        compiled.offset_update(row, sent_ns, answered_ns + offset_ns, hold, now_ns)
        clock.sample(now_ns, sent_ns, answered_ns + offset_ns, hold)
        assert abs(clock.offset_ns - row["offset_ns"]) <= 1
        assert clock.bound_ns(now_ns) == compiled.offset_error_ns(row, now_ns)


def test_what_cannot_be_changes_nothing() -> None:
    clock = ClockOffset()
    clock.sample(100, 101, 5)
    clock.sample(100, 50, 5, 60)
    clock.sample(100, 50, 5, -1)
    assert not clock.known and clock.bound_ns(100) == -1
    clock.same_host()
    assert (clock.offset_ns, clock.bound_ns(10**18)) == (0, 0)
