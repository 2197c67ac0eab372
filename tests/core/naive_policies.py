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


def strategies(queues, first_due, start, took):
    """clockwork-paper: models by latest start as noted when their first request came, which was for the largest size;
    the first that can fill that size or a larger one runs the largest that it can fill. Who fails is noted anew, for
    smaller sizes."""
    noted = {model: (due - max(took.values()), max(took)) for model, due in first_due.items()}
    while noted:
        model = min(noted, key=lambda model: (noted[model][0], model))
        _, least = noted.pop(model)
        lefts = dict(suffixes(queues[model], start, took))
        full = None
        for size in sorted(took):
            if len(lefts.get(size, ())) < size:
                break
            full = size
        if full is not None and full >= least:
            return {batch(model, full, lefts[full])}
        smaller = [(lefts[size][0][0] - took[size], size) for size in sorted(took) if size < least and size in lefts]
        if smaller:
            noted[model] = min(smaller)
    return set()


class Infer5:
    """The scheduler of clockwork-paper for one GPU whose executions take what is expected: a queue per model and size.

    Requests are (due, id). Times are of the caller's; what `look` returns was sent, `ended` is told when it is over.
    """

    def __init__(self, models, took, ahead, network):
        self.took, self.ahead, self.network = took, ahead, network
        self.queues = {model: {size: [] for size in sorted(took)} for model in range(models)}
        self.strategies = {}
        self.sequence, self.begun, self.outstanding = 0, 0, []

    def arrived(self, model, due, name):
        self.sequence += 1
        for queue in self.queues[model].values():
            queue.append((due, name, self.sequence))
        if model not in self.strategies:
            self._note(model, max(self.took))

    def _note(self, model, largest):
        """Strategies for the sizes up to `largest` whose queues are not empty; without any the model is asleep."""
        fresh = [(queue[0][0] - self.took[size], size) for size, queue in self.queues[model].items()
                 if queue and size <= largest]
        if fresh:
            self.strategies[model] = fresh

    def available(self, now):
        return max(self.begun + sum(self.outstanding), now + self.network)

    def look(self, now):
        """[(model, size, ids)] sent now."""
        sent = []
        while self.strategies and self.available(now) <= now + self.ahead:
            _, size, model = min((*strategy, model) for model, mine in self.strategies.items() for strategy in mine)
            del self.strategies[model]
            names = self._take(model, self.available(now), size)
            if names:
                if not self.outstanding:
                    self.begun = now
                self.outstanding.append(self.took[len(names)])
                sent.append((model, len(names), tuple(names)))
            self._note(model, max(self.took) if names else size - 1)
        return sent

    def _take(self, model, start, least):
        queues = self.queues[model]
        for size, queue in queues.items():
            while queue and queue[0][0] < start + self.took[size]:
                queue.pop(0)
        full = [size for size in queues if all(len(queues[smaller]) >= smaller for smaller in queues if smaller <= size)]
        if not full or full[-1] < least:
            return []
        taken = queues[full[-1]][:full[-1]]
        for queue in queues.values():
            while queue and queue[0][2] <= taken[-1][2]:
                queue.pop(0)
        return [name for _, name, _ in taken]

    def ended(self, at):
        self.outstanding.pop(0)
        self.begun = at


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
    """symphony: the largest batches that cannot wait for one more; the one that must start first. Who waits leaves time for
    what was not measured lately, so twice of it: here nothing was."""
    found = []
    for model, queue in queues.items():
        mine = [(len(left[:size]), -size, left) for size, left in suffixes(queue, start, took)]
        if not mine:
            continue
        rows, size, left = max(mine, key=lambda item: item[:2])
        grown = min((s for s in took if s > rows), default=None)
        if grown is None or left[0][0] - 2 * took[grown] - jitter <= start:
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
