"""The paged backend in the host's memory: outputs, the gather, slots, depth, capture and failures; no GPU needed."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from cwd.errors import Code, CwdError, RepositoryError
from cwd.models import fit, importers, profile, zoo
from cwd.models.repository import Repository

torch = pytest.importorskip("torch")

from cwd.models.program import Program  # noqa: E402
from cwd.worker.backends.gpu import HostEvent, HostGpu, kind_of  # noqa: E402
from cwd.worker.backends.gpu_pool import GpuPool  # noqa: E402
from cwd.worker.backends.paged import PagedBackend  # noqa: E402
from cwd.worker.measure import measure_gpu  # noqa: E402

PAGE = 64 << 10
BATCHES = [1, 2, 4]


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Repository:
    """Three instances each of a convnet of 300 small pages and of an mlp, and of a text encoder with size classes."""
    made = Repository(tmp_path_factory.mktemp("repo"), create=True)
    for name in ("convnet5m", "mlp"):
        options = {**getattr(zoo, f"{name}_options")(), "batch_sizes": BATCHES}
        importers.add_factory(made, name, options.pop("factory"), options.pop("args"), options, seed=7, copies=3)
    return made


class FlakyGpu(HostGpu):
    """Fails the k-th copy; `sticky`: and everything afterwards. `lazy`: copies are done when an event behind them is
    waited for, and not before; `deepest` is how many were under way at most."""

    def __init__(self) -> None:
        super().__init__()
        self.fail_at = self.copies = self.settled = self.deepest = 0
        self.broken = self.sticky = self.lazy = False
        self.pending: list = []
        self.captures = True

    def copy(self, target, source) -> None:
        self.copies += 1
        if self.broken or self.copies == self.fail_at:
            self.broken = self.sticky
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if not self.lazy:
            super().copy(target, source)
            return
        self.pending.append((target, source))
        self.deepest = max(self.deepest, len(self.pending))

    def event(self):
        return LazyEvent(self)

    def capture(self, body):
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing")
        return super().capture(body)

    def lost(self, error: Exception) -> bool:
        return self.broken


class LazyEvent(HostEvent):
    def __init__(self, gpu: FlakyGpu) -> None:
        super().__init__()
        self.gpu, self.behind = gpu, 0

    def record(self) -> None:
        super().record()
        self.behind = self.gpu.settled + len(self.gpu.pending)

    def synchronize(self) -> None:
        while self.gpu.settled < self.behind:
            target, source = self.gpu.pending.pop(0)
            target.copy_(source)
            self.gpu.settled += 1


def backend_of(repository, gpu=None, pages=700, **more) -> PagedBackend:
    made = PagedBackend(repository, gpu or HostGpu(), **{"window_bytes": 24 << 20, "slot_bytes": 8 << 20, **more})
    made.make_pool(pages, PAGE)
    return made


def an_mlp(repository):
    return next(one for one in repository.entries() if one.manifest.name.startswith("mlp"))


def image_of(repository, entry) -> np.ndarray:
    image = np.zeros(entry.manifest.image_bytes, np.uint8)
    repository.build_image(entry, image)
    return image


def place(backend, repository, entry, pages) -> int:
    """Load an instance into those pages; its seat."""
    seat = backend.pool.reserve(len(pages))
    assert backend.pool.fill(seat, np.array(pages, np.int32), image_of(repository, entry)) >= 0
    return seat


def run(backend, program, seat, payloads, batch, slot=0):
    """Outputs of one execution."""
    requests = fit.requests_of(payloads, [()] * len(payloads))
    sizes = np.zeros(len(payloads), np.int64)
    backend.output_bytes(program, requests.dims, sizes)
    results = [np.empty(int(size), np.uint8) for size in sizes]
    assert backend.stage(slot, program, batch, 0, requests.addresses, requests.sizes, requests.dims) == 0
    backend.start(slot, backend.bind(program, seat))
    while not backend.ended():
        pass
    assert backend.finish(np.array([result.ctypes.data for result in results], np.int64)) >= 0
    return [result.tobytes() for result in results]


def wanted(repository, entry, payloads, batch):
    program = Program.load(repository, entry.manifest.program_hash)
    image = np.zeros(entry.manifest.image_bytes + 256, np.uint8)
    image = image[-image.ctypes.data % 256:][:entry.manifest.image_bytes]
    repository.build_image(entry, image)
    found = program.infer(program.bind(torch.from_numpy(image)), payloads, [()] * len(payloads), batch=batch)
    return [row.tobytes() for row in found]


def payload_of(repository, program, seed):
    from cwd.models.probe import raw_bytes, sample_payload

    return np.concatenate([raw_bytes(array) for array in sample_payload(repository.program(program), (), seed=seed)])


def test_instances_in_scattered_pages_equal_the_program_run_directly(repository):
    gpu = HostGpu()
    backend = backend_of(repository, gpu)
    rng = np.random.default_rng(5)
    entries = repository.entries()
    with backend.thread():
        for entry in entries:
            backend.prepare(entry.manifest.program_hash)
        free = list(rng.permutation(backend.pool.pages))
        seats = {}
        asked = gpu.allocations()
        for turn in range(3):
            for entry in rng.permutation(np.array(entries, object)):
                program = entry.manifest.program_hash
                needed = max(1, -(-entry.manifest.image_bytes // PAGE))
                pages, free = free[:needed], free[needed:]
                seats[entry.manifest.key] = place(backend, repository, entry, pages)
                free += pages  # given back at once: later instances overwrite earlier ones
                for batch in BATCHES:
                    payloads = [payload_of(repository, program, turn * 10 + row) for row in range(batch)]
                    found = run(backend, program, seats[entry.manifest.key], payloads, batch, slot=turn % 2)
                    assert found == wanted(repository, entry, payloads, batch)
        assert gpu.allocations() == asked


def test_the_next_batch_is_staged_while_one_runs(repository):
    backend = backend_of(repository)
    entry = an_mlp(repository)
    program = entry.manifest.program_hash
    with backend.thread():
        backend.prepare(program)
        seat = place(backend, repository, entry, range(max(1, -(-entry.manifest.image_bytes // PAGE))))
        ours, theirs = ([payload_of(repository, program, seed)] for seed in (1, 2))
        size = np.zeros(1, np.int64)
        first, second = fit.requests_of(ours, [()]), fit.requests_of(theirs, [()])
        backend.output_bytes(program, first.dims, size)
        one, two = np.empty(int(size[0]), np.uint8), np.empty(int(size[0]), np.uint8)
        assert backend.stage(0, program, 1, 0, first.addresses, first.sizes, first.dims) == 0
        backend.start(0, seat)
        assert backend.stage(1, program, 1, 0, second.addresses, second.sizes, second.dims) == 0
        backend.finish(np.array([one.ctypes.data], np.int64))
        backend.start(1, seat)
        backend.finish(np.array([two.ctypes.data], np.int64))
    assert [one.tobytes()] == wanted(repository, entry, ours, 1)
    assert [two.tobytes()] == wanted(repository, entry, theirs, 1)


def test_what_does_not_fit_is_refused(repository):
    backend = backend_of(repository)
    entry = an_mlp(repository)
    program = entry.manifest.program_hash
    with backend.thread():
        backend.prepare(program)
        request = fit.requests_of([payload_of(repository, program, 1)], [()])
        assert backend.stage(0, program, 3, 0, request.addresses, request.sizes, request.dims) == Code.BAD_BATCH
        assert backend.stage(0, program, 1, 5, request.addresses, request.sizes, request.dims) == Code.BAD_BATCH
        short = request.sizes - 4
        assert backend.stage(0, program, 1, 0, request.addresses, short, request.dims) == Code.BAD_PAYLOAD_SIZE
        with pytest.raises(RepositoryError) as caught:
            backend.profile(program, 0, 3, 0, 1)
        assert caught.value.code == Code.BAD_BATCH


def test_programs_that_are_too_big_say_which_setting_would_help(repository):
    program = next(one for one in repository.entries() if one.manifest.name.startswith("convnet")).manifest.program_hash
    for settings, word in (({"window_bytes": 1 << 20}, "--window"), ({"slot_bytes": 1 << 10}, "--slot")):
        backend = backend_of(repository, **settings)
        with backend.thread(), pytest.raises(RepositoryError, match=word):
            backend.prepare(program)
        assert backend.programs() == []


def test_a_program_larger_than_the_window_runs_where_its_pages_are_mapped(repository):
    backend = backend_of(repository, window_bytes=1 << 20, mapped=True)
    entries = repository.entries()
    rng = np.random.default_rng(8)
    with backend.thread():
        for entry in entries:
            backend.prepare(entry.manifest.program_hash)
        free, seats = list(rng.permutation(backend.pool.pages)), {}
        for turn in range(2):
            for entry in entries:
                program = entry.manifest.program_hash
                large = entry.manifest.image_bytes > 1 << 20
                assert backend.tier(program, 1, 0) == ("mapped" if large else "graph")
                needed = -(-entry.manifest.image_bytes // PAGE)
                pages, free = free[:needed], free[needed:] + free[:needed]
                seat = seats.setdefault(program, None)
                if seat is None:
                    seat = seats[program] = backend.pool.reserve(needed)
                elif large:
                    backend.pool.clear(seat, needed)
                assert backend.pool.fill(seat, np.array(pages, np.int32), image_of(repository, entry)) >= 0
                payloads = [payload_of(repository, program, turn)] * 2
                assert run(backend, program, seat, payloads, 2) == wanted(repository, entry, payloads, 2)


def test_what_cannot_be_captured_runs_eager_and_equals(repository):
    gpu = FlakyGpu()
    gpu.captures = False
    backend = backend_of(repository, gpu)
    entry = an_mlp(repository)
    program = entry.manifest.program_hash
    with backend.thread():
        backend.prepare(program)
        assert {backend.tier(program, batch, 0) for batch in BATCHES} == {"eager"}
        seat = place(backend, repository, entry, range(max(1, -(-entry.manifest.image_bytes // PAGE))))
        payloads = [payload_of(repository, program, 4)]
        assert run(backend, program, seat, payloads, 1) == wanted(repository, entry, payloads, 1)


def test_a_program_that_does_not_run_is_refused_and_costs_no_other(repository, monkeypatch):
    backend = backend_of(repository)
    mlp, convnet = (next(one.manifest.program_hash for one in repository.entries() if one.manifest.name.startswith(name))
                    for name in ("mlp", "convnet"))
    with backend.thread():
        backend.prepare(mlp)
        whole = Program.run_in
        monkeypatch.setattr(Program, "run_in", lambda *_: torch.zeros(3) + torch.zeros(2))
        with pytest.raises(RepositoryError, match="does not run on host memory .* RuntimeError") as caught:
            backend.prepare(convnet)
        assert caught.value.code == Code.BAD_MODEL and backend.programs() == [mlp]
        monkeypatch.setattr(Program, "run_in", whole)
        backend.prepare(convnet)
    assert sorted(backend.programs()) == sorted([mlp, convnet])


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_copies_under_way_are_bounded(depth):
    gpu = FlakyGpu()
    gpu.lazy = True
    pool = GpuPool(gpu, 20, 64, row_pages=12, depth=depth)
    image = np.random.default_rng(1).integers(0, 255, 12 * 64, np.uint8)
    pages = np.random.default_rng(2).permutation(20)[:12].astype(np.int32)
    assert pool.fill(pool.reserve(12), pages, image) >= 0
    assert gpu.deepest <= depth + 1  # and the row of the table
    assert gpu.pending == []
    assert bytes(pool.words[torch.from_numpy(pages.astype(np.int64))].numpy().tobytes()) == image.tobytes()
    assert pool.table[0, :12].tolist() == pages.tolist()


@pytest.mark.parametrize("fail_at", [1, 2, 5, 12, 13])
def test_a_copy_that_fails_leaves_nothing_under_way_and_the_next_load_succeeds(fail_at):
    gpu = FlakyGpu()
    gpu.lazy, gpu.fail_at = True, fail_at
    pool = GpuPool(gpu, 20, 64, row_pages=12)
    image = np.arange(12 * 64, dtype=np.uint8)
    seat = pool.reserve(12)
    assert pool.fill(seat, np.arange(12, dtype=np.int32), image) == -1
    assert gpu.pending == [] and not gpu.quiet.locked()
    assert pool.fill(seat, np.arange(8, 20, dtype=np.int32), image) >= 0
    assert pool.words[8:20].numpy().tobytes() == image.tobytes()


def test_a_lost_device_is_said_and_not_hidden():
    gpu = FlakyGpu()
    gpu.fail_at, gpu.sticky = 3, True
    pool = GpuPool(gpu, 20, 64, row_pages=12)
    with pytest.raises(RuntimeError):
        pool.fill(pool.reserve(12), np.arange(12, dtype=np.int32), np.zeros(12 * 64, np.uint8))
    assert not gpu.quiet.locked()


def test_seats_and_pages_are_bounded():
    pool = GpuPool(HostGpu(), 3, 64, row_pages=2)
    with pytest.raises(CwdError):
        pool.reserve(3)
    assert [pool.reserve(2) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(CwdError):
        pool.reserve(1)
    for pages, page_bytes in ((0, 64), (4, 0), (4, 12)):
        with pytest.raises(CwdError):
            GpuPool(HostGpu(), pages, page_bytes, row_pages=1)


def test_a_capture_waits_for_a_load(repository):
    gpu = HostGpu()
    backend = backend_of(repository, gpu)
    program = repository.entries()[-1].manifest.program_hash
    gpu.quiet.acquire()
    done = threading.Event()

    def prepare() -> None:
        with backend.thread():
            backend.prepare(program)
        done.set()

    thread = threading.Thread(target=prepare)
    thread.start()
    assert not done.wait(0.3) and backend.programs() == []
    gpu.quiet.release()
    thread.join(30)
    assert done.is_set() and backend.programs() == [program]


def test_kinds_are_names_of_files():
    assert kind_of("NVIDIA H200") == "nvidia-h200"
    assert kind_of("Tesla V100-SXM2-16GB ") == "tesla-v100-sxm2-16gb"


def test_measuring_on_a_backend_is_stored_under_its_kind_with_the_tier(repository):
    entry = an_mlp(repository)
    for captures in (True, False):
        gpu = FlakyGpu()
        gpu.captures = captures
        backend = PagedBackend(repository, gpu, window_bytes=24 << 20, slot_bytes=8 << 20)
        value = measure_gpu(repository, entry, backend, page_bytes=PAGE, repeats=5)
        assert profile.read(repository, entry.manifest.program_hash, "host") == value
        assert [(row["batch"], row["tier"]) for row in value["exec"]] == [
            (batch, "graph" if captures else "eager") for batch in BATCHES]
        assert value["page_bytes"] == PAGE and all(row["repeats"] == 5 for row in value["exec"])
    assert "host" in repository.profiled_kinds(entry.manifest.program_hash)
