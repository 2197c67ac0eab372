"""A real systemd as PID 1 of namespaces of its own, with an installation of this cwd in /opt, for tests to be its operator.

It has its own processes, mounts, network, names and cgroup. /etc and /var are overlays whose changes go to memory; /run, /tmp,
/home, /dev and /opt are empty at first; /sys and /proc/sys can only be read. So nothing that is done in there changes the
machine, and the end of PID 1 is the end of everything but its cgroup, which is removed. Where the test itself is killed PID 1
ends as well, and the next one removes the cgroup. journald runs; udev, D-Bus and whatever else a machine boots do not.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from cwd import jit

ROOT = Path(__file__).resolve().parents[2]
SYSTEMD = next((path for path in (Path("/lib/systemd/systemd"), Path("/usr/lib/systemd/systemd")) if path.exists()), None)
SYSTEMD_MIN = 252
PATIENCE_S = 30.0
#: where it sees the folder that it was given, and its installation
SHARED, PYTHON, CWD = "/srv", "/opt/cwd/.venv/bin/python", "/opt/cwd/.venv/bin/cwd"
_TOOLS = ("systemctl", "journalctl", "systemd-sysusers", "systemd-tmpfiles", "unshare", "nsenter", "setpriv", "ip", "mount")
_ENVIRONMENT = {"PATH": "/opt/cwd/.venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8",
                "SYSTEMD_PAGER": "", "SYSTEMD_COLORS": "0"}
_CGROUPS, _numbers = "cwd-pid1-", itertools.count()
#: seconds before what has hung is killed; a start compiles kernels where none could be shared
_COMMAND_S = 300.0

#: $1 folder, $2 prefix of the base Python, $3 its program there, $4 site-packages, $5 cwd's source, $6 systemd
_BOOT = r"""
set -eu
top=$1 prefix=$2 python=$3 packages=$4 source=$5 systemd=$6
mount --make-rprivate /
mount -t proc proc /proc
umount -R /sys/fs/cgroup 2>/dev/null || true
mount -t cgroup2 none /sys/fs/cgroup
# the kernel's settings are the machine's
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
mount -o remount,bind,ro /sys

mkdir -p "$top/memory"
mount -t tmpfs -o mode=755 tmpfs "$top/memory"
cd "$top/memory"
mkdir opt opt/cwd opt/python opt/packages opt/source dev
for folder in etc var; do
    mkdir $folder.new $folder.work
    mount -t overlay -o "lowerdir=/$folder,upperdir=$PWD/$folder.new,workdir=$PWD/$folder.work" overlay /$folder
done
mount --bind "$prefix" opt/python
mount --bind "$packages" opt/packages
mount --bind "$source" opt/source
mount -o remount,bind,ro opt/python
mount -o remount,bind,ro opt/packages
mount -o remount,bind,ro opt/source
mount --bind "$top/shared" /srv

# devices without a disk among them
mkdir dev/pts dev/shm dev/mqueue
for device in null zero full random urandom tty; do touch dev/$device; mount --bind /dev/$device dev/$device; done
touch dev/console; mount --bind dev/null dev/console
mount -t devpts -o newinstance,mode=620,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs -o mode=1777 tmpfs dev/shm

mount --rbind opt /opt
mount --rbind dev /dev
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /home
# it lies in /tmp perhaps, and is needed no more by its name
mount -t tmpfs -o mode=1777 tmpfs /tmp
cd /
ip link set lo up

