"""Two controllers and a real etcd: whoever dies, hangs, is cut off or drains, one leads, and only one.

What counts is order, codes and counts; how long it takes is printed by tools/recovery.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from electing import ETCD, PAGE_BYTES, Controller, Etcd
from peers import BYTE, RawPeer, make_repository

import cwd
from cwd.cluster.child import Child
from cwd.controller import elector
from cwd.controller.election import Look, View
from cwd.models.repository import Repository
from cwd.wire.messages import Type

pytest.importorskip("torch")
pytest.importorskip("etcd3gw")
pytestmark = [pytest.mark.e2e, pytest.mark.skipif(ETCD is None, reason="no etcd here: Debian's etcd-server has it")]

LEASE_S = 2.0
MODEL = "same-000"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_repository(tmp_path_factory.mktemp("standby") / "models").root)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[Etcd]:
    etcd = Etcd(tmp_path).start()
    yield etcd
    etcd.kill()


@pytest.fixture
def take_part(tmp_path: Path, etcd: Etcd, models: Path) -> Iterator[Callable[..., Controller]]:
    """A function that starts a controller; the first one leads before it returns, others stand by."""
    controllers: list[Controller] = []

    def start(name: str, *options: str, repository: Path = models, url: str = etcd.url) -> Controller:
        found = Controller(tmp_path, name, url, repository, *options)
        controllers.append(found)
        found.wait_status("standby of " if len(controllers) > 1 else "leader: ", 200)
        return found

    yield start
    for controller in controllers:
        controller.close()


@pytest.fixture
def two(take_part: Callable[..., Controller]) -> tuple[Controller, Controller]:
    return take_part("a"), take_part("b")


@pytest.fixture
def worker_of(tmp_path: Path, models: Path) -> Iterator[Callable[..., Child]]:
    """A function that starts an emulated worker of a controller."""
    workers: list[Child] = []

    def start(controller: Controller, repository: Path = models) -> Child:
        worker = Child("worker", ["worker", "--device", "emulated:1", "--endpoint", controller.endpoint("workers"), "--repo",
                                  str(repository), "--pages", "16", "--page-bytes", str(PAGE_BYTES)],
                       log=tmp_path / f"worker-{controller.name}.log", folder=tmp_path)
        workers.append(worker)
        worker.start()  # it is ready when it has a controller
        return worker

    yield start
    for worker in workers:
        worker.kill()


def leads_after(second: Controller, first_epoch: int) -> None:
    """It has become the leader, under a greater epoch, which is also its log's."""
    second.wait_status("leader: ")
    election = second.election()
    assert election["role"] == "leader" and election["epoch"] > first_epoch and election["lease_ns"] == int(LEASE_S * 1e9)
    assert second.facts()["epoch"] == election["epoch"] and 0 < election["left_ns"] <= election["lease_ns"]
    second.wait((second.folder / "state" / f"log-{election['epoch']:016x}.cwdlog").exists)  # its writer has just been started


def test_a_standby_is_ready_and_closed_and_beats_as_its_supervisor_asks(two: Any) -> None:
    first, second = two
    assert second.status.startswith("standby of a on ")
    assert second.count("READY") == 1 and second.count("STOPPING") == 0
    assert first.is_open() and not second.is_open()
    beats = second.count("WATCHDOG")
    second.wait(lambda: second.count("WATCHDOG") >= beats + 3)
    second.signal(signal.SIGHUP)
    second.wait(lambda: second.count("READY") == 2)
    assert second.count("RELOADING") == 1 and "reloaded, nothing has changed" in second.log.read_text()
    second.signal(signal.SIGTERM)
    assert second.wait_end() == 0 and second.count("STOPPING") == 1
    assert first.election()["role"] == "leader"


def test_the_standby_leads_when_the_leader_is_killed_and_serves(two: Any, worker_of: Any) -> None:
    first, second = two
    worker_of(second)
    epoch = first.election()["epoch"]
    first.kill()
    leads_after(second, epoch)
    second.wait(lambda: second.servable(MODEL))
    with cwd.Client(second.endpoint()) as client:
        assert client.infer(MODEL, BYTE, "10s").output.shape == BYTE.shape
    # who comes back stands by, and leads after the other
    epoch = second.election()["epoch"]
    first.start()
    first.wait_status("standby of b on ", 100)
    second.kill()
    leads_after(first, epoch)


