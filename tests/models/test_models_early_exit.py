"""The early-exit encoder: each row leaves where a plain loop over that row alone says, whoever runs beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cwd.models import importers, zoo
from cwd.models.early_exit import Block
from cwd.models.program import Program, find_factory
from cwd.models.repository import Repository

torch.set_num_threads(1)

ARGS = {"tokens": 6, "width": 32, "heads": 4, "blocks": 7, "every": 2, "classes": 5, "threshold": 0.8}
#: where its exits are: the last block has one, too
EXITS = (2, 4, 6, 7)


def options() -> dict[str, Any]:
    found = {**zoo.early_exit_options(), "batch_sizes": [1, 4]}
    del found["factory"], found["args"]
    found["inputs"] = [{"name": "features", "dtype": "float32", "shape": [ARGS["tokens"], ARGS["width"]]}]
    found["outputs"] = [{"name": "logits", "dtype": "float32", "shape": [ARGS["classes"]]}, found["outputs"][1]]
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Program, Any, nn.Module]:
    """(program, binding, the module with its weights copied in by torch)."""
    from safetensors.torch import load_file

    repository = Repository(tmp_path_factory.mktemp("early") / "models", create=True)
    (entry,) = importers.add_factory(repository, "early", "cwd.models.zoo:early_exit", ARGS, options(), seed=3)
    program = Program.load(repository, entry.manifest.program_hash)
    image = np.zeros(entry.manifest.image_bytes, np.uint8)
    repository.build_image(entry, image)
    module = find_factory("cwd.models.zoo:early_exit", trusted=False)(**ARGS).eval()
    module.load_state_dict(load_file(entry.weights_path))
    return program, program.bind(torch.from_numpy(image)), module


def features(count: int, strength: float, seed: int) -> np.ndarray:
    """Noise, and a direction of `strength` that all tokens of a row have in common: f4[count, tokens, width]."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((count, 1, ARGS["width"]))
    return (random.standard_normal((count, ARGS["tokens"], ARGS["width"])) + strength * common).astype(np.float32)


def naive(module: nn.Module, row: np.ndarray) -> tuple[np.ndarray, int]:
    """One request, block by block: the logits of the first exit that is sure, and how deep it is."""
    with torch.inference_mode():
        hidden = torch.from_numpy(row)[None] + module.positions
        for depth, block in enumerate(module.blocks, 1):
            hidden = block(hidden)
            if depth in EXITS:
                logits = module.exits[str(depth)](hidden.mean(1))
                if torch.softmax(logits, 1).max() >= ARGS["threshold"]:
                    break
        return logits[0].numpy(), depth


def split(result: np.ndarray) -> tuple[np.ndarray, int]:
    nbytes = 4 * int(ARGS["classes"])
    return result[:nbytes].view(np.float32), int(result[nbytes:].view(np.int64)[0])


def test_a_batch_gives_what_each_row_gives_alone(built: tuple[Program, Any, nn.Module]) -> None:
    program, binding, module = built
    rows = np.concatenate([features(12, strength, seed) for seed, strength in enumerate((0, 1, 2, 4, 30))])
    rows = rows[np.random.default_rng(9).permutation(len(rows))]
    wanted = [naive(module, row) for row in rows]
    # requests leave at every exit, and batches hold some that leave early beside some that leave late
    assert {depth for _, depth in wanted} == set(EXITS)
    assert any(max(depths) > 2 * min(depths) for at in range(0, len(rows), 4)
               if (depths := [depth for _, depth in wanted[at:at + 4]]))
    for size in (1, 3, 4):
        for at in range(0, len(rows), size):
            chosen = list(rows[at:at + size])
            results = program.infer(binding, chosen, [()] * len(chosen))
            for result, (logits, depth) in zip(results, wanted[at:at + size], strict=True):
                got, got_depth = split(result)
                np.testing.assert_allclose(got, logits, atol=1e-5)
                assert got_depth == depth


def test_a_batch_runs_until_its_last_row_has_left(built: tuple[Program, Any, nn.Module],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    program, binding, _ = built
    blocks, plain = [0], Block.forward

    def counted(self: Block, hidden: torch.Tensor) -> torch.Tensor:
        blocks[0] += 1
        return plain(self, hidden)

    monkeypatch.setattr(Block, "forward", counted)
    seen = set()
    for strength, seed in [(strength, seed) for strength in (0, 2, 4, 6, 9, 30) for seed in range(8)]:
        # three in a batch of four: what fills it up keeps nobody waiting
        chosen = list(features(3, strength, seed))
        blocks[0] = 0
        depths = [split(result)[1] for result in program.infer(binding, chosen, [()] * 3)]
        assert blocks[0] == max(depths)
        seen.add(max(depths))
    assert len(seen) > 2


def test_the_zoo_has_one_that_leaves_at_once_or_late(tmp_path: Path) -> None:
    repository = Repository(tmp_path, create=True)
    (entry,) = importers.add_zoo(repository, "early", "early-exit", seed=1)
    program = Program.load(repository, entry.manifest.program_hash)
    image = np.zeros(entry.manifest.image_bytes, np.uint8)
    repository.build_image(entry, image)
    binding = program.bind(torch.from_numpy(image))
    random = np.random.default_rng(2)
    shape = entry.manifest.program.inputs[0].shape
    noise = random.standard_normal((8, *shape)).astype(np.float32)
    alike = noise + 64 * random.standard_normal((8, 1, shape[1])).astype(np.float32)
    late, early = ([int(program.infer(binding, [row], [()])[0][-8:].view(np.int64)[0]) for row in rows]
                   for rows in (noise, alike))
    assert sorted(late)[2] >= 8 and sorted(early)[5] == 2
