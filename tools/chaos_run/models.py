"""The models of the run: what a request of each sends, and how its answer is known to be its own.

`same-N` and `big` run on emulated GPUs, which answer zeros of the right size; `real-N` are small networks that torch runs
on a CPU, so that each request's input has an answer of its own. `pages` are of one size everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cwd.units import NS_PER_MS

PAGE_BYTES = 64 << 10
SAMES, REALS = 6, 2
WIDTHS = (64, 256, 64, 8)
BIG_BYTES = 64 << 10
#: different inputs of a real model, and their answers, in the file that the clients read
EXAMPLES = 16
TOLERANCE = 1e-4
#: which model each request asks for, in turn
MIX = (*(f"same-{number:03}" for number in range(SAMES)), *(f"real-{number:03}" for number in range(REALS)))

Array = NDArray[Any]


def build(folder: Path) -> None:
    """Fill `folder` with the repository `models` and the file `examples.json`. Takes torch."""
    from cwd.models import profile
    from cwd.models.repository import Repository
    from cwd.models.zoo import identity_options, mlp_options

    repository = Repository(folder / "models", create=True)
    for name, copies, nbytes in (("same", SAMES, 1), ("big", 1, BIG_BYTES)):
        entry = _add(repository, name, identity_options(nbytes), copies)[0]
        times = {pair: (3 + pair[0]) * NS_PER_MS for pair in profile.pairs(entry.manifest.program)}
        profile.write_table(repository, entry.manifest.program_hash, "emulated", times, load_ns_per_page=NS_PER_MS,
                            page_bytes=PAGE_BYTES)
    reals = _add(repository, "real", mlp_options(WIDTHS), REALS)
    profile.measure_cpu(repository, reals[0], repeats=5, page_bytes=PAGE_BYTES)
    (folder / "examples.json").write_text(json.dumps({entry.manifest.name: examples(entry) for entry in reals}))


def _add(repository: Any, name: str, options: dict[str, Any], copies: int) -> list[Any]:
    from cwd.models.importers import add_factory

    return add_factory(repository, name, options.pop("factory"), options.pop("args"), options, seed=7, copies=copies)


def examples(entry: Any) -> list[list[list[float]]]:
    """[input, answer] pairs of a real model, the answers computed here."""
    import torch
    from safetensors.torch import load_file

    from cwd.models.zoo import mlp

    module = mlp(list(WIDTHS))
    module.load_state_dict(load_file(entry.weights_path))
    inputs = np.random.default_rng(11).standard_normal((EXAMPLES, WIDTHS[0]), dtype=np.float32)
    with torch.inference_mode():
        return [[given.tolist(), module(torch.from_numpy(given)[None])[0].tolist()] for given in inputs]


class Asker:
    """Inputs of the requests of one client, and whether an answer is right."""

    def __init__(self, path: Path) -> None:
        self._examples = {name: [(np.array(given, np.float32), np.array(answer, np.float32)) for given, answer in pairs]
                          for name, pairs in json.loads(path.read_text()).items()}

    def model(self, number: int) -> str:
        return MIX[number % len(MIX)]

    def inputs(self, number: int, model: str) -> Array:
        if model in self._examples:
            return self._examples[model][self._example(number)][0]
        return np.full(BIG_BYTES if model == "big" else 1, number & 0xFF, np.uint8)

    def right(self, number: int, model: str, output: Array) -> bool:
        """Whether `output` is the answer to this request, and not to one of other inputs."""
        if model in self._examples:
            wanted = self._examples[model][self._example(number)][1]
            return output.shape == wanted.shape and bool(np.abs(output - wanted).max() <= TOLERANCE)
        return output.shape == (BIG_BYTES if model == "big" else 1,) and not output.any()

    def _example(self, number: int) -> int:
        return number // len(MIX) % EXAMPLES
