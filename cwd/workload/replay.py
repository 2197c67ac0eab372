"""Open-loop replay: send each request at its intended time whatever happened to the ones before it, and keep the outcome.

One thread does everything: it polls for answers until shortly before the next request is due, sleeps the rest, and
sends. A request's deadline is its *intended* time plus its SLO: if this thread is late, what is left of the SLO is what
the controller gets, and a request whose SLO has passed before it could be sent counts as late. Knows no trace format.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cwd.client import Client, Model
from cwd.client.call import Call, app_tag
from cwd.client.connection import Connection, Gate
from cwd.client.session import State
from cwd.errors import Code, ControllerLost, CwdError
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.wire.messages import Role
from cwd.workload.arrivals import Arrivals
from cwd.workload.inputs import InputMaker, Maker
from cwd.workload.lengths import Texts
from cwd.workload.outcome import OUTCOME, PENDING, Rows

#: between connecting and the first intended send time
LEAD_NS = 100 * NS_PER_MS
#: a poll may overshoot by a millisecond: the last stretch before a send is slept
POLL_SLACK_NS = 1_200_000
#: how long after the last deadline answers are waited for
GRACE_NS = NS_PER_S
BAR_EVERY_NS = NS_PER_S // 5

Progress = Callable[[int, int], None]

_now = time.monotonic_ns


class Replay:
    """One replay on one connection. `rows` fills up as answers come; `start_ns` is the monotonic clock at time 0."""

    def __init__(self, connection: Connection, models: Sequence[Model], makers: Sequence[Maker],
                 arrivals: Arrivals, slo_ns: Sequence[int], *, apps: Sequence[str] = (),
                 refresh: Callable[[int], Model] | None = None, progress: Progress | None = None) -> None:
        """`arrivals["model"]` indexes `models`, `makers`, `slo_ns` and `apps`; `refresh(index)` looks a model up again."""
        self.rows: Rows = np.zeros(len(arrivals), OUTCOME)
        for name in ("at_ns", "model", "function", "length"):
            self.rows[name] = arrivals[name]
        self.rows["slo_ns"] = np.asarray(slo_ns, np.int64)[arrivals["model"]]
        self.rows["status"] = PENDING
        self.start_ns = 0
        self._connection = connection
        self._models = list(models)
        self._makers = makers
        self._tags = [app_tag(app) for app in apps] or [0] * len(models)
        self._refresh = refresh
        self._progress = progress
        self._gate = Gate()
        self._flying: dict[Call, int] = {}
        self._settled = 0
        self._shown_ns = 0
        self._generation = connection.session.generation
        self._stale: set[int] = set()

    def run(self) -> Rows:
        """Send everything, wait for the last answers, and return the rows (OUTCOME)."""
        self.start_ns = _now() + LEAD_NS
        lengths = self.rows["length"].tolist()
        models = self.rows["model"].tolist()
        due = (self.rows["at_ns"] + self.start_ns).tolist()
        for index, model in enumerate(models):
            inputs, lengths[index] = self._makers[model].make(lengths[index])
            self._until(due[index])
            self._send(index, model, inputs, due[index])
        self.rows["length"] = lengths
        self._drain()
        return self.rows

    def _until(self, due_ns: int) -> None:
        """Take answers until `due_ns`."""
        while True:
            now = _now()
            if now - self._shown_ns > BAR_EVERY_NS:
                self._show(now)
            left_ns = due_ns - now
            if left_ns <= 0:
                self._connection.look()
                self._collect()
                return
            if left_ns > POLL_SLACK_NS:
                self._connection.wait(self._gate, min(due_ns - POLL_SLACK_NS, now + BAR_EVERY_NS))
                self._collect()
            else:
                time.sleep(left_ns / NS_PER_S)

    def _send(self, index: int, model: int, inputs: dict[str, Any], due_ns: int) -> None:
        row = self.rows[index]
        session = self._connection.session
        if session.generation != self._generation and session.state is State.READY:
            # another controller, or the same one again: handles of before mean nothing
            self._generation = session.generation
            self._stale = set(range(len(self._models)))
        try:
            if model in self._stale and self._refresh is not None:
                self._models[model] = self._refresh(model)
                self._stale.discard(model)
            payload, dims = self._models[model].prepare(inputs)
            now = _now()
            row["sent_ns"] = now - self.start_ns
            left_ns = due_ns + int(row["slo_ns"]) - now
            if left_ns <= 0:
                self._end(index, Code.DEADLINE_MISSED, now)
                return
            call = self._connection.start(self._infer, self._models[model], payload, dims, left_ns, self._tags[model])
            self._flying[call] = index
        except CwdError as error:
            row["sent_ns"] = _now() - self.start_ns
            self._end(index, error.code, _now())

    def _infer(self, now_ns: int, *args: Any) -> Call:
        """`Session.infer`, with our gate in place before anyone can settle the call."""
        call = self._connection.session.infer(now_ns, *args)
        call.on_done.append(self._gate)
        return call

    def _collect(self) -> None:
        ready = self._gate.ready
        while ready:
            call = ready.popleft()
            index = self._flying.pop(call)
            if call.error is not None:
                self.rows[index]["earliest_ns"] = getattr(call.error, "earliest_ns", 0)
                self._end(index, call.error.code, call.done_ns)
                continue
            row, reply = self.rows[index], call.answer
            for name in ("queued_ns", "load_ns", "exec_ns", "total_ns", "batch", "worker", "cold"):
                row[name] = getattr(reply, name)
            self._end(index, Code.OK, call.done_ns)

    def _end(self, index: int, code: Code, done_ns: int) -> None:
        row = self.rows[index]
        row["status"] = code
        row["done_ns"] = done_ns - self.start_ns
        self._settled += 1

    def _drain(self) -> None:
        """Wait for what is in flight, until a little after the last deadline; the rest stays PENDING, which is failed."""
        if not len(self.rows):
            return
        until_ns = self.start_ns + int((self.rows["at_ns"] + self.rows["slo_ns"]).max()) + GRACE_NS
        while self._flying and _now() < until_ns:
            self._connection.wait(self._gate, min(until_ns, _now() + BAR_EVERY_NS))
            self._collect()
            self._show(_now())
        left = np.flatnonzero(self.rows["status"] == PENDING)
        self.rows["done_ns"][left] = _now() - self.start_ns
        self._show(_now())

    def _show(self, now_ns: int) -> None:
        self._shown_ns = now_ns
        if self._progress is not None:
            self._progress(self._settled, len(self._flying))


def connect(endpoint: str, name: str = "replay", timeout_ns: int = 10 * NS_PER_S) -> Connection:
    """A connection that is ready; raises `ControllerLost` if no controller answers."""
    connection = Connection(endpoint, name, Role.CLIENT)
    try:
        connection.ready(_now() + timeout_ns)
    except BaseException:
        connection.close()
        raise
    return connection


def replay(endpoint: str, names: Sequence[str], arrivals: Arrivals, slo_ns: Sequence[int], texts: Texts, *, seed: int = 0,
           vocabulary: int | None = None, apps: Sequence[str] = (), makers: Sequence[Maker] = (),
           progress: Progress | None = None) -> tuple[Rows, int]:
    """Replay `arrivals` against the models called `names`; returns (rows, monotonic clock at the replay's time 0).

    A name may come more than once: `apps` says for each which application its requests are from, `makers` what makes
    their inputs (by default texts, and arrays that fit).
    """
    rng = np.random.default_rng([seed, 1])
    pool: dict[Any, Any] = {}
    with Client(endpoint, name="replay-lookup") as lookups:
        models = [lookups.lookup(name) for name in names]
        makers = makers or [InputMaker(model, texts, rng, pool, vocabulary=vocabulary) for model in models]
        connection = connect(endpoint)
        try:
            run = Replay(connection, models, makers, arrivals, slo_ns, apps=apps,
                         refresh=lambda index: lookups.lookup(names[index]), progress=progress)
            return run.run(), run.start_ns
        finally:
            connection.close()


def progress_bar(total: int) -> tuple[Progress, Callable[[], None]]:
    """(progress, close): a bar on stderr, or one plain line every few seconds where stderr is no terminal."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ControllerLost("the progress bar needs tqdm: pip install 'cwd[server]'") from error
    bar = tqdm(total=total, unit="req", file=sys.stderr, mininterval=0.2 if sys.stderr.isatty() else 5.0,
               dynamic_ncols=True, desc="replay")

    def show(settled: int, flying: int) -> None:
        bar.set_postfix_str(f"{flying} in flight", refresh=False)
        bar.update(settled - bar.n)

    return show, bar.close
