"""What commands share: types of options, and the two ways of telling facts."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from cwd.config import client_endpoint, endpoint
from cwd.errors import CwdError
from cwd.units import parse_duration_ns, parse_size_bytes


class _Quantity(click.ParamType):
    """A text with its unit, as an integer."""

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return self._parse(str(value))
        except CwdError as error:
            self.fail(str(error), param, ctx)


DURATION = _Quantity("duration", parse_duration_ns)
SIZE = _Quantity("size", parse_size_bytes)

json_option = click.option("--json", "as_json", is_flag=True, help="Exactly one JSON object on stdout.")
endpoint_option = click.option("--endpoint", envvar="CWD_ENDPOINT", metavar="ENDPOINT[,...]", default=client_endpoint,
                               show_default="the run directory's socket",
                               help="The controller's socket for clients; with its standbys' after it.")
admin_option = click.option("--admin-endpoint", envvar="CWD_ADMIN_ENDPOINT", metavar="ENDPOINT[,...]",
                            default=lambda: endpoint("admin"), show_default="the run directory's socket",
                            help="The controller's socket for admins; with its standbys' after it.")


def _to_environment(ctx: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Every client that this process makes finds its keys there."""
    if value is not None:
        os.environ[str(parameter.envvar)] = value


def key_options(command: Any) -> Any:
    """Decorator: `--key` and `--server-key`, for commands that talk to a controller."""
    for flag, variable, text in (("--server-key", "CWD_SERVER_KEY", "The controller's public key, where it asks for keys."),
                                 ("--key", "CWD_KEY", "Our own key file, where the controller asks for keys.")):
        command = click.option(flag, envvar=variable, metavar="FILE", expose_value=False, callback=_to_environment,
                               help=text)(command)
    return command


repository_option = click.option("--repository", "--repo", "-r", envvar="CWD_REPOSITORY", default="models",
                                 metavar="FOLDER", show_default=True, help="The model repository.")


def emit(facts: dict[str, Any], as_json: bool, lines: Iterable[str] = ()) -> None:
    """Facts on stdout: as one JSON object, or as `lines` for people."""
    if as_json:
        click.echo(json.dumps(facts, separators=(", ", ": ")))
    else:
        for line in lines:
            click.echo(line)


def wait_until(done: Callable[[], bool], patience_ns: int, look_s: float = 0.05) -> bool:
    """Whether `done()` was so within `patience_ns`; it is asked once at least, and then every `look_s` seconds."""
    until_ns = time.monotonic_ns() + patience_ns
    while not done():
        if time.monotonic_ns() >= until_ns:
            return False
        time.sleep(look_s)
    return True


def say(text: str) -> None:
    """Progress, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Ticker:
    """Progress of many steps: a line that is rewritten on a terminal; elsewhere a line for each tenth, or after 15 s."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._tenth, self._said_s = -1, 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._terminal:
            sys.stderr.write(f"\r\033[K{done}/{total} {what}" + ("\n" if done == total else ""))
            sys.stderr.flush()
        elif (tenth := 10 * done // max(total, 1)) != self._tenth or time.monotonic() > self._said_s + 15:
            self._tenth, self._said_s = tenth, time.monotonic()
            say(f"{done}/{total} {what}")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Lines of a table with aligned columns; numbers to the right."""
    rows = list(rows)
    cells = [list(map(_cell, row)) for row in rows]
    numeric = [all(row[i] is None or isinstance(row[i], (int, float)) for row in rows) for i in range(len(head))]
    widths = [max(len(line[i]) for line in [list(head), *cells]) for i in range(len(head))]
    return ["  ".join(text.rjust(width) if right else text.ljust(width)
                      for text, width, right in zip(line, widths, numeric, strict=True)).rstrip()
            for line in [list(head), *cells]]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
