"""Model profiles for simulations: what a model's execution and load take on a V100, and how many pages it has."""

from __future__ import annotations

import csv
import dataclasses
from importlib import resources

from cwd.errors import Code, CwdError

BATCHES = (1, 2, 4, 8, 16)
PAGE_BYTES = 16 << 20
#: pages of a V100 with 32 GB, as Clockwork's scheduler counts them (201 instances of ResNet-50 fit)
V100_PAGES = 1408
RESNET50 = "resnet50_v2"


@dataclasses.dataclass(frozen=True)
class Profile:
    """Durations in ns; `exec_ns` has one per batch size of BATCHES, or of the smaller ones alone."""

    name: str
    exec_ns: tuple[int, ...]
    load_ns: int
    pages: int

    def with_batch(self, batch: int, exec_ns: int) -> Profile:
        """The same with another duration at one batch size."""
        changed = tuple(exec_ns if size == batch else old for size, old in zip(BATCHES, self.exec_ns, strict=False))
        return dataclasses.replace(self, exec_ns=changed)

    def up_to(self, batch: int) -> Profile:
        """The same with batch sizes of at most `batch`, and of 1 in any case."""
        sizes = max(sum(size <= batch for size in BATCHES), 1)
        return dataclasses.replace(self, exec_ns=self.exec_ns[:sizes])


def v100() -> dict[str, Profile]:
    """The 64 models of Clockwork's table."""
    text = (resources.files("cwd.sim") / "v100.csv").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = {}
    for row in csv.DictReader(lines):
        exec_ns = tuple(int(row[f"exec_us_{batch}"]) * 1_000 for batch in BATCHES)
        pages = -(-int(row["weights_kb"]) * 1_000 // PAGE_BYTES)
        found[row["model"]] = Profile(row["model"], exec_ns, int(row["load_us"]) * 1_000, pages)
    return found


def profile(name: str) -> Profile:
    """One of them; raises `CwdError` for a name that is not there."""
    table = v100()
    if name not in table:
        raise CwdError(f"no profile of {name!r}; there are {', '.join(sorted(table))}", code=Code.BAD_ARGUMENT)
    return table[name]
