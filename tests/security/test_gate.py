"""Who has no key does not get in, is counted and learns nothing; keys come and go while the controller serves."""

from __future__ import annotations

import contextlib
import signal
import socket

import zmq
from guarded import Guarded, until
from play import SECOND, serve

from cwd.errors import Code
from cwd.net.keys import KeyPair, PeerKeys
from cwd.net.probe import handshake_fault
from cwd.wire.messages import Role, Type


def counters(admin):
    return admin.ask("status")[1]["counters"]


def turned_away(found):
    """Who has no key may see that one is asked for, and hang up before the controller has seen what it lacks."""
    return found["key_missing"] + found["handshake_failed"]


def test_a_listed_key_is_served(guarded):
    worker, client, admin = guarded.guest("worker"), guarded.guest("client"), guarded.guest("admin")
    worker.settle(2)
    model = client.lookup("fixed-0")
    request = client.infer(model)
    assert serve(worker, client, {request})[request]["status"] == 0
    facts = admin.ask("status")[1]
    assert facts["keys"]["client"] >= 1 and facts["counters"]["key_allowed"] >= 3
    for peer in (worker, client, admin):
        peer.close()


def test_without_a_key_nobody_gets_in_and_it_is_counted(guarded):
    admin = guarded.guest("admin")
    before = counters(admin)
    for role in ("client", "worker", "admin"):
        assert not guarded.comes_in(role, None)
    assert until(lambda: turned_away(counters(admin)) >= turned_away(before) + 3)
    assert counters(admin)["not_introduced"] == before["not_introduced"]
    admin.close()


def test_plain_passwords_are_no_keys(guarded):
    admin = guarded.guest("admin")
    before = turned_away(counters(admin))
    peer = guarded.context.socket(zmq.DEALER)
    peer.plain_username, peer.plain_password, peer.linger = b"admin", b"admin", 0
    peer.setsockopt(zmq.IMMEDIATE, 1)
    peer.connect(guarded.endpoint("client"))
    assert not peer.poll(300, zmq.POLLOUT)
    assert until(lambda: turned_away(counters(admin)) > before)
    peer.close()
    admin.close()


def test_a_greeting_without_a_key_is_counted_as_such(guarded):
    admin = guarded.guest("admin")
    before = counters(admin)["key_missing"]
    with socket.create_connection(("127.0.0.1", guarded.ports["worker"])) as stranger:
        stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL".ljust(55, b"\0"))
        stranger.settimeout(20)
        said = b""
        with contextlib.suppress(ConnectionResetError):
            while more := stranger.recv(4096):
                said += more
    assert said[:1] in (b"", b"\xff") and len(said) <= 64, "a greeting at most"
    assert until(lambda: counters(admin)["key_missing"] > before)
    admin.close()


def test_a_key_nobody_listed_is_refused_and_counted(guarded):
    admin = guarded.guest("admin")
    before = counters(admin)
    keys = PeerKeys(KeyPair(*zmq.curve_keypair()), guarded.keys("client").server)
    for role in ("client", "worker", "admin"):
        assert not guarded.comes_in(role, keys)
    assert counters(admin)["key_unknown"] >= before["key_unknown"] + 3
    admin.close()


def test_a_key_of_another_role_is_refused_and_counted(guarded):
    admin = guarded.guest("admin")
    before = counters(admin)
    pairs = [(name, role) for name in ("client", "worker", "admin") for role in ("client", "worker", "admin")]
    for name, role in pairs:
        assert guarded.comes_in(role, guarded.keys(name)) == (name == role)
    assert counters(admin)["key_wrong_role"] >= before["key_wrong_role"] + 6
    admin.close()


def test_a_wrong_server_key_shows_the_client_that_it_talks_to_a_stranger(guarded):
    admin = guarded.guest("admin")
    before = counters(admin)["handshake_failed"]
    stranger = guarded.connect("client", PeerKeys(guarded.keys("client").pair, zmq.curve_keypair()[0]))
    assert not stranger.socket.poll(300, zmq.POLLOUT)
    assert until(lambda: counters(admin)["handshake_failed"] > before)
    stranger.close()
    admin.close()


