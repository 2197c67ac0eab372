"""The units under a real systemd, with all that they forbid: installed, started, reloaded, killed and stopped as
docs/operating.md says.

Each test goes on where the one before it ended, since a start takes seconds. Nothing here looks at milliseconds.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from peers import PAGE_BYTES, make_repository
from pid1 import CWD, PYTHON, SHARED, Pid1, share_kernels, unavailable

from cwd.errors import Code

pytest.importorskip("torch")
WHY = unavailable()
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(WHY is not None, reason=str(WHY))]

WORKERS = ("cwd-worker@0", "cwd-worker")
UNITS = ("cwd-controller", "cwd-gateway", *WORKERS)
#: of the units' 20 s and 30 s, so that nobody waits for that
WATCHDOG_S = 4
#: an emulated GPU in the place of a real one; nothing else of the unit is changed
EMULATED = f"""[Service]
ExecStartPre=
ExecStart=
ExecStart={CWD} --config /etc/cwd/cwd.toml worker --device emulated:2 --name %H-gpu%i
"""
CLIENT = ("env", "CWD_RUN_DIR=/run/cwd", "CWD_KEY=/etc/cwd/keys/secret/ann.key_secret", "CWD_SERVER_KEY=/etc/cwd/keys/server.key")
#: a closed loop over the unit's socket, until a line comes; then how many were sent, and how each ended
LOAD = """
import json, sys
sys.path.insert(0, "/opt/source/tests/e2e")
import cwd
from load import Load
class Machine:
    client = staticmethod(cwd.Client)
with Load(Machine) as load:
    print("flows", flush=True)
    sys.stdin.readline()
ended = {int(code): count for code, count in load.ended.items() if not isinstance(code, tuple)}
print(json.dumps({"sent": load.sent, "ended": ended}))
"""
#: a request each for the row that it is given; the answer is printed
HTTP = """
import json, sys, urllib.request
x = {"name": "x", "datatype": "FP32", "shape": [1, 16], "data": json.loads(sys.argv[1])}
body = json.dumps({"inputs": [x], "parameters": {"timeout": 10_000_000}})
with urllib.request.urlopen("http://127.0.0.1:8000/v2/models/real/infer", body.encode()) as answer:
    print(json.load(answer)["outputs"][0]["data"])
"""
NATIVE = """
import json, sys
import cwd, numpy
with cwd.Client() as client:
    print(client.infer("real", numpy.array(json.loads(sys.argv[1]), numpy.float32), "10s").output.tolist())
