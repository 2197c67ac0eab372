"""The scripted controller, and messages that no controller should send."""

from __future__ import annotations

import random

from cwd.bench.scripted import ScriptedController
from cwd.wire import codec
from cwd.wire.messages import Type


class FakeController(ScriptedController):
    def mutants(self, count: int, seed: int) -> list[list[bytes]]:
        """Messages that are nearly valid, and some that are noise: of one frame or several."""
        rng = random.Random(seed)
        common = {"action": 1, "epoch": self.epoch, "earliest_ns": 0, "latest_ns": 1, "expected_ns": 1000, "model": 1}
        valid = [
            codec.encode(Type.EXEC, **common, batch=1, size_class=0, rows=[(1, 0, 0, 0)]),
            codec.encode(Type.LOAD, **common, program_index=3, image=bytes(16), pages=2),
            codec.encode(Type.UNLOAD, **common),
            codec.encode(Type.PROFILE, **common, program_index=3, batch=1, size_class=0, repeats=1),
            codec.encode(Type.HEARTBEAT, seq=1, reply=0, sent_ns=1, echo_ns=0, hold_ns=0, loop_max_ns=0, queued=0),
        ]
        found = []
        for _ in range(count):
            frame = bytearray(rng.choice(valid) if rng.random() < 0.9 else rng.randbytes(rng.randrange(60)))
            for _ in range(rng.randrange(4)):
                if frame:
                    frame[rng.randrange(len(frame))] = rng.randrange(256)
            if rng.random() < 0.2:
                del frame[rng.randrange(len(frame) + 1):]
            found.append([bytes(frame), *(b"p" * rng.randrange(5) for _ in range(rng.randrange(4)))])
        return found
