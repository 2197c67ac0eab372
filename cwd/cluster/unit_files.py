"""The files of systemd/ as one machine needs them: which there are, where they go, and what of them is written anew.

`cwd/systemd` is a link to that folder, so that an installed package has it too; there is no other copy of the texts. They
are sound units as they stand, and only what follows from the place of the installation, the user and the configuration's
path is replaced. A line at the top marks what was written here: nothing else is ever overwritten.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cwd.errors import Code, CwdError

SOURCE = Path(__file__).resolve().parents[1] / "systemd"
MARKER = "# Written by `cwd install-units`; keep changes of your own in drop-ins (`systemctl edit`).\n"

#: what the texts say, and what stands for it elsewhere
_PROGRAM, _CONFIG, _USER = "/opt/cwd/.venv/bin/cwd", "/etc/cwd/cwd.toml", "cwd"
_UNITS = "etc/systemd/system"
_PLACES = {"sysusers.conf": "etc/sysusers.d/cwd.conf", "tmpfiles.conf": "etc/tmpfiles.d/cwd.conf"}
_EXAMPLE = "cwd.toml"
#: folders that the units hide from daemons
_HOMES, _TEMPORARY = ("/home", "/root", "/run/user"), ("/tmp", "/var/tmp")


@dataclass(frozen=True)
class Machine:
    """What the units must know of a machine."""

    program: Sequence[str]  # the command, as words
    folders: Sequence[Path]  # that the daemons read their code from
    user: str = _USER
    config: str = _CONFIG


def this_machine(user: str = _USER, config: str = _CONFIG) -> Machine:
    """The machine and the installation that run this; raises `CwdError` for a user or a path that no unit can name."""
    if not re.fullmatch(r"[a-z_][a-z0-9_-]{0,30}", user):
        raise CwdError(f"{user!r} is no name for a user", code=Code.BAD_ARGUMENT)
    if not config.startswith("/"):
        raise CwdError(f"{config}: units need an absolute path", code=Code.BAD_ARGUMENT)
    command = Path(sys.executable).with_name("cwd")
    program = [str(command)] if command.is_file() else [sys.executable, "-m", "cwd"]
    folders = [Path(sys.prefix), Path(sys.base_prefix), SOURCE.parents[1]]
    return Machine(program, list(dict.fromkeys(folder.resolve() for folder in folders)), user, config)


def files(machine: Machine, root: Path) -> dict[Path, str]:
    """What is to be written below `root`: {path: text}, the configuration last."""
    found = {}
    for source in sorted(SOURCE.iterdir()):
        if source.is_file() and source.name != _EXAMPLE:
            place = root / _PLACES.get(source.name, f"{_UNITS}/{source.name}")
            found[place] = MARKER + _adapted(source.read_text("utf-8"), machine)
    found[root / machine.config.lstrip("/")] = (SOURCE / _EXAMPLE).read_text("utf-8")
    return found


def notes(machine: Machine) -> list[str]:
    """What people should know before they start these units here."""
    found = []
    for folder in machine.folders:
        if _within(folder, _TEMPORARY):
            found.append(f"daemons do not see {folder}, since they have folders of their own for temporary files")
        elif _within(folder, _HOMES):
            found.append(f"{machine.user} must be able to read {folder}, and the units let daemons read homes for its sake")
    return found


def install(found: dict[Path, str], force: bool = False) -> tuple[list[Path], list[Path]]:
    """Write them, all or none: (written, kept). A configuration that is there is kept, always; so is an equal file.

    Raises `CwdError` if one is there that was not written by this, unless `force`.
    """
    kept = [path for path, text in found.items() if path.exists() and (_old(path) == text or not text.startswith(MARKER))]
    foreign = [path for path in found if path not in kept and path.exists() and not _old(path).startswith(MARKER)]
    if foreign and not force:
        raise CwdError(f"{foreign[0]} is not of `cwd install-units`; --force overwrites it", code=Code.BAD_ARGUMENT)
    written = [path for path in found if path not in kept]
    for path in written:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.new")
        beside.write_text(found[path], "utf-8")
        beside.chmod(0o644)
        beside.replace(path)
    return written, kept


def _old(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")


def _adapted(text: str, machine: Machine) -> str:
    """A unit, or a list of users or folders, for this machine."""
    text = text.replace(_PROGRAM, " ".join(map(_word, machine.program))).replace(_CONFIG, _word(machine.config))
    text = re.sub(rf"^(User|Group)={_USER}$", rf"\1={machine.user}", text, flags=re.MULTILINE)
    text = re.sub(rf"^u {_USER} ", f"u {machine.user} ", text, flags=re.MULTILINE)
    text = re.sub(rf"^(d \S+ \S+) {_USER} {_USER} ", rf"\1 {machine.user} {machine.user} ", text, flags=re.MULTILINE)
    if any(_within(folder, _HOMES) for folder in machine.folders):
        text = text.replace("\nProtectHome=yes\n", "\n# this cwd is installed in somebody's home\nProtectHome=read-only\n")
    return text


def _within(folder: Path, parents: Sequence[str]) -> bool:
    return any(folder.is_relative_to(parent) for parent in parents)


def _word(text: str) -> str:
    """A word of a command line as units spell it."""
    if not text.isprintable():
        raise CwdError(f"{text!r} cannot stand in a unit", code=Code.BAD_ARGUMENT)
    escaped = text.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$").replace('"', '\\"')
    return f'"{escaped}"' if re.search(r"[\s;'\"\\]", text) else escaped
