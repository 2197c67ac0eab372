"""The scripted controller as a process of its own: sends the actions of a script to one worker, and notes the results.

    python -m cwd.bench.gpu.driver SCRIPT.json OUT.npz

The worker's process is not disturbed by it, as by a controller. A script has phases: "paced" executes one model at
regular times, with or without LOADs beside; "random" loads, unloads and executes whatever instances chance says.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from cwd.bench.lone_controller import LoneController
from cwd.wire.messages import Type

#: one result; `phase` is the number of the script's phase, `kind` a Type
ROW = np.dtype([("phase", "i4"), ("kind", "i4"), ("batch", "i4"), ("model", "i4"), ("status", "i4"), ("earliest_ns", "i8"),
                ("received_ns", "i8"), ("begin_ns", "i8"), ("end_ns", "i8"), ("device_ns", "i8")])
_LATER_NS = 3_600_000_000_000
#: actions out at one time: of the exec lane, of the load lane
_EXECS_OUT, _LOADS_OUT = 4, 3
_PACED_LOADS_OUT = 2
_HELLO_S, _DRAIN_S = 60.0, 30.0


class Driver:
    """A controller, the worker that dialled it, and what is known of the worker's instances."""

    def __init__(self, script: dict[str, Any]) -> None:
        self.script = script
        self.controller = LoneController(script["endpoint"], heartbeat_ms=1000, lost_ms=30_000)
        self.payloads = [row.tobytes() for row in np.load(script["payloads"])]
        self.images = [row.tobytes() for row in np.load(script["images"])]
        self.rows: list[tuple[int, ...]] = []
        #: samples: (row, payload numbers, output)
        self.samples: list[tuple[int, list[int], bytes]] = []
        #: action -> (phase, kind, batch, model, earliest, payload numbers)
        self.out: dict[int, tuple[int, int, int, int, int, list[int]]] = {}
        #: READY instances, least recently used first; and those that are on their way in or out
        self.ready: OrderedDict[int, None] = OrderedDict()
        self.moving: set[int] = set()
        self.using: dict[int, int] = {}
        self.pages_free = int(script["pages"])
        self.execs_out = self.loads_out = self.phase = 0
        self.keep = 1

    def greet(self) -> None:
        """Welcome the worker and have it prepare the program."""
        script = self.script
        self.peer, _ = self.controller.hello(_HELLO_S)
        self.controller.welcome(self.peer)
        self.controller.act(self.peer, Type.PREPARE, name=script["name"], version=script["version"], program_index=0,
                            program=bytes.fromhex(script["program"]), image=bytes(16))
        fields, _ = self.controller.result(self.peer, 120)
        if fields["status"] != 0:
            raise RuntimeError(f"PREPARE was answered with {fields['status']}")

    def execute(self, model: int, batch: int, earliest_ns: int, numbers: list[int]) -> None:
        frames = tuple(self.payloads[number] for number in numbers)
        action = self.controller.execute(self.peer, model, frames, batch=batch, dims=tuple(self.script["dims"]),
                                         earliest_ns=earliest_ns, latest_ns=time.monotonic_ns() + _LATER_NS)
        self.out[action] = self.phase, int(Type.EXEC), batch, model, earliest_ns, numbers
        self.execs_out += 1
        self.using[model] = self.using.get(model, 0) + 1
        self.ready.move_to_end(model)

    def load(self, model: int) -> None:
        pages = self.script["pages_each"]
        action = self.controller.load(self.peer, model, pages=pages, image=self.images[model], program_index=0,
                                      latest_ns=time.monotonic_ns() + _LATER_NS)
        self.out[action] = self.phase, int(Type.LOAD), 0, model, 0, []
        self.moving.add(model)
        self.loads_out += 1
        self.pages_free -= pages

    def unload(self, model: int) -> None:
        action = self.controller.act(self.peer, Type.UNLOAD, model=model, latest_ns=time.monotonic_ns() + _LATER_NS)
        self.out[action] = self.phase, int(Type.UNLOAD), 0, model, 0, []
        self.moving.add(model)
        self.ready.pop(model)
        self.loads_out += 1
        self.pages_free += self.script["pages_each"]  # the load lane is in order: what is sent behind it finds them free

    def take(self, timeout_ms: int) -> list[tuple[int, int]]:
        """Take in what has come: (kind, model) of each result; something wrong is an exception."""
        controller, done = self.controller, []
        controller.pump(timeout_ms)
        while controller.pump(0):
            pass
        queue = controller.inbox[self.peer]
        while queue:
            kind, fields, payload = queue.popleft()
            if kind == Type.HEARTBEAT:
                continue
            if kind not in (Type.RESULT, Type.EXEC_RESULT):
                raise RuntimeError(f"the worker says {kind.name}: {fields}")
            done.append(self._result(fields, payload))
        return done

    def _result(self, fields: dict[str, Any], payload: list[bytes]) -> tuple[int, int]:
        phase, kind, batch, model, earliest_ns, numbers = self.out.pop(fields["action"])
        if fields["status"] != 0:
            raise RuntimeError(f"{Type(kind).name} of model {model} was answered with {fields['status']}")
        if kind == Type.EXEC:
            self.execs_out -= 1
            self.using[model] -= 1
            if len(self.rows) % self.keep == 0:
                self.samples.append((len(self.rows), numbers, b"".join(payload)))
        else:
            self.loads_out -= 1
            self.moving.discard(model)
            if kind == Type.LOAD:
                self.ready[model] = None
        self.rows.append((phase, kind, batch, model, fields["status"], earliest_ns, fields["received_ns"],
                          fields["begin_ns"], fields["end_ns"], fields["device_ns"]))
        return kind, model

    def drain(self) -> None:
        """Until everything is answered."""
        end = time.monotonic() + _DRAIN_S
        while self.out:
            self.take(100)
            if time.monotonic() > end:
                raise TimeoutError(f"{len(self.out)} actions were never answered")

    def run(self) -> None:
        for number, phase in enumerate(self.script["phases"]):
            self.phase, self.keep = number, int(phase.get("keep", 1 << 30))
            run = self._paced if phase["kind"] == "paced" else self._random
            run(**phase["more"])
            self.drain()

    def _paced(self, batch: int, period_ns: int, lead_ns: int, seconds: float, loads: bool) -> None:
        """EXECs of model 0 at regular times, each sent `lead_ns` before; with `loads`, the load lane is never idle."""
        if 0 not in self.ready:
            self.load(0)
            self.drain()
        end_ns = time.monotonic_ns() + int(seconds * 1e9)
        start_ns, spare = time.monotonic_ns() + 2 * lead_ns, 1
        sent = 0
        while (now_ns := time.monotonic_ns()) < end_ns:
            next_ns = start_ns + sent * period_ns
            if now_ns >= next_ns - lead_ns:
                # if this process was late the next times are missed, not caught up with
                sent += 1
                if now_ns < next_ns and self.execs_out < _EXECS_OUT:
                    self.execute(0, batch, next_ns, [(sent + row) % len(self.payloads) for row in range(batch)])
                continue
            if loads and self.loads_out < _PACED_LOADS_OUT:
                for model in [model for model in self.ready if model != 0]:
                    self.unload(model)
                while spare in self.moving or spare in self.ready:
                    spare = spare % (len(self.images) - 1) + 1
                self.load(spare)
                spare = spare % (len(self.images) - 1) + 1
            self.take(1 if loads else max((next_ns - lead_ns - time.monotonic_ns()) // 1_000_000, 0))

    def _random(self, seconds: float, seed: int, batches: list[int], new: float) -> None:
        """Full lanes of whatever chance says: a resident, or with probability `new` any instance, which is loaded."""
        chance, end = random.Random(seed), time.monotonic() + seconds
        pages = self.script["pages_each"]
        while time.monotonic() < end:
            while self.loads_out < _LOADS_OUT and (self.execs_out >= _EXECS_OUT or chance.random() < new or not self.ready):
                model = chance.randrange(len(self.images))
                if model in self.ready or model in self.moving:
                    continue
                if self.pages_free < pages:
                    idle = next((one for one in self.ready if not self.using.get(one)), None)
                    if idle is None:
                        break
                    self.unload(idle)
                self.load(model)
            while self.execs_out < _EXECS_OUT and self.ready:
                batch = chance.choice(batches)
                numbers = [chance.randrange(len(self.payloads)) for _ in range(batch)]
                # any of the residents, old and new
                self.execute(chance.choice(list(self.ready)), batch, 0, numbers)
            self.take(5)

    def save(self, path: str) -> None:
        longest = max((len(output) for _, _, output in self.samples), default=0)
        outputs = np.zeros((len(self.samples), longest), np.uint8)
        numbers = np.full((len(self.samples), self.script["rows_max"]), -1, np.int32)
        for k, (_, chosen, output) in enumerate(self.samples):
            outputs[k, :len(output)] = np.frombuffer(output, np.uint8)
            numbers[k, :len(chosen)] = chosen
        np.savez(path, rows=np.array(self.rows, ROW), sampled=np.array([row for row, _, _ in self.samples], np.int64),
                 numbers=numbers, outputs=outputs)


def main() -> int:
    script = json.loads(Path(sys.argv[1]).read_text())
    os.sched_setaffinity(0, script["cores"])
    driver = Driver(script)
    try:
        driver.greet()
        driver.run()
    finally:  # what was done before an error is worth having
        driver.save(sys.argv[2])
        driver.controller.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
