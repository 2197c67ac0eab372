"""Applications on disk, and `cwd app`: they survive restarts, several processes share them, faults are one line."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from observed import observation

from cwd.cli.main import run
from cwd.errors import Code, CwdError, UnknownModel
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.desk import Desk
from cwd.selection.feedback import Journal
from cwd.selection.feedback_log import drop, log_files
from cwd.selection.observation import Observation
from cwd.selection.redis_states import RedisStates
from cwd.selection.state import Choice
from cwd.selection.states import SqliteStates

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)
MEMBERS = st.lists(st.builds(Member, NAMES, st.integers(0, 5)), max_size=4, unique=True).map(tuple)


@given(st.builds(App, NAMES, MEMBERS, combine=st.sampled_from(["vote", "mean"]), slo_ns=st.integers(1, 10**12),
                 policy=st.sampled_from(["static", "exp3", "exp4", "thompson"]), cache=st.booleans(),
                 default=st.sampled_from([None, "1", '"text"', "[1.5, 2]", '{"y": [1]}']), ttl_ns=st.integers(0, 10**12)))
def test_what_is_stored_reads_back(app):
    assert App.from_json(app.name, app.to_json()) == app


@pytest.mark.parametrize("fields", [
    {"name": ""}, {"name": "a/b"}, {"name": "-x"}, {"members": (Member("a"), Member("a"))}, {"slo_ns": 0},
    {"members": (Member("a b"),)}, {"policy": "greedy"}, {"policy": "exp3", "parameters": {"epsilon": 1}},
    {"policy": "exp4", "members": (Member("a"), Member("b"))}, {"combine": "median"}, {"loss": "hinge"},
    {"loss": "absolute", "loss_parameters": {"scale": 0}}, {"default": "{"}, {"default": '{"a": {}}'}, {"default": "{}"},
    {"confidence_min": 0.5}, {"confidence_min": 1.5, "default": "1"}, {"context": "planet"}, {"ttl_ns": -1},
    {"default": [0]}, {"default": 0}, {"members": "ab"}, {"members": (3,)}, {"members": ("a/²",)}, {"slo_ns": "1s"},
    {"slo_ns": 0.1}, {"ttl_ns": "1s"}, {"members": ["a", Member("a")]}, {"default": "[[1], [1, 2]]"},
    {"input_type": "shapes"}, {"scale": 0.0},
])
def test_what_cannot_work_is_refused(fields):
    with pytest.raises(CwdError) as caught:
        App(**{"name": "app", **fields})
    assert caught.value.code == Code.BAD_ARGUMENT and "\n" not in caught.value.text


@pytest.mark.parametrize("default, dtype, shape, wanted", [
    ("1", "f4", (2, 2), np.ones((2, 2), "f4")), ("[1, 2]", "i8", (2,), np.array([1, 2])), ("0.5", "i8", (), np.array(0.5)),
    ('"no"', "f4", (3,), np.array("no")), ('{"y": [true]}', "?", (1,), np.array([True])),
])
def test_defaults_take_the_outputs_form_where_they_can(default, dtype, shape, wanted):
    (found,) = App("app", default=default).default_outputs(np.dtype(dtype), shape).values()
    assert np.array_equal(found, wanted) and found.dtype.kind == wanted.dtype.kind


def test_who_is_always_asked_is_the_same_one_when_others_leave(tmp_path):
    with AppStore(tmp_path / "apps.db") as store:
        store.create(App("app", ("a", "b", "c"), "static", {"member": 1}))
        with pytest.raises(CwdError, match="b is the member that is always asked"):
            store.unlink("app", ["b"])
        assert store.get("app").members == tuple(map(Member, "abc"))
        assert store.unlink("app", ["a"]).parameters == {"member": 0}
        assert store.unlink("app", ["c"]).members == (Member("b"),)
        assert store.unlink("app", ["b"]).members == ()
        store.create(App("others", ("a", "b"), "exp3", {"eta": 0.2}))
        assert store.unlink("others", ["a"]).parameters == {"eta": 0.2}


def test_a_store_that_fails_leaves_the_applications_as_they_were(tmp_path, monkeypatch, caplog):
    with AppStore(tmp_path / "apps.db") as store:
        store.create(App("app", ("a",)))
        desk = Desk(store)
        known = desk.serving("app", 0)

        def fails(*_, **__):
            raise CwdError("disk I/O error", code=Code.CORRUPT)

        monkeypatch.setattr(store, "all", fails)
        store.create(App("more", ("a",)))
        assert [desk.serving("app", at_ns) for at_ns in (1, 10**9, 2 * 10**9)] == [known] * 3
        assert [each.message for each in caplog.records] == ["disk I/O error; applications stay as they were"]
        with pytest.raises(CwdError, match="disk"):
            Desk(store).find("app", 0)
        monkeypatch.undo()
        assert desk.find("more", 3 * 10**9) is not None and desk.serving("app", 3 * 10**9) is known


def test_a_store_of_several_processes_and_lives(tmp_path):
    path = tmp_path / "deep" / "apps.db"
    with AppStore(path) as one, AppStore(path) as other:
        before = other.stamp()
        one.create(App("app", (Member("a"),)))
        assert other.stamp() != before and other.get("app") == one.get("app") == one.all()[0]
        first = one.get("app").key
        with pytest.raises(CwdError, match="already") as caught:
            other.create(App("app"))
        assert caught.value.code == Code.MODEL_EXISTS
        before = other.stamp()
        other.link("app", [Member("b", 3), Member("a")])
        assert other.stamp() != before and one.get("app").members == (Member("a"), Member("b", 3))
        assert one.get("app").key == first
        one.unlink("app", [Member("a")])
        one.change("app", slo_ns=7, policy="exp3")
        for call in (lambda: one.unlink("app", [Member("a")]), lambda: one.link("none", []), lambda: one.get("none"),
                     lambda: one.remove("none"), lambda: one.change("none")):
            with pytest.raises(UnknownModel):
                call()
        with pytest.raises(CwdError):
            one.change("app", policy="none")
    with AppStore(path) as again:
        app = again.get("app")
        assert app.members == (Member("b", 3),) and app.slo_ns == 7 and app.policy == "exp3" and app.key == first
        again.remove("app")
        again.create(App("app"))
        assert again.get("app").key != first
        again.note("m:1", {"labels": []})
        assert again.notes() == {"m:1": {"labels": []}}
        again.note("m:1", None)
        assert again.notes() == {}


def test_members_are_given_as_texts_too(tmp_path):
    app = App("app", ["a", "b/2", Member("c")], "exp4", combine="vote")
    assert app.members == (Member("a"), Member("b", 2), Member("c"))
    with AppStore(tmp_path / "apps.db") as store:
        store.create(app)
        assert store.link("app", ["d/7", "a"]).members == (*app.members, Member("d", 7))
        assert store.unlink("app", ["b/2", "c"]).members == (Member("a"), Member("d", 7))
        for call in (store.link, store.unlink):
            with pytest.raises(CwdError, match="sequence of models"):
                call("app", "a")


def test_files_that_are_no_store(tmp_path):
    (tmp_path / "text").write_text("no database at all, but long enough to be looked at" * 50)
    newer = sqlite3.connect(tmp_path / "newer")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    for name in ("text", "newer", "."):
        with pytest.raises(CwdError) as caught:
            AppStore(tmp_path / name)
        assert caught.value.code == Code.CORRUPT and str(tmp_path) in caught.value.text


@pytest.fixture
def cwd_app(tmp_path, capsys, monkeypatch):
    """`cwd_app(*arguments)` is what `cwd app` told with --json; it fails with its line on stderr."""
    monkeypatch.setenv("CWD_APPS", str(tmp_path / "apps.db"))

    def call(*arguments, fails=False):
        code = run(["app", *arguments, *([] if fails else ["--json"])])
        out, error = capsys.readouterr()
        assert (code != 0) == fails, error
        return error if fails else json.loads(out)

    return call


def test_the_commands(cwd_app, tmp_path, capsys):
    made = cwd_app("create", "shop", "resnet", "bert/2", "--policy", "exp4", "--parameters", '{"eta": 0.2}', "--combine", "vote",
                   "--slo", "50ms", "--default", "[0]", "--confidence", "0.6", "--cache", "--ttl", "10s", "--context", "user")
    assert made["members"] == ["resnet", "bert/2"] and made["slo_ns"] == 50_000_000 and made["parameters"] == {"eta": 0.2}
    assert made["cache"] and made["ttl_ns"] == 10**10 and made["confidence_min"] == 0.6 and made["life"]
    assert "already" in cwd_app("create", "shop", fails=True)
    assert cwd_app("link", "shop", "vit")["members"] == ["resnet", "bert/2", "vit"]
    assert cwd_app("unlink", "shop", "resnet")["members"] == ["bert/2", "vit"]
    changed = cwd_app("change", "shop", "--no-cache", "--slo", "1s")
    assert (changed["cache"], changed["slo_ns"], changed["default"]) == (False, 10**9, "[0]")
    assert cwd_app("show", "shop")["context"] == "user" and [a["name"] for a in cwd_app("ls")["apps"]] == ["shop"]
    assert run(["app", "ls"]) == 0 and "bert/2, vit" in capsys.readouterr().out
    assert cwd_app("create", "shop", "other", "--replace")["life"] != made["life"]
    cwd_app("rm", "shop")
    for arguments in (["show", "shop"], ["create", "bad name"], ["create", "x", "--parameters", "{"],
                      ["create", "x", "--default", "{"], ["create", "x", "a", "b", "--policy", "exp4"],
                      ["replay-feedback", "shop"], ["create", "x", "--slo", "5"]):
        error = cwd_app(*arguments, fails=True)
        assert error.startswith("cwd: error: ") and error.count("\n") == 1


def test_replay_feedback_evaluates_another_policy(cwd_app, tmp_path, capsys):
    """A log of Exp3 choosing evenly between a member that is always wrong and one that never is."""
    key = f"shop#{cwd_app('create', 'shop', 'good', 'bad', '--policy', 'exp3')['life']}"
    assert "no feedback" in cwd_app("replay-feedback", "shop", fails=True)
    states = SqliteStates(tmp_path / "states.db")
    journal = Journal(states, tmp_path / "feedback", part_bytes=10_000)
    random = np.random.default_rng(3)
    for number in range(400):
        member = int(random.integers(2))
        weights = (1.0, 0.0) if member == 0 else (0.0, 1.0)
        journal.add(Observation(f"f{number}", key, "", "exp3", {"eta": 0.0, "share": 0.0}, ("good", "bad"),
                                Choice((member,), (0.5, 0.5), weights), {member: float(member)}, float(member)))
    journal.close()
    states.close()
    for policy, member, loss in (("static", 0, 0.0), ("static", 1, 1.0)):
        found = cwd_app("replay-feedback", "shop", "--policy", policy, "--parameters", json.dumps({"member": member}))
        assert found["records"] == 400 and found["dr"]["low"] <= loss <= found["dr"]["high"] and found["logged_by"] == "exp3"
        assert abs(found["snips"]["loss"] - loss) < 1e-9 and 0.4 < found["logged"]["loss"] < 0.6
    assert cwd_app("show", "shop")["states"][0]["observations"] == 400
    assert found["dropped"] is False
    assert run(["app", "show", "shop"]) == 0
    told = capsys.readouterr().out
    assert "log weight" in told and "plays" not in told, "exp3 weighs members and counts nothing"
    assert run(["app", "replay-feedback", "shop", "--policy", "thompson"]) == 0 and "snips" in capsys.readouterr().out
    assert len(log_files(tmp_path / "feedback")) > 5
    drop(tmp_path / "feedback", 40_000)
    found = cwd_app("replay-feedback", "shop")
    assert 40 < found["records"] < 400 and found["dropped"] is True
    assert run(["app", "replay-feedback", "shop"]) == 0 and "was dropped" in capsys.readouterr().out
    cwd_app("rm", "shop")
    states = SqliteStates(tmp_path / "states.db")
    assert states.get(key, "") is None
    states.close()


def test_replay_feedback_says_what_it_cannot_know(cwd_app, tmp_path, capsys):
    """A log of one member alone, and of one prediction whose loss nobody knows."""
    key = f"shop#{cwd_app('create', 'shop', 'a', 'b')['life']}"
    states = SqliteStates(tmp_path / "states.db")
    journal = Journal(states, tmp_path / "feedback")
    journal.add_all([Observation(f"f{number}", key, "", "static", {}, ("a", "b"), Choice((0,), (1.0, 0.0), (1.0, 0.0)),
                                 {0: 1.0} if number else {}, None) for number in range(5)])
    journal.close()
    states.close()
    assert run(["app", "replay-feedback", "shop", "--policy", "epsilon_greedy", "--parameters", '{"epsilon": 1}']) == 0
    said = capsys.readouterr().out
    assert "on 4 feedbacks" in said and "1 more say nothing" in said and "probability of 0.5: no estimate knows" in said
    assert run(["app", "replay-feedback", "shop", "--policy", "static"]) == 0
    assert "no estimate knows" not in capsys.readouterr().out


def test_states_in_redis_are_shown_and_forgotten(cwd_app, redis_url):
    """As gateways on several machines keep them; without --states the file beside the applications counts, and is not made."""
    key = f"shop#{cwd_app('create', 'shop', 'a', 'b', '--policy', 'exp3')['life']}"
    states = RedisStates(redis_url, fresh_s=0.0)
    states.apply([observation(1, app=key, members=("a", "b"))], "log")
    assert "states" not in cwd_app("show", "shop")
    (row,) = cwd_app("show", "shop", "--states", redis_url)["states"]
    assert row["observations"] == 1 and row["members"] == ["a", "b"]
    cwd_app("rm", "shop", "--states", redis_url)
    assert states.get(key, "") is None
    states.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files for others")
def test_what_root_makes_belongs_to_whom_the_folder_belongs_to(tmp_path):
    """`cwd app` as root in /var/lib/cwd, before a gateway that is the user cwd: it has to write there, too."""
    os.chown(tmp_path, 65534, 65534)
    with contextlib.closing(AppStore(tmp_path / "apps.db")) as store:
        store.create(App("shop", ("a",)))
        files = sorted(tmp_path.iterdir())
        assert files[0].name == "apps.db" and {(file.stat().st_uid, file.stat().st_gid) for file in files} == {(65534, 65534)}
