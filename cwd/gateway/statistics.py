"""Counts and times of what went through this gateway, per model version, in the protocol's form.

Requests that reach the controller by other ways are not in them. What the protocol calls `queue` is the wait for the
device, `compute_infer` the execution; `compute_input` and `compute_output` are this gateway's reading of tensors and
writing of answers; the rest of `success` went by in transport.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from cwd.client import Result
from cwd.units import NS_PER_MS

_SUB_BITS = 4


class Histogram:
    """Durations in buckets of a sixteenth of an octave: quantiles to about 6 %, in fixed memory."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self.total = 0

    def add(self, duration_ns: int) -> None:
        self._counts[bucket_of(max(duration_ns, 0))] += 1
        self.total += 1

    def quantile_ns(self, point: float) -> int | None:
        """The upper edge of the bucket that holds it; None while empty."""
        rank = point * self.total
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return edge_ns(bucket + 1)
        return None


def bucket_of(duration_ns: int) -> int:
    shift = max(duration_ns.bit_length() - 1 - _SUB_BITS, 0)
    return (shift << _SUB_BITS) + (duration_ns >> shift)


def edge_ns(bucket: int) -> int:
    """Where a bucket begins."""
    shift = max((bucket >> _SUB_BITS) - 1, 0)
    return (bucket - (shift << _SUB_BITS)) << shift


class _Batch:
    """Executions of one batch size: how many requests came from them, and sums over those."""

    __slots__ = ("requests", "exec_ns", "input_ns", "output_ns")

    def __init__(self) -> None:
        self.requests = self.exec_ns = self.input_ns = self.output_ns = 0


class Totals:
    """Of all models, those that are gone included: nothing here ever gets less."""

    def __init__(self) -> None:
        self.models = self.apps = self.cold = self.cancelled = 0
        #: codes of the requests that failed
        self.codes: Counter[str] = Counter()


class ModelStatistics:
    """What became of one model's requests."""

    def __init__(self, totals: Totals | None = None) -> None:
        self._totals = totals or Totals()
        self.success = self.success_ns = self.fail = self.fail_ns = self.cancel = self.cancel_ns = 0
        self.queue_ns = self.load_ns = self.exec_ns = self.input_ns = self.output_ns = 0
        self.cold = 0
        #: of apps: members' answers that cost no execution, and those that did
        self.cache_hit = self.cache_miss = 0
        self.last_ms = 0
        #: codes of the requests that failed
        self.codes: Counter[str] = Counter()
        self.latency = Histogram()
        self._batches: dict[int, _Batch] = {}

    def answered(self, result: Result, duration_ns: int, input_ns: int, output_ns: int) -> None:
        """A request was answered in time; `duration_ns` is all of its time here."""
        self._totals.models += 1
        self._totals.cold += result.cold
        self.success += 1
        self.success_ns += duration_ns
        self.queue_ns += result.queued_ns
        self.load_ns += result.load_ns
        self.exec_ns += result.exec_ns
        self.input_ns += input_ns
        self.output_ns += output_ns
        self.cold += result.cold
        self.last_ms = time.time_ns() // NS_PER_MS
        self.latency.add(duration_ns)
        batch = self._batches.get(result.batch) or self._batches.setdefault(result.batch, _Batch())
        batch.requests += 1
        batch.exec_ns += result.exec_ns
        batch.input_ns += input_ns
        batch.output_ns += output_ns

    def answered_by_app(self, duration_ns: int, hits: int, misses: int) -> None:
        """An app answered; its members' executions are counted with the models."""
        self._totals.apps += 1
        self.success += 1
        self.success_ns += duration_ns
        self.cache_hit += hits
        self.cache_miss += misses
        self.last_ms = time.time_ns() // NS_PER_MS
        self.latency.add(duration_ns)

    def failed(self, code: str, duration_ns: int) -> None:
        self.fail += 1
        self.fail_ns += duration_ns
        self.codes[code] += 1
        self._totals.codes[code] += 1

    def cancelled(self, duration_ns: int) -> None:
        """The client hung up."""
        self._totals.cancelled += 1
        self.cancel += 1
        self.cancel_ns += duration_ns

    @property
    def executions(self) -> int:
        """How many executions the answers came from: exact where all requests of a batch came through here."""
        return sum(-(-batch.requests // size) for size, batch in self._batches.items() if size)

    def report(self, name: str, version: int) -> dict[str, Any]:
        """One entry of `model_stats`."""
        ok = self.success
        sums = {"success": (ok, self.success_ns), "fail": (self.fail, self.fail_ns), "queue": (ok, self.queue_ns),
                "compute_input": (ok, self.input_ns), "compute_infer": (ok, self.exec_ns),
                "compute_output": (ok, self.output_ns), "cache_hit": (self.cache_hit, 0), "cache_miss": (self.cache_miss, 0),
                "cancel": (self.cancel, self.cancel_ns)}
        batches = []
        for size, batch in sorted(self._batches.items()):
            count = -(-batch.requests // max(size, 1))
            # every request of a batch reports the whole execution
            batches.append({"batch_size": size, "compute_input": _duration(count, batch.input_ns),
                            "compute_infer": _duration(count, batch.exec_ns // max(size, 1)),
                            "compute_output": _duration(count, batch.output_ns)})
        return {"name": name, "version": str(version), "last_inference": self.last_ms, "inference_count": ok,
                "execution_count": self.executions,
                "inference_stats": {key: _duration(*pair) for key, pair in sums.items()}, "batch_stats": batches}


def _duration(count: int, total_ns: int) -> dict[str, int]:
    return {"count": count, "ns": total_ns}


class Statistics:
    """All models' statistics, by (name, version)."""

    def __init__(self) -> None:
        self.models: dict[tuple[str, int], ModelStatistics] = {}
        self.totals = Totals()
        #: requests that named no model which is there, by code
        self.strays: Counter[str] = Counter()

    def of(self, name: str, version: int) -> ModelStatistics:
        return self.models.get((name, version)) or self.models.setdefault((name, version), ModelStatistics(self.totals))

    def report(self, name: str, version: int) -> dict[str, Any]:
        """The entry of one model; zeros where nothing was asked of it."""
        return (self.models.get((name, version)) or ModelStatistics()).report(name, version)

    def forget_all_but(self, known: set[tuple[str, int]]) -> None:
        """Drop models that are gone, so that this cannot grow without end."""
        for key in [key for key in self.models if key not in known]:
            del self.models[key]
