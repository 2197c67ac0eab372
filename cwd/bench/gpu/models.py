"""The models of the experiments: a ResNet-50 in two precisions and a BERT, and any number of instances of them.

A program and one instance come through the importers, like any model. Other instances are that one's page image with
noise of a tenth on every weight: as different as instances can be, and made as fast as memory is written. A dry run has
toys of the same classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cwd.bench.gpu.models_names import BERT, RESNET, RESNET_HALF
from cwd.models import fit, importers, probe, zoo
from cwd.models.layout import WeightsFile
from cwd.models.program import Buffers, Program
from cwd.models.repository import Entry, Repository
from cwd.models.spec import ProgramSpec
from cwd.net.clock import monotonic_ns
from cwd.net.wake import spin_until
from cwd.worker.backends.gpu import Gpu, Graph, tensor_at, torch
from cwd.worker.backends.paged import PagedBackend


NOISE = 0.1
_PHASES = 1 << 16


def resnet_options(toy: bool) -> dict[str, Any]:
    """ResNet-50, which is what transformers' configuration says by default, for 3 x 224 x 224."""
    config: dict[str, Any] = {"num_labels": 1000}
    if toy:
        config |= {"embedding_size": 8, "hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1]}
    side = 32 if toy else 224
    return {
        "factory": f"{zoo.HERE}:transformers_model",
        "args": {"architecture": "ResNetForImageClassification", "config": config}, "memory_format": "channels_last",
        "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": [3, side, side]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [1000]}], "batch_sizes": [1, 2, 4, 8, 16],
    }


def bert_options(toy: bool) -> dict[str, Any]:
    """A classifier on BERT-base, which is what transformers' configuration says by default; batches of one."""
    config: dict[str, Any] = {"num_labels": 8}
    if toy:
        config |= {"vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                   "intermediate_size": 64, "max_position_embeddings": 64}
    classes = [[16], [32], [64]] if toy else [[64], [128], [256]]
    return {
        "factory": f"{zoo.HERE}:transformers_model",
        "args": {"architecture": "BertForSequenceClassification", "config": config},
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["sequence"]},
                   {"name": "attention_mask", "dtype": "int64", "shape": ["sequence"], "made": "mask"}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [8]}],
        "axes": ["sequence"], "padding": "mask", "size_classes": classes, "batch_sizes": [1],
    }


def add(repository: Repository, name: str, toy: bool) -> Entry:
    """One of the three models, unless it is there."""
    if (repository.root / name).is_dir():
        return repository.get(name)
    if name == RESNET_HALF:
        return _add_half(repository, add(repository, RESNET, toy))
    options = bert_options(toy) if name == BERT else resnet_options(toy)
    return importers.add_factory(repository, name, options.pop("factory"), options.pop("args"), options, seed=1)[0]


def _add_half(repository: Repository, entry: Entry) -> Entry:
    """The same model with weights, inputs and outputs of half the size."""
    spec = entry.manifest.program
    weights = tuple(dataclasses.replace(one, dtype="F16") if one.dtype == "F32" else one for one in spec.weights)
    halved = dataclasses.replace(spec, weights=weights, inputs=_halves(spec.inputs), outputs=_halves(spec.outputs))
    tensors = {}
    with WeightsFile(entry.weights_path) as file:
        for weight in spec.weights:
            raw = file.bytes_of(weight.name)
            # a copy in either case: the file is closed before the tensors are written
            tensors[weight.name] = (raw.view(np.float32).astype(np.float16).view(np.uint8) if weight.dtype == "F32"
                                    else raw.copy())
            del raw
    return repository.add(RESNET_HALF, 1, repository.add_program(halved), tensors, seed=1)


def _halves(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dataclasses.replace(one, dtype="float16") if one.dtype == "float32" else one for one in tensors)


class Instances:
    """Page images of a program: number 0 is the entry's own, the others are made from it."""

    def __init__(self, repository: Repository, entry: Entry) -> None:
        self.entry, self.program = entry, entry.manifest.program_hash
        self.spec = entry.manifest.program
        self.nbytes = entry.manifest.image_bytes
        self.base = np.zeros(self.nbytes, np.uint8)
        repository.build_image(entry, self.base)
        kind = torch.float16 if any(weight.dtype == "F16" for weight in self.spec.weights) else torch.float32
        self._words = torch.from_numpy(self.base).view(kind)
        noise = torch.randn(len(self._words) + _PHASES, generator=torch.Generator().manual_seed(1))
        self._noise = (1 + NOISE * noise.clamp_(-3, 3)).to(kind)

    def write(self, number: int, out: np.ndarray) -> None:
        """Instance `number` into out u1[nbytes], 4-byte aligned. Integers among the weights are zeros, and stay."""
        target = tensor_at(out.ctypes.data, self.nbytes).view(self._words.dtype)
        if number == 0:
            target.copy_(self._words)
        else:
            phase = number * 7919 % _PHASES
            torch.mul(self._words, self._noise[phase:phase + len(self._words)], out=target)

    def image(self, number: int) -> np.ndarray:
        out = np.empty(self.nbytes, np.uint8)
        self.write(number, out)
        return out

    def pages(self, page_bytes: int) -> int:
        return self.entry.manifest.pages(page_bytes)

    def payload(self, size_class: int, seed: int) -> np.ndarray:
        """u1[n]: a request of the class's largest size."""
        arrays = probe.sample_payload(self.spec, self.spec.size_classes[size_class], seed=seed)
        return np.concatenate([probe.raw_bytes(array) for array in arrays])


