"""What `cwd worker` can be told: one plain record, checked here, so that every later module may trust it."""

from __future__ import annotations

import mmap
import os
import re
from dataclasses import dataclass, field

from cwd.config import endpoints
from cwd.errors import CwdError
from cwd.settings import check_log_level

GPUS_MAX = 4096

#: what SIGHUP may change: everything else sized a table, a pool or a thread when the worker started
RELOADABLE = ("log_level",)


@dataclass(frozen=True)
class WorkerOptions:
    """See the comments; sizes in bytes, times in nanoseconds."""

    #: "cpu", "cuda:K" for the GPU with that index, or "emulated:N" for N emulated GPUs in this one process
    device: str = "cpu"
    #: the controller's socket for workers; with its standbys' after it, separated by commas
    endpoint: str = "ipc:///run/cwd/workers.sock"
    #: where the controller asks for keys: the file of this worker's own, and that of the controller's public one
    key: str = ""
    server_key: str = ""
    name: str = field(default_factory=lambda: f"{os.uname().nodename}-{os.getpid()}")
    #: folder of the model repository; "" for none (emulated only)
    repo: str = ""
    pages: int = 64
    page_bytes: int = 16 << 20
    #: how much memory the page images of the host store may take (cpu, cuda: there it is set aside and page-locked)
    host_bytes: int = 8 << 30
    #: cuda: the largest instance's weights; the largest batch's inputs, or outputs; page copies under way at most
    window_bytes: int = 1 << 30
    slot_bytes: int = 64 << 20
    copies_max: int = 2
    #: cuda: let programs larger than the window run where their pages are mapped, step by step (needs cuda-bindings)
    mapped: bool = False
    #: slow LOADs down to this many bytes per second, to imitate a bus; 0 for none. Emulated LOADs take exactly this
    load_bytes_per_s: int = 0
    #: pin the exec thread (emulated: the process) to this core; -1 for no pinning
    pin_core: int = -1
    #: actions that may wait in one lane
    agenda_max: int = 256
    #: largest batch that an EXEC may have
    rows_max: int = 64
    #: the exec thread spins for so much of the wait for an action's earliest start
    spin_ns: int = 50_000
    #: stage the whole repository and build its programs before READY (else at PREPARE)
    preload: bool = True
    #: emulated: bytes of every output frame where the repository does not say; jitter of durations in ppm; its seed
    out_bytes: int = 0
    noise_ppm: int = 0
    seed: int = 0
    #: the kind of device whose profile emulated GPUs imitate
    profile_kind: str = "emulated"
    #: debug, info, warning or error
    log_level: str = "info"

    def __post_init__(self) -> None:
        check_log_level(self.log_level)
        endpoints(self.endpoint)
        if not re.fullmatch(r"cpu|(cuda|emulated)(:[0-9]{1,9})?", self.device):
            raise CwdError(f"device {self.device!r} is not cpu, cuda:K or emulated:N")
        if self.kind == "emulated" and not 1 <= self.gpus <= GPUS_MAX:
            raise CwdError(f"{self.gpus} emulated GPUs: 1 to {GPUS_MAX} are possible")
        if self.kind in ("cpu", "cuda") and not self.repo:
            raise CwdError(f"the {self.kind} backend needs a repository (--repo)")
        for name, low in (("pages", 1), ("page_bytes", 1), ("agenda_max", 1), ("rows_max", 1), ("host_bytes", 0),
                          ("window_bytes", 1), ("slot_bytes", 1), ("copies_max", 1), ("load_bytes_per_s", 0),
                          ("spin_ns", 0), ("out_bytes", 0), ("noise_ppm", 0)):
            if getattr(self, name) < low:
                raise CwdError(f"{name} is {getattr(self, name)}, wanted at least {low}")
        if self.page_bytes % mmap.PAGESIZE:
            raise CwdError(f"a page of {self.page_bytes} bytes is not a multiple of {mmap.PAGESIZE}")
        if self.noise_ppm > 1_000_000:
            raise CwdError(f"noise_ppm is {self.noise_ppm}, wanted at most 1000000")

    @property
    def kind(self) -> str:
        return self.device.partition(":")[0]

    @property
    def gpus(self) -> int:
        """How many devices this process stands for."""
        return int(self.device.partition(":")[2] or 1) if self.kind == "emulated" else 1

    @property
    def index(self) -> int:
        """Which of the machine's GPUs it is."""
        return int(self.device.partition(":")[2] or 0)