def test_an_elector_that_is_killed_costs_nothing(two: Any) -> None:
    first, second = two
    epoch = first.election()["epoch"]
    for count in (1, 2, 3):
        assert (killed := first.elector()) != 0  # a kill of 0 would be one of this test itself
        os.kill(killed, signal.SIGKILL)
        first.wait(lambda killed=killed: first.elector() not in (0, killed))
        first.wait(lambda: first.election()["left_ns"] > 0)
        assert first.election()["restarts"] == count
        time.sleep(LEASE_S)  # it is renewed by the new one
    assert first.election()["epoch"] == epoch and second.status.startswith("standby of a on ")
    assert (standby := second.elector()) != 0
    os.kill(standby, signal.SIGKILL)
    second.wait(lambda: second.elector() not in (0, standby))
    first.kill()
    leads_after(second, epoch)


def test_when_controller_and_elector_are_killed_the_lease_runs_out(two: Any) -> None:
    first, second = two
    epoch, elector = first.election()["epoch"], first.elector()
    assert elector
    first.signal(signal.SIGSTOP)  # so that neither sees the other die
    os.kill(elector, signal.SIGKILL)
    first.kill()
    leads_after(second, epoch)


def test_a_leader_that_was_stopped_says_nothing_more(two: Any) -> None:
    first, second = two
    epoch = first.election()["epoch"]
    with RawPeer(first, "clients") as peer:
        first.signal(signal.SIGSTOP)
        for request in range(1, 20):
            peer.infer(request, 0)  # there is none of that handle: a controller that acts says so
        leads_after(second, epoch)
        first.signal(signal.SIGCONT)
        assert first.wait_end() == 1
        with pytest.raises(AssertionError, match="nothing came"):
            peer.hear(Type.REPLY, Type.GOODBYE, Type.ERROR, patience_s=0.5)
    said = first.log.read_text()
    assert said.count("no longer the leader, ends at once") == 1 and "Traceback" not in said
    assert second.election()["role"] == "leader"


def test_without_etcd_nobody_leads_and_with_it_somebody_does_again(two: Any, etcd: Etcd) -> None:
    first, second = two
    epoch = first.election()["epoch"]
    etcd.kill()
    assert first.wait_end() == 1, "it is not sure any more"
    assert "no longer the leader" in first.log.read_text() and "etcd is not reachable" in first.log.read_text()
    second.wait(lambda: "etcd is not reachable" in second.status)
    first.start()
    first.wait(lambda: first.count("READY") == 1 and "etcd is not reachable" in first.status, 100)
    assert not first.is_open() and not second.is_open()
    etcd.start()
    first.wait(lambda: first.status.startswith("leader") or second.status.startswith("leader"))
    leader, other = (first, second) if first.status.startswith("leader") else (second, first)
    leads_after(leader, epoch)
    other.wait_status(f"standby of {leader.name} on ")
    for controller in two:
        assert controller.log.read_text().count("election: etcd answers again") >= 1


def test_a_leader_that_drains_answers_and_hands_over(two: Any, worker_of: Any) -> None:
    first, second = two
    worker_of(first)
    first.wait(lambda: first.servable(MODEL))
    epoch = first.election()["epoch"]
    with cwd.Client(first.endpoint()) as client:
        pendings = [client.submit(MODEL, BYTE, "10s") for _ in range(50)]
        pendings[0].result(timeout=20)
        first.signal(signal.SIGTERM)
        for pending in pendings:
            error = pending.exception(timeout=30)
            assert error is None or error.code in (cwd.Code.DRAINING, cwd.Code.CONTROLLER_LOST)
    assert first.wait_end() == 0
    leads_after(second, epoch)
    first.listen()
    assert first.count("STOPPING") == 1 and "no longer the leader" not in first.log.read_text()


