"""The files of systemd/: sound units, hardened as far as each can be, with commands and settings that cwd takes.

What systemd itself finds is asked of `systemd-analyze`, on what `cwd install-units` writes for this installation.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")

from cwd.cli import daemons, root  # noqa: E402  (click comes with the server's extra)
from cwd.cli.main import run  # noqa: E402
from cwd.cluster import unit_files  # noqa: E402
from cwd.controller.config import ControllerConfig, load_config  # noqa: E402
from cwd.units import parse_duration_ns  # noqa: E402
from cwd.worker.options import WorkerOptions  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "systemd"
DAEMONS = ("cwd-controller", "cwd-worker", "cwd-worker@", "cwd-gateway")
#: what `systemd-analyze security` may find at most, in tenths
EXPOSURE_MAX = {"cwd-controller": 30, "cwd-gateway": 30, "cwd-worker": 45, "cwd-worker@": 45, "cwd-drain": 30}
SYSTEMD_MIN = 252
#: what a hardened unit usually has; each is set, or the unit says why not
USUAL = ("CapabilityBoundingSet", "NoNewPrivileges", "LockPersonality", "MemoryDenyWriteExecute", "PrivateDevices",
         "PrivateNetwork", "PrivateTmp", "PrivateUsers", "ProcSubset", "ProtectClock", "ProtectControlGroups", "ProtectHome",
         "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables", "ProtectProc", "ProtectSystem",
         "RemoveIPC", "RestrictAddressFamilies", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID",
         "SystemCallArchitectures", "SystemCallFilter", "IPAddressDeny", "DynamicUser", "MemoryMax")


def text_of(name: str) -> str:
    return (FOLDER / f"{name}.service").read_text()


def settings(name: str) -> dict[str, list[str]]:
    """The settings of a unit, of all its sections, each with all its values."""
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text_of(name), re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def arguments(name: str) -> list[str]:
    """Of the unit's command, with what systemd puts in for its specifiers."""
    (command,) = settings(name)["ExecStart"]
    program, *rest = shlex.split(command.replace("%i", "0").replace("%H", "host"))
    assert program == "/opt/cwd/.venv/bin/cwd"
    return rest


def _systemd_version() -> int:
    if shutil.which("systemd-analyze") is None:
        return 0
    done = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=False)
    found = re.match(r"systemd (\d+)", done.stdout)
    return int(found[1]) if found else 0


