"""`cwd controller`, `cwd worker`, `cwd compile`. Flags are made from the daemons' own records of settings."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from cwd.cli.common import DURATION, SIZE, emit, json_option, say
from cwd.config import endpoint, read_toml
from cwd.controller.config import ControllerConfig, load_config
from cwd.errors import CwdError
from cwd.settings import set_log_level
from cwd.units import format_duration, format_size
from cwd.worker.options import WorkerOptions


def settings(record: Any, convert: bool, skip: tuple[str, ...] = ()) -> Callable[[Any], Any]:
    """Decorator: an option per field of a dataclass. `convert`: quantities become integers, and CWD_* is read."""

    helps = _comments(record)

    def decorate(command: Any) -> Any:
        for field in reversed(dataclasses.fields(record)):
            if field.name in skip:
                continue
            default = field.default
            if default is dataclasses.MISSING:
                default = field.default_factory()  # type: ignore[misc]
            name = field.name
            plain = plain_name(name)
            # `--page-bytes 4096` and `--page 4KiB` are the same option
            flags = [f"--{one.replace('_', '-')}" for one in dict.fromkeys((plain, name))]
            text = f"{helps.get(name, '')} [{_shown(name, default)}]".strip()
            options: dict[str, Any] = {"default": None, "help": text}
            if convert:
                options["envvar"] = f"CWD_{plain.upper()}"
            if isinstance(default, bool):
                flags = ["/".join((flags[0], f"--no-{plain.replace('_', '-')}"))]
            elif convert and name.endswith("_ns"):
                options["type"] = DURATION
            elif convert and name.endswith(("_bytes", "_bytes_per_s")):
                options["type"] = SIZE
            elif convert and isinstance(default, int):
                options["type"] = int
            command = click.option(*flags, plain, **options)(command)
        return command

    return decorate


def _comments(record: Any) -> dict[str, str]:
    """What the record's source says of each field, in the `#:` lines above it."""
    found: dict[str, str] = {}
    said: list[str] = []
    for line in map(str.strip, inspect.getsource(record).splitlines()):
        if line.startswith("#:"):
            said.append(line[2:].strip())
        else:
            name = line.partition(":")[0]
            if said and name.isidentifier():
                text = " ".join(said)
                found[name] = text[:1].upper() + text[1:] + "."
            said = []
    return found


def plain_name(name: str) -> str:
    """A setting's name outside, where its value has a unit."""
    return name.removesuffix("_ns").removesuffix("_bytes")


def _shown(name: str, default: Any) -> str:
    if name.endswith("_ns"):
        return format_duration(default)
    if name.endswith("_bytes"):
        return format_size(default)
    return str(default) if default != "" else "none"


def become_daemon() -> None:
    """A daemon logs to stderr or the journal, and ends with the process that started it if that asked for it.

    A supervisor ends one that hangs by SIGABRT: then all threads' stacks are written as well.
    """
    import faulthandler

    from cwd.cluster.child import die_with_parent
    from cwd.net.journal import log_to_stderr

    die_with_parent()
    faulthandler.enable(file=2)
    log_to_stderr("%(asctime)s %(name)s %(levelname)s %(message)s")


@click.command()
@settings(ControllerConfig, convert=False)
@click.pass_context
def controller(ctx: click.Context, **flags: Any) -> None:
    """Run the controller. Settings may also come from CWD_* variables and the [controller] table of --config."""
    become_daemon()
    # the controller reads the file itself, where CWD_* variables win over it
    given = {name: value for name, value in flags.items()
             if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE}

    def load() -> ControllerConfig:
        return load_config(given, file=ctx.obj["config"])

    config = load()
    set_log_level(config.log_level)
    from cwd.controller.daemon import serve

    serve(config, load)


@click.command()
@settings(WorkerOptions, convert=True, skip=("repo",))
@click.option("--repo", "--repository", "repo", envvar="CWD_REPOSITORY", help="The model repository.")
@click.pass_context
def worker(ctx: click.Context, **flags: Any) -> int:
    """Run a worker: one device ("cpu", "cuda:K"), or N emulated GPUs in one process ("emulated:N")."""
    become_daemon()
    options = _worker_options(flags)
    set_log_level(options.log_level)
    from cwd.worker.daemon import run_worker

    return run_worker(options, lambda: _worker_options({**flags, **reread(ctx)}))


def _worker_options(flags: dict[str, Any]) -> WorkerOptions:
    names = {plain_name(field.name): field.name for field in dataclasses.fields(WorkerOptions)}
    given = {names[name]: value for name, value in flags.items() if value is not None}
    return WorkerOptions(**{"endpoint": endpoint("workers"), **given})


def reread(ctx: click.Context) -> dict[str, Any]:
    """What the command's table in --config says now of whatever did not come from elsewhere; raises `CwdError`."""
    file = ctx.obj["config"]
    table = read_toml(file).get(str(ctx.info_name), {}) if file is not None else {}
    if not isinstance(table, dict):
        raise CwdError(f"{file}: {ctx.info_name} is {table!r}, wanted a table")
    told = {str(name).replace("-", "_"): value for name, value in table.items()}
    found: dict[str, Any] = {}
    for parameter in ctx.command.params:
        name = str(parameter.name)
        value = told.pop(name, None)
        if ctx.get_parameter_source(name) in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP):
            try:
                found[name] = parameter.type_cast_value(ctx, value)
            except click.ClickException as error:
                raise CwdError(f"{file}: {error.format_message()}") from None
            except (ArithmeticError, TypeError, ValueError):
                raise CwdError(f"{file}: {value!r} is no value for {name}") from None
    if told:
        raise CwdError(f"{file}: [{ctx.info_name}] has no setting {min(told)!r}")
    return found


@click.command("compile")
@json_option
def compile_kernels(as_json: bool) -> None:
    """Compile all kernels ahead of time, so that daemons start at once."""
    from cwd.compile import compile_all

    facts = compile_all(report=say)
    emit(facts, as_json, [f"{len(facts['kernels'])} packages in {facts['seconds']} s, kept in {facts['cache_dir']}"])
