"""A fake controller with several models, which count their executions and do as they are told."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))
from fake_controller import DOUBLE, FakeController  # noqa: E402

from cwd.wire.messages import Type  # noqa: E402

SHAPE = {"inputs": [{"name": "x", "dtype": "float32", "shape": [3]}], "outputs": [{"name": "y", "dtype": "float32", "shape": [3]}]}
X = np.array([1, 2, 3], "f4")


class Members(FakeController):
    """Models m0, m1, ..., of which mK answers x * (K + 1); `silent_members` never answer, `held` answer when let go."""

    def __init__(self, path, count=3, **options):
        self.executions = Counter()
        self.silent_members = set()
        self.refusing = {}
        self.release = threading.Event()
        self.release.set()
        super().__init__(path, **options)
        self.models = {f"m{i}": (100 + i, {**DOUBLE, **SHAPE, "name": f"m{i}"}) for i in range(count)}
        self.versions = {}

    def answer(self, peer, kind, fields, payload):
        if kind == Type.LOOKUP and fields["name"] in self.versions:
            version = fields["version"] or self.versions[fields["name"]]
            handle, manifest = self.models[fields["name"]]
            self.models[fields["name"]] = handle % 1000 + 1000 * version, {**manifest, "version": version}
        return super().answer(peer, kind, fields, payload)

    def answer_infer(self, fields, payload):
        member = (fields["model"] & 0xFFFFFFFF) % 1000 - 100
        self.executions[member] += 1
        self.release.wait(20)
        if member in self.silent_members:
            return []
        if member in self.refusing:
            self.on_infer = lambda fields, payload: {"status": int(self.refusing[member])}
        else:
            self.on_infer = lambda fields, payload: {}
        found = super().answer_infer(fields, payload)
        if len(found[0]) == 2:
            found = [(found[0][0], (np.frombuffer(payload, "f4") * (member + 1)).astype("f4").tobytes())]
        return found
