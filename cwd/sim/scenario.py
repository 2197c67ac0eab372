"""A simulation as data, and the world made from it.

A `Scenario` says which models there are, on how many GPUs, who asks for what, and what goes wrong. Everything by chance
comes from its seed; the policy changes nothing of it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from cwd.core import engine
from cwd.core.world import BATCHES_MAX, Config, empty_heap, free_list, make_world
from cwd.errors import Code, CwdError
from cwd.sim import hidden
from cwd.sim import noise as noises
from cwd.sim import random as chance
from cwd.sim import sources as src
from cwd.sim import world as w
from cwd.sim.events import push
from cwd.sim.profile import BATCHES, V100_PAGES, Profile
from cwd.sim.rows import make_notes
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.worker import agenda as ag
from cwd.worker import residency as rs

#: the SLO of clients that have none: what the core takes at most
NO_SLO_NS = 3_600 * NS_PER_S
#: worlds up to this size are looked at whole after every instant, larger ones every so many
SMALL_MODELS, SMALL_GPUS = 8, 3
LOOK_INSTANTS = 400_000
#: waiting actions of a lane, as in the workers' default
AGENDA_MAX = 64


@dataclasses.dataclass(frozen=True)
class Load:
    """One source of requests to the models `model` .. `model + models - 1`; what is 0 is not used by its kind."""

    kind: int
    model: int = 0
    models: int = 1
    group: int = 0
    slo_ns: int = 100 * NS_PER_MS
    rate_rps: float = 0.0  #: POISSON, GAMMA and MMPP
    rate2_rps: float = 0.0  #: MMPP, the other state
    dwell_ns: int = 0
    dwell2_ns: int = 0
    in_flight: int = 0  #: CLOSED, per model
    period_ns: int = 0  #: BURST; POISSON: one more of its models is asked for after each such time, 0 all from the start
    count: int = 0  #: BURST: requests; MINUTES: row of the scenario's rates
    gap_ns: int = 0
    trace: np.ndarray | None = None  #: TRACE: i8 [n, 2] (ns since start, model)
    start_ns: int = 0
    stop_ns: int = 1 << 60
    tries_max: int = 0  #: how often a refused request is sent again (open loop)
    scaled: bool = True  #: whether an overload fault multiplies its rate (POISSON, GAMMA)
    size_class: int = 0
    gap_cv: float = 1.0  #: GAMMA: how much its gaps vary
    modes: tuple[hidden.Mode, ...] = ()  #: what its requests are; nothing: all take what the profile says


@dataclasses.dataclass(frozen=True)
class Fault:
    """See faults.py for kinds and values; it lasts from `at_ns` to `until_ns`."""

    at_ns: int
    kind: int
    gpu: int = 0
    source: int = 0
    until_ns: int = 0
    value: int = 0
    value2: int = 0


@dataclasses.dataclass(frozen=True)
class Scenario:
    """All that a run depends on."""

    profiles: tuple[Profile, ...]
    #: which profile each model has
    models: tuple[int, ...]
    loads: tuple[Load, ...]
    #: names of the groups of statistics; those in `batch_groups` have no SLO and are counted apart
    groups: tuple[str, ...] = ("all",)
    batch_groups: tuple[int, ...] = ()
    gpus: int = 1
    pages: int = V100_PAGES
    policy: str = "clockwork"
    #: what a policy that knows prices is after, "fair" or "goodput"
    objective: str = "fair"
    seed: int = 0
    noise: str = "clockwork"
    network_ns: int = 100_000
    #: how wrong the controller is about each GPU's clock, at most
    clock_error_ns: int = 20_000
    faults: tuple[Fault, ...] = ()
    #: what the profiles told to the core are multiplied with, permille
    profile_permille: int = 1000
    warmup_ns: int = 5 * NS_PER_S
    measure_ns: int = 20 * NS_PER_S
    #: per minute of the trace, millionths of requests per minute (MINUTES)
    rates: np.ndarray | None = None
    #: for sources of many models with `rates`: i8 [minutes, models], up to where of 2**32 a draw means the model
    shares: np.ndarray | None = None
    minutes_ns: int = 60 * NS_PER_S
    #: instants between two looks at the whole world besides those at the end of each piece; 0: as its size allows
    look_every: int = 0
    #: more of the core's Config
    config: dict[str, Any] = dataclasses.field(default_factory=dict)


def small(scenario: Scenario) -> bool:
    """Whether the whole world can be looked at after every instant."""
    return len(scenario.models) <= SMALL_MODELS and scenario.gpus <= SMALL_GPUS


def build(scenario: Scenario) -> w.SimWorld:
    """The world at time 1 s, all GPUs joined, sources and faults armed; raises `CwdError` for what cannot be."""
    _refuse_nonsense(scenario)
    sim = _empty(scenario)
    for program, profile in enumerate(scenario.profiles):
        _add_program(sim, program, profile, scenario.profile_permille)
    state = sim.state[0]
    for g, error_ns in enumerate(_clock_errors_ns(scenario)):
        _join(sim, scenario, g, error_ns)
    for model, program in enumerate(scenario.models):
        handle = int(engine.model_added(sim.core, state["now_ns"], program, scenario.profiles[program].pages))
        if handle < 0:
            raise CwdError(f"model {model} cannot be added", code=Code(-handle))
        sim.models[model] = handle
    for i, fault in enumerate(scenario.faults):
        row = sim.faults[i]
        row["kind"], row["gpu"], row["source"] = fault.kind, fault.gpu, fault.source
        row["until_ns"], row["value"], row["value2"] = NS_PER_S + fault.until_ns, fault.value, fault.value2
        push(sim, NS_PER_S + fault.at_ns, w.EVENT_FAULT, i, 0, 0)
    for source in range(len(scenario.loads)):
        src.start(sim, source)
    return sim


def _refuse_nonsense(scenario: Scenario) -> None:
    for what, value in (("GPUs", scenario.gpus), ("models", len(scenario.models)), ("measured time", scenario.measure_ns),
                        ("sources of requests", len(scenario.loads)), ("groups", len(scenario.groups)),
                        ("execution times", min(min(profile.exec_ns) for profile in scenario.profiles))):
        if value < 1:
            raise CwdError(f"a simulation needs {what}, more than 0", code=Code.BAD_ARGUMENT)
    largest = max(scenario.profiles[program].pages for program in scenario.models)
    if largest > scenario.pages:
        raise CwdError(f"a model has {largest} pages, a GPU {scenario.pages}", code=Code.MODEL_TOO_LARGE)
    for load in scenario.loads:
        if load.trace is None and not 0 <= load.model < load.model + load.models <= len(scenario.models):
            raise CwdError("a source asks for models that are not there", code=Code.BAD_ARGUMENT)
        if load.kind == w.SOURCE_MINUTES and load.models > 1 and (
                scenario.shares is None or scenario.rates is None or scenario.shares.shape[1] != load.models
                or len(scenario.shares) < scenario.rates.shape[1]):
            raise CwdError("a source of many models with rates per minute needs their shares", code=Code.BAD_ARGUMENT)
        if load.kind == w.SOURCE_BURST and (load.count < 1 or load.period_ns < max(load.count * load.gap_ns, 1)):
            raise CwdError("a burst has one request at least, and is over before the next", code=Code.BAD_ARGUMENT)
        if load.gap_cv <= 0 or any(mode.share <= 0 for mode in load.modes):
            raise CwdError("gaps vary, and a mode has a share, by more than 0", code=Code.BAD_ARGUMENT)
        if load.kind == w.SOURCE_MMPP and min(load.dwell_ns, load.dwell2_ns) < 1:
            raise CwdError("an MMPP source dwells in both states", code=Code.BAD_ARGUMENT)


def _config(scenario: Scenario) -> Config:
    copies = min(len(scenario.models), scenario.pages // max(min(p.pages for p in scenario.profiles), 1))
    sizes: dict[str, Any] = dict(
        policy=scenario.policy, objective=scenario.objective,
        models_max=len(scenario.models) + 1, programs_max=len(scenario.profiles),
        requests_max=16384, gpus_max=scenario.gpus, copies_max=max(copies, 1) * scenario.gpus + 8,
        actions_max=max(64, 80 * scenario.gpus), clients_max=len(scenario.groups), kinds_max=1, classes_max=1,
        events_max=4096)
    sizes.update(scenario.config)
    return Config(**sizes)


def _empty(scenario: Scenario) -> w.SimWorld:
    config = _config(scenario)
    g, loads = scenario.gpus, scenario.loads
    waiting = sum(load.in_flight * load.models for load in loads if load.kind == w.SOURCE_CLOSED)
    again = 65536 if any(load.tries_max for load in loads) else 0
    calls = config.requests_max + 2 * config.events_max + waiting + again
    messages = 4 * config.actions_max + 64 * g
    tables = noises.tables(scenario.noise)
    rates = np.zeros((1, 1), np.int64) if scenario.rates is None else np.ascontiguousarray(scenario.rates, np.int64)
    shares = np.zeros((1, 1), np.int64) if scenario.shares is None else np.ascontiguousarray(scenario.shares, np.int64)
    traces = [load.trace for load in loads if load.trace is not None]
    kinds, stretches = hidden.tables([mode for load in loads for mode in load.modes])
    gap_cvs = _gap_cvs(scenario)
    sim = w.SimWorld(
        core=make_world(config), agenda=ag.make_agenda(2 * g, AGENDA_MAX), residency=rs.make_residency(g, scenario.pages),
        action=np.zeros(1, ag.ACTION), taken=np.zeros(1, ag.ACTION), running=np.zeros(2 * g, ag.ACTION),
        lanes=np.zeros(2 * g, w.SIM_LANE), gpus=np.zeros(g, w.SIM_GPU),
        events=np.zeros(calls + messages + 4 * len(scenario.faults) + 16, w.EVENT),
        timers=empty_heap(len(loads) + 2 * g), calls=free_list(np.zeros(calls, w.CALL)),
        live=np.zeros(calls, np.uint8),
        messages=free_list(np.zeros(messages, w.MESSAGE)), issued=np.zeros(config.actions_max, w.ISSUED),
        sources=np.zeros(len(loads), w.SOURCE),
        trace=np.concatenate(traces).astype(np.int64) if traces else np.zeros((1, 2), np.int64), rates=rates, shares=shares,
        faults=np.zeros(max(len(scenario.faults), 1), w.FAULT), models=np.zeros(len(scenario.models), np.int64),
        programs=np.zeros((len(scenario.profiles), BATCHES_MAX, 1), np.int64),
        loads=np.zeros(len(scenario.profiles), np.int64),
        modes=kinds, stretches=stretches, gaps=hidden.gap_tables(gap_cvs),
        random=chance.make_streams(scenario.seed, w.STREAMS_FIXED + g + len(loads)), logs=chance.make_logs(),
        exec_noise=tables["exec"], load_noise=tables["load"], network_noise=tables["network"],
        groups=np.zeros(len(scenario.groups), w.GROUP),
        histogram=np.zeros((len(scenario.groups), w.HISTOGRAM_BUCKETS), np.int64),
        served=np.zeros(len(scenario.models), w.SERVED), state=np.zeros(1, w.STATE),
        notes=make_notes(config.requests_max, max(config.copies_max, config.models_max, messages)))
    sim.lanes["finish_ns"] = ag.NEVER
    state = sim.state[0]
    state["now_ns"], state["network_ns"], state["rate_permille"] = NS_PER_S, scenario.network_ns, 1000
    # room for the largest burst beside what is due at the same time
    state["events_max"] = config.events_max // 2
    state["minutes_ns"], state["lossless"] = scenario.minutes_ns, int(not scenario.faults)
    state["look_every"] = scenario.look_every or (1 if small(scenario) else LOOK_INSTANTS)
    sim.groups["batch"][list(scenario.batch_groups)] = 1
    at = mode = 0
    for i, load in enumerate(loads):
        at = _fill_source(sim.sources[i], load, at)
        row = sim.sources[i]
        row["mode"], row["modes"] = mode, len(load.modes)
        if load.kind == w.SOURCE_GAMMA:
            row["gaps"] = gap_cvs.index(load.gap_cv)
        mode += len(load.modes)
    return sim


def _gap_cvs(scenario: Scenario) -> list[float]:
    """The coefficients of variation for which there are tables of gaps."""
    return sorted({load.gap_cv for load in scenario.loads if load.kind == w.SOURCE_GAMMA})


def _fill_source(row: np.void, load: Load, trace_at: int) -> int:
    """Write a source's row; returns where the next trace begins."""
    for name in ("kind", "model", "models", "group", "slo_ns", "size_class", "dwell_ns", "dwell2_ns", "period_ns",
                 "count", "gap_ns", "in_flight", "tries_max"):
        row[name] = getattr(load, name)
    row["start_ns"], row["stop_ns"] = NS_PER_S + load.start_ns, NS_PER_S + load.stop_ns
    row["scaled"] = int(load.scaled)
    row["mean_ns"] = _mean_ns(load.rate_rps)
    row["mean2_ns"] = _mean_ns(load.rate2_rps)
    if load.trace is None:
        return trace_at
    row["position"], row["count"] = trace_at, trace_at + len(load.trace)
    return trace_at + len(load.trace)


