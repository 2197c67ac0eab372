"""Measuring a program: how long each (batch, size class) takes on a device, and a page takes to load.

Everything runs in one process and one thread, as a worker's exec lane would. The result is stored beside the program as
`profile.<kind>.json`; the scheduler starts from it and goes on learning from live results. torch is imported where
something is measured, not for reading. What is measured is a `Subject`: this CPU here, a GPU in worker/measure.py.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.models.repository import Entry, Repository
from cwd.models.spec import ProgramSpec
from cwd.units import NS_PER_S

if TYPE_CHECKING:
    from cwd.models.fit import Requests

#: called with (measured, in all, a word on what is being measured)
Progress = Callable[[int, int, str], None]
REPEATS = 30
REPEATS_MIN = 5
WARM_UPS = 3
#: as `cwd up` has it; any other will do, since the controller scales load times by bytes
PAGE_BYTES = 1 << 20

_STATISTICS = ("median_ns", "p99_ns", "max_ns")


def read(repository: Repository, program_hash: bytes, kind: str) -> dict[str, Any]:
    """A stored profile, checked to have one row for every (batch, size class); NOT_PROFILED if there is none."""
    spec = repository.program(program_hash)
    path = repository.profile_path(program_hash, kind)
    value = repository.read_profile(program_hash, kind)
    if value is None:
        raise RepositoryError(f"program {program_hash.hex()} has no profile for {kind}: run cwd model profile",
                              code=Code.NOT_PROFILED)
    rows = value.get("exec") if isinstance(value, dict) else None
    loads = [value.get(key) if isinstance(value, dict) else None for key in ("load_ns_per_page", "page_bytes")]
    if not isinstance(rows, list) or not all(isinstance(one, int) and one > 0 for one in loads):
        raise RepositoryError(f"{path}: wanted the fields 'exec', and 'load_ns_per_page' and 'page_bytes' over 0")
    found = set()
    for row in rows:
        if not (isinstance(row, dict) and all(isinstance(row.get(key), int) and row[key] > 0 for key in _STATISTICS)):
            raise RepositoryError(f"{path}: row {row!r:.80}: wanted integers {', '.join(_STATISTICS)} over 0")
        found.add((row.get("batch"), row.get("size_class")))
    missing = set(pairs(spec)) - found
    if missing:
        raise RepositoryError(f"{path}: no row for (batch, size class) {min(missing)}", code=Code.NOT_PROFILED)
    return value


def pairs(spec: ProgramSpec) -> list[tuple[int, int]]:
    """Every (batch size, index of size class) of a program, small ones first."""
    return [(batch, index) for index in range(len(spec.size_classes)) for batch in spec.batch_sizes]


def exec_ns(value: dict[str, Any], batch: int, size_class: int) -> int:
    """The median of one row of a profile that `read` has returned."""
    return next(row["median_ns"] for row in value["exec"] if (row["batch"], row["size_class"]) == (batch, size_class))


class Subject(Protocol):
    """What is measured: a program with one instance's weights on a device."""

    #: as in HELLO; and, for people, the device
    kind: str
    device: str
    spec: ProgramSpec

    def run(self, batch: int, size_class: int) -> Callable[[], int]:
        """A call that executes one full batch at its class's largest size and returns what it took, in ns."""

    def load_ns_per_page(self) -> int:
        """The median ns to load a page."""

    def facts(self, batch: int, size_class: int) -> dict[str, Any]:
        """What else its row should say."""


def measure(repository: Repository, entry: Entry, subject: Subject, *, page_bytes: int, repeats: int = REPEATS,
            budget_ns: int = 20 * NS_PER_S, progress: Progress | None = None) -> dict[str, Any]:
    """Measure the entry's program on a device, store and return its profile.

    `budget_ns` bounds the whole; it is exceeded only where 5 runs of each shape need more. The shapes take turns, so that
    a busy spell of the machine falls on all of them and on few samples of each.
    """
    wanted, end_ns = pairs(subject.spec), time.monotonic_ns() + budget_ns
    page_ns = subject.load_ns_per_page()
    samples = _measure(subject, wanted, repeats, end_ns, lambda index, pair: (
        progress(index, len(wanted), f"{entry.manifest.name}: batch {pair[0]}, class {pair[1]}") if progress else None))
    rows = [{"batch": batch, "size_class": size_class, **statistics(found), "repeats": len(found),
             **subject.facts(batch, size_class)} for (batch, size_class), found in zip(wanted, samples, strict=True)]
    if progress:
        progress(len(wanted), len(wanted), entry.manifest.name)
    from cwd.models.program import torch

    value = {"kind": subject.kind, "device": subject.device, "torch": torch.__version__, "page_bytes": page_bytes,
             "load_ns_per_page": page_ns, "exec": rows}
    repository.write_profile(entry.manifest.program_hash, subject.kind, value)
    return value


