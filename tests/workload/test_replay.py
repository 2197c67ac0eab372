"""The replayer against a stand-in controller: open loop, intended times, every request accounted for."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from reply_server import ReplyServer

from cwd.controller.record import LOG_MAGIC, RECORD
from cwd.errors import Code, ControllerLost, CwdError
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.workload.arrivals import ARRIVAL
from cwd.workload.capacity import measure_capacity
from cwd.workload.command import choose_models, main, minutes_of, read_actions, slos
from cwd.workload.lengths import synthetic_texts
from cwd.workload.outcome import OUTCOME, PENDING, summary
from cwd.workload.replay import replay


#: of requests that are to be answered in time, however busy the machine is
SLO_NS = 20 * NS_PER_S


def arrivals(count: int, gap_ms: float, length: int = -1) -> np.ndarray:
    rows = np.zeros(count, ARRIVAL)
    rows["at_ns"] = np.arange(count) * gap_ms * NS_PER_MS
    rows["length"] = length
    return rows


def test_every_request_is_accounted_for(tmp_path: Path) -> None:
    told = {1: (Code.DEADLINE_UNREACHABLE, 0.0, False), 2: (Code.OK, 60.0, False), 3: (Code.EXECUTION_FAILED, 0.0, False),
            4: None, 5: (Code.OK, 0.0, True)}
    with ReplyServer(str(tmp_path / "s"), lambda index: told.get(index, (Code.OK, 0.002, False))) as server:
        rows, _ = replay(server.endpoint, ["m"], arrivals(100, 2), [3 * NS_PER_S], synthetic_texts())
    facts = summary(rows)
    assert facts["offered"] == 100 == sum(facts[name] for name in ("answered_in_time", "late", "refused", "failed"))
    assert facts["refused_by"] == {"DEADLINE_UNREACHABLE": 1}
    assert facts["failed_by"] == {"EXECUTION_FAILED": 1}
    # one would be answered long after its deadline, one never: the client gave both up
    assert facts["late"] == 2 and facts["cold_starts"] == 1
    assert not (rows["status"] == PENDING).any()
    answered = rows[rows["status"] == Code.OK]
    assert (answered["batch"] == 2).all() and (answered["exec_ns"] == 2000).all()


def test_the_loop_is_open_and_times_are_the_intended_ones(tmp_path: Path) -> None:
    """No answer comes before the last request: a closed loop would never send its second one."""
    with ReplyServer(str(tmp_path / "s"), lambda index: (Code.OK, 0.0, False), hold=100) as server:
        rows, _ = replay(server.endpoint, ["m"], arrivals(100, 5), [SLO_NS], synthetic_texts())
    assert (rows["status"] == Code.OK).all()
    assert (rows["sent_ns"] >= rows["at_ns"]).all() and rows["done_ns"].min() > rows["sent_ns"].max()
    # all of it is due within half a second
    assert np.median(rows["sent_ns"] - rows["at_ns"]) < 250 * NS_PER_MS
    # the deadline that is left when a request is sent counts from its intended time
    assert all(fields["slo_ns"] <= SLO_NS for fields in server.seen)
    assert server.seen[50]["slo_ns"] == SLO_NS - (rows["sent_ns"] - rows["at_ns"])[50]


def test_a_request_that_could_not_be_sent_in_time_is_late(tmp_path: Path) -> None:
    """All at one instant with an SLO that most of the sends themselves overrun."""
    with ReplyServer(str(tmp_path / "s"), lambda index: None) as server:
        rows, _ = replay(server.endpoint, ["m"], arrivals(3000, 0), [NS_PER_MS], synthetic_texts())
    facts = summary(rows)
    assert facts["answered_in_time"] == 0 and facts["late"] + facts["refused"] == 3000
    assert len(server.seen) < 3000


def test_lengths_come_from_the_trace_and_fit_the_model(tmp_path: Path) -> None:
    lengths = arrivals(6, 1)
    lengths["length"] = [5, 16, 64, 500, -1, -1]
    with ReplyServer(str(tmp_path / "s"), lambda index: (Code.OK, 0.0, False)) as server:
        rows, _ = replay(server.endpoint, ["m"], lengths, [SLO_NS], synthetic_texts(), vocabulary=500)
    assert rows["length"][:4].tolist() == [5, 16, 64, 64]
    assert [fields["dims"][0] for fields in server.seen] == rows["length"].tolist()


class Fixed:
    """Makes requests of one length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def make(self, length: int = -1) -> tuple[dict[str, np.ndarray], int]:
        return {"input_ids": np.ones(self.length, np.int64)}, self.length


