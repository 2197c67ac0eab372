"""`cwd sim EXPERIMENT`: the scheduler in virtual time; an experiment's options are the keywords of its `points`."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from cwd.cli.bench import lines_of, options_of
from cwd.cli.common import Ticker, emit, json_option, say
from cwd.core.presets import OBJECTIVES
from cwd.errors import CwdError, InvariantError
from cwd.sim import EXPERIMENTS


_objective = click.option("--objective", type=click.Choice(OBJECTIVES), default="fair", show_default=True,
                          help="What the policy cwd is after: a floor for every model, or goodput alone.")


class Experiments(click.Group):
    """One command per experiment; its options are read off its `points`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*EXPERIMENTS, "compare"]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Experiments"):
            formatter.write_dl([*EXPERIMENTS.items(), ("compare", "All experiments, policies and seeds, as one table.")])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name == "compare":
            return compare
        if name not in EXPERIMENTS:
            return None
        points = importlib.import_module(f"cwd.sim.experiments.{name}").points

        @click.option("--policy", default="clockwork", show_default=True)
        @click.option("--seed", default=0, show_default=True)
        @click.option("--noise", default="clockwork", show_default=True, help="Of execution times: clockwork, none, or a "
                      "file of recorded errors in ns.")
        @_objective
        @click.option("--plot", type=click.Path(dir_okay=False), help="Draw the rows into this PNG.")
        @_options(points)
        @json_option
        def command(as_json: bool, plot: str | None, **options: Any) -> None:
            _run(name, as_json, plot, options)

        return click.command(name, help=EXPERIMENTS[name])(command)


def _options(points: Any) -> Any:
    """The experiment's own options; the seed is everybody's."""
    def decorate(command: Any) -> Any:
        for option in reversed(options_of(points, skip=("seed",))):
            command = option(command)
        return command
    return decorate


@click.group(cls=Experiments)
def sim() -> None:
    """The same scheduler in virtual time: a seed reproduces every byte."""


@click.command()
@click.option("--policy", "policies", multiple=True, help="May be repeated; all, if none is given.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="How many seeds, from --seed on.")
@click.option("--seed", default=0, show_default=True)
@click.option("--experiment", "experiments", multiple=True, help="May be repeated; all but the soak, if none is given.")
@_objective
@click.option("--quick/--no-quick", default=False, show_default=True)
@click.option("--processes", type=click.IntRange(min=0), default=0, help="0: as many as there are cores.")
@click.option("--dask", default="", metavar="ADDRESS", help="Run on the Dask cluster of the scheduler at this address.")
@click.option("--plot", type=click.Path(dir_okay=False), help="Draw the rows into this PNG.")
@json_option
def compare(as_json: bool, plot: str | None, seed: int, seeds: int, **options: Any) -> None:
    """All experiments under all policies, as one table."""
    from cwd.sim.compare import compare as run

    with _violations_told():
        facts = run(seeds=range(seed, seed + seeds), progress=Ticker(), **options)
    _finish(facts, as_json, plot, {"table": facts["table"]})


@contextmanager
def _violations_told() -> Iterator[None]:
    """A broken invariant is a crash in a daemon; here it is what was looked for, and is told as an error."""
    try:
        yield
    except InvariantError as error:
        raise CwdError(str(error)) from error


def _run(name: str, as_json: bool, plot: str | None, options: dict[str, Any]) -> None:
    from cwd.sim.command import run

    begin = time.monotonic()
    with _violations_told():
        facts = run(name, progress=Ticker(), **options)
    say(f"{name}: {len(facts['rows'])} rows in {time.monotonic() - begin:.1f} s")
    _finish(facts, as_json, plot, facts)


def _finish(facts: dict[str, Any], as_json: bool, plot: str | None, shown: dict[str, Any]) -> None:
    """Draw if asked to, and tell the facts: all of them as JSON, `shown` to people."""
    if plot:
        from cwd.sim.plot import draw

        draw(Path(plot), facts)
    emit(facts, as_json, lines_of(shown))
