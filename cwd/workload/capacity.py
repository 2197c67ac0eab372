"""Measure what a cluster can do with a given mix: keep so many requests in flight, and count the answers.

A closed loop, on purpose: each answer makes room for the next request, so that the cluster is always busy and never
drowned. The mix is a sequence of model indices, taken round and round. An open-loop replay is then set against the
figure. Knows no trace format.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from cwd.client import Client
from cwd.client.call import Call, app_tag
from cwd.client.connection import Gate
from cwd.errors import Code, CwdError
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.workload.arrivals import Arrivals
from cwd.workload.inputs import InputMaker, Maker
from cwd.workload.lengths import Texts
from cwd.workload.replay import connect

#: a refusal may come back at once: whoever is refused pauses, lest the loop spin
PAUSE_NS = 5 * NS_PER_MS
TICK_NS = NS_PER_S // 5

_now = time.monotonic_ns


class Capacity(NamedTuple):
    """What was measured after the warm-up."""

    answered: int
    #: neither answered nor in flight at the end
    unanswered: int
    seconds: float

    @property
    def rps(self) -> float:
        return self.answered / self.seconds


def measure_capacity(endpoint: str, names: Sequence[str], arrivals: Arrivals, texts: Texts, *, in_flight: int = 32,
                     warm_s: float = 2.0, seconds: float = 6.0, slo_ns: int = 5 * NS_PER_S, seed: int = 0,
                     vocabulary: int | None = None, apps: Sequence[str] = (), makers: Sequence[Maker] = (),
                     progress: Callable[[float], None] | None = None) -> Capacity:
    """Answers per second with `in_flight` requests always under way, in the mix and the order of `arrivals`.

    `names`, `apps` and `makers` are as for a replay.
    """
    rng = np.random.default_rng([seed, 2])
    with Client(endpoint, name="capacity-lookup") as client:
        models = [client.lookup(name) for name in names]
    pool: dict[Any, Any] = {}
    makers = makers or [InputMaker(model, texts, rng, pool, vocabulary=vocabulary) for model in models]
    tags = [app_tag(app) for app in apps] or [0] * len(names)
    connection = connect(endpoint, "capacity")
    gate = Gate()

    def infer(now_ns: int, *args: Any) -> Call:
        call = connection.session.infer(now_ns, *args)
        call.on_done.append(gate)
        return call

    order = itertools.cycle(zip(arrivals["model"].tolist(), arrivals["length"].tolist(), strict=True))
    answered = unanswered = flying = 0
    began = _now()
    counts_from, end = began + int(warm_s * NS_PER_S), began + int((warm_s + seconds) * NS_PER_S)
    try:
        while (now := _now()) < end:
            while flying < in_flight:
                model, length = next(order)
                payload, dims = models[model].prepare(makers[model].make(length)[0])
                connection.start(infer, models[model], payload, dims, slo_ns, tags[model])
                flying += 1
            connection.wait(gate, min(end, now + TICK_NS))
            refused = False
            while gate.ready:
                call = gate.ready.popleft()
                flying -= 1
                refused |= call.error is not None
                if counts_from <= call.done_ns < end:
                    answered += call.error is None
                    unanswered += call.error is not None
            if refused:
                time.sleep(PAUSE_NS / NS_PER_S)
            if progress is not None:
                progress((now - began) / NS_PER_S)
    finally:
        connection.close()
    if not answered:
        raise CwdError(f"no request was answered in {seconds:g} s: nothing to measure", code=Code.NO_WORKER)
    return Capacity(answered, unanswered, seconds)
