"""How wrong an answer was, from 0 (right) to 1: what policies learn from. Chosen by the app, with its parameters.

    loss = make_loss("squared", {"scale": 10.0})
    loss(answer, label)

Of answers with several rows it is the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import numpy as np

from cwd.errors import Code, CwdError
from cwd.selection.combine import classes_of

#: more than this is no probability; a sum of float16 may be a little above 1
_PROBABILITY_MAX = 1.001


@dataclass(frozen=True)
class Loss:
    """What all losses share; subclasses say `of`, the losses of single rows or numbers."""

    name: ClassVar[str] = ""

    def parameters(self) -> dict[str, Any]:
        """What `make_loss` takes to make this loss again."""
        return asdict(self)

    def __call__(self, answer: Any, label: Any) -> float:
        """In [0, 1]; raises `CwdError` where answer and label do not fit each other. What is no number is all wrong."""
        with np.errstate(all="ignore"):  # what overflows is as wrong as can be, and no news
            found = self.of(np.asarray(answer), np.asarray(label))
        if found.size == 0:
            raise CwdError("an empty answer has no loss", code=Code.BAD_SHAPE)
        return float(np.clip(np.nan_to_num(found.astype(np.float64), nan=1.0), 0.0, 1.0).mean())

    def of(self, answer: np.ndarray, label: np.ndarray) -> np.ndarray:
        """The losses of the single rows or numbers, which are cut to [0, 1] and averaged."""
        raise NotImplementedError


@dataclass(frozen=True)
class ZeroOne(Loss):
    """1 for a wrong class. Answers are classes, or scores of which the highest is taken."""

    name: ClassVar[str] = "zero_one"

    def of(self, answer: np.ndarray, label: np.ndarray) -> np.ndarray:
        found = classes_of(answer)
        if (found.dtype.kind in "US") != (label.dtype.kind in "US"):
            label_is, classes_are = ("number", "texts") if found.dtype.kind in "US" else ("text", "numbers")
            raise CwdError(f"the label is a {label_is}, and the classes are {classes_are}", code=Code.BAD_DTYPE)
        found, label = _fitted(found, label)
        return np.asarray(found != label)


@dataclass(frozen=True)
class Absolute(Loss):
    """How far a number is from the label, as a part of `scale`; 1 from there on."""

    name: ClassVar[str] = "absolute"
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "scale")

    def of(self, answer: np.ndarray, label: np.ndarray) -> np.ndarray:
        return np.abs(_distance(answer, label)) / self.scale


@dataclass(frozen=True)
class Squared(Loss):
    """The square of the distance as a part of `scale`; 1 from there on."""

    name: ClassVar[str] = "squared"
    scale: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "scale")

    def of(self, answer: np.ndarray, label: np.ndarray) -> np.ndarray:
        return (_distance(answer, label) / self.scale) ** 2


@dataclass(frozen=True)
class LogLoss(Loss):
    """-log of the label's probability as a part of `bound` (nats); 1 from there on, so that one answer cannot cost all.

    Answers are probabilities of the classes, or with `logits` what softmax makes such of; the last axis is the classes. What
    is no probability (negative, above 1) is all wrong: an app whose models give scores, and that does not say so, sees it.
    An answer that is a class, as a vote's is, says it with probability 1.
    """

    name: ClassVar[str] = "log"
    bound: float = 5.0
    logits: bool = False

    def __post_init__(self) -> None:
        _positive(self, "bound")
        if not isinstance(self.logits, bool):
            raise CwdError("log: logits is true or false", code=Code.BAD_ARGUMENT)

    def of(self, answer: np.ndarray, label: np.ndarray) -> np.ndarray:
        if answer.dtype.kind in "iu" and label.dtype.kind in "iu":
            found, label = _fitted(answer, label)
            return np.asarray(found != label)
        if answer.dtype.kind != "f" or answer.ndim == 0 or label.dtype.kind not in "iu":
            raise CwdError("the log loss is of classes' probabilities and a label that is a class", code=Code.BAD_DTYPE)
        rows, labels = _fitted(answer[..., 0], label)
        scores = answer.reshape(*rows.shape, answer.shape[-1]).astype(np.float64)
        if labels.size and not 0 <= labels.min() <= labels.max() < scores.shape[-1]:
            raise CwdError(f"a label past the {scores.shape[-1]} classes", code=Code.BAD_ARGUMENT)
        picked = np.take_along_axis(scores, labels[..., None].astype(np.int64), axis=-1)[..., 0]
        if not self.logits:
            # scores that were never made probabilities would else count as right
            return -np.log(np.where(picked <= _PROBABILITY_MAX, picked, np.nan)) / self.bound
        top = scores.max(axis=-1)
        return (top + np.log(np.exp(scores - top[..., None]).sum(axis=-1)) - picked) / self.bound


LOSSES: dict[str, type[Loss]] = {kind.name: kind for kind in (ZeroOne, Absolute, Squared, LogLoss)}


def make_loss(name: str, parameters: Mapping[str, Any] | None = None) -> Loss:
    """The loss of that name; raises `CwdError` (BAD_ARGUMENT) for a name or parameter that there is not."""
    kind = LOSSES.get(name)
    if kind is None:
        raise CwdError(f"no loss is called {name!r}; there are {', '.join(LOSSES)}", code=Code.BAD_ARGUMENT)
    given = dict(parameters or {})
    known = [field.name for field in fields(kind)]
    for word in given:
        if word not in known:
            raise CwdError(f"{name} has no parameter {word!r}" + (f"; it has {', '.join(known)}" if known else ""),
                           code=Code.BAD_ARGUMENT)
    return kind(**given)


def _positive(loss: Loss, word: str) -> None:
    value = getattr(loss, word)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < float("inf"):
        raise CwdError(f"{loss.name}: {word} is a positive number, not {value!r}", code=Code.BAD_ARGUMENT)


def _distance(answer: np.ndarray, label: np.ndarray) -> np.ndarray:
    if answer.dtype.kind not in "fiub" or label.dtype.kind not in "fiub":
        raise CwdError(f"no distance between {answer.dtype} and {label.dtype}", code=Code.BAD_DTYPE)
    answer, label = _fitted(answer.astype(np.float64), label.astype(np.float64))
    return answer - label


def _fitted(answer: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in one shape; axes of length 1 (the instance's, mostly) may be missing on either side."""
    if answer.shape == label.shape:
        return answer, label
    bare = answer.squeeze()
    if bare.shape != label.squeeze().shape:
        raise CwdError(f"a label of shape {list(label.shape)} for an answer of {list(answer.shape)}", code=Code.BAD_SHAPE)
    return bare, label.squeeze()
