"""No byte sequence of a peer without a listed key changes the controller's tables, and nobody else notices it."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import play
import pytest
import zmq
from guarded import SOCKETS, Guarded
from strangers import Recorder, attack

from cwd.controller.config import ControllerConfig
from cwd.controller.daemon import Controller
from cwd.controller.warm import warm
from cwd.net.keys import KeyPair, PeerKeys
from cwd.tables import Tables
from cwd.wire.messages import Role, Type

SEED = int(os.environ.get("CWD_FUZZ_SEED", "20261122"))
SEQUENCES = int(os.environ.get("CWD_FUZZ_SEQUENCES", "100"))

#: of the host's state: what counts those who were turned away, and what time alone changes
COUNTED = {"connections", "handshake_failed", "key_missing", "key_unknown", "key_revoked", "key_wrong_role"}
TIMES = {"timer_ns", "beat_ns", "beat_phase", "grace_ns", "turns", "polls", "busy_ns", "turn_max_ns", "turn_window_max_ns",
         "slice_late_max_ns", "errors_left", "zap_due", "fed", "sent"}
#: a worker is asked for a sign of life now and then: what of a peer that changes, and what the question is written in
ASKED = {"beat_seq", "last_asked_ns", "errors_left"}
WRITTEN = {"heartbeat"}


class Here:
    """A controller in this process and thread, so that its tables can be looked at; the others are in threads."""

    def __init__(self, guarded: Guarded) -> None:
        guarded.settings |= {"nice": 0, "heartbeat_ns": 8 * play.SECOND, "lost_ns": 3600 * play.SECOND, "log": False}
        self.controller = Controller(ControllerConfig(**guarded.settings))
        reader = self.controller._reader
        self.controller.admin.waiting[reader.ask("scan")] = self.controller._scan_answer
        while not self.controller._ready:
            self.controller.step()

    def serve(self, function: Callable[..., Any], *args: Any) -> Any:
        """Serve until `function`, in a thread, is done; its result."""
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(function(*args)))
        thread.start()
        while thread.is_alive():
            self.controller.step()
        thread.join()
        assert found, "it raised"
        return found[0]

    def until(self, true: Callable[[], bool]) -> bool:
        return any(true() or self.controller.step() for _ in range(400))

    def tables(self) -> dict[str, np.ndarray]:
        return dict(_tables("host", self.controller.host)) | dict(_tables("world", self.controller.world))


def _tables(name: str, tables: Tables) -> Iterator[tuple[str, np.ndarray]]:
    """Copies of all arrays: structured ones column by column, without what may change."""
    for field, array in zip(type(tables).__annotations__, tables, strict=True):
        where = f"{name}.{field}"
        if isinstance(array, Tables):
            yield from _tables(where, array)
        elif where in ("host.items", "host.messages", "host.buffer"):  # what libzmq writes into, and what is sent from
            continue
        elif array.dtype.names is None:
            yield where, array.copy()
        else:
            skipped = {"host.state": COUNTED | TIMES, "host.peers": ASKED, "host.rows": WRITTEN}.get(where, set())
            yield from ((f"{where}.{column}", array[column].copy()) for column in array.dtype.names if column not in skipped)


@pytest.fixture
def here(tmp_path) -> Iterator[tuple[Guarded, Here]]:
    warm()
    play.make_repository(tmp_path / "repo")
    guarded = Guarded(tmp_path, repository=str(tmp_path / "repo"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    served = Here(guarded)
    try:
        yield guarded, served
    finally:
        served.controller._close()
        guarded.context.destroy(0)
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _introduce(guarded: Guarded) -> tuple[Any, Any, int]:
    worker, client = guarded.guest("worker"), guarded.guest("client")
    worker.settle(2)
    model = client.lookup("fixed-0")
    request = client.infer(model)
    assert play.serve(worker, client, {request})[request]["status"] == 0
    return worker, client, model


def _record(guarded: Guarded) -> bytes:
    """What an admin with a listed key sends: its handshake, HELLO and a command."""
    recorder = Recorder(guarded.ports["admin"])
    admin = play.Admin(guarded.context, "inproc://nobody")
    admin.socket.close()
    real, guarded.ports["admin"] = guarded.ports["admin"], recorder.port
    admin = guarded.connect("admin", guarded.keys("admin"))
    guarded.ports["admin"] = real
    admin.hello(Role.ADMIN, "recorded")
    assert admin.ask("model.ls", after=0)[0] == 0
    admin.send(Type.GOODBYE, code=0, text="")
    admin.socket.close(500)
    recorder.close()
    assert len(recorder.said) > 500
    return recorder.said


def _foreign(guarded: Guarded) -> None:
    """Peers with keys: one that nobody knows, and one on another role's socket."""
    for keys in (PeerKeys(KeyPair(*zmq.curve_keypair()), guarded.keys("client").server), guarded.keys("client")):
        for role in ("worker", "admin"):
            assert not guarded.comes_in(role, keys)


def test_strangers_change_nothing(here):
    guarded, served = here
    recorded = served.serve(_record, guarded)
    worker, client, model = served.serve(_introduce, guarded)
    state = served.controller.host.state[0]
    core = served.controller.world.counters[0]
    # the admin has gone, and the core has let go of the request's deadline
    assert served.until(lambda: state["peers_used"] == 2 and not state["rare_used"] and not served.controller._tasks
                        and core["timers_count"] == 0)
    before, counted = served.tables(), {name: int(state[name]) for name in COUNTED}
    ports = [guarded.ports[role] for role in SOCKETS]
    heard = served.serve(attack, ports, random.Random(SEED), recorded, SEQUENCES)
    served.serve(_foreign, guarded)
    assert served.until(lambda: state["connections"] >= counted["connections"] + SEQUENCES + 4)
    after = served.tables()
    assert {name for name in before if not np.array_equal(before[name], after[name])} == set()
    assert state["key_missing"] > counted["key_missing"] and state["handshake_failed"] > counted["handshake_failed"]
    assert state["key_unknown"] >= counted["key_unknown"] + 2 and state["key_wrong_role"] >= counted["key_wrong_role"] + 2
    assert b"CURVE" in heard
    for secret in (b"fixed-0", b"CWD\x01"):  # a model's name, the magic of every message
        assert secret not in heard
    # and who has a key is served while they are at it
    stop = threading.Event()

    def strangers() -> None:
        rng = random.Random(SEED + 1)
        while not stop.is_set():
            attack(ports, rng, recorded, 10)

    def requests() -> list[int]:
        statuses = []
        for _ in range(20):
            request = client.infer(model, slo_ns=10 * play.SECOND)
            statuses.append(play.serve(worker, client, {request})[request]["status"])
        return statuses

    at = threading.Thread(target=strangers)
    at.start()
    try:
        assert served.serve(requests) == [0] * 20
    finally:
        stop.set()
        while at.is_alive():
            served.controller.step()
    assert state["peers_used"] == 2
    worker.close()
    client.close()
