"""The closed loop: a known service time gives a known rate, and nothing at all is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reply_server import ReplyServer

from cwd.errors import Code, CwdError
from cwd.workload.arrivals import ARRIVAL
from cwd.workload.capacity import measure_capacity
from cwd.workload.lengths import synthetic_texts


def mix(count: int) -> np.ndarray:
    rows = np.zeros(count, ARRIVAL)
    rows["length"] = -1
    return rows


def test_rate_is_what_little_s_law_says(tmp_path: Path) -> None:
    with ReplyServer(str(tmp_path / "s"), lambda index: (Code.OK, 0.2, False)) as server:
        found = measure_capacity(server.endpoint, ["m"], mix(7), synthetic_texts(), in_flight=8, warm_s=0.3, seconds=3.0)
    assert found.unanswered == 0
    # 8 in flight for 200 ms each are 40 a second, one more round at an edge; the stand-in and a busy machine add to the 200 ms
    assert 20 < found.rps <= 8 * 16 / 3.0


def test_refusals_do_not_count_and_do_not_spin(tmp_path: Path) -> None:
    with ReplyServer(str(tmp_path / "s"), lambda index: (Code.QUEUE_FULL, 0.0, False)) as server:
        with pytest.raises(CwdError, match="no request was answered"):
            measure_capacity(server.endpoint, ["m"], mix(7), synthetic_texts(), in_flight=2, warm_s=0.1, seconds=0.5)
        assert len(server.seen) < 2 * 0.6 / 0.005 + 10
