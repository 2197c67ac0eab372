"""Stores of policy states: no update lost, each feedback once, and what is theirs to give back."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from observed import FEEDBACKS, NaiveStore, Opener, observation

from cwd.errors import Code, CwdError
from cwd.selection.entry import Entry, after, fitted
from cwd.selection.observation import Observation, translated
from cwd.selection.policies import make_policy
from cwd.selection.state import Choice
from cwd.selection.states import SqliteStates

_apps = itertools.count()


@given(FEEDBACKS, st.lists(st.integers(1, 4), min_size=14, max_size=14))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_two_handles_of_a_store_are_one_dict(opener: Opener, feedbacks: list[tuple], sizes: list[int]) -> None:
    """Batches through one handle and the other; each reads at once what the other has written."""
    app = f"app-{next(_apps)}"
    handles, naive = (opener(), opener()), NaiveStore()
    observations = [observation(number, *rest, app=app) for number, *rest in feedbacks]
    for turn, size in enumerate(sizes):
        batch, observations = observations[:size], observations[size:]
        records = handles[turn % 2].apply(batch, f"{app}-{turn % 2}")
        assert [bool(record) for record in records] == naive.apply(batch)
        for record in filter(None, records):
            version, told = Observation.from_bytes(record)
            assert told.to_bytes(version) == record
        for handle in handles:
            for (_, context), entry in naive.entries.items():
                assert handle.get(app, context).to_bytes() == entry.to_bytes()
    found = {(name, context): entry for name, context, entry in handles[0].entries() if name == app}
    assert found == naive.entries
    assert {entry.to_bytes() for entry in found.values()} == {entry.to_bytes() for entry in naive.entries.values()}
    for handle in handles:
        handle.close()


def test_writers_at_the_same_time_lose_nothing(opener: Opener) -> None:
    """Four threads with a store each, on one context; half of the feedback is sent by two of them."""
    def write(number: int, store: object) -> None:
        for step in range(30):
            mine = observation(1000 * (number // 2 if step % 2 else number + 10) + step, entry=store.get("app", ""))
            taken[number] += sum(map(bool, store.apply([mine], f"log-{number}")))

    taken = [0] * 4
    threads = [threading.Thread(target=write, args=(number, opener())) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = opener()
    # 15 of each writer's own, 15 of each pair's
    assert sum(taken) == 4 * 15 + 2 * 15 == store.get("app", "").version
    versions = sorted(Observation.from_bytes(record)[0] for number in range(4) for record in store.unlogged(f"log-{number}"))
    assert versions == list(range(1, sum(taken) + 1))


def _hammer(path: str, number: int) -> None:
    store = SqliteStates(path)
    for step in range(20):
        store.apply([observation(100 * number + step)], f"log-{number}")
    store.close()


def test_processes_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "states.sqlite")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_hammer, args=(path, number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = SqliteStates(path)
    assert store.get("app", "").version == 60
    store.close()


def test_what_the_log_has_is_no_longer_kept_for_it(opener: Opener) -> None:
    store = opener()
    first = store.apply([observation(1), observation(2)], "log")
    assert store.unlogged("log") == first and store.unlogged("another") == []
    store.logged("log", 1)
    assert store.unlogged("log") == first[1:]
    second = store.apply([observation(3), observation(1)], "log")
    assert second[1] == b"" and store.unlogged("log") == [first[1], second[0]]
    store.logged("log", 2)
    store.close()
    assert opener().unlogged("log") == []


def test_all_of_a_batch_or_none(opener: Opener) -> None:
    store = opener()
    bad = dataclasses.replace(observation(2), losses={0: 7.0})
    with pytest.raises(CwdError):
        store.apply([observation(1), bad], "log")
    assert store.get("app", "") is None and store.unlogged("log") == []
    assert store.apply([observation(1)], "log") != [b""]


def test_a_forgotten_app_stays_forgotten(opener: Opener) -> None:
    store, other = opener(), opener()
    store.apply([observation(1), observation(2, app="kept")], "log")
    entry = store.get("app", "")
    other.forget("app")
    assert store.get("app", "") is None and other.get("kept", "").version == 1
    assert store.apply([observation(3)], "log") == [b""]
    assert store.restore("app", "", entry, ["feedback-1"]) is False
    assert [app for app, _, _ in store.entries()] == ["kept"]


def test_restore_only_ever_goes_forward(opener: Opener) -> None:
    store = opener()
    one = after(None, observation(1))
    two = after(one, observation(2))
    ids = [f"feedback-{number}" for number in (1, 2)]
    assert store.restore("app", "", two, ids) is True
    assert store.restore("app", "", one, ids) is False and store.restore("app", "", two, ids) is False
    assert store.get("app", "") == two
    assert store.apply([observation(2), observation(3)], "log")[0] == b""
    assert store.get("app", "").version == 3


def test_a_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("this is not a database, and long enough to be told apart from an empty one" * 20)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE mine (x)")
    other.commit()
    other.close()
    for name in ("text", "other.sqlite", "no/such/folder"):
        with pytest.raises(CwdError):
            SqliteStates(tmp_path / name)


def test_an_unreachable_redis_is_one_clear_error(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    from cwd.selection.redis_states import RedisStates

    for url in (f"unix://{tmp_path}/nobody.sock", "carrier-pigeon://x"):
        with pytest.raises(CwdError):
            RedisStates(url)


def test_members_keep_what_they_have_learned_by_their_names() -> None:
    entry: Entry | None = None
    for number in range(6):
        entry = after(entry, observation(number, policy="exp4", members=("a:1", "b:1"), loss=0.5))
    assert entry is not None
    policy = make_policy("exp4")
    state = dataclasses.replace(entry.state, log_weights=(0.0, -3.0))
    entry = dataclasses.replace(entry, state=state)
    assert fitted(entry, policy, ("b:1", "a:1")).log_weights == (-3.0, 0.0)
    grown = fitted(entry, policy, ("c:1", "b:1", "a:1"))
    assert grown.log_weights[1:] == (-3.0, 0.0) and -3.0 < grown.log_weights[0] < 0.0
    assert fitted(entry, policy, ("b:1", "x:1")).log_weights[0] == 0.0
    three = dataclasses.replace(entry, members=("a:1", "b:1", "c:1"), state=dataclasses.replace(
        policy.start(3), log_weights=(0.0, -3.0, -1.0)))
    assert fitted(three, policy, ("a:1", "c:1")).log_weights == (0.0, -1.0)
    assert fitted(three, policy, ("c:1", "b:1")).log_weights == (0.0, -2.0)
    assert fitted(entry, policy, ("x:1", "y:1")) == policy.start(2)
    assert fitted(entry, make_policy("exp3"), ("a:1", "b:1")) == make_policy("exp3").start(2)
    # what does not learn goes by its parameters alone
    static = after(None, observation(1, policy="static"))
    assert fitted(static, make_policy("static", {"member": 2}), static.members).log_weights[2] == 0.0


def test_a_choice_is_told_in_the_numbers_of_now() -> None:
    choice = Choice((0, 2), (0.5, 0.2, 0.3), (0.6, 0.1, 0.3))
    moved, losses = translated(choice, {0: 1.0, 2: 0.0}, ("a", "b", "c"), ("c", "d", "b"))
    assert moved == Choice((0,), (0.3, 0.0, 0.2), (0.3, 0.0, 0.1)) and losses == {0: 0.0}
    assert translated(choice, {0: 1.0}, ("a", "b", "c"), ("a", "b", "c")) == (choice, {0: 1.0})


def test_one_that_was_asked_alone_stands_for_those_who_are_still_there() -> None:
    choice = Choice((0,), (0.25, 0.25, 0.5), (1.0, 0.0, 0.0))
    moved, losses = translated(choice, {0: 1.0}, ("a", "b", "c"), ("b", "a", "d"))
    assert moved == Choice((1,), (0.5, 0.5, 0.0), (0.0, 1.0, 0.0)) and losses == {1: 1.0}
    gone, losses = translated(choice, {0: 1.0}, ("a", "b", "c"), ("b",))
    assert gone.members == () and gone.probabilities == (1.0,) and losses == {}
    # the probability of each of several is its own
    both = Choice((0, 1), (1.0, 1.0), (0.5, 0.5))
    assert translated(both, {}, ("a", "b"), ("b",))[0] == Choice((0,), (1.0,), (0.5,))


@pytest.mark.parametrize("change", [
    {"feedback_id": ""}, {"app": ""}, {"context": None}, {"members": ("a", "a", "b")}, {"members": ("a",)},
    {"choice": Choice((5,), (1.0,) * 3, (1.0,) * 3)}, {"choice": Choice((0,), (0.0, 0.5, 0.5), (1.0, 0.0, 0.0))},
    {"choice": Choice((0,), (1.5, 0.0, 0.0), (1.0, 0.0, 0.0))}, {"choice": Choice((0,), (1.0, 0.0, 0.0), (float("nan"),) * 3)},
    {"losses": {2: 0.5}}, {"losses": {0: float("nan")}}, {"loss": 1.5},
    {"policy": "nonsense"}, {"parameters": {"x": 1}}, {"label": object()}, {"label": b"x" * (2 << 20)}, {"label": "\ud800"},
    {"label": 1 << 70}, {"answers": {7: 1}}])
def test_a_feedback_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    good = observation(1, policy="exp3", draw=0.0)
    good.check()
    with pytest.raises(CwdError):
        dataclasses.replace(good, **change).check()


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_bytes_that_are_no_record_or_entry_are_refused(data: bytes) -> None:
    for decode in (Observation.from_bytes, Entry.from_bytes):
        with pytest.raises(CwdError) as caught:
            decode(data)
        assert caught.value.code == Code.CORRUPT


def test_labels_come_back_as_they_went() -> None:
    for label in (3, -1.5, "cat", [1, 2, [3]], {"a": 1, 5: None}, None, b"raw", True):
        sent = dataclasses.replace(observation(1), label=label, answers={0: label})
        version, back = Observation.from_bytes(sent.to_bytes(9))
        assert (version, back) == (9, sent)
