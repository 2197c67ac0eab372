"""One answer from those members that have answered: a weighted vote on classes, or a weighted mean of numbers.

Members that are missing count against the confidence, and nothing else: what has arrived is combined with its own
weights, whatever the order of arrival. Clipper's paper, section 5.2: the part of the ensemble that agrees is the confidence
of a class, the spread that of a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cwd.errors import Code, CwdError

#: ways to combine: `vote` on classes, `mean` of numbers
KINDS = ("vote", "mean")


@dataclass(frozen=True, slots=True)
class Combined:
    """The answer of an ensemble."""

    #: vote: the classes (int64, or the labels' own type), shaped as the members' output, less the last axis where that
    #: holds scores; mean: the numbers, of the members' own floating type (whole numbers: float64), in their shape
    output: np.ndarray
    #: 0 to 1; of an output with several rows that of the least confident
    confidence: float
    #: whose answers are in it, in rising order
    members: tuple[int, ...]


def combine(kind: str, outputs: Mapping[int, Any], weights: Sequence[float], *, scale: float = 1.0) -> Combined:
    """The answer of the members in `outputs` (at least one), by the `weights` of all members of the choice.

    `scale` is what counts as a large spread of numbers: standard deviations of that much and more mean no confidence.
    Raises `CwdError` for an unknown kind, no answers, and answers of different shapes.
    """
    if not outputs:
        raise CwdError("no member has answered: there is nothing to combine", code=Code.BAD_ARGUMENT)
    members = tuple(sorted(outputs))
    if not 0 <= members[0] <= members[-1] < len(weights):
        raise CwdError(f"an answer of a member that is not among the {len(weights)} weights", code=Code.BAD_ARGUMENT)
    total = math.fsum(weights)
    parts = [weights[member] / total if total > 0.0 else 0.0 for member in members]
    present = min(1.0, math.fsum(parts))
    if present <= 0.0:
        # those with all the weight are missing: what is there has equal votes, and nobody to trust in them
        parts = [1.0 / len(members)] * len(members)
    arrays = [np.asarray(outputs[member]) for member in members]
    if kind == "vote":
        output, share = _vote(_alike([classes_of(array) for array in arrays]), parts)
    elif kind == "mean":
        output, share = _mean(_alike(arrays), parts, scale)
    else:
        raise CwdError(f"{kind!r} is no way to combine; there are {', '.join(KINDS)}", code=Code.BAD_ARGUMENT)
    return Combined(np.asarray(output), share * present, members)


def classes_of(output: Any) -> np.ndarray:
    """The classes that an output stands for: whole numbers, truths and texts are classes, floats the scores of each.

    Scores lie on the last axis; equal scores are the lower class.
    """
    array = np.asarray(output)
    if array.dtype.kind not in "f":
        if array.dtype.kind not in "iubUS":
            raise CwdError(f"an output of dtype {array.dtype} has no classes", code=Code.BAD_DTYPE)
        return array
    if array.ndim == 0 or array.shape[-1] < 2:
        raise CwdError(f"an output of shape {array.shape} has no scores of two classes or more", code=Code.BAD_SHAPE)
    return np.asarray(array.argmax(axis=-1), dtype=np.int64)


def _alike(arrays: list[np.ndarray]) -> list[np.ndarray]:
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(list(array.shape)) for array in arrays)
        raise CwdError(f"answers of different shapes cannot be combined: {shapes}", code=Code.BAD_SHAPE)
    if len({array.dtype.kind in "US" for array in arrays}) > 1:
        raise CwdError("texts and numbers cannot be combined", code=Code.BAD_DTYPE)
    return arrays


def _vote(votes: list[np.ndarray], parts: list[float]) -> tuple[np.ndarray, float]:
    """The heaviest class at each place (ties: the lower), and the smallest share with which one won.

    Memory goes with the votes, and not with how many different classes there are: whole numbers may be anything.
    """
    if len(votes) == 1:
        return votes[0], 1.0
    # [members, ...], each place in rising order of classes, so that the first of equal shares is the lower class
    stacked = np.stack(votes)
    order = stacked.argsort(axis=0, kind="stable")
    share = np.zeros(stacked.shape)
    for vote, part in zip(stacked, parts, strict=True):
        share += part * (stacked == vote)
    ranked = np.take_along_axis(share, order, axis=0)
    place = ranked.argmax(axis=0)[None]
    won = np.take_along_axis(ranked, place, axis=0)
    classes = np.take_along_axis(np.take_along_axis(stacked, order, axis=0), place, axis=0)[0]
    return classes, float(min(1.0, (won / math.fsum(parts)).min(initial=1.0)))


def _mean(arrays: list[np.ndarray], parts: list[float], scale: float) -> tuple[np.ndarray, float]:
    """The weighted mean, and 1 less the largest weighted standard deviation as a part of `scale`."""
    if any(array.dtype.kind not in "fiub" for array in arrays):
        raise CwdError("answers that are not numbers have no mean", code=Code.BAD_DTYPE)
    if not scale > 0.0:
        raise CwdError(f"a scale of {scale!r} is not positive", code=Code.BAD_ARGUMENT)
    kind = np.result_type(*arrays)
    stacked = np.stack(arrays).astype(np.float64)
    part = np.array(parts).reshape(-1, *[1] * (stacked.ndim - 1)) / math.fsum(parts)
    # by hand and in order of the members: a reduction's order would depend on the shape
    mean = np.zeros(stacked.shape[1:])
    variance = np.zeros(stacked.shape[1:])
    for value, weight in zip(stacked, part, strict=True):
        mean = mean + weight * value
    for value, weight in zip(stacked, part, strict=True):
        variance = variance + weight * (value - mean) ** 2
    spread = float(np.sqrt(variance).max(initial=0.0))
    return mean.astype(kind if kind.kind == "f" else np.float64), max(0.0, 1.0 - spread / scale)
