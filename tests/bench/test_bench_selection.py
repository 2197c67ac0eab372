"""`cwd bench selection` in small: what docs/applications.md claims of it, on made-up texts and with fixed seeds."""

from __future__ import annotations

import dataclasses
import json
import os
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest

from cwd.bench import selection, tuning
from cwd.bench.students import DEGRADED, WANTED, digest_of, population, read_texts
from cwd.cli.bench import lines_of
from cwd.errors import CwdError
from cwd.selection.policies import make_policy

TRACES = Path(os.environ.get("CWD_DATA") or Path(__file__).resolve().parents[3] / "shared" / "traces")


@pytest.fixture(scope="module")
def facts() -> dict:
    return selection.run(steps=8000, streams=2)


def test_exp3_and_exp4_find_the_best_and_recover(facts: dict) -> None:
    assert facts["exp3"]["best_share_before"] > 0.85 and facts["exp3"]["best_share_final"] > 0.8
    assert facts["exp4"]["accuracy"] >= facts["best_member_accuracy"]
    for half, best in (("before", max(facts["models"])), ("after", max(facts["models_degraded"]))):
        assert facts["exp4"][f"accuracy_{half}"] > best - 0.02
    for name in ("exp3", "exp4"):
        assert all(0 <= steps < 1500 for steps in facts[name]["recovery_steps"])
        assert facts[name]["regret"] < 0.25 * facts["static"]["regret"]
    assert facts["static"]["recovery_steps"] == [-1, -1] and facts["static"]["best_share_final"] == 0.0


def test_figures_say_what_was_chosen_on_what(facts: dict) -> None:
    reported, tuned = facts["reported_on"], facts["tuned_on"]
    assert facts["held_out"] and reported["seeds"] == [0, 1] and reported["steps"] == 8000
    assert reported["sha256"] != tuned["sha256"] and not set(reported["seeds"]) & set(tuned["seeds"])
    people = population(seed=0)
    assert not selection.origin(people, [tuned["seeds"][-1]], 100)["held_out"]
    assert not selection.origin(dataclasses.replace(people, sha256=tuned["sha256"]), [0], 100)["held_out"]


def test_the_texts_that_defaults_were_chosen_on_are_those() -> None:
    path = TRACES / tuning.ADOPTED["source"]
    if not path.exists():
        pytest.skip("no public data here: CWD_DATA is not set and ../shared/traces is not there")
    assert digest_of(*read_texts(path)) == tuning.ADOPTED["sha256"]


def test_spreads_are_of_the_streams(facts: dict) -> None:
    """Each stream is a run of its own with the next seed; means and spreads are of those."""
    apart = [selection.run(steps=8000, streams=1, seed=seed) for seed in (0, 1)]
    for name in selection.POLICIES:
        regrets = [one[name]["regret"] for one in apart]
        assert facts[name]["regret"] == pytest.approx(np.mean(regrets))
        assert facts[name]["spread"]["regret"] == [min(regrets), max(regrets)] and regrets[0] != regrets[1]
        assert facts["curves"]["lowest"][name][-1] == min(regrets) and facts["curves"]["highest"][name][-1] == max(regrets)


def test_tuning_takes_the_least_regret_of_its_grid() -> None:
    found = tuning.run(steps=100, streams=2)
    assert found["seeds"] == [1000, 1001] and found == tuning.run(steps=100, streams=2)
    for name, grid in tuning.GRID.items():
        rows = found[name]["grid"]
        assert {tuple(row[word] for word in grid) for row in rows} == set(product(*grid.values())) and len(rows) == prod(
            map(len, grid.values()))
        assert rows[0]["regret"] == min(row["regret"] for row in rows)
        assert found[name]["best"] == {word: rows[0][word] for word in grid}
        # the defaults are of the grid, and those with which the policy is made
        assert found[name]["defaults"] in [{word: row[word] for word in grid} for row in rows]
        assert found[name]["defaults_are_best"] == (found[name]["best"] == found[name]["defaults"])
    people = population()
    assert all(selection.policy_of(name, people) == make_policy(name) for name in selection.POLICIES if name != "static")
    assert all(make_policy(name) == make_policy(name, found[name]["defaults"]) for name in tuning.GRID)


