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
    "clipper": "5da1932b776fee7acf2d99086187532383152ad97cf0f358ad7b09c28ac0b3ed",
    "clipper-quantile": "818d0acb52b21beb80ece6c021ff5b24d5e7462270fb000d29c630ae00e68001",
    "clockwork": "9997bf4f42ee41540f552e5e4511041cc73b8a791e6a8e1f6ce17b9b64baa656",
    "clockwork-paper": "0af6cf3bab274db427fd880c9894303fa715d293290ce7d01ad5c7d09ea242ef",
    "edf": "ca7e3e8049ef1513dc4bb89c1f382c468f9fc503a4ea8e4174be06f98b75c6f2",
    "fifo": "14682946e661b05993d0df55450101f793d6cf106bf68575bec8783a44c0cf78",
    "nexus": "7b5e16e70cebdedebb4bf219f2bd8adc67a5e2f9a01f6ed1f17679777d4f4506",
    "orloj": "419bddac0226dfb26c71d1eebb9d17679ce636134c7747171d96e981f4426ca3",
    "shepherd": "78af97978c0fb8b173e8b4f3fb84ee7c425b2e8a2c0e9e0f0f8b1e89e7eb57c2",
    "symphony": "dc35142aa39aec9f095c148f934371782252379b4f124a35ba38e756790ee9d3",
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
