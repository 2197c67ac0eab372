"""A slow, obvious twin of batches as sets: fractions, dictionaries and every window tried."""

from __future__ import annotations

from fractions import Fraction


def groups_of(means, alike=Fraction(9, 8), most=4):
    """{application: group} of [(application, mean)]: in order of the means, a new group where one is clearly longer."""
    found, group, low = {}, -1, None
    for app, mean in sorted(means, key=lambda pair: pair[1]):
        if low is None or (mean > low * alike and group + 1 < most):
            group, low = group + 1, mean
        found[app] = group
    return found


def below(histograms, waiting, outcomes):
    """[chance not to exceed outcome j] of a request of one of the applications, as many as wait of each."""
    total = sum(waiting.values())
    return [sum((Fraction(count * sum(histograms[app][:j + 1]), total * sum(histograms[app]))
                 for app, count in waiting.items()), Fraction(0)) for j in range(outcomes)]


def largest(chances, members):
    """[chance not to exceed outcome j] of the largest of `members[g]` draws of each group."""
    found = []
    for j in range(len(next(iter(chances.values())))):
        chance = Fraction(1)
        for g, count in members.items():
            chance *= chances[g][j] ** count
        found.append(chance)
    return found


def worth(joint, stretches, slacks, profiled, half_life):
    """Chances to be in time of requests with such slack, halved per half-life that is left, over the mean latency."""
    steps = [float(b - a) for a, b in zip([Fraction(0), *joint], joint, strict=False)]
    mean = sum(step * stretch for step, stretch in zip(steps, stretches, strict=True)) * profiled
    value = 0.0
    for slack in slacks:
        chance = max((float(c) for c, stretch in zip(joint, stretches, strict=True) if stretch * profiled <= slack),
                     default=0.0)
        value += chance * 2.0 ** (-max(slack - mean, 0.0) / half_life)
    return value / mean


def best(requests, group_of, chances, stretches, profiled, half_life):
    """The largest worth of neighbours of a run of groups, in any size: (of single groups, of all runs).

    `requests`: [(application, slack)] in order; `profiled`: {batch size: duration}.
    """
    single = every = 0.0
    groups = sorted(set(group_of.values()))
    for low in groups:
        for high in range(low, groups[-1] + 1):
            listed = [(group_of[app], slack) for app, slack in requests if low <= group_of[app] <= high]
            for size, duration in profiled.items():
                rows = min(size, len(listed))
                for first in range(len(listed) - rows + 1 if rows else 0):
                    chosen = listed[first:first + rows]
                    members = {g: sum(1 for h, _ in chosen if h == g) for g in {g for g, _ in chosen}}
                    value = worth(largest(chances, members), stretches, [slack for _, slack in chosen], duration, half_life)
                    every = max(every, value)
                    if low == high:
                        single = max(single, value)
    return single, every
