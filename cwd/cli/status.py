"""`cwd status`: what the controller is doing, and its workers."""

from __future__ import annotations

from typing import Any

import click

from cwd.cli.common import admin_option, emit, json_option, key_options, table
from cwd.units import format_duration


@click.command()
@admin_option
@key_options
@json_option
def status(admin_endpoint: str, as_json: bool) -> None:
    """What the controller is doing."""
    from cwd.client.admin import Admin

    with Admin(admin_endpoint, name="cwd-status", timeout=2) as admin:
        facts = admin.status()
    emit(facts, as_json, lines_of(facts))


#: of the core's counters, those that say something to whoever does not know the core
_CORE = ("accepted", "answered", "missed", "dropped", "refused", "failed", "requeued", "execs", "loads", "unloads",
         "cold")


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The status for people: a line on the whole, the counters that moved, a table of workers. JSON has all there is."""
    workers = facts.get("workers", {})
    state = "draining" if facts.get("draining") else "serving"
    models = facts.get("models", 0)
    servable = facts.get("servable", models)
    lines = [f"{state} for {format_duration(facts['uptime_ns'])}: {models} models, {len(workers)} workers, "
             f"{facts.get('in_flight', 0)} requests in flight"]
    if servable < models:
        lines.append(f"{models - servable} of the models cannot be asked: `cwd model ls --live` says why")
    for group in ("counters", "core", "loop"):
        moved = [f"{name.removesuffix('_ns')} {_shown(name, value)}" for name, value in facts.get(group, {}).items()
                 if value and (group != "core" or name in _CORE)]
        if moved:
            lines.append(f"{group}: " + ", ".join(moved))
    if workers:
        names = list(next(iter(workers.values())))
        lines += table(["number", *(name.removesuffix("_ns") for name in names)],
                       [[number, *(_shown(name, value) for name, value in row.items())] for number, row in workers.items()])
    return lines


def _shown(name: str, value: Any) -> Any:
    return format_duration(value) if name.endswith("_ns") else value
