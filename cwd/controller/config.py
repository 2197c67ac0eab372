"""Every setting of the controller with its default, and where a value may come from: flags over CWD_* over a TOML file.

Durations are `_ns` and sizes `_bytes` inside; outside they are texts (`100ms`, `16MiB`) under the same name without the
unit: `slo_max`, `CWD_SLO_MAX`, `--slo-max`. This module must not know sockets, the core or any other daemon.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cwd.config import POLICY
from cwd.config import run_dir as default_run_dir
from cwd.errors import Code, CwdError
from cwd.settings import check_log_level
from cwd.units import NS_PER_MS, NS_PER_S, parse_duration_ns, parse_size_bytes


def default_state_dir() -> str:
    """Where the log is kept: $CWD_STATE_DIR, $XDG_STATE_HOME/cwd, else ~/.local/state/cwd."""
    if given := os.environ.get("CWD_STATE_DIR"):
        return given
    return str(Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cwd")


@dataclasses.dataclass(frozen=True)
class ControllerConfig:
    """Settings of one controller; immutable, and written into the header of its log."""

    #: for people and logs
    name: str = "controller"
    #: folder of the ipc sockets clients.sock, workers.sock, admin.sock; "" means `default_run_dir()`
    run_dir: str = ""
    #: folder of the event log; "" means `default_state_dir()`
    state_dir: str = ""
    #: the model repository; "" serves no models until some are added
    repository: str = ""
    #: endpoints other than the three ipc sockets of `run_dir`; loopback tcp is what else is allowed by default
    clients_bind: str = ""
    workers_bind: str = ""
    admin_bind: str = ""
    #: folder of keys (see `cwd keys`): who connects must then have one that is listed for its role; "" asks nobody
    keys: str = ""
    #: bind addresses that others can reach even without keys: whoever reaches them does as he likes
    insecure: bool = False

    #: addresses of etcd, separated by commas: of all controllers with the same ones and the same `cluster` one serves, and the
    #: others stand by; "" takes part in no election
    etcd: str = ""
    cluster: str = "cwd"
    #: how long a leader that is heard of no more keeps the others waiting; whole seconds, and 2 at least where etcd is as it comes
    lease_ns: int = 2 * NS_PER_S
    #: etcd over TLS: whose certificates are trusted ("" is the system's list), and this controller's own, with its key
    etcd_ca: str = ""
    etcd_cert: str = ""
    etcd_key: str = ""

    policy: str = POLICY
    #: what the policy cwd is after: "fair" (every model gets half of the overall share in time at least) or "goodput"
    objective: str = "fair"
    models_max: int = 4096
    programs_max: int = 64
    requests_max: int = 16384
    gpus_max: int = 64
    copies_max: int = 32768
    actions_max: int = 8192
    #: size classes of a program
    classes_max: int = 16
    #: every worker must have pages of this size
    page_bytes: int = 16 << 20
    clients_max: int = 256
    admins_max: int = 16
    #: requests of one client in flight
    credits: int = 1024
    slo_max_ns: int = 60 * NS_PER_S
    payload_max_bytes: int = 64 << 20
    #: request payloads held at once, with what each pins; beyond it INFER is answered QUEUE_FULL
    held_max_bytes: int = 1 << 30
    #: of these, what one client may hold (PAYLOADS_EXCEEDED above it); 0 for no limit of its own
    client_held_max_bytes: int = 512 << 20
    #: requests per second of one client (RATE_EXCEEDED above it), and how many may come at once; 0 for no limit
    client_rate: int = 0
    client_burst: int = 64
    #: with keys: connections that clients with the same key may have, since the limits are each connection's
    client_connections: int = 64

    heartbeat_ns: int = 250 * NS_PER_MS
    lost_ns: int = 1500 * NS_PER_MS
    #: longest slice of the compiled loop; Python's share comes after it
    slice_ns: int = 5 * NS_PER_MS
    #: Python's share between two slices: no further piece of rare work is begun after it. One takes up to 150 us
    chunk_ns: int = 20_000
    #: how long PREPARE is expected to keep a worker's exec lane
    prepare_ns: int = 10 * NS_PER_S
    #: how long a drain waits for what is queued before the daemon ends anyway
    drain_ns: int = 30 * NS_PER_S
    #: log every event and outbox record (False: nothing is written, and nothing can be replayed)
    log: bool = True
    #: size of one file of the log
    log_rotate_bytes: int = 1 << 30
    #: the oldest files go when all logs of the state folder are larger than this; 0 keeps everything
    log_keep_bytes: int = 8 << 30
    #: slots of the shared-memory ring between the loop and the log writer
    log_ring: int = 1 << 16
    #: host:port where Prometheus finds /metrics (no authentication; ":9100" is loopback); "" offers none
    metrics_bind: str = ""
    #: how many models, the hottest, have metrics of their own; all others are counted together
    metrics_models: int = 50
    #: offer the metrics under Triton's names, too (nv_inference_*), for dashboards made for it
    metrics_triton_aliases: bool = False
    #: CPU that the loop's thread is pinned to; -1 leaves it to the kernel
    cpu: int = -1
    #: nice value of the controller's thread; a negative one takes effect where the system allows it
    nice: int = -10
    #: debug, info, warning or error
    log_level: str = "info"

    @property
    def records(self) -> bool:
        """Whether the loop records what happens: for the log, or for the metrics."""
        return self.log or bool(self.metrics_bind)

    def endpoint(self, which: str) -> str:
        """The endpoint of `clients`, `workers` or `admin`."""
        given = str(getattr(self, f"{which}_bind"))
        return given or f"ipc://{Path(self.run_dir or default_run_dir()) / (which + '.sock')}"


#: what SIGHUP may change. Not what sized a table, a ring or a socket when the daemon started, was told to peers in WELCOME
#: (credits, payload_max, heartbeat, lost), or stands in the log's header for a replay (policy, slo_max)
RELOADABLE = ("held_max_bytes", "client_held_max_bytes", "client_rate", "client_burst",
              "slice_ns", "chunk_ns", "prepare_ns", "drain_ns", "log_level")

_FIELDS = {field.name: field for field in dataclasses.fields(ControllerConfig)}
_OUTSIDE = {name.removesuffix("_ns").removesuffix("_bytes"): name for name in _FIELDS}


def _value(name: str, given: Any, origin: str) -> Any:
    """`given` as the type of field `name`; raises `CwdError` (BAD_ARGUMENT) naming where the bad value came from."""
    kind = type(_FIELDS[name].default)
    try:
        if isinstance(given, str) and name.endswith("_ns"):
            return _int64(parse_duration_ns(given))
        if isinstance(given, str) and name.endswith("_bytes"):
            return _int64(parse_size_bytes(given))
        if kind is bool and isinstance(given, str):
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[given.lower()]
        value = _int64(int(given)) if kind is int else kind(given)
        if name == "log_level":
            check_log_level(value)
    except (KeyError, TypeError, ValueError, ArithmeticError, CwdError) as error:
        raise CwdError(f"{origin}: {given!r} is no value for {name}", code=Code.BAD_ARGUMENT) from error
    if kind is int and not isinstance(value, bool) and value < 0 and name not in ("cpu", "nice"):
        raise CwdError(f"{origin}: {name} is negative", code=Code.BAD_ARGUMENT)
    return value


def _int64(value: int) -> int:
    """`value`, if the tables can hold it; raises `OverflowError`."""
    if not -1 << 63 <= value < 1 << 63:
        raise OverflowError
    return value


def load_config(
    flags: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    file: str | Path | None = None,
) -> ControllerConfig:
    """The configuration from `flags` (None values do not count) over `CWD_*` over the `[controller]` table of `file`.

    Names are the field names, with or without their unit. Raises `CwdError` (BAD_ARGUMENT) in one line for an unknown
    name, a bad value or a file that does not read.
    """
    environment = os.environ if environment is None else environment
    values: dict[str, Any] = {}
    if file is not None:
        try:
            table = tomllib.loads(Path(file).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CwdError(f"{file}: {error}", code=Code.BAD_ARGUMENT) from error
        given = table.get("controller", {})
        if not isinstance(given, dict):
            raise CwdError(f"{file}: controller is {given!r}, wanted a table", code=Code.BAD_ARGUMENT)
        _merge(values, given, str(file))
    known = {outside: environment[key] for outside in _OUTSIDE if (key := f"CWD_{outside.upper()}") in environment}
    _merge(values, known, "environment")
    _merge(values, {key: value for key, value in (flags or {}).items() if value is not None}, "flags")
    return ControllerConfig(**values)


def _merge(values: dict[str, Any], given: Mapping[str, Any], origin: str) -> None:
    for key, value in given.items():
        name = _OUTSIDE.get(key, key)
        if name not in _FIELDS:
            raise CwdError(f"{origin}: the controller has no setting {key!r}", code=Code.BAD_ARGUMENT)
        values[name] = _value(name, value, origin)
