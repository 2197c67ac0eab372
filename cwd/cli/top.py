"""`cwd top`: GPUs, lanes, the hottest models and the SLO's attainment, live, from the controller's log and its status."""

from __future__ import annotations

import copy
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cwd.cli.common import DURATION, admin_option, emit, json_option, key_options
from cwd.errors import CwdError
from cwd.units import NS_PER_S, format_duration

if TYPE_CHECKING:
    from rich.console import Group

    from cwd.client.admin import Admin
    from cwd.observe.counts import Counts

_STATUS_S = 1.0


@click.command()
@click.option("--state-dir", envvar="CWD_STATE_DIR", metavar="FOLDER", default=None, help="Where the controller keeps its "
              "log.  [default: as the controller's own]")
@click.option("--window", "window_ns", type=DURATION, default="5s", show_default=True, help="Over how long rates are taken.")
@click.option("--interval", "interval_ns", type=DURATION, default="1s", show_default=True, help="How often to look.")
@click.option("--models", type=click.IntRange(1), default=15, show_default=True, help="How many of the hottest models.")
@click.option("--once", is_flag=True, help="One look, and out.")
@admin_option
@key_options
@json_option
def top(state_dir: str | None, window_ns: int, interval_ns: int, models: int, once: bool, admin_endpoint: str,
        as_json: bool) -> None:
    """Look at a controller: what it answers, what its GPUs do, which models are hot. Ctrl-C ends it.

    Of a controller that does not answer any more, its log's last moments are shown.
    """
    from rich.console import Console
    from rich.live import Live

    from cwd.controller.config import default_state_dir

    looker = Looker(Path(state_dir or default_state_dir()), admin_endpoint, window_ns, models)
    try:
        if as_json or once or not Console().is_terminal:
            facts = looker.look()
            emit(facts, as_json)
            if not as_json:
                Console().print(frame(facts))
            return
        with Live(frame(looker.look()), screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval_ns / NS_PER_S)
                live.update(frame(looker.look()), refresh=True)
    finally:
        looker.close()


class Looker:
    """Looks again and again; each look gives the facts of the last window."""

    def __init__(self, state_dir: Path, admin_endpoint: str, window_ns: int, models: int) -> None:
        self._state_dir, self._window_ns, self._models = state_dir, window_ns, models
        self._endpoint = admin_endpoint
        self._admin: Admin | None = None
        #: when to ask a controller again that did not answer
        self._ask_ns = 0
        self._open()

    def _open(self) -> None:
        from cwd.observe.counts import Counts
        from cwd.observe.follow import Follower

        self._follower = Follower(self._state_dir)
        config = self._follower.header["config"]
        self._counts = Counts(config["models_max"], config["gpus_max"])
        #: (until when, counts until then), oldest first
        self._past: deque[tuple[int, Counts]] = deque()

    def look(self) -> dict[str, Any]:
        """`between`'s facts, and `status`: what the controller said, None if it did not answer."""
        from cwd.observe.window import between

        status = self._status()
        if self._follower.newer():
            self._open()
        for name in self._follower.names():
            self._counts.name(*name)
        rows = self._follower.read()
        alive = status is not None and status["epoch"] == self._follower.header["epoch"]
        end_ns = time.monotonic_ns() if alive else max(self._counts.now_ns, int(rows["now_ns"].max()) if len(rows) else 0)
        if not self._past:
            # what came before the window is fed first
            early = rows["now_ns"] <= end_ns - self._window_ns
            self._counts.feed(rows[early])
            self._past.append((end_ns - self._window_ns, copy.deepcopy(self._counts)))
            rows = rows[~early]
        self._counts.feed(rows)
        # the one whose time is nearest to the window's beginning
        while len(self._past) > 1 and self._past[0][0] + self._past[1][0] <= 2 * (end_ns - self._window_ns):
            self._past.popleft()
        begin_ns, before = self._past[0]
        facts = between(before, self._counts, end_ns - begin_ns, self._models)
        self._past.append((end_ns, copy.deepcopy(self._counts)))
        return {"alive": alive, "policy": self._follower.header["config"]["policy"], **facts, "status": status if alive else None}

    def _status(self) -> dict[str, Any] | None:
        from cwd.client.admin import Admin

        if time.monotonic_ns() < self._ask_ns:
            return None
        try:
            if self._admin is None:
                self._admin = Admin(self._endpoint, name="cwd-top", timeout=_STATUS_S)
            return self._admin.status()
        except CwdError:
            self.close()
            self._ask_ns = time.monotonic_ns() + 5 * NS_PER_S
            return None

    def close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None


