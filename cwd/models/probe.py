"""Finding out what a program gives, and whether padding changes it, by running it on tiny inputs at import.

Knows the in-process `Program` and nothing of files or workers. What cannot be found out is an error that names the
option to give: a wrong guess would be served.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from cwd.errors import RepositoryError
from cwd.models.layout import Layout
from cwd.models.program import Program, places_of
from cwd.models.spec import ProgramSpec, TensorSpec, WeightSpec

DTYPE_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.int64: "I64", torch.float64: "F64",
}
#: relative difference above which padding is said to change the result; a missing mask gives 1e-2, a sound one 1e-6
PADDING_TOLERANCE = 1e-4


def raw_bytes(tensor: torch.Tensor | np.ndarray) -> np.ndarray:
    """A tensor's memory in C order as u1[n], whatever its dtype."""
    if isinstance(tensor, np.ndarray):
        return np.ascontiguousarray(tensor).reshape(-1).view(np.uint8)
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def weight_specs(module: torch.nn.Module, tensors: dict[str, Any]) -> tuple[WeightSpec, ...]:
    """The module's stored tensors in its order, each under the name that `tensors` has it by, with that tensor's dtype.

    Raises `RepositoryError` that names what is missing, has another shape, or is left over.
    """
    found, left = [], set(tensors)
    for names, _, wanted in places_of(module):
        name = next((name for name in names if name in tensors), None)
        if name is None:
            raise RepositoryError(f"the weights have no tensor {names[0]!r}, which the program needs")
        tensor = tensors[name]
        if tuple(tensor.shape) != tuple(wanted.shape):
            raise RepositoryError(f"weight {name!r}: shape {list(tensor.shape)}, the program wants "
                                  f"{list(wanted.shape)}")
        dtype = DTYPE_NAMES[tensor.dtype] if isinstance(tensor, torch.Tensor) else DTYPE_NAMES[
            getattr(torch, str(tensor.dtype))]
        found.append(WeightSpec(name, dtype, tuple(tensor.shape)))
        left -= set(names)
    if left:
        raise RepositoryError(f"the weights have {len(left)} tensors that the program lacks: {min(left)!r}, ...")
    return tuple(found)


def image_of(spec: ProgramSpec, tensors: dict[str, Any]) -> torch.Tensor:
    """An instance's image in memory, straight from its tensors."""
    layout = Layout.of(spec)
    image = torch.zeros(max(1, layout.image_bytes), dtype=torch.uint8)
    flat = image.numpy()
    for name, slot in layout.slots.items():
        out, raw = flat[slot.offset:slot.offset + slot.nbytes], raw_bytes(tensors[name])
        if slot.channels_last:
            n, c, h, w = slot.shape
            out.reshape(n, h, w, c, -1)[:] = raw.reshape(n, c, h, w, -1).transpose(0, 2, 3, 1, 4)
        else:
            out[:] = raw
    return image


