"""What the controller believes of the clock of a worker on another host, and when it believes it."""

from __future__ import annotations

import os
import time
from typing import Any

import play
import pytest

from cwd.wire.codec import decode, encode
from cwd.wire.messages import Role, Type

AHEAD_NS = 10**15


def theirs_ns() -> int:
    return time.monotonic_ns() + AHEAD_NS


class Far(play.Worker):
    """A worker of another host, whose clock is ahead; it answers questions when the test says so."""

    def come(self, said_ago_ns: int) -> None:
        """HELLO, said so long ago, and WELCOME."""
        caps = {"kind": "played", "device": "played", "gpus": 1, "page_bytes": play.PAGE_BYTES, "pages_total": 8, "resident": b"",
                "lanes": ["exec", "load"], "agenda_max": 64, "programs": b"", "images": True, "prepares": False}
        self.send(Type.HELLO, minor=0, role=int(Role.WORKER), name="far", boot=os.urandom(16), host=os.urandom(16),
                  now_ns=theirs_ns() - said_ago_ns, caps=caps)
        assert self.hear()[0] == Type.WELCOME

    def hear(self) -> tuple[Type, dict[str, Any]]:
        assert self.socket.poll(play.WAIT_MS)
        kind, fields = decode(self.socket.recv_multipart()[0])
        return Type(kind), fields

    def question(self) -> dict[str, Any]:
        """The next one."""
        while True:
            kind, fields = self.hear()
            if kind == Type.HEARTBEAT and not fields["reply"]:
                return fields

    def answer(self, question: dict[str, Any]) -> None:
        self.socket.send_multipart([encode(Type.HEARTBEAT, seq=1, reply=1, sent_ns=theirs_ns(), echo_ns=question["sent_ns"],
                                           hold_ns=0, loop_max_ns=0, queued=0)])


@pytest.fixture
def far(served: play.Controller) -> Any:
    worker = Far(served.context, f"ipc://{served.run_dir}/workers.sock")
    yield worker
    worker.send(Type.GOODBYE, code=0, text="")
    worker.close()


def clock(admin: play.Admin) -> tuple[int, int]:
    """(offset against the truth, by how much it may be wrong), as an admin is told."""
    row = next(row for row in admin.ask("status")[1]["workers"].values() if row["name"] == "far")
    return row["clock_offset_ns"] - AHEAD_NS, row["clock_error_ns"]


def clock_when_known(admin: play.Admin) -> tuple[int, int]:
    end_s = time.monotonic() + 20
    while (found := clock(admin))[1] < 0:
        assert time.monotonic() < end_s
    return found


def test_hello_promises_nothing_and_is_followed_by_a_question(served: play.Controller, far: Far) -> None:
    """It may have been on its way for as long as anything: here it said a time of five seconds ago."""
    admin = served.admin()
    far.come(said_ago_ns=5 * play.SECOND)
    kind, question = far.hear()
    assert kind == Type.HEARTBEAT and question["reply"] == 0  # before any PREPARE
    wrong_ns, error_ns = clock(admin)
    assert error_ns == -1 and wrong_ns <= -5 * play.SECOND
    far.answer(question)
    wrong_ns, error_ns = clock_when_known(admin)
    assert abs(wrong_ns) <= error_ns < play.SECOND
    admin.close()


def test_an_answer_that_is_slower_than_the_heartbeats_is_a_sample(served: play.Controller, far: Far) -> None:
    admin = served.admin()
    far.come(said_ago_ns=0)
    first, _, _ = (far.question() for _ in range(3))
    assert clock(admin)[1] == -1
    far.answer(first)
    wrong_ns, error_ns = clock_when_known(admin)
    assert abs(wrong_ns) <= error_ns
    # its round trip has lasted for two heartbeats, and that is what it is worth
    assert error_ns >= play.SECOND // 4
    admin.close()


def test_an_answer_to_what_nobody_asked_is_none(served: play.Controller, far: Far) -> None:
    admin = served.admin()
    far.come(said_ago_ns=0)
    question = far.question()
    for echo_ns in (0, 1, question["sent_ns"] + 3600 * play.SECOND, (1 << 64) - 1, question["sent_ns"] - 3600 * play.SECOND):
        far.answer({"sent_ns": max(echo_ns, 0)})
    while admin.ask("status")[1]["counters"]["received"] < 5:
        time.sleep(.01)
    assert clock(admin)[1] == -1
    far.answer(question)
    assert clock_when_known(admin)[1] > 0
    admin.close()