def test_streams_for_tuning_have_both_kinds_of_change() -> None:
    for seed in (1000, 1001, 1002, 1003):
        people, stream = tuning.drawn_stream("", 1000, seed)
        before, after = people.accuracies, people.later_accuracies
        (changed,) = np.flatnonzero(before != after)
        if seed % 2:
            assert changed == before.argmin() and changed == after.argmax()
        else:
            assert changed == before.argmax() and changed == after.argmin()
        assert 250 <= stream.changes_at <= 750 and before.argmax() != after.argmax()


def test_what_cannot_be_played_is_one_clear_error() -> None:
    for wrong in ({"streams": 0}, {"steps": 5}):
        for bench in (selection, tuning):
            with pytest.raises(CwdError):
                bench.run(**wrong)


def test_equal_seeds_give_equal_facts_and_curves(facts: dict) -> None:
    again = selection.run(steps=600, streams=2, seed=3)
    assert again == selection.run(steps=600, streams=2, seed=3) != selection.run(steps=600, streams=2, seed=4)
    json.dumps(facts, allow_nan=False)
    curves = facts["curves"]
    assert set(curves["regret"]) == {*selection.POLICIES, "oracle"}
    assert all(len(curve) == len(curves["steps"]) for curve in curves["regret"].values())
    assert curves["steps"][-1] == facts["steps"] and set(curves["regret"]["oracle"]) == {0.0}
    assert curves["regret"]["exp3"][-1] == pytest.approx(facts["exp3"]["regret"])


def test_students_are_as_good_as_they_are_said_to_be() -> None:
    people = population(seed=2)
    assert people.accuracies == pytest.approx(WANTED, abs=0.01)
    best = int(np.argmax(WANTED))
    assert people.later_accuracies[best] == pytest.approx(DEGRADED, abs=0.01)
    assert np.delete(people.later_accuracies, best).tolist() == np.delete(people.accuracies, best).tolist()
    # no class is so common that naming it always would be a good student
    assert np.bincount(people.labels).max() < 0.3 * len(people.labels)


def test_texts_are_read_and_empty_ones_dropped(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    np.savez(path, ids=np.array([101, 7, 102, 101, 102, 101, 8, 9, 102], np.uint16), offsets=np.array([0, 3, 5, 9]))
    ids, offsets = read_texts(path)
    assert ids.tolist() == [101, 7, 102, 101, 8, 9, 102] and offsets.tolist() == [0, 3, 7]
    with pytest.raises(CwdError, match="accuracies need"):
        population(str(path))


def test_what_is_no_file_of_texts_is_one_clear_error(tmp_path: Path) -> None:
    bad = {name: tmp_path / f"{name}.npz" for name in ("misfit", "none", "empty", "no_zip", "half", "array", "missing")}
    np.savez(bad["misfit"], ids=np.array([1, 2]), offsets=np.array([0, 5]))
    np.savez(bad["none"], ids=np.array([], int), offsets=np.array([0]))
    bad["empty"].write_bytes(b"")
    bad["no_zip"].write_bytes(b"PK\x03\x04 and then nothing of the kind")
    bad["half"].write_bytes(bad["misfit"].read_bytes()[:60])
    with bad["array"].open("wb") as file:
        np.save(file, np.arange(5))
    for path in bad.values():
        with pytest.raises(CwdError):
            read_texts(path)


def test_the_picture_is_written(facts: dict, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from cwd.bench.regret import draw

    draw(tmp_path / "curves.png", facts)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CwdError):
        draw(tmp_path / "no" / "folder.png", facts)


def test_recovery_is_where_a_good_window_begins() -> None:
    losses = np.concatenate([np.ones(300), np.zeros(700)])
    assert selection.recovery(losses, 0.0) == 300 and selection.recovery(losses, 0.5) == 50
    assert selection.recovery(np.ones(900), 0.5) == -1


def test_curves_are_one_short_line_for_people(facts: dict) -> None:
    lines = lines_of(facts)
    assert "    exp3: 100 values from" in "\n".join(lines) and max(map(len, lines)) < 120
    assert "models: [" in "\n".join(lines)
