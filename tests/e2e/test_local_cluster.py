"""A whole cluster through its public face: requests, refusals, the command line, and what is left after a crash."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import cwd
from cwd.cli.main import run
from cwd.errors import Code

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

EXEC_NS = 4_000_000


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """Two identities and an mlp; emulated devices take 4 ms for a batch of one, and a quarter more for each row."""
    from cwd.models import profile
    from cwd.models.importers import add_zoo
    from cwd.models.repository import Repository

    repo = Repository(tmp_path_factory.mktemp("models") / "models", create=True)
    entries = add_zoo(repo, "same", "identity", copies=2) + add_zoo(repo, "mlp", "mlp", seed=3)
    for entry in (entries[0], entries[2]):
        program = entry.manifest.program_hash
        times = {pair: EXEC_NS + EXEC_NS * (pair[0] - 1) // 4 for pair in profile.pairs(entry.manifest.program)}
        profile.write_table(repo, program, "emulated", times, load_ns_per_page=1_000_000)
        profile.measure_cpu(repo, entry, budget_ns=300_000_000)
    return repo


@pytest.fixture(scope="module")
def emulated(repository):
    with cwd.LocalCluster(repository.root, device="emulated:2", pool="8MiB") as cluster:
        cluster.wait_servable()
        yield cluster


@pytest.fixture(scope="module")
def real(repository):
    with cwd.LocalCluster(repository.root, device="cpu", pool="8MiB") as cluster:
        cluster.wait_servable()
        yield cluster


BYTE = np.array([7], np.uint8)


def test_emulated_answers_and_refusals(emulated):
    assert len(emulated.status()["workers"]) == 2
    with pytest.raises(cwd.CwdError, match=r"not servable after 0\.1 s: nobody \(.*no model nobody is registered"):
        emulated.wait_servable("mlp", "nobody", timeout=0.1)
    with emulated.client() as client:
        assert set(client.models()) == {"same-000/1", "same-001/1", "mlp/1"}
        result = client.infer("same-000", BYTE, "20s")
        assert result.output.shape == (1,) and result.cold and result.exec_ns >= EXEC_NS
        assert not client.infer("same-000", BYTE, "20s").cold
        with pytest.raises(cwd.SloBelowExecution):
            client.infer("same-000", BYTE, "1ms")
        with pytest.raises(cwd.UnknownModel):
            client.infer("nosuch", BYTE, "1s")
        with pytest.raises(cwd.BadRequest) as caught:
            client.infer("same-000", BYTE, "50h")
        assert caught.value.code == Code.BAD_SLO


def test_emulated_batches_many_in_flight(emulated):
    with emulated.client() as client:
        client.infer("same-001", BYTE, "20s")
        pendings = [client.submit("same-001", BYTE, "20s") for _ in range(100)]
        results = [pending.result() for pending in cwd.as_completed(pendings, timeout=60)]
    assert len(results) == 100 and max(result.batch for result in results) > 1
    assert all(result.total_ns <= 20_000_000_000 for result in results)


def test_real_outputs_are_the_modules(real):
    import torch

    from cwd.models.program import build_module
    from cwd.models.repository import Repository
    from cwd.models.zoo import make_weights

    with real.client() as client:
        assert client.infer("same-000", BYTE, "20s").output[0] == 7
        entry = Repository(real.children[0].arguments[real.children[0].arguments.index("--repository") + 1]).get("mlp")
        spec = entry.manifest.program
        module = build_module(spec.factory, spec.args, trusted=False)
        weights = make_weights(module, 3)
        module = module.to_empty(device="cpu")
        module.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
        rows = np.random.default_rng(1).standard_normal((20, 16)).astype("f4")
        pendings = [client.submit("mlp", row, "20s") for row in rows]
        found = np.stack([pending.result().output for pending in pendings])
    with torch.inference_mode():
        wanted = module(torch.from_numpy(rows)).numpy()
    assert np.abs(found - wanted).max() < 1e-5


def test_asyncio_client(real):
    import asyncio

    async def main():
        async with real.async_client(slo="20s") as client:
            results = await asyncio.gather(*(client.infer("same-001", np.array([i], "u1")) for i in range(50)))
            return [int(result.output[0]) for result in results]

    assert asyncio.run(main()) == list(range(50))


def test_command_line_against_a_cluster(real, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("CWD_RUN_DIR", str(real.folder))
    np.save(tmp_path / "x.npy", BYTE)
    assert run(["infer", "same-000", "--input", str(tmp_path / "x.npy"), "--slo", "20s", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert facts["outputs"] == {"y": {"dtype": "uint8", "shape": [1], "data": [7]}} and facts["batch"] == 1
    (tmp_path / "x.json").write_text("[9]")
    assert run(["infer", "same-000/1", "-i", str(tmp_path / "x.json"), "--slo", "20s", "-o",
                str(tmp_path / "y.npz")]) == 0
    assert "round trip" in capfd.readouterr().out and np.load(tmp_path / "y.npz")["y"][0] == 9
    assert run(["infer", "same-000", "-i", str(tmp_path / "x.npy"), "--slo", "1us"]) == 1
    assert capfd.readouterr().err.startswith("cwd: error: same-000: ")
    assert run(["status", "--json"]) == 0
    status = json.loads(capfd.readouterr().out)
    assert status["models"] == 3 and list(status["workers"]) == ["0"]
    assert run(["status"]) == 0 and "3 models, 1 workers" in capfd.readouterr().out


def test_models_come_and_go_while_serving(real, capfd, monkeypatch):
    monkeypatch.setenv("CWD_RUN_DIR", str(real.folder))
    arguments = real.children[0].arguments
    repository = arguments[arguments.index("--repository") + 1]
    with real.client() as client:
        client.infer("same-000", BYTE, "20s")
        assert run(["model", "add", "late", "--zoo", "identity", "-r", repository, "--live", "--json"]) == 0
        real.wait_servable("late")
        assert client.infer("late", BYTE, "20s").output[0] == 7
        assert run(["model", "rm", "late", "-r", repository, "--live", "--json"]) == 0
        with pytest.raises(cwd.UnknownModel):
            client.infer("late", BYTE, "20s")
        client.infer("same-000", BYTE, "20s")
    capfd.readouterr()


def test_killed_controller_is_found_again(emulated):
    with emulated.client() as client:
        client.infer("same-000", BYTE, "20s")
        emulated.kill_controller()
        with pytest.raises(cwd.ControllerLost):
            client.infer("same-000", BYTE, "100ms")
        began = time.monotonic()
        emulated.restart_controller()
        while True:
            try:
                client.infer("same-000", BYTE, "1s")
                break
            except cwd.RequestError:
                assert time.monotonic() - began < 120
        # its pages are what they were: the restarted controller knows what is resident
        assert not client.infer("same-000", BYTE, "20s").cold


def test_killed_worker_is_said_and_comes_back(emulated):
    with emulated.client() as client:
        client.infer("same-000", BYTE, "20s")
        pendings = [client.submit("same-000", BYTE, "3s") for _ in range(200)]
        emulated.kill_worker()
        for pending in pendings:
            error = pending.exception(timeout=40)
            assert error is None or isinstance(error, cwd.Refused | cwd.DeadlineMissed), error
        with pytest.raises(cwd.Refused):
            client.infer("same-000", BYTE, "20s")
        emulated.restart_worker()
        emulated.wait_servable()
        assert client.infer("same-000", BYTE, "20s").cold


def test_a_worker_that_ends_is_started_again_unless_it_keeps_ending(emulated):
    assert emulated.mend() == []
    for _ in range(3):
        emulated.kill_worker()
        (text,) = emulated.mend()
        assert text.startswith("worker-0 ended by signal 9")
    with emulated.client() as client:
        assert served_within(client, 120)
    emulated.kill_worker()
    with pytest.raises(cwd.CwdError, match="worker-0 ended"):
        emulated.mend()
    emulated.restart_worker()


def test_gpus_that_are_not_there(tmp_path):
    (tmp_path / "models").mkdir()
    if not torch.cuda.is_available():
        with pytest.raises(cwd.CwdError, match="no GPU"):
            cwd.LocalCluster(tmp_path / "models", device="cuda")
        with pytest.raises(cwd.CwdError, match="worker-0 ended with code 1: .*no cuda:0"):
            cwd.LocalCluster(tmp_path / "models", device="cuda:0").start()


def test_a_daemon_that_dies_says_why(tmp_path):
    (tmp_path / "models").mkdir()
    with pytest.raises(cwd.CwdError, match="worker-0 ended with code 1: .*emulated GPUs"):
        cwd.LocalCluster(tmp_path / "models", device="emulated:99999").start()
    with pytest.raises(cwd.CwdError, match="controller ended with code 1.*slo_max"):
        cwd.LocalCluster(tmp_path / "models", controller={"slo_max": "soon"}, workers=0).start()


def test_nothing_outlives_a_killed_parent(tmp_path):
    (tmp_path / "models").mkdir()
    code = f"""
