"""The predictions of the last while, so that feedback can join them: bounded in bytes and in time, by request id."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cwd.selection.state import Choice

#: what one takes beside its arrays: the records, the context, the names that are its own. Measured, and rounded up
RECORD_BYTES = 1024
#: what each member takes in the choice: a probability and a weight
MEMBER_BYTES = 72
ARRAY_BYTES = 256


class Prediction(NamedTuple):
    """What feedback needs of one prediction. Members are numbered as `members` does."""

    app: str
    #: the app's `key`, which tells it from one that was made anew
    key: str
    context: str
    members: tuple[str, ...]
    choice: Choice
    #: what those that answered said, of the output that is judged
    answers: Mapping[int, np.ndarray]
    #: what the app answered; None for a default
    answer: np.ndarray | None
    made_ns: int


class Recent:
    """Predictions by request id; the oldest leave first."""

    def __init__(self, bytes_max: int, ttl_ns: int) -> None:
        self.bytes_max = bytes_max
        self.ttl_ns = ttl_ns
        self.bytes = 0
        self._found: OrderedDict[int, tuple[Prediction, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._found)

    def add(self, request_id: int, prediction: Prediction) -> None:
        """Remember it; what alone is larger than all room is not remembered."""
        size = _bytes_of(prediction)
        if size > self.bytes_max:
            return
        self.bytes -= self._found.pop(request_id, (prediction, 0))[1]
        self._found[request_id] = prediction, size
        self.bytes += size
        self._forget(prediction.made_ns)

    def get(self, request_id: int, now_ns: int) -> Prediction | None:
        """The prediction of that id, unless it is too long ago."""
        self._forget(now_ns)
        found = self._found.get(request_id)
        return found[0] if found else None

    def _forget(self, now_ns: int) -> None:
        while self._found:
            first = next(iter(self._found))
            prediction, size = self._found[first]
            if self.bytes <= self.bytes_max and now_ns - prediction.made_ns < self.ttl_ns:
                return
            del self._found[first]
            self.bytes -= size


def _bytes_of(prediction: Prediction) -> int:
    arrays = [*prediction.answers.values(), *(() if prediction.answer is None else (prediction.answer,))]
    return (RECORD_BYTES + MEMBER_BYTES * len(prediction.choice.weights)
            + sum(ARRAY_BYTES + array.nbytes for array in arrays))
