"""A program in torch: one module for all its instances, whose parameters are views of whichever instance runs.

The module is built once, on the meta device, so it owns no weights. `bind` makes views into an instance's page image;
running a binding first puts those views into the module's own `_parameters` and `_buffers` dictionaries, about 50 ns a
tensor and no copy. Buffers that are no part of the weights (position ids, ...) are made once. Knows nothing
of actions, windows or sockets. One thread at a time may run a program.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.models import fit
from cwd.models.exported import load_exported, torch  # torch, or a clear word that it is missing
from cwd.models.layout import Layout, Slot
from cwd.models.repository import EXPORTED_FILE, Repository
from cwd.models.spec import WEIGHT_BYTES, ProgramSpec

#: factories that any repository may name, spelled out since a dotted path could reach anything that a module imports;
#: others need a trusted repository, or to be listed in CWD_FACTORIES as `package.module:callable` or `package.module`
SAFE_FACTORIES = tuple(f"cwd.models.zoo:{name}" for name in (
    "transformers_model", "convnet5m", "mlp", "identity", "nothing", "early_exit"))

DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "F32": torch.float32, "I64": torch.int64, "F64": torch.float64,
}
Place = tuple[dict[str, Any], str]
#: shape and dtype
ArraySpec = tuple[torch.Size, torch.dtype]


@dataclass(frozen=True)
class Binding:
    """An instance's weights, ready to be put into the module: (dictionary, key, view) for each place."""

    places: tuple[tuple[dict[str, Any], str, torch.Tensor], ...]
    image: torch.Tensor


@dataclass(frozen=True)
class Buffers:
    """What one (batch, size class) needs: input arrays, their addresses i8[n], and how the module takes them.

    `reordered` holds (filled array, the same in channels_last) pairs, to be copied over before a run; `outputs` the
    (shape, dtype) to expect, `sources` i8[m] room for their addresses, `limits` the row of `plan.classes`.
    """

    limits: np.ndarray
    outputs: tuple[tuple[torch.Size, torch.dtype], ...]
    sources: np.ndarray
    tensors: tuple[torch.Tensor, ...]
    addresses: np.ndarray
    reordered: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    positional: tuple[torch.Tensor, ...]
    keywords: dict[str, torch.Tensor]


