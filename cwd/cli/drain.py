"""`cwd drain`: have a worker, or the controller, finish what it has and take nothing new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from cwd.cli.common import DURATION, admin_option, emit, json_option, key_options, wait_until
from cwd.errors import Code, ControllerLost, CwdError
from cwd.units import format_duration

patience_option = click.option("--patience", type=DURATION, default="60s", show_default=True,
                               help="How long to wait until it is done; 0s does not wait.")


@click.group()
def drain() -> None:
    """Finish what is under way and take nothing new."""


@drain.command()
@click.argument("number", type=click.IntRange(0))
@patience_option
@admin_option
@key_options
@json_option
def worker(number: int, patience: int, admin_endpoint: str, as_json: bool) -> None:
    """Take worker NUMBER (as `cwd status` lists it) out of service: it finishes what it has, and ends with code 0."""
    from cwd.client.admin import Admin

    with Admin(admin_endpoint, name="cwd-drain", timeout=5) as admin:
        name = admin.call("worker.drain", worker=number)["name"]
        gone = _until(patience, lambda: admin.status()["workers"].get(str(number), {}).get("name") != name)
    emit({"worker": number, "name": name, "gone": gone}, as_json, [f"worker {name} " + ("is gone" if gone else "drains")])


@drain.command()
@click.option("--off", is_flag=True, help="Serve again.")
@click.option("--stop", is_flag=True, help="End the controller when it is done.")
@patience_option
@admin_option
@key_options
@json_option
def controller(off: bool, stop: bool, patience: int, admin_endpoint: str, as_json: bool) -> None:
    """Refuse new requests (DRAINING) and answer those that were accepted."""
    from cwd.client.admin import Admin

    if off and stop:
        raise click.UsageError("--off or --stop")
    with Admin(admin_endpoint, name="cwd-drain", timeout=5) as admin:
        queued = admin.call("shutdown")["queued"] if stop else admin.call("drain", on=not off)["queued"]
        epoch = admin.epoch
        done = off or _until(patience, lambda: _empty(admin, epoch))
    emit({"draining": not off, "queued": queued, "done": done}, as_json, [
        "serving again" if off else f"draining: {queued} requests were in flight" + (", none is left" if done else "")])


def _empty(admin: Any, epoch: int) -> bool:
    """Whether nothing is in flight; also when the controller of that epoch has ended, and another one serves."""
    try:
        return bool(admin.status()["in_flight"] == 0) or admin.epoch != epoch
    except ControllerLost:
        return True


def _until(patience_ns: int, done: Callable[[], bool]) -> bool:
    """Wait for `done`; False without patience. Raises `CwdError` (DRAINING) if patience runs out."""
    if patience_ns == 0:
        return False
    if not wait_until(done, patience_ns):
        raise CwdError(f"not done after {format_duration(patience_ns)}; it goes on draining", code=Code.DRAINING)
    return True
