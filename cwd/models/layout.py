"""Page images: where each tensor of an instance lies, and how the bytes get there from a safetensors file.

An image is one contiguous run of bytes, tensors at 256-byte offsets in the program's order, cut into pages by whoever
holds it; a tensor may straddle pages. All instances of a program have the same layout. The safetensors header is read
here by hand (it is JSON behind a length), so that bfloat16 works and torch is not needed. No pickle is ever read.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from cwd.errors import Code, RepositoryError
from cwd.models.spec import WEIGHT_BYTES, ProgramSpec, WeightSpec

ALIGN_BYTES = 256
HEADER_BYTES_MAX = 100 << 20
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class Slot:
    """A tensor's place in a file or image: byte offset and size, dtype as safetensors spells it, shape.

    `channels_last` is only true in images, of four-dimensional tensors: axis 1 then lies innermost in memory.
    """

    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    channels_last: bool = False


@dataclass(frozen=True)
class Layout:
    """Name -> Slot for every stored tensor, in image order; `image_bytes` is a multiple of 256."""

    slots: dict[str, Slot]
    image_bytes: int

    @classmethod
    def of(cls, spec: ProgramSpec) -> Layout:
        slots, end = {}, 0
        for weight in spec.weights:
            last = spec.memory_format == "channels_last" and len(weight.shape) == 4
            slots[weight.name] = Slot(end, weight.nbytes(), weight.dtype, weight.shape, last)
            end += -(-weight.nbytes() // ALIGN_BYTES) * ALIGN_BYTES
        return cls(slots, end)


class WeightsFile:
    """A safetensors file, mapped read-only: its tensors' dtypes, shapes and bytes. Close it, or use `with`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8:
                    raise self._bad("too short for a safetensors header")
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise RepositoryError(f"{self.path}: {error.strerror}") from None
        self.nbytes = size
        try:
            self.slots = self._read_header()
        except BaseException:
            self._map.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._map.close()

    def close(self) -> None:
        self._map.close()

    def bytes_of(self, name: str) -> np.ndarray:
        """The tensor's raw bytes as a copy-free u1 array; it must be dropped before `close`."""
        slot = self.slots[name]
        return np.frombuffer(self._map, np.uint8, slot.nbytes, slot.offset)

    def copy_into(self, name: str, out: np.ndarray, *, channels_last: bool = False) -> None:
        """Copy the tensor's bytes to `out` (u1), with axis 1 moved innermost if asked."""
        raw = self.bytes_of(name)
        if channels_last:
            n, c, h, w = self.slots[name].shape
            out.reshape(n, h, w, c, -1)[:] = raw.reshape(n, c, h, w, -1).transpose(0, 2, 3, 1, 4)
        else:
            out[:] = raw

    def sha256(self) -> str:
        digest = hashlib.sha256()
        with memoryview(self._map) as view:
            for start in range(0, self.nbytes, _CHUNK_BYTES):
                digest.update(view[start:start + _CHUNK_BYTES])
        return digest.hexdigest()

    def _bad(self, why: str) -> RepositoryError:
        return RepositoryError(f"{self.path}: {why}", code=Code.CORRUPT)

    def _read_header(self) -> dict[str, Slot]:
        length = int.from_bytes(self._map[:8], "little")
        if not 2 <= length <= min(HEADER_BYTES_MAX, self.nbytes - 8):
            raise self._bad(f"its header claims {length} bytes")
        try:
            header = json.loads(self._map[8:8 + length])
        except ValueError:
            raise self._bad("its header is not JSON") from None
        if not isinstance(header, dict):
            raise self._bad("its header is not an object")
        header.pop("__metadata__", None)
        return {name: self._slot(name, value, 8 + length) for name, value in header.items()}

    def _slot(self, name: str, value: Any, base: int) -> Slot:
        try:
            dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
            count = WEIGHT_BYTES[dtype]
            for size in shape:
                count *= size
            sound = end - begin == count and 0 <= begin and base + end <= self.nbytes and all(n >= 0 for n in shape)
        except (KeyError, TypeError, ValueError):
            sound = False
        if not sound:
            raise self._bad(f"tensor {name!r:.80} has a header entry that does not fit: {value!r:.120}")
        return Slot(base + begin, count, dtype, shape)


def build_image(path: str | os.PathLike[str], sha256: str, spec: ProgramSpec, out: np.ndarray) -> int:
    """Write the page image of a weights file into `out` (u1[>= image_bytes]), the rest as zeros; returns image_bytes.

    The file's sha256 is checked first: `RepositoryError` (CORRUPT) if it differs or a tensor is not as recorded.
    """
    layout = Layout.of(spec)
    if out.dtype != np.uint8 or out.size < layout.image_bytes:
        raise ValueError(f"image needs {layout.image_bytes} bytes of u1, got {out.size} of {out.dtype}")
    with WeightsFile(path) as file:
        found = file.sha256()
        if found != sha256:
            raise RepositoryError(f"{file.path}: its sha256 is {found[:16]}..., recorded was {sha256[:16]}...",
                                  code=Code.CORRUPT)
        end = 0
        for name, slot in layout.slots.items():
            stored = file.slots.get(name)
            if stored is None or (stored.dtype, stored.shape) != (slot.dtype, slot.shape):
                got = "nothing" if stored is None else f"{stored.dtype}{list(stored.shape)}"
                raise RepositoryError(f"{file.path}: tensor {name!r}: wanted {slot.dtype}{list(slot.shape)}, "
                                      f"found {got}", code=Code.CORRUPT)
            out[end:slot.offset] = 0
            end = slot.offset + slot.nbytes
            file.copy_into(name, out[slot.offset:end], channels_last=slot.channels_last)
        out[end:] = 0
    return layout.image_bytes


def write_weights(path: str | os.PathLike[str], tensors: dict[str, np.ndarray], weights: tuple[WeightSpec, ...]) -> str:
    """Write a safetensors file with the tensors in the program's order, as raw bytes per name; returns its sha256.

    Canonical: the same tensors give the same bytes. `tensors` maps each name to an array whose memory is the tensor's
    (any dtype of the same size; C order). The caller renames the file into place.
    """
    header, end = {}, 0
    for weight in weights:
        header[weight.name] = {"dtype": weight.dtype, "shape": list(weight.shape),
                               "data_offsets": [end, end + weight.nbytes()]}
        end += weight.nbytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text):
            digest.update(part)
            file.write(part)
        for weight in weights:
            raw = np.ascontiguousarray(tensors[weight.name]).reshape(-1).view(np.uint8)
            if raw.size != weight.nbytes():
                raise ValueError(f"{weight.name}: {raw.size} bytes given, {weight.nbytes()} wanted")
            digest.update(raw.data)
            file.write(raw.data)
    return digest.hexdigest()
