"""Random LOAD, UNLOAD and EXEC on a real worker, by seed: does it keep its books, and are its answers torch's?

    python tools/soak_worker.py --seconds 600

One worker (the CPU's, or with --backend paged the GPU's way of working in host memory) with 300 instances of three
programs and a pool for about 100 of them, in this process; a scripted controller keeps both lanes busy. The load lane
is first in, first out, so each result's status and free pages are known when the action is sent; an EXEC of a model that
stays must succeed, and its outputs must be those of the plain torch module, whose weights were read another way
(check_outputs.py). Every two seconds all is let run out and every page's owner is checked. Memory must not grow after
the first tenth. Progress goes to stderr; the last line on stdout is one JSON object. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import check_outputs
import demo
import numpy as np

from cwd.bench.lone_controller import LoneController
from cwd.errors import Code, CwdError
from cwd.models.repository import Entry, Repository
from cwd.wire.messages import Type
from cwd.worker import residency as rs
from cwd.worker.host import DeviceWorker
from cwd.worker.host_store import HostStore
from cwd.worker.options import WorkerOptions

PAGE_BYTES = 1 << 20
#: a pool for one instance in so many
SHARE = 3
#: actions under way in a lane
DEPTH = 4
#: between two moments at which nothing is under way
PAUSE_S = 2.0
#: how much more memory than after the first tenth is growth
GROWTH = 1.02


@dataclass
class Instance:
    """A model as the controller's side sees it."""

    handle: int
    entry: Entry
    case: check_outputs.Case
    program: int
    pages: int
    loaded: bool = False
    #: LOADs and UNLOADs under way, EXECs under way
    moving: int = 0
    running: int = 0


@dataclass
class Expected:
    """What an action's result must be; `samples` of an EXEC that may succeed."""

    kind: Type
    instance: Instance
    statuses: tuple[int, ...]
    pages_free: int = -1
    samples: tuple[check_outputs.Sample, ...] = ()


