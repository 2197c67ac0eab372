"""Copies ahead of need, slow and obvious: what a copy is worth, who gets another one, who leaves, what is loaded first."""

from __future__ import annotations

from fractions import Fraction

MS = 1_000_000
STEP_NS = 1 << 23
HALF_LIFE_NS = 1 << 33


class NaiveWork:
    """Work that halves in 1024 steps of 8.4 ms, evenly in between."""

    def __init__(self):
        self.left, self.since = 0, 0

    def at(self, now):
        halvings, steps = divmod((now - self.since) // STEP_NS, 1024)
        left = self.left // 2 ** halvings
        return left - left * steps // 2048

    def add(self, now, piece):
        self.left = self.at(now) + piece
        self.since += (now - self.since) // STEP_NS * STEP_NS


def share(work, copies):
    """What one of so many copies is worth of its model's work: its part, halved for each other copy."""
    return 0 if copies > 40 else work // copies // 2 ** (copies - 1)


def rare(alone, silent):
    """One execution in the time since the last request, as work: all of it up to a half-life of silence."""
    return alone if silent < HALF_LIFE_NS else alone // 1024 * (1024 * HALF_LIFE_NS // silent)


def per_page(value, load, pages):
    """A value times LOAD time per page."""
    return (value // 128) * (load // 1024) // max(pages, 1)


class NaiveCopies:
    """GPUs of `pages` pages with models of `size` pages each; who spreads whom where, told what happens in order.

    Models are numbers, a GPU is a list of its copies from the one used longest ago on, as [model, state].
    """

    def __init__(self, gpus, pages, size, load, alone):
        self.gpus, self.pages, self.size, self.load, self.alone = [[] for _ in range(gpus)], pages, size, load, alone
        self.work, self.asked, self.busy = {}, {}, [0] * gpus
        self.best, self.spread_at = None, 0

    def copies(self, model):
        return sum(copy[0] == model for gpu in self.gpus for copy in gpu)

    def find(self, gpu, model):
        return next((copy for copy in self.gpus[gpu] if copy[0] == model), None)

    def free(self, gpu):
        return self.pages - self.size * sum(state != "leaving" for _, state in self.gpus[gpu])

    def idle(self, gpu):
        """Whether nothing is on its way there to load or unload."""
        return all(state == "ready" for _, state in self.gpus[gpu])

    def touch(self, gpu, model):
        copy = self.find(gpu, model)
        self.gpus[gpu].remove(copy)
        self.gpus[gpu].append(copy)

    def worth(self, now, model):
        done = self.work[model].at(now) if model in self.work else 0
        value = max(done, rare(self.alone, now - self.asked.get(model, 0)))
        return per_page(share(value, self.copies(model)), self.load, self.size)

    def another(self, now, model):
        return per_page(share(self.work[model].at(now), self.copies(model) + 1), self.load, self.size)

    def per_copy(self, model):
        return self.work[model].left // max(self.copies(model), 1)

    def ran(self, now, model, took):
        """A model ran, nothing being queued: the model to be spread now, or None."""
        self.work.setdefault(model, NaiveWork()).add(now, took)
        dense = self.copies(model) < len(self.gpus) and self.per_copy(model) > 12 * MS
        if dense and (self.best is None or self.per_copy(model) > self.per_copy(self.best)):
            self.best = model
        if now - self.spread_at < 4 * MS or self.best is None:
            return None
        chosen, self.best, self.spread_at = self.best, None, now
        return chosen if self.copies(chosen) > 0 else None

    def targets(self, now, model):
        """The GPUs that are equally good for another copy: with room if any has it, then with least to do."""
        fit = [g for g in range(len(self.gpus)) if self.idle(g) and self.find(g, model) is None]
        room = [g for g in fit if self.free(g) >= self.size] or fit
        least = min((max(self.busy[g], now) for g in room), default=None)
        return [g for g in room if max(self.busy[g], now) == least]

    def leaving(self, now, gpu, running, limit):
        """Models that leave the GPU, in turn, until the size is free; None if they are not worth so little."""
        worths = [(self.worth(now, copy[0]), i, copy[0]) for i, copy in enumerate(self.gpus[gpu])
                  if copy[1] == "ready" and (gpu, copy[0]) not in running]
        cheap = sorted(entry for entry in worths if entry[0] < limit)
        missing = -(-(self.size - self.free(gpu)) // self.size)
        if missing > len(cheap):
            return None
        return [model for _, _, model in cheap[:max(missing, 0)]]


def wanted_order(policy, models):
    """Models that want a LOAD, in the policy's order, of {name: (requests queued, work, LOAD time, number of the head)}."""
    def key(name):
        queued, work, load, head = models[name]
        if policy == "cwd":
            return (-Fraction(queued * 2 ** 40 // load), -head)
        return (head, 0) if policy == "fifo" else (-work, head)
    return sorted(models, key=key)


def loaded_first(listed, done, wait):
    """Of the models listed, as [(due - need of each of its requests)] in order, the index of the one to load, where a LOAD
    would be done at a time: the first that saves one of its first four even after a wait, else the first that saves one."""
    spare = [max(latest - done for latest in mine[:4]) for mine in listed]
    return next((i for least in (wait, 0) for i, left in enumerate(spare) if left >= least), None)
