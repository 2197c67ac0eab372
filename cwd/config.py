"""Where a cwd on this machine is found, for every command and client alike, and what else all who start one agree on.

Knows no daemon's own settings; those have modules of their own, and the same precedence: flags over CWD_* over TOML.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from cwd.errors import Code, CwdError

SOCKETS = ("clients", "workers", "admin")
#: what a controller schedules by unless it is told otherwise
POLICY = "cwd"


def run_dir() -> Path:
    """$CWD_RUN_DIR, else $XDG_RUNTIME_DIR/cwd, else /run/cwd if it is ours to write, else /tmp/cwd-UID."""
    if given := os.environ.get("CWD_RUN_DIR"):
        return Path(given)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "cwd"
    if os.access("/run/cwd", os.W_OK):
        return Path("/run/cwd")
    return Path(f"/tmp/cwd-{os.getuid()}")


def endpoint(which: str, directory: str | Path | None = None) -> str:
    """The ipc endpoint of "clients", "workers" or "admin" in a run directory (the default one)."""
    assert which in SOCKETS, which
    return f"ipc://{Path(directory) if directory else run_dir()}/{which}.sock"


def client_endpoint() -> str:
    """Where clients connect when nobody says otherwise: $CWD_ENDPOINT, else the run directory's socket."""
    return os.environ.get("CWD_ENDPOINT") or endpoint("clients")


def read_toml(path: str | Path) -> dict[str, Any]:
    """A configuration file; raises `CwdError` naming the file and the line at fault."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CwdError(f"{path}: {reason}", code=Code.BAD_ARGUMENT) from None
