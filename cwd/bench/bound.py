"""The bound: how many examples per second a program's module does when it is called directly, at its best batch size.

    python -m cwd.bench.bound --repository models --model convnet

answers each line on stdin with one measurement, a JSON object {"rps", "batch", "by_batch": {batch: rps}}, so that it
can be measured again between other things, on the same core, without importing torch anew.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from typing import Any

from cwd.errors import CwdError


class Bound:
    """A module with an instance's weights, as the worker has it, and an input for each batch size."""

    def __init__(self, repository: str, model: str) -> None:
        import numpy as np
        import torch

        from cwd.models.program import build_module
        from cwd.models.repository import Repository
        from cwd.models.zoo import make_weights

        torch.set_num_threads(1)
        repo = Repository(repository)
        manifest = repo.get(model).manifest
        spec = manifest.program
        module = build_module(spec.factory, spec.args, trusted=False)
        weights = make_weights(module, max(manifest.seed, 0))
        module = module.to_empty(device="cpu")
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()},
                               strict=False)
        self._module = module.eval()
        shape = spec.client_inputs()[0].shape
        self._inputs = {batch: torch.rand(batch, *shape) for batch in spec.batch_sizes}
        if getattr(spec, "memory_format", "") == "channels_last":
            self._module = self._module.to(memory_format=torch.channels_last)
            self._inputs = {batch: x.contiguous(memory_format=torch.channels_last) for batch, x in self._inputs.items()}

    def measure(self, seconds: float) -> dict[str, Any]:
        """Call each batch size in turn for `seconds` in all; rates from the median call."""
        import torch

        rates = {}
        with torch.inference_mode():
            for batch, x in self._inputs.items():
                times, end = [], time.perf_counter() + seconds / len(self._inputs)
                while len(times) < 3 or time.perf_counter() < end:
                    begin = time.perf_counter()
                    self._module(x)
                    times.append(time.perf_counter() - begin)
                rates[batch] = batch / statistics.median(times)
        best = max(rates, key=lambda batch: rates[batch])
        return {"rps": rates[best], "batch": best, "by_batch": rates}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repository", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args(arguments)
    try:
        bound = Bound(given.repository, given.model)
    except CwdError as error:
        sys.exit(f"bound: {error}")
    for _ in sys.stdin:
        sys.stdout.write(json.dumps(bound.measure(given.seconds)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
