"""Exported torch programs (.pt2): reading and re-writing them without weights.

A .pt2 is code: torch's loader falls back to unpickling where its safe path fails. So one is read only from a
repository that the operator trusts, with the sha256 recorded at import, and after its archive has been looked through
for anything that would be unpickled. The stored form has no weights in it (they are on the meta device): instances
bring their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
import zipfile
from typing import Any

from cwd.errors import Code, CwdError, RepositoryError

try:
    import torch
except ImportError:
    raise CwdError("models need torch: pip install 'cwd[server]'") from None

_CONFIGS = ("model_weights_config.json", "model_constants_config.json")


def file_sha256(path: str | os.PathLike[str]) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RepositoryError(f"{path}: {error.strerror}") from None


def load_exported(path: str | os.PathLike[str], sha256: str, *, trusted: bool,
                  device: torch.device | str = "cpu") -> torch.nn.Module:
    """The stored program as a module whose weights are on the meta device, to be run on `device`. UNTRUSTED_PROGRAM,
    CORRUPT, or BAD_MODEL."""
    if not trusted:
        raise RepositoryError(f"{path}: an exported program is code, and its repository has no file TRUSTED",
                              code=Code.UNTRUSTED_PROGRAM)
    if file_sha256(path) != sha256:
        raise RepositoryError(f"{path}: its sha256 differs from the one recorded", code=Code.CORRUPT)
    program = read_exported(path)
    _retarget(program, torch.device(device))
    return module_of(program)


def _retarget(program: torch.export.ExportedProgram, device: torch.device) -> None:
    """Have a program make its tensors on `device`, wherever it was exported (torch's own pass fails on meta weights)."""
    for node in program.graph.nodes:
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": device}
    for name, value in program.constants.items():
        if isinstance(value, torch.Tensor):
            program.constants[name] = value.to(device)


def read_exported(path: str | os.PathLike[str]) -> torch.export.ExportedProgram:
    """Load a .pt2 whose archive holds nothing to unpickle; the caller has made sure that it is trusted."""
    check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(os.fspath(path))
    except Exception as error:
        raise RepositoryError(f"{path}: torch cannot load it: {type(error).__name__}: {error}") from error


def module_of(program: torch.export.ExportedProgram) -> torch.nn.Module:
    """A callable module; torch's input guards are left out, since sizes have been checked already."""
    try:
        module = program.module(check_guards=False)
    except TypeError:  # torch before 2.9
        module = program.module()
    return module


def check_archive(path: str | os.PathLike[str]) -> None:
    """Refuse (CORRUPT) a .pt2 that is no archive, or in which weights, constants or sample inputs are pickles."""
    try:
        with zipfile.ZipFile(path) as archive:
            for item in archive.infolist():
                name = item.filename
                if name.endswith(_CONFIGS) and _pickles(json.loads(archive.read(item))):
                    raise _pickled(path, name)
                if "/data/sample_inputs/" in name and item.file_size > 0:
                    raise _pickled(path, name)
                if name.endswith((".so", ".pkl", ".py", ".o")):
                    raise _pickled(path, name)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RepositoryError(f"{path}: no exported program: {error}", code=Code.CORRUPT) from None


def strip_exported(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Write a trusted .pt2 again without weights and sample inputs; returns the weights, tied ones sharing memory.

    The user's file may hold sample inputs, which torch reads as a pickle of tensors only; they are dropped unread.
    """
    bare = os.fspath(target) + ".bare"
    _copy_without_samples(source, bare)
    try:
        program = read_exported(bare)
    finally:
        os.unlink(bare)
    weights = dict(program.state_dict)
    empty: dict[int, Any] = {}
    for tensor in weights.values():
        blank = torch.empty_like(tensor, device="meta")
        is_weight = isinstance(tensor, torch.nn.Parameter)
        empty[id(tensor)] = torch.nn.Parameter(blank, requires_grad=False) if is_weight else blank
    program._state_dict = {name: empty[id(tensor)] for name, tensor in weights.items()}
    program.example_inputs = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, os.fspath(target))
    return {name: tensor.detach() for name, tensor in weights.items()}


def _copy_without_samples(source: str | os.PathLike[str], target: str) -> None:
    try:
        with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
            for item in old.infolist():
                new.writestr(item, b"" if "/data/sample_inputs/" in item.filename else old.read(item))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise RepositoryError(f"{source}: no exported program: {error}", code=Code.CORRUPT) from None


def _pickles(config: Any) -> bool:
    return any(entry.get("use_pickle", True) for entry in config.get("config", {}).values())


def _pickled(path: str | os.PathLike[str], name: str) -> RepositoryError:
    return RepositoryError(f"{path}: it holds {name}, which could run code on loading", code=Code.CORRUPT)


def untie(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[tuple[str, str]]]:
    """(weights with tied ones once, [(alias, stored name)]). Tied: the same memory under two names."""
    stored: dict[str, torch.Tensor] = {}
    tied: list[tuple[str, str]] = []
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in weights.items():
        key = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)
        known = first.setdefault(key, name) if tensor.numel() else name
        if known == name:
            stored[name] = tensor
        else:
            tied.append((name, known))
    return stored, tied


def describe(program: torch.export.ExportedProgram, options: dict[str, Any]) -> dict[str, Any]:
    """Inputs, axes and batch sizes as they were exported; `options` must give `size_classes` if an axis is dynamic."""
    arguments, keywords = program.call_spec.in_spec.children()
    if arguments.num_leaves and keywords.num_leaves:
        raise RepositoryError("it was exported with positional and with keyword inputs; export it with one kind")
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    values = [placeholders[name] for name in program.graph_signature.user_inputs]
    names = list(keywords.context) if keywords.num_leaves else list(program.graph_signature.user_inputs)
    if len(names) != len(values) or not all(isinstance(value, torch.Tensor) for value in values):
        raise RepositoryError("its inputs are nested or no tensors; export it with plain tensor inputs")
    axes: dict[str, str] = {}
    given = options.get("axes", [])
    inputs, batch = [], set()
    for name, value in zip(names, values, strict=True):
        shape: list[Any] = []
        batch.add(str(value.shape[0]) if value.ndim else "")
        for size in value.shape[1:]:
            if isinstance(size, int):
                shape.append(size)
            else:
                fresh = given[len(axes)] if len(axes) < len(given) else f"axis{len(axes)}"
                shape.append(axes.setdefault(str(size), fresh))
        inputs.append({"name": name, "dtype": str(value.dtype).removeprefix("torch."), "shape": shape})
    if axes and "size_classes" not in options:
        raise RepositoryError(f"options: 'size_classes' is missing: it was exported with {len(axes)} dynamic axes "
                              "besides the batch", code=Code.BAD_ARGUMENT)
    return {"inputs": inputs, "axes": list(axes.values()), "batch_sizes": _batch_sizes(batch),
            "call": "keywords" if keywords.num_leaves else "positional"}


def _batch_sizes(found: set[str]) -> list[int]:
    if len(found) != 1:
        raise RepositoryError(f"its inputs have different first axes ({', '.join(sorted(found))}), which must be the "
                              "batch")
    size = found.pop()
    if size.isdecimal() and size != "1":
        raise RepositoryError(f"it was exported for batches of exactly {size}; export it with a dynamic first axis, "
                              "or 1")
    return [1] if size == "1" else [1, 2, 4, 8, 16]
