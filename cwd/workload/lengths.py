"""Token sequences for models with a sequence axis: real texts as BERT WordPiece ids, or made-up ones of like lengths.

A token file is an npz with `lengths`, `ids` (uint16, CLS and SEP included) and `offsets`; text k is
ids[offsets[k]:offsets[k+1]]. Texts of length 2 are empty and dropped. Files are looked for in the folder that the
environment variable CWD_DATA names.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cwd.errors import Code, CwdError
from cwd.workload.traces import Int64s

CLS, SEP, FIRST_WORD, VOCABULARY = 101, 102, 1000, 30522
#: lognormal of text lengths without data: median 30 tokens, one in a hundred over 130
LENGTH_MEDIAN, LENGTH_SIGMA = 30.0, 0.63
EMPTY_LENGTH = 2


@dataclass(frozen=True)
class Texts:
    """A pool of token sequences: text k is `ids[offsets[k]:offsets[k + 1]]`."""

    #: int64 (tokens,)
    ids: Int64s
    #: int64 (texts + 1,)
    offsets: Int64s
    source: str

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Int64s:
        return np.diff(self.offsets)

    def text(self, index: int, longest: int) -> Int64s:
        """Text `index`, cut to `longest` tokens with SEP kept as the last."""
        ids = self.ids[self.offsets[index]:self.offsets[index + 1]]
        if len(ids) <= longest:
            return ids
        return np.append(ids[: longest - 1], SEP)

    def draw(self, rng: np.random.Generator, count: int) -> Int64s:
        """(count,) indices of texts, each equally likely."""
        return rng.integers(len(self), size=count)


def data_folder(fallback: Path | None = None) -> Path | None:
    """The folder of public data: CWD_DATA, else `fallback`, if it is there."""
    named = os.environ.get("CWD_DATA")
    folder = Path(named) if named else fallback
    return folder if folder is not None and folder.is_dir() else None


def read_texts(path: Path) -> Texts:
    """The texts of one npz file without the empty ones; raises `CwdError` naming the file if it is something else."""
    try:
        with np.load(path, allow_pickle=False) as file:
            ids, offsets = file["ids"], file["offsets"].astype(np.int64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CwdError(f"{path}: no token file (ids, offsets): {error}", code=Code.BAD_ARGUMENT) from error
    sound = (ids.ndim == offsets.ndim == 1 and ids.dtype.kind in "ui" and len(offsets) > 1 and offsets[0] == 0
             and offsets[-1] == len(ids) and (np.diff(offsets) >= 0).all())
    if not sound:
        raise CwdError(f"{path}: its offsets do not fit its ids", code=Code.CORRUPT)
    lengths = np.diff(offsets)
    kept = lengths > EMPTY_LENGTH
    if not kept.any():
        raise CwdError(f"{path}: holds only empty texts", code=Code.BAD_ARGUMENT)
    return Texts(ids[np.repeat(kept, lengths)].astype(np.int64),
                 np.concatenate([[0], np.cumsum(lengths[kept])]).astype(np.int64), path.name)


def synthetic_texts(count: int = 2000, seed: int = 0) -> Texts:
    """Made-up texts with lengths as real ones have them: CLS, random words, SEP."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.rint(rng.lognormal(np.log(LENGTH_MEDIAN), LENGTH_SIGMA, count)), 4, 512).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids: NDArray[np.int64] = rng.integers(FIRST_WORD, VOCABULARY, offsets[-1])
    ids[offsets[:-1]], ids[offsets[1:] - 1] = CLS, SEP
    return Texts(ids, offsets, "synthetic")


def load_texts(folder: Path | None) -> Texts:
    """The texts of every `tokens_*.npz` in the folder, in the order of their names; made-up ones if there is none."""
    files = sorted(folder.glob("tokens_*.npz")) if folder is not None else []
    if not files:
        return synthetic_texts()
    parts = [read_texts(file) for file in files]
    lengths = np.concatenate([part.lengths for part in parts])
    return Texts(np.concatenate([part.ids for part in parts]),
                 np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), "+".join(part.source for part in parts))
