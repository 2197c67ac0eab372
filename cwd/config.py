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
SCHEMES = ("ipc", "tcp", "inproc")
#: bytes of a unix socket's path
PATH_BYTES_MAX = 107
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
    """Where clients connect when nobody says otherwise: $CWD_ENDPOINT (it may be a list), else the run directory's socket."""
    return os.environ.get("CWD_ENDPOINT") or endpoint("clients")


def endpoints(text: str) -> tuple[str, ...]:
    """The endpoints of a controller and its standbys: one, or several separated by commas.

    Raises `CwdError` (BAD_ARGUMENT) naming what is wrong with which of them.
    """
    found: list[str] = []
    for item in map(str.strip, text.split(",")):
        fault = endpoint_fault(item)
        if item in found:
            fault = "it is named twice"
        if fault:
            where = f", of {text!r}" if item != text.strip() else ""
            raise CwdError(f"endpoint {item!r}{where}: {fault}", code=Code.BAD_ARGUMENT)
        found.append(item)
    return tuple(found)


def endpoint_fault(endpoint: str) -> str:
    """Why nobody could connect to this; "" if it reads well."""
    scheme, separator, rest = endpoint.partition("://")
    if not endpoint:
        return "it is empty"
    if not separator or scheme not in SCHEMES:
        return "not an ipc:// or tcp:// endpoint"
    if scheme == "ipc" and len(os.fsencode(rest)) > PATH_BYTES_MAX:
        return f"the path is longer than {PATH_BYTES_MAX} bytes"
    host, _, port = rest.rpartition(":")
    if scheme == "tcp" and (not host or not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65535):
        return "wanted tcp://HOST:PORT, with a port from 1 to 65535"
    return "" if rest else "it names nothing"


def read_toml(path: str | Path) -> dict[str, Any]:
    """A configuration file; raises `CwdError` naming the file and the line at fault."""
    try:
        return tomllib.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise CwdError(f"{path}: {reason}", code=Code.BAD_ARGUMENT) from None