def test_applications_have_their_tags_and_inputs(tmp_path: Path) -> None:
    mixed = arrivals(30, 1)
    mixed["model"] = np.arange(30) % 3 == 0
    with ReplyServer(str(tmp_path / "s"), lambda index: (Code.OK, 0.0, False)) as server:
        rows, _ = replay(server.endpoint, ["m", "m"], mixed, [SLO_NS] * 2, synthetic_texts(), apps=("one", "two"),
                         makers=[Fixed(5), Fixed(9)])
        capacity = measure_capacity(server.endpoint, ["m", "m"], mixed, synthetic_texts(), in_flight=1, warm_s=0.0,
                                    seconds=1.0, apps=("", "two"), makers=[Fixed(5), Fixed(9)])
    tags = {name: zlib.crc32(name.encode()) for name in ("one", "two")}
    wanted = [(tags["two"], 9) if index % 3 == 0 else (tags["one"], 5) for index in range(30)]
    assert [(fields["app"], fields["dims"][0]) for fields in server.seen[:30]] == wanted
    assert rows["length"].tolist() == [length for _, length in wanted]
    # without a name there is no tag
    assert capacity.answered and [fields["app"] for fields in server.seen[30:33]] == [tags["two"], 0, 0]


def test_more_than_the_credits_is_refused_not_queued(tmp_path: Path) -> None:
    with ReplyServer(str(tmp_path / "s"), lambda index: (Code.OK, 3.0, False), credits=4) as server:
        rows, _ = replay(server.endpoint, ["m"], arrivals(10, 0), [SLO_NS], synthetic_texts())
    assert summary(rows)["refused_by"] == {"CREDIT_EXCEEDED": 6}


def test_no_controller(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("1\n2\n")
    with pytest.raises(CwdError, match="nowhere"):
        main(str(tmp_path / "nowhere"), endpoint=f"ipc://{tmp_path}/none")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("\n".join(str(0.004 * index) for index in range(50)))
    with ReplyServer(str(tmp_path / "s"), lambda index: (Code.OK, 0.001, False)) as server:
        facts = main(str(tmp_path / "t.txt"), models=["m"], slo="20s", out=str(tmp_path / "out"), endpoint=server.endpoint)
    assert facts["offered"] == facts["answered_in_time"] == 50
    assert Path(facts["report"]).is_file()
    printed = capsys.readouterr()
    assert printed.out == "" and "replay" in printed.err


def test_the_log_of_something_else_is_noticed(tmp_path: Path) -> None:
    header = json.dumps({"record_bytes": RECORD.itemsize}).encode()
    (tmp_path / "log-01.cwdlog").write_bytes(LOG_MAGIC + len(header).to_bytes(4, "little") + header)
    rows = np.zeros(3, OUTCOME)
    rows["total_ns"] = 1
    with pytest.raises(CwdError, match="it is another log"):
        read_actions(tmp_path, 0, rows)
    assert len(read_actions(tmp_path, 0, rows[:0])) == 0


def test_options() -> None:
    assert minutes_of("600:605") == (600, 605) and minutes_of("") is None
    for wrong in ("600", "5:5", "a:b", "-1:4"):
        with pytest.raises(CwdError, match="span of minutes"):
            minutes_of(wrong)
    names = ["bert_0/1", "bert_1/1", "res_0/2"]
    assert choose_models(names, ["bert*"]) == names[:2]
    assert choose_models(names, ["res_0/2"]) == names[2:]
    with pytest.raises(CwdError, match="no model matches vgg"):
        choose_models(names, ["vgg"])
    assert slos(names, "100ms", ["bert*=50ms", "bert_1=20ms"]) == [50 * NS_PER_MS, 20 * NS_PER_MS, 100 * NS_PER_MS]
    for rule in ("bert*", "bert*=fast", "bert*=0ms"):
        with pytest.raises(CwdError):
            slos(names, "100ms", [rule])
    assert ControllerLost().code is Code.CONTROLLER_LOST
