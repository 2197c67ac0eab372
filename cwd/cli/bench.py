"""`cwd bench NAME`: runs `cwd.bench.NAME.run`, whose keywords are the options; it returns the facts."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import click

from cwd.cli.common import emit, json_option, say, table

BENCHES = {
    "controller": "The controller against a bare forwarder: requests per second, CPU per request.",
    "kernel": "The scheduler's core alone, by the number of models.",
    "worker": "A no-op model through real processes against a bare echo.",
    "gateway": "What HTTP adds to a request: the gateway beside the native client, on one connection.",
    "app": "What an application of one model adds to the bare model.",
    "ensemble": "Eight members, one of which is late: the answer's time and who took part.",
    "serve": "Goodput under SLOs, closed loop, against the best batch rate of the module alone.",
    "selection": "Which model answers: regret of the selection policies while the best model degrades.",
    "tuning": "Where the defaults of exp3 and exp4 are from: a grid of parameters, on texts and seeds of its own.",
    "wire": "The codecs, in Python and compiled.",
}

#: a longer list is a curve, which nobody reads as numbers
_LISTED_MAX = 32


class Benches(click.Group):
    """One command per module; its options are read off its `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BENCHES)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(BENCHES.items()))

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in BENCHES:
            return None
        run = importlib.import_module(f"cwd.bench.{name}").run

        @json_option
        def command(as_json: bool, **options: Any) -> None:
            if "progress" in inspect.signature(run).parameters:
                options["progress"] = say
            facts = run(**{key: value for key, value in options.items() if value is not None})
            emit(facts, as_json, lines_of(facts))

        for option in reversed(options_of(run)):
            command = option(command)
        return click.command(name, help=inspect.getdoc(run) or BENCHES[name])(command)


@click.group(cls=Benches)
def bench() -> None:
    """The benchmarks."""


def options_of(function: Any, skip: tuple[str, ...] = ("progress",)) -> list[Any]:
    """A click option for each keyword of `function` with a plain default; a tuple may be given several times."""
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        default = parameter.default
        if name in skip or default is inspect.Parameter.empty:
            continue
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            flag = f"{flag}/--no-{name.replace('_', '-')}"
            found.append(click.option(flag, name, default=default, show_default=True))
        elif isinstance(default, (tuple, list)):
            kind = type(default[0]) if default else str
            found.append(click.option(flag, name, multiple=True, type=kind, default=tuple(default), show_default=True))
        else:
            found.append(click.option(flag, name, type=type(default) if default is not None else str, default=default,
                                      show_default=True))
    return found


def lines_of(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Facts for people: lists of equal rows as tables, the rest as `name: value`."""
    lines: list[str] = []
    for name, value in facts.items():
        rows = value if isinstance(value, list) else []
        if rows and all(isinstance(row, dict) and list(row) == list(rows[0]) for row in rows):
            lines.append(f"{indent}{name}:")
            lines += [f"{indent}  {line}" for line in table(list(value[0]), [list(row.values()) for row in value])]
        elif isinstance(value, dict):
            lines.append(f"{indent}{name}:")
            lines += lines_of(value, indent + "  ")
        elif len(rows) > _LISTED_MAX:
            lines.append(f"{indent}{name}: {len(rows)} values from {rows[0]} to {rows[-1]}; --json has all")
        else:
            lines.append(f"{indent}{name}: {value:.4g}" if isinstance(value, float) else f"{indent}{name}: {value}")
    return lines
