"""The client's state machine alone: frames and times in, frames and settled calls out; no socket, no thread."""

import numpy as np
import pytest
from fake_controller import DOUBLE

from cwd import errors
from cwd.client.model import Model
from cwd.client.session import GRACE_NS, Session, State
from cwd.errors import Code
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.wire.codec import decode, encode
from cwd.wire.messages import Type

HERE, THERE = bytes(16), b"x" * 16
X = np.ones((2, 3), "f4")
Y = X.tobytes()
T0 = 1000 * NS_PER_S


def sent(session):
    """Take what the session wants sent: [(type, fields, payloads)]."""
    found = [(*decode(frames[0]), frames[1:]) for frames in session.outbox]
    session.outbox.clear()
    return found


def welcome(session, now, *, host=HERE, epoch=1, clock_ns=0, credits=4, heartbeat_ms=100, lost_ms=400):
    sent(session)
    session.receive([encode(Type.WELCOME, minor=0, epoch=epoch, host=host, now_ns=now + clock_ns, credits=credits,
                            heartbeat_ms=heartbeat_ms, lost_ms=lost_ms, payload_bytes_max=1000)], now)


def reply(call, status=0, **fields):
    told = {"queued_ns": 0, "load_ns": 0, "exec_ns": 0, "total_ns": 0, "earliest_ns": 0, "batch": 1, "worker": 0,
            "cold": 0, **fields}
    head = encode(Type.REPLY, request=call.id, status=int(status), **told)
    return [head, Y] if status == 0 else [head]


@pytest.fixture
def session():
    made = Session(name="t", boot=bytes(16), host=HERE, now_ns=T0)
    welcome(made, T0)
    call = made.lookup(T0, "double", 0, NS_PER_S)
    sent(made)
    made.receive([encode(Type.MODEL, request=call.id, model=7, manifest=DOUBLE)], T0)
    assert made.models["double", 0] is call.answer
    return made


def ask(session, now=T0, slo_ns=100 * NS_PER_MS):
    return session.infer(now, session.models["double", 0], X, (0, 0, 0, 0), slo_ns)


def test_lookups_cost_no_credit(session):
    for ends in range(2):
        asked = [session.lookup(T0, f"m{i}", 0, NS_PER_S) for i in range(4)] + [session.list(T0, 0, NS_PER_S)]
        requests = [ask(session) for _ in range(4)]
        with pytest.raises(errors.CreditExceeded):
            ask(session)
        if ends == 0:
            for call in requests:
                session.receive(reply(call), T0)
            for call in asked:
                session.receive([encode(Type.ERROR, code=201, re_type=3, re_id=call.id, text="")], T0)
        else:
            model = session.models["double", 0]
            session.disconnected(T0)
            welcome(session, T0)
            session.models["double", 0] = model
        assert not session.calls
    assert len([ask(session) for _ in range(4)]) == 4


def test_a_handle_of_another_controller_is_not_sent(session):
    model = session.models["double", 0]
    assert ask(session).model is model
    sent(session)
    session.disconnected(T0)
    welcome(session, T0, epoch=2)
    with pytest.raises(errors.ControllerLost, match="double: the controller that described it"):
        session.infer(T0, model, X, (0, 0, 0, 0), NS_PER_S)
    assert not session.calls and not session.outbox
    session.disconnected(T0)
    welcome(session, T0, epoch=1)
    assert session.infer(T0, model, X, (0, 0, 0, 0), NS_PER_S).model is model  # the same one again: handles hold


def test_hello_comes_first_and_nothing_goes_before_welcome():
    session = Session(name="t", boot=b"b" * 16, host=HERE, now_ns=T0)
    (kind, fields, _), = sent(session)
    assert kind == Type.HELLO and fields["role"] == 2 and fields["name"] == "t" and fields["boot"] == b"b" * 16
    with pytest.raises(errors.ControllerLost):
        session.lookup(T0, "double", 0, NS_PER_S)
    welcome(session, T0)
    assert session.state is State.READY


def test_answer_settles_its_call_once(session):
    first, second = ask(session), ask(session)
    (kind, fields, payload), _ = sent(session)
    assert kind == Type.INFER and fields["model"] == 7 and payload[0] is X
    assert fields["slo_ns"] == 100 * NS_PER_MS and fields["deadline_ns"] == T0 + 100 * NS_PER_MS
    session.receive(reply(second, batch=3), T0 + 5)
    assert second.done and second.error is None and second.answer.batch == 3 and second.payload == Y
    assert not first.done and session.calls == {first.id: first}
    session.receive(reply(second), T0 + 6)
    assert session.strays == 1 and second.done_ns == T0 + 5