# of what the distribution would start, nothing; journald keeps to itself
for wants in /lib/systemd/system/*.wants; do mount -t tmpfs tmpfs "$wants"; done
rm -rf /etc/systemd/system /etc/machine-id
mkdir -p /etc/systemd/system /etc/systemd/journald.conf.d
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
printf '[Journal]\nStorage=volatile\nAudit=no\nReadKMsg=no\nRateLimitIntervalSec=0\nForwardToConsole=no\n' \
    > /etc/systemd/journald.conf.d/quiet.conf
printf '[Unit]\nRequires=basic.target systemd-journald.service\nAfter=basic.target\nAllowIsolate=yes\n' \
    > /etc/systemd/system/trial.target
# their drivers are the machine's
ln -s /dev/null /etc/systemd/system/modprobe@.service
echo trial > /etc/hostname

# an installation such as docs/operating.md describes, but made of the packages that are here
/opt/python/$python -m venv --without-pip /opt/cwd/.venv
printf '/opt/source\n/opt/packages\n' > "$(echo /opt/cwd/.venv/lib/python3*/site-packages)/here.pth"
printf '#!/opt/cwd/.venv/bin/python\nfrom cwd.cli.main import main\n\nmain()\n' > /opt/cwd/.venv/bin/cwd
chmod 755 /opt/cwd/.venv/bin/cwd
# a Python that was built for a folder which daemons do not see finds its library like that
echo /opt/python/lib > /etc/ld.so.conf.d/cwd-trial.conf
ldconfig