needs_systemd = pytest.mark.skipif(_systemd_version() < SYSTEMD_MIN, reason=f"no systemd-analyze {SYSTEMD_MIN} or later here")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes for this installation."""
    top = tmp_path_factory.mktemp("root")
    assert run(["install-units", "--root", str(top), "--json"]) == 0
    return top


@needs_systemd
def test_systemd_finds_no_fault(installed: Path) -> None:
    units = sorted((installed / "etc/systemd/system").iterdir())
    assert {path.name for path in units} >= {*(f"{name}.service" for name in DAEMONS), "cwd.target", "cwd.slice"}
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *map(str, units)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr


@needs_systemd
def test_systemd_finds_faults_where_there_are_some(installed: Path, tmp_path: Path) -> None:
    unit = tmp_path / "cwd-controller.service"
    unit.write_text((installed / "etc/systemd/system/cwd-controller.service").read_text().replace("Type=notify", "Typ=notify"))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert "Typ" in done.stderr


@needs_systemd
@pytest.mark.parametrize("name", EXPOSURE_MAX)
def test_exposure(installed: Path, name: str) -> None:
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX[name]}",
                           str(installed / f"etc/systemd/system/{name}.service")], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Overall exposure level" in done.stdout, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("name", DAEMONS)
def test_what_is_left_out_has_its_reason(name: str) -> None:
    found, said = settings(name), re.findall(r"^# - (.+?): \S.{10}", text_of(name), re.MULTILINE)
    reasons = {word.partition("=")[0] for words in said for word in words.split(", ")}
    for key in USUAL:
        assert key in found or key in reasons, key
    assert not {key for key in reasons & set(found) if key != "SystemCallFilter"}


def test_what_the_daemons_cannot_do_without() -> None:
    for name in DAEMONS[:3]:
        assert "MemoryDenyWriteExecute" not in settings(name), "numba makes code at run time"
    gpu = settings("cwd-worker@")
    assert "PrivateDevices" not in gpu and gpu["DevicePolicy"] == ["closed"] and "char-nvidia* rw" in gpu["DeviceAllow"]
    assert gpu["LimitMEMLOCK"] == ["infinity"]


@pytest.mark.parametrize("name", DAEMONS)
def test_how_each_is_started_watched_and_ended(name: str) -> None:
    found = settings(name)
    for key, value in (("Type", "notify"), ("NotifyAccess", "main"), ("KillMode", "mixed"), ("Restart", "on-failure"),
                       ("User", "cwd"), ("Group", "cwd"), ("Slice", "cwd.slice"),
                       ("PartOf", "cwd.target"), ("WantedBy", "cwd.target")):
        assert found[key] == [value], key
    assert 5 <= int(found["WatchdogSec"][0]) <= 60
    assert found["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    assert int(found["TimeoutStopSec"][0]) * 10**9 >= ControllerConfig().drain_ns + 10 * 10**9
    if name != "cwd-controller":
        assert any("cwd-controller.service" in value for value in found["After"])


def test_each_is_given_its_own_keys_alone() -> None:
    assert settings("cwd-controller")["LoadCredential"] == ["curve.key:cwd-curve.key"]
    for name, own in (("cwd-worker", "worker"), ("cwd-worker@", "worker"), ("cwd-gateway", "gateway")):
        assert settings(name)["LoadCredential"] == [f"curve.key:cwd-{own}.key", "server.key:cwd-server.key"]


def test_the_controller_is_drained_before_its_workers_stop() -> None:
    """Units stop in the reverse order of their start."""
    drain = settings("cwd-drain")
    assert settings("cwd-controller")["Wants"] == ["cwd-drain.service"] and drain["After"] == ["cwd-controller.service"]
    for name in ("cwd-worker", "cwd-worker@"):
        assert settings(name)["Before"] == ["cwd-drain.service"]
    assert drain["PartOf"] == ["cwd.target"] and "WantedBy" not in drain


@pytest.mark.parametrize("name", DAEMONS)
def test_the_command_is_one_that_cwd_takes(name: str) -> None:
    option, config, verb, *rest = arguments(name)
    assert (option, config) == ("--config", "/etc/cwd/cwd.toml")
    if verb not in root.COMMANDS:
        pytest.skip(f"this cwd has no {verb}")
    command = root.cwd.get_command(root.cwd.make_context("cwd", [], resilient_parsing=True), verb)
    assert command is not None
    given = command.make_context(verb, rest).params
    if name == "cwd-worker@":
        assert (given["device"], given["name"]) == ("cuda:0", "host-gpu0")


# the example configuration

_SETTING = re.compile(r"^(#?)([a-z_]+) = (.+)$", re.MULTILINE)


def example() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "cwd.toml").read_text())


def example_text(own: bool = True) -> str:
    """The example with everything that is commented out, and what it sets itself only if `own`."""
    text = (FOLDER / "cwd.toml").read_text().replace("#[", "[")
    return _SETTING.sub(lambda found: f"{found[2]} = {found[3]}" if own or found[1] else "", text)


@pytest.mark.parametrize("table, module, record, elsewhere", [
    ("controller", "cwd.controller.config", "ControllerConfig", set()),
    ("worker", "cwd.worker.options", "WorkerOptions", {"device", "name"}),
    ("gateway", "cwd.gateway.options", "GatewayOptions", set())])
def test_the_example_has_every_setting(table: str, module: str, record: str, elsewhere: set[str]) -> None:
    if table not in root.COMMANDS:
        pytest.skip(f"this cwd has no {table}")
    settings_of: Any = getattr(importlib.import_module(module), record)
    names = {daemons.plain_name(field.name) for field in dataclasses.fields(settings_of)}
    assert set(tomllib.loads(example_text())[table]) == names - elsewhere
    for name in elsewhere:
        assert f"--{name}" in arguments(f"cwd-{table}") and f"--{name}" in arguments(f"cwd-{table}@")


def test_the_examples_comments_are_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "all.toml"
    file.write_text(example_text(own=False))
    assert load_config({}, {}, file) == ControllerConfig()
    told = daemons.worker.make_context("worker", [], default_map=tomllib.loads(file.read_text())["worker"]).params
    names = {daemons.plain_name(field.name): field.name for field in dataclasses.fields(WorkerOptions)}
    given = {names[name]: value for name, value in told.items() if value is not None}
    assert dataclasses.replace(WorkerOptions(device="emulated", name="w"), **given) == WorkerOptions(device="emulated", name="w")


def test_the_example_agrees_with_the_units() -> None:
    config = load_config({}, {}, FOLDER / "cwd.toml")
    unit = settings("cwd-controller")
    assert config.run_dir == f"/run/{unit['RuntimeDirectory'][0]}"
    state = {f"/var/lib/{folder}" for folder in unit["StateDirectory"][0].split()}
    assert {config.state_dir, config.repository} <= state
    assert config.endpoint("workers") == example()["worker"]["endpoint"]
    assert example()["worker"]["repo"] == config.repository
    assert parse_duration_ns(f"{unit['TimeoutStopSec'][0]}s") > config.drain_ns
    assert set(example()) <= set(root.COMMANDS)


# installing them


def test_dry_run_writes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["install-units", "--root", str(tmp_path), "--dry-run"]) == 0
    out = capfd.readouterr().out
    assert f"# {tmp_path}/etc/systemd/system/cwd-controller.service\n" in out and "ExecStart=" in out
    assert run(["install-units", "--root", str(tmp_path), "--dry-run", "--json"]) == 0
    assert list(tmp_path.iterdir()) == []


def test_only_its_own_files_are_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    again = ["install-units", "--root", str(tmp_path)]
    assert run(again) == 0
    out = capfd.readouterr().out
    assert "wrote" in out and "systemctl" not in out, "the commands are for this machine, not for an image"
    unit, other, config = (tmp_path / "etc" / name for name in (
        "systemd/system/cwd-worker@.service", "systemd/system/cwd-gateway.service", "cwd/cwd.toml"))
    sound = unit.read_text()
    unit.write_text(sound + "# more\n")
    other.write_text("[Service]\n")
    config.write_text("# mine\n")
    assert run(again) == 1
    assert "cwd-gateway.service is not of" in capfd.readouterr().err
    assert unit.read_text() == sound + "# more\n", "nothing is written if something cannot be"
    assert run([*again, "--force"]) == 0
    assert unit.read_text() == sound and other.read_text().startswith(unit_files.MARKER)
    assert config.read_text() == "# mine\n", "never, not even by force"
    assert not [path for path in tmp_path.rglob(".*")]


def machine(**changes: Any) -> unit_files.Machine:
    return dataclasses.replace(unit_files.Machine(["/opt/cwd/bin/cwd"], [Path("/opt/cwd"), Path("/usr")]), **changes)


def test_paths_and_user_are_this_machines() -> None:
    found = unit_files.files(machine(program=["/opt/my cwd/100%/python", "-m", "cwd"], user="ml", config="/etc/x y.toml"),
                             Path("/r"))
    texts = {path.name: text for path, text in found.items()}
    unit = texts["cwd-controller.service"]
    assert '\nExecStart="/opt/my cwd/100%%/python" -m cwd --config "/etc/x y.toml" controller\n' in unit
    assert "\nUser=ml\nGroup=ml\n" in unit and "\nProtectHome=yes\n" in unit
    assert not re.search(r"=cwd$", unit.replace("RuntimeDirectory=cwd", "").replace("CacheDirectory=cwd", ""), re.MULTILINE)
    users, folders = (found[Path("/r/etc") / name] for name in ("sysusers.d/cwd.conf", "tmpfiles.d/cwd.conf"))
    assert "\nu ml - " in users
    assert "\nd /var/lib/cwd/models 2770 ml ml -\n" in folders and "cwd cwd" not in folders
    assert Path("/r/etc/x y.toml") in found


def test_an_installation_in_a_home_can_be_read() -> None:
    at_home = machine(folders=[Path("/home/me/cwd/.venv"), Path("/usr")])
    for path, text in unit_files.files(at_home, Path("/")).items():
        if path.stem in DAEMONS:
            assert "\nProtectHome=read-only\n" in text and "ProtectHome=yes" not in text
    assert "/home/me" in unit_files.notes(at_home)[0] and unit_files.notes(machine()) == []
    assert "do not see /tmp/venv" in unit_files.notes(machine(folders=[Path("/tmp/venv")]))[0]


@pytest.mark.parametrize("wrong", [["--user", "Root!"], ["--user", ""], ["--config", "cwd.toml"], ["--config", "/etc/a\nb"]])
def test_what_no_unit_can_say(tmp_path: Path, capfd: pytest.CaptureFixture[str], wrong: list[str]) -> None:
    assert run(["install-units", "--root", str(tmp_path), *wrong]) == 1
    assert len(capfd.readouterr().err.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_there_is_one_copy_of_the_texts() -> None:
    assert (ROOT / "cwd" / "systemd").is_symlink() and unit_files.SOURCE.resolve() == FOLDER


def test_a_package_has_them(tmp_path: Path) -> None:
    """What `pip install .` builds; an installation for development finds the folder itself."""
    pytest.importorskip("setuptools")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("cwd", "systemd"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "build_py", "--build-lib", "built"],
                   cwd=tmp_path, capture_output=True, check=True)
    built = tmp_path / "built" / "cwd" / "systemd"
    assert {path.name: path.read_text() for path in built.iterdir() if path.is_file()} == {
        path.name: path.read_text() for path in FOLDER.iterdir() if path.is_file()}
