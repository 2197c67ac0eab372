"""The controller's parts that need no sockets: shapes against their naive twin, settings, the log's format."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.controller import carrier, telemetry
from cwd.controller.carrier import delete_oldest
from cwd.controller.config import ControllerConfig, load_config
from cwd.controller.reader import shape_facts
from cwd.controller.record import COLUMNS, LOG_MAGIC, RECORD, Kind
from cwd.controller.replay import replay
from cwd.controller.shapes import SHAPE, check_shape, set_shape
from cwd.controller.writer import new_epoch
from cwd.core.world import ACTION_EXEC
from cwd.errors import Code, CwdError
from cwd.models.spec import ProgramSpec, TensorSpec
from cwd.net import sync

AXES = ("a", "b")
_SHAPES = st.lists(st.one_of(st.integers(1, 5), st.sampled_from(AXES)), max_size=3)


@st.composite
def _programs(draw):
    shapes = [tuple(shape) for shape in draw(st.lists(_SHAPES, min_size=1, max_size=3))] + [AXES]
    classes = sorted(draw(st.sets(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4)))
    return ProgramSpec(
        inputs=tuple(TensorSpec(f"x{i}", draw(st.sampled_from(("float32", "int64", "bool"))), shape)
                     for i, shape in enumerate(shapes)),
        outputs=(TensorSpec("y", "float32", (1,)),), batch_sizes=(1,), factory="a:b", axes=AXES,
        size_classes=tuple(classes), padding=draw(st.sampled_from(("exact", "free"))))


@given(_programs(), st.lists(st.integers(0, 10), min_size=4, max_size=4), st.integers(-1, 1))
@settings(max_examples=200, deadline=None)
def test_shapes_agree_with_the_spec(spec, dims, off):
    dims[2] = dims[2] if dims[2] == 10 else 0
    dims[3] = 0
    table = np.zeros(2, SHAPE)
    set_shape(table, 1, shape_facts(spec))
    size_class, size_bytes = spec.size_class_of(tuple(dims)), spec.payload_bytes(tuple(dims)) + off
    found = check_shape(table[1], np.array(dims, np.uint32), size_bytes)
    if size_class < 0:
        assert found == -Code.UNKNOWN_SIZE
    else:
        assert found == (size_class if off == 0 else -Code.BAD_PAYLOAD_SIZE)


def test_a_program_with_too_many_inputs_is_refused():
    spec = ProgramSpec(inputs=tuple(TensorSpec(f"x{i}", "bool", (1,)) for i in range(9)),
                       outputs=(TensorSpec("y", "bool", (1,)),), batch_sizes=(1,), factory="a:b")
    with pytest.raises(CwdError, match="9 inputs"):
        shape_facts(spec)


def test_flags_win_over_the_environment_over_the_file(tmp_path):
    file = tmp_path / "cwd.toml"
    file.write_text('[controller]\nslo_max = "5s"\ncredits = 5\npolicy = "fifo"\n')
    config = load_config({"credits": 7, "name": None}, {"CWD_CREDITS": "6", "CWD_HELD_MAX": "2MiB", "CWD_LOG": "no"}, file)
    assert (config.credits, config.slo_max_ns, config.policy) == (7, 5_000_000_000, "fifo")
    assert (config.held_max_bytes, config.log, config.name) == (2 << 20, False, "controller")


@pytest.mark.parametrize(("flags", "environment", "text"), [
    ({"nonsense": 1}, {}, "nonsense"), ({"slo_max": "soon"}, {}, "soon"), ({}, {"CWD_CREDITS": "many"}, "many"),
    ({"credits": -1}, {}, "negative"),
])
def test_a_bad_setting_is_one_line_that_names_it(flags, environment, text):
    with pytest.raises(CwdError, match=text) as caught:
        load_config(flags, environment)
    assert caught.value.code == Code.BAD_ARGUMENT and "\n" not in str(caught.value)


def test_an_epoch_is_above_every_one_that_has_left_a_log(tmp_path):
    assert new_epoch(tmp_path, 1000) == 1000
    (tmp_path / f"log-{5000:016x}.cwdlog").touch()
    (tmp_path / f"log-{5000:016x}.1.cwdlog").touch()
    assert new_epoch(tmp_path, 1000) == 5001


def test_the_oldest_log_files_go_first_and_never_the_one_being_written(tmp_path):
    files = ["log-01.cwdlog", "log-01.1.cwdlog", "log-01.2.cwdlog", "log-01.10.cwdlog", "log-02.cwdlog", "log-02.1.cwdlog"]
    for name in (*files, "log-01.names", "log-02.names", "other.txt"):
        (tmp_path / name).write_bytes(bytes(100))

    def left():
        return {path.name for path in tmp_path.iterdir()}

    delete_oldest(tmp_path, "log-02.1.cwdlog", 500)
    assert left() == {*files, "log-01.names", "log-02.names", "other.txt"}
    delete_oldest(tmp_path, "log-02.1.cwdlog", 299)
    assert left() == {"log-01.10.cwdlog", "log-02.cwdlog", "log-02.1.cwdlog", "log-01.names", "log-02.names", "other.txt"}
    delete_oldest(tmp_path, "log-02.1.cwdlog", -7)
    assert left() == {"log-02.1.cwdlog", "log-02.names", "other.txt"}


def test_the_writers_files_stay_within_their_bound(tmp_path):
    header = {"epoch": 5, "record_bytes": RECORD.itemsize, "core": {}}
    files = carrier._Files(tmp_path, header, 100 * RECORD.itemsize, 350 * RECORD.itemsize)
    files.names(b"model 9 net/1\n")
    rows = np.zeros(50, RECORD)
    for number in range(33):
        rows["id"] = 50 * number + np.arange(50)
        files.write(rows)
        assert sum(path.stat().st_size for path in tmp_path.glob("*.cwdlog")) < 350 * RECORD.itemsize + 4096
    ids = telemetry.read_log(tmp_path)["id"].tolist()
    assert ids == list(range(1650 - len(ids), 1650)) and len(ids) == 250, "what is left is the newest"
    assert telemetry.read_names(tmp_path)["model"] == {9: "net/1"}
    with pytest.raises(CwdError, match="beginning was deleted"):
        replay(str(tmp_path))


def _write(path, rows, **header):
    text = json.dumps({"record_bytes": RECORD.itemsize, **header}).encode()
    path.write_bytes(LOG_MAGIC + len(text).to_bytes(4, "little") + text + rows.tobytes() + b"half a record")


def _record(kind, now_ns, **values):
    row = np.zeros(1, RECORD)
    row["kind"], row["now_ns"] = kind, now_ns
    for name, value in values.items():
        column = next((column for column, meaning in COLUMNS[kind].items() if meaning == name), name)
        row[column] = value
    return row


def test_a_rotated_log_reads_as_one_and_ids_may_come_again(tmp_path):
    first = np.concatenate([
        _record(Kind.ARRIVED, 100, request=1, client=3, deadline_ns=500, slo_ns=400, model=9),
        _record(Kind.TICK, 101),
        _record(Kind.ACTION, 101, action=77, action_kind=ACTION_EXEC, earliest_ns=110, expected_ns=50, rows=1),
        _record(Kind.DONE, 170, action=77, begin_ns=112, end_ns=168),
    ])
    second = np.concatenate([
        _record(Kind.REPLY, 171, request=1, client=3, action=77, total_ns=71, batch=1),
        _record(Kind.ARRIVED, 200, request=1, client=3, deadline_ns=300, slo_ns=100, model=9),
        _record(Kind.REPLY, 201, request=1, client=3, status=101),
        _record(Kind.REFUSED, 202, request=2, client=3, status=201),
        _record(Kind.ARRIVED, 203, request=4, client=3),
        _record(Kind.GAP, 204, lost=5),
    ])
    _write(tmp_path / "log-1.cwdlog", first, epoch=1)
    _write(tmp_path / "log-1.1.cwdlog", second, epoch=1)
    (tmp_path / "log-1.names").write_text("model 9 net/1\n")
    log = telemetry.read_log(tmp_path)
    assert len(log) == 10 and telemetry.gaps(log) == 5 and telemetry.read_names(tmp_path)["model"] == {9: "net/1"}
    rows = telemetry.requests_frame(log)
    assert rows["status"].tolist() == [0, 101, 201, telemetry.OPEN]
    assert rows["predicted_ns"].tolist() == [60, -1, -1, -1] and rows["reply_ns"][0] == 171
    actions = telemetry.actions_frame(log)
    assert actions["actual_ns"].tolist() == [56] and actions["predicted_ns"].tolist() == [50]


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(CwdError, match="no log here"):
        telemetry.read_log(tmp_path)
    (tmp_path / "log-2.cwdlog").write_bytes(b"nonsense")
    with pytest.raises(CwdError, match="not a cwd log"):
        telemetry.read_log(tmp_path)


def test_every_kind_of_record_says_what_its_columns_are():
    assert set(COLUMNS) == set(Kind)
    assert all(column in RECORD.names for columns in COLUMNS.values() for column in columns)
    assert ControllerConfig().credits > 0


@pytest.mark.parametrize("ordered", [True, False])
def test_records_are_taken_from_the_ring_on_any_processor(monkeypatch, ordered):
    if ordered and not carrier.ORDERED:
        pytest.skip("not for this processor")
    monkeypatch.setattr(carrier, "ORDERED", ordered)
    block, fd = sync.shared_block(sync.ring_bytes(RECORD, 8))
    ring = sync.make_ring(RECORD, 8, block)
    rows, row = np.zeros(5, RECORD), np.zeros(1, RECORD)
    take = carrier._taker(8, fd)
    for number in range(7):
        row["now_ns"] = number
        assert sync.ring_push(ring, row[0]) == 1
    assert take(rows) == 5 and rows["now_ns"].tolist() == [0, 1, 2, 3, 4]
    assert take(rows) == 2 and rows["now_ns"].tolist() == [5, 6, 2, 3, 4]
    assert take(rows) == 0
    os.close(fd)


def test_what_carries_the_log_loads_no_compiler():
    code = "import sys, cwd.controller.carrier; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