# as PID 1 of a machine has it; in what it takes for a container it leaves that to others. Credentials come by such a mount
mount --make-rshared /
exec env -i container=lxc PATH="$PATH" "$systemd" --system --unit=trial.target --log-target=journal --show-status=0
"""


class Pid1:
    """A context manager; `folder` is empty, and its `shared` is /srv in there. `pid` is that of PID 1, seen from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.shared = folder, folder / "shared"
        root = _cgroup_root()
        assert root is not None, "see unavailable()"
        self.cgroup = root / f"{_CGROUPS}{os.getpid()}-{next(_numbers)}"
        self._outer: subprocess.Popen[bytes] | None = None
        self.pid = 0

    def __enter__(self) -> Self:
        self.shared.mkdir(exist_ok=True)
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _boot(self) -> None:
        for left in self.cgroup.parent.glob(f"{_CGROUPS}*"):  # of runs that were killed
            if not Path(f"/proc/{left.name.removeprefix(_CGROUPS).partition('-')[0]}").exists():
                _remove_cgroup(left)
        self.cgroup.mkdir()
        base = Path(sys.base_prefix).resolve()
        python = Path(getattr(sys, "_base_executable", sys.executable)).resolve().relative_to(base)
        arguments = [self.folder, base, python, _packages(), ROOT, SYSTEMD]
        # PID 1 kills what else is in its cgroup when it stops, so it has one; and it ends with whoever started it
        enter = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self.cgroup),
                 "unshare", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net", "--cgroup",
                 "bash", "-c", _BOOT, "boot", *map(str, arguments)]
        with open(self.folder / "boot.log", "wb") as log:
            self._outer = subprocess.Popen(enter, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self.until(lambda: self._outer_lives() and self._find(), "PID 1")
        self.until(lambda: self._outer_lives() and self._booted(), "a booted systemd")

    def _outer_lives(self) -> bool:
        assert self._outer is not None
        assert self._outer.poll() is None, f"it did not boot:\n{(self.folder / 'boot.log').read_text()[-2000:]}"
        return True

    def _find(self) -> int:
        """The number of PID 1: the one process whose parent is `unshare`."""
        assert self._outer is not None
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(path.read_text().rpartition(")")[2].split()[1]) == self._outer.pid:
                    self.pid = int(path.parent.name)
        return self.pid

    def _booted(self) -> bool:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n":
                return self.run("systemctl", "is-system-running", check=False).stdout.strip() in ("running", "degraded")
        return False

    def command(self, *words: str) -> list[str]:
        """A command line of outside, for one in there."""
        enter = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--cgroup", "--uts", "--ipc", "--net", "--wd=/"]
        return [*enter, "env", "-i", *(f"{name}={value}" for name, value in _ENVIRONMENT.items()), *words]

    def run(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root; AssertionError with what it said unless it exits with 0."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=_COMMAND_S, check=False, **options)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}{self.words()}"
        return done

    def start(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """The same, beside what the caller does."""
        return subprocess.Popen(self.command(*words), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)

    def systemctl(self, *words: str) -> str:
        return self.run("systemctl", *words).stdout

    def write(self, path: str, text: str) -> None:
        """A file in there, and its folders."""
        self.run("sh", "-c", 'mkdir -p "${0%/*}" && cat > "$0"', path, input=text)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        text = self.systemctl("show", unit, *(f"--property={name}" for name in names))
        return dict(line.split("=", 1) for line in text.splitlines())

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Entries, oldest first."""
        lines = self.run("journalctl", "-o", "json", "--no-pager", *matches).stdout.splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def words(self) -> str:
        """The journal's last lines, for whoever reads of a failure."""
        done = subprocess.run(self.command("journalctl", "--no-pager", "-n", "60"), capture_output=True, text=True, timeout=20,
                              check=False)
        return done.stdout[-6000:]

    def until(self, true: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
        """What `true` says as soon as that is something; AssertionError with `what` after a time."""
        end_s = time.monotonic() + patience_s
        while not (found := true()):
            assert time.monotonic() < end_s, f"it never came about: {what}\n{self.words() if self.pid else ''}"
            time.sleep(.05)
        return found

    def close(self) -> None:
        """End everything; its mounts go with its last process."""
        if self._outer is not None:
            if self.pid and self._outer.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._outer.wait(10)  # it waits for that one
            self._outer.kill()
            self._outer.wait()
        _remove_cgroup(self.cgroup)
        with contextlib.suppress(OSError):
            (self.folder / "memory").rmdir()


def unavailable() -> str | None:
    """Why there can be no such thing here, or None."""
    if os.getuid() != 0:
        return "only root can make namespaces with a PID 1"
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if SYSTEMD is None or missing:
        return f"no {'systemd' if SYSTEMD is None else missing[0]} here"
    said = subprocess.run([SYSTEMD, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.match(r"systemd (\d+)", said)
    if version is None or int(version[1]) < SYSTEMD_MIN:
        return f"the units need systemd {SYSTEMD_MIN}"
    root = _cgroup_root()
    if root is None:
        return "no cgroup v2 is mounted here"
    probe = root / f"{_CGROUPS}{os.getpid()}-{next(_numbers)}"
    try:
        probe.mkdir()
        (probe / "cgroup.procs").read_text()
    except OSError as error:
        return f"no cgroup can be made: {error.strerror}"
    finally:
        _remove_cgroup(probe)
    mounts = ("mount --make-rprivate / && mount -t tmpfs none /tmp && mkdir /tmp/a /tmp/b && "
              "mount -t overlay -o lowerdir=/etc,upperdir=/tmp/a,workdir=/tmp/b overlay /etc && "
              "mount -t cgroup2 none /sys/fs/cgroup")
    made = subprocess.run(["unshare", "--pid", "--fork", "--mount", "--uts", "--ipc", "--net", "--cgroup", "sh", "-c", mounts],
                          capture_output=True, text=True, check=False)
    return None if made.returncode == 0 else f"namespaces cannot be had: {made.stderr.strip()[-200:]}"


def share_kernels(folder: Path) -> None:
    """Copy the compiled kernels of this very source to `folder`, for whoever should not compile them again."""
    for file in (ROOT / "cwd").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        found = jit.cache_dir() / f"{name}-{jit.source_hash(file)}"
        if found.is_dir():
            shutil.copytree(found, folder / found.name)


def _packages() -> Path:
    """Of the installation that runs this."""
    import numba

    return Path(numba.__file__).resolve().parents[1]


def _cgroup_root() -> Path | None:
    """Where cgroup v2 is mounted, if it is."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup2 "):
            return Path(left.split()[4])
    return None


def _remove_cgroup(folder: Path) -> None:
    """And those below it, once their last processes are gone."""
    end_s = time.monotonic() + 10
    while folder.exists() and time.monotonic() < end_s:
        with contextlib.suppress(OSError):
            for path, _, _ in os.walk(folder, topdown=False):
                os.rmdir(path)
        time.sleep(.02)
