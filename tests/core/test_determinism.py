"""The law of the core: the same configuration and events give the same outbox, byte for byte, compiled or not."""

from __future__ import annotations

import hashlib
import os
import pathlib
import subprocess
import sys

import pytest
from miniworld import MS, Faults, MiniWorld

from cwd.core.presets import PRESETS

#: sha256 of everything that the core left in its outbox. A change of policy or estimate changes it: understand what
#: caused the change, then take the new value from the failing test.
GOLDEN = {
    "clipper": "ac2cc3b1ee1c94f00211df75a0b29398d792cbaad67a1800e9dbe95e8e3b857b",
    "clipper-quantile": "a65fc28184c5839e3b6d06febb677cde7b3413f29aa3c7c3f6b1fce46c3f3473",
    "clockwork": "3ea414be87dbab0448e477b0994f4c8310164c68f45673189ad24d7a10c565fd",
    "clockwork-paper": "8db94ff9408cdf5d8d1c4d7b78c1de50c7438e837755e0f3cf1b949730d1224c",
    "cwd": "878e49db2736719f83e10e50365f70b6165a5472b74077bc567c6eec1eb54d5c",
    "edf": "e36993709d942da694e4ad3391925fb776f7ede692fb7e953d5b8b29d2b64a82",
    "fifo": "11ee067353bfcf9953a54cec620a023404d95b401dad05ec11bf553b5ff108d2",
    "nexus": "87c26574f29daf1fe589adaa95f4b0303fc5bb75b4802c2f6c6acc0aecfad421",
    "orloj": "9a014770e814d0e1c25c328acd8868146d1a79bb3c55197f0d95926d51005698",
    "shepherd": "c1f098072f67d3a5cfa11dffe03ccbb095e55fe5df2657700768678e91a9ed28",
    "symphony": "1f5927abc189de80fda7428254eea93c122027fdb9ded13e9bfd8de05a997671",
}


def digest(policy: str) -> str:
    """A fixed script through a faulty cluster: two GPUs, six models, a lost worker, a removed model, a gone client."""
    world = MiniWorld(seed=11, policy=policy, checked=False,
                      faults=Faults(undelivered=0.02, lost=0.02, failed=0.02, slow=0.02))
    for i in range(150):
        slo_ns = (40 + 37 * i % 160) * MS
        model, size_class = world.models[(i * i) % 6], (i // 3) % 2
        world.at(world.now + i * 3 * MS,
                 lambda i=i, s=slo_ns, m=model, c=size_class: world.request(i % 8, i, m, s, c))
    world.at(world.now + 200 * MS, lambda: world.lose(1))
    # then three models get far more than they can serve in time, with some that nobody waits for in between
    for i in range(120):
        slo_ns = 5_000 * MS if i % 10 == 0 else 30 * MS
        world.at(world.now + (470 + i // 4) * MS,
                 lambda i=i, s=slo_ns: world.request(i % 8, 1_000 + i, world.models[i % 3], s))
    world.run(world.now + 30_000 * MS)
    world.finished()
    return hashlib.sha256(b"".join(world.log)).hexdigest()


def test_every_policy_has_a_golden_hash():
    assert set(GOLDEN) == set(PRESETS)
    assert len(set(GOLDEN.values())) == len(GOLDEN)


@pytest.mark.parametrize("policy", sorted(GOLDEN))
def test_outbox_bytes_are_golden(policy):
    """In this process's mode."""
    assert digest(policy) == GOLDEN[policy]


def test_outbox_bytes_do_not_depend_on_the_compiler():
    """In the other mode, in a process of its own."""
    here = pathlib.Path(__file__).resolve()
    other = "0" if os.environ.get("NUMBA_DISABLE_JIT") == "1" else "1"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": other, "PYTHONPATH": f"{here.parents[2]}:{here.parent}"}
    code = "import test_determinism as t; print(*(t.digest(policy) for policy in sorted(t.GOLDEN)))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [GOLDEN[policy] for policy in sorted(GOLDEN)]