@pytest.mark.parametrize("code", [c for c in Code if 100 < c < 300])
def test_every_refusal_becomes_a_typed_exception(session, code):
    call = ask(session)
    session.receive(reply(call, code, earliest_ns=41 * NS_PER_MS), T0 + 1)
    assert isinstance(call.error, errors.RequestError) and call.error.code == code
    assert call.error.earliest_ns == 41 * NS_PER_MS
    assert "double" in str(call.error) and "41ms" in str(call.error) and "\n" not in str(call.error)


def test_a_code_of_a_newer_controller_is_an_error_too(session):
    call = ask(session)
    session.receive(reply(call, 199), T0 + 1)
    assert isinstance(call.error, errors.RequestError) and "199" in str(call.error)


def test_deadline_holds_here_too(session):
    call = ask(session)
    deadline = T0 + 100 * NS_PER_MS
    assert session.next_timer() <= deadline + GRACE_NS
    session.receive([encode(Type.HEARTBEAT, seq=1, reply=1, sent_ns=1, echo_ns=1, hold_ns=0, loop_max_ns=0, queued=0)],
                    deadline)
    session.tick(deadline + GRACE_NS - 1)
    assert not call.done
    session.tick(deadline + GRACE_NS)
    assert isinstance(call.error, errors.DeadlineMissed) and "100ms" in str(call.error)
    session.receive(reply(call), deadline + GRACE_NS + 1)
    assert isinstance(call.error, errors.DeadlineMissed)


def test_an_answer_that_must_have_come_late_is_none(session):
    late, perhaps = ask(session), ask(session)
    after = T0 + 100 * NS_PER_MS + 1
    session.receive(reply(late), after)
    assert isinstance(late.error, errors.DeadlineMissed) and "1ns after the deadline" in str(late.error)
    # read late, but nobody had looked since before the deadline: it may well have come in time
    session.receive(reply(perhaps), after, since_ns=T0 + 50 * NS_PER_MS)
    assert perhaps.error is None


def test_credits_and_size_are_checked_before_sending(session):
    calls = [ask(session) for _ in range(4)]
    with pytest.raises(errors.CreditExceeded):
        ask(session)
    session.receive(reply(calls[0]), T0 + 1)
    ask(session)
    session.calls.clear()
    with pytest.raises(errors.BadRequest) as caught:
        session.infer(T0, session.models["double", 0], bytes(1001), (0, 0, 0, 0), NS_PER_S)
    assert caught.value.code == Code.TOO_LARGE


def test_silence_ends_the_connection_and_every_call(session):
    call = ask(session, slo_ns=60 * NS_PER_S)
    sent(session)
    now = T0
    while not call.done and now < T0 + 2 * NS_PER_S:
        now = session.next_timer()
        session.tick(now)
    assert isinstance(call.error, errors.ControllerLost) and "silent" in str(call.error)
    assert 400 * NS_PER_MS < now - T0 < 700 * NS_PER_MS
    assert session.generation == 2 and not session.models
    assert [kind for kind, _, _ in sent(session)] == [Type.HELLO]


def test_a_controller_that_answers_heartbeats_is_waited_for(session):
    call = ask(session, slo_ns=60 * NS_PER_S)
    now, asked = T0, 0
    while now < T0 + 5 * NS_PER_S:
        for kind, fields, _ in sent(session):
            if kind == Type.HEARTBEAT:
                asked += 1
                session.receive([encode(Type.HEARTBEAT, seq=1, reply=1, sent_ns=now, echo_ns=fields["sent_ns"],
                                        hold_ns=0, loop_max_ns=0, queued=0)], now)
        now = session.next_timer()
        session.tick(now)
    assert not call.done and session.state is State.READY and asked >= 25


def test_questions_are_answered(session):
    session.receive([encode(Type.HEARTBEAT, seq=9, reply=0, sent_ns=77, echo_ns=0, hold_ns=0, loop_max_ns=0, queued=0)],
                    T0 + 5)
    (kind, fields, _), = sent(session)
    assert kind == Type.HEARTBEAT and fields["reply"] == 1 and fields["echo_ns"] == 77 and fields["sent_ns"] == T0 + 5