class Soak:
    """The controller's side: what is sent, what must come back, and what was wrong."""

    def __init__(self, controller: LoneController, instances: list[Instance], programs: list[Entry], pages: int,
                 seed: int) -> None:
        self.controller, self.instances, self.pages_free = controller, instances, pages
        self.random = np.random.default_rng(seed)
        self.expected: dict[int, Expected] = {}
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.max_abs_difference = 0.0
        self.peer, _ = controller.greet()
        for index, entry in enumerate(programs):
            manifest = entry.manifest
            controller.act(self.peer, Type.PREPARE, name=manifest.name, version=manifest.version, image=bytes(16),
                           program=manifest.program_hash, program_index=index)
            fields, _ = controller.result(self.peer)
            if fields["status"] != 0:
                raise CwdError(f"PREPARE of {manifest.key} failed with {fields['status']}")

    def step(self) -> None:
        """Send an action to a lane with room, or take in a result."""
        loads = sum(one.kind != Type.EXEC for one in self.expected.values())
        if loads < DEPTH and self.random.random() < 0.4:
            self._load_or_unload()
        elif len(self.expected) - loads < DEPTH:
            self._execute()
        else:
            self.take_in()

    def settle(self) -> None:
        """Let everything run out."""
        while self.expected:
            self.take_in()

    def take_in(self) -> None:
        """One result, compared with what was expected."""
        fields, payload = self.controller.result(self.peer)
        if fields["type"] == Type.GOODBYE:
            raise CwdError(f"the worker left: {fields['text']}")
        expected = self.expected.pop(fields["action"])
        instance, status = expected.instance, fields["status"]
        self.counts[f"{expected.kind.name.lower()} {status}"] += 1
        if status not in expected.statuses:
            self._wrong(f"{expected.kind.name} of {instance.entry.manifest.key}: status {status}, wanted {expected.statuses}")
        if expected.kind == Type.EXEC:
            instance.running -= 1
            if status == 0:
                self._compare(expected, payload)
            return
        instance.moving -= 1
        if fields["pages_free"] != expected.pages_free:
            self._wrong(f"{expected.kind.name} of {instance.entry.manifest.key}: {fields['pages_free']} pages are free, "
                        f"wanted {expected.pages_free}")

    def _load_or_unload(self) -> None:
        instance = self._any()
        if instance.loaded:
            self._send(Expected(Type.UNLOAD, instance, (0,), self.pages_free + instance.pages))
            instance.loaded = False
            self.pages_free += instance.pages
            return
        fits = instance.pages <= self.pages_free
        if not fits and self.random.random() < 0.9:
            return  # mostly sensible
        self.pages_free -= instance.pages if fits else 0
        instance.loaded = fits
        self._send(Expected(Type.LOAD, instance, (0,) if fits else (int(Code.NO_PAGES),), self.pages_free),
                   image=instance.entry.manifest.image_hash, pages=instance.pages, program_index=instance.program)

    def _execute(self) -> None:
        instance, manifest = self._any(), None
        if not instance.loaded and self.random.random() < 0.9:
            loaded = [one for one in self.instances if one.loaded]
            instance = loaded[self.random.integers(len(loaded))] if loaded else instance
        manifest = instance.entry.manifest
        rows = int(self.random.integers(1, manifest.batch_sizes[-1] + 1))
        samples = tuple(instance.case.samples[k] for k in self.random.integers(len(instance.case.samples), size=rows))
        dims = [(sample.length,) if manifest.axes else () for sample in samples]
        size_class = max(manifest.size_class_of(one) for one in dims)
        # one in twenty comes too late; a model that comes or goes may be there or not
        late = self.random.random() < 0.05
        there = (0,) if instance.loaded else (int(Code.NOT_RESIDENT),)
        statuses = (int(Code.TOO_LATE),) if late else (0, int(Code.NOT_RESIDENT)) if instance.moving else there
        self._send(Expected(Type.EXEC, instance, statuses, samples=samples), tuple(map(payload_of, samples, [manifest] * rows)),
                   batch=next(size for size in manifest.batch_sizes if size >= rows), size_class=size_class,
                   rows=[(*one, 0, 0, 0, 0)[:4] for one in dims], **({"latest_ns": 1} if late else {}))

    def _send(self, expected: Expected, payload: tuple[bytes, ...] = (), **fields: Any) -> None:
        instance = expected.instance
        if expected.kind == Type.EXEC:
            instance.running += 1
        else:
            instance.moving += 1
            # what runs or waits meanwhile may find it gone, or there already
            for other in self.expected.values():
                if other.kind == Type.EXEC and other.instance is instance and int(Code.TOO_LATE) not in other.statuses:
                    other.statuses = (0, int(Code.NOT_RESIDENT))
        self.expected[self.controller.act(self.peer, expected.kind, payload, model=instance.handle, **fields)] = expected

    def _any(self) -> Instance:
        return self.instances[self.random.integers(len(self.instances))]

    def _compare(self, expected: Expected, payload: list[bytes]) -> None:
        manifest = expected.instance.entry.manifest
        for sample, found in zip(expected.samples, payload, strict=True):
            outputs, at = {}, 0
            for tensor in manifest.outputs:
                shape = tensor.sizes(manifest.axes, (sample.length,))
                array = np.frombuffer(found, tensor.dtype, int(np.prod(shape)), at).reshape(shape)
                outputs[tensor.name], at = array, at + array.nbytes
            difference = sample.difference(outputs)
            self.max_abs_difference = max(self.max_abs_difference, difference)
            self.counts["compared"] += 1
            if not difference <= check_outputs.TOLERANCE:
                self._wrong(f"an output of {manifest.key} differs from torch's by {difference:.2e}")

    def _wrong(self, text: str) -> None:
        self.wrong.append(text)
        if len(self.wrong) <= 20:
            sys.stderr.write(f"soak_worker: {text}\n")


def payload_of(sample: check_outputs.Sample, manifest: Any) -> bytes:
    """A request's input tensors as they travel."""
    return b"".join(sample.inputs[tensor.name].tobytes() for tensor in manifest.inputs if not tensor.made)


