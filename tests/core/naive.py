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
    """A window as a list: the third largest of the last 32, and the mean without the two largest."""

    def __init__(self, seed):
        self.seed = seed
        self.samples = [seed] * 32
        self.updated = 0

    def observe(self, now, sample):
        self.samples = self.samples[1:] + [sample]
        self.updated = now

    def tail(self):
        return sorted(self.samples)[-3]

    def typical(self):
        return sum(sorted(self.samples)[:-2]) // 30
