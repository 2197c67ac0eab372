"""A world with nothing around it: tests tell it every event and read every record."""

from __future__ import annotations

import numpy as np

from cwd.core import engine
from cwd.core.check import check
from cwd.core.world import Config, make_world
from cwd.errors import Code

US, MS = 1_000, 1_000_000
T0 = 1_000 * MS


class Script:
    """A world with one GPU, one program of batches 1, 2, 4 (3, 4, 6 ms; class 1 twice that) and LOAD 10 ms."""

    def __init__(self, pages=20, gpus=1, **config):
        sizes = dict(models_max=8, programs_max=2, requests_max=32, gpus_max=gpus, copies_max=16, actions_max=32,
                     clients_max=4, events_max=32)
        if config.get("policy") != "clockwork-paper":
            # the tests count on 1 ms of look-ahead, of which 0.6 ms are first margins, and 0.2 ms for the reply's way
            sizes.update(schedule_ahead_ns=400 * US, client_ns=200 * US)
        sizes.update(config)
        self.world, self.now = make_world(Config(**sizes)), T0
        engine.program_added(self.world, 0, np.array([1, 2, 4], np.int64), 3, 2)
        for b, duration in enumerate((3, 4, 6)):
            engine.estimate_seed(self.world, 0, 0, b, 0, duration * MS)
            engine.estimate_seed(self.world, 0, 0, b, 1, 2 * duration * MS)
        engine.load_seed(self.world, 0, 0, 10 * MS)
        for gpu in range(gpus):
            assert engine.gpu_joined(self.world, self.now, gpu, 0, pages) == 0
            engine.program_prepared(self.world, self.now, gpu, 0, 1)
        self.model = self.add()

    def add(self, pages=7):
        return int(engine.model_added(self.world, self.now, 0, pages))

    def hold(self, model=None, gpu=0):
        assert engine.gpu_resident(self.world, self.now, gpu, model or self.model) == 0

    def ask(self, request_id, slo=100 * MS, model=None, size_class=0, client=1, deadline=0):
        code = engine.request_arrived(
            self.world, self.now, client, request_id, model or self.model, size_class, deadline, slo, 0, request_id)
        return int(code)

    def tick(self, later=0):
        self.now += later
        engine.tick(self.world, self.now)
        return self.take()

    def take(self):
        counters = self.world.counters[0]
        records = [{name: int(out[name]) for name in out.dtype.names}
                   for out in self.world.outbox[:counters["outbox_count"]]]
        counters["outbox_count"] = 0
        assert check(self.world) == 0
        return records

    def done(self, out, status=Code.OK, later=None, result=-1, pages_free=-1):
        """The action of record `out` ends now, having taken what was expected (or `later` has passed)."""
        self.now += out["expected_ns"] + 300 * US if later is None else later
        ran = status == Code.OK
        return int(engine.action_done(
            self.world, self.now, out["action"], int(status), self.now - out["expected_ns"] - 100 * US if ran else 0,
            self.now - 100 * US if ran else 0, 0, out["rows"] if ran else 0, pages_free, result))

    def ids(self, out):
        found, r = [], out["first"]
        while r != -1:
            found.append(int(self.world.requests[r]["request_id"]))
            r = int(self.world.requests[r]["next"])
        return found


def only(records, **fields):
    assert len(records) == 1, records
    assert {name: records[0][name] for name in fields} == fields
    return records[0]
