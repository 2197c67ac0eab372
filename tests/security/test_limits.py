"""What one client may send: requests per second, bytes of payloads; the others are served meanwhile."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import play
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.controller.config import ControllerConfig
from cwd.controller.host import ROLE_CLIENT, make_host, set_rate
from cwd.controller.limits import take_turn
from cwd.controller.peers import add_peer
from cwd.controller.record import RECORD
from cwd.errors import Code
from cwd.net.sync import make_ring
from cwd.net.zmq import POLL_ITEM
from cwd.units import NS_PER_S
from cwd.wire.messages import Type

#: what a payload of 8 bytes takes
PAYLOAD_COST = 64


def _host():
    config = ControllerConfig(models_max=4, requests_max=4, gpus_max=2, clients_max=2, admins_max=2)
    return make_host(config, 1, np.zeros(5, POLL_ITEM), make_ring(RECORD, 2))


HOST = _host()
SLOT = int(add_peer(HOST, 1, ROLE_CLIENT, -1, 0, 0))


class Bucket:
    """The naive twin: a bucket of tokens that fills at a rate and holds a burst."""

    def __init__(self, per_s: int, burst: int) -> None:
        self.per_s, self.burst, self.tokens, self.at_ns = per_s, burst, Fraction(burst), 0

    def take(self, now_ns: int) -> int:
        """0, or after how long there will be a token."""
        self.tokens = min(Fraction(self.burst), self.tokens + Fraction(self.per_s * (now_ns - self.at_ns), NS_PER_S))
        self.at_ns = now_ns
        if self.tokens >= 1:
            self.tokens -= 1
            return 0
        return int((1 - self.tokens) * NS_PER_S / self.per_s)


@given(st.sampled_from((1, 10, 1000, 100_000)), st.integers(1, 6),
       st.lists(st.sampled_from((0, 0, 0, 1, 999, 10_000, 1_000_000, 100_000_000, NS_PER_S)), max_size=60))
@settings(max_examples=300, deadline=None)
def test_the_rate_is_that_of_a_bucket(per_s, burst, gaps_ns):
    set_rate(HOST, per_s, burst)
    HOST.peers[SLOT]["due_ns"] = 0
    bucket, now_ns, refused = Bucket(per_s, burst), NS_PER_S * 7, int(HOST.state[0]["rate_refused"])
    bucket.at_ns = now_ns
    waits = []
    for gap_ns in gaps_ns:
        now_ns += gap_ns
        waits.append(int(take_turn(HOST, SLOT, now_ns)))
        assert waits[-1] == bucket.take(now_ns)
    assert HOST.state[0]["rate_refused"] - refused == sum(wait > 0 for wait in waits)


def test_no_rate_is_no_limit():
    set_rate(HOST, 0, 1)
    assert all(take_turn(HOST, SLOT, 5) == 0 for _ in range(1000))


def test_a_client_that_sends_too_fast_is_told_when_it_may(tmp_path):
    play.make_repository(tmp_path / "repo")
    with play.Controller(tmp_path, repository=str(tmp_path / "repo"), client_rate=1, client_burst=4) as controller:
        fast, slow = controller.client("fast"), controller.client("slow")
        sent = [fast.infer(1) for _ in range(50)]
        replies = [fast.reply(request)[0] for request in sent]
        late = [reply for reply in replies if reply["status"] == Code.RATE_EXCEEDED]
        assert [reply["status"] for reply in replies[:4]] == [Code.UNKNOWN_MODEL] * 4 and len(late) > 0
        assert all(0 < reply["earliest_ns"] <= NS_PER_S for reply in late)
        assert slow.reply(slow.infer(1))[0]["status"] == Code.UNKNOWN_MODEL
        admin = controller.admin()
        assert admin.ask("status")[1]["counters"]["rate_refused"] == len(late)
        for peer in (fast, slow, admin):
            peer.close()


def test_the_bytes_of_one_client_are_limited_and_come_back(tmp_path):
    play.make_repository(tmp_path / "repo")
    with play.Controller(tmp_path, repository=str(tmp_path / "repo"), client_held_max_bytes=3 * PAYLOAD_COST,
                         slo_max_ns=20 * play.SECOND) as controller:
        worker, greedy, other = controller.worker(), controller.client("greedy"), controller.client("other")
        worker.settle(2)
        model = greedy.lookup("fixed-0")
        sent = [greedy.infer(model, slo_ns=20 * play.SECOND) for _ in range(5)]
        for request in sent[3:]:
            assert greedy.reply(request)[0]["status"] == Code.PAYLOADS_EXCEEDED
        request = other.infer(other.lookup("fixed-0"), slo_ns=20 * play.SECOND)
        assert play.serve(worker, other, {request})[request]["status"] == 0
        replies = play.serve(worker, greedy, set(sent[:3]))
        assert [replies[request]["status"] for request in sent[:3]] == [0, 0, 0]
        again = {greedy.infer(model, slo_ns=20 * play.SECOND) for _ in range(3)}
        assert {reply["status"] for reply in play.serve(worker, greedy, again).values()} == {0}
        admin = controller.admin()
        facts = admin.ask("status")[1]
        assert facts["counters"]["held_refused"] == 2 and facts["held_bytes"] == 0
        # who takes over the place of a client that left with payloads in flight begins with nothing
        for _ in range(3):
            greedy.infer(model, slo_ns=20 * play.SECOND)
        greedy.send(Type.GOODBYE, code=0, text="")
        while admin.ask("status")[1]["peers"] != 3:
            pass
        heir = controller.client("heir")
        requests = {heir.infer(model, slo_ns=20 * play.SECOND) for _ in range(3)}
        assert {reply["status"] for reply in play.serve(worker, heir, requests).values()} == {0}
        for peer in (worker, greedy, other, admin, heir):
            peer.close()
