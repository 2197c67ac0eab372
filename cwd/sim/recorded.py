"""A live run again in the simulator: the same requests at the same times, each action taking what it took then.

The core is the live one's as it was when the run began (fed its log up to there), so it has learned the same and the same
models are loaded. From there on requests come at their recorded times with their deadlines, and the GPUs are simulated:
the n-th execution of a program in a batch size and size class takes as long as the n-th such took live, the n-th LOAD of a
program as the n-th live; where the simulation has more of them than there were, it starts again with the first; what was
never run live takes what the core expects. Messages take as long as some message did: recorded delays, by chance.

Python steps from instant to instant, for the next duration to be in place before the next action begins.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from cwd.core import engine
from cwd.core.world import (
    ACTION_EXEC, ACTION_LOAD, COPY_READY, FOREVER_NS, GPU_UP, MODEL_READY, OUT_ACTION, OUT_REPLY, SLOT_BITS, Config, World,
)
from cwd.errors import Code, CwdError, InvariantError
from cwd.sim import checks, loop
from cwd.sim import world as w
from cwd.sim.events import push
from cwd.sim.hidden import STRETCH_BITS
from cwd.sim.noise import quantiles
from cwd.sim.profile import BATCHES, Profile
from cwd.sim.scenario import Load, Scenario, build
from cwd.units import NS_PER_S
from cwd.worker import agenda as ag
from cwd.worker import residency as rs

#: a request of the run, in the order in which they came
ARRIVAL = np.dtype([(name, np.int64) for name in ("at_ns", "model", "size_class", "deadline_ns", "slo_ns", "app")])
#: an action that ran live, in the order in which they began; batch and class are 0 for a LOAD
TAKEN = np.dtype([(name, np.int64) for name in ("verb", "program", "batch", "size_class", "took_ns")])
#: an action of the simulation, as it was issued
ISSUED = np.dtype([(name, np.int64) for name in ("verb", "gpu", "model", "batch", "rows")])
#: after the last deadline
GRACE_NS = NS_PER_S


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of the run: a code per request, the actions, and how far the recorded durations went."""

    status: np.ndarray  #: i8 [requests]: the code of the reply
    issued: np.ndarray  #: ISSUED [actions]
    taken: int  #: actions that took a recorded duration, each its own
    repeated: int  #: actions that took one for the second time
    never_run: int  #: actions such as were never run live


class Durations:
    """What the next action of a kind takes: recorded durations in turn."""

    def __init__(self, taken: np.ndarray) -> None:
        self._of: dict[tuple[int, int, int, int], list[int]] = {}
        for row in taken.tolist():
            self._of.setdefault((row[0], row[1], row[2], row[3]), []).append(row[4])
        self._next = dict.fromkeys(self._of, 0)
        self.taken = self.repeated = self.never_run = 0

    def peek(self, key: tuple[int, int, int, int], expected_ns: int) -> int:
        """The duration of the next action of the kind (verb, program, batch, class)."""
        found = self._of.get(key)
        return found[self._next[key] % len(found)] if found else expected_ns

    def begun(self, key: tuple[int, int, int, int]) -> None:
        """An action of the kind has begun: the one after it takes the next duration."""
        found = self._of.get(key)
        if not found:
            self.never_run += 1
            return
        if self._next[key] < len(found):
            self.taken += 1
        else:
            self.repeated += 1
        self._next[key] += 1


