"""Profiles: measured on the CPU, given for emulation, and refused when they do not cover the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cwd.errors import Code, RepositoryError
from cwd.models import importers, profile
from cwd.models.repository import Entry, Repository
from cwd.units import NS_PER_S


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    return importers.add_zoo(Repository(tmp_path), "mlp", "mlp", copies=1)[0]


def test_measuring_covers_every_batch_and_is_stored(tmp_path: Path, entry: Entry) -> None:
    repository, program_hash = Repository(tmp_path), entry.manifest.program_hash
    with pytest.raises(RepositoryError) as caught:
        profile.read(repository, program_hash, "cpu")
    assert caught.value.code == Code.NOT_PROFILED
    seen: list[tuple[int, int]] = []
    value = profile.measure_cpu(repository, entry, repeats=9, budget_ns=600 * NS_PER_S, page_bytes=4096,
                                progress=lambda done, total, text: seen.append((done, total)))
    assert seen == [(done, 4) for done in range(5)]
    assert profile.read(Repository(tmp_path), program_hash, "cpu") == value
    assert [(row["batch"], row["size_class"]) for row in value["exec"]] == [(1, 0), (2, 0), (4, 0), (8, 0)]
    for row in value["exec"]:
        assert 0 < row["median_ns"] <= row["p99_ns"] <= row["max_ns"]
        assert row["repeats"] == 9
    assert value["load_ns_per_page"] > 0
    assert value["torch"]
    assert value["device"]


def test_a_spent_budget_still_measures_each_a_few_times(tmp_path: Path, entry: Entry) -> None:
    value = profile.measure_cpu(Repository(tmp_path), entry, repeats=1000, budget_ns=0, page_bytes=4096)
    assert [row["repeats"] for row in value["exec"]] == [profile.REPEATS_MIN] * 4


def test_a_given_table(tmp_path: Path, entry: Entry) -> None:
    repository, program_hash = Repository(tmp_path), entry.manifest.program_hash
    table = {(batch, 0): 1_000_000 * batch for batch in (1, 2, 4, 8)}
    profile.write_table(repository, program_hash, "emulated", table, load_ns_per_page=300_000)
    value = profile.read(repository, program_hash, "emulated")
    assert profile.exec_ns(value, 4, 0) == 4_000_000
    assert value["load_ns_per_page"] == 300_000
    del table[2, 0]
    with pytest.raises(RepositoryError, match=r"\(2, 0\)"):
        profile.write_table(repository, program_hash, "emulated", table, load_ns_per_page=300_000)


@pytest.mark.parametrize(("change", "words"), [
    ({"exec": []}, "no row for"), ({"exec": [{"batch": 1}]}, "wanted integers"),
    ({"load_ns_per_page": None}, "load_ns"), ({"page_bytes": 0}, "page_bytes"), ({"page_bytes": "1MiB"}, "page_bytes"),
    ({"exec": [{"batch": 1, "size_class": 0, "median_ns": 0, "p99_ns": 1, "max_ns": 1}]}, "wanted integers"),
])
def test_a_damaged_profile_is_named(tmp_path: Path, entry: Entry, change: dict[str, object], words: str) -> None:
    repository, program_hash = Repository(tmp_path), entry.manifest.program_hash
    table = {(batch, 0): 1000 for batch in (1, 2, 4, 8)}
    value = profile.write_table(repository, program_hash, "emulated", table, load_ns_per_page=1)
    path = repository.profile_path(program_hash, "emulated")
    path.write_text(json.dumps({**value, **change}))
    with pytest.raises(RepositoryError, match=words) as caught:
        profile.read(repository, program_hash, "emulated")
    assert str(path) in str(caught.value)


def test_statistics_are_samples() -> None:
    assert profile.statistics([5, 1, 3]) == {"median_ns": 3, "p99_ns": 5, "max_ns": 5}
    assert profile.statistics(list(range(1, 1001))) == {"median_ns": 500, "p99_ns": 991, "max_ns": 1000}
    assert profile.statistics([7]) == {"median_ns": 7, "p99_ns": 7, "max_ns": 7}