"""
#: of the model that the CPU worker alone can run, so that its answers are computed
WIDTHS = (16, 8, 4)
#: how the requests of the latest log ended
LOGGED = """
import collections, json
from cwd.controller import telemetry
rows = telemetry.requests_frame(telemetry.read_log("/var/lib/cwd/log"))
print(json.dumps(collections.Counter(rows["status"].tolist())))
"""


class Loaded:
    """`LOAD` in there, for a `with` block; `ended` counts by code after it."""

    def __init__(self, machine: Pid1) -> None:
        self._process = machine.start(*CLIENT, PYTHON, "-c", LOAD)
        self.ended: Counter[Code] = Counter()
        self.sent = 0

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "flows\n"
        return self

    def __exit__(self, *exception: object) -> None:
        out, _ = self._process.communicate("enough\n", timeout=90)
        found = json.loads(out)
        self.sent, self.ended = found["sent"], Counter({Code(int(code)): count for code, count in found["ended"].items()})


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pid1]:
    from cwd.models import profile
    from cwd.models.importers import add_factory
    from cwd.models.zoo import mlp_options

    folder = tmp_path_factory.mktemp("pid1")
    repository = make_repository(folder / "shared" / "models", exec_ns=500_000)
    same = next(entry for entry in repository.entries() if entry.manifest.name == "same-000")
    profile.measure_cpu(repository, same, repeats=5, page_bytes=PAGE_BYTES)
    options = mlp_options(WIDTHS)
    real = add_factory(repository, "real", options.pop("factory"), options.pop("args"), options, seed=5)[0]
    profile.measure_cpu(repository, real, repeats=5, page_bytes=PAGE_BYTES)
    share_kernels(folder / "shared" / "numba")
    with Pid1(folder) as machine:
        yield machine


def main_pids(machine: Pid1) -> dict[str, str]:
    return {unit: machine.show(unit, "MainPID")["MainPID"] for unit in UNITS}


def all_active(machine: Pid1) -> bool:
    wanted = {"ActiveState": "active", "SubState": "running"}
    return all(machine.show(unit, *wanted) == wanted for unit in UNITS)


def answers(machine: Pid1) -> None:
    """A request over each way in has its answer, which is what the model says of its own input."""
    for number, way in enumerate(((PYTHON, "-c", HTTP), (*CLIENT, PYTHON, "-c", NATIVE))):
        row = [(number + place) / 16 for place in range(16)]
        found = json.loads(machine.run(*way, json.dumps(row)).stdout)
        assert np.abs(np.array(found) - expected(machine, row)).max() < 1e-5, way


def expected(machine: Pid1, row: list[float]) -> np.ndarray:
    """What the model `real` says of a row, computed here."""
    import torch
    from safetensors.torch import load_file

    from cwd.models.repository import Repository
    from cwd.models.zoo import mlp

    module = mlp(list(WIDTHS))
    module.load_state_dict(load_file(Repository(machine.shared / "models").get("real").weights_path))
    with torch.inference_mode():
        return module(torch.tensor([row]))[0].numpy()


def status(machine: Pid1) -> str:
    """The controller's line in `systemctl status`."""
    return machine.show("cwd-controller", "StatusText")["StatusText"]


def cluster_facts(machine: Pid1) -> dict[str, Any]:
    """What `cwd status` says."""
    found: dict[str, Any] = json.loads(machine.run(*CLIENT, CWD, "status", "--json").stdout)
    return found


def gpus(machine: Pid1) -> int:
    return len(cluster_facts(machine)["workers"])


def test_what_is_installed(machine: Pid1) -> None:
    machine.run(CWD, "install-units")
    machine.run("systemd-sysusers")
    machine.run("systemd-tmpfiles", "--create", "cwd.conf")
    for path, wanted in (("/var/lib/cwd", "750 cwd cwd"), ("/var/lib/cwd/models", "2770 cwd cwd"),
                         ("/var/cache/cwd", "750 cwd cwd"), ("/etc/cwd", "755 root root")):
        assert machine.run("stat", "-c", "%a %U %G", path).stdout.strip() == wanted, path
    machine.run("sed", "-i", 's,^#page = .*,page = "64KiB",; s,^pages = .*,pages = 16,; s,^#keys = .*,keys = "/etc/cwd/keys",',
                "/etc/cwd/cwd.toml")
    machine.run("sh", "-c", f"cp -r {SHARED}/models/. /var/lib/cwd/models && cp -r {SHARED}/numba /var/cache/cwd && "
                "chown -R cwd:cwd /var/lib/cwd/models /var/cache/cwd")
    _credentials(machine)
    machine.write("/etc/systemd/system/cwd-worker@0.service.d/emulated.conf", EMULATED)
    for unit in ("cwd-controller", "cwd-gateway", "cwd-worker@0"):
        machine.write(f"/etc/systemd/system/{unit}.service.d/watchdog.conf", f"[Service]\nWatchdogSec={WATCHDOG_S}\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("enable", "cwd.target", *UNITS)


def _credentials(machine: Pid1) -> None:
    """A key for each daemon, handed over by systemd alone: no other copy of the secret ones is left."""
    for name, *roles in (("gateway", "client", "admin"), ("worker", "worker"), ("ann", "client", "admin")):
        machine.run(CWD, "keys", "new", name, "--dir", "/etc/cwd/keys", *(word for role in roles for word in ("--role", role)))
    machine.run("sh", "-ec", "mkdir -m 700 /etc/credstore; cd /etc/cwd/keys; cp server.key /etc/credstore/cwd-server.key; "
                "mv server.key_secret /etc/credstore/cwd-curve.key; "
                "for who in worker gateway; do mv secret/$who.key_secret /etc/credstore/cwd-$who.key; done")


def test_started_is_warm(machine: Pid1) -> None:
    """`systemctl start` comes back when everything serves: the first requests are answered, all workers are there."""
    machine.systemctl("start", "cwd.target")
    assert all_active(machine) and gpus(machine) == 3
    answers(machine)
    for unit in UNITS:
        facts = machine.show(unit, "NRestarts", "ControlGroup", "StatusText")
        assert facts["NRestarts"] == "0" and facts["ControlGroup"].startswith("/cwd.slice/"), facts
        assert facts["StatusText"] in machine.systemctl("status", unit)
    assert machine.show("cwd-gateway", "StatusText")["StatusText"].startswith("serving on http://127.0.0.1:8000")
    machine.until(lambda: status(machine).startswith("7 models, 3 GPUs, "), "its status")
    assert machine.show("cwd.slice", "ActiveState") == {"ActiveState": "active"}


def test_what_the_units_forbid_is_in_force(machine: Pid1) -> None:
    user = machine.run("id", "-u", "cwd").stdout.strip()
    for unit, pid in main_pids(machine).items():
        text = machine.run("cat", f"/proc/{pid}/status").stdout
        facts = {key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines())}
        assert facts["Uid"] == [user] * 4 and facts["CapBnd"] == ["0000000000000000"], unit
        assert facts["NoNewPrivs"] == ["1"] and facts["Seccomp"] == ["2"], unit
        # its own tree: nothing can be written but its own folders, nothing of a home can be read
        mounts = dict(line.split()[4:6] for line in machine.run("cat", f"/proc/{pid}/mountinfo").stdout.splitlines())
        assert mounts["/"].startswith("ro") and mounts["/home"].startswith("ro") and mounts["/root"].startswith("ro"), unit
        assert (unit == "cwd-gateway") == ("/var/cache/cwd" not in mounts), unit
        if unit != "cwd-gateway":
            assert mounts["/var/cache/cwd"].startswith("rw"), unit


