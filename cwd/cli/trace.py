"""`cwd trace --wire`: messages printed by the protocol's grammar, from a file or from a tap between peers and a controller."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from cwd.cli.common import json_option, say
from cwd.config import client_endpoint
from cwd.errors import Code, CwdError


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--wire", is_flag=True, help="Frames of CWDP, by its grammar.  [required]")
@click.option("--listen", metavar="ENDPOINT", help="Stand here between peers and a controller, and show what passes.")
@click.option("--to", metavar="ENDPOINT[,...]", default=client_endpoint, show_default="the run directory's socket for clients",
              help="The controller's socket, of the role whose peers are to be seen; with its standbys' after it.")
@click.option("--limit", type=click.IntRange(0), default=0, show_default=True, help="End after so many messages; 0: never.")
@json_option
def trace(file: str | None, wire: bool, listen: str | None, to: str, limit: int, as_json: bool) -> None:
    """Print messages by the protocol's grammar.

    From FILE: vectors or transcripts as in proto_spec/vectors, or lines of hexadecimal frames, the frames of one message
    separated by spaces. Or live: with --listen ipc:///tmp/tap.sock, and a client whose CWD_ENDPOINT is that. With --json a
    line per message.
    """
    if not wire:
        raise click.UsageError("say what to trace: --wire")
    if (file is None) == (listen is None):
        raise click.UsageError("give a FILE, or --listen")
    if file is not None:
        messages = list(read_messages(Path(file)))
        for title, frames in messages[: limit or None]:
            _print(title, frames, as_json)
        return
    _tap(str(listen), to, limit, as_json)


def _tap(listen: str, to: str, limit: int, as_json: bool) -> None:
    from cwd.observe.tap import Tap

    tap = Tap(listen, to, lambda title, frames: _print(title, frames, as_json))
    say(f"listening at {listen}, passing on to {to} (Ctrl-C ends)")
    passed = 0
    try:
        while not limit or passed < limit:
            passed += tap.turn(200)
    finally:
        tap.close()


def _print(title: str, frames: list[bytes], as_json: bool) -> None:
    from cwd.observe.wire import message_facts, message_lines

    if as_json:
        click.echo(json.dumps({"message": title, **message_facts(frames)}))
    else:
        click.echo("\n".join([*message_lines(frames, title), ""]))


def read_messages(path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """(title, frames) of each message in a file; raises `CwdError` naming the file, and the line of hex at fault."""
    text = path.read_text("utf-8")
    if text.lstrip().startswith(("{", "[")):
        try:
            yield from _of_json(json.loads(text), "")
        except (ValueError, TypeError) as error:
            raise CwdError(f"{path}: {error}", code=Code.BAD_ARGUMENT) from None
        return
    for number, line in enumerate(text.splitlines(), 1):
        try:
            if line.strip() and not line.startswith("#"):
                yield "", [bytes.fromhex(frame) for frame in line.split()]
        except ValueError:
            raise CwdError(f"{path}: line {number} is no hexadecimal", code=Code.BAD_ARGUMENT) from None


def _of_json(value: Any, name: str) -> Iterator[tuple[str, list[bytes]]]:
    """Whatever has a `frame` or `frames`, wherever it is."""
    if isinstance(value, list):
        for each in value:
            yield from _of_json(each, name)
    elif isinstance(value, dict):
        name = str(value.get("name", name))
        between = f"{value['from']} -> {value['to']}" if {"from", "to"} <= value.keys() else name
        if "frame" in value:
            yield between, [bytes.fromhex(value["frame"])]
        elif "frames" in value:
            yield between, [bytes.fromhex(frame) for frame in value["frames"]]
        else:
            for each in value.values():
                if isinstance(each, list | dict):
                    yield from _of_json(each, name)