class Runner:
    """Executions of one shape by a paged backend, as its exec lane would have them; inside `backend.thread()`."""

    def __init__(self, backend: PagedBackend, instances: Instances, batch: int, size_class: int, seed: int = 1) -> None:
        self.backend, self.program, self.batch, self.size_class = backend, instances.program, batch, size_class
        self.payloads = [instances.payload(size_class, seed + row) for row in range(batch)]
        dims = tuple(instances.spec.size_classes[size_class])
        self.requests = fit.requests_of(self.payloads, [dims] * batch)
        self._sizes = np.zeros(batch, np.int64)
        backend.output_bytes(self.program, self.requests.dims, self._sizes)
        self.results = [np.zeros(int(size), np.uint8) for size in self._sizes]
        self._targets = np.array([result.ctypes.data for result in self.results], np.int64)
        #: what `finish` spends without the GIL between two questions; 0: one call of a kernel, as a lane does
        self.pause_ns = 0

    def stage(self, slot: int = 0) -> None:
        requests = self.requests
        code = self.backend.stage(slot, self.program, self.batch, self.size_class, requests.addresses, requests.sizes,
                                  requests.dims)
        if code != 0:
            raise RuntimeError(f"the requests do not fit: {code}")

    def start(self, bound: Any, slot: int = 0) -> None:
        self.backend.start(slot, bound)

    def finish(self) -> int:
        """Wait for what was started; the device's ns."""
        while not self.backend.ended():
            spin_until(monotonic_ns() + self.pause_ns)
        return self.backend.finish(self._targets)

    def once(self, seat: int) -> int:
        """Run what was staged, with the instance in that seat; the device's ns."""
        return self.once_bound(self.backend.bind(self.program, seat))

    def once_bound(self, bound: Any) -> int:
        self.start(bound)
        return self.finish()

    def output(self) -> np.ndarray:
        """What came out, all rows of the first (the only) output."""
        return np.concatenate(self.results)


class Eager:
    """A program with one instance's weights on the device, run as torch runs it: what others are compared with."""

    def __init__(self, repository: Repository, instances: Instances, gpu: Gpu) -> None:
        self.gpu, self.spec = gpu, instances.spec
        with torch.inference_mode(False):
            self.program = Program.load(repository, instances.program, device=gpu.device)
        self._flat = gpu.memory(instances.nbytes)
        self.binding = self.program.bind(self._flat)
        self._buffers: dict[tuple[int, int], Buffers] = {}

    def use(self, image: np.ndarray) -> None:
        """Weights of that image from now on."""
        self._flat.copy_(tensor_at(image.ctypes.data, image.size))

    def buffers(self, batch: int, size_class: int) -> Buffers:
        found = self._buffers.get((batch, size_class))
        if found is None:
            wanted, _ = self.program.array_specs(batch, size_class)
            found = self.program.make_buffers(batch, size_class, tuple(
                torch.ones(shape, dtype=dtype, device=self.gpu.device) for shape, dtype in wanted))
            self._buffers[batch, size_class] = found
        return found

    def fill(self, payloads: list[np.ndarray], size_class: int) -> Buffers:
        """Buffers with those requests in them, each of the class's largest size; masks are ones."""
        found, start = self.buffers(len(payloads), size_class), 0
        rows = np.stack(payloads)
        for tensor, spec in zip(found.tensors, self.spec.inputs, strict=True):
            if not spec.made:
                nbytes = tensor[0].numel() * tensor.itemsize
                piece = torch.from_numpy(rows[:, start:start + nbytes].copy())
                tensor.copy_(piece.view(tensor.dtype).view(tensor.shape))
                start += nbytes
        return found

    def run(self, buffers: Buffers) -> list[torch.Tensor]:
        return self.program.run_in(self.binding, buffers)

    def output(self, payloads: list[np.ndarray], size_class: int) -> np.ndarray:
        """What comes out for those requests, as `Runner.output` has it."""
        (found,) = self.run(self.fill(payloads, size_class))
        return np.concatenate([probe.raw_bytes(row) for row in found])

    def captured(self, batch: int, size_class: int) -> Graph:
        """The bare program as a graph: no gather, nothing brought or fetched."""
        buffers, kept = self.buffers(batch, size_class), []
        for _ in range(3):
            self.run(buffers)
        return self.gpu.capture(lambda: kept.append(self.run(buffers)))


def difference(found: np.ndarray, wanted: np.ndarray, spec: ProgramSpec) -> float:
    """The largest difference over the largest value, of outputs as bytes; infinite where there is no number."""
    kind = spec.outputs[0].dtype
    ours, theirs = (part.view(kind).astype(np.float64) for part in (found, wanted))
    if not np.isfinite(ours).all():
        return float("inf")
    return float(np.abs(ours - theirs).max() / max(float(np.abs(theirs).max()), 1e-9))
