"""tools/minimal_client.py, written from the specification alone, gets a correct answer from a real cluster."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cwd.cluster import LocalCluster
from cwd.errors import Code

CLIENT = Path(__file__).resolve().parents[2] / "tools" / "minimal_client.py"


@pytest.mark.e2e
def test_minimal_client_against_daemons(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from cwd.models.importers import add_zoo
    from cwd.models.profile import measure_cpu
    from cwd.models.repository import Repository
    from cwd.models.zoo import make_weights, mlp

    repository = Repository(tmp_path / "models", create=True)
    measure_cpu(repository, add_zoo(repository, "m", "mlp", seed=3)[0], repeats=5, page_bytes=1 << 20)
    module = mlp([16, 32, 4])
    module.load_state_dict({name: torch.from_numpy(value) for name, value in make_weights(module, 3).items()})
    spec = importlib.util.spec_from_file_location("minimal_client", CLIENT)
    assert spec is not None and spec.loader is not None
    client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    x = np.random.default_rng(1).standard_normal(16).astype(np.float32)
    with LocalCluster(repository.root, pool="16MiB", page="1MiB") as cluster:
        cluster.wait_servable("m")
        found = client.infer(cluster.endpoint(), "m", {"x": x}, 20_000)["y"]
        with torch.no_grad():
            wanted = module(torch.from_numpy(x)[None])[0].numpy()
        assert np.abs(found - wanted).max() <= 1e-5
        for name, status in (("m", 0), ("nobody", Code.UNKNOWN_MODEL)):
            done = subprocess.run([sys.executable, CLIENT, cluster.endpoint(), name, "20000"], capture_output=True,
                                  text=True, timeout=60)
            assert json.loads(done.stdout)["status"] == status, done.stderr
