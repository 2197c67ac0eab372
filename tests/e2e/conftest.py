"""What tests of whole systems share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cwd import LocalCluster
from cwd.models import profile
from cwd.models.importers import add_zoo
from cwd.models.repository import Repository
from cwd.units import NS_PER_MS
from cwd.workload.arrivals import Shaping, schedule
from cwd.workload.lengths import synthetic_texts
from cwd.workload.outcome import summary
from cwd.workload.replay import replay
from cwd.workload.synthetic import synthetic_trace

PAGE_BYTES = 64 << 10


@pytest.fixture(scope="session")
def strained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int], np.ndarray]:
    """(log, the client's counts, its rows) of an emulated GPU at twice its capacity, with a table and SLOs that are too small."""
    folder = tmp_path_factory.mktemp("strained")
    repository = Repository(folder / "models", create=True)
    entries = add_zoo(repository, "m", "mlp", seed=1, copies=12)
    program = entries[0].manifest.program_hash
    # 4 ms alone, 11 ms for eight: 727 requests/s at the most; a load takes as long as two executions
    table = {(batch, 0): (3 + batch) * NS_PER_MS for batch in entries[0].manifest.batch_sizes}
    profile.write_table(repository, program, "emulated", table, load_ns_per_page=8 * NS_PER_MS, page_bytes=PAGE_BYTES)
    trace = synthetic_trace(functions=40, minutes=1, per_second=1200 / 8, seed=3)
    arrivals = schedule(trace, len(entries), Shaping(speed=8, seed=3))
    slo_ns = [60 * NS_PER_MS, 60 * NS_PER_MS, 2 * NS_PER_MS, *[60 * NS_PER_MS] * 4, *[25 * NS_PER_MS] * 5]
    with LocalCluster(folder / "models", device="emulated:1", pool=4 * PAGE_BYTES, page=PAGE_BYTES, timeout=600,
                      controller={"state_dir": str(folder / "state"), "requests_max": 64}) as cluster:
        names = [entry.manifest.key for entry in entries]
        cluster.wait_servable(*names)
        rows, _ = replay(cluster.endpoint(), names, arrivals, slo_ns, synthetic_texts())
    facts = summary(rows)
    assert facts["offered"] == sum(facts[name] for name in ("answered_in_time", "late", "refused", "failed"))
    return folder / "state", facts["refused_by"], rows
