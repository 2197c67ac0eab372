"""Models whose execution time depends on data that nobody sees at arrival, as in Orloj's evaluation: one GPU, one model.

A request would run l ms alone; a batch of k takes (1 - c1 + c1 k) times its longest l. Requests carry the tag of their
application. Rates are `rho` times what full batches of 16 by chance would serve, SLOs a multiple of the 99th percentile
of l. The paper's text was not at hand; the workloads follow what is known of it, and what is compared is a published
reconstruction's table (PUBLISHED), by its direction: its policies and its simulator are others.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cwd.errors import Code, CwdError
from cwd.sim import hidden
from cwd.sim.experiments import Point
from cwd.sim.hidden import Mode
from cwd.sim.profile import BATCHES, Profile
from cwd.sim.scenario import Load, Scenario
from cwd.sim.world import SOURCE_GAMMA, SOURCE_POISSON
from cwd.units import NS_PER_MS, NS_PER_S

#: the least l, ms
LEAST_MS = 1.0
#: l in ms: an application for each mode, but for bi1, whose two are one application's
WORKLOADS = {
    "static": (Mode(1, 1.0, hidden.constant(10)),),
    "bi2": (Mode(1, 0.5, hidden.normal(10, 1, LEAST_MS)), Mode(2, 0.5, hidden.normal(50, 5, LEAST_MS))),
    "bi1": (Mode(1, 0.5, hidden.normal(10, 1, LEAST_MS)), Mode(1, 0.5, hidden.normal(50, 5, LEAST_MS))),
    "tri3": tuple(Mode(1 + i, 1 / 3, hidden.normal(mean, mean / 10, LEAST_MS)) for i, mean in enumerate((5, 20, 60))),
    "skew2": (Mode(1, 0.9, hidden.normal(8, 0.8, LEAST_MS)), Mode(2, 0.1, hidden.normal(80, 8, LEAST_MS))),
    "logn": (Mode(1, 1.0, hidden.lognormal(12, 0.8, LEAST_MS)),),
}
#: real texts: an application for each corpus, l from the length in tokens of its texts
TEXTS = "texts"
CORPORA = ("tokens_trec_questions.npz", "tokens_sst.npz", "tokens_agnews_a.npz")
TEXT_MS, TOKEN_MS = 2.0, 0.25
#: rows for requests: so many times what comes within an SLO, which is about as long as one waits; and this many at least
ROOM, ROOM_MIN = 16, 512
#: share in time of the reconstruction: its Clockwork, Nexus, Orloj, and batches scored as sets
PUBLISHED = [
    {"workload": workload, "c1": c1, "multiple": multiple, "rho": rho, "cv": cv, "policy": policy, "on_time": on_time}
    for workload, c1, multiple, rho, cv, shares in (
        ("static", 0.3, 3.0, 1.0, 1.0, (0.453, 0.520, 0.615, 0.596)), ("bi2", 0.3, 1.5, 0.7, 1.0, (0.676, 0.643, 0.769, 0.825)),
        ("bi2", 0.3, 3.0, 1.0, 1.0, (0.699, 0.623, 0.813, 0.916)), ("bi2", 0.3, 3.0, 1.0, 4.0, (0.426, 0.381, 0.595, 0.740)),
        ("bi2", 0.1, 3.0, 1.0, 1.0, (0.404, 0.489, 0.745, 0.846)), ("bi1", 0.1, 3.0, 1.0, 1.0, (0.402, 0.491, 0.715, 0.687)),
        ("tri3", 0.1, 1.5, 1.0, 1.0, (0.397, 0.304, 0.582, 0.755)), ("skew2", 0.1, 3.0, 1.0, 4.0, (0.674, 0.618, 0.867, 0.990)),
        ("logn", 0.3, 3.0, 1.0, 4.0, (0.223, 0.659, 0.626, 0.695)))
    for policy, on_time in zip(("clockwork-paper", "nexus", "orloj", "cwd"), shares, strict=True)]


def points(quick: bool = False, workloads: str = "", c1: str = "0.1,0.3", multiples: str = "1.5,2,3,5", rhos: str = "0.7,1",
           cvs: str = "1,4", texts: str = "", requests: int = 20_000) -> Iterator[Point]:
    """One row per workload and setting; lists are written with commas. All but `texts` by default.

    `texts`: the folder with the corpora, else $CWD_DATA; for the workload of that name. A cv of 1 is Poisson, others
    have gamma gaps. The first tenth of the requests is not counted. Quick: one setting, 2,000 requests.
    """
    names = workloads.split(",") if workloads else list(WORKLOADS)
    if quick:
        c1, multiples, rhos, cvs, requests = "0.3", "3", "1", "1", min(requests, 2_000)
    for name in names:
        modes = _modes(name, texts)
        for share in _numbers("c1", c1):
            for multiple in _numbers("multiples", multiples):
                for rho in _numbers("rhos", rhos):
                    for cv in _numbers("cvs", cvs):
                        yield _point(name, modes, share, multiple, rho, cv, requests)


def _numbers(what: str, text: str) -> list[float]:
    try:
        values = [float(value) for value in text.split(",")]
    except ValueError:
        values = [0.0]
    if min(values) <= 0 or (what == "c1" and max(values) > 1):
        raise CwdError(f"{what} must be numbers above 0, with commas in between, not {text!r}", code=Code.BAD_ARGUMENT)
    return values


def _modes(name: str, texts: str) -> tuple[Mode, ...]:
    """The workload's modes, l in ms; raises `CwdError` for one that is not there."""
    if name == TEXTS:
        return _of_texts(Path(texts or os.environ.get("CWD_DATA", ".")))
    if name not in WORKLOADS:
        raise CwdError(f"no workload {name!r}; there are {', '.join((*WORKLOADS, TEXTS))}", code=Code.BAD_ARGUMENT)
    return WORKLOADS[name]


