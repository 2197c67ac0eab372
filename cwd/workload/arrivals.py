"""From a trace to a schedule: which request goes to which model at which time. Seeded; the same seed gives the same one.

Counts per minute become times by one of three patterns: `poisson` (the count is the rate of its minute, as Clockwork's
replayer did), `uniform` (evenly spread, random phase) and `clumps` (all in the first second of the minute, as timers
fire). Functions go to models by `block` (sorted by how often they are called, neighbours share a model: heavy functions
meet on the first models), `stripe` (dealt out in turn) or `random`. Knows no clock and no socket.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cwd.errors import Code, CwdError
from cwd.units import NS_PER_S
from cwd.workload.traces import NS_PER_MINUTE, CountTrace, Int64s, StampTrace, Trace

#: One request of the schedule; `length` is a token count from the trace, -1 where the trace has none.
ARRIVAL = np.dtype([("at_ns", "<i8"), ("model", "<i4"), ("function", "<i4"), ("length", "<i4")])

Arrivals = NDArray[np.void]

PATTERNS = ("poisson", "uniform", "clumps")
ASSIGNMENTS = ("block", "stripe", "random")
CLUMP_NS = NS_PER_S


@dataclass(frozen=True)
class Shaping:
    """How a trace is bent before it is replayed."""

    pattern: str = "poisson"
    assignment: str = "stripe"
    #: multiplies the rate of every function
    scale: float = 1.0
    #: multiplies the rate of the frequent functions once more: scaling all alike would warm the rare ones up
    scale_frequent: float = 1.0
    #: a function is frequent when it is called at least this often a minute on average
    frequent_per_minute: float = 1.0
    #: times pass this much faster; minutes become shorter, counts stay
    speed: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise CwdError(f"{self.pattern!r} is no pattern: {', '.join(PATTERNS)}", code=Code.BAD_ARGUMENT)
        if self.assignment not in ASSIGNMENTS:
            raise CwdError(f"{self.assignment!r} is no assignment: {', '.join(ASSIGNMENTS)}", code=Code.BAD_ARGUMENT)
        for name in ("scale", "scale_frequent", "speed"):
            if not 0 < getattr(self, name) < 1e9:
                raise CwdError(f"{name} must be positive, not {getattr(self, name)}", code=Code.BAD_ARGUMENT)


def schedule(trace: Trace, models: int, shaping: Shaping) -> Arrivals:
    """The requests that a trace makes for `models` models: (requests,) of ARRIVAL, ascending in time."""
    if models < 1:
        raise CwdError("there is no model to send requests to", code=Code.BAD_ARGUMENT)
    rng = np.random.default_rng(shaping.seed)
    arrivals = _from_counts(trace, models, shaping, rng) if isinstance(trace, CountTrace) else _from_stamps(
        trace, models, shaping, rng)
    if shaping.speed != 1.0:
        arrivals["at_ns"] = (arrivals["at_ns"] / shaping.speed).astype(np.int64)
    return arrivals[np.argsort(arrivals["at_ns"], kind="stable")]


def function_scales(counts: Int64s, shaping: Shaping) -> NDArray[np.float64]:
    """(functions,): the factor on each function's rate."""
    frequent = counts.sum(axis=1) >= shaping.frequent_per_minute * counts.shape[1]
    return np.where(frequent, shaping.scale * shaping.scale_frequent, shaping.scale)


def assign_models(totals: Int64s, models: int, assignment: str, rng: np.random.Generator) -> Int64s:
    """(functions,): the model of each function, given how often each is called; rank 0 is the most frequent."""
    functions = len(totals)
    rank = np.empty(functions, np.int64)
    rank[np.argsort(-totals, kind="stable")] = np.arange(functions)
    if assignment == "block":
        return rank * models // functions
    if assignment == "stripe":
        return rank % models
    return rng.integers(models, size=functions)


def _from_counts(trace: CountTrace, models: int, shaping: Shaping, rng: np.random.Generator) -> Arrivals:
    functions, minutes = trace.counts.shape
    expected = trace.counts * function_scales(trace.counts, shaping)[:, None]
    number = rng.poisson(expected) if shaping.pattern == "poisson" else _rounded(expected, rng)
    flat = number.ravel()
    total = int(flat.sum())
    cell = np.repeat(np.arange(functions * minutes), flat)
    if shaping.pattern == "poisson":
        inside = rng.random(total) * NS_PER_MINUTE
    elif shaping.pattern == "clumps":
        inside = rng.random(total) * CLUMP_NS
    else:
        position = np.arange(total) - np.repeat(np.cumsum(flat) - flat, flat)
        inside = (position + rng.random(flat.size)[cell]) / flat[cell] * NS_PER_MINUTE
    arrivals = np.empty(total, ARRIVAL)
    arrivals["at_ns"] = inside.astype(np.int64) + (cell % minutes) * NS_PER_MINUTE
    arrivals["function"] = cell // minutes
    arrivals["model"] = assign_models(trace.counts.sum(axis=1), models, shaping.assignment, rng)[arrivals["function"]]
    arrivals["length"] = -1
    return arrivals


def _from_stamps(trace: StampTrace, models: int, shaping: Shaping, rng: np.random.Generator) -> Arrivals:
    """Each request `scale` times; copies are spread over the gap to the next request, so that none clump."""
    count = len(trace.at_ns)
    copies = _rounded(np.full(count, shaping.scale), rng)
    source = np.repeat(np.arange(count), copies)
    first = np.zeros(len(source), bool)
    first[np.cumsum(copies)[copies > 0] - copies[copies > 0]] = True
    gap = np.diff(trace.at_ns, append=trace.at_ns[-1:])
    jitter = np.where(first, 0, rng.random(len(source)) * gap[source]).astype(np.int64)
    arrivals = np.empty(len(source), ARRIVAL)
    arrivals["at_ns"] = trace.at_ns[source] + jitter
    arrivals["function"] = source
    arrivals["model"] = assign_models(np.zeros(count, np.int64), models, shaping.assignment, rng)[source]
    arrivals["length"] = -1 if trace.tokens is None else np.minimum(trace.tokens, np.iinfo(np.int32).max)[source]
    return arrivals


def _rounded(expected: NDArray[np.float64], rng: np.random.Generator) -> Int64s:
    """Integers whose expectation is `expected`: the fraction is the chance of one more."""
    floor = np.floor(expected)
    return (floor + (rng.random(expected.shape) < expected - floor)).astype(np.int64)
