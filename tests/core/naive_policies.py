"""The policies' choices, slow and obvious: which batches a policy might run next on a GPU that has just come free.

A queue is a list of (due, arrival, id) in the order of its queue; a choice is (model, batch size, ids). Each function
gets the queues by model, the start, the durations by batch size, and returns the set of choices that are equally good.
"""

from __future__ import annotations


def in_time(request, start, took):
    return start + took <= request[0]


def suffixes(queue, start, took):
    """(batch size, what is left when heads that the size makes late are passed over), for each size."""
    for size in sorted(took):
        left = list(queue)
        while left and not in_time(left[0], start, took[size]):
            left.pop(0)
        if left:
            yield size, left


def batch(model, size, left):
    return (model, size, tuple(request[2] for request in left[:size]))


def best(choices):
    """Of [(value, choice)] the choices with the largest value."""
    most = max((value for value, _ in choices), default=None)
    return {choice for value, choice in choices if value == most}


def largest(queues, start, took):
    """shepherd: the most requests; of one model's equals the smallest size."""
    found = []
    for model, queue in queues.items():
        mine = [(len(left[:size]), -size, batch(model, size, left)) for size, left in suffixes(queue, start, took)]
        if mine:
            rows, _, choice = max(mine)
            found.append((rows, choice))
    return best(found)


def filled(queues, start, took):
    """clockwork-paper: each model's largest filled size below which all are filled; the one that must start first."""
    found = []
    for model, queue in queues.items():
        choice = None
        for size, left in suffixes(queue, start, took):
            if len(left) < size:
                break
            choice = (took[size] - left[0][0], batch(model, size, left))
        if choice:
            found.append(choice)
    return best(found)


def densest_of_all(queues, start, took):
    """clockwork under pressure: the most requests per time; of one model's equals the larger size."""
    scale = 1
    for size in took:
        scale *= took[size]
    found = []
    for model, queue in queues.items():
        mine, enough = [], False
        for size, left in suffixes(queue, start, took):
            if not enough:
                mine.append((len(left[:size]) * (scale // took[size]), size, batch(model, size, left)))
            enough = size >= len(left)
        if mine:
            value, _, choice = max(mine)
            found.append((value, choice))
    return best(found)


def first_fit(queues, start, took, key, dense):
    """fifo, edf, clockwork: the models in order of `key(head)`; the first with a request that alone would be in time."""
    for model in sorted((m for m in queues if queues[m]), key=lambda m: (key(queues[m][0]), m)):
        left = [request for request in queues[model]]
        while left and not in_time(left[0], start, took[1]):
            left.pop(0)
        if not left:
            continue
        sizes = [size for size in sorted(took) if in_time(left[0], start, took[size])]
        enough = [size for size in sorted(took) if size >= len(left)] or [max(took)]
        sizes = [size for size in sizes if size <= enough[0]]
        if dense:
            scale = 1
            for size in took:
                scale *= took[size]
            size = max(sizes, key=lambda size: (min(len(left), size) * (scale // took[size]), size))
        else:
            size = max(sizes)
        return {batch(model, size, left)}
    return set()


def deferred(queues, start, took, jitter):
    """symphony: the largest batches that cannot wait for one more; the one that must start first."""
    found = []
    for model, queue in queues.items():
        mine = [(len(left[:size]), -size, left) for size, left in suffixes(queue, start, took)]
        if not mine:
            continue
        rows, size, left = max(mine, key=lambda item: item[:2])
        grown = min((s for s in took if s > rows), default=None)
        if grown is None or left[0][0] - took[grown] - jitter <= start:
            found.append((took[-size] - left[0][0], batch(model, -size, left)))
    return best(found)


def filled_with_candidates(queues, start, took):
    """orloj where nothing varies and all slack is alike: the largest size that can be filled; the most per time."""
    scale = 1
    for size in took:
        scale *= took[size]
    found = []
    for model, queue in queues.items():
        for size in sorted(took, reverse=True):
            candidates = [request for request in queue if in_time(request, start, took[size])]
            if len(candidates) >= size:
                found.append((size * (scale // took[size]), batch(model, size, candidates)))
                break
    return best(found)


def one_of_the_first(queues):
    """clipper before it has learned: the request that came first, alone."""
    heads = [(queue[0][1], batch(model, 1, queue)) for model, queue in queues.items() if queue]
    return best([(-arrival, choice) for arrival, choice in heads])


def window(queues, start, took, quotas):
    """nexus, all turns being due: the first model with a place in the round; without any, the first's largest batch."""
    sizes = sorted(took)
    for model in queues:
        if quotas.get(model):
            size = min(size for size in sizes if size >= quotas[model])
            left = dict(suffixes(queues[model], start, took)).get(size, [])
            while size > 1 and len(left) <= sizes[sizes.index(size) - 1]:
                size = sizes[sizes.index(size) - 1]
                left = dict(suffixes(queues[model], start, took)).get(size, [])
            if left:
                return {batch(model, size, left[:min(size, quotas[model])])}
    for model in queues:
        if not quotas.get(model) and largest({model: queues[model]}, start, took):
            return largest({model: queues[model]}, start, took)
    return set()
