"""The units in systemd/: their commands are ones that the command line takes, and they ask for nothing that it lacks."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("click")

from cwd.cli import daemons  # noqa: E402  (click comes with the server's extra)

FOLDER = Path(__file__).resolve().parents[1] / "systemd"
UNITS = {"cwd-controller": daemons.controller, "cwd-worker": daemons.worker}


def settings(name: str) -> dict[str, str]:
    """The settings of a unit, of all its sections."""
    found = re.findall(r"^(\w+)=(.*)$", (FOLDER / f"{name}.service").read_text(), re.MULTILINE)
    assert len(found) == len(dict(found)), "a setting stands twice"
    return dict(found)


@pytest.mark.parametrize("name", UNITS)
def test_the_command_is_one_that_cwd_takes(name: str) -> None:
    program, verb, *arguments = shlex.split(settings(name)["ExecStart"])
    assert (program, f"cwd-{verb}") == ("/usr/bin/cwd", name)
    UNITS[name].make_context(name, arguments, resilient_parsing=False)


def test_both_share_user_state_and_socket() -> None:
    controller, worker = map(settings, UNITS)
    for key in ("User", "Group", "StateDirectory", "CacheDirectory", "Environment"):
        assert controller[key] == worker[key]
    folder = re.search(r"--run-dir (\S+)", controller["ExecStart"])
    assert folder is not None and f"ipc://{folder[1]}/workers.sock" in worker["ExecStart"]
    assert folder[1] == f"/run/{controller['RuntimeDirectory']}"


@pytest.mark.parametrize("name", UNITS)
def test_numba_may_make_code(name: str) -> None:
    assert settings(name).get("MemoryDenyWriteExecute", "no") == "no"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault(name: str) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(FOLDER / f"{name}.service")], capture_output=True, text=True,
                          check=False)
    faults = [line for line in done.stderr.splitlines() if "/usr/bin/cwd is not executable" not in line and name in line]
    assert not faults, "\n".join(faults)
