"""Slow, obvious twins of what policies learn: Clipper's limits, Nexus's rounds, Orloj's histograms and scores."""

from __future__ import annotations

from fractions import Fraction


class NaiveAimd:
    """The limit of a model's batches, in 1024ths."""

    def __init__(self, largest):
        self.limit, self.largest = 1024, largest

    def learn(self, rows, took, slo):
        if took > slo:
            self.limit = max(1024, self.limit) * 9 // 10
        elif rows >= max(self.limit, 1024) // 1024:
            self.limit = max(self.limit, 1024) + 1024
        self.limit = min(self.limit, self.largest * 1024)

    def rows(self):
        return max(1, self.limit // 1024)


class NaiveLine:
    """Clipper's line of latency over batch size, from the profile on: each execution moves it, up by 99 steps or down by
    one, at each end by how near to it the size is. The limit is the largest size within the SLO on it, 1 before any."""

    def __init__(self, took):
        self.sizes, self.small, self.large, self.limit = sorted(took), took[min(took)], took[max(took)], 1

    def at(self, size):
        return self.small + (self.large - self.small) * (size - 1) // (self.sizes[-1] - 1)

    def learn(self, batch, took, slo):
        step = (self.small // 1600 + 1) * (99 if took > self.at(batch) else -1)
        self.small += step * (self.sizes[-1] - batch) // (self.sizes[-1] - 1)
        self.large += step * (batch - 1) // (self.sizes[-1] - 1)
        self.limit = max([1, *(size for size in self.sizes if self.at(size) <= slo)])


def quota(took, gap, slo, cycle):
    """Requests of a session in a round, and the time they take: at most the largest size with twice its time in the SLO."""
    allowed = [size for size in sorted(took) if size == 1 or 2 * took[size] <= slo]
    rows = min(-(-cycle // gap), allowed[-1])
    return rows, min(took[size] for size in allowed if size >= rows)


def period(took, gap, slo):
    """How often a session alone would run; None if it is never in time."""
    best = None
    for size in sorted(took):
        if took[size] > slo:
            break
        if size * gap <= took[size] and 2 * took[size] <= slo:
            best = took[size]
        elif (size - 1) * gap + took[size] <= slo or size == 1:
            best = max(took[size], min(slo - took[size], size * gap))
    return best


def pack(took, sessions):
    """Squishy bin packing of [(name, gap, slo)] in order: ({name: quota}, cycle)."""
    inside, cycle = [], None
    for session in sessions:
        own = period(took, *session[1:])
        if own is None:
            continue
        shorter = own if cycle is None else min(own, cycle)
        if sum(quota(took, gap, slo, shorter)[1] for _, gap, slo in [*inside, session]) <= shorter:
            inside, cycle = [*inside, session], shorter
    return {name: quota(took, gap, slo, cycle)[0] for name, gap, slo in inside}, cycle


def maximum(own, others, size):
    """[chance] by outcome of the largest of one draw from `own` and size - 1 from `others` (weights by outcome)."""
    chances, before = [], Fraction(0)
    for j in range(len(own)):
        mine = Fraction(sum(own[:j + 1]), sum(own))
        rest = Fraction(sum(others[:j + 1]), sum(others))
        chances.append(mine * rest ** (size - 1) - before)
        before += chances[-1]
    return chances


def value(outcomes, slack, half_life):
    """The score of [(chance, latency)]: chances halved per half-life of slack left, over the mean latency."""
    mean = sum(chance * latency for chance, latency in outcomes)
    return sum(chance * 2.0 ** (-(slack - latency) / half_life) for chance, latency in outcomes if latency <= slack) / mean


class NaiveHistogram:
    """Samples in 1024ths and the sum of their stretches by bin, as plain lists; the same roundings as the core's."""

    def __init__(self, counts, sums):
        self.counts, self.sums = list(counts), list(sums)

    def add(self, j, stretch, share):
        """`share` that a member was as long as bin j, and the rest among what is below, in proportion; all, if nothing is."""
        below = sum(self.counts[:j])
        for i in range(j) if below else ():
            self._scale(i, self.counts[i] + self.counts[i] * (1024 - share) // below)
        self.counts[j] += share if below else 1024
        self.sums[j] += (share if below else 1024) * stretch
        if sum(self.counts) > 1024 * 1024:
            for i, count in enumerate(self.counts):
                self._scale(i, count // 2)

    def _scale(self, i, count):
        """Give bin i another count, of the same mean but for what is rounded off."""
        if self.counts[i]:
            more = self.sums[i] * abs(count - self.counts[i]) // self.counts[i]
            self.sums[i] = self.sums[i] * count // self.counts[i] if count < self.counts[i] else self.sums[i] + more
        self.counts[i] = count

    def part(self, total):
        """A histogram like this one, of so many samples."""
        counts = [count * total // sum(self.counts) for count in self.counts]
        return NaiveHistogram(counts, [sums * count // max(own, 1) for sums, count, own in
                                       zip(self.sums, counts, self.counts, strict=True)])

    def least(self):
        """The mean stretch of the bin that the 64th part of the samples reaches into."""
        j = next(j for j in range(len(self.counts)) if 64 * sum(self.counts[:j + 1]) > sum(self.counts))
        return self.sums[j] // self.counts[j]


class NaiveApplications:
    """Histograms by application, and the program's average; a new one starts as a quarter of a sample of the average."""

    def __init__(self, bins, start, unit):
        self.average, self.apps, self.alone = NaiveHistogram([0] * bins, [0] * bins), {}, {}
        self.average.counts[start], self.average.sums[start] = 256, 256 * unit

    def came(self, app):
        if app not in self.apps:
            self.apps[app] = self.average.part(256)
            self.alone[app] = 0

    def chance(self, app, j):
        """That a member is in bin j if it is not above, in 65536ths."""
        counts = self.apps[app].counts
        return (counts[j] + 64) * 65536 // (sum(counts[:j + 1]) + 64)

    def ran(self, apps, j, stretch):
        """A batch of these applications took so long: each was as long with its chance, given that one was."""
        nobody = 65536
        for app in apps:
            nobody = nobody * (65536 - self.chance(app, j)) // 65536
        if len(apps) == 1:
            # what is known for sure counts four times, at first
            for _ in range(3 if self.alone[apps[0]] < 32 else 0):
                self.apps[apps[0]].add(j, stretch, 1024)
            self.alone[apps[0]] += 1
        for app in apps:
            share = min(self.chance(app, j) * 1024 // (65536 - nobody), 1024)
            self.apps[app].add(j, stretch, share)
            self.average.add(j, stretch, share)


class NaiveScatter:
    """How far a program's executions scatter, each against the one before: 256 more if it is more than twice as long or the
    other way round, up to 32768, else 17 less for one request alone; dynamic from 4096 on until it is 0."""

    def __init__(self):
        self.before, self.scatter, self.dynamic = None, 0, False

    def ran(self, took):
        if self.before is not None and max(took, self.before) > 2 * min(took, self.before):
            self.scatter += 256 if self.scatter < 32768 else 0
            self.dynamic = self.dynamic or self.scatter >= 4096
        else:
            self.scatter = max(self.scatter - 17, 0)
            self.dynamic = self.dynamic and self.scatter > 0
        self.before = took
