"""What a request came back with: its outputs, and where its time went."""

from __future__ import annotations

from typing import Any

import numpy as np

from cwd.client.call import Call
from cwd.units import format_duration


class Answer:
    """Named outputs. `answer["name"]` is short for `answer.outputs["name"]`."""

    __slots__ = ("outputs",)

    #: arrays, which are the caller's to write to
    outputs: dict[str, np.ndarray]

    @property
    def output(self) -> np.ndarray:
        """The only output; raises `ValueError` where there is more than one."""
        if len(self.outputs) != 1:
            raise ValueError(f"there are {len(self.outputs)} outputs, and not one: {', '.join(self.outputs)}")
        (array,) = self.outputs.values()
        return array

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]


class Result(Answer):
    """One answer in time: its outputs lie over the received message's memory."""

    __slots__ = ("model", "request", "queued_ns", "load_ns", "exec_ns", "total_ns", "round_trip_ns", "batch",
                 "worker", "cold")

    def __init__(self, call: Call) -> None:
        """From an answered INFER. Raises `RemoteProtocolError` if the payload has not the model's size."""
        reply = call.answer
        #: the name of the model
        self.model = call.what
        #: the request's number; `cwd explain` takes it as 16 hexadecimal digits
        self.request: int = call.id
        self.outputs = call.model.unpack(call.payload, call.dims)  # type: ignore[union-attr]
        #: arrival at the controller to the start of the execution
        self.queued_ns: int = reply.queued_ns
        #: of it, waiting for the weights
        self.load_ns: int = reply.load_ns
        self.exec_ns: int = reply.exec_ns
        #: arrival at the controller to its reply
        self.total_ns: int = reply.total_ns
        #: sending to receiving, here
        self.round_trip_ns: int = call.done_ns - call.sent_ns
        #: how many requests ran together
        self.batch: int = reply.batch
        #: number of the worker that ran it
        self.worker: int = reply.worker
        #: the weights were on no device when the request arrived
        self.cold: bool = bool(reply.cold)

    def timing(self) -> dict[str, Any]:
        """Where its time went, as plain data."""
        return {name: getattr(self, name) for name in self.__slots__ if name not in ("model", "request")}

    def __repr__(self) -> str:
        outputs = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in self.outputs.items())
        total, queued, executed = map(format_duration, (self.total_ns, self.queued_ns, self.exec_ns))
        return (f"<{self.model} ({outputs}) in {total}: queued {queued}, executed {executed}, batch {self.batch}"
                f"{', cold' if self.cold else ''}>")
