"""What each policy runs next, against its naive twin; and what the engine does differently for one."""

from __future__ import annotations

import naive_policies as naive
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from script import MS, US, Script

from cwd.core import engine
from cwd.core.presets import PRESETS
from cwd.core.world import ACTION_EXEC, OUT_ACTION, Config
from cwd.errors import Code, CwdError

SMALL = settings(max_examples=60, deadline=None)
TOOK = {1: 3 * MS, 2: 4 * MS, 4: 6 * MS}
MODELS = 3


def run_next(policy, arrivals):
    """The first EXEC as (model, batch, ids) after requests (model, slo) came 100 us apart while the lane was taken.

    Also the queues that it chose from, the start that it counted with, and whether somebody was given up before.
    """
    script = Script(pages=50, policy=policy, admission=0)
    models = [script.model, *(script.add() for _ in range(MODELS - 1))]
    for model in models:
        script.hold(model)
    held = int(engine.lane_reserve(script.world, script.now, 0, 500 * MS))
    preset = PRESETS[policy]
    queues = {model: [] for model in range(MODELS)}
    for number, (model, slo_us) in enumerate(arrivals):
        script.now += 100 * US
        script.ask(number, slo=slo_us * US, model=models[model])
        due = script.now + max(slo_us * US - preset.client_ns, preset.due_floor_ns)
        queues[model].append((due - preset.end_ns, script.now, number))
    engine.action_done(script.world, script.now, held, int(Code.ABANDONED), 0, 0, 0, 0, -1, -1)
    need = TOOK[1] + preset.send_ns if preset.foresight else -preset.end_ns
    lost = False
    for queue in queues.values():
        queue.sort(key=lambda r: r[1] if preset.queue_order else (r[0], r[1]))
        while queue and queue[0][0] - need < script.now:
            queue.pop(0)
            lost = True
    runs = [out for out in script.tick() if out["kind"] == OUT_ACTION and out["verb"] == ACTION_EXEC]
    chosen = None
    if runs:
        chosen = (models.index(runs[0]["model"]), runs[0]["batch"], tuple(script.ids(runs[0])))
    return chosen, queues, script.now + preset.send_ns, lost


arrivals = st.lists(st.tuples(st.integers(0, MODELS - 1), st.integers(3_700, 16_000)), min_size=1, max_size=12)


@pytest.mark.parametrize("policy", ["fifo", "edf", "clockwork", "clockwork-paper", "shepherd", "symphony"])
@SMALL
@given(arrivals)
def test_a_policy_chooses_as_its_twin_does(policy, arrivals):
    chosen, queues, start, lost = run_next(policy, arrivals)
    if policy == "fifo":
        twin = naive.first_fit(queues, start, TOOK, lambda r: r[1], False)
    elif policy == "edf":
        twin = naive.first_fit(queues, start, TOOK, lambda r: r[0], False)
    elif policy == "clockwork" and not lost:
        twin = naive.first_fit(queues, start, TOOK, lambda r: r[0], True)
    elif policy == "clockwork":
        twin = naive.densest_of_all(queues, start, TOOK)
    elif policy == "clockwork-paper":
        twin = naive.filled(queues, start, TOOK)
    elif policy == "shepherd":
        twin = naive.largest(queues, start, TOOK)
    else:
        twin = naive.deferred(queues, start, TOOK, 100 * US)
    assert (chosen in twin) if twin else chosen is None