def find_outputs(spec: ProgramSpec, module: torch.nn.Module, tensors: dict[str, Any],
                 names: list[str] | None = None) -> tuple[TensorSpec, ...]:
    """The outputs' names, dtypes and shapes (with axes by name), found by running one axis at a time at another size.

    `names` picks some of them; by default a mapping gives its first tensor, a tensor or sequence all.
    """
    base = spec.size_classes[0]
    varied = [tuple(max(1, size // 2) + (size == 1) if k == axis else size for k, size in enumerate(base))
              for axis in range(len(base))]
    program = Program(dataclasses.replace(spec, outputs=(), size_classes=(base, *varied)), module)
    binding = program.bind(image_of(spec, tensors))
    batch = 2 if len(spec.batch_sizes) > 1 else 1
    runs = [dict(_tensors_of(program.call(binding, batch, index), names)) for index in range(1 + len(varied))]
    found = []
    for name, tensor in runs[0].items():
        if tensor.ndim < 1 or tensor.shape[0] != batch:
            raise RepositoryError(f"output {name!r} has shape {list(tensor.shape)} for a batch of {batch}: its first "
                                  "axis must be the batch")
        shape: list[int | str] = list(tensor.shape[1:])
        for axis, run in enumerate(runs[1:]):
            for k, size in enumerate(run[name].shape[1:]):
                if size != tensor.shape[1 + k]:
                    if size != varied[axis][axis] or tensor.shape[1 + k] != base[axis]:
                        raise RepositoryError(f"output {name!r}: axis {k + 1} depends on {spec.axes[axis]} but is not "
                                              "equal to it; the size of an output must be an axis or fixed")
                    shape[k] = spec.axes[axis]
        found.append(TensorSpec(name, str(tensor.dtype).removeprefix("torch."), tuple(shape)))
    return tuple(found)


def check_padding(spec: ProgramSpec, module: torch.nn.Module, tensors: dict[str, Any]) -> None:
    """Raise `RepositoryError` if a padded request comes out otherwise than the same one unpadded."""
    limits = spec.size_classes[0]
    sizes = tuple(max(1, size - max(1, size // 4)) for size in limits)
    if spec.padding == "exact" or sizes == limits:
        return
    image = image_of(spec, tensors)
    payload = np.concatenate([raw_bytes(array) for array in sample_payload(spec, sizes, seed=1)])
    results = []
    for one_class in (limits, sizes):
        program = Program(dataclasses.replace(spec, size_classes=(one_class,)), module)
        results.append(program.infer(program.bind(image), [payload], [sizes], size_class=0, batch=1)[0])
    start = 0
    for tensor in spec.outputs:
        end = start + tensor.nbytes(spec.axes, sizes)
        padded, plain = (result[start:end].view(tensor.dtype).astype(np.float64) for result in results)
        worst, scale = float(np.abs(padded - plain).max()), float(np.abs(plain).max())
        if not worst <= PADDING_TOLERANCE * max(scale, 1e-3):
            raise RepositoryError(
                f"padding {list(sizes)} to {list(limits)} changes output {tensor.name!r} by {worst:.2g} of "
                f'{scale:.2g}: give it a mask input, or set padding = "exact" to accept full size classes only')
        start = end


def calibrate(spec: ProgramSpec, module: torch.nn.Module, tensors: dict[str, Any]) -> dict[str, Any]:
    """Generated weights with each batch norm's running statistics as they are on random inputs; others unchanged.

    Without it the activations of a deep residual net with random weights grow by orders of magnitude, and with them
    the rounding errors in which two ways of running it differ.
    """
    norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return tensors
    image = image_of(spec, tensors)
    program = Program(spec, module)
    binding = program.bind(image)
    batch = 8
    arrays = iter(sample_payload(spec, spec.size_classes[0], seed=0, batch=batch))
    for filled, tensor in zip(program.buffers(batch, 0).tensors, spec.inputs, strict=True):
        filled.copy_(torch.ones(()) if tensor.made else torch.from_numpy(next(arrays)))
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.training, norm.momentum = True, 1.0
        program.call(binding, batch, 0)  # in this mode a batch norm writes its statistics into the image
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.training, norm.momentum = False, momentum
    found = dict(tensors)
    for name, slot in program.layout.slots.items():
        if name.endswith(("running_mean", "running_var")):
            measured = image[slot.offset:slot.offset + slot.nbytes].view(torch.float32).view(slot.shape)
            # a channel that the few samples hardly stirred would be blown up for those that do
            found[name] = measured.clamp(min=measured.mean() / 2) if name.endswith("var") else measured.clone()
    return found


def sample_payload(spec: ProgramSpec, sizes: tuple[int, ...], *, seed: int, batch: int = 0) -> list[np.ndarray]:
    """Arrays for one request, or for a batch: standard normal floats; integers of 0 and 1, which any vocabulary has."""
    random = np.random.default_rng(seed)
    arrays = []
    for tensor in spec.client_inputs():
        shape = (batch,) * bool(batch) + tensor.sizes(spec.axes, sizes)
        if tensor.dtype.startswith("float"):
            arrays.append(random.standard_normal(shape).astype(tensor.dtype))
        else:
            arrays.append(random.integers(0, 2, shape).astype(tensor.dtype))
    return arrays


def _tensors_of(found: Any, names: list[str] | None) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(found, torch.Tensor):
        found = (found,)
    if hasattr(found, "items"):
        pairs = [(str(key), value) for key, value in found.items() if isinstance(value, torch.Tensor)]
        pairs = pairs[:1] if names is None else [pair for pair in pairs if pair[0] in names]
    elif isinstance(found, (tuple, list)):
        keys = names or (["output"] if len(found) == 1 else [f"output{index}" for index in range(len(found))])
        pairs = [pair for pair in zip(keys, found, strict=False) if isinstance(pair[1], torch.Tensor)]
    else:
        pairs = []
    if not pairs or names is not None and len(pairs) != len(names):
        raise RepositoryError(f"the program returned {type(found).__name__}, in which there is no tensor "
                              f"{', '.join(names or ['at all'])}")
    yield from pairs
