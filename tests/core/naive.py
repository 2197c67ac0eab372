"""Slow, obvious twins of the core's structures: what a property test compares the kernels with."""

from __future__ import annotations


class NaiveSet:
    """An ordered set as a sorted list of ((key, tie), node)."""

    def __init__(self):
        self.items = []

    def insert(self, node, key, tie):
        self.items.append(((key, tie), node))
        self.items.sort()

    def remove(self, node):
        self.items = [item for item in self.items if item[1] != node]

    def nodes(self):
        return [node for _, node in self.items]


class NaiveHeap:
    """An indexed heap as a dict from id to key."""

    def __init__(self):
        self.keys = {}

    def put(self, identifier, key):
        self.keys[identifier] = key

    def drop(self, identifier):
        self.keys.pop(identifier, None)

    def top(self):
        return min((key, identifier) for identifier, key in self.keys.items())


class NaiveEstimate:
    """A window as a list: the third largest of the last 32, and the mean without the two largest.

    What is above the least of window and seed halves with each half-life without a sample; once in a half-life the window
    itself does, unless it was filled anew since the last time. It is looked at when a sample is above the tail, with each
    fourth one, and when it fades: until then it says what it said.
    """

    HALF_LIFE = 1 << 30

    def __init__(self, seed):
        self.seed = self.floor = self.tail_said = self.typical_said = seed
        self.samples = [seed] * 32
        self.number = self.since = self.fresh = self.updated = 0

    def faded(self, age, value):
        halvings = age // self.HALF_LIFE
        floor = min(self.floor, self.seed)
        return floor + ((value - floor) >> halvings) if halvings else value

    def look(self):
        ranked = sorted(self.samples)
        self.floor, self.tail_said, self.typical_said = ranked[0], ranked[-3], sum(ranked[:-2]) // 30

    def observe(self, now, sample):
        if now - self.since >= self.HALF_LIFE:
            if self.fresh < 32:
                self.samples = [self.faded(now - self.since, value) for value in self.samples]
                self.look()
            self.since, self.fresh = now, 0
        self.samples = self.samples[1:] + [sample]
        self.number, self.fresh, self.updated = self.number + 1, self.fresh + 1, now
        if sample > self.tail_said or self.number % 4 == 0:
            self.look()

    def tail(self, now):
        return self.faded(now - self.updated, self.tail_said)

    def typical(self, now):
        return self.faded(now - self.updated, self.typical_said)

    def careful(self, now):
        """For who waits on purpose: the largest of the window, at most twice the tail, which it is after a half-life."""
        if not self.updated or now - self.updated >= self.HALF_LIFE:
            return 2 * self.tail(now)
        return min(max(self.tail_said, *self.samples), 2 * self.tail_said)


def almost_largest(durations):
    """Clockwork's estimate: the 0.99-quantile of the last ten, evenly between the two largest."""
    ranked = sorted(durations[-10:])
    below = ranked[-2] if len(ranked) > 1 else ranked[-1]
    hundredths = 100 - (len(ranked) - 1)
    return (ranked[-1] * hundredths + below * (100 - hundredths)) // 100


class NaiveLane:
    """What is outstanding in a lane, as [name, start, expected]; each follows the one before."""

    def __init__(self, way):
        self.items, self.way, self.free = [], way, 0

    def send(self, now, name, expected):
        start = max(self.free, now + self.way)
        self.items.append([name, start, expected])
        self.free = start + expected

    def end(self, now, name):
        """The first's end moves what follows; another's leaves no gap."""
        at = [item[0] for item in self.items].index(name)
        before = self.items[at - 1] if at else None
        self.free = before[1] + before[2] if before else now
        del self.items[at]
        for item in self.items[at:]:
            item[1], self.free = self.free, self.free + item[2]
