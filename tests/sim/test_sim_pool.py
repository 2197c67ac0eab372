"""Sweeps in processes and on a Dask cluster: the same rows, in the same order, with progress; clear errors."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest

from cwd.cli.main import run as cwd
from cwd.errors import CwdError
from cwd.sim import command, compare, pool

HAS_DASK = importlib.util.find_spec("distributed") is not None
needs_dask = pytest.mark.skipif(not HAS_DASK, reason="needs distributed: pip install 'cwd[dask]'")
SWEEP = {"policies": ("fifo", "edf"), "seeds": (3, 4), "experiments": ("fig5", "soak"), "quick": True}


@pytest.fixture
def scheduler():
    """The address of a cluster of two worker processes of this machine."""
    import distributed

    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def _fail(number: int) -> int:
    if number == 1:
        raise CwdError(f"number {number} is bad")
    return number * number


def test_parts_make_up_the_whole():
    whole = command.run("fig5", "fifo", 3, quick=True)["rows"]
    count = command.count_points("fig5", quick=True)
    parts = [command.run("fig5", "fifo", 3, part=part, quick=True)["rows"] for part in range(count)]
    assert count > 1 and sum(parts, []) == whole


def test_jobs_in_processes():
    assert dict(pool.each(_fail, [(2,), (3,), (4,)], processes=2)) == {(2,): 4, (3,): 9, (4,): 16}
    with pytest.raises(CwdError, match="number 1 is bad"):
        list(pool.each(_fail, [(number,) for number in range(4)], processes=1))


def test_the_longest_points_are_played_first(monkeypatch):
    """Whatever the order of the rows; and each is played once."""
    played = []

    def each(function, jobs, processes, dask):
        played.extend(jobs)
        return [(job, function(*job)) for job in jobs]

    monkeypatch.setattr(compare, "each", each)
    monkeypatch.setattr(compare, "run", lambda experiment, policy, seed, part, **_: {"rows": [{"part": part}]})
    monkeypatch.setattr(compare, "table", lambda rows, policies: [])
    facts = compare.compare(policies=("fifo", "edf"), experiments=("fig5", "scale", "overload"), quick=True)
    sizes = [command.gpu_seconds(job[0], quick=True)[job[3]] for job in played]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > sizes[-1]
    names = [row["experiment"] for row in facts["rows"]]
    assert names == sorted(names, key=("fig5", "scale", "overload").index) != [job[0] for job in played]
    assert len(set(played)) == len(played) == len(facts["rows"])


def test_without_distributed_it_says_what_to_install(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cwd(["sim", "compare", "--quick", "--experiment", "fig5", "--policy", "fifo", "--dask", "tcp://127.0.0.1:1"]) != 0
    out, err = capfd.readouterr()
    assert out == "" and err.splitlines()[-1] == "cwd: error: a Dask cluster needs distributed: pip install 'cwd[dask]'"


@needs_dask
def test_no_scheduler_there_is_one_line(monkeypatch):
    monkeypatch.setattr(pool, "CONNECT_S", 0.5)
    with pytest.raises(CwdError, match="no Dask scheduler at tcp://127.0.0.1:9"):
        list(pool.each(_fail, [(2,)], dask="tcp://127.0.0.1:9"))


@needs_dask
@pytest.mark.slow
def test_a_cluster_gives_the_same_rows_as_processes(scheduler, capfd):
    told: dict[str, list[tuple[int, int]]] = {"": [], scheduler: []}
    facts = {address: compare.compare(**SWEEP, processes=2, dask=address,
                                      progress=lambda done, total, what, address=address: told[address].append((done, total)))
             for address in told}
    assert facts[""] == facts[scheduler] and len(facts[""]["rows"]) > 8
    total = sum(4 * command.count_points(name, quick=True) for name in SWEEP["experiments"])
    assert told[""] == told[scheduler] == [(done, total) for done in range(1, total + 1)]
    assert cwd(["sim", "compare", "--quick", "--experiment", "fig5", "--policy", "fifo", "--seed", "3", "--dask", scheduler,
                "--json"]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["rows"] == [row for row in facts[""]["rows"] if row["experiment"] == "fig5"
                                       and row["policy"] == "fifo" and row["seed"] == 3]
    assert f"{command.count_points('fig5', quick=True)}/" in err
    with pytest.raises(CwdError, match="number 1 is bad"):
        list(pool.each(_fail, [(number,) for number in range(4)], dask=scheduler))
