"""Controller, workers, client and gateway on hosts of their own, over tcp with keys: answers are right and in time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rack import EXEC_NS, HTTP, ROOT, Rack, until

from cwd.controller.record import Kind
from cwd.controller.telemetry import events, read_log
from cwd.core.world import ACTION_EXEC
from cwd.units import NS_PER_S

pytestmark = pytest.mark.e2e
ROW = [number / 16 for number in range(16)]


def test_answers_are_right_and_in_time(rack: Rack) -> None:
    visitor = rack.visitor(rack.direct)
    assert visitor.ask("connect") == "READY"
    for shift in range(5):
        row = ROW[shift:] + ROW[:shift]
        found = visitor.ask("infer", model="mlp", values=row, dtype="float32", slo="20s")
        assert np.abs(found - rack.expected_mlp(row)).max() < 1e-5
    visitor.ask("start", rate=100, seconds=1, slo_s=1.0)
    report = visitor.ask("finish")
    assert report["asked"] == len(report["ledger"]) == report["settled"] == 100
    assert {code for code, *_ in report["ledger"]} == {0}
    for _, sent_ns, deadline_ns, done_ns in report["ledger"]:
        assert sent_ns < done_ns <= deadline_ns == sent_ns + NS_PER_S
    visitor.close()


def test_the_gateway_answers_from_its_host(rack: Rack) -> None:
    code = ("import json, sys, urllib.request as r\n"
            "x = {'name': 'x', 'shape': [1, 16], 'datatype': 'FP32', 'data': json.loads(sys.argv[2])}\n"
            "body = json.dumps({'inputs': [x]})\n"
            "ask = r.Request(sys.argv[1], body.encode(), {'Authorization': sys.argv[3]})\n"
            "print(r.urlopen(ask, timeout=20).read().decode())\n")
    url = f"http://{rack.host['front'].address}:{HTTP}/v2/models/mlp/infer"
    asker = rack.host["visitor"].run([sys.executable, "-c", code, url, json.dumps(ROW),
                                      "Bearer a-token-of-more-than-sixteen-characters"], stdout=subprocess.PIPE)
    answer = json.loads(asker.communicate(timeout=30)[0])
    assert np.abs(answer["outputs"][0]["data"] - rack.expected_mlp(ROW)).max() < 1e-5


def test_a_client_without_a_clients_key_gets_nowhere(rack: Rack) -> None:
    code = "import sys, cwd\ntry: cwd.Client(sys.argv[1]).connect(1)\nexcept cwd.ControllerLost as e: print(e)"
    askers = [rack.host["visitor"].run([sys.executable, "-c", code, rack.direct], stdout=subprocess.PIPE, cwd=ROOT,
                                       env={**rack.keys_of(who), "PYTHONPATH": str(ROOT)}) for who in ("nobody", "worker")]
    for asker in askers:
        assert b"no connection to the controller" in asker.communicate(timeout=30)[0]


def test_the_times_in_the_log_make_sense(rack: Rack) -> None:
    """All of them are on the controller's clock, so that what a worker says began after it was asked and ended before we knew."""
    visitor = rack.visitor(rack.direct)
    visitor.ask("start", rate=100, seconds=.5, slo_s=1.0)
    visitor.ask("finish")
    visitor.close()
    error_ns = max(row["clock_error_ns"] for row in rack.worker_rows().values())
    assert 0 < error_ns < NS_PER_S

    def pairs() -> list[tuple[np.void, np.void]]:
        log = read_log(Path(rack.folder / "state"))
        asked = {int(row["action"]): row for row in events(log, Kind.ACTION) if row["action_kind"] == ACTION_EXEC}
        done = [row for row in events(log, Kind.DONE) if row["status"] == 0 and int(row["action"]) in asked]
        return [(asked[int(row["action"])], row) for row in done][-20:]

    found = until(lambda: len(found := pairs()) == 20 and found, "the log holds the executions")
    for asked, done in found:
        assert done["begin_ns"] <= done["end_ns"] <= done["sent_ns"]
        assert done["end_ns"] - done["begin_ns"] >= EXEC_NS or asked["expected_ns"] < EXEC_NS
        assert asked["now_ns"] <= done["begin_ns"] + error_ns and asked["earliest_ns"] <= done["begin_ns"] + error_ns
        assert done["begin_ns"] <= asked["latest_ns"] + error_ns and done["sent_ns"] <= done["now_ns"] + error_ns