def test_a_standby_follows_the_repository(take_part: Any, models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    shutil.copytree(models, folder)
    repository = Repository(folder)
    first, second = take_part("a", repository=folder), take_part("b", repository=folder)
    program = repository.get(MODEL).manifest.program_hash
    repository.add("late", 1, program, {}, seed=5)
    repository.add("late", 2, program, {}, seed=6)
    repository.use("late", 1)
    repository.remove("mlp")
    for line in ("model late/1", "model late/2", "uses late/1", "removed mlp/1"):
        second.wait(lambda line=line: f"repository: {line}" in second.log.read_text(), 30)
    # and what came since its last look is found after the election
    repository.add("later", 1, program, {}, seed=7)
    first.kill()
    second.wait_status("leader: ")
    second.wait(lambda: "later/1" in second.models(), 30)
    found = second.models()
    assert {"late/1", "late/2", f"{MODEL}/1"} <= found and not any(key.startswith("mlp/") for key in found)
    with cwd.client.admin.Admin(second.endpoint("admin")) as admin:
        assert admin.models()["late/1"]["in_use"] and not admin.models()["late/2"]["in_use"]


def test_a_leader_that_cannot_open_its_sockets_gives_the_lead_back(take_part: Any) -> None:
    first = take_part("a")
    blocked, third = take_part("b"), take_part("c")
    epoch = first.election()["epoch"]
    shutil.rmtree(blocked.folder)  # where its sockets were to be
    first.kill()
    third.wait_status("leader: ")
    assert third.election()["epoch"] > epoch


def post(url: str, path: str, body: dict[str, Any]) -> None:
    request = urllib.request.Request(f"{url}/v3/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


def test_an_etcd_that_asks_for_a_user_is_one_clear_line(two: Any, etcd: Etcd) -> None:
    first, second = two
    post(etcd.url, "auth/user/add", {"name": "root", "password": "x"})
    post(etcd.url, "auth/user/grant", {"user": "root", "role": "root"})
    post(etcd.url, "auth/enable", {})
    second.wait(lambda: "etcd refuses" in second.status)
    assert first.wait_end() == 1
    for controller in two:
        said = controller.log.read_text()
        assert said.count("etcd refuses: it asks for a user") <= 3 and "Traceback" not in said


def test_a_lease_that_etcd_does_not_grant_is_told_and_lived_with(tmp_path: Path, models: Path) -> None:
    etcd = Etcd(tmp_path, "--heartbeat-interval=500", "--election-timeout=5000").start()
    controller = Controller(tmp_path, "a", etcd.url, models, "--lease", "1s")
    try:
        controller.wait_status("leader: ", 200)
        granted_ns = controller.election()["lease_ns"]
        assert granted_ns > 1_000_000_000
        assert controller.log.read_text().count("etcd grants no other for the 1s that were asked for") == 1
    finally:
        controller.close()
        etcd.kill()


def test_the_next_etcd_is_asked_when_one_does_not_answer(take_part: Any, etcd: Etcd) -> None:
    leader = take_part("a", url=f"http://127.0.0.1:1,{etcd.url}")
    assert leader.election()["role"] == "leader" and leader.election()["trouble"] == ""
    time.sleep(LEASE_S)
    assert leader.process.poll() is None and leader.status.startswith("leader: ")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make certificates with")
def test_etcd_over_tls_is_trusted_by_its_certificate_and_asks_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=etcd", "-addext",
                    "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert], check=True, capture_output=True)
    # what the environment says to other programs is not for this one
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/etc/ssl/certs/ca-certificates.crt")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    server = Etcd(tmp_path, "--cert-file", cert, "--key-file", key, "--client-cert-auth", "--trusted-ca-file", cert, scheme="https")
    server.start()
    try:
        def ask(*files: str) -> Any:
            return elector.Etcd([server.url], "x", *files, 5.0).call(Look())

        assert ask(cert, cert, key) == View("", 0, 0, 0)
        for files in (("", cert, key), (cert, "", "")):
            with pytest.raises(elector.Unanswered, match="no trust over TLS|not reachable"):
                ask(*files)
    finally:
        server.kill()
