"""`cwd model`: the repository on disk, and what a running controller serves of it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cwd.cli.common import (
    DURATION, SIZE, Ticker, admin_option, emit, json_option, key_options, repository_option, say, table,
    wait_until,
)
from cwd.errors import Code, ControllerLost, CwdError, RepositoryError
from cwd.units import format_duration, format_size

if TYPE_CHECKING:
    from cwd.models.repository import Entry, Repository

live_option = click.option("--live", is_flag=True, help="Tell the running controller, too.")


@click.group()
def model() -> None:
    """The model repository."""


@model.command()
@click.argument("name")
@click.option("--folder", type=click.Path(file_okay=False), help="A folder as transformers' save_pretrained writes it.")
@click.option("--factory", metavar="PACKAGE.MODULE:CALLABLE", help="A callable that returns a torch module.")
@click.option("--args", "arguments", default="{}", metavar="JSON", help="The factory's keyword arguments.")
@click.option("--weights", type=click.Path(dir_okay=False), help="The factory's weights: a safetensors file.")
@click.option("--exported", type=click.Path(dir_okay=False), help="An exported program (.pt2).")
@click.option("--zoo", metavar="PROGRAM", help="One of cwd's own programs: resnet, mobilenet, bert, convnet5m, ...")
@click.option("--seed", type=int, help="Random weights of this seed (factory, zoo); copy i has seed + i.")
@click.option("--options", type=click.Path(dir_okay=False), help="JSON or TOML: inputs, axes, size_classes, ...")
@click.option("--version", default=1, show_default=True, type=click.IntRange(1))
@click.option("--copies", default=1, show_default=True, type=click.IntRange(1), help="How many instances; each has its "
              "own weights.")
@click.option("--profile/--no-profile", default=True, show_default=True, help="Measure the program on the CPU, "
              "unless it was before: it is servable only then.")
@repository_option
@live_option
@admin_option
@key_options
@json_option
def add(name: str, folder: str | None, factory: str | None, arguments: str, weights: str | None, exported: str | None,
        zoo: str | None, seed: int | None, options: str | None, version: int, copies: int, profile: bool,
        repository: str, live: bool, admin_endpoint: str, as_json: bool) -> None:
    """Add NAME from a folder, a factory, an exported program or the zoo."""
    from cwd.models import importers
    from cwd.models.repository import Repository

    if [folder, factory, exported, zoo].count(None) != 3:
        raise click.UsageError("give one of --folder, --factory, --exported and --zoo")
    repo = Repository(repository, create=True)
    described = importers.read_options(options) if options else {}
    ticker: Any = Ticker()
    common: dict[str, Any] = {"version": version, "copies": copies, "progress": ticker}
    if folder:
        entries = importers.add_folder(repo, name, folder, described, **common)
    elif factory:
        given = None if weights else (seed or 0)
        entries = importers.add_factory(repo, name, factory, _json(arguments), described, weights=weights, seed=given,
                                        **common)
    elif exported:
        entries = importers.add_exported(repo, name, exported, described, **common)
    else:
        entries = importers.add_zoo(repo, name, str(zoo), seed=seed or 0, **common)
    if profile:
        _profile(repo, entries[:1], "cpu", again=False)
    for entry in entries if live else []:
        _tell(admin_endpoint, "model.add", name=entry.manifest.name, version=entry.manifest.version)
    keys = [entry.manifest.key for entry in entries]
    emit({"repository": str(repo.root), "added": keys, "program": entries[0].manifest.program_hash.hex()}, as_json,
         [f"added {keys[0]}" + (f" to {keys[-1]}" if len(keys) > 1 else "")])


@model.command()
@repository_option
@click.option("--live", is_flag=True, help="List what the running controller serves instead.")
@admin_option
@key_options
@json_option
def ls(repository: str, live: bool, admin_endpoint: str, as_json: bool) -> None:
    """List the repository, unreadable entries included; with --live, why a model cannot be asked."""
    if live:
        _list_live(admin_endpoint, as_json)
        return
    from cwd.models.repository import Repository

    repo = Repository(repository)
    models, broken = [], []
    for found in repo.scan():
        if isinstance(found, RepositoryError):
            broken.append(found.text)
            continue
        manifest = found.manifest
        models.append({"name": manifest.name, "version": manifest.version, "program": manifest.program_hash.hex(),
                       "weights_bytes": manifest.weights_bytes, "batch_max": manifest.batch_sizes[-1],
                       "profiled": repo.profiled_kinds(manifest.program_hash)})
    rows = [[m["name"], m["version"], m["program"][:8], format_size(m["weights_bytes"]), m["batch_max"],
             ", ".join(m["profiled"]) or "no"] for m in models]
    emit({"repository": str(repo.root), "models": models, "unreadable": broken}, as_json,
         table(["name", "version", "program", "weights", "batch_max", "profiled"], rows)
         + [f"unreadable: {text}" for text in broken])


def _list_live(admin_endpoint: str, as_json: bool) -> None:
    from cwd.client.admin import Admin

    with Admin(admin_endpoint, name="cwd-model", timeout=2) as admin:
        models = admin.models()
    rows = [[key, "yes" if facts["ready"] else facts["reason"], "yes" if facts["in_use"] else "no", facts["copies"],
             facts["pages"], facts["queued"], facts["requests"]] for key, facts in sorted(models.items())]
    emit({"models": models}, as_json, table(["model", "servable", "in use", "copies", "pages", "queued", "requests"], rows))


@model.command()
@click.argument("name")
@click.option("--verify", is_flag=True, help="Check the weights against their recorded sha256.")
@repository_option
@json_option
def show(name: str, verify: bool, repository: str, as_json: bool) -> None:
    """Show NAME (or NAME/VERSION): inputs, outputs, size classes, profile."""
    from cwd.models.repository import Repository

    repo = Repository(repository)
    entry = _entry(repo, name)
    if verify:
        repo.verify(entry)
    manifest = entry.manifest
    profiles = {kind: repo.read_profile(manifest.program_hash, kind) for kind in repo.profiled_kinds(manifest.program_hash)}
    facts = {**manifest.manifest_map(), "program": manifest.program_hash.hex(), "weights_bytes": manifest.weights_bytes,
             "weights_sha256": manifest.weights_sha256, "folder": str(entry.folder), "verified": verify,
             "profiles": profiles}
    lines = [f"{manifest.key}: {format_size(manifest.weights_bytes)} of weights, program {manifest.program_hash.hex()}"]
    for kind in ("inputs", "outputs"):
        lines += [f"  {kind[:-1]} {t['name']}: {t['dtype']}[{', '.join(map(str, t['shape']))}]" for t in facts[kind]]
    if manifest.axes:
        lines.append(f"  axes {', '.join(manifest.axes)}; size classes {facts['size_classes']}")
    if not profiles:
        lines.append("  not profiled yet: run cwd model profile")
    for kind, profile in profiles.items():
        lines += [f"  on {kind} ({profile['device']}):", *_rows(profile)]
    emit(facts, as_json, lines)


def _rows(profile: dict[str, Any]) -> list[str]:
    """A profile's rows as a table; `tier` says how a GPU runs them: captured ("graph"), or step by step ("eager")."""
    tiers = any("tier" in row for row in profile["exec"])
    names = ["batch", "size class", "median", "p99", *(["tier"] if tiers else [])]
    return ["  " + line for line in table(names, [
        [row["batch"], row["size_class"], format_duration(row["median_ns"]), format_duration(row["p99_ns"]),
         *([row.get("tier", "")] if tiers else [])] for row in profile["exec"]])]


