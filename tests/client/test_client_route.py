"""Several endpoints, without sockets: a session in a world of controllers that come, go, fall silent and come back."""

from __future__ import annotations

import pytest
from fake_controller import DOUBLE
from hypothesis import given, settings
from hypothesis import strategies as st
from test_client_session import HERE, T0, X, Y, sent, welcome

from cwd.client.session import Session, State
from cwd.errors import Code, ControllerLost, CreditExceeded, CwdError
from cwd.net.route import PATIENCE_MAX_NS, PATIENCE_NS, PAUSE_NS, QUICKEST, ROUNDS, Newest, Route
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.wire.codec import decode, encode
from cwd.wire.messages import Type

#: what stands at an endpoint where no controller of some epoch (a number above 0) serves
NOBODY, SILENT, REFUSING = 0, -1, -2
#: each way
TRIP_NS = NS_PER_MS


def make(*endpoints):
    return Session(name="t", boot=bytes(16), host=HERE, now_ns=T0, endpoints=endpoints)


class World:
    """What stands where, and the shell of one session: `at` is the time, `outcomes` tells each call's ends."""

    def __init__(self, count):
        self.places = {f"tcp://h{number}:1": NOBODY for number in range(count)}
        self.session = make(*self.places)
        self.at, self.generation, self.connected_ns = T0, 0, None
        self.coming, self.outcomes, self.newest = [], {}, 0
        self.visits = []
        self.trip_ns = TRIP_NS
        self._turn()

    def put(self, place, what):
        """From now on; connections to what was there break, unless it only falls silent."""
        before, self.places[place] = self.places[place], what
        if place == self.session.endpoint and what != SILENT and before != what:
            self.connected_ns, self.coming = None, []

    def run(self, span_ns, ask_every_ns=0, slo_ns=500 * NS_PER_MS):
        """Let time pass; the session is asked for an inference now and then."""
        until, ask_ns = self.at + span_ns, self.at + ask_every_ns
        while self.at < until:
            times = [until, self.session.next_timer(), *[when for when, _ in self.coming[:1]]]
            times += [ask_ns] * bool(ask_every_ns) + [self.connected_ns] * (self.connected_ns is not None)
            self.at = max(self.at, min(when for when in times if when > self.at or when == times[1]))
            if ask_every_ns and self.at >= ask_ns:
                ask_ns += ask_every_ns
                self._ask(slo_ns)
            self._turn()

    def _ask(self, slo_ns):
        session = self.session
        try:
            model = session.models.get(("double", 0))
            if model is None:
                if not any(call.kind is Type.LOOKUP for call in session.calls.values()):
                    self._note(session.lookup(self.at, "double", 0, NS_PER_S))
            else:
                self._note(session.infer(self.at, model, X, (0, 0, 0, 0), slo_ns))
        except CwdError as error:
            if session.state is State.READY:  # of one that fell silent
                assert isinstance(error, CreditExceeded)
            else:
                assert isinstance(error, ControllerLost) and error.earliest_ns > 0

    def _note(self, call):
        self.outcomes[call.id] = []
        call.on_done.append(lambda done: self.outcomes[done.id].append(done.error))

    def _turn(self):
        """As a shell does: open, send, receive, tick."""
        session = self.session
        for _ in range(3):
            if session.generation != self.generation:
                self.generation, self.coming = session.generation, []
                self.visits.append(session.endpoint)
                self.connected_ns = None if self.places[session.endpoint] == NOBODY else self.at + self.trip_ns
            elif self.connected_ns is None and session.state is State.CONNECTING:
                if self.places[session.endpoint] != NOBODY:  # libzmq goes on trying
                    self.connected_ns = self.at + self.trip_ns
            self._push()
            while self.coming and self.coming[0][0] <= self.at:
                session.receive(self.coming.pop(0)[1], self.at)
            if self.at >= session.next_timer():
                session.tick(self.at)

    def _push(self):
        session = self.session
        if self.connected_ns is None or self.at < self.connected_ns:
            if session.outbox and session.state is State.READY:
                session.disconnected(self.at)
            return
        while session.outbox:
            frames = session.outbox.popleft()
            for answer in self._answers(self.places[session.endpoint], *decode(frames[0])):
                self.coming.append((self.at + 2 * self.trip_ns, answer))
        if session.greeting:
            session.greeted(self.at)

    def _answers(self, epoch, kind, fields):
        if epoch == REFUSING:
            return [[encode(Type.ERROR, code=int(Code.PEERS_FULL), re_type=int(kind), re_id=0, text="")]]
        if epoch <= 0:
            return []
        if kind == Type.HELLO:
            return [[encode(Type.WELCOME, minor=0, epoch=epoch, host=HERE, now_ns=self.at, credits=64, heartbeat_ms=100,
                            lost_ms=400, payload_bytes_max=1000)]]
        if self.session.state is State.READY:
            assert epoch >= self.newest, "a former leader was asked"
            self.newest = self.session.epoch
        if kind == Type.LOOKUP:
            return [[encode(Type.MODEL, request=fields["request"], model=epoch, manifest=DOUBLE)]]
        if kind == Type.HEARTBEAT:
            return [[encode(Type.HEARTBEAT, seq=1, reply=1, sent_ns=self.at, echo_ns=fields["sent_ns"], hold_ns=0,
                            loop_max_ns=0, queued=0)]]
        if kind == Type.INFER:
            assert fields["model"] == epoch, "a handle of another controller"
            return [[encode(Type.REPLY, request=fields["request"], status=0, queued_ns=0, load_ns=0, exec_ns=0,
                            total_ns=0, earliest_ns=0, batch=1, worker=0, cold=0), Y]]
        return []


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_happens_each_call_ends_once_and_the_session_at_the_living_leader(data):
    count = data.draw(st.integers(2, 4), "endpoints")
    world, epoch = World(count), 10
    places = list(world.places)
    for _ in range(data.draw(st.integers(0, 8), "events")):
        place = data.draw(st.sampled_from(places))
        what = data.draw(st.sampled_from(["leader", "former", NOBODY, SILENT, REFUSING]))
        if what == "leader":
            epoch += 1
            what = epoch
        elif what == "former":
            what = data.draw(st.integers(1, epoch))
        world.put(place, what)
        world.run(data.draw(st.integers(1, 1500)) * NS_PER_MS, ask_every_ns=7 * NS_PER_MS)
    last = data.draw(st.sampled_from(places), "last leader")
    for place in places:
        if place != last:
            world.put(place, data.draw(st.sampled_from([NOBODY, SILENT, REFUSING, *range(1, epoch + 1)])))
    world.put(last, epoch + 1)
    # (a former leader may have us as long as we have not seen a newer one; when it goes we cannot but find the last)
    before = len(world.visits)
    for place in places:
        if place != last and world.places[place] > 0:
            world.put(place, NOBODY)
    world.run(10 * NS_PER_S, ask_every_ns=50 * NS_PER_MS)
    session = world.session
    assert session.state is State.READY and session.epoch == epoch + 1 and session.endpoint == last
    assert len(world.visits) - before <= count + 1, "it went past a living leader"
    world.run(2 * NS_PER_S)
    assert not session.calls and all(len(ends) == 1 for ends in world.outcomes.values())
    assert any(ends == [None] for ends in world.outcomes.values())