def test_the_journal_has_fields(machine: Pid1) -> None:
    for unit in UNITS:
        logger = "cwd.worker" if unit in WORKERS else unit.replace("-", ".")
        entries = machine.journal("-u", unit, f"LOGGER={logger}", "PRIORITY=6")
        assert entries and all(entry["CODE_FILE"].startswith("/opt/source/cwd/") for entry in entries), unit
        assert not any(logger in entry["MESSAGE"] for entry in entries), "it is a field of its own"
        assert {entry["_SYSTEMD_UNIT"] for entry in entries} == {f"{unit}.service"}
    assert any(entry["MESSAGE"].startswith("serving 7 models") for entry in machine.journal("-u", "cwd-controller"))


def test_reload(machine: Pid1) -> None:
    before = main_pids(machine)
    machine.run("sed", "-i", 's,^#drain = "30s",drain = "20s",; s,^#credits = .*,credits = 7,', "/etc/cwd/cwd.toml")
    machine.systemctl("reload", *UNITS)

    def said(unit: str, text: str) -> bool:
        return any(text in entry["MESSAGE"] for entry in machine.journal("-u", unit, "-t", "cwd"))

    machine.until(lambda: said("cwd-controller", "reloaded drain_ns: 30s -> 20s"), "a reload")
    assert said("cwd-controller", "credits: 1024 -> 7 needs a restart")
    machine.until(lambda: all(said(unit, "reloaded") for unit in UNITS), "a reload of all")
    machine.run("sed", "-i", "s,^credits = .*,#credits = 1024,", "/etc/cwd/cwd.toml")
    machine.until(lambda: all_active(machine), "serving again")
    assert main_pids(machine) == before
    answers(machine)


def test_a_worker_is_restarted_alone(machine: Pid1) -> None:
    before = main_pids(machine)
    with Loaded(machine) as load:
        machine.systemctl("restart", "cwd-worker@0")
    after = main_pids(machine)
    assert {unit for unit in UNITS if before[unit] != after[unit]} == {"cwd-worker@0"}
    assert sum(load.ended.values()) == load.sent and load.ended[Code.OK] > 200
    assert gpus(machine) == 3


