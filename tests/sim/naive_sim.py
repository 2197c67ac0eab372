"""A naive twin of the simulator: heapq, dicts and closures around the same core, without noise, faults or clock errors.

It knows nothing of agendas, residencies or tables: a GPU is two lists and a dict. It takes rows for payloads and
results in the order in which the simulator does, so that the whole outbox can be compared.
"""

from __future__ import annotations

import heapq

import numpy as np

from cwd.core import engine
from cwd.core.world import ACTION_EXEC, ACTION_LOAD, FOREVER_NS, OUT_ACTION, OUT_REPLY
from cwd.errors import Code
from cwd.sim.profile import BATCHES
from cwd.units import NS_PER_S

UNLOAD_NS = 5_000

#: no timer's number: behind them all
MESSAGE = 1 << 30


class Rows:
    """Free rows: the one given back last is taken first."""

    def __init__(self):
        self.free, self.top = [], 0

    def take(self):
        if self.free:
            return self.free.pop()
        self.top += 1
        return self.top - 1

    def give(self, row):
        self.free.append(row)


class NaiveGpu:
    def __init__(self):
        self.waiting = {"exec": [], "load": []}
        self.running = {"exec": None, "load": None}
        self.resident = {}


class NaiveSim:
    """Plays (ns, model) requests with one SLO on `gpus` GPUs; `records` are the core's outbox, `replies` its answers."""

    def __init__(self, core, profiles, handles, gpus, pages, network_ns):
        self.core, self.profiles, self.handles = core, profiles, handles
        self.pages, self.network_ns = pages, network_ns
        self.gpus = [NaiveGpu() for _ in range(gpus)]
        self.now, self.sequence, self.events = NS_PER_S, 0, []
        self.calls, self.messages = Rows(), Rows()
        self.records, self.replies, self.requests = [], [], 0

    def at(self, when, what, timer=MESSAGE):
        """Of what is due at one instant the timers come first, by number (the source's, then the lanes'), then messages."""
        self.sequence += 1
        heapq.heappush(self.events, (when, timer, self.sequence, what))

    def request(self, when, model, slo_ns):
        self.at(when + self.network_ns, lambda: self.arrive(when, model, slo_ns), timer=0)

    def arrive(self, sent, model, slo_ns):
        call = self.calls.take()
        self.requests += 1
        engine.request_arrived(self.core, self.now, 0, self.requests, self.handles[model], 0, sent + slo_ns, slo_ns, 0, call)
        return True

    def run(self, until):
        while True:
            timer = int(engine.next_timer(self.core, self.now))
            when = min(timer, self.events[0][0] if self.events else FOREVER_NS)
            if when > until:
                return
            self.now = max(self.now, when)
            fed = False
            while self.events and self.events[0][0] <= self.now:
                fed |= bool(heapq.heappop(self.events)[-1]())
            if fed or int(engine.next_timer(self.core, self.now)) <= self.now:
                engine.tick(self.core, self.now)
                self.flush()

    def flush(self):
        counters = self.core.counters[0]
        records = self.core.outbox[:int(counters["outbox_count"])].copy()
        counters["outbox_count"] = 0
        for out in records:
            self.records.append(out)
            if out["kind"] == OUT_ACTION:
                out, message = {name: int(out[name]) for name in out.dtype.names}, self.messages.take()
                self.at(self.now + self.network_ns, lambda out=out, message=message: self.deliver(out, message))
            elif out["kind"] == OUT_REPLY:
                self.replies.append((int(out["request_id"]), int(out["status"]), self.now + self.network_ns))
                self.calls.give(int(out["payload"]))
            else:
                self.messages.give(int(out["result"]))

    def deliver(self, out, message):
        lane = "exec" if out["verb"] == ACTION_EXEC else "load"
        self.gpus[out["gpu"]].waiting[lane].append((out, message))
        self.start(out["gpu"], lane)

    def start(self, gpu, lane):
        """Start what waits first, if the lane is free; refuse what is too late."""
        mine = self.gpus[gpu]
        while mine.waiting[lane] and mine.running[lane] is None:
            out, message = mine.waiting[lane].pop(0)
            if self.now > out["latest_ns"]:
                self.answer(out, message, Code.TOO_LATE, 0, 0)
                continue
            begin, profile = self.now, self.profiles[out["program"]]
            if out["verb"] == ACTION_EXEC:
                assert out["model"] in mine.resident
                took = profile.exec_ns[BATCHES.index(out["batch"])]
            elif out["verb"] == ACTION_LOAD:
                assert sum(mine.resident.values()) + out["pages"] <= self.pages and out["model"] not in mine.resident
                mine.resident[out["model"]] = out["pages"]
                took = profile.load_ns
            else:
                took = UNLOAD_NS
            mine.running[lane] = message
            self.at(begin + took, lambda out=out, message=message, begin=begin: self.finish(gpu, lane, out, message, begin),
                    timer=1 + 2 * gpu + (lane == "load"))

    def finish(self, gpu, lane, out, message, begin):
        mine = self.gpus[gpu]
        if out["verb"] not in (ACTION_EXEC, ACTION_LOAD):
            del mine.resident[out["model"]]
        mine.running[lane] = None
        self.answer(out, message, Code.OK, begin, self.now)
        self.start(gpu, lane)

    def answer(self, out, message, status, begin, end):
        free = self.pages - sum(self.gpus[out["gpu"]].resident.values())
        self.at(self.now + self.network_ns, lambda: self.result(out, message, int(status), begin, end, free))

    def result(self, out, message, status, begin, end, free):
        executed = out["verb"] == ACTION_EXEC and status == Code.OK
        stale = engine.action_done(self.core, self.now, out["action"], status, begin, end, end - begin,
                                   out["rows"] if executed else 0, free, message if executed else -1)
        if stale or not executed:
            self.messages.give(message)
        return True


def naive_hash(records):
    """The simulator's hash of the outbox, from the records themselves."""
    low = (1 << 40) - 1
    value = 0
    for out in records:
        f = {name: int(out[name]) for name in out.dtype.names}
        for field in (f["kind"] * 8 + f["verb"], f["gpu"], f["action"], f["model"], f["batch"] * 64 + f["rows"],
                      f["earliest_ns"], f["latest_ns"], f["expected_ns"], f["expire_ns"], f["request_id"], f["status"],
                      f["payload"], f["result"], f["queued_ns"], f["load_ns"], f["exec_ns"], f["total_ns"],
                      f["served_ns"], f["row"]):
            value = (value * 1_000_003 & low) ^ (field & low) ^ (field >> 40 & low)
    return value


def trace_of(requests):
    """(ns, model) pairs as the simulator's trace."""
    return np.array(sorted(requests), np.int64).reshape(-1, 2)
