"""`cwd up`: a controller and the workers of this machine in one foreground command, over ipc sockets."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import click

from cwd.cli.common import repository_option, say
from cwd.config import POLICY, run_dir
from cwd.units import format_size


@click.command()
@repository_option
@click.option("--device", envvar="CWD_DEVICE", default="cpu", show_default=True, help="cpu, cuda (a worker for "
              "each GPU), cuda:K, or emulated:N for N emulated GPUs.")
@click.option("--workers", envvar="CWD_WORKERS", default=1, show_default=True, type=click.IntRange(1),
              help="How many worker processes.")
@click.option("--pool", envvar="CWD_POOL", default="1GiB", show_default=True, help="Memory for weights, per device.")
@click.option("--page", envvar="CWD_PAGE", help="Size of a page of it.  [default: 1MiB; on GPUs 16MiB]")
@click.option("--policy", envvar="CWD_POLICY", default=POLICY, show_default=True, help="The scheduler's policy.")
@click.option("--run-dir", envvar="CWD_RUN_DIR", type=click.Path(path_type=Path), default=run_dir, help="Folder of the "
              "sockets and logs.")
def up(repository: str, device: str, workers: int, pool: str, page: str | None, policy: str, run_dir: Path) -> None:
    """Bring up a controller and workers on this machine; Ctrl-C stops them. A worker that ends is started again.

    Further settings of the daemons come from CWD_* variables.
    """
    from cwd.cluster import LocalCluster
    from cwd.controller.config import default_state_dir, load_config

    settings = load_config()

    page = page or ("16MiB" if device.startswith("cuda") else "1MiB")
    cluster = LocalCluster(repository if Path(repository).is_dir() else "", workers=workers, device=device, pool=pool,
                           page=page, policy=policy, folder=run_dir, controller={"state_dir": ""}, timeout=600,
                           progress=say)
    say("starting: kernels that were never compiled here take minutes, once (`cwd compile` does it ahead)")
    if not Path(repository).is_dir():
        say(f"no folder {repository}: serving without models")

    def end(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
    try:
        with cluster:
            if settings.log:
                kept = f"at most {format_size(settings.log_keep_bytes)}" if settings.log_keep_bytes else "without a bound"
                say(f"every event is logged in {default_state_dir()}, {kept} (CWD_LOG_KEEP, CWD_LOG=no)")
            say(f"ready: clients connect to {cluster.endpoint()} (Ctrl-C stops)")
            while True:
                for text in cluster.mend():
                    say(f"{text}; it is started again")
                time.sleep(0.5)
    except KeyboardInterrupt:
        say("stopped")
