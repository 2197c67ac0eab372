"""Policies: they choose, the core does. One file each; `plan` picks by the world's number of the policy.

A policy has `plan_infer(world, gpu, now_ns)`, which issues executions while the GPU's exec lane is open, and
`plan_load(world, gpu, now_ns)`, which issues loads (and the unloads that make room) while its load lane is.
"""

from __future__ import annotations

from cwd.core.policies import clockwork, fifo
from cwd.core.world import POLICY_FIFO
from cwd.jit import inner_kernel


@inner_kernel
def plan(world, gpu, now_ns):
    """Let the world's policy look at one GPU."""
    if world.settings[0]["policy"] == POLICY_FIFO:
        fifo.plan_infer(world, gpu, now_ns)
        fifo.plan_load(world, gpu, now_ns)
    else:
        clockwork.plan_infer(world, gpu, now_ns)
        clockwork.plan_load(world, gpu, now_ns)
