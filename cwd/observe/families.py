"""Counts as Prometheus metrics: every name, its help and its labels stand here.

Seconds and bytes, histograms with fixed buckets, so that they can be added up over controllers; names by Prometheus'
rules. Labels are bounded: verdicts and codes are a registry, GPUs and lanes are configured, models are the hottest few
(`hottest.py`). `triton_aliases` adds names of Triton's for dashboards made for it; what they mean is Triton's, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from prometheus_client.core import (
    CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily, UnknownMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cwd.observe.counts import ACTIONS, COLUMN, LANES, Counts
from cwd.observe.histogram import Histogram
from cwd.observe.hottest import Hottest
from cwd.observe.verdicts import OUTCOMES, REPLY_CODES, label_of
from cwd.units import NS_PER_S, NS_PER_US

#: of the loop's counters (`controller.host.STATE`)
LOOP_EVENTS = ("received", "sent", "send_failed", "malformed", "not_introduced", "bad_identity", "stale_epoch", "results_stale",
               "held_full", "peers_gone", "handshake_failed", "key_missing", "key_unknown", "key_revoked", "key_wrong_role",
               "key_turned_out")


class Families(Collector):
    """What a scrape finds. Whoever calls `collect` beside a thread that feeds `counts` holds a lock over both."""

    def __init__(self, counts: Counts, hottest: Hottest, about: dict[str, str], triton_aliases: bool = False) -> None:
        self.counts, self._hottest, self._about, self._aliases = counts, hottest, about, triton_aliases

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("cwd_build", "Version and policy of the controller, and its boot epoch.", self._about)
        yield from self._requests()
        yield from self._durations()
        yield from self._work()
        yield from self._devices()
        series = self._hottest.series()
        yield from self._models(series)
        yield from self._log()
        yield from self._loop()
        if self._aliases:
            yield from self._triton(series)

    def _requests(self) -> Iterator[Metric]:
        counts = self.counts
        yield _counter("cwd_arrivals", "Requests that came.", counts.arrivals)
        verdicts = CounterMetricFamily("cwd_requests", "Replies by verdict: ok is an answer in time, everything else is "
                                       "the reason why there was none.", labels=["verdict"])
        known = {int(code) for code in REPLY_CODES}
        for code in sorted(known | set(map(int, np.flatnonzero(counts.codes)))):
            verdicts.add_metric([label_of(code)], int(counts.codes[code]))
        yield verdicts
        yield _counter("cwd_cold", "Requests answered in time whose weights were on no device when they came.", counts.cold)
        yield _gauge("cwd_requests_in_flight", "Requests that have come and were not answered yet.", len(counts.requests))

    def _durations(self) -> Iterator[Metric]:
        counts = self.counts
        yield _histogram("cwd_request_duration_seconds", "Arrival to reply of requests that were executed.", counts.duration)
        yield _histogram("cwd_request_slo_ratio", "Arrival to reply over the request's SLO, of requests that were executed: "
                         "above 1 is too late.", counts.slo_ratio)
        yield _histogram("cwd_queue_seconds", "Arrival to the start of the execution, weights included.", counts.queue)
        yield _histogram("cwd_refusal_seconds", "Arrival to reply of requests that were not executed.", counts.refusal)

    def _work(self) -> Iterator[Metric]:
        counts = self.counts
        yield _histogram("cwd_exec_seconds", "Duration of executions of a batch.", counts.exec)
        yield _histogram("cwd_load_seconds", "Duration of LOADs of a model's weights.", counts.load)
        yield _histogram("cwd_network_seconds", "A result's way from the worker's send to the controller's receive.",
                         counts.network)
        yield _histogram("cwd_batch_size", "Requests per execution.", counts.batch)
        errors = HistogramMetricFamily(
            "cwd_prediction_error_seconds", "How far a prediction was off: of an execution's and a LOAD's duration, and of "
            "the time from a work's end to its result's arrival, whose prediction is a tail. longer: it took longer.",
            labels=["action", "took"])
        for labels, found in counts.errors.items():
            errors.add_metric(labels, *_buckets(found))
        yield errors
        sent = CounterMetricFamily("cwd_actions_sent", "Actions sent to workers.", labels=["action"])
        done = CounterMetricFamily("cwd_actions_done", "Results of actions, by what they said.", labels=["action", "result"])
        for kind, name in ACTIONS.items():
            sent.add_metric([name], int(counts.sent[kind]))
            for code in sorted({0, *map(int, np.flatnonzero(counts.done[kind]))}):
                done.add_metric([name, label_of(code)], int(counts.done[kind, code]))
        yield from (sent, done)

    def _devices(self) -> Iterator[Metric]:
        counts = self.counts
        there = counts.joined()
        yield _gauge("cwd_workers", "GPUs whose worker is connected.", len(there))
        yield _gauge("cwd_models", "Models that are registered.", int(counts.registered.sum()))
        info = GaugeMetricFamily("cwd_worker_up", "1 for each GPU that is there, with its worker's name.",
                                 labels=["gpu", "worker"])
        pages = GaugeMetricFamily("cwd_pages", "Pages of a GPU's pool by state, by the worker's own books.",
                                  labels=["gpu", "state"])
        models = GaugeMetricFamily("cwd_models_resident", "Models whose weights are on the GPU.", labels=["gpu"])
        busy = CounterMetricFamily("cwd_lane_busy_seconds", "Time that a lane was occupied: its rate is its utilisation.",
                                   labels=["gpu", "lane"])
        for gpu in there:
            label, free = str(gpu), int(counts.pages_free[gpu])
            info.add_metric([label, counts.names["gpu"].get(gpu, "")], 1)
            pages.add_metric([label, "free"], free)
            pages.add_metric([label, "used"], int(counts.pages_total[gpu]) - free)
            models.add_metric([label], len(counts.resident[gpu]))
            for lane, name in enumerate(LANES):
                busy.add_metric([label, name], int(counts.busy_ns[gpu, lane]) / NS_PER_S)
        yield from (info, pages, models, busy)

    def _models(self, series: list[tuple[str, np.ndarray]]) -> Iterator[Metric]:
        requests = CounterMetricFamily("cwd_model_requests", "Replies by model and outcome: the hottest models, and all "
                                       "others together.", labels=["model", "outcome"])
        for name, row in series:
            for at, outcome in enumerate(OUTCOMES):
                requests.add_metric([name, outcome], int(row[at]))
        yield requests
        for column, metric, text, scale in (
                ("cold", "cwd_model_cold", "Requests answered in time whose weights were on no device.", 1),
                ("executions", "cwd_model_executions", "Batches executed.", 1),
                ("busy_ns", "cwd_model_exec_seconds", "Time that executions took.", NS_PER_S),
                ("total_ns", "cwd_model_request_seconds", "Arrival to reply, in all, of answers in time.", NS_PER_S)):
            family = CounterMetricFamily(metric, text, labels=["model"])
            for name, row in series:
                value = int(row[COLUMN[column]])
                family.add_metric([name], value if scale == 1 else value / scale)
            yield family

    def _log(self) -> Iterator[Metric]:
        yield _counter("cwd_log_records", "Records of the event log.", self.counts.records)
        yield _counter("cwd_log_lost", "Records that were lost because the log's writer fell behind; what they told is in no "
                       "other metric.", self.counts.lost)

    def _loop(self) -> Iterator[Metric]:
        """What the loop counts itself, at most some seconds old; 0 until it has told."""
        told = self.counts.loop
        events = CounterMetricFamily("cwd_loop_events", "What the controller's loop met, messages at fault among it.",
                                     labels=["event"])
        for name in LOOP_EVENTS:
            events.add_metric([name], told.get(name, 0))
        yield events
        for name, metric, text in (("busy_ns", "cwd_loop_busy_seconds", "Time that the loop was not waiting."),
                                   ("python_ns", "cwd_loop_python_seconds", "Time that Python kept the loop waiting.")):
            yield CounterMetricFamily(metric, text, told.get(name, 0) / NS_PER_S)
        for name, metric, text in (("python_max_ns", "cwd_loop_python_max_seconds", "The longest that Python used at once."),
                                   ("turn_max_ns", "cwd_loop_turn_max_seconds", "The longest turn of the loop.")):
            yield GaugeMetricFamily(metric, text, told.get(name, 0) / NS_PER_S)
        yield _gauge("cwd_held_bytes", "Payloads of requests that are held, with what each pins.", told.get("held_bytes", 0))
        yield _gauge("cwd_peers", "Connections that have introduced themselves.", told.get("peers_used", 0))

    def _triton(self, series: list[tuple[str, np.ndarray]]) -> Iterator[Metric]:
        """Counters as Triton names them: without `_total`, times in us; there as here only of successful requests."""
        found = {name: UnknownMetricFamily(f"nv_inference_{name}", f"As Triton's: {text}.", labels=["model", "version"])
                 for name, text in (
                     ("request_success", "requests answered in time"), ("count", "requests executed"),
                     ("exec_count", "batches executed"), ("request_duration_us", "arrival to reply, in all"),
                     ("queue_duration_us", "waiting, in all"),
                     ("compute_infer_duration_us", "executing, in all, each request its batch's"))}
        failed = UnknownMetricFamily("nv_inference_request_failure", "As Triton's: requests not answered, by reason.",
                                     labels=["model", "version", "reason"])
        for key, row in series:
            model, _, version = key.rpartition("/")
            labels = [model or key, version if model else ""]
            value = {name: int(row[at]) for name, at in COLUMN.items()}
            for name, amount in (("request_success", value["in_time"]), ("count", value["rows"]),
                                 ("exec_count", value["executions"]), ("request_duration_us", value["total_ns"] // NS_PER_US),
                                 ("queue_duration_us", value["queued_ns"] // NS_PER_US),
                                 ("compute_infer_duration_us", value["exec_ns"] // NS_PER_US)):
                found[name].add_metric(labels, amount)
            # WORKER_LOST is a refusal of ours, and there a fault of the backend's
            for reason, amount in (("REJECTED", value["late"] + value["refused"] - value["worker_lost"]),
                                   ("CANCELED", value["cancelled"]), ("BACKEND", value["worker_lost"] + value["exec_failed"]),
                                   ("OTHER", value["at_fault"] + value["failed"] - value["exec_failed"])):
                failed.add_metric([*labels, reason], amount)
        yield from (*found.values(), failed)


def _counter(name: str, text: str, value: int) -> Metric:
    return CounterMetricFamily(name, text, value)


def _gauge(name: str, text: str, value: int) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _histogram(name: str, text: str, found: Histogram) -> Metric:
    buckets, total = _buckets(found)
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=total)


def _buckets(found: Histogram) -> tuple[list[tuple[str, float]], float]:
    """As Prometheus wants them: counts of all up to each bound."""
    bounds = [f"{bound * found.scale:.6g}" if found.scale != 1 else f"{bound:g}" for bound in found.bounds.tolist()] + ["+Inf"]
    return [(bound, int(count)) for bound, count in zip(bounds, np.cumsum(found.counts), strict=True)], found.sum * found.scale