def test_the_next_endpoint_comes_when_nobody_is_there_and_ever_more_slowly():
    session = make("a", "b")
    waits, seen = [], []
    for _ in range(10):
        seen.append(session.endpoint)
        waits.append(session.next_timer() - session._hello_ns)
        session.tick(session.next_timer())
    assert seen == ["a", "b"] * 5 and session.generation == 11
    assert waits == [PATIENCE_NS * grown for grown in (1, 1, 2, 2, 4, 4, 8, 8, 8, 8)] and waits[-1] == PATIENCE_MAX_NS


def test_an_answer_gets_the_time_anew_once_there_is_a_connection():
    session = make("a", "b")
    session.outbox.clear()
    late = T0 + PATIENCE_NS - 1
    session.greeted(late)
    session.tick(T0 + PATIENCE_NS)
    assert session.endpoint == "a" and session.next_timer() == late + PATIENCE_NS
    session.tick(late + PATIENCE_NS)
    assert session.endpoint == "b" and [kind for kind, _, _ in sent(session)] == [Type.HELLO]


def test_a_loss_ends_the_calls_and_goes_on_but_a_controller_that_forgot_us_is_greeted_again():
    session = make("a", "b")
    welcome(session, T0, epoch=5)
    call = session.lookup(T0, "double", 0, NS_PER_S)
    session.receive([encode(Type.ERROR, code=int(Code.NOT_INTRODUCED), re_type=19, re_id=call.id, text="")], T0 + 1)
    assert isinstance(call.error, ControllerLost) and session.endpoint == "a" and session.generation == 2
    for number, lose in enumerate((lambda: session.disconnected(T0 + 3), lambda: session.receive(
            [encode(Type.GOODBYE, code=0, text="")], T0 + 3))):
        welcome(session, T0 + 2, epoch=6)
        call = session.lookup(T0 + 2, "double", 0, NS_PER_S)
        lose()
        assert isinstance(call.error, ControllerLost) and call.error.earliest_ns >= 2 * PATIENCE_NS
        assert session.endpoint == "ba"[number] and session.state is State.CONNECTING


