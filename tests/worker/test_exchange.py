"""The exchange under stress: both lanes, answers from three threads, and connections that end at any moment."""

from __future__ import annotations

import random
import time

import pytest
from device_rig import Rig
from lone_controller import FakeController

from cwd.errors import Code
from cwd.wire.messages import Type
from cwd.worker import exchange as ex

SESSIONS = 20
BURSTS = 6


class Session:
    """One connection's actions: what was sent, and each answer held against it."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.peer = rig, rig.peer
        self.open: dict[int, list[bytes] | None] = {}  # not answered yet: of an EXEC, the outputs to expect
        self.statuses: set[int] = set()
        assert rig.prepare() == 0
        for model in (1, 2):
            assert rig.load(model) in (0, Code.ALREADY_RESIDENT)

    def send(self, rng: random.Random) -> None:
        """One action for either lane."""
        controller, draw = self.rig.controller, rng.random()
        if draw < 0.7:
            model = rng.choice((1, 1, 2))
            texts = tuple(rng.randbytes(rng.choice((1, 30, 300))) for _ in range(rng.randint(1, 3)))
            rows = [(len(text), 0, 0, 0) for text in texts]
            latest = {"latest_ns": 1} if rng.random() < 0.1 else {}
            action = controller.act(self.peer, Type.EXEC, texts, model=model, batch=4, size_class=0, rows=rows, **latest)
            self.open[action] = [bytes((c + model) % 256 for c in text) for text in texts]
        elif draw < 0.85:
            self.open[controller.act(self.peer, Type.UNLOAD, model=2)] = None
        else:
            self.open[controller.load(self.peer, 2, pages=2, program_index=3)] = None

    def receive(self) -> None:
        """One answer: it belongs to an action of this session that had none."""
        fields, payload = self.rig.controller.result(self.peer)
        self.take(fields["type"], fields, payload)

    def take(self, kind: Type, fields: dict, payload: list[bytes]) -> None:
        assert fields["action"] in self.open, "answered twice, or never asked in this session"
        wanted = self.open.pop(fields["action"])
        assert (kind == Type.EXEC_RESULT) == (wanted is not None)
        assert payload == (wanted if wanted is not None and fields["status"] == 0 else [])
        self.statuses.add(fields["status"])

    def end(self, how: str) -> None:
        """Let the connection end while actions wait, run and are answered; what was answered before is still looked at."""
        rig = self.rig
        if how == "error":
            rig.controller.send(self.peer, Type.ERROR, code=int(Code.NOT_INTRODUCED), re_type=0, re_id=0, text="")
        elif how == "goodbye":
            rig.controller.send(self.peer, Type.GOODBYE, code=0, text="")
        else:
            rig.controller.close()
            rig.controller, last = FakeController(rig.endpoint), rig.controller.last_action
            rig.controller.last_action = last
            rig.peer, _ = rig.controller.hello_after_stranger()
            rig.controller.welcome(rig.peer)
            return
        rig.peer, _ = rig.controller.greet()
        for kind, fields, payload in rig.controller.inbox.pop(self.peer, ()):
            if kind != Type.HEARTBEAT:
                self.take(kind, fields, payload)


@pytest.fixture
def rig(tmp_path):
    made = Rig(f"ipc://{tmp_path}/workers.sock", agenda_max=16)
    yield made
    made.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_each_action_is_answered_once_in_its_session_whatever_ends_it(rig, seed):
    rng, statuses = random.Random(seed), set()
    for number in range(SESSIONS):
        session = Session(rig)
        for _ in range(BURSTS):
            for _ in range(rng.randint(1, 25)):
                session.send(rng)
            for _ in range(rng.randint(0, len(session.open))):
                session.receive()
        if number % 2 and number + 1 < SESSIONS:
            session.end(rng.choice(("error", "goodbye", "restart")))
        else:
            while session.open:
                session.receive()
            session.end("error")
        statuses |= session.statuses
    assert statuses >= {0, Code.TOO_LATE, Code.NOT_RESIDENT, Code.LANE_FULL}
    last = Session(rig)
    last.send(random.Random(3))
    last.receive()
    exchange, entries = rig.worker.exchange, rig.worker.exchange.entries
    ex.exchange_lock(exchange)  # an answer's entry is given back after it is sent, in the same hold
    try:
        assert (exchange.counts["exec_out"], exchange.counts["load_out"]) == (0, 0)
        assert entries.counts[0] == len(entries.free) - 1
        assert not entries.used[entries.free[:entries.counts[0]]].any()
    finally:
        ex.exchange_unlock(exchange)


@pytest.fixture
def quiet_rig(tmp_path):
    """No heartbeat will ever wake the io thread: what it is not told of, it does not see."""
    made = Rig(f"ipc://{tmp_path}/workers.sock", heartbeat_ms=10**6, lost_ms=10**6)
    yield made
    made.close()


def test_messages_that_answers_overtake_are_all_seen(quiet_rig):
    """Sending takes away libzmq's sign of what came meanwhile: the next action arrives while the last is answered."""
    controller, peer = quiet_rig.controller, quiet_rig.peer
    assert quiet_rig.load(1) == 0
    waiting = {controller.execute(peer, 1, (b"a",), dims=(1,))}
    for _ in range(3000):
        waiting |= {controller.load(peer, 1, pages=2, program_index=3), controller.execute(peer, 1, (b"a",), dims=(1,))}
        while len(waiting) > 1:
            waiting.remove(controller.result(peer)[0]["action"])
    waiting.remove(controller.result(peer)[0]["action"])


def test_an_answer_that_cannot_be_sent_ends_the_session(quiet_rig):
    assert quiet_rig.load(1) == 0
    quiet_rig.backend.gate.clear()
    quiet_rig.controller.execute(quiet_rig.peer, 1, (b"a",), dims=(1,))
    assert quiet_rig.backend.running.wait(10)
    quiet_rig.controller.close()
    time.sleep(2)  # (libzmq has noticed; if it has not, the answer is lost and the test would wait for a heartbeat)
    quiet_rig.backend.gate.set()
    quiet_rig.controller = FakeController(quiet_rig.endpoint)
    quiet_rig.peer, _ = quiet_rig.controller.greet()
    assert quiet_rig.prepare() == 0