def asked_until_told(client):
    """LIST again and again, until there is an ERROR: its fields."""
    for _ in range(40):
        client.send(Type.LIST, request=1, after=0)
        with contextlib.suppress(AssertionError):
            return client.until(Type.ERROR, 500)[0]
    raise AssertionError("no message came")


def test_a_key_added_and_revoked_while_it_serves(guarded):
    admin = guarded.guest("admin")
    readings = admin.ask("status")[1]["keys"]["readings"]
    guarded.folder.new("late", ["client"])
    client = guarded.guest("client", "late")
    assert admin.ask("status")[1]["keys"]["readings"] <= readings + 3, "found when the folder was looked at next"
    request = client.infer(1)
    assert client.reply(request)[0]["status"] == Code.UNKNOWN_MODEL
    before = counters(admin)
    guarded.folder.revoke("late")
    told, _ = client.until(Type.GOODBYE)
    assert told["code"] == Code.NOT_ALLOWED
    # its connection is still there; what it says is not heard, and it cannot introduce itself again. (What comes before the
    # loop has let it go is dropped without a word.)
    assert asked_until_told(client)["code"] == Code.NOT_INTRODUCED
    client.send(Type.HELLO, minor=0, role=int(Role.CLIENT), name="late", boot=bytes(16), host=bytes(16), now_ns=1,
                caps={})
    client.until(Type.ERROR, code=Code.NOT_ALLOWED)
    assert not guarded.comes_in("client", guarded.keys("late"))
    after = counters(admin)
    assert after["key_turned_out"] == before["key_turned_out"] + 1 and after["key_revoked"] >= before["key_revoked"] + 2
    client.close()
    admin.close()


def test_a_worker_whose_key_is_revoked_is_lost_and_its_request_answered(guarded):
    guarded.folder.new("w2", ["worker"])
    worker, client = guarded.guest("worker", "w2"), guarded.guest("client")
    worker.settle(2)
    model = client.lookup("fixed-1")
    request = client.infer(model, slo_ns=SECOND)
    assert worker.next_action()[0] == Type.LOAD
    guarded.folder.revoke("w2", ["worker"])
    assert worker.until(Type.GOODBYE)[0]["code"] == Code.NOT_ALLOWED
    assert client.reply(request)[0]["status"] in (Code.WORKER_LOST, Code.NO_WORKER, Code.DEADLINE_EXPIRED)
    admin = guarded.guest("admin")
    assert until(lambda: admin.ask("status")[1]["workers"] == {})
    for peer in (worker, client, admin):
        peer.close()


def test_connections_of_one_key_are_limited_and_ipc_asks_as_well(tmp_path):
    with Guarded(tmp_path, client_connections=2, lost_ns=600 * SECOND, admin_bind="") as controller:
        path = f"ipc://{controller.run_dir}/admin.sock"
        assert handshake_fault(path, controller.keys("admin"), 20_000) == ""
        assert "key" in handshake_fault(path, controller.keys("client"), 20_000)
        clients = [controller.guest("client") for _ in range(2)]
        third = controller.connect("client", controller.keys("client"))
        third.send(Type.HELLO, minor=0, role=int(Role.CLIENT), name="third", boot=bytes(16), host=bytes(16), now_ns=1,
                   caps={})
        assert third.until(Type.ERROR)[0]["code"] == Code.PEERS_FULL
        clients[0].send(Type.GOODBYE, code=0, text="")
        clients.append(controller.guest("client"))
        for peer in (*clients, third):
            peer.close()


def test_a_hangup_has_the_folder_read_and_ends_nothing(guarded):
    client = guarded.guest("client")
    guarded.folder.new("other", ["client"])
    guarded.process.send_signal(signal.SIGHUP)
    guarded.guest("client", "other").close()
    assert client.reply(client.infer(1))[0]["status"] == Code.UNKNOWN_MODEL
    client.close()
