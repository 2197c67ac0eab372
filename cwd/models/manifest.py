"""model.json: one servable instance, which is a program and its own weights.

Knows neither torch nor numba, and reads no file but through `manifest_from_json`: the controller, the worker and the
command line all share it. What instances of a program have in common is in `spec.ProgramSpec`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from cwd.errors import RepositoryError
from cwd.models.spec import FORMAT, ProgramSpec, Reader, TensorSpec, WeightSpec, is_sha256

__all__ = ["Manifest", "ProgramSpec", "TensorSpec", "WeightSpec", "check_name", "manifest_from_json"]

WEIGHTS_FILE = "weights.safetensors"
VERSION_MAX = 2**32 - 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,126}")


@dataclass(frozen=True)
class Manifest:
    """A model of the repository. `image_bytes` is its page image's size, `seed` is -1 for weights not generated."""

    name: str
    version: int
    program: ProgramSpec
    #: the 16 bytes that name the program, see ProgramSpec.hash
    program_hash: bytes
    weights_sha256: str
    weights_bytes: int
    image_bytes: int
    seed: int = -1

    @property
    def key(self) -> str:
        return f"{self.name}/{self.version}"

    @property
    def image_hash(self) -> bytes:
        """16 bytes that name this instance's page image."""
        text = f"{self.name}|{self.version}|{self.weights_sha256}|{self.program_hash.hex()}"
        return hashlib.sha256(text.encode()).digest()[:16]

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What a client sends, in the payload's order."""
        return self.program.client_inputs()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.program.outputs

    @property
    def axes(self) -> tuple[str, ...]:
        return self.program.axes

    @property
    def size_classes(self) -> tuple[tuple[int, ...], ...]:
        return self.program.size_classes

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        return self.program.batch_sizes

    def payload_bytes(self, dims: tuple[int, ...]) -> int:
        return self.program.payload_bytes(dims)

    def output_bytes(self, dims: tuple[int, ...]) -> int:
        return self.program.output_bytes(dims)

    def size_class_of(self, dims: tuple[int, ...]) -> int:
        return self.program.size_class_of(dims)

    def pages(self, page_bytes: int) -> int:
        """Pages that the instance takes on a device; a model without weights takes one, so that it can be resident."""
        return max(1, -(-self.image_bytes // page_bytes))

    def manifest_map(self) -> dict[str, Any]:
        """What MODEL tells a client (proto_spec section 7): enough to encode a request and to decode its reply."""
        return {
            "name": self.name,
            "version": self.version,
            "inputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in self.inputs],
            "outputs": [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in self.outputs],
            "axes": list(self.axes),
            "exact": self.program.padding == "exact",
            "size_classes": [list(sizes) for sizes in self.size_classes],
            "batch_sizes": list(self.batch_sizes),
        }

    def to_json(self) -> dict[str, Any]:
        """The content of model.json; the program's own part is in `.programs/<hash>/program.json`."""
        return {
            "format": FORMAT, "name": self.name, "version": self.version, "program": self.program_hash.hex(),
            "weights": {"file": WEIGHTS_FILE, "sha256": self.weights_sha256, "bytes": self.weights_bytes},
            "image_bytes": self.image_bytes, "seed": self.seed,
        }


def check_name(name: str) -> str:
    """The name, if a model may have it (it becomes a folder); raises `RepositoryError` otherwise."""
    if not _NAME.fullmatch(name):
        raise RepositoryError(f"{name!r:.80} is no model name: letters, digits, '.', '_' and '-', at most 127 of them")
    return name


def program_hash_in(value: Any, where: str) -> bytes:
    """The program that a parsed model.json names, as 16 bytes."""
    read = Reader(value, where)
    text = read.text("program")
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise read.fail("program", f"wanted 32 hex digits, got {text!r:.60}")
    return bytes.fromhex(text)


def manifest_from_json(value: Any, program: ProgramSpec, where: str) -> Manifest:
    """The manifest in parsed JSON, checked; `where` is the file's path for messages. Raises `RepositoryError`."""
    read = Reader(value, where)
    read.known("format", "name", "version", "program", "weights", "image_bytes", "seed")
    read.integer("format", FORMAT, FORMAT)
    weights = Reader(read.take("weights", dict, "an object"), f"{where}: weights")
    weights.known("file", "sha256", "bytes")
    weights.choice("file", (WEIGHTS_FILE,))
    if not is_sha256(weights.text("sha256")):
        raise weights.fail("sha256", "wanted 64 hex digits")
    name = read.text("name")
    if not _NAME.fullmatch(name):
        raise read.fail("name", f"{name!r:.60} is no model name")
    return Manifest(
        name=name, version=read.integer("version", 1, VERSION_MAX), program=program,
        program_hash=program_hash_in(value, where), weights_sha256=weights.text("sha256"),
        weights_bytes=weights.integer("bytes", 0, 2**62), image_bytes=read.integer("image_bytes", 0, 2**62),
        seed=read.integer("seed", -1, 2**62, -1))
