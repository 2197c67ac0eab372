"""Policies: they choose what to run, the core does it. One file each; `plan` asks by the world's number of the policy.

A policy is `next_batch(world, gpu, now_ns)`: the copy to run now on a GPU whose exec lane is open, the first request,
the batch index, and how many rows to take from there on in queue order; copy -1: nothing now, though it may ask for
another look with `lanes.look_again`. Anything else in which policies differ is a setting of the engine: presets.py.
LOADs are the engine's (loads.py); policies set their order and their conditions.
"""

from __future__ import annotations

from cwd.core import actions, batches, histograms, lanes, loads, memory, queues, spread
from cwd.core.policies import (
    clipper, clipper_quantile, clockwork, clockwork_paper, cwd, fifo, nexus, orloj, shepherd, symphony,
)
from cwd.core.presets import (
    CLIPPER, CLIPPER_QUANTILE, CLOCKWORK_PAPER, CWD, EDF, FIFO, NEXUS, ORLOJ, SHEPHERD, SYMPHONY,
)
from cwd.core.world import FOREVER_NS, LANE_EXEC, NONE
from cwd.jit import inner_kernel

#: most executions that one look at one GPU issues
ISSUES_MAX = 64


@inner_kernel
def next_batch(world, gpu, now_ns):
    """What the world's policy runs next: (copy, first request, batch index, rows)."""
    policy = world.settings[0]["policy"]
    if policy == FIFO or policy == EDF:
        return fifo.next_batch(world, gpu, now_ns)
    if policy == CLOCKWORK_PAPER:
        return clockwork_paper.next_batch(world, gpu, now_ns)
    if policy == SHEPHERD:
        return shepherd.next_batch(world, gpu, now_ns)
    if policy == SYMPHONY:
        return symphony.next_batch(world, gpu, now_ns)
    if policy == CLIPPER or policy == CLIPPER_QUANTILE:
        return clipper.next_batch(world, gpu, now_ns)
    if policy == NEXUS:
        return nexus.next_batch(world, gpu, now_ns)
    if policy == CWD:
        return cwd.next_batch(world, gpu, now_ns)
    if policy == ORLOJ:
        return orloj.next_batch(world, gpu, now_ns)
    return clockwork.next_batch(world, gpu, now_ns)


@inner_kernel
def _drop_before(world, now_ns, first):
    """Give up who waits before a request in its queue."""
    model = world.models[world.requests[first]["model"]]
    while model["queue_head"] != first:
        queues.drop(world, now_ns, model["queue_head"], batches.DEADLINE_EXPIRED)


@inner_kernel
def plan(world, gpu, now_ns):
    """Let the world's policy look at one GPU: executions while its exec lane is open, loads while its load lane is."""
    world.gpus[gpu]["look_ns"] = FOREVER_NS
    for _ in range(ISSUES_MAX):
        if lanes.opens_ns(world, now_ns, gpu, LANE_EXEC) > now_ns:
            break
        copy, first, b, rows = next_batch(world, gpu, now_ns)
        if copy == NONE:
            break
        if world.settings[0]["drop_passed"] == 1:
            _drop_before(world, now_ns, first)
        if actions.issue_exec(world, now_ns, copy, b, batches.class_of(world, first), first, rows) == 0:
            break
        if world.settings[0]["spreads"] == 1:
            issued = world.actions[world.lanes[2 * gpu + LANE_EXEC]["last"]]
            spread.ran(world, now_ns, issued["model"], issued["expected_ns"])
    if world.settings[0]["policy"] == CLOCKWORK_PAPER:
        clockwork_paper.plan_loads(world, now_ns, gpu)
    else:
        loads.plan(world, now_ns, gpu)


@inner_kernel
def learn(world, now_ns, a, took_ns, own_ns):
    """Execution `a` went well and took so long, `own_ns` by the device's own clock: for policies that learn from it."""
    policy = world.settings[0]["policy"]
    if policy == CLIPPER:
        clipper.learn(world, a, took_ns)
    elif policy == CLIPPER_QUANTILE:
        clipper_quantile.learn(world, now_ns, a, took_ns)
    elif policy == ORLOJ or policy == CWD:
        histograms.learn(world, a, took_ns, own_ns)
    elif policy == CLOCKWORK_PAPER:
        memory.use(world, world.actions[a]["model"])
