"""Adding models to a repository: from a transformers folder, from a factory, from an exported program.

A request's description (inputs, axes, size classes, ...) comes from options, in the form of program.json's fields; what
can be found out is filled in, and what cannot is an error that names the option. Every import runs the program once on
small inputs before anything is stored. Copies share the program and have weights of their own.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cwd.errors import Code, CwdError, RepositoryError
from cwd.models.repository import Entry, Repository, read_json
from cwd.models.spec import ProgramSpec, program_from_json

#: called with (instances done, instances in all, a word on what is being done)
Progress = Callable[[int, int, str], None]

_OPTIONS = ("inputs", "outputs", "axes", "padding", "size_classes", "batch_sizes", "memory_format", "call")
_BATCH_SIZES = [1, 2, 4, 8, 16]


def read_options(path: str | Path) -> dict[str, Any]:
    """A description from a .json or .toml file."""
    path = Path(path)
    if path.suffix != ".toml":
        value = read_json(path)
    else:
        import tomllib

        try:
            value = tomllib.loads(path.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise RepositoryError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise RepositoryError(f"{path}: not a table of options")
    return value


def add_factory(repository: Repository, name: str, factory: str, args: dict[str, Any], options: dict[str, Any], *,
                weights: str | Path | None = None, seed: int | None = None, version: int = 1, copies: int = 1,
                progress: Progress | None = None) -> list[Entry]:
    """Add `factory(**args)` with weights from a safetensors file, or random ones by `seed` (copy i has seed + i)."""
    from cwd.models.program import build_module
    from cwd.models.zoo import make_weights

    if (weights is None) == (seed is None):
        raise RepositoryError("give either a weights file or a seed", code=Code.BAD_ARGUMENT)
    names = _names(repository, name, version, copies)
    module = build_module(factory, args, trusted=repository.trusted)
    if weights is not None:
        tensors = load_safetensors(weights)
        instances: Iterator[tuple[dict[str, Any], int]] = ((tensors, -1) for _ in names)
    else:
        assert seed is not None
        first = seed
        instances = ((make_weights(module, first + index), first + index) for index in range(len(names)))
    head = {"factory": factory, "args": args}
    return _add(repository, names, version, module, head, options, instances, progress)


def add_zoo(repository: Repository, name: str, program: str, *, seed: int = 0, version: int = 1, copies: int = 1,
            progress: Progress | None = None) -> list[Entry]:
    """Add copies of one of cwd's own programs (`resnet`, `mobilenet`, `bert`, `convnet5m`, ...) with seeded weights."""
    from cwd.models.zoo import OPTIONS

    if program not in OPTIONS:
        raise RepositoryError(f"there is no program {program!r} in the zoo, only {', '.join(OPTIONS)}",
                              code=Code.BAD_ARGUMENT)
    options = OPTIONS[program]()
    factory, args = options.pop("factory"), options.pop("args")
    return add_factory(repository, name, factory, args, options, seed=seed, version=version, copies=copies,
                       progress=progress)


