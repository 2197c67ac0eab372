"""A minute of `tools/chaos`: every kind of fault once, on hosts of its own, and every promise kept."""

import pytest

from tools.chaos_run.__main__ import Run, missing
from tools.chaos_run.schedule import Kind

pytest.importorskip("torch")
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
def test_a_minute_of_every_fault(tmp_path):
    facts = Run(tmp_path / "c", seed=1, seconds=60.0).run()
    assert {fault["kind"] for fault in facts["faults"]} == set(Kind) - {Kind.KILL_ETCD}
    assert facts["broken"] == [], "\n".join([*facts["broken"], str(facts)])
    assert all(fault["recovered_s"] <= 5.0 for fault in facts["faults"])
    assert [fault["failover_s"] <= 3.0 for fault in facts["faults"] if fault["kind"] == Kind.KILL_LEADER] == [True]
    assert all(fault["cut"] > 0 for fault in facts["faults"] if fault["kind"] in (Kind.CUT, Kind.CUT_SILENT)), facts["faults"]
    assert min(facts["totals"][name]["OK"] for name in ("native", "http")) > 3000, facts["totals"]
    assert (tmp_path / "c" / "chaos.png").stat().st_size > 10_000