def test_not_introduced_means_hello_again(session):
    call = ask(session)
    sent(session)
    session.receive([encode(Type.ERROR, code=int(Code.NOT_INTRODUCED), re_type=16, re_id=call.id, text="")], T0 + 1)
    assert isinstance(call.error, errors.ControllerLost) and session.state is State.CONNECTING
    assert [kind for kind, _, _ in sent(session)] == [Type.HELLO]
    # a late echo of the old connection changes nothing
    session.receive([encode(Type.ERROR, code=int(Code.NOT_INTRODUCED), re_type=16, re_id=call.id, text="")], T0 + 2)
    assert session.generation == 2
    welcome(session, T0 + 3, epoch=2)
    assert session.state is State.READY and session.epoch == 2


def test_attempts_to_connect_repeat_ever_more_slowly():
    session = Session(name="t", boot=bytes(16), host=HERE, now_ns=T0)
    at = []
    for _ in range(6):
        session.tick(session.next_timer())
        at.append(session.next_timer())
    steps = [b - a for a, b in zip([T0 + NS_PER_S, *at], at, strict=False)]
    assert session.generation == 7 and steps == [s * NS_PER_S for s in (2, 4, 8, 8, 8, 8)]


def test_an_unknown_version_is_final():
    session = Session(name="t", boot=bytes(16), host=HERE, now_ns=T0)
    session.receive([encode(Type.ERROR, code=int(Code.UNSUPPORTED_VERSION), re_type=1, re_id=0, text="only 2")], T0)
    assert session.state is State.FAILED
    with pytest.raises(errors.RemoteProtocolError, match="only 2"):
        session.lookup(T0, "m", 0, 1)


def test_rubbish_is_counted_and_changes_nothing(session):
    call = ask(session)
    model = encode(Type.MODEL, request=call.id, model=1, manifest={})
    for frames in ([b""], [b"\xc1"], [b"x" * 75], [encode(Type.CANCEL, request=1)], [model],
                   [encode(Type.MODELS, request=99, next=0, models={})], [reply(call)[0][:-1]]):
        session.receive(frames, T0 + 1)
    assert session.strays == 7 and not call.done and session.state is State.READY
    session.receive(reply(call)[:1], T0 + 1)
    assert call.error is not None and call.error.code == Code.MALFORMED


def test_cancel_asks_and_waits_for_the_answer(session):
    call = ask(session)
    sent(session)
    session.cancel(T0 + 1, call)
    assert [(kind, fields["request"]) for kind, fields, _ in sent(session)] == [(Type.CANCEL, call.id)]
    assert not call.done
    session.receive(reply(call, Code.CANCELLED), T0 + 2)
    assert isinstance(call.error, errors.Cancelled)
    session.cancel(T0 + 3, call)
    assert not session.outbox


def test_goodbye_ends_every_call(session):
    call = ask(session)
    sent(session)
    session.goodbye(T0)
    assert isinstance(call.error, errors.ControllerLost) and [kind for kind, _, _ in sent(session)] == [Type.GOODBYE]


def test_another_host_gets_deadlines_on_its_own_clock():
    ahead = 10**15
    session = Session(name="t", boot=bytes(16), host=HERE, now_ns=T0)
    # HELLO may have waited for a connection: the estimate from it alone is too loose for a deadline
    now = T0 + 200 * NS_PER_MS
    welcome(session, now, host=THERE, clock_ns=ahead)
    session.models["double", 0] = Model(7, DOUBLE)
    ask(session, now)
    assert sent(session)[0][1]["deadline_ns"] == 0
    session.tick(now)
    (kind, question, _), = sent(session)
    assert kind == Type.HEARTBEAT and question["reply"] == 0
    trip = 2 * NS_PER_MS
    session.receive([encode(Type.HEARTBEAT, seq=1, reply=1, sent_ns=question["sent_ns"] + NS_PER_MS + ahead,
                            echo_ns=question["sent_ns"], hold_ns=0, loop_max_ns=0, queued=0)], now + trip)
    call = ask(session, now + trip)
    assert abs(sent(session)[0][1]["deadline_ns"] - (call.deadline_ns + ahead)) <= NS_PER_MS
    # an SLO near the estimate's own uncertainty is left to the controller
    ask(session, now + trip, slo_ns=5 * NS_PER_MS)
    assert sent(session)[0][1]["deadline_ns"] == 0


def test_settled_calls_do_not_pile_up(session):
    for turn in range(2000):
        call = ask(session, T0 + turn, slo_ns=3600 * NS_PER_S)
        session.outbox.clear()
        session.receive(reply(call), T0 + turn)
    assert len(session._expiry) < 200 and not session.calls