def add_folder(repository: Repository, name: str, folder: str | Path, options: dict[str, Any] | None = None, *,
               version: int = 1, copies: int = 1, progress: Progress | None = None) -> list[Entry]:
    """Add a folder as transformers' `save_pretrained` writes it (config.json and safetensors; pickles are not read)."""
    from cwd.models.program import build_module, torch
    from cwd.models.transformers_folder import describe

    try:
        import transformers
    except ImportError:
        raise CwdError("a transformers folder needs transformers: pip install 'cwd[zoo]'") from None

    folder = Path(folder)
    config = read_json(folder / "config.json")
    architecture = (config.get("architectures") or [None])[0] if isinstance(config, dict) else None
    if not isinstance(architecture, str):
        raise RepositoryError(f"{folder / 'config.json'}: field 'architectures': wanted the name of a model class")
    if not any(folder.glob("*.safetensors")):
        raise RepositoryError(f"{folder}: no *.safetensors in it; pickled weights are not read")
    names = _names(repository, name, version, copies)
    args = {"architecture": architecture, "config": config}
    module = build_module("cwd.models.zoo:transformers_model", args, trusted=False)
    try:
        loaded = getattr(transformers, architecture).from_pretrained(
            folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:
        raise RepositoryError(f"{folder}: transformers cannot read it: {type(error).__name__}: {error}") from error
    tensors = dict(loaded.state_dict())
    described = {**describe(folder, config, module, options or {}), **(options or {})}
    head = {"factory": "cwd.models.zoo:transformers_model", "args": args}
    return _add(repository, names, version, module, head, described, ((tensors, -1) for _ in names), progress)


def add_exported(repository: Repository, name: str, path: str | Path, options: dict[str, Any] | None = None, *,
                 version: int = 1, copies: int = 1, progress: Progress | None = None) -> list[Entry]:
    """Add an exported program (.pt2) to a trusted repository: the program bare, and its weights beside it."""
    from cwd.models import exported

    if not repository.trusted:
        raise RepositoryError(f"{path}: an exported program is code; to accept it, make the file "
                              f"{repository.root}/TRUSTED", code=Code.UNTRUSTED_PROGRAM)
    names = _names(repository, name, version, copies)
    with tempfile.TemporaryDirectory(prefix="cwd-") as work:
        bare = Path(work) / "program.pt2"
        weights = exported.strip_exported(path, bare)
        program = exported.read_exported(bare)
        described = {**exported.describe(program, options or {}), **(options or {})}
        stored, tied = exported.untie(weights)
        head = {"exported": exported.file_sha256(bare), "tied": [list(pair) for pair in tied]}
        return _add(repository, names, version, exported.module_of(program), head, described,
                    ((stored, -1) for _ in names), progress, bare)


def load_safetensors(path: str | Path) -> dict[str, Any]:
    """All tensors of a safetensors file, as torch tensors."""
    from safetensors.torch import load_file

    from cwd.models.layout import WeightsFile

    WeightsFile(path).close()  # its complaints name the file and the tensor
    return load_file(path)


def _names(repository: Repository, name: str, version: int, copies: int) -> list[str]:
    from cwd.models.manifest import VERSION_MAX, check_name

    check_name(name)
    if not 1 <= version <= VERSION_MAX or not 1 <= copies <= 1_000_000:
        raise RepositoryError(f"version {version} or {copies} copies: out of range", code=Code.BAD_ARGUMENT)
    names = [name] if copies == 1 else [f"{name}-{index:03d}" for index in range(copies)]
    for one in names:
        if (repository.root / one / str(version)).exists():
            raise RepositoryError(f"{repository.root}: model {one}/{version} exists already", code=Code.MODEL_EXISTS)
    return names


def _add(repository: Repository, names: list[str], version: int, module: Any, head: dict[str, Any],
         options: dict[str, Any], instances: Iterator[tuple[dict[str, Any], int]], progress: Progress | None,
         exported: Path | None = None) -> list[Entry]:
    """Complete and try the program with the first instance, then store it and every instance."""
    from cwd.models import probe

    report = progress or (lambda done, total, text: None)
    report(0, len(names), "building the program")
    program_hash = None
    entries = []
    for index, (one, (tensors, seed)) in enumerate(zip(names, instances, strict=True)):
        if program_hash is None:
            spec = complete(head, options, module, tensors)
            program_hash = repository.add_program(spec, exported)
        if seed >= 0:
            tensors = probe.calibrate(spec, module, tensors)
        raw: dict[str, np.ndarray] = {weight.name: probe.raw_bytes(tensors[weight.name]) for weight in spec.weights}
        entries.append(repository.add(one, version, program_hash, raw, seed=seed))
        report(index + 1, len(names), one)
    return entries


def complete(head: dict[str, Any], options: dict[str, Any], module: Any, tensors: dict[str, Any]) -> ProgramSpec:
    """A whole spec from what builds the program, the options given, its module and an instance's weights; tried out."""
    from cwd.models import probe
    from cwd.models.program import Program

    for key in options:
        if key not in _OPTIONS:
            raise RepositoryError(f"options: {key!r} is none of {', '.join(_OPTIONS)}", code=Code.BAD_ARGUMENT)
    if "inputs" not in options:
        raise RepositoryError("options: 'inputs' is missing: the program's inputs cannot be found out",
                              code=Code.BAD_ARGUMENT)
    # an argument that JSON changes (a tuple, say) must change before the hash is taken
    value = json.loads(json.dumps({"format": 1, "batch_sizes": _BATCH_SIZES, "outputs": [], **head, **options,
                                   "weights": []}))
    outputs = value["outputs"]
    names = [one for one in outputs if isinstance(one, str)]
    spec = program_from_json({**value, "outputs": [] if names else outputs, "tied": []}, "options")
    specs = probe.weight_specs(module, tensors | {alias: tensors[name] for alias, name in head.get("tied", [])})
    aliases = {alias for alias, _ in head.get("tied", [])}
    spec = dataclasses.replace(spec, weights=tuple(one for one in specs if one.name not in aliases),
                               tied=tuple(tuple(pair) for pair in head.get("tied", [])))
    try:
        if names or "outputs" not in options:
            spec = dataclasses.replace(spec, outputs=probe.find_outputs(spec, module, tensors, names or None))
        program = Program(spec, module)
        program.run(program.bind(probe.image_of(spec, tensors)), spec.batch_sizes[-1], 0)
        probe.check_padding(spec, module, tensors)
    except (RuntimeError, TypeError, IndexError, ValueError) as error:
        text = f"the program does not run on inputs as described: {type(error).__name__}: {error}"
        raise RepositoryError(text) from error
    return program_from_json(spec.to_json(), "program")
