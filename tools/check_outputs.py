"""Are the answers right? Every instance of the demo's population, compared with its module run directly in torch.

    python tools/check_outputs.py

Brings up a cluster whose page pool holds at most a third of the instances and walks over all of them, at least twice,
until each has been evicted and loaded again, which the `cold` flag of an answer shows. Each visit asks one by one, then
with all requests in flight at once until a batch has come about; sequences are as long as a size class, one more and
one less. What is wanted comes from another path: the program's factory, the instance's safetensors file, one example
at a time, unpadded, without a mask. Progress goes to stderr; the last line on stdout is one JSON object. Exits with 1
if an answer is off by more than 1e-5, or if anything of the above has not come about.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import demo
import numpy as np

import cwd
from cwd.errors import CwdError
from cwd.models.manifest import Manifest
from cwd.models.repository import Entry, Repository

TOLERANCE = 1e-5
#: two instances whose outputs for one input are nearer than this could be mistaken for each other
APART = 1e-2
SLO = "10s"
PROFILE_SECONDS = 3.0
#: requests of a visit to a model without a dynamic axis
FIXED_SAMPLES = 10
#: so often all requests of a visit are sent at once, at the most, for a batch to come about
ROUNDS = 5
PASSES, PASSES_MAX = 2, 4
WAYS, STAGES = ("alone", "batched"), ("before", "after")


@dataclass(frozen=True)
class Sample:
    """One request and the outputs that it should have. `length` is 0 without a dynamic axis."""

    inputs: dict[str, np.ndarray]
    length: int
    padded: bool
    wanted: dict[str, np.ndarray]

    def difference(self, found: dict[str, np.ndarray]) -> float:
        """The largest absolute difference from what is wanted; infinite for other shapes, and for what is no number."""
        worst = 0.0
        for name, wanted in self.wanted.items():
            if name not in found or found[name].shape != wanted.shape:
                return float("inf")
            largest = float(np.abs(found[name] - wanted).max())
            worst = max(worst, largest if np.isfinite(largest) else float("inf"))
        return worst


@dataclass(frozen=True)
class Case:
    """An instance and its samples; the first sample has the same inputs for all instances of a program."""

    name: str
    program: bytes
    samples: list[Sample]

    def ways(self) -> list[str]:
        """How it has to be asked, at each stage."""
        return [*WAYS, *(f"padded {way}" for way in WAYS if any(sample.padded for sample in self.samples))]


@dataclass
class Tally:
    """What has been compared so far."""

    compared: int = 0
    alone: int = 0
    batched: int = 0
    padded: int = 0
    cold: int = 0
    max_abs_difference: float = 0.0
    worst: dict[str, Any] = field(default_factory=dict)
    #: instances that were cold again after they had been asked alone and in a batch
    reloaded: set[str] = field(default_factory=set)
    #: (instance, stage, way): what has come about
    covered: set[tuple[str, str, str]] = field(default_factory=set)

    def stage(self, case: Case) -> str:
        return STAGES[case.name in self.reloaded]

    def knows(self, case: Case) -> bool:
        """Whether the instance has been asked in every way before its reload."""
        return all((case.name, STAGES[0], way) in self.covered for way in case.ways())

    def add(self, case: Case, sample: Sample, result: cwd.Result, visit: int, way: str) -> None:
        """Compare one answer; `way` is "" for a request that was in flight with others and ran by itself."""
        difference = sample.difference(result.outputs)
        if difference > self.max_abs_difference or not self.worst:
            self.max_abs_difference = difference
            self.worst = {"model": case.name, "pass": visit, "way": way or "in flight with others", "batch": result.batch,
                          "length": sample.length, "cold": result.cold}
        self.compared += 1
        self.alone += way == "alone"
        self.batched += way == "batched"
        self.padded += sample.padded
        self.cold += result.cold
        if way:
            self.covered.add((case.name, self.stage(case), way))
            if sample.padded:
                self.covered.add((case.name, self.stage(case), f"padded {way}"))

    def problems(self, cases: list[Case]) -> list[str]:
        """Why this is no proof, in words; empty if it is one."""
        found = []
        if not self.max_abs_difference <= TOLERANCE:
            found.append(f"an output differs from torch by {self.max_abs_difference:.2e}: {self.worst}")
        for stage, way in itertools.product(STAGES, dict.fromkeys(way for case in cases for way in case.ways())):
            lacking = [case.name for case in cases if way in case.ways() and (case.name, stage, way) not in self.covered]
            if lacking:
                found.append(f"{len(lacking)} instances were not compared {way} {stage} a reload: {lacking[0]}, ...")
        nearest, pair = nearest_pair(cases)
        if nearest < APART:
            found.append(f"{pair} differ by {nearest:.2e} only for the same input: they cannot be told apart")
        return found

    def facts(self, cases: list[Case]) -> dict[str, Any]:
        return {
            "instances": len(cases), "programs": len({case.program for case in cases}), "compared": self.compared,
            "alone": self.alone, "batched": self.batched, "padded": self.padded, "cold": self.cold,
            "evicted_and_reloaded": len(self.reloaded), "max_abs_difference": self.max_abs_difference, "worst": self.worst,
        }


def main() -> None:
    options = parse_options()
    steps = demo.Steps()
    try:
        facts, problems = check(options.copies, options.seed, steps)
    except CwdError as error:
        sys.exit(f"check_outputs: {error}")
    for problem in problems:
        steps.say(f"not proved: {problem}")
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.exit(1 if problems else 0)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare every served instance with its module run in torch.")
    parser.add_argument("--copies", type=int, default=20, help="instances of each of the three programs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.copies < 2 or options.seed < 0:
        parser.error("at least 2 copies, or a third of the instances is less than one; and no negative seed")
    return options


def check(copies: int, seed: int, steps: demo.Steps) -> tuple[dict[str, Any], list[str]]:
    """(facts, problems) of the whole: the models are built, served, compared and thrown away."""
    import torch

    torch.set_num_threads(1)  # on a machine that others share, threads waiting for each other took 27 times as long
    run = demo.ROOT / "run"
    run.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="outputs-", dir=run) as folder:
        with demo.compiled_beside(steps):
            repository = Repository(Path(folder) / "models", create=True)
            entries = demo.build(repository, copies, seed, steps)
        demo.profile_programs(repository, entries, PROFILE_SECONDS, steps)
        cases = make_cases(entries, seed)
        nearest, pair = nearest_pair(cases)
        steps.say(f"computed {sum(len(case.samples) for case in cases)} references; the two instances nearest to each "
                  f"other, {pair}, differ by {nearest:.2g}")
        pages = demo.pool_pages(entries)
        steps.say(f"bringing up a cluster with {pages} pages of {demo.PAGE_BYTES >> 20} MiB for {len(cases)} models")
        with cwd.LocalCluster(repository.root, pool=pages * demo.PAGE_BYTES, page=demo.PAGE_BYTES,
                              progress=steps.say) as cluster:
            cluster.wait_servable(*(case.name for case in cases))
            tally = compare(cluster, cases, steps)
            counters = cluster.status()["core"]
    problems = tally.problems(cases)
    steps.say(f"the controller counts {counters['loads']} loads and {counters['unloads']} unloads")
    if counters["loads"] < len(cases) + len(tally.reloaded) or counters["unloads"] < len(tally.reloaded):
        problems.append("the controller counts fewer loads and unloads than the answers show")
    return tally.facts(cases), problems


def compare(cluster: cwd.LocalCluster, cases: list[Case], steps: demo.Steps) -> Tally:
    """Walk over all instances until each was evicted and loaded again."""
    tally = Tally()
    with cluster.client(slo=SLO) as client:
        for visit in range(1, PASSES_MAX + 1):
            if visit > PASSES and len(tally.reloaded) == len(cases):
                break
            for case in cases:
                ask(client, case, visit, tally)
            steps.say(f"pass {visit}: {tally.compared} compared, {tally.cold} of them cold, {tally.batched} in batches; "
                      f"{len(tally.reloaded)} instances reloaded; largest difference {tally.max_abs_difference:.1e}")
    return tally


def ask(client: cwd.Client, case: Case, visit: int, tally: Tally) -> None:
    """One by one, then all at once, until there was a batch with padded and one with other sequences in it."""
    for index, sample in enumerate(case.samples):
        result = client.infer(case.name, sample.inputs)
        if index == 0 and result.cold and tally.knows(case):
            tally.reloaded.add(case.name)
        tally.add(case, sample, result, visit, "alone")
    for _ in range(ROUNDS):
        pendings = [client.submit(case.name, sample.inputs) for sample in case.samples]
        for sample, pending in zip(case.samples, pendings, strict=True):
            result = pending.result()
            tally.add(case, sample, result, visit, "batched" if result.batch > 1 else "")
        if all((case.name, tally.stage(case), way) in tally.covered for way in case.ways()):
            break


def make_cases(entries: Iterable[Entry], seed: int) -> list[Case]:
    """Each instance with its samples and their references; programs and instances have inputs of their own, by seed."""
    programs: dict[bytes, int] = {}
    cases = []
    for number, entry in enumerate(entries):
        program = programs.setdefault(entry.manifest.program_hash, len(programs))
        module = plain_module(entry)
        shared, own = np.random.default_rng((seed, program)), np.random.default_rng((seed, program, number + 1))
        first, *rest = lengths_of(entry.manifest)
        samples = [make_sample(entry.manifest, module, first, shared)]
        samples += [make_sample(entry.manifest, module, length, own) for length in own.permutation(rest).tolist()]
        cases.append(Case(entry.manifest.key, entry.manifest.program_hash, samples))
    return cases


def lengths_of(manifest: Manifest) -> list[int]:
    """At, just above and just below each border of the size classes, and 1; zeros for a program without an axis."""
    if not manifest.axes:
        return [0] * FIXED_SAMPLES
    borders = [sizes[0] for sizes in manifest.size_classes]
    near = {1, *(border + step for border in borders for step in (-1, 0, 1))}
    return sorted(length for length in near if 1 <= length <= max(borders))


def make_sample(manifest: Manifest, module: Any, length: int, random: np.random.Generator) -> Sample:
    inputs = {}
    for tensor in manifest.inputs:
        shape = [length if isinstance(size, str) else size for size in tensor.shape]
        if tensor.dtype == "float32":
            inputs[tensor.name] = random.standard_normal(shape, dtype=np.float32)
        else:
            inputs[tensor.name] = random.integers(demo.VOCABULARY, size=shape, dtype=tensor.dtype)
    padded = bool(length) and (length,) not in manifest.size_classes
    return Sample(inputs, length, padded, run_plain(manifest, module, inputs))


def plain_module(entry: Entry) -> Any:
    """The instance as anyone would make it in torch, without cwd's own way of building and binding programs."""
    from safetensors.torch import load_file

    package, _, name = entry.manifest.program.factory.partition(":")
    module = getattr(importlib.import_module(package), name)(**entry.manifest.program.args)
    module.load_state_dict(load_file(entry.weights_path))
    return module.float().eval()


def run_plain(manifest: Manifest, module: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The module's outputs for one example by itself."""
    import torch

    with torch.inference_mode():
        found = module(**{name: torch.from_numpy(array)[None] for name, array in inputs.items()})
    return {tensor.name: found[tensor.name][0].numpy() for tensor in manifest.outputs}


def nearest_pair(cases: list[Case]) -> tuple[float, str]:
    """How far apart the references of two instances are, at the least, for the input that a program's instances share."""
    families = defaultdict(list)
    for case in cases:
        families[case.program].append(case)
    nearest, names = float("inf"), "no two of one program"
    for family in families.values():
        for one, other in itertools.combinations(family, 2):
            apart = one.samples[0].difference(other.samples[0].wanted)
            if apart < nearest:
                nearest, names = apart, f"{one.name} and {other.name}"
    return nearest, names


if __name__ == "__main__":
    main()
