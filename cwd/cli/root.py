"""The tree of commands. Only the module of the command that runs is imported, so that `cwd --help` is instant."""

from __future__ import annotations

import importlib
from typing import Any

import click

import cwd as package
from cwd.config import read_toml

#: command -> (module:attribute, one line of help)
COMMANDS = {
    "up": ("cwd.cli.up:up", "Controller and workers on this machine, in the foreground."),
    "controller": ("cwd.cli.daemons:controller", "Run the controller."),
    "worker": ("cwd.cli.daemons:worker", "Run a worker."),
    "gateway": ("cwd.cli.gateway:gateway", "Run the HTTP gateway."),
    "install-units": ("cwd.cli.units:install_units", "Write systemd units for this installation."),
    "compile": ("cwd.cli.daemons:compile_kernels", "Compile all kernels ahead of time."),
    "model": ("cwd.cli.model:model", "Add, list, show, remove and profile models."),
    "app": ("cwd.cli.app:app", "Applications: models, a policy that chooses among them, feedback."),
    "keys": ("cwd.cli.keys:keys", "Make, list and revoke keys of clients, workers and admins."),
    "infer": ("cwd.cli.infer:infer", "Send one request."),
    "status": ("cwd.cli.status:status", "What the controller is doing."),
    "top": ("cwd.cli.top:top", "GPUs, lanes, the hottest models and the SLO's attainment, live."),
    "explain": ("cwd.cli.explain:explain", "What happened to one request, and why."),
    "trace": ("cwd.cli.trace:trace", "Messages by the protocol's grammar, from a file or a tap."),
    "drain": ("cwd.cli.drain:drain", "Have a worker, or the controller, finish and take nothing new."),
    "replay": ("cwd.cli.replay:replay", "Replay a trace against a running cluster."),
    "sim": ("cwd.cli.sim:sim", "The same scheduler in virtual time: experiments with emulated GPUs."),
    "bench": ("cwd.cli.bench:bench", "The benchmarks."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def __init__(self, *args: Any, commands: dict[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._lazy = commands

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._lazy:
            return None
        module, attribute = self._lazy[name][0].split(":")
        return getattr(importlib.import_module(module), attribute)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        given = (ctx.default_map or {}).get(str(name), {})
        # the controller reads its own table, and is as strict
        if name != "controller" and command is not None and not isinstance(command, click.Group):
            unknown = sorted(set(given) - {parameter.name for parameter in command.params})
            if unknown:
                raise click.ClickException(f"{ctx.obj['config']}: [{name}] has no setting {unknown[0]!r}")
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])


@click.group(cls=LazyGroup, commands=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package.__version__, prog_name="cwd")
@click.option("--config", metavar="FILE", envvar="CWD_CONFIG", help="TOML file with a table per command; "
              "flags and CWD_* variables win over it.")
@click.pass_context
def cwd(ctx: click.Context, config: str | None) -> None:
    """cwd serves thousands of neural networks, each request inside its deadline or refused at once."""
    ctx.obj = {"config": config}
    if config is not None:
        table = read_toml(config)
        unknown = sorted(set(table) - set(COMMANDS))
        if unknown:
            raise click.ClickException(f"{config}: there is no command {unknown[0]!r} to configure")
        ctx.default_map = {name: _defaults(values) for name, values in table.items()}


def _defaults(values: Any) -> Any:
    """A table with its names as click spells parameters."""
    if not isinstance(values, dict):
        return values
    return {name.replace("-", "_"): _defaults(value) for name, value in values.items()}