def _of_texts(folder: Path) -> tuple[Mode, ...]:
    """l = TEXT_MS + TOKEN_MS for each token, of each corpus's texts that are not empty."""
    found = []
    for i, corpus in enumerate(CORPORA):
        try:
            with np.load(folder / corpus) as file:
                lengths = file["lengths"]
        except (OSError, KeyError, ValueError) as error:
            raise CwdError(f"{folder / corpus}: lengths of texts are wanted, by --texts or $CWD_DATA ({error})",
                           code=Code.BAD_ARGUMENT) from None
        found.append(Mode(1 + i, 1.0, hidden.recorded(TEXT_MS + TOKEN_MS * lengths[lengths > 2])))
    return tuple(found)


def _point(name: str, modes: tuple[Mode, ...], c1: float, multiple: float, rho: float, cv: float, requests: int) -> Point:
    mean_ms = hidden.mean_of_largest(modes, 1)
    exec_ns = tuple(round((1 - c1 + c1 * size) * mean_ms * NS_PER_MS) for size in BATCHES)
    full_ms = (1 - c1 + c1 * BATCHES[-1]) * hidden.mean_of_largest(modes, BATCHES[-1])
    rate_rps = rho * BATCHES[-1] / full_ms * 1000
    slo_ns = round(multiple * hidden.percentile(modes, 0.99) * NS_PER_MS)
    load = Load(SOURCE_POISSON if cv == 1 else SOURCE_GAMMA, slo_ns=slo_ns, rate_rps=rate_rps, gap_cv=cv,
                modes=tuple(hidden.scaled(mode, 1 / mean_ms) for mode in modes))
    total_ns = round(max(requests, 1) / rate_rps * NS_PER_S)
    swept = {"workload": name, "c1": c1, "multiple": multiple, "rho": rho, "cv": cv,
             "slo_ms": round(slo_ns / NS_PER_MS, 1), "rate_rps": round(rate_rps, 1)}
    # a look at the whole world reads every row, used or not
    room = max(ROOM_MIN, 1 << round(ROOM * rate_rps * slo_ns / NS_PER_S).bit_length())
    return Point(swept, Scenario(
        (Profile(name, exec_ns, NS_PER_MS, 1),), (0,), (load,), pages=4, warmup_ns=total_ns // 10,
        measure_ns=total_ns - total_ns // 10, config=dict(requests_max=room, events_max=256, apps_max=16)))