class RecordedRun:
    """The world of such a run, and its host."""

    def __init__(self, config: Config, core: World, now_ns: int, arrivals: np.ndarray, taken: np.ndarray,
                 delays_ns: np.ndarray) -> None:
        """`core` at `now_ns`, idle; `arrivals` ARRIVAL with handles of models, `taken` TAKEN, `delays_ns` of messages.

        Raises `CwdError` if the core is not idle, or there is nothing to simulate.
        """
        counters = core.counters[0]
        if counters["requests_live"] or counters["actions_live"] or not len(arrivals) or not len(delays_ns):
            raise CwdError(f"{counters['requests_live']} requests and {counters['actions_live']} actions were under way when "
                           f"the run of {len(arrivals)} requests began: it cannot be taken up there", code=Code.BAD_ARGUMENT)
        self._core, self._arrivals = core, arrivals
        self._durations = Durations(taken)
        self._programs = np.flatnonzero(core.programs["used"])
        self._sim = self._world(config, now_ns, delays_ns)
        self._began: list[tuple[int, int]] = [(-1, -1)] * len(self._sim.lanes)
        self._records = 0

    def _world(self, config: Config, now_ns: int, delays_ns: np.ndarray) -> w.SimWorld:
        core, arrivals = self._core, self._arrivals
        handles = np.flatnonzero(core.models["state"] == MODEL_READY)
        handles = core.models["generation"][handles] << SLOT_BITS | handles
        kinds, source = np.unique(arrivals[["size_class", "slo_ns"]], return_inverse=True)
        gpus = int(np.flatnonzero(core.gpus["state"] == GPU_UP).max(initial=-1)) + 1
        sim = build(Scenario(
            profiles=(Profile("recorded", (1,) * len(BATCHES), 1, 1),), models=(0,) * len(handles),
            loads=tuple(Load(w.SOURCE_CLOSED, size_class=int(kind["size_class"]), slo_ns=int(kind["slo_ns"]))
                        for kind in kinds),
            gpus=gpus, pages=int(core.gpus["pages_total"].max()), policy=config.policy, noise="none", clock_error_ns=0,
            look_every=1000,
            config={field.name: getattr(config, field.name) for field in dataclasses.fields(config)}))
        shares = np.linspace(0, 1, 257)
        sim = sim.replaced(
            core=core, models=handles, events=np.zeros(len(sim.events) + len(arrivals), w.EVENT),
            calls=self._calls(sim, np.searchsorted(handles, arrivals["model"]), source.reshape(-1)),
            live=np.repeat(np.array((2, 0), np.uint8), (len(arrivals), 1)),
            programs=np.zeros((len(core.programs), sim.programs.shape[1], config.classes_max), np.int64),
            loads=np.zeros(len(core.programs), np.int64),
            network_noise=quantiles(tuple((float(share), round(float(value) / 1_000))
                                    for share, value in zip(shares, np.quantile(delays_ns, shares), strict=True))))
        state = sim.state[0]
        state["now_ns"], state["network_ns"] = now_ns, 1
        state["free_call"] = state["calls_live"] = len(arrivals)
        for gpu in range(gpus):
            self._fill(sim, gpu)
        for i, at_ns in enumerate(arrivals["at_ns"].tolist()):
            push(sim, at_ns, w.EVENT_REQUEST, i, 0, 0)
        return sim

    def _calls(self, sim: w.SimWorld, models: np.ndarray, source: np.ndarray) -> np.ndarray:
        """All requests, on their way; free rows behind them for nobody."""
        count = len(self._arrivals)
        calls = np.zeros(count + 1, sim.calls.dtype)
        calls["next"] = -1
        mine = calls[:count]
        mine["source"], mine["model"] = source, models
        mine["app"], mine["stretch"] = self._arrivals["app"], 1 << STRETCH_BITS
        mine["sent_ns"] = mine["first_ns"] = self._arrivals["at_ns"]
        mine["deadline_ns"] = self._arrivals["deadline_ns"]
        return calls

    def _fill(self, sim: w.SimWorld, gpu: int) -> None:
        """Have the GPU hold what the core says it holds."""
        core = self._core
        sim.gpus[gpu]["pages"] = sim.residency.devices[gpu]["pages_total"] = core.gpus[gpu]["pages_total"]
        for copy in core.copies[(core.copies["state"] == COPY_READY) & (core.copies["gpu"] == gpu)]:
            model = core.models[copy["model"]]
            handle = int(model["generation"]) << SLOT_BITS | int(copy["model"])
            index = rs.resident_take(sim.residency, gpu, handle, handle, 1, int(copy["pages"]))
            sim.residency.residents[gpu][index]["program"] = model["program"]
            rs.resident_ready(sim.residency, gpu, index)

    # -- playing -------------------------------------------------------------------------------------------------------

    def play(self) -> Outcome:
        """To the last reply; raises `InvariantError` if an invariant does not hold."""
        sim = self._sim
        state = sim.state[0]
        status = np.full(len(self._arrivals), -1, np.int64)
        issued: list[tuple[int, ...]] = []
        first_id = int(state["request_id"]) + 1
        until_ns = int(self._arrivals["deadline_ns"].max()) + GRACE_NS
        self._place_all()
        while state["calls_live"] > 0:
            at_ns = self._next_ns()
            if at_ns > until_ns:
                break
            if loop.run(sim, at_ns, 1) == loop.BROKEN:
                raise InvariantError(f"at {at_ns} ns: {checks.violation(sim)}")
            self._take_outbox(status, issued, first_id)
            self._place_begun()
        return Outcome(status, np.array(issued, ISSUED), self._durations.taken, self._durations.repeated,
                       self._durations.never_run)

    def _next_ns(self) -> int:
        sim = self._sim
        state = sim.state[0]
        at_ns = int(engine.next_timer(sim.core, state["now_ns"]))
        if state["timers"] > 0:
            at_ns = min(at_ns, int(sim.timers[0]["key"]))
        if state["events"] > 0:
            at_ns = min(at_ns, int(sim.events[0]["at_ns"]))
        return max(min(at_ns, FOREVER_NS), int(state["now_ns"]))

    def _take_outbox(self, status: np.ndarray, issued: list[tuple[int, ...]], first_id: int) -> None:
        """What the core left at this instant: the table still holds it, `records` says how much of it is new."""
        records = int(self._sim.state[0]["records"])
        for out in self._core.outbox[:records - self._records]:
            if out["kind"] == OUT_REPLY:
                status[out["payload"]] = out["status"]
            elif out["kind"] == OUT_ACTION:
                issued.append(tuple(int(out[name]) for name in ISSUED.names or ()))
        self._records = records

    def _place_all(self) -> None:
        for program in self._programs.tolist():
            for b in range(int(self._core.programs[program]["n_batches"])):
                for size_class in range(int(self._core.programs[program]["n_classes"])):
                    self._place(ACTION_EXEC, program, b, size_class)
            self._place(ACTION_LOAD, program, 0, 0)

    def _place(self, verb: int, program: int, b: int, size_class: int) -> None:
        """Have the next action of the kind take the duration whose turn it is."""
        core, sim = self._core, self._sim
        settings = core.settings[0]
        pair = program * int(settings["kinds_max"])
        if verb == ACTION_LOAD:
            expected_ns = int(core.estimates[int(settings["load_base"]) + pair]["typical_ns"])
            sim.loads[program] = self._durations.peek((verb, program, 0, 0), expected_ns)
            return
        row = (pair * sim.programs.shape[1] + b) * int(settings["classes_max"]) + size_class
        key = (verb, program, int(core.programs[program]["batches"][b]), size_class)
        sim.programs[program, b, size_class] = self._durations.peek(key, int(core.estimates[row]["typical_ns"]))

    def _place_begun(self) -> None:
        """See which lanes have begun another action since the last instant."""
        sim = self._sim
        for lane in range(len(sim.lanes)):
            row, action = sim.lanes[lane], sim.running[lane]
            begun = (int(action["action"]), int(row["begin_ns"]))
            if begun == self._began[lane] or row["finish_ns"] == ag.NEVER:
                continue
            self._began[lane] = begun
            verb, program = int(action["kind"]), int(action["program"])
            if verb == ACTION_EXEC:
                batches = self._core.programs[program]["batches"]
                b = int(np.flatnonzero(batches == action["batch"])[0])
                self._durations.begun((verb, program, int(action["batch"]), int(action["size_class"])))
                self._place(verb, program, b, int(action["size_class"]))
            elif verb == ACTION_LOAD:
                self._durations.begun((verb, program, 0, 0))
                self._place(verb, program, 0, 0)
