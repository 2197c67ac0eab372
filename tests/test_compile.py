"""`cwd compile`: one at a time, with progress, and old code goes."""

import fcntl
import os
import threading
import time
from pathlib import Path

import pytest

from cwd import compile as compiling
from cwd.errors import CwdError
from cwd.jit import JIT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An own folder in the place of the cache, for the lock and the pruning; kernels keep theirs."""
    monkeypatch.setattr(compiling, "cache_dir", lambda: tmp_path / "numba")
    return tmp_path / "numba"


def test_reports_each_step(folder: Path) -> None:
    lines: list[str] = []
    facts = compiling.compile_all(lines.append, (("cwd.wire.kernel:warm",),))
    assert list(facts["kernels"]) == (["cwd.wire.kernel:warm"] if JIT else [])
    assert facts["cache_dir"] == str(folder) and facts["seconds"] >= 0
    assert lines[-1].startswith("compiled in")


@pytest.mark.skipif(not JIT, reason="nothing is compiled without the JIT")
def test_a_stage_of_several_is_called_in_processes(folder: Path) -> None:
    """And what goes wrong in one of them is told."""
    names = ("cwd.wire.kernel:warm", "os:getpid")
    facts = compiling.compile_all(lambda line: None, (names,))
    assert tuple(facts["kernels"]) == names
    with pytest.raises(AttributeError, match="nosuch"):
        compiling.compile_all(lambda line: None, (("os:getpid", "os:nosuch"),))


def test_waits_for_another_process(folder: Path) -> None:
    folder.mkdir()
    lines: list[str] = []
    with open(folder / "compile.lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        thread = threading.Thread(target=compiling.compile_all, args=(lines.append, ()))
        thread.start()
        end = time.monotonic() + 20
        while not lines and time.monotonic() < end:
            time.sleep(0.01)
        assert lines == ["another process is compiling: waiting for it"]
        assert thread.is_alive()
    thread.join(60)
    assert lines[-1].startswith("compiled in")


def test_prunes_what_is_old_and_not_the_newest(folder: Path) -> None:
    for name, age_s in (("a.b-1", 90), ("a.b-2", 80), ("a.b-3", 1), ("c-1", 90)):
        (folder / name).mkdir(parents=True)
        when = time.time() - age_s * 24 * 3600
        os.utime(folder / name, (when, when))
    compiling.compile_all(lambda line: None, ())
    assert sorted(path.name for path in folder.glob("*-*")) == ["a.b-3", "c-1"]


def test_unwritable_cache_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiling, "cache_dir", lambda: tmp_path / "file")
    with pytest.raises(CwdError, match="cannot write the kernel cache"):
        compiling.compile_all(lambda line: None, ())
