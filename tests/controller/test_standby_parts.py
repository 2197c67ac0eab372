"""What a standby is made of, without etcd and without a leader: its catalogue, its settings, its end of the elector's pipes."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import play
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepped import Stepped

from cwd.controller import candidacy
from cwd.controller.candidacy import Candidacy, check_election, etcd_urls
from cwd.controller.catalogue import Catalogue
from cwd.controller.config import ControllerConfig
from cwd.controller.daemon import Controller
from cwd.controller.election import Follows, Granted, Led, Lost, Trouble
from cwd.controller.elector import Etcd, Unanswered, said
from cwd.controller.host import ALWAYS_NS, CLIENTS
from cwd.controller.reader import RepositoryReader, _Answerer
from cwd.controller.standby import Elected, Standby
from cwd.controller.warm import warm
from cwd.errors import Code, CwdError
from cwd.models import profile
from cwd.net.clock import monotonic_ns
from cwd.net.notify import NotifyListener
from cwd.wire.messages import Type

needs_etcd3gw = pytest.mark.skipif(importlib.util.find_spec("etcd3gw") is None, reason="no etcd3gw here: cwd[standby] has it")

#: nobody listens there
NOWHERE = "http://127.0.0.1:1"


class Reader:
    """The reader's process as a function, and what it has read from the disk."""

    def __init__(self, root: Path) -> None:
        self._answerer = _Answerer(str(root))
        self._said: list[dict[str, Any]] = []
        self._answerer._say = lambda identifier, **answer: self._said.append({"id": identifier, **answer})
        self.read = 0
        read = self._answerer._repository._read

        def counted(folder: Path) -> Any:
            self.read += 1
            return read(folder)

        self._answerer._repository._read = counted  # type: ignore[method-assign]

    def changes(self) -> list[dict[str, Any]]:
        self._said.clear()
        self._answerer._answer({"id": 1, "op": "changes"})
        assert "end" in self._said[-1], self._said
        return list(self._said)


