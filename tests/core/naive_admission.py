"""Admission, slow and obvious: which plan there is for a request, when it would be answered, and who is let in without one.

Durations are those of `script.Script`: nothing is measured here, so what is typical and what is at the tail are one.
Times are ns; a GPU is a dict of `exec_free` and `load_free` (ns), `pressed` and `queued`: [(due, cost)] at home there.
"""

from __future__ import annotations

import dataclasses

US, MS = 1_000, 1_000_000
NEVER = 1 << 62
SEND, RESULT, END, CLIENT = 200 * US, 300 * US, 400 * US, 200 * US
TOOK = {1: 3 * MS, 2: 4 * MS, 4: 6 * MS}
LOAD = 10 * MS
BUCKET = 1 << 22
BUCKETS = 128
HORIZON = 100 * MS


@dataclasses.dataclass
class Gpu:
    exec_free: int
    load_free: int = 0
    pressed: bool = False
    queued: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Model:
    """`copies`: {GPU: when it is loaded, 0 if it is}, in the order in which they came; `queued`: [due] in order."""

    copies: dict
    queued: list = dataclasses.field(default_factory=list)
    gap: int = 0
    arrived: int = 0
    missed: int = 0

    def came(self, now, slo):
        """Note an arrival; the smoothed gap moves by a 32nd of each difference, and starts at the SLO."""
        new = now - self.arrived if self.arrived else slo
        self.gap = self.gap + (new - self.gap) // 32 if self.gap else new
        self.arrived = now
        return max(self.gap, 1)


