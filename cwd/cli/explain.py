"""`cwd explain`: what happened to one request and why, with what ran before it, from the controller's log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from cwd.cli.common import emit, json_option, table
from cwd.errors import CwdError
from cwd.units import NS_PER_S, format_duration

#: the log is written a moment after the reply was sent
_PATIENCE_S, _LOOK_S = 1.0, 0.05


@click.command()
@click.argument("request")
@click.option("--log", "path", metavar="PATH", default=None, help="The controller's log, a file or its folder; also of a "
              "controller that runs no more.  [default: the newest of this user's controllers]")
@json_option
def explain(request: str, path: str | None, as_json: bool) -> None:
    """Tell what happened to REQUEST, and why.

    REQUEST is the number that `cwd infer` prints, `Result.request` and `RequestError.request` in hexadecimal; or
    CLIENT:NUMBER, for clients that number their requests in another way.
    """
    from cwd.controller.config import default_state_dir
    from cwd.observe.story import parse_id

    client, number = parse_id(request)
    facts = _told(Path(path or default_state_dir()), client, number, _PATIENCE_S if path is None else 0.0)
    emit(facts, as_json, lines_of(facts))


def _told(path: Path, client: str, number: int, patience_s: float) -> dict[str, Any]:
    """The story, waiting a little for one that has just happened."""
    from cwd.observe.story import tell

    until_s = time.monotonic() + patience_s
    while True:
        try:
            facts = tell(path, client, number)
            if facts["verdict"] != "open" or time.monotonic() >= until_s:
                return facts
        except CwdError:
            if time.monotonic() >= until_s:
                raise
        time.sleep(_LOOK_S)


def lines_of(facts: dict[str, Any]) -> list[str]:
    """The story for people; times count from the request's arrival."""
    when = facts["arrived_wall_ns"]
    lines = [f"request {facts['request']} of {facts['client'] or 'a client'} for {facts['model']}"
             + (time.strftime(", %Y-%m-%d %H:%M:%S", time.localtime(when / NS_PER_S)) if when else "")]
    if facts["slo_ns"]:
        lines.append(f"  SLO {format_duration(facts['slo_ns'])}, deadline {format_duration(facts['deadline_after_ns'])} after it "
                     "came" + (", cold: its weights were on no device" if facts["cold"] else ""))
    verdict = f"  {facts['verdict']}: {facts['why']}"
    lines.append(verdict)
    if facts["replied_after_ns"] is not None:
        took = f"  replied after {format_duration(facts['replied_after_ns'])}"
        if facts["exec_ns"]:
            took += (f": queued {format_duration(facts['queued_ns'])}, of it for weights {format_duration(facts['load_ns'])}, "
                     f"executed {format_duration(facts['exec_ns'])}, batch {facts['batch']}")
        lines.append(took)
    waiting = facts["waiting"]
    lines.append(f"  when it came {waiting['all']} others were waiting or executing, {waiting['same_model']} for the same model, "
                 f"{waiting['due_before']} of them due before it")
    own = [action for action in (facts["load"], *facts["failed"], facts["execution"]) if action]
    if own:
        lines += ["its own actions:", *_actions(own)]
    if facts["before"]:
        lines += ["on the lanes before:", *_actions(facts["before"])]
    return lines


def _actions(actions: list[dict[str, Any]]) -> list[str]:
    rows = [[f"gpu {action['gpu']}", action["lane"], action["kind"], action["model"], action["rows"] or None,
             _after(action["sent_after_ns"]), _after(action["begin_after_ns"]), _after(action["end_after_ns"]),
             format_duration(action["predicted_ns"]), _duration(action["actual_ns"]), action["result"]] for action in actions]
    head = ["where", "lane", "action", "model", "rows", "sent", "began", "ended", "predicted", "took", "result"]
    return ["  " + line for line in table(head, rows)]


def _after(after_ns: int | None) -> str:
    return "-" if after_ns is None else f"{after_ns / 1e6:+.3f}ms"


def _duration(duration_ns: int | None) -> str:
    return "-" if duration_ns is None else format_duration(duration_ns)
