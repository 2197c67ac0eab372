"""Texts, a teacher that labels them, and five students whose accuracies are known because they are counted over all texts.

The teacher is a fixed random network over WordPiece ids: the mean of the tokens' embeddings, one hidden layer, a score for
each of six classes. A student is the teacher with noise on its weights, so much that it is right about as often as wanted;
it is wrong where the noise leads it, mostly on texts that are hard, and differently from its fellows. A degraded student has
more noise, as one whose inputs have drifted. numpy alone; a seed decides everything.
"""

from __future__ import annotations

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
_SYNTHETIC_TEXTS, _SYNTHETIC_VOCABULARY = 6000, 8000


@dataclass(frozen=True)
class Population:
    """What the students say of every text, and what the teacher does."""

    #: where the texts are from, for people
    source: str
    #: i64[texts]
    labels: np.ndarray
    #: i64[texts, students]
    answers: np.ndarray
    #: the same once the best has degraded
    degraded_answers: np.ndarray

    @property
    def accuracies(self) -> np.ndarray:
        """f64[students], of all texts."""
        return (self.answers == self.labels[:, None]).mean(axis=0)

    @property
    def degraded_accuracies(self) -> np.ndarray:
        """f64[students], once the best has degraded."""
        return (self.degraded_answers == self.labels[:, None]).mean(axis=0)


def population(tokens: str = "", seed: int = 0) -> Population:
    """The students of a file of token texts (`ids`, `offsets` in an npz), or of a made-up population without one."""
    randoms = np.random.default_rng(seed)
    if tokens:
        source, ids, offsets = Path(tokens).name, *read_texts(Path(tokens))
    else:
        source, ids, offsets = "synthetic: no --tokens were given", *synthetic_texts(randoms)
    features = features_of(ids, offsets, randoms)
    inner = randoms.normal(size=(WIDTH, HIDDEN)) / np.sqrt(WIDTH) * 1.5
    outer = randoms.normal(size=(HIDDEN, CLASSES)) / np.sqrt(HIDDEN)
    scores = np.tanh(features @ inner) @ outer
    # each class is as likely as the next: a constant answer is then no good student
    balance = np.median(scores, axis=0)
    labels = (scores - balance).argmax(axis=1)

    def student(wanted: float) -> np.ndarray:
        noise = randoms.normal(size=inner.shape) / np.sqrt(WIDTH), randoms.normal(size=outer.shape) / np.sqrt(HIDDEN)
        low, high = 0.0, 8.0
        for _ in range(16):
            middle = (low + high) / 2.0
            said = (np.tanh(features @ (inner + middle * noise[0])) @ (outer + middle * noise[1]) - balance).argmax(axis=1)
            low, high = (middle, high) if (said == labels).mean() > wanted else (low, middle)
        return said

    answers = np.stack([student(wanted) for wanted in WANTED], axis=1)
    degraded = answers.copy()
    degraded[:, int((answers == labels[:, None]).mean(axis=0).argmax())] = student(DEGRADED)
    return Population(source, labels, answers, degraded)


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
        with np.load(path, allow_pickle=False) as file:
            ids, offsets = file["ids"].astype(np.int64), file["offsets"].astype(np.int64)
    except (OSError, ValueError, KeyError) as error:
        raise CwdError(f"{path}: no file of token texts (ids and offsets in an npz): {error}", code=Code.BAD_ARGUMENT) from error
    if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 2).any() or not 0 <= ids.min() <= ids.max() < WORDS:
        raise CwdError(f"{path}: offsets and ids do not fit each other", code=Code.BAD_ARGUMENT)
    keep = np.diff(offsets) > 2
    kept = np.repeat(keep, np.diff(offsets))
    return ids[kept], np.concatenate([[0], np.cumsum(np.diff(offsets)[keep])])


def synthetic_texts(randoms: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(ids, offsets) of texts about as long as questions, with words by Zipf's law."""
    lengths = 5 + randoms.poisson(9.0, _SYNTHETIC_TEXTS)
    ranks = np.minimum(randoms.zipf(1.3, int(lengths.sum())), _SYNTHETIC_VOCABULARY)
    return 1000 + ranks, np.concatenate([[0], np.cumsum(lengths)])
