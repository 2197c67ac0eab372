"""What `cwd explain` tells of requests in a log that was written by hand, and of files that grow and rotate."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from played_log import MS, Player, write_log

from cwd.cli.explain import lines_of
from cwd.controller.record import RECORD, Kind
from cwd.controller.telemetry import read_clients, read_log, read_names, requests_frame
from cwd.errors import Code, CwdError
from cwd.observe.counts import Counts
from cwd.observe.follow import Follower
from cwd.observe.story import parse_id, tell

MODEL, OTHER, GPU = 3, 4, 0
T0 = 50_000 * MS
#: whoever had number 9 before, and after
NAMES = ["model 3 resnet/1", "model 4 bert/2", "gpu 0 worker-0", "client 9 earlier", "since 9 5", "client 9 shop",
         f"since 9 {T0 - 10 * MS}", "client 8 shop-2", "client 9 later", f"since 9 {T0 + 900 * MS}"]


def log_of(*rows: dict[str, Any]) -> np.ndarray:
    found = np.zeros(len(rows), RECORD)
    found["gpu"] = -1
    for at, row in enumerate(rows):
        for name, value in row.items():
            found[at][name] = value
    return found


def came(at_ms: float, request: int, slo_ms: int = 100, client: int = 9, model: int = MODEL, status: int = 0) -> dict[str, Any]:
    now_ns = T0 + round(at_ms * MS)
    return {"now_ns": now_ns, "kind": Kind.ARRIVED, "id": request, "a": client, "b": now_ns + slo_ms * MS, "c": slo_ms * MS,
            "model": model, "status": status}


def sent(at_ms: float, action: int, kind: int, model: int = MODEL, rows: int = 0, predicted_ms: int = 10) -> dict[str, Any]:
    now_ns = T0 + round(at_ms * MS)
    return {"now_ns": now_ns, "kind": Kind.ACTION, "id": action, "flag": kind, "gpu": GPU, "model": model, "e": now_ns,
            "f": now_ns + 50 * MS, "g": predicted_ms * MS, "h": rows, "c": rows, "b": 4}


def done(at_ms: float, action: int, begin_ms: float, end_ms: float, status: int = 0) -> dict[str, Any]:
    ran = status == 0
    return {"now_ns": T0 + round(at_ms * MS), "kind": Kind.DONE, "id": action, "gpu": GPU, "status": status,
            "a": T0 + round(begin_ms * MS) if ran else 0, "b": T0 + round(end_ms * MS) if ran else 0, "e": -1}


def replied(at_ms: float, request: int, arrived_ms: float, status: int = 0, action: int = 0, client: int = 9, cold: int = 0,
            **more: int) -> dict[str, Any]:
    return {"now_ns": T0 + round(at_ms * MS), "kind": Kind.REPLY, "id": request, "a": client, "status": status, "flag": cold,
            "gpu": GPU, "model": MODEL, "e": round((at_ms - arrived_ms) * MS), "h": action, "g": 8, **more}


@pytest.fixture
def story(tmp_path: Path) -> Path:
    write_log(tmp_path, log_of(
        sent(-30, 100, 3, model=OTHER, rows=1),
        done(-19, 100, -30, -20),
        came(-5, 0xA1),
        sent(-4, 101, 1),  # its weights
        came(0, 0xA2),
        came(1, 0xA2, client=8),  # another client's, of the same number
        done(8.5, 101, -3.5, 8),
        sent(9, 102, 3, rows=2),
        replied(9, 0xA2, 1, int(Code.DEADLINE_UNREACHABLE), client=8, f=150 * MS),
        done(20, 102, 9.5, 19.5),
        replied(20, 0xA1, -5, action=102, cold=1, b=14 * MS, c=13 * MS, d=10 * MS),
        replied(20, 0xA2, 0, action=102, cold=1, b=9 * MS, c=8 * MS, d=10 * MS),
        came(30, 0xA3, slo_ms=20),
        sent(31, 103, 3, rows=1),
        done(60, 103, 31.5, 59.5),
        replied(60, 0xA3, 30, int(Code.DEADLINE_MISSED), action=103, d=28 * MS),
        came(70, 0xA4),
        sent(71, 104, 3, rows=1),
        done(140, 104, 0, 0, int(Code.TOO_LATE)),
        replied(150, 0xA4, 70, int(Code.EXECUTION_FAILED)),
        {"now_ns": T0 + 160 * MS, "kind": Kind.REFUSED, "id": 0xA5, "a": 9, "model": -1, "status": int(Code.UNKNOWN_MODEL)},
        came(170, 0xA6),
    ), NAMES)
    return tmp_path


def test_an_answer_in_time(story: Path) -> None:
    facts = tell(story, "shop", 0xA2)
    assert (facts["verdict"], facts["model"], facts["client"], facts["cold"]) == ("OK", "resnet/1", "shop", True)
    assert facts["why"] == "answered in time: 80ms before the deadline, in a batch of 2, after its weights were loaded"
    assert (facts["deadline_after_ns"], facts["replied_after_ns"]) == (100 * MS, 20 * MS)
    execution, load = facts["execution"], facts["load"]
    assert (execution["kind"], execution["predicted_ns"], execution["actual_ns"]) == ("infer", 10 * MS, 10 * MS)
    assert (execution["sent_after_ns"], execution["begin_after_ns"]) == (9 * MS, 9.5 * MS)
    assert (load["kind"], load["begin_after_ns"], load["end_after_ns"]) == ("load", -3.5 * MS, 8 * MS)
    assert facts["waiting"] == {"all": 1, "same_model": 1, "due_before": 1}
    assert [(action["model"], action["lane"]) for action in facts["before"]] == [("bert/2", "exec")]
    assert facts["arrived_wall_ns"] == 10**18 + T0
    text = "\n".join(lines_of(facts))
    assert "00000000000000a2 of shop for resnet/1" in text and "on the lanes before:" in text and "+9.500ms" in text


def test_the_same_number_of_another_client(story: Path) -> None:
    facts = tell(story, "shop-2", 0xA2)
    assert facts["verdict"] == "DEADLINE_UNREACHABLE" and facts["execution"] is None
    assert "it could have been answered after 150ms" in facts["why"]
    # without a name it is the newest
    assert tell(story, "", 0xA2)["client"] == "shop-2"
    assert {action["lane"] for action in facts["before"]} == {"exec", "load"}


@pytest.mark.parametrize("number, verdict, why", [
    (0xA3, "DEADLINE_MISSED", "the execution took 18ms longer than predicted"),
    (0xA4, "EXECUTION_FAILED", "infer on gpu 0 was TOO_LATE"),
    (0xA5, "UNKNOWN_MODEL", "no model of that name or handle is registered"),
    (0xA6, "open", "it has not been answered yet, or the log ends before its reply"),
])
def test_why_not(story: Path, number: int, verdict: str, why: str) -> None:
    facts = tell(story, "", number)
    assert facts["verdict"] == verdict and why in facts["why"]
    assert lines_of(facts)


def test_a_number_that_nobody_had(story: Path) -> None:
    with pytest.raises(CwdError, match="no request 00000000000000ff"):
        tell(story, "", 0xFF)
    with pytest.raises(CwdError, match="no request"):
        tell(story, "later", 0xA1)
    with pytest.raises(CwdError, match="no log here"):
        tell(story / "nosuch", "", 1)


def test_numbers_as_people_write_them() -> None:
    assert parse_id("1015829d174002a8") == parse_id("0x1015829d174002a8") == ("", 0x1015829D174002A8)
    assert parse_id("web:front:17") == ("web:front", 17)
    for text in ("17", "xyz", "1015829d174002ax", "0x15829d174002a8", ":3", "a:b"):
        with pytest.raises(CwdError, match="16 hexadecimal digits"):
            parse_id(text)


def test_it_is_found_across_rotated_files(story: Path) -> None:
    log = read_log(story)
    whole = tell(story, "shop", 0xA2)
    for at in range(1, len(log)):
        write_log(story, log[:at], NAMES)
        write_log(story, log[at:], NAMES, part=1)
        assert tell(story, "shop", 0xA2) == whole, at


def test_every_request_of_a_played_log_has_a_story(tmp_path: Path) -> None:
    player = Player(Random(3))
    for _ in range(300):
        player.step()
    write_log(tmp_path, player.records(), NAMES)
    requests = requests_frame(read_log(tmp_path))
    for number in np.unique(requests["request"]):
        facts = tell(tmp_path, "", int(number))
        assert lines_of(facts) and facts["why"]


def test_a_log_is_followed_while_it_grows_and_rotates(tmp_path: Path) -> None:
    player = Player(Random(1))
    for _ in range(200):
        player.step()
    log = player.records()
    path = write_log(tmp_path, log[:50], NAMES[:2])
    follower = Follower(tmp_path)
    assert follower.read().tobytes() == log[:50].tobytes() and len(follower.names()) == 2
    assert len(follower.read()) == 0 and follower.names() == []
    with open(path, "ab") as file:
        file.write(log[50:60].tobytes() + log[60].tobytes()[:40])
    assert follower.read().tobytes() == log[50:60].tobytes()
    with open(path, "ab") as file:
        file.write(log[60].tobytes()[40:])
    write_log(tmp_path, log[61:], NAMES, part=1)
    assert follower.read().tobytes() == log[60:].tobytes()
    assert [name[2] for name in follower.names() if name[0] != "since"] == [
        "worker-0", "earlier", "shop", "shop-2", "later"]
    assert not follower.newer() and follower.whole
    write_log(tmp_path, log[:1], [], epoch=17)
    assert follower.newer()


def test_names_that_peers_chose_break_no_line(tmp_path: Path) -> None:
    hostile = "a\x0bmodel 3 stolen\x85\u2028\r\x1b[2J"
    path = write_log(tmp_path, log_of(came(0, 1)),
                     [f"client 9 {hostile}", "since 9 7", "since 9 soon", "model", "gpu x y", *NAMES[:1]])
    assert read_clients(path) == {9: [(7, "a?model 3 stolen????[2J")]}
    assert read_names(path)["model"] == {3: "resnet/1"} == {number: text for sort, number, text in Follower(path).names()
                                                            if sort == "model"}
    assert tell(path, "", 1)["client"] == "a?model 3 stolen????[2J"


def test_of_a_long_log_the_end_is_read(tmp_path: Path) -> None:
    player = Player(Random(2))
    for _ in range(200):
        player.step()
    log = player.records()
    write_log(tmp_path, log[:100], NAMES)
    write_log(tmp_path, log[100:], NAMES, part=1)
    follower = Follower(tmp_path, tail_bytes=40 * RECORD.itemsize + 1000)
    rows = follower.read()
    assert 30 < len(rows) < 60 and rows.tobytes() == log[-len(rows):].tobytes() and not follower.whole
    Counts().feed(rows)  # from the middle, without a fault
