"""Eight members of real workers, one of which falls silent while it holds requests: seven answer, in time, by every door."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwd.bench.silent import DOORS, LATE, MEMBERS, Heard, World, facts_of
from cwd.errors import Code
from cwd.units import NS_PER_MS

pytest.importorskip("torch")
pytest.importorskip("uvicorn")
pytestmark = pytest.mark.e2e

SLO_MS = 300
COUNT = 8
HERE = Path(__file__).resolve().parent


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, (SLO_MS,), lost="4s") as world:
        yield world


def whole(heard: list[Heard]) -> None:
    """All eight took part, but for what a busy machine holds up."""
    assert len(heard) == COUNT and sum(each.answered == MEMBERS for each in heard) > COUNT / 2, heard


def seven(heard: list[Heard]) -> None:
    """Each request was answered by all but the one, and in time by what the reply says; or it was told that it was late."""
    assert len(heard) == COUNT and {each.code for each in heard} <= {Code.OK, Code.DEADLINE_MISSED}, heard
    answers = [each for each in heard if each.code == Code.OK]
    assert all(0 < each.said_ns <= SLO_MS * NS_PER_MS and LATE in each.missing.split(",") for each in answers), heard
    assert sum((each.answered, each.missing) == (MEMBERS - 1, LATE) for each in answers) > COUNT / 2, heard


def known(world: World) -> bool:
    """Whether the controller counts on the worker."""
    return "straggler" in {worker["name"] for worker in world.cluster.status()["workers"].values()}


def test_a_worker_that_is_stopped(world: World) -> None:
    for door in DOORS:
        whole(world.ask(door, SLO_MS, COUNT))
    world.stop()
    for door in DOORS:
        seven(world.ask(door, SLO_MS, COUNT))
    assert known(world), "the controller had given it up before: that was no silent one"
    # who waits for all eight hears of a failure in the end, and not within the SLO
    (unmitigated,) = world.without(1)
    assert (unmitigated.answered, unmitigated.missing) == (MEMBERS - 1, LATE) and unmitigated.code != Code.OK
    until = time.monotonic() + 60
    while known(world):
        assert time.monotonic() < until
        time.sleep(0.1)
    for door in DOORS:  # now that it is known to be gone: nobody has room for its model
        seven(world.ask(door, SLO_MS, COUNT))
    world.go_on()
    for door in DOORS:
        world.until_all(door, SLO_MS)
        whole(world.ask(door, SLO_MS, COUNT))


def test_a_worker_that_lives_but_does_not_come_back_from_an_execution(tmp_path: Path) -> None:
    hang = tmp_path / "hang"
    path = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    with World(tmp_path, (SLO_MS,), device="cpu", module="hanging",
               environment={"CWD_HANG": "exec lane", "CWD_HANG_FILE": str(hang), "PYTHONPATH": path}) as world:
        whole(world.ask("blocking", SLO_MS, COUNT))
        hang.touch()
        for door in DOORS:
            seven(world.ask(door, SLO_MS, COUNT))
        assert known(world)
        hang.unlink()
        for door in DOORS:
            world.until_all(door, SLO_MS)


def test_what_the_bench_counts() -> None:
    ms = NS_PER_MS
    heard = [Heard(46 * ms, 45 * ms, 7, LATE, Code.OK)] * 97 + [
        Heard(3 * ms, 2 * ms, 8, "", Code.OK), Heard(47 * ms, 46 * ms, 6, f"quick-003,{LATE}", Code.OK),
        Heard(51 * ms, 0, 0, "", Code.DEADLINE_MISSED)]
    found = facts_of(heard, 50)
    assert {key: found[key] for key in ("requests", "seven_of_eight", "fewer", "errors", "waited", "late_by_reply")} == {
        "requests": 100, "seven_of_eight": 97, "fewer": 1, "errors": 1, "waited": 99, "late_by_reply": 0}
    assert found["p50_ms"] == 46 and 46 < found["p99_ms"] < 51 and found["p99_of_slo"] == found["p99_ms"] / 50
    assert facts_of([Heard(52 * ms, 51 * ms, 7, LATE, Code.OK)], 50)["late_by_reply"] == 1