def make_worker(backend: str, repository: Repository, endpoint: str, pages: int) -> DeviceWorker:
    """With every image staged and every program built."""
    options = WorkerOptions(device="cpu", repo=str(repository.root), endpoint=endpoint, name="soak", pages=pages,
                            page_bytes=PAGE_BYTES)
    if backend == "paged":
        from cwd.worker.backends.gpu import HostGpu
        from cwd.worker.backends.paged import PagedBackend

        made: Any = PagedBackend(repository, HostGpu(), window_bytes=64 << 20, slot_bytes=16 << 20)
    else:
        from cwd.worker.backends.cpu import CpuBackend

        made = CpuBackend(repository)
    store = HostStore(repository, 16 << 30)
    worker = DeviceWorker(options, made, store)
    faults = store.stage_all(lambda entry: True, lambda done, total, name: None)
    if faults:
        raise CwdError(faults[0])
    return worker


def soak(backend: str, copies: int, seconds: float, seed: int, steps: demo.Steps) -> dict[str, Any]:
    """The whole; see the top."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        repository = Repository(Path(folder) / "models", create=True)
        entries = demo.build(repository, copies, seed, steps)
        cases = check_outputs.make_cases(entries, seed)
        programs = entries[:len(demo.PROGRAMS)]
        numbers = {entry.manifest.program_hash: index for index, entry in enumerate(programs)}
        instances = [Instance(1 + k, entry, case, numbers[entry.manifest.program_hash], entry.manifest.pages(PAGE_BYTES))
                     for k, (entry, case) in enumerate(zip(entries, cases, strict=True))]
        pages = sum(one.pages for one in instances) // SHARE
        steps.say(f"{len(instances)} instances, {sum(one.pages for one in instances)} pages; a pool of {pages}")
        endpoint = f"ipc://{folder}/workers.sock"
        worker = make_worker(backend, repository, endpoint, pages)
        with LoneController(endpoint) as controller:
            worker.start()
            try:
                driven = Soak(controller, instances, programs, pages, seed)
                rss = drive(driven, worker, seconds, steps)
            finally:
                worker.stop()
        if worker.failure is not None:
            driven.wrong.append(f"the worker failed: {worker.failure}")
    early, late = rss[0], max(rss[1:], default=rss[0])
    if late > GROWTH * early:
        driven.wrong.append(f"memory grew from {early} to {late} MiB")
    return {"backend": backend, "instances": len(instances), "pages": pages, "seconds": seconds, "seed": seed,
            **{name.replace(" ", "_"): count for name, count in sorted(driven.counts.items())},
            "max_abs_difference": driven.max_abs_difference, "rss_mib_after_a_tenth": early, "rss_mib_max_later": late,
            "wrong": driven.wrong[:20]}


def drive(driven: Soak, worker: DeviceWorker, seconds: float, steps: demo.Steps) -> list[int]:
    """Resident memory in MiB after the first tenth of the time, and at each pause later."""
    begin = time.monotonic()
    pause, said, rss = begin, begin, []
    while (now := time.monotonic()) < begin + seconds and len(driven.wrong) < 100:
        driven.step()
        if now >= pause:
            pause = now + PAUSE_S
            driven.settle()
            rs.check_residency(worker.device.residency, 0)
            driven.counts["checks"] += 1
            if now >= begin + seconds / 10:
                rss.append(resident_mib())
        if now >= said:
            said = now + 15
            steps.say(f"{now - begin:.0f} of {seconds:g} s: {dict(driven.counts)}, {resident_mib()} MiB")
    driven.settle()
    rs.check_residency(worker.device.residency, 0)
    return rss or [resident_mib()]


def resident_mib() -> int:
    """Memory of this process, without the files that it has mapped."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem")) >> 10


def main() -> int:
    parser = argparse.ArgumentParser(description="Random actions on a real worker, by seed.")
    parser.add_argument("--backend", choices=("cpu", "paged"), default="cpu")
    parser.add_argument("--copies", type=int, default=100, help="instances of each of the three programs")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        facts = soak(options.backend, options.copies, options.seconds, options.seed, demo.Steps())
    except (CwdError, TimeoutError) as error:
        sys.exit(f"soak_worker: {error}")
    sys.stdout.write(json.dumps(facts) + "\n")
    return 1 if facts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