class Program:
    """A built program. `plan` is what fit.py's kernels take."""

    def __init__(self, spec: ProgramSpec, module: torch.nn.Module, device: torch.device | str = "cpu") -> None:
        self.spec = spec
        self.module = module
        self.device = torch.device(device)
        self.layout = Layout.of(spec)
        self.plan = fit.make_plan(spec)
        self._dtypes = sorted({weight.dtype for weight in spec.weights})
        places = _match(places_of(module), spec)
        self._strided = [(places[name], *_strided(slot)) for name, slot in self.layout.slots.items()]
        self._output_names = [tensor.name for tensor in spec.outputs]
        self._buffers: dict[tuple[int, int], Buffers] = {}
        self._active: Binding | None = None
        self._forward = _without_detour(module)

    @classmethod
    def load(cls, repository: Repository, program_hash: bytes, device: torch.device | str = "cpu") -> Program:
        """Build a stored program for a device. `RepositoryError`: UNTRUSTED_PROGRAM, CORRUPT, or BAD_MODEL with what went
        wrong."""
        spec = repository.program(program_hash)
        if spec.exported:
            path = repository.program_folder(program_hash) / EXPORTED_FILE
            return cls(spec, load_exported(path, spec.exported, trusted=repository.trusted, device=device), device)
        return cls(spec, build_module(spec.factory, spec.args, trusted=repository.trusted, device=device), device)

    def bind(self, flat: torch.Tensor) -> Binding:
        """Views of the instance's image `flat` (u8[>= image_bytes], 16-byte aligned); it must outlive the binding."""
        if flat.dtype != torch.uint8 or flat.numel() < self.layout.image_bytes:
            raise ValueError(f"an image is u8[{self.layout.image_bytes}], got {flat.dtype}[{flat.numel()}]")
        storage = flat[:self.layout.image_bytes]
        with torch.inference_mode():
            typed = {dtype: storage.view(DTYPES[dtype]) for dtype in self._dtypes}
            start = flat.storage_offset()
            found = []
            for places, dtype, shape, strides, offset, item_bytes in self._strided:
                view = torch.as_strided(typed[dtype], shape, strides, start // item_bytes + offset)
                # tied places get one tensor, so that the module still shows which they are
                found += [(holder, key, view) for holder, key in places]
        return Binding(tuple(found), flat)

    def buffers(self, batch: int, size_class: int) -> Buffers:
        """The input arrays to fill before `run`; made on first use and reused ever after."""
        found = self._buffers.get((batch, size_class))
        if found is None:
            wanted, _ = self.array_specs(batch, size_class)
            found = self.make_buffers(batch, size_class, tuple(torch.zeros(shape, dtype=dtype) for shape, dtype in wanted))
            self._buffers[batch, size_class] = found
        return found

    def run(self, binding: Binding, batch: int, size_class: int) -> list[torch.Tensor]:
        """Run the filled buffers with an instance's weights; outputs are contiguous, [batch, *class sizes] each.

        They may be overwritten by the next run. Raises `RepositoryError` if the module gives something else.
        """
        return self.run_in(binding, self.buffers(batch, size_class))

    def call(self, binding: Binding, batch: int, size_class: int) -> Any:
        """What the module itself returns for the filled buffers."""
        with torch.inference_mode():
            return self._call(binding, self.buffers(batch, size_class))

    def run_in(self, binding: Binding, buffers: Buffers) -> list[torch.Tensor]:
        """`run` with buffers that were made before."""
        if torch.is_inference_mode_enabled():  # to enter it costs more than to ask
            return self._outputs(self._call(binding, buffers), buffers)
        with torch.inference_mode():
            return self._outputs(self._call(binding, buffers), buffers)

    def _call(self, binding: Binding, buffers: Buffers) -> Any:
        if self._active is not binding:
            for holder, key, view in binding.places:
                holder[key] = view
            self._active = binding
        for filled, reordered in buffers.reordered:
            reordered.copy_(filled)
        return self._forward(*buffers.positional, **buffers.keywords)

    def fit(self, buffers: Buffers, batch: int, payloads: np.ndarray, sizes: np.ndarray, dims: np.ndarray,
            targets: np.ndarray | None = None) -> int:
        """Fill a batch's inputs from requests (see fit.py for the arrays), or others of their sizes at the addresses
        `targets` i8[n]; returns 0 or fit_inputs' code."""
        inputs, patterns, _, _ = self.plan
        return fit.fit_inputs(inputs, patterns, buffers.limits, batch, payloads, sizes, dims, len(payloads),
                              buffers.addresses if targets is None else targets)

    def trim(self, buffers: Buffers, outputs: Sequence[torch.Tensor], dims: np.ndarray, results: np.ndarray) -> None:
        """Write each request's part of a batch's `outputs`, which lie in host memory, to results i8[n]."""
        for index, tensor in enumerate(outputs):
            buffers.sources[index] = tensor.data_ptr()
        fit.fit_outputs(self.plan.outputs, buffers.limits, dims, len(results), buffers.sources, results)

    def execute(self, binding: Binding, batch: int, size_class: int, payloads: np.ndarray, sizes: np.ndarray,
                dims: np.ndarray, results: np.ndarray) -> int:
        """Fit requests, run, and trim into `results`; returns 0 or fit_inputs' code."""
        buffers = self.buffers(batch, size_class)
        code = self.fit(buffers, batch, payloads, sizes, dims)
        if code == fit.OK:
            self.trim(buffers, self.run_in(binding, buffers), dims, results)
        return code

    def infer(self, binding: Binding, payloads: list[bytes | np.ndarray], dims: list[tuple[int, ...]], *,
              batch: int = 0, size_class: int = -1) -> list[np.ndarray]:
        """Outputs (u1 each) for a few requests, for tests and local use: smallest batch and class that hold them."""
        requests = fit.requests_of(payloads, dims)
        n = len(payloads)
        if size_class < 0:
            size_class = self.spec.size_class_of(tuple(map(int, requests.dims.max(axis=0))))
        if size_class < 0:
            raise RepositoryError(f"no size class holds {dims}", code=Code.UNKNOWN_SIZE)
        batch = batch or next((size for size in self.spec.batch_sizes if size >= n), n)
        results = [np.empty(int(fit.row_bytes(self.plan.outputs, row)), np.uint8) for row in requests.dims]
        code = self.execute(binding, batch, size_class, requests.addresses, requests.sizes, requests.dims,
                            np.array([result.ctypes.data for result in results], np.int64))
        if code != fit.OK:
            raise RepositoryError("the requests do not fit", code=Code(code))
        return results

    def array_specs(self, batch: int, size_class: int) -> tuple[list[ArraySpec], list[ArraySpec]]:
        """Shapes and dtypes of a batch's inputs, and of its outputs."""
        dims = self.spec.class_dims(size_class)
        inputs, outputs = (
            [(torch.Size((batch, *tensor.sizes(self.spec.axes, dims))), getattr(torch, tensor.dtype)) for tensor in tensors]
            for tensors in (self.spec.inputs, self.spec.outputs))
        return inputs, outputs

    def make_buffers(self, batch: int, size_class: int, tensors: tuple[torch.Tensor, ...]) -> Buffers:
        """Buffers whose inputs are these (of `array_specs`, on the program's device)."""
        given, pairs = tensors, []
        if self.spec.memory_format == "channels_last":
            given = tuple(torch.empty_like(tensor, memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
                          for tensor in tensors)
            pairs = [pair for pair in zip(tensors, given, strict=True) if pair[0] is not pair[1]]
        outputs = tuple(self.array_specs(batch, size_class)[1])
        names = [tensor.name for tensor in self.spec.inputs]
        positional = self.spec.call == "positional"
        return Buffers(self.plan.classes[size_class], outputs, np.zeros(len(outputs), np.int64), tensors,
                       np.array([tensor.data_ptr() for tensor in tensors], np.int64),
                       tuple(pairs), given if positional else (),
                       {} if positional else dict(zip(names, given, strict=True)))

    def _outputs(self, found: Any, buffers: Buffers) -> list[torch.Tensor]:
        outputs = select_outputs(found, self._output_names)
        for index, (tensor, (shape, dtype)) in enumerate(zip(outputs, buffers.outputs, strict=True)):
            if tensor.shape != shape or tensor.dtype != dtype:
                raise RepositoryError(f"output {self._output_names[index]!r}: the program gave {tensor.dtype} "
                                      f"{list(tensor.shape)}, its description says {dtype} {list(shape)}")
            outputs[index] = tensor.contiguous()
        return outputs


def _without_detour(module: torch.nn.Module) -> Callable[..., Any]:
    """What calling the module comes to: its `forward`, unless it has hooks, or a way of its own to be called."""
    plain = type(module).__call__ is torch.nn.Module.__call__ and module._compiled_call_impl is None
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return module.forward if plain and not any(hooks) else module


def select_outputs(found: Any, names: list[str]) -> list[torch.Tensor]:
    """The named outputs out of what a module returned: a tensor, a sequence (by position) or a mapping (by name)."""
    if isinstance(found, torch.Tensor):
        if len(names) == 1:
            return [found]
        found = (found,)
    try:
        chosen = [found[name] for name in names] if hasattr(found, "keys") else list(found)[:len(names)]
    except (KeyError, TypeError):
        chosen = []
    if len(chosen) != len(names) or not all(isinstance(tensor, torch.Tensor) for tensor in chosen):
        raise RepositoryError(f"the program returned {type(found).__name__}, wanted {', '.join(names)}")
    return chosen


def places_of(module: torch.nn.Module) -> list[tuple[list[str], list[Place], torch.Tensor]]:
    """Every stored tensor of a module with its names and places, tied ones together; no non-persistent buffers."""
    groups: dict[int, tuple[list[str], list[Place], torch.Tensor]] = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        for holder in (part._parameters, part._buffers):
            for key, tensor in holder.items():
                if tensor is None or holder is part._buffers and key in part._non_persistent_buffers_set:
                    continue
                names, places, _ = groups.setdefault(id(tensor), ([], [], tensor))
                names.append(f"{prefix}.{key}" if prefix else key)
                if not any(holder is known and key == name for known, name in places):
                    places.append((holder, key))
    return list(groups.values())


def build_module(factory: str, args: dict[str, Any], *, trusted: bool,
                 device: torch.device | str = "cpu") -> torch.nn.Module:
    """The factory's module on the meta device, in eval mode, with everything that is no weight made real on `device`."""
    make = find_factory(factory, trusted=trusted)
    try:
        with torch.device("meta"):
            module = _call(make, factory, args)
        strays = _strays(module)
        if strays:
            donor = dict(_modules_and_values(_call(make, factory, args)))
            for holder, key, path in strays:
                holder[key] = donor[path].detach().clone().to(device)
    except RepositoryError:
        raise
    except Exception as error:
        raise RepositoryError(f"factory {factory}: {type(error).__name__}: {error}") from error
    return module.eval().requires_grad_(False)


def find_factory(factory: str, *, trusted: bool) -> Callable[..., Any]:
    """The callable that `package.module:callable` names; UNTRUSTED_PROGRAM unless the operator allows it."""
    listed = [entry.strip() for entry in os.environ.get("CWD_FACTORIES", "").split(",")]
    if not (trusted or factory in SAFE_FACTORIES or factory in listed or factory.partition(":")[0] in listed):
        raise RepositoryError(
            f"factory {factory} is code from outside cwd: list it in CWD_FACTORIES, or mark the repository as trusted "
            "with a file TRUSTED", code=Code.UNTRUSTED_PROGRAM)
    module_name, _, attribute = factory.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise RepositoryError(f"factory {factory}: {error}") from None
    return found


def _call(make: Callable[..., Any], factory: str, args: dict[str, Any]) -> torch.nn.Module:
    # Whatever randomness a constructor uses must not depend on, nor disturb, the caller's.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make(**args)
    if not isinstance(module, torch.nn.Module):
        raise RepositoryError(f"factory {factory} made a {type(module).__name__}, not a torch module")
    return module.eval()


def _modules_and_values(module: torch.nn.Module) -> list[tuple[str, Any]]:
    """Tensors that are no weights, by path: non-persistent buffers, and plain tensors kept as attributes."""
    found = []
    for prefix, part in module.named_modules():
        found += [(f"{prefix}:{key}", tensor) for key, tensor in part._buffers.items()
                  if tensor is not None and key in part._non_persistent_buffers_set]
        found += [(f"{prefix}:{key}", value) for key, value in vars(part).items() if isinstance(value, torch.Tensor)]
    return found


def _strays(module: torch.nn.Module) -> list[tuple[dict[str, Any], str, str]]:
    found: list[tuple[dict[str, Any], str, str]] = []
    for prefix, part in module.named_modules():
        for holder, keys in ((part._buffers, part._non_persistent_buffers_set), (vars(part), None)):
            found += [(holder, key, f"{prefix}:{key}") for key, value in holder.items()
                      if isinstance(value, torch.Tensor) and value.is_meta and (keys is None or key in keys)]
    return found


def _strided(slot: Slot) -> tuple[str, tuple[int, ...], tuple[int, ...], int, int]:
    """(dtype, shape, strides, offset in items, bytes per item) of a slot's view: bind makes one call for each."""
    strides, step = [0] * len(slot.shape), 1
    for axis in (1, 3, 2, 0) if slot.channels_last else reversed(range(len(slot.shape))):
        strides[axis] = step
        step *= slot.shape[axis]
    item_bytes = WEIGHT_BYTES[slot.dtype]
    return slot.dtype, slot.shape, tuple(strides), slot.offset // item_bytes, item_bytes


def _match(groups: list[tuple[list[str], list[Place], torch.Tensor]], spec: ProgramSpec) -> dict[str, list[Place]]:
    """Places by stored name; the module's tensors and the description's must be the same."""
    by_name = {name: group for group in groups for name in group[0]}
    for alias, name in spec.tied:
        if alias in by_name and name in by_name and by_name[alias] is not by_name[name]:
            by_name[name][1].extend(by_name[alias][1])
            groups = [group for group in groups if group is not by_name[alias]]
    found = {}
    for weight in spec.weights:
        if weight.name not in by_name:
            raise RepositoryError(f"weight {weight.name!r}: the program has no such tensor")
        _, places, tensor = by_name[weight.name]
        if tuple(tensor.shape) != weight.shape:
            raise RepositoryError(f"weight {weight.name!r}: the program's shape is {list(tensor.shape)}, "
                                  f"the description's {list(weight.shape)}")
        found[weight.name] = places
    missing = [names[0] for names, _, _ in groups if not any(name in found for name in names)]
    if missing:
        raise RepositoryError(f"{len(missing)} of the program's tensors are not among the weights: {missing[0]!r}, ...")
    return found
