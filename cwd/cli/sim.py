"""`cwd sim EXPERIMENT`: the scheduler in virtual time; an experiment's options are the keywords of its `points`."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import click

from cwd.cli.bench import lines_of, options_of
from cwd.cli.common import Ticker, emit, json_option, say


class Experiments(click.Group):
    """One command per experiment; its options are read off its `points`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        from cwd.sim.command import EXPERIMENTS

        return list(EXPERIMENTS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from cwd.sim.command import EXPERIMENTS

        with formatter.section("Experiments"):
            formatter.write_dl(list(EXPERIMENTS.items()))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        from cwd.sim.command import EXPERIMENTS

        if name not in EXPERIMENTS:
            return None
        points = importlib.import_module(f"cwd.sim.experiments.{name}").points

        @click.option("--policy", default="clockwork", show_default=True)
        @click.option("--seed", default=0, show_default=True)
        @click.option("--noise", default="clockwork", show_default=True, help="Of execution times: clockwork, none, or a "
                      "file of recorded errors in ns.")
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


def _run(name: str, as_json: bool, plot: str | None, options: dict[str, Any]) -> None:
    from cwd.sim.command import run

    begin = time.monotonic()
    facts = run(name, progress=Ticker(), **options)
    say(f"{name}: {len(facts['rows'])} rows in {time.monotonic() - begin:.1f} s")
    if plot:
        from cwd.sim.plot import draw

        draw(Path(plot), facts)
    emit(facts, as_json, lines_of(facts))