def frame(facts: dict[str, Any]) -> Group:
    """One picture of the facts."""
    from rich.console import Group

    parts: list[Any] = [_head(facts), _gpus(facts)]
    if facts["models"]:
        parts += ["", _models(facts)]
    return Group(*parts)


def _head(facts: dict[str, Any]) -> Any:
    from rich.panel import Panel
    from rich.text import Text

    status = facts["status"]
    if status is None:
        state = Text("no controller answers: the last moments of its log", style="bold red")
    else:
        how = Text("draining", style="bold yellow") if status["draining"] else Text("serving", style="bold green")
        state = Text.assemble(how, f" for {format_duration(status['uptime_ns'])}, {status['models']} models, "
                              f"{len(status['workers'])} workers, policy {facts['policy']}")
    replies, latency = facts["replies"], facts["latency_ms"]
    line = Text.assemble(
        f"{facts['requests_per_s']:,.0f} requests/s, ", _attained(facts["attainment"]), " in time, "
        f"p50 {latency['p50']:.4g} ms, p99 {latency['p99']:.4g} ms, p99 of time/SLO {facts['slo_ratio_p99']:.2f}")
    more = (f"{facts['cold_per_s']:g} cold/s, mean batch {_plain(facts['mean_batch'])}, {facts['in_flight']} in flight, "
            f"{replies['late']} late, {replies['refused']} refused, {replies['failed']} failed, {replies['at_fault']} at fault")
    lines = [state, line, Text(more)]
    if facts["reasons"]:
        reasons = sorted(facts["reasons"].items(), key=lambda item: -item[1])
        lines.append(Text("no answer: " + ", ".join(f"{name} {count}" for name, count in reasons[:5]), style="dim"))
    if facts["lost_records"]:
        lines.append(Text(f"{facts['lost_records']} records are missing from the log: figures are too low", style="red"))
    return Panel(Text("\n").join(lines), title=f"cwd, last {facts['window_s']:g} s", title_align="left")


def _gpus(facts: dict[str, Any]) -> Any:
    from rich.table import Table

    told = (facts["status"] or {}).get("workers", {})
    table = Table(expand=True, box=None, header_style="bold cyan")
    for name in ("GPU", "worker", "exec lane", "load lane", "pages", "models", "actions out"):
        table.add_column(name, justify="right" if name in ("GPU", "models", "actions out") else "left")
    rows = {row["gpu"]: row for row in facts["gpus"]}
    for gpu in sorted(set(rows) | set(map(int, told))):
        row, said = rows.get(gpu, {}), told.get(str(gpu), {})
        total = said.get("pages_total", row.get("pages_total", 0))
        used = total - said.get("pages_free", row.get("pages_free", 0))
        table.add_row(str(gpu), said.get("name", row.get("worker", "")), _bar(row.get("exec_busy", 0.0)),
                      _bar(row.get("load_busy", 0.0)), _bar(used / total if total else 0.0, f"{used}/{total}", "cyan"),
                      str(said.get("models", row.get("models", 0))), _plain(said.get("queued")))
    return table


def _models(facts: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(expand=True, box=None, header_style="bold cyan")
    for name in ("hottest models", "requests/s", "in time", "cold", "mean ms", "batch", "GPU time", "copies"):
        table.add_column(name, justify="left" if name == "hottest models" else "right")
    for row in facts["models"]:
        table.add_row(row["model"], f"{row['requests_per_s']:,.1f}", _attained(row["attainment"]), str(row["cold"]),
                      _plain(row["mean_ms"]), _plain(row["mean_batch"]), f"{100 * row['exec_share']:.1f} %", str(row["copies"]))
    return table


def _attained(share: float | None) -> Any:
    from rich.text import Text

    if share is None:
        return Text("-")
    return Text(f"{100 * share:.2f} %", style="green" if share >= .99 else "yellow" if share >= .9 else "red")


def _bar(share: float, text: str = "", style: str = "") -> Any:
    from rich.text import Text

    width = 12
    full = round(share * width)
    style = style or ("green" if share < .7 else "yellow" if share < .95 else "red")
    return Text.assemble(("█" * full, style), ("░" * (width - full), "dim"), " " + (text or f"{100 * share:.0f} %"))


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