@model.command()
@click.argument("name")
@click.option("--prune", is_flag=True, help="Remove programs that no model uses any more.")
@repository_option
@live_option
@admin_option
@key_options
@json_option
def rm(name: str, prune: bool, repository: str, live: bool, admin_endpoint: str, as_json: bool) -> None:
    """Remove NAME (all versions) or NAME/VERSION."""
    from cwd.client.model import split_name
    from cwd.models.repository import Repository

    repo = Repository(repository)
    stem, version = split_name(name)
    if live:
        _tell(admin_endpoint, "model.rm", name=stem, version=version)
    gone = repo.remove(stem, version)
    programs = repo.prune() if prune else []
    emit({"repository": str(repo.root), "removed": gone, "programs_removed": programs}, as_json,
         [f"removed {key}" for key in gone] + [f"removed program {key}" for key in programs])


@model.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(1))
@click.option("--cold", is_flag=True, help="Do not wait until a GPU has its weights (--live).")
@click.option("--patience", type=DURATION, default="30s", show_default=True, help="How long to wait for that.")
@repository_option
@live_option
@admin_option
@key_options
@json_option
def use(name: str, version: int, cold: bool, patience: int, repository: str, live: bool, admin_endpoint: str,
        as_json: bool) -> None:
    """Have NAME stand for VERSION: for a controller that starts, and with --live for its running clients at once.

    The version before stays where it is, so that using it again is as fast.
    """
    from cwd.models.repository import Repository

    repo = Repository(repository)
    repo.get(name, version)
    facts: dict[str, Any] = {"repository": str(repo.root), "name": name, "version": version}
    if live:
        facts |= _switch(admin_endpoint, name, version, 0 if cold else patience)
    repo.use(name, version)
    emit(facts, as_json, [f"{name} is {name}/{version}" + (f", was {name}/{facts['before']}" if live else "")])