def _mean_ns(rate_rps: float) -> int:
    return round(NS_PER_S / rate_rps) if rate_rps > 0 else src.MEAN_MAX_NS


def _add_program(sim: w.SimWorld, program: int, profile: Profile, permille: int) -> None:
    engine.program_added(sim.core, program, np.array(BATCHES, np.int64), len(profile.exec_ns), 1)
    for b, exec_ns in enumerate(profile.exec_ns):
        sim.programs[program, b, 0] = exec_ns
        engine.estimate_seed(sim.core, program, 0, b, 0, exec_ns * permille // 1000)
    sim.loads[program] = profile.load_ns
    engine.load_seed(sim.core, program, 0, profile.load_ns * permille // 1000)


def _clock_errors_ns(scenario: Scenario) -> list[int]:
    """What the controller gets wrong about each GPU's clock, evenly between minus and plus the most."""
    most_ns, chances = scenario.clock_error_ns, chance.make_streams(~scenario.seed, scenario.gpus)
    return [int(chances[g]) % (2 * most_ns + 1) - most_ns for g in range(scenario.gpus)]


def _join(sim: w.SimWorld, scenario: Scenario, g: int, error_ns: int) -> None:
    gpu, now_ns = sim.gpus[g], int(sim.state[0]["now_ns"])
    gpu["up"] = gpu["told"] = 1
    gpu["slow_permille"], gpu["pages"] = 1000, scenario.pages
    gpu["clock_error_ns"] = error_ns
    engine.gpu_joined(sim.core, now_ns, g, 0, scenario.pages)
    for program in range(len(scenario.profiles)):
        engine.program_prepared(sim.core, now_ns, g, program, 1)
