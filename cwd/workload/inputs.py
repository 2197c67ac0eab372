"""Make the inputs of one request for a model of which only the manifest is known.

A model with a dynamic axis gets real (or made-up) token sequences: an integer input is the ids, unless its name says
mask (ones) or type (zeros). Fixed-size inputs come from a small pool of seeded arrays per shape, so that making a request
costs microseconds. Knows nothing of time, rates or sockets.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cwd.client import Model
from cwd.workload.lengths import Texts

POOL = 8


class Maker(Protocol):
    """Makes the inputs of a request, by name, and says how long its sequence is (-1: there is none)."""

    def make(self, length: int = -1) -> tuple[dict[str, NDArray[Any]], int]: ...


class InputMaker:
    """Makes requests for one model; `pool` is shared by all makers of a replay, keyed by (shape, dtype)."""

    def __init__(self, model: Model, texts: Texts, rng: np.random.Generator, pool: dict[Any, list[NDArray[Any]]], *,
                 vocabulary: int | None = None) -> None:
        """`vocabulary`: ids are taken modulo it, for a model with fewer words than BERT's WordPiece list."""
        self.model = model
        self._texts = texts
        self._rng = rng
        self._pool = pool
        self._vocabulary = vocabulary
        #: longest sequence that a request may have; 0 for a model without a dynamic axis
        self.longest = max((sizes[0] for sizes in model.size_classes), default=0) if model.axes else 0

    def make(self, length: int = -1) -> tuple[dict[str, NDArray[Any]], int]:
        """(inputs by name, length of the sequence or -1). `length` -1 draws a text; otherwise the text is made to fit."""
        ids = self._ids(length) if self.model.axes else None
        sizes = self._sizes(ids)
        inputs = {}
        for tensor in self.model.inputs:
            shape = tuple(sizes[size] if isinstance(size, str) else size for size in tensor.shape)
            if ids is not None and tensor.dtype.kind in "iu" and shape == (len(ids),):
                inputs[tensor.name] = self._tokens(tensor.name, ids, tensor.dtype)
            else:
                inputs[tensor.name] = self._pooled(shape, tensor.dtype)
        return inputs, -1 if ids is None else len(ids)

    def _ids(self, length: int) -> NDArray[np.int64]:
        text = self._texts.text(int(self._rng.integers(len(self._texts))), 1 << 30)
        if self.model.exact:
            allowed = sorted({sizes[0] for sizes in self.model.size_classes})
            length = next((size for size in allowed if size >= (length if length > 0 else len(text))), allowed[-1])
        wanted = min(length if length > 0 else len(text), self.longest)
        if len(text) >= wanted:
            return text[:wanted] if wanted == len(text) else np.append(text[: wanted - 1], text[-1:])
        return np.resize(text, wanted)

    def _sizes(self, ids: NDArray[np.int64] | None) -> dict[str, int]:
        """The first axis is the sequence; further ones take the smallest class that holds it."""
        if ids is None:
            return {}
        fitting = [sizes for sizes in self.model.size_classes if sizes[0] >= len(ids)]
        chosen = min(fitting)
        return {axis: len(ids) if index == 0 else chosen[index] for index, axis in enumerate(self.model.axes)}

    def _tokens(self, name: str, ids: NDArray[np.int64], dtype: np.dtype[Any]) -> NDArray[Any]:
        if "mask" in name:
            return np.ones(len(ids), dtype)
        if "type" in name:
            return np.zeros(len(ids), dtype)
        return (ids if self._vocabulary is None else ids % self._vocabulary).astype(dtype)

    def _pooled(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        arrays = self._pool.get((shape, dtype))
        if arrays is None:
            arrays = self._pool[shape, dtype] = [self._fresh(shape, dtype) for _ in range(POOL)]
        return arrays[int(self._rng.integers(len(arrays)))]

    def _fresh(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        if dtype.kind == "f":
            return self._rng.standard_normal(shape, dtype=np.float32).astype(dtype)
        if dtype.kind == "b":
            return self._rng.integers(0, 2, shape).astype(dtype)
        return self._rng.integers(0, 2 if dtype.itemsize == 1 else 128, shape).astype(dtype)