import time, cwd
cluster = cwd.LocalCluster({str(tmp_path / "models")!r}, device="emulated:1", folder={str(tmp_path / "run")!r})
cluster.start()
print(*[child.pid for child in cluster.children], flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(alive(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < until, "a daemon outlived its parent"
        time.sleep(0.05)


def test_up_serves_until_it_is_stopped(repository, tmp_path):
    environment = {**os.environ, "CWD_RUN_DIR": str(tmp_path / "run"), "CWD_STATE_DIR": str(tmp_path / "state")}
    up = subprocess.Popen([sys.executable, "-m", "cwd", "up", "-r", str(repository.root), "--device", "emulated:1"],
                          env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for line in up.stderr:
            if line.startswith("ready"):
                break
        else:
            pytest.fail("cwd up ended")
        with cwd.Client(f"ipc://{tmp_path}/run/clients.sock") as client:
            assert "mlp/1" in client.models()
        up.send_signal(signal.SIGINT)
        assert up.wait(60) == 0
        assert "Traceback" not in up.stderr.read()
    finally:
        up.kill()
        up.stderr.close()


def served_within(client, seconds):
    """Ask again and again while nobody can answer."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            return client.infer("same-000", BYTE, "1s")
        except cwd.RequestError:
            time.sleep(0.05)
    return None


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