def caught_up(catalogue: Catalogue, answers: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [change for told in answers for change in catalogue.take(told)]


def test_what_is_known_is_not_read_again(tmp_path: Path) -> None:
    repository = play.make_repository(tmp_path, models=5)
    reader, catalogue = Reader(tmp_path), Catalogue()
    caught_up(catalogue, reader.changes())
    assert reader.read == 6 and len(catalogue.models) == 6 and len(catalogue.programs) == 2
    assert [set(told) for told in reader.changes()] == [{"id", "end"}] and reader.read == 6
    repository.add("fixed-9", 1, repository.get("fixed-0").manifest.program_hash, {}, seed=9)
    repository.remove("fixed-3")
    assert caught_up(catalogue, reader.changes()) == [("model", catalogue._with_use(("fixed-9", 1))), ("removed", ("fixed-3", 1))]
    assert reader.read == 7, "one of seven"


def test_a_version_taken_into_use_and_a_new_profile_are_changes(tmp_path: Path) -> None:
    repository = play.make_repository(tmp_path, models=1, dynamic=0)
    program = repository.get("fixed-0").manifest.program_hash
    repository.add("fixed-0", 2, program, {}, seed=2)
    reader, catalogue = Reader(tmp_path), Catalogue()
    caught_up(catalogue, reader.changes())
    assert [facts["in_use"] for _, facts in list(catalogue.entries())[1:]] == [True, True], "the last one registered stays"
    repository.use("fixed-0", 1)
    assert caught_up(catalogue, reader.changes()) == [("uses", ("fixed-0", 1))]
    assert [facts["in_use"] for _, facts in list(catalogue.entries())[1:]] == [True, False]
    spec = repository.program(program)
    profile.write_table(repository, program, "other", {pair: 9 for pair in profile.pairs(spec)}, load_ns_per_page=1,
                        page_bytes=play.PAGE_BYTES)
    (kind, facts), = caught_up(catalogue, reader.changes())
    assert kind == "program" and set(facts["profiles"]) == {"played", "other"}
    repository.remove("fixed-0", 1)
    caught_up(catalogue, reader.changes())
    assert [facts["in_use"] for _, facts in list(catalogue.entries())[1:]] == [True], "the one in use is gone: the newest is"


def test_a_broken_entry_is_left_out_and_taken_in_when_it_is_mended(tmp_path: Path) -> None:
    play.make_repository(tmp_path, models=2, dynamic=0)
    file = tmp_path / "fixed-0" / "1" / "model.json"
    sound = file.read_text()
    reader, catalogue = Reader(tmp_path), Catalogue()
    caught_up(catalogue, reader.changes())
    file.write_text("{nonsense")
    assert caught_up(catalogue, reader.changes()) == [("removed", ("fixed-0", 1))]
    file.write_text(sound)
    assert [kind for kind, _ in caught_up(catalogue, reader.changes())] == ["model"]


def test_what_was_removed_while_the_repository_could_not_be_read_is_told_when_it_can(tmp_path: Path) -> None:
    root = tmp_path / "models"
    repository = play.make_repository(root, models=2, dynamic=0)
    reader, catalogue = Reader(root), Catalogue()
    caught_up(catalogue, reader.changes())
    root.rename(tmp_path / "away")
    reader._answerer._answer({"id": 1, "op": "changes"})
    assert "error" in reader._said[-1]
    (tmp_path / "away").rename(root)
    repository.remove("fixed-1")
    assert caught_up(catalogue, reader.changes()) == [("removed", ("fixed-1", 1))]
    assert [set(told) for told in reader.changes()] == [{"id", "end"}]


OPERATIONS = st.lists(st.tuples(st.sampled_from(["add", "remove", "use", "look", "new reader", "profile"]), st.integers(0, 3),
                                st.integers(1, 3)), max_size=20)


@settings(max_examples=40, deadline=None)
@given(operations=OPERATIONS)
def test_a_catalogue_that_followed_is_one_that_was_read_now(operations: Any) -> None:
    """Whatever was done to the repository, and whichever reader tells: as if it were all read for the first time."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        repository = play.make_repository(root, models=2, dynamic=0)
        program = repository.get("fixed-0").manifest.program_hash
        reader, catalogue = Reader(root), Catalogue()
        for number, (what, name, version) in enumerate(operations):
            try:
                if what == "add":
                    repository.add(f"fixed-{name}", version, program, {}, seed=number)
                elif what == "remove":
                    repository.remove(f"fixed-{name}", version)
                elif what == "use":
                    repository.use(f"fixed-{name}", version)
                elif what == "profile":
                    table = {pair: number + 1 for pair in profile.pairs(repository.program(program))}
                    profile.write_table(repository, program, "played", table, load_ns_per_page=1, page_bytes=play.PAGE_BYTES)
                elif what == "look":
                    caught_up(catalogue, reader.changes())
                else:
                    reader = Reader(root)
            except CwdError as error:
                assert error.code in (Code.MODEL_EXISTS, Code.UNKNOWN_MODEL)
        caught_up(catalogue, reader.changes())
        fresh = Catalogue()
        caught_up(fresh, Reader(root).changes())
        assert [facts for kind, facts in catalogue.entries() if kind == "model"] == [
            facts for kind, facts in fresh.entries() if kind == "model"]
        assert {key: value for key, value in catalogue.programs.items() if key in fresh.programs} == fresh.programs


# settings


@pytest.mark.parametrize("text", ["", ",", "127.0.0.1:2379", "ftp://a:1", "http://", "http://a:99999", "http://a:0", "http://a/x",
                                  "http://a:1,nonsense"])
def test_what_is_no_address_of_etcd_is_one_clear_line(text: str) -> None:
    with pytest.raises(CwdError, match="no address") as caught:
        check_election(ControllerConfig(etcd=text or ","))
    assert caught.value.code == Code.BAD_ARGUMENT and "\n" not in str(caught.value)


def test_several_addresses() -> None:
    assert etcd_urls("http://a:1, https://[::1]:2/ ,http://c") == ["http://a:1", "https://[::1]:2", "http://c"]


@needs_etcd3gw
@pytest.mark.parametrize("more, words", [
    ({"cluster": "a/b"}, "no name for a cluster"), ({"cluster": ""}, "no name"), ({"lease_ns": 1}, "lease"),
    ({"etcd_cert": "/dev/null"}, "etcd_cert and etcd_key"), ({"etcd_ca": "/nowhere"}, "/nowhere: cannot be read")])
def test_what_could_never_be_elected_is_one_clear_line(more: dict[str, Any], words: str) -> None:
    with pytest.raises(CwdError, match=words):
        check_election(ControllerConfig(etcd=NOWHERE, **more))


def test_without_etcd3gw_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidacy.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CwdError, match=r"needs etcd3gw: pip install 'cwd\[standby\]'"):
        check_election(ControllerConfig(etcd=NOWHERE))


@needs_etcd3gw
@pytest.mark.parametrize("more, words", [
    ({"clients_bind": "tcp://0.0.0.0:5601"}, "only ipc:// and loopback"), ({"keys": "/nowhere"}, "/nowhere"),
    ({"workers_bind": "nonsense"}, "not an ipc")])
def test_what_would_fail_at_the_election_fails_at_the_start(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(CwdError, match=words):
        Standby(ControllerConfig(etcd=NOWHERE, run_dir=str(tmp_path), state_dir=str(tmp_path), **more))


# the elector and its pipes


@needs_etcd3gw
def test_nobody_there_is_said_as_such_of_each_server() -> None:
    from cwd.controller.election import Look

    etcd = Etcd([NOWHERE, "http://127.0.0.1:2"], "x", "", "", "", 1.0)
    with pytest.raises(Unanswered, match="127.0.0.1:2: etcd is not reachable"):
        etcd.call(Look())


@needs_etcd3gw
def test_an_elector_that_dies_is_replaced_and_told_what_was_held(tmp_path: Path) -> None:
    """Without etcd the new one can only wait until the lease is over, and says so."""
    mine = Candidacy(ControllerConfig(etcd=NOWHERE), 0)
    try:
        mine._take(Led(7, monotonic_ns() + 1_500_000_000, 42, 2_000_000_000))
        assert mine.facts()["role"] == "leader" and mine.facts()["epoch"] == 7
        os.kill(mine._process._process.pid, signal.SIGKILL)
        until = time.monotonic() + 30
        while not mine.lost and time.monotonic() < until:
            mine.attend(monotonic_ns())
            time.sleep(0.02)
        assert mine.restarts == 1 and mine.lost == "the lease was not renewed in time" and mine.until_ns == 0
        assert "not reachable" in mine.trouble
    finally:
        mine.close()


@needs_etcd3gw
def test_an_elector_that_hangs_does_not_keep_the_controller_from_ending() -> None:
    """A leader whose elector is stopped is fenced, and has to end to be started again as a standby."""
    mine = Candidacy(ControllerConfig(etcd=NOWHERE), 0)
    pid = mine._process._process.pid
    os.kill(pid, signal.SIGSTOP)
    ending = threading.Thread(target=mine.close, daemon=True)
    ending.start()
    ending.join(20)
    try:
        assert not ending.is_alive()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_news_go_through_the_pipe_as_they_are() -> None:
    for news in (Led((1 << 62) - 1, 2, 3, 4), Follows("a"), Lost("why"), Trouble(""), Granted(5, 2)):
        name, *fields = msgpack.unpackb(msgpack.packb(said(news)))
        assert getattr(candidacy.election, name)(*fields) == news


@needs_etcd3gw
def test_a_standby_without_etcd_waits_says_so_and_ends_when_told(tmp_path: Path) -> None:
    play.make_repository(tmp_path / "repo", models=2, dynamic=0)
    program = ("import logging, sys\nfrom cwd.controller.config import ControllerConfig\n"
               "from cwd.controller.standby import Standby\nlogging.basicConfig(level=logging.INFO)\n"
               f"config = ControllerConfig(etcd='{NOWHERE}', run_dir=sys.argv[1], state_dir=sys.argv[1],\n"
               "                          repository=sys.argv[1] + '/repo')\n"
               "sys.exit(0 if Standby(config).run() is None else 3)\n")
    with NotifyListener() as listener:
        process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stderr=subprocess.PIPE,
                                   env={**os.environ, "NOTIFY_SOCKET": listener.path})
        try:
            assert listener.wait_ready(60, lambda: process.poll() is None)
            until = time.monotonic() + 30
            while "not reachable" not in listener.status:
                assert time.monotonic() < until, listener.status
                listener.receive(0.1)
            assert listener.status == f"standby: {NOWHERE}: etcd is not reachable"
            assert not list(tmp_path.glob("*.sock"))
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert said.count("etcd is not reachable") == 2, said  # the elector's line, and the status


@needs_etcd3gw
def test_etcd_that_hangs_server_after_server_is_one_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The status says which; the log says when it begins and when it is over."""
    caplog.set_level(logging.INFO)
    standby = Standby(ControllerConfig(etcd=NOWHERE, run_dir=str(tmp_path), state_dir=str(tmp_path)))
    standby.step()
    mine = standby._candidacy
    assert mine is not None
    try:
        mine.attend = lambda now_ns: None  # type: ignore[method-assign]
        caplog.clear()
        for trouble in ("a: no answer in time", "b: no answer in time", "a: no answer in time", "", "c: no answer in time"):
            mine.trouble = trouble
            standby.step()
            assert standby._status == (f"standby: {trouble}" if trouble else "standby: asking etcd who leads")
    finally:
        standby._close()
    assert [record.getMessage() for record in caplog.records] == [
        "standby: a: no answer in time", "standby: asking etcd who leads", "standby: c: no answer in time"]


@needs_etcd3gw
def test_a_repository_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    standby = Standby(ControllerConfig(etcd=NOWHERE, run_dir=str(tmp_path), state_dir=str(tmp_path),
                                       repository=str(tmp_path / "nowhere")))
    with pytest.raises(CwdError):
        while True:
            standby.step()
    standby._close()


# the leader's fence


class Term:
    """A candidacy whose time the test sets: `until_ns` now, and after the elector has been heard again."""

    lost = trouble = ""
    resigned = 0

    def __init__(self, until_ns: int, heard_ns: int) -> None:
        self.until_ns, self._heard_ns = until_ns, heard_ns

    def attend(self, now_ns: int) -> None:
        self.until_ns = self._heard_ns

    def resign(self) -> None:
        self.resigned += 1

    def close(self) -> None:
        pass


def test_past_its_time_a_leader_takes_nothing_and_says_nothing(tmp_path: Path) -> None:
    with Stepped(tmp_path, chunk_ns=0) as stepped:
        controller, client, term = stepped.controller, stepped.client(), Term(1, 1)
        said: list[Any] = []
        state = controller.host.state[0]
        controller._candidacy, state["valid_until_ns"] = term, 1  # type: ignore[assignment]
        controller._outgoing.send = lambda *args, **fields: said.append(args)  # type: ignore
        client.infer(0)
        stepped.wait_for(CLIENTS)
        before = int(state["received"]), int(state["sent"]), int(state["refused"])
        with pytest.raises(CwdError, match="no longer the leader, ends at once: the lease was not renewed in time"):
            controller.step()
    assert (int(state["received"]), int(state["sent"]), int(state["refused"])) == before and said == [] and term.resigned == 1


def test_a_leader_whose_renewal_waits_in_the_pipe_goes_on(tmp_path: Path) -> None:
    with Stepped(tmp_path, chunk_ns=0) as stepped:
        controller, client, term = stepped.controller, stepped.client(), Term(1, ALWAYS_NS)
        controller._candidacy, controller.host.state[0]["valid_until_ns"] = term, 1  # type: ignore[assignment]
        request = client.infer(0)
        stepped.wait_for(CLIENTS)
        assert client.until(Type.REPLY, request=request)[0]["status"] == Code.UNKNOWN_MODEL
    assert term.resigned == 1


def test_a_reader_that_dies_at_the_election_does_not_cost_the_lead(tmp_path: Path) -> None:
    """With a question under way, and its end not heard of yet: what the standby knew is served."""
    play.make_repository(tmp_path / "models", models=2, dynamic=0)
    catalogue = Catalogue()
    caught_up(catalogue, Reader(tmp_path / "models").changes())
    reader = RepositoryReader(str(tmp_path / "models"))
    asked = reader.ask("changes")
    os.kill(reader._process._process.pid, signal.SIGKILL)
    reader._process._process.wait()
    term: Any = Term(ALWAYS_NS, ALWAYS_NS)
    term.led, term.facts = Led(7, ALWAYS_NS, 1, 2_000_000_000), dict
    config = ControllerConfig(run_dir=str(tmp_path / "run"), state_dir=str(tmp_path / "state"), page_bytes=play.PAGE_BYTES,
                              log=False, nice=os.nice(0))
    warm()
    wakeup = signal.set_wakeup_fd(-1)
    try:
        controller = Controller(config, elected=Elected(config, term, catalogue, reader, asked, lambda: 0))
        try:
            until = time.monotonic() + 30
            while reader.pending and time.monotonic() < until:
                controller.step()
            assert reader.pending == 0 and len(controller.registry.models) == 2 and controller.epoch == 7
        finally:
            controller._close()
    finally:
        signal.set_wakeup_fd(wakeup)
