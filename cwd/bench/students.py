"""Texts, a teacher that labels them, and five students whose accuracies are known because they are counted over all texts.

The teacher is a fixed random network over WordPiece ids: the mean of the tokens' embeddings, one hidden layer, a score for
each of six classes. A student is the teacher with noise on its weights, so much that it is right about as often as wanted;
it is wrong where the noise leads it, mostly on texts that are hard, and differently from its fellows. Later one of them
changes: more noise degrades it, as one whose inputs have drifted; less makes it better, as one that was trained again.
numpy alone; a seed decides everything.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cwd.errors import Code, CwdError

CLASSES, WIDTH, HIDDEN, WORDS = 6, 64, 64, 1 << 16
#: how often each student is right, about; not in order, so that the first is not the best
WANTED = (0.72, 0.88, 0.55, 0.80, 0.64)
#: how often the best is right once it has degraded, about
DEGRADED = 0.40
#: WordPiece ids that frame every text
_FRAME_IDS = (101, 102)
#: with fewer texts a share of them that are right says little of an accuracy
_TEXTS_MIN = 100
_SYNTHETIC_TEXTS, _SYNTHETIC_VOCABULARY = 6000, 8000


@dataclass(frozen=True)
class Population:
    """What the students say of every text, and what the teacher does."""

    #: where the texts are from, for people
    source: str
    #: of the texts' tokens: tells whether two figures are of the same texts
    sha256: str
    #: i64[texts]
    labels: np.ndarray
    #: i64[texts, students]
    answers: np.ndarray
    #: the same once one student has changed
    later_answers: np.ndarray

    @property
    def accuracies(self) -> np.ndarray:
        """f64[students], of all texts."""
        return (self.answers == self.labels[:, None]).mean(axis=0)

    @property
    def later_accuracies(self) -> np.ndarray:
        """f64[students], once one has changed."""
        return (self.later_answers == self.labels[:, None]).mean(axis=0)


def population(tokens: str = "", seed: int = 0, wanted: Sequence[float] = WANTED, change: tuple[int, float] | None = None
               ) -> Population:
    """The students of a file of token texts (`ids`, `offsets` in an npz), or of a made-up population without one.

    `wanted` says how often each is right, about; `change` is (student, how often it is right later), else the best
    degrades. Raises `CwdError` (BAD_ARGUMENT) for a file that is no such texts.
    """
    randoms = np.random.default_rng(seed)
    if tokens:
        source, ids, offsets = Path(tokens).name, *read_texts(Path(tokens))
    else:
        source, ids, offsets = "synthetic: no --tokens were given", *synthetic_texts(randoms)
    if len(offsets) <= _TEXTS_MIN:
        raise CwdError(f"{source}: {len(offsets) - 1} texts; accuracies need {_TEXTS_MIN}", code=Code.BAD_ARGUMENT)
    features = features_of(ids, offsets, randoms)
    inner = randoms.normal(size=(WIDTH, HIDDEN)) / np.sqrt(WIDTH) * 1.5
    outer = randoms.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN)
    scores = np.tanh(features @ inner) @ outer
    # each class is as likely as the next: a constant answer is then no good student
    balance = np.median(scores, axis=0)
    labels = (scores - balance).argmax(axis=1)

    def student(share: float) -> np.ndarray:
        noise = randoms.normal(size=inner.shape) / np.sqrt(WIDTH), randoms.normal(size=outer.shape) / np.sqrt(HIDDEN)
        low, high = 0.0, 8.0
        for _ in range(16):
            middle = (low + high) / 2.0
            said = (np.tanh(features @ (inner + middle * noise[0])) @ (outer + middle * noise[1]) - balance).argmax(axis=1)
            low, high = (middle, high) if (said == labels).mean() > share else (low, middle)
        return said

    answers = np.stack([student(share) for share in wanted], axis=1)
    changed, share = change or (int(np.argmax(wanted)), DEGRADED)
    later = answers.copy()
    later[:, changed] = student(share)
    return Population(source, digest_of(ids, offsets), labels, answers, later)


def features_of(ids: np.ndarray, offsets: np.ndarray, randoms: np.random.Generator) -> np.ndarray:
    """f64[texts, WIDTH]: the mean embedding of each text's tokens, each column with mean 0 and deviation 1."""
    embeddings = randoms.normal(size=(WORDS, WIDTH)).astype(np.float32)
    embeddings[list(_FRAME_IDS)] = 0.0
    sums = np.add.reduceat(embeddings[ids], offsets[:-1], axis=0)
    means = sums / np.diff(offsets)[:, None]
    return (means - means.mean(axis=0)) / means.std(axis=0)


def read_texts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """(ids, offsets) of the texts that have a token besides the frame; raises `CwdError` for another kind of file."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            ids, offsets = arrays["ids"].astype(np.int64), arrays["offsets"].astype(np.int64)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise CwdError(f"{path}: no file of token texts (ids and offsets in an npz): {error}", code=Code.BAD_ARGUMENT) from error
    if ids.ndim != 1 or offsets.ndim != 1 or len(offsets) < 2 or not len(ids):
        raise CwdError(f"{path}: there is no text in it", code=Code.BAD_ARGUMENT)
    lengths = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != len(ids) or (lengths < 2).any() or not 0 <= ids.min() <= ids.max() < WORDS:
        raise CwdError(f"{path}: offsets and ids do not fit each other", code=Code.BAD_ARGUMENT)
    keep = lengths > 2
    return ids[np.repeat(keep, lengths)], np.concatenate([[0], np.cumsum(lengths[keep])])


def digest_of(ids: np.ndarray, offsets: np.ndarray) -> str:
    """The SHA-256 of texts, however a file packs them."""
    return hashlib.sha256(ids.astype("<i8").tobytes() + offsets.astype("<i8").tobytes()).hexdigest()


def synthetic_texts(randoms: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(ids, offsets) of texts about as long as questions, with words by Zipf's law."""
    lengths = 5 + randoms.poisson(9.0, _SYNTHETIC_TEXTS)
    ranks = np.minimum(randoms.zipf(1.3, int(lengths.sum())), _SYNTHETIC_VOCABULARY)
    return 1000 + ranks, np.concatenate([[0], np.cumsum(lengths)])