def measure_cpu(repository: Repository, entry: Entry, *, page_bytes: int = PAGE_BYTES, **options: Any) -> dict[str, Any]:
    """`measure` on this CPU, with one thread."""
    from cwd.models.program import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return measure(repository, entry, CpuSubject(repository, entry, page_bytes), page_bytes=page_bytes, **options)
    finally:
        torch.set_num_threads(threads)


class CpuSubject:
    """Subject in this process and thread: fit, run, trim."""

    kind = "cpu"

    def __init__(self, repository: Repository, entry: Entry, page_bytes: int) -> None:
        from cwd.models.program import Program, torch

        self.device, self._page_bytes = cpu_name(), page_bytes
        self._program = Program.load(repository, entry.manifest.program_hash)
        self.spec = self._program.spec
        image = np.zeros(max(1, entry.manifest.image_bytes), np.uint8)
        repository.build_image(entry, image)
        self._binding = self._program.bind(torch.from_numpy(image))

    def run(self, batch: int, size_class: int) -> Callable[[], int]:
        full = full_batch(self.spec, batch, size_class)

        def once() -> int:
            start_ns = time.monotonic_ns()
            code = self._program.execute(self._binding, batch, size_class, *full.requests[1:], full.targets)
            if code != Code.OK:
                raise RepositoryError("the program's own sizes do not fit", code=Code(code))
            return time.monotonic_ns() - start_ns

        return once

    def load_ns_per_page(self) -> int:
        """To copy one page into touched memory, which is most of what a LOAD does."""
        page, target = np.ones(self._page_bytes, np.uint8), np.zeros(self._page_bytes, np.uint8)
        samples = []
        for _ in range(9):
            start_ns = time.monotonic_ns()
            target[:] = page
            samples.append(time.monotonic_ns() - start_ns)
        return max(1, sorted(samples)[4])

    def facts(self, batch: int, size_class: int) -> dict[str, Any]:
        return {}


class FullBatch(NamedTuple):
    """Requests of a class's largest size, as many as a batch takes, and room for their results."""

    requests: Requests
    results: list[np.ndarray]
    #: i8 [batch]: addresses of the results
    targets: np.ndarray


def full_batch(spec: ProgramSpec, batch: int, size_class: int) -> FullBatch:
    """A full batch of sample requests."""
    from cwd.models import fit
    from cwd.models.probe import raw_bytes, sample_payload

    sizes = spec.size_classes[size_class]
    arrays = [raw_bytes(array) for array in sample_payload(spec, sizes, seed=0)]
    payload = np.concatenate(arrays) if arrays else np.zeros(0, np.uint8)
    results = [np.empty(spec.output_bytes(sizes), np.uint8) for _ in range(batch)]
    return FullBatch(fit.requests_of([payload] * batch, [sizes] * batch), results,
                     np.array([result.ctypes.data for result in results], np.int64))


def write_table(repository: Repository, program_hash: bytes, kind: str, exec_table_ns: dict[tuple[int, int], int], *,
                load_ns_per_page: int, device: str = "", page_bytes: int = PAGE_BYTES) -> dict[str, Any]:
    """Store a given table, (batch, size class) -> ns, as the profile of a kind of device (`emulated`)."""
    spec = repository.program(program_hash)
    rows = []
    for pair in pairs(spec):
        if pair not in exec_table_ns:
            raise RepositoryError(f"the table has no entry for (batch, size class) {pair}", code=Code.BAD_ARGUMENT)
        ns = int(exec_table_ns[pair])
        rows.append({"batch": pair[0], "size_class": pair[1], **dict.fromkeys(_STATISTICS, ns), "repeats": 0})
    value = {"kind": kind, "device": device or kind, "torch": "", "page_bytes": page_bytes,
             "load_ns_per_page": load_ns_per_page, "exec": rows}
    repository.write_profile(program_hash, kind, value)
    return read(repository, program_hash, kind)


def statistics(samples_ns: list[int]) -> dict[str, int]:
    """Median, 99th percentile and maximum of the samples, each one of them."""
    ordered = sorted(samples_ns)
    last = len(ordered) - 1
    return {"median_ns": ordered[last // 2], "p99_ns": ordered[-(-last * 99 // 100)], "max_ns": ordered[last]}


def cpu_name() -> str:
    """The processor's name, for a person comparing profiles."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _measure(subject: Subject, wanted: list[tuple[int, int]], repeats: int, end_ns: int,
             progress: Callable[[int, tuple[int, int]], None]) -> list[list[int]]:
    """Durations of full batches at their class's largest size."""
    runs = []
    for index, pair in enumerate(wanted):
        progress(index, pair)
        runs.append(subject.run(*pair))
        for _ in range(WARM_UPS):  # the first run may compile and allocate
            runs[-1]()
    samples: list[list[int]] = [[] for _ in wanted]
    for turn in range(repeats):
        for run, found in zip(runs, samples, strict=True):
            found.append(max(1, run()))
        if turn + 1 >= REPEATS_MIN and time.monotonic_ns() > end_ns:
            break
    return samples