def test_the_welcome_of_a_former_leader_is_refused_where_there_are_several():
    alone, session = make("a"), make("a", "b")
    for each in (alone, session):
        welcome(each, T0, epoch=6)
        each.disconnected(T0)
        welcome(each, T0 + 1, epoch=5)
    assert alone.state is State.READY and alone.epoch == 5
    assert session.state is State.CONNECTING and session.endpoint == "b" and "former" in str(session.lost_error())
    assert session.next_timer() == T0 + 1 + PAUSE_NS
    session.tick(T0 + 1 + PAUSE_NS)
    assert session.endpoint == "a"
    welcome(session, T0 + 2 + PAUSE_NS, epoch=6)
    assert session.state is State.READY


def test_whoever_refuses_us_is_left_soon():
    session = make("a", "b")
    session.receive([encode(Type.ERROR, code=int(Code.DRAINING), re_type=1, re_id=0, text="no")], T0 + 5)
    assert session.next_timer() == T0 + 5 + PAUSE_NS and str(session.lost_error()).endswith("no")
    session.tick(session.next_timer())
    assert session.endpoint == "b"


def test_a_slow_link_is_waited_for():
    world = World(2)
    first, second = world.places
    world.trip_ns = 60 * NS_PER_MS
    world.put(second, 7)
    world.run(5 * NS_PER_S)
    assert world.session.state is State.READY and world.session.endpoint == second
    learned_ns = min(QUICKEST * 2 * world.trip_ns, PATIENCE_MAX_NS)
    world.put(second, NOBODY)
    world.run(NS_PER_S)
    assert world.session._route.patience_ns() >= learned_ns > PATIENCE_NS


def test_after_a_loss_patience_grows_later():
    route = Route(("a", "b"))
    assert route.takes(1, NS_PER_MS)
    waits = []
    for _ in range(2 * ROUNDS + 1):
        waits.append(route.patience_ns())
        route.go_on()
    assert waits == [PATIENCE_NS] * 2 * ROUNDS + [2 * PATIENCE_NS] and route.round_ns() == 4 * PATIENCE_NS


def test_connections_that_belong_together_share_the_newest_epoch():
    newest = Newest()
    one, other = Route(("a", "b"), newest), Route(("a", "b"), newest)
    assert one.takes(5, 1) and not other.takes(4, 1) and other.takes(5, 1) and other.takes(6, 1) and not one.takes(5, 1)
    with pytest.raises(CwdError, match="no endpoint"):
        Route(())


def test_who_waits_for_how_long():
    session = make("a", "b")
    assert session.wait_until(100, 50) == 100  # the first connection gets as long as it takes
    welcome(session, T0)
    session.disconnected(T0)
    assert session.wait_until(100, 50) == 50 and session.wait_until(100, 0) == 100 and session.wait_until(40, 50) == 40
