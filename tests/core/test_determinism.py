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
    "clipper": "38e297b6020dbca48ad11decb044c29ea05037fde3990760fbdd78f28b1c010b",
    "clipper-quantile": "fe7d2bb6ff4e758b0a658cf6d077bbbbf1033b18875ede6abe4e318397b82d1f",
    "clockwork": "b01bff4aec763c4f0237a8b7013cc1d85b1da95828c43e757683234e5ba86c97",
    "clockwork-paper": "2913abeb082780c7abb0fff469efa1b1477804af14d152d5bce36c6a6b8dac69",
    "cwd": "110680d538167930ef1c86b2620b2e93b855cecbed1a2e07741488d73c4a31e5",
    "edf": "f2bf113995e6804e872bb92fd9a672eb31fdeae3d05f2d187fad7e8c9cbc7b10",
    "fifo": "ceb155183b5439a0ba25c57d7ba05430312a83fa562cba22169d9d4b8efd0a4e",
    "nexus": "78b1ce5e42fc0d514e4224e5a3a6ed8968191accf8d0b5f7435ba8853a06ad28",
    "orloj": "124388cd84a02d39b4e9ea97d219b5e40cd6989d09744e11df18ea6699bbe8a9",
    "shepherd": "b283a985ab1903e50a76de60674852166fa5b7d203a47a3f5b59886cfbe422bf",
    "symphony": "4409c6d57ba911e00c93da71844441d94f77cc0c35fe7e1c193561140b6ffdc3",
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


#: the same of a script in which models are spread and the copies worth least leave
SPREAD = "4a27a370a3cd1bb1a686e97c5fce76b25a5a7e772cef05afb7b0fab62142f797"


def spread_digest() -> str:
    """Eight models on three GPUs with room for nine and time to spare; two of them are popular."""
    world = MiniWorld(seed=12, policy="cwd", gpus=3, models=8, pages=21, checked=False)
    for i in range(300):
        model = world.models[i % 2 if i % 10 else 2 + i // 10 % 6]
        world.at(world.now + i * 6 * MS, lambda i=i, m=model: world.request(i % 8, i, m, 100 * MS))
    world.run(world.now + 30_000 * MS)
    world.finished()
    assert world.world.counters[0]["replicas"] >= 4 and world.world.counters[0]["unloads"] > 0
    return hashlib.sha256(b"".join(world.log)).hexdigest()


def test_every_policy_has_a_golden_hash():
    assert set(GOLDEN) == set(PRESETS)
    assert len(set(GOLDEN.values())) == len(GOLDEN)


@pytest.mark.parametrize("policy", sorted(GOLDEN))
def test_outbox_bytes_are_golden(policy):
    """In this process's mode."""
    assert digest(policy) == GOLDEN[policy]


def test_spreading_is_golden():
    assert spread_digest() == SPREAD


def test_outbox_bytes_do_not_depend_on_the_compiler():
    """In the other mode, in a process of its own."""
    here = pathlib.Path(__file__).resolve()
    other = "0" if os.environ.get("NUMBA_DISABLE_JIT") == "1" else "1"
    environment = {**os.environ, "NUMBA_DISABLE_JIT": other, "PYTHONPATH": f"{here.parents[2]}:{here.parent}"}
    code = "import test_determinism as t; print(*(t.digest(policy) for policy in sorted(t.GOLDEN)), t.spread_digest())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*(GOLDEN[policy] for policy in sorted(GOLDEN)), SPREAD]
