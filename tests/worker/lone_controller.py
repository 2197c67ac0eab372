"""The scripted controller of cwd.bench, and what only tests want of it: strangers, and messages that are nearly valid."""

from __future__ import annotations

import random
import time
from typing import Any

from cwd.bench.lone_controller import EPOCH, LoneController
from cwd.wire import codec
from cwd.wire.messages import Type


class FakeController(LoneController):
    """As tests have it: they may be busy with other things for long, and are not given up for that."""

    def __init__(self, endpoint: str, epoch: int = EPOCH, *, heartbeat_ms: int = 500, lost_ms: int = 60_000) -> None:
        super().__init__(endpoint, epoch, heartbeat_ms=heartbeat_ms, lost_ms=lost_ms)

    def hello_after_stranger(self) -> tuple[bytes, dict[str, Any]]:
        """As a restarted controller: whoever has not said HELLO to this one is told so."""
        end = time.monotonic() + 60
        while not self.hellos:
            assert time.monotonic() < end, "no HELLO came"
            self.pump(100)
            for peer in [peer for peer, queue in self.inbox.items() if queue and peer not in self.welcomed]:
                self.inbox[peer].clear()
                self.send(peer, Type.ERROR, code=307, re_type=0, re_id=0, text="")
        return self.hellos.popleft()

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
