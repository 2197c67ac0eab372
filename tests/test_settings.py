"""What SIGHUP may change while a daemon runs, and that nothing it finds can harm the daemon."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from cwd.controller.config import RELOADABLE, ControllerConfig, load_config
from cwd.errors import CwdError
from cwd.settings import reloaded, set_log_level
from cwd.worker import options

LOG = logging.getLogger("cwd.test")


def read(file: Path, text: str) -> ControllerConfig:
    file.write_text(text)
    return load_config({"run_dir": "/x"}, {}, file)


def test_only_what_may_change_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "c.toml"
    old = read(file, '[controller]\ndrain = "30s"\ncredits = 7\n')
    new = reloaded(old, lambda: read(file, '[controller]\ndrain = "5s"\nheld_max = "1MiB"\ncredits = 9\npolicy = "fifo"\n'),
                   RELOADABLE, LOG)
    assert new == dataclasses.replace(old, drain_ns=5_000_000_000, held_max_bytes=1 << 20)
    told = sorted((record.levelname, record.getMessage()) for record in caplog.records)
    assert told == [("INFO", "reloaded drain_ns: 30s -> 5s"), ("INFO", "reloaded held_max_bytes: 1GiB -> 1MiB"),
                    ("WARNING", "credits: 7 -> 9 needs a restart"), ("WARNING", "policy: 'cwd' -> 'fifo' needs a restart")]
    caplog.clear()
    assert reloaded(new, lambda: new, RELOADABLE, LOG) == new
    assert [record.getMessage() for record in caplog.records] == ["reloaded, nothing has changed"]


@pytest.mark.parametrize("text", [
    "[controller", "\udce4", "controller = 3", "[controller]\ndrain = 'soon'", "[controller]\nnosuch = 1",
    "[controller]\nlog_level = 'loud'", "[controller]\ncredits = -1", "[controller]\ndrain = ['1s']",
    "[controller]\ndrain = {}", "[controller]\ndrain = inf", "[controller]\ndrain = nan", "[controller]\nheld_max = 1e400",
    "[controller]\nheld_max = 9223372036854775808", "[controller]\ndrain = '9999999999h'", "[[controller]]\ndrain = 1",
])
def test_a_bad_file_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    file = tmp_path / "c.toml"
    old = read(file, '[controller]\ndrain = "7s"\n')
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert reloaded(old, lambda: load_config({"run_dir": "/x"}, {}, file), RELOADABLE, LOG) is old
    (record,) = caplog.records
    assert record.levelname == "ERROR" and "\n" not in record.getMessage() and str(file) in record.getMessage()


def test_no_file_changes_nothing(tmp_path: Path) -> None:
    old = ControllerConfig(drain_ns=7)
    assert reloaded(old, lambda: load_config({}, {}, tmp_path / "nosuch"), RELOADABLE, LOG) is old
    assert reloaded(old, lambda: load_config({}, {}, tmp_path), RELOADABLE, LOG) is old


def test_what_may_change_exists() -> None:
    assert set(RELOADABLE) <= {field.name for field in dataclasses.fields(ControllerConfig)}
    assert set(options.RELOADABLE) <= {field.name for field in dataclasses.fields(options.WorkerOptions)}


def test_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "level", root.level)
    set_log_level("error")
    assert root.level == logging.ERROR
    with pytest.raises(CwdError, match="loud"):
        set_log_level("loud")
    with pytest.raises(CwdError, match="LOUD"):
        options.WorkerOptions(device="emulated", log_level="LOUD")