def _switch(admin_endpoint: str, name: str, version: int, patience_ns: int) -> dict[str, Any]:
    """Take the version into use at the running controller, once a GPU has its weights (`patience_ns` 0: at once)."""
    from cwd.client.admin import Admin

    with Admin(admin_endpoint, name="cwd-model", timeout=5) as admin:
        def warm() -> bool:
            return bool(admin.call("model.warm", name=name, version=version)["copies"])

        if patience_ns and not wait_until(warm, patience_ns):
            raise CwdError(f"no GPU has loaded {name}/{version} within {format_duration(patience_ns)}: every page is "
                           "needed, or no worker is there; --cold does not wait", code=Code.MODEL_NOT_READY)
        return admin.call("model.use", name=name, version=version)


@model.command()
@click.argument("names", nargs=-1)
@click.option("--device", default="cpu", show_default=True, help="cpu, or cuda:K for the GPU with that index.")
@click.option("--repeats", type=click.IntRange(1), help="Executions timed for each batch and size class.")
@click.option("--page", "page_bytes", type=SIZE, show_default="1MiB, on a GPU 16MiB", help="Page size for the load time.")
@click.option("--again", is_flag=True, help="Measure programs that have a profile, too.")
@repository_option
@json_option
def profile(names: tuple[str, ...], device: str, repeats: int | None, page_bytes: int | None, again: bool, repository: str,
            as_json: bool) -> None:
    """Measure every batch size and size class of the programs of NAMES (all models without any)."""
    from cwd.models.repository import Repository

    repo = Repository(repository)
    entries = [_entry(repo, name) for name in names] or repo.entries()
    if not entries:
        raise CwdError(f"{repo.root}: no models to profile", code=Code.UNKNOWN_MODEL)
    measured = _profile(repo, entries, device, again=again or bool(names), repeats=repeats, page_bytes=page_bytes)
    lines = []
    for program, found in measured.items():
        lines += [f"program {program}:", *_rows(found)]
    emit({"repository": str(repo.root), "device": device, "profiles": measured}, as_json, lines or ["all profiled"])


def _profile(repo: Repository, entries: list[Entry], device: str, *, again: bool, repeats: int | None = None,
             page_bytes: int | None = None) -> dict[str, Any]:
    """Measure the program of each entry once; those with a profile only if `again`."""
    options = {"repeats": repeats, "page_bytes": page_bytes}
    measured: dict[str, Any] = {}
    kind, measure = _measurer(repo, device, max(entry.manifest.image_bytes for entry in entries))
    for entry in entries:
        program = entry.manifest.program_hash
        if program.hex() in measured or (not again and repo.read_profile(program, kind) is not None):
            continue
        say(f"profiling program {program.hex()} on {device}")
        measured[program.hex()] = measure(
            entry, progress=Ticker(), **{key: value for key, value in options.items() if value is not None})
    return measured


def _measurer(repo: Repository, device: str, image_bytes: int) -> tuple[str, Callable[..., dict[str, Any]]]:
    """The kind of a device, and what measures an entry on it; the largest has so many bytes."""
    from cwd.models import profile as profiles

    if device == "cpu":
        return device, functools.partial(profiles.measure_cpu, repo)
    name, _, index = device.partition(":")
    if name != "cuda" or not (index or "0").isdecimal():
        raise CwdError(f"device {device!r} is not cpu or cuda:K", code=Code.BAD_ARGUMENT)
    from cwd.worker.backends.cuda import CudaGpu
    from cwd.worker.backends.paged import PagedBackend
    from cwd.worker.measure import measure_gpu

    gpu = CudaGpu(int(index or 0), 2 * image_bytes + (2 << 20))

    def measure(entry: Entry, **options: Any) -> dict[str, Any]:
        backend = PagedBackend(repo, gpu, window_bytes=max(image_bytes, 1))
        return measure_gpu(repo, entry, backend, **options)

    return gpu.kind, measure


def _entry(repo: Repository, name: str) -> Entry:
    from cwd.client.model import split_name

    return repo.get(*split_name(name))


def _tell(admin_endpoint: str, verb: str, **args: Any) -> None:
    from cwd.client.admin import Admin

    try:
        with Admin(admin_endpoint, name="cwd-model", timeout=5) as admin:
            admin.call(verb, timeout=60, **args)
    except ControllerLost as error:
        raise ControllerLost(f"the repository is changed, but the controller was not told: {error}") from None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except (OSError, ValueError) as error:
        raise CwdError(f"--args is no JSON: {error}", code=Code.BAD_ARGUMENT) from None
    if not isinstance(value, dict):
        raise CwdError("--args must be a JSON object", code=Code.BAD_ARGUMENT)
    return value