class Admission:
    """GPUs and models; `ask` says what becomes of a request. `policy`: clockwork or cwd (for goodput), at some price."""

    def __init__(self, gpus, models, policy, price):
        self.gpus, self.models, self.cwd, self.price = gpus, models, policy == "cwd", price

    def took(self, size, size_class):
        return TOOK[size] * (1 + size_class)

    def need(self, size_class):
        return self.took(1, size_class) + END + SEND

    def filled(self, rows, size_class):
        """What a batch takes by the time it has so many rows, between two sizes in proportion."""
        points = [(0, 0), *((size, self.took(size, size_class)) for size in sorted(TOOK))]
        for (a, before), (b, after) in zip(points, points[1:], strict=False):
            if rows <= b:
                return before + (after - before) * (rows - a) // (b - a)
        return points[-1][1]

    def batch(self, size_class, slack, gap):
        """The densest size that fits into the slack behind one like it, or (gap) after the time that it takes to fill;
        a size that does not fit ends the search."""
        best = 1
        for size in sorted(TOOK)[1:]:
            wait = gap * (size - 1) if gap else self.took(size, size_class)
            if wait + self.took(size, size_class) > slack - SEND - END:
                break
            if size * self.took(best, size_class) > best * self.took(size, size_class):
                best = size
        return best

    def before(self, now, gpu, due):
        """Work at home on the GPU that is due no later, by buckets; beyond their horizon, all."""
        if due // BUCKET - now // BUCKET >= BUCKETS:
            return sum(cost for _, cost, _ in gpu.queued)
        return sum(cost for other, cost, near in gpu.queued if near and now // BUCKET <= other // BUCKET <= due // BUCKET)

    def start(self, now, gpu, loaded):
        start = max(self.gpus[gpu].exec_free, now + SEND)
        return max(start, loaded + RESULT + SEND) if loaded else start

    def best_copy(self, now, model, due, exact):
        """(start behind the backlog, GPU) of the copy that would start first; of equals the first."""
        found = []
        for place, (gpu, loaded) in enumerate(model.copies.items()):
            mine = self.gpus[gpu]
            ahead = self.before(now, mine, due) if exact else sum(cost for _, cost, _ in mine.queued)
            found.append((self.start(now, gpu, loaded) + ahead, place, gpu))
        start, _, gpu = min(found, default=(NEVER, 0, None))
        return start, gpu

    def loads(self, now, model, due):
        """[(loaded at, free at, GPU)] where the model could be loaded, the best first."""
        found = []
        for gpu, mine in enumerate(self.gpus):
            if gpu not in model.copies:
                free = max(mine.exec_free, now + SEND) + self.before(now, mine, due)
                found.append((max(max(mine.load_free, now + SEND) + LOAD + SEND + RESULT, free), free, gpu))
        return sorted(found)

    def settle(self, now, model, due, gpu, size_class, gap):
        """(how long after the work ahead it would be answered, what it adds to the work)."""
        full = self.batch(size_class, due - now, gap)
        ready = sum(loaded == 0 for loaded in model.copies.values())
        place = len(model.queued) // max(ready, 1) % full if model.queued and model.queued[0] <= due else 0
        before = self.filled(place, size_class)
        cost = own = self.filled(place + 1, size_class) - before
        if full > 1 and self.gpus[gpu].pressed:
            own = self.took(full, size_class) - before + END
        return own + END, max(cost, 1)

    def place(self, now, model, due, size_class, gap):
        """(answered at, home, cost, busy, loader)."""
        start, gpu = self.best_copy(now, model, due, False)
        done, home, cost, busy = NEVER, None, 0, NEVER
        if gpu is not None:
            busy, home = start - now, gpu
            own, cost = self.settle(now, model, due, gpu, size_class, gap)
            done = start + own
            if done <= due and busy <= HORIZON:
                return done, home, cost, busy, None
            if done > due:
                start, gpu = self.best_copy(now, model, due, True)
                own, cost = self.settle(now, model, due, gpu, size_class, gap)
                done, home = start + own, gpu
        loads = self.loads(now, model, due)
        loader = loads[0][2] if loads else None
        if loads and done > due:
            own, other = self.settle(now, model, due, loader, size_class, gap)
            if loads[0][0] + own <= due or loads[0][0] + own < done:
                done, home, cost = loads[0][0] + own, None, other
        return done, home, cost, busy, loader

    def cheap(self, size, size_class):
        """Whether a request costs less than a 64th more than the price."""
        return self.took(size, size_class) < size * (self.price + self.price // 64)

    def let_in(self, now, model, due, size_class):
        """Whether a model's request is taken without a plan: it can still be saved, and is cheap enough in a batch that fills
        at once, and two of the largest have room."""
        last = due - self.need(size_class)
        if not model.copies:
            last -= LOAD + SEND + RESULT
        if last < now or len(model.queued) >= 2 * max(TOOK):
            return False
        return self.cheap(self.batch(size_class, due - now, 1), size_class)

    def copy_helps(self, now, due, size_class, busy, loader):
        """Whether a copy where the model could be loaded would have kept it in time."""
        if loader is None or busy == NEVER:
            return loader is not None
        start = max(self.gpus[loader].exec_free, now + SEND) + self.before(now, self.gpus[loader], due)
        return start + self.need(size_class) <= due

    def ask(self, now, m, slo, size_class):
        """(what becomes of it: "in", "late" or "short", when it could be served, home, cost); admits it.

        Whoever has no plan is missed by its model if a copy would have helped: `missed` says when.
        """
        model, due = self.models[m], now + slo - CLIENT
        gap = model.came(now, slo) if self.cwd else 0
        done, home, cost, busy, loader = self.place(now, model, due, size_class, gap)
        refused = done > due and not (self.cwd and self.let_in(now, model, due, size_class))
        short = now + self.need(size_class) > due
        if done > due and (not short if refused else busy < NEVER) and self.copy_helps(now, due, size_class, busy, loader):
            model.missed = now
        if refused:
            if short:
                return "short", done - now + CLIENT, None, None
            if home is not None:
                for gpu in model.copies if self.cwd else [home]:
                    self.gpus[gpu].pressed = True
            return "late", done - now + CLIENT, None, None
        model.queued = sorted([*model.queued, due])
        if home is not None:
            self.gpus[home].queued.append((due, cost, due // BUCKET - now // BUCKET < BUCKETS))
        return "in", None, home, cost
