"""`cwd replay`: a trace against a running cluster; the work is in `cwd.workload`."""

from __future__ import annotations

from typing import Any

import click

from cwd.cli.bench import lines_of
from cwd.cli.common import emit, endpoint_option, json_option, key_options


@click.command()
@click.argument("trace", default="synthetic")
@click.option("--model", "-m", "models", multiple=True, default=("*",), show_default=True, help="Pattern over model "
              "names; may be repeated.")
@click.option("--slo", envvar="CWD_SLO", default="100ms", show_default=True, help="SLO of every request.")
@click.option("--slo-of", multiple=True, metavar="PATTERN=SLO", help="SLO of some models, such as 'bert*=50ms'.")
@click.option("--minutes", default="", metavar="A:B", help="The part of the trace to replay, such as 600:605.")
@click.option("--pattern", default="poisson", show_default=True, help="In a minute: poisson, uniform or clumps.")
@click.option("--assignment", default="stripe", show_default=True, help="Functions to models: block, stripe or random.")
@click.option("--scale", default=1.0, show_default=True, help="Multiplies every function's requests.")
@click.option("--scale-frequent", default=1.0, show_default=True, help="Multiplies the frequent functions' alone.")
@click.option("--frequent-per-minute", default=1.0, show_default=True, help="From how many a minute one is frequent.")
@click.option("--speed", default=1.0, show_default=True, help="Plays the trace so many times as fast.")
@click.option("--limit", default=0, show_default=True, help="Keeps the first so many requests; 0 for all.")
@click.option("--seed", default=0, show_default=True)
@click.option("--data", default="", metavar="FOLDER", help="Token files for models with variable lengths.")
@click.option("--vocabulary", default=0, help="Token ids are taken below it; 0 leaves them as they are.")
@click.option("--out", default="replay-report", show_default=True, metavar="FOLDER", help="Where the report goes.")
@click.option("--log", default="auto", show_default=True, metavar="PATH", help="The controller's log, for batches and "
              "loads; auto looks where controllers of this user keep it.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
@endpoint_option
@key_options
@json_option
def replay(as_json: bool, **options: Any) -> None:
    """Replay TRACE (a file, or "synthetic") open loop against a running cluster, and write a report."""
    from cwd.workload.command import main

    facts = main(**options)
    emit(facts, as_json, lines_of(facts))
