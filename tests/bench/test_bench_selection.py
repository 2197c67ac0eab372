"""`cwd bench selection` in small: what issues and README claim of it, on made-up texts and with fixed seeds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cwd.bench import selection
from cwd.bench.students import DEGRADED, WANTED, population, read_texts
from cwd.errors import CwdError


@pytest.fixture(scope="module")
def facts() -> dict:
    return selection.run(steps=8000, streams=1)


def test_exp3_and_exp4_find_the_best_and_recover(facts: dict) -> None:
    assert facts["exp3"]["best_share_before"] > 0.85 and facts["exp3"]["best_share_final"] > 0.8
    assert facts["exp4"]["accuracy"] >= facts["best_member_accuracy"]
    for half, best in (("before", max(facts["models"])), ("after", max(facts["models_degraded"]))):
        assert facts["exp4"][f"accuracy_{half}"] > best - 0.02
    for name in ("exp3", "exp4"):
        assert all(0 <= steps < 1500 for steps in facts[name]["recovery_steps"])
        assert facts[name]["regret"] < 0.25 * facts["static"]["regret"]
    assert facts["static"]["recovery_steps"] == [-1] and facts["static"]["best_share_final"] == 0.0


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
    assert people.degraded_accuracies[best] == pytest.approx(DEGRADED, abs=0.01)
    assert np.delete(people.degraded_accuracies, best).tolist() == np.delete(people.accuracies, best).tolist()
    # no class is so common that naming it always would be a good student
    assert np.bincount(people.labels).max() < 0.3 * len(people.labels)


def test_texts_are_read_and_empty_ones_dropped(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    np.savez(path, ids=np.array([101, 7, 102, 101, 102, 101, 8, 9, 102], np.uint16), offsets=np.array([0, 3, 5, 9]))
    ids, offsets = read_texts(path)
    assert ids.tolist() == [101, 7, 102, 101, 8, 9, 102] and offsets.tolist() == [0, 3, 7]
    np.savez(path, ids=np.array([1, 2]), offsets=np.array([0, 5]))
    for bad in (path, tmp_path / "missing.npz"):
        with pytest.raises(CwdError):
            read_texts(bad)


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
