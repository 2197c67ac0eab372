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


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The status for people: a line on the whole, the counters that moved, a table of workers."""
    workers = facts.get("workers", {})
    state = "draining" if facts.get("draining") else "serving"
    lines = [f"{state} for {format_duration(facts['uptime_ns'])}: {facts.get('models', 0)} models, "
             f"{len(workers)} workers, {facts.get('in_flight', 0)} requests in flight"]
    if election := facts.get("election"):
        lease, left = format_duration(election["lease_ns"]), format_duration(election["left_ns"])
        trouble = f"; {election['trouble']}" if election["trouble"] else ""
        lines.append(f"{election['role']} of cluster {election['cluster']}, epoch {election['epoch']}, lease {lease}, "
                     f"sure for {left} more{trouble}")
    for group in ("counters", "core", "loop"):
        moved = [f"{name} {value}" for name, value in facts.get(group, {}).items() if value]
        if moved:
            lines.append(f"{group}: " + ", ".join(moved))
    if workers:
        names = list(next(iter(workers.values())))
        lines += table(["number", *names], [[number, *row.values()] for number, row in workers.items()])
    return lines
