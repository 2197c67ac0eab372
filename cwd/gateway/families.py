"""The gateway's counts as Prometheus metrics: every name, its help and its labels stand here.

Names, units and buckets follow those of the controller (`cwd/observe/families.py`): seconds, bytes, fixed bounds. So the
metrics of several gateways add up in a query; `--shards` is one gateway, whose counts are of all its controllers together.
Labels are bounded: routes, statuses and codes are registries, controllers are configured, applications are the hottest few
(`hottest.py`), and of each the first few members.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric

import cwd
from cwd.errors import Code
from cwd.gateway.hottest import OTHER, Hottest
from cwd.gateway.traffic import BOUNDS_NS, NO_STATUS, Durations
from cwd.selection.desk import Desk
from cwd.selection.reader import Known
from cwd.units import NS_PER_S

#: members of an app that have a series each; the choices of the rest are counted together
MEMBERS_MAX = 16
_PARTS = {"all": "answered_by_all", "some": "answered_by_some", "none": "answered_by_none"}
_FEEDBACK = ("accepted", "duplicate", "refused", "failed")
_EDGES = [f"{bound / NS_PER_S:.6g}" for bound in BOUNDS_NS] + ["+Inf"]


class Families:
    """What a scrape finds; for the thread that serves requests alone."""

    CONTENT_TYPE = CONTENT_TYPE_LATEST

    def __init__(self, gateway: Any) -> None:
        self._gateway = gateway
        self._hottest = Hottest(gateway.options.metrics_apps)

    @staticmethod
    def text(family: Metric) -> bytes:
        """One family as Prometheus reads it."""
        return generate_latest(_Only(family))  # type: ignore[arg-type]

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("cwd_gateway_build", "Version of the gateway.", {"version": cwd.__version__})
        yield from self._traffic()
        yield from self._answers()
        yield from self._controllers()
        opened = self._gateway.applications.opened
        if opened is not None:
            yield from self._cache(opened.desk)
            yield from self._apps(opened.desk)
            yield _counters("cwd_feedback", "Feedback by what became of it: accepted is on the disk, a duplicate's id was "
                            "known, refused joins no prediction, failed could not be kept.", "outcome",
                            {outcome: opened.desk.feedback[outcome] for outcome in _FEEDBACK})
            yield from self._states(opened.desk)
            sizes = opened.desk.feedback_sizes()
            yield GaugeMetricFamily("cwd_feedback_log_files", "Files of feedback, of all processes that share the folder.",
                                    len(sizes))
            yield GaugeMetricFamily("cwd_feedback_log_bytes", "What they take, in all.", sum(sizes))

    def _traffic(self) -> Iterator[Metric]:
        traffic = self._gateway.traffic
        requests = CounterMetricFamily("cwd_gateway_http_requests", "Requests over HTTP by route and status; gone is who hung "
                                       "up before there was one.", labels=["route", "code"])
        for (route, status), count in sorted(traffic.requests.items()):
            requests.add_metric([route, str(status) if status != NO_STATUS else "gone"], count)
        yield requests
        durations = HistogramMetricFamily(
            "cwd_gateway_request_duration_seconds", "From a request's head to the end of its answer, of predictions and "
            "feedback; outcome is answered if the status says success.", labels=["route", "outcome"])
        for (route, good), found in sorted(traffic.durations.items()):
            durations.add_metric([route, "answered" if good else "refused"], *_buckets(found))
        yield durations

    def _answers(self) -> Iterator[Metric]:
        totals = self._gateway.statistics.totals
        yield GaugeMetricFamily("cwd_gateway_requests_in_flight", "Requests to infer that have come and were not answered yet, "
                                "Clipper's apart.", self._gateway.infer.in_flight)
        yield _counters("cwd_gateway_answers", "Predictions that were answered in time, Clipper's included, by whether a model or "
                        "an application was asked.", "asked", {"model": totals.models, "app": totals.apps})
        yield CounterMetricFamily("cwd_gateway_cold", "Answers of models whose weights were on no device when they were asked.",
                                  totals.cold)
        yield CounterMetricFamily("cwd_gateway_cancelled", "Requests to infer whose client hung up.", totals.cancelled)
        refused = totals.codes + self._gateway.statistics.strays
        yield _counters("cwd_gateway_refusals", "Predictions that got no answer, by the reason.", "reason",
                        {name.lower(): refused[name] for name in sorted(refused.keys() | {Code.DEADLINE_UNREACHABLE.name})})

    def _controllers(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("cwd_gateway_controller_up", "1 for each controller that answers this gateway, 0 for one that is "
                               "away.", labels=["endpoint"])
        for endpoint, answers in self._gateway.controllers().items():
            up.add_metric([endpoint], int(answers))
        yield up

    def _cache(self, desk: Desk) -> Iterator[Metric]:
        found = desk.cache.facts()
        yield _counters("cwd_cache_lookups", "Questions to the prediction cache: hits, joins of an execution under way, misses, "
                        "and collisions of an equal hash with another input.", "result",
                        {"hit": found["hits"], "join": found["joins"], "miss": found["misses"],
                         "collision": found["collisions"]})
        yield CounterMetricFamily("cwd_cache_evictions", "Answers that had to make room.", found["evictions"])
        yield CounterMetricFamily("cwd_cache_invalidations", "Answers that were dropped because somebody asked for it.",
                                  found["invalidated"])
        yield GaugeMetricFamily("cwd_cache_entries", "Answers that are kept.", found["entries"])
        yield GaugeMetricFamily("cwd_cache_bytes", "What they take, in all.", found["bytes"])
        yield GaugeMetricFamily("cwd_cache_limit_bytes", "What they may take.", found["bytes_max"])

    def _apps(self, desk: Desk) -> Iterator[Metric]:
        apps = self._gateway.applications.all()
        yield GaugeMetricFamily("cwd_apps", "Applications that are served.", len(apps))
        own, rest, rest_chosen = self._hottest.series(apps, desk.totals, desk.chosen, time.monotonic())
        rows = [(one.name, one.counts) for one in own] + [(OTHER, rest)]
        answers = CounterMetricFamily("cwd_app_answers", "Applications' answers in time, by which of the members that were "
                                      "asked took part; none is a default.", labels=["app", "members"])
        defaults = CounterMetricFamily("cwd_app_defaults", "Answers that were the application's default, by the reason.",
                                       labels=["app", "reason"])
        for name, counts in rows:
            for part, key in _PARTS.items():
                answers.add_metric([name, part], counts.get(key, 0))
            for key in sorted(key for key in counts if key.startswith("default:")):
                defaults.add_metric([name, key.removeprefix("default:").lower()], counts[key])
        yield from (answers, defaults)
        for key, metric, text in (("errors", "cwd_app_errors", "Predictions that ended without an answer."),
                                  ("members_asked", "cwd_app_members_asked", "Members that were asked."),
                                  ("members_answered", "cwd_app_members_answered", "Members that answered in time."),
                                  ("cached", "cwd_app_members_cached", "Members' answers that cost no execution.")):
            yield _counters(metric, text, "app", {name: counts.get(key, 0) for name, counts in rows})
        choices = CounterMetricFamily("cwd_app_choices", "How often the policy chose each member.", labels=["app", "model"])
        for one in own:
            members = list(one.chosen.items())
            for model, count in members[:MEMBERS_MAX]:
                choices.add_metric([one.name, model], count)
            if len(members) > MEMBERS_MAX:
                choices.add_metric([one.name, OTHER], sum(count for _, count in members[MEMBERS_MAX:]))
        choices.add_metric([OTHER, OTHER], rest_chosen)
        yield choices

    def _states(self, desk: Desk) -> Iterator[Metric]:
        reader = desk.reader
        yield GaugeMetricFamily("cwd_states_up", "1 if the store of policies' states answers; a file always does.",
                                int(reader is None or reader.up))
        yield _counters("cwd_states_reads", "Reads of a store that is no file.", "result",
                        {"ok": reader.reads if reader else 0, "failed": reader.failures if reader else 0})
        yield _counters("cwd_choices", "Choices of policies that learn, by the state that they went by: current, old or nothing, "
                        "because the store had not answered.", "state", {known.value: desk.choices[known] for known in Known})


class _Only:
    """A registry of one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return [self._family]


def _counters(name: str, text: str, label: str, values: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family


def _buckets(found: Durations) -> tuple[list[tuple[str, float]], float]:
    """As Prometheus wants them: counts of all up to each bound."""
    return list(zip(_EDGES, map(float, accumulate(found.counts)), strict=True)), found.sum_ns / NS_PER_S