@pytest.mark.parametrize("number, result, said", [("KILL", "signal", "status=9/KILL"), ("STOP", "watchdog", "Watchdog timeout")])
def test_what_dies_or_hangs_is_started_again(machine: Pid1, number: str, result: str, said: str) -> None:
    """All but the CPU worker at once. One that hangs leaves the stacks of its threads."""
    before, victims = main_pids(machine), UNITS[:3]
    restarts = {unit: int(machine.show(unit, "NRestarts")["NRestarts"]) for unit in victims}
    for unit in victims:
        machine.systemctl("kill", "--kill-whom=main", f"--signal={number}", unit)
    machine.until(lambda: all(int(machine.show(unit, "NRestarts")["NRestarts"]) == restarts[unit] + 1 for unit in victims),
                  "three restarts")
    machine.until(lambda: all_active(machine), "serving again")
    machine.until(lambda: status(machine).startswith("7 models, 3 GPUs, "), "all workers")
    machine.until(lambda: cluster_facts(machine)["servable"] == 7, "all models")
    after = main_pids(machine)
    assert {unit for unit in UNITS if before[unit] == after[unit]} == {"cwd-worker"}
    for unit in victims:
        words = [entry["MESSAGE"] for entry in machine.journal("-u", unit)]
        assert any(said in text for text in words) and f"{unit}.service: Failed with result '{result}'." in words
        assert number == "KILL" or "Fatal Python error: Aborted" in words
    answers(machine)


def test_stopped_under_load_everything_is_answered(machine: Pid1) -> None:
    """First the gateway, then the controller, which answers what it has while its workers are there, and only then these."""
    with Loaded(machine) as load:
        machine.systemctl("stop", "cwd.target", "cwd-*")  # with the target's name alone it does not wait for the units
    for unit in UNITS:
        facts = machine.show(unit, "ActiveState", "Result", "ExecMainCode", "ExecMainStatus")
        assert facts == {"ActiveState": "inactive", "Result": "success", "ExecMainCode": "0", "ExecMainStatus": "0"}, (unit, facts)
    stopped = [entry["UNIT"] for entry in machine.journal("_PID=1") if entry["MESSAGE"].startswith("Stopped cwd-")]
    assert [name.partition(".")[0] for name in stopped[-5:-2]] == ["cwd-gateway", "cwd-controller", "cwd-drain"]
    assert {name.partition(".")[0] for name in stopped[-2:]} == set(WORKERS)
    # refused is only what came after that, and lost what never reached it; nothing failed for want of a worker
    assert sum(load.ended.values()) == load.sent and load.ended[Code.OK] > 200
    assert set(load.ended) <= {Code.OK, Code.DRAINING, Code.CONTROLLER_LOST}, load.ended
    logged = {Code(int(code)): count for code, count in json.loads(machine.run(PYTHON, "-c", LOGGED).stdout).items()}
    assert set(logged) <= {Code.OK, Code.DRAINING} and logged[Code.OK] >= load.ended[Code.OK]
    assert machine.run("sh", "-c", "ls /run/cwd", check=False).returncode != 0, "the sockets' folder is gone"


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """Not even where a test fails; the machine has no user, no unit, no mount and no cgroup more than before."""
    with pytest.raises(ZeroDivisionError), Pid1(tmp_path) as other:
        other.run(CWD, "install-units")
        other.run("systemd-sysusers")
        pid, cgroup = other.pid, other.cgroup
        sleeper: Any = other.start("sleep", "1000")
        assert cgroup.is_dir() and other.run("id", "-u", "cwd").returncode == 0
        raise ZeroDivisionError
    assert sleeper.wait(10) != 0 and not cgroup.exists() and not Path(f"/proc/{pid}").exists()
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"boot.log", "shared"}
    if shutil.which("getent") and subprocess.run(["getent", "passwd", "cwd"], capture_output=True, check=False).returncode:
        assert not Path("/etc/systemd/system/cwd.target").exists()
