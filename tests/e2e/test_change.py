"""Real processes that change while they serve, by the command line: versions in use, a worker and a controller drained."""

import json

import pytest
from peers import BYTE, PAGE_BYTES, make_repository

import cwd
from cwd.cli.main import run
from cwd.errors import Code

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e


def test_versions_workers_and_the_controller_change_under_load_and_every_request_is_answered(tmp_path, capfd, monkeypatch):
    repository = make_repository(tmp_path / "models", copies=1)
    with cwd.LocalCluster(repository.root, workers=2, device="emulated:1", pool=16 * PAGE_BYTES, page=PAGE_BYTES,
                          timeout=600) as cluster, cluster.client() as client:
        monkeypatch.setenv("CWD_RUN_DIR", str(cluster.folder))
        monkeypatch.setenv("CWD_REPOSITORY", str(repository.root))

        def told(*arguments, code=0):
            """The facts that a command prints."""
            capfd.readouterr()
            assert run([*arguments, "--json"]) == code, capfd.readouterr().err
            out = capfd.readouterr().out
            return json.loads(out) if out else {}

        cluster.wait_servable()
        told("model", "add", "same", "--zoo", "identity", "--version", "2", "--seed", "9", "--no-profile", "--live")
        assert run(["model", "use", "same", "7", "--live"]) == 1
        sent = []

        def ask():
            sent.extend(client.submit("same", BYTE, "20s") for _ in range(50))

        for version, before in ((2, 1), (1, 2), (2, 1)):
            ask()
            facts = told("model", "use", "same", str(version), "--live")
            assert (facts["version"], facts["before"]) == (version, before)
            assert repository.in_use("same") == version
            ask()
        listed = cluster_models(cluster)
        assert listed["same/2"]["in_use"] and listed["same/2"]["copies"] > 0
        ask()
        facts = told("drain", "worker", "0")
        drained = next(child for child in cluster.children if child.name == facts["name"])
        assert facts["gone"] and drained.wait(30) == 0 and drained.ended_well
        ask()
        assert all(pending.result(timeout=60).output.size == 1 for pending in sent)
        assert [len(sent), cluster.mend()] == [400, []], "who was drained is not started again"

        assert told("drain", "controller") == {"draining": True, "queued": 0, "done": True}
        with pytest.raises(cwd.Refused) as caught:
            client.infer("same", BYTE, "5s")
        assert caught.value.code == Code.DRAINING
        told("drain", "controller", "--off")
        client.infer("same", BYTE, "5s")
        assert told("drain", "controller", "--stop")["done"] and cluster.children[0].wait(15) == 0
        assert run(["drain", "worker", "0"]) == 1


def cluster_models(cluster):
    from cwd.client.admin import Admin

    with Admin(cluster.endpoint("admin")) as admin:
        return admin.models()
