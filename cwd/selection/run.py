"""One prediction of an application, sans-IO: it hears answers, errors and the time, and ends with exactly one result.

The shell executes what it takes from `to_call`, and says `answered` or `failed` once for each of those, even after the
run has ended: an execution may be one that others wait for (cwd/selection/cache.py). It calls `tick` when `deadline_ns`
has come. `wake` is called when somebody else's execution changed this run: it is done, or `to_call` has grown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from cwd.errors import BadRequest, Cancelled, Code, CwdError, DeadlineMissed
from cwd.selection.apps import App
from cwd.selection.cache import Dims, Flight, Found, Key, Outputs, PredictionCache
from cwd.selection.result import AppResult
from cwd.selection.state import Choice
from cwd.units import format_duration

LOW_CONFIDENCE = "LOW_CONFIDENCE"

#: what a fault of the request itself is: a default would hide it
_AT_FAULT = frozenset((Code.BAD_PAYLOAD_SIZE, Code.BAD_DTYPE, Code.BAD_SHAPE, Code.UNKNOWN_SIZE, Code.BAD_SLO,
                       Code.BAD_INPUT_NAME, Code.TOO_LARGE))


class Serving(Protocol):
    """What a run must know of its app, ready for use."""

    app: App

    def combine(self, outputs: Mapping[int, Outputs], choice: Choice) -> tuple[Outputs, float]:
        """(outputs, confidence) of the members that have answered; raises `CwdError` if they do not go together."""

    def default(self) -> Outputs:
        """The default as outputs; called only where the app has one."""


class Asked(NamedTuple):
    """A member's input as the cache sees it."""

    key: Key
    dims: Dims
    payload: Any


class Seat:
    """A run's place among those who wait for a flight."""

    __slots__ = ("run", "member", "deadline_ns")

    def __init__(self, run: Run, member: int) -> None:
        self.run, self.member, self.deadline_ns = run, member, run.deadline_ns


class Run:
    """See the module. Members are numbered as in the app; `result` or `error` is set once `done`."""

    __slots__ = ("app", "request_id", "context", "choice", "began_ns", "deadline_ns", "margin_ns", "outputs", "errors",
                 "cached", "to_call", "done", "result", "error", "wake", "_serving", "_cache", "_leads", "_joined")

    def __init__(self, serving: Serving, choice: Choice, request_id: int, began_ns: int, deadline_ns: int,
                 context: str = "", margin_ns: int = 0) -> None:
        self.app = serving.app
        self._serving = serving
        self.request_id = request_id
        self.context = context
        self.choice = choice
        self.began_ns = began_ns
        #: when it answers with what has arrived; executions count up to then
        self.deadline_ns = deadline_ns
        #: an answer that is not there so long after `deadline_ns` is too late; 0: that is for others to say
        self.margin_ns = margin_ns
        self.outputs: dict[int, Outputs] = {}
        self.errors: dict[int, CwdError] = {}
        #: members whose answers cost no execution
        self.cached = 0
        self.to_call: list[int] = []
        self.done = False
        self.result: AppResult | None = None
        self.error: CwdError | None = None
        self.wake: Callable[[], Any] = _nobody
        self._cache: PredictionCache | None = None
        self._leads: dict[int, Flight] = {}
        self._joined: dict[int, tuple[Flight, Seat]] = {}

    # what the shell says

    def start(self, now_ns: int, cache: PredictionCache | None = None, asked: Mapping[int, Asked] | None = None,
              failed: Mapping[int, CwdError] | None = None) -> None:
        """Look into the cache, where there is one, and say whom to call.

        `failed` are members that cannot be asked at all: nothing is known of their models, or they do not take the input.
        """
        self._cache = cache
        for member in self.choice.members:
            if failed and member in failed:
                self.errors[member] = failed[member]
            elif cache is None or asked is None:
                self.to_call.append(member)
            else:
                self._ask(cache, member, asked[member], now_ns)
        self._look(now_ns)

    def _ask(self, cache: PredictionCache, member: int, asked: Asked, now_ns: int) -> None:
        seat = Seat(self, member)
        found, what = cache.ask(*asked, self.app.ttl_ns, seat, now_ns)
        if found is Found.HIT:
            self.outputs[member] = what
            self.cached += 1
        elif found is Found.JOIN:
            self._joined[member] = what, seat
        else:
            if found is Found.LEAD:
                self._leads[member] = what
            self.to_call.append(member)

    def answered(self, member: int, outputs: Outputs, now_ns: int) -> None:
        """An execution of ours ended with an answer."""
        flight = self._leads.pop(member, None)
        if flight is not None:
            assert self._cache is not None
            for seat in self._cache.answered(flight, outputs, now_ns):
                seat.run._shared(seat.member, _copied(outputs), now_ns)
        if not self.done:
            self.outputs[member] = outputs
            self._look(now_ns)

    def failed(self, member: int, error: CwdError, now_ns: int) -> None:
        """An execution of ours ended without an answer."""
        flight = self._leads.pop(member, None)
        if flight is not None:
            self._hand_on(flight, None if isinstance(error, Cancelled) else error, now_ns)
        if not self.done:
            self.errors[member] = error
            self._look(now_ns)

    def unsure(self, member: int) -> None:
        """An execution of ours may be of another version than was looked up: its answer is not kept."""
        if member in self._leads:
            self._leads[member].keep = False

    def tick(self, now_ns: int) -> None:
        """Time has passed; at `deadline_ns` the run ends with what is there."""
        if not self.done and now_ns >= self.deadline_ns:
            self._end(now_ns)

    def cancel(self, now_ns: int) -> list[int]:
        """Nobody wants the answer any more: the run ends. The members whose executions nobody else waits for either."""
        if self.done:
            return []
        for member in self.choice.members:
            if member not in self.outputs:
                self.errors.setdefault(member, Cancelled(f"{self.app.name}: cancelled"))
        self.done = True
        self.error = Cancelled(f"{self.app.name}: cancelled")
        self._leave()
        waiting = {member for member in self.choice.members if member not in self.outputs and member not in self._joined}
        self._joined.clear()
        for member in self.to_call:  # those the shell has not begun: it never will
            waiting.discard(member)
            flight = self._leads.pop(member, None)
            if flight is not None:
                self._hand_on(flight, None, now_ns)
        self.to_call.clear()
        return [member for member in waiting if not (member in self._leads and self._leads[member].joined)]

    # what other runs say

    def _shared(self, member: int, outputs: Outputs, now_ns: int) -> None:
        """The execution that a member of ours joined ended with an answer."""
        if self._joined.pop(member, None) is not None and not self.done:
            self.outputs[member] = outputs
            self.cached += 1
            self._look(now_ns)
            self.wake()

    def _refused(self, member: int, error: CwdError, now_ns: int) -> None:
        if self._joined.pop(member, None) is not None and not self.done:
            self.errors[member] = error
            self._look(now_ns)
            self.wake()

    def _lead_on(self, member: int, flight: Flight) -> None:
        del self._joined[member]
        self._leads[member] = flight
        self.to_call.append(member)
        self.wake()

    def _hand_on(self, flight: Flight, error: CwdError | None, now_ns: int) -> None:
        assert self._cache is not None
        handed = self._cache.ended(flight, self.deadline_ns, error)
        for seat in handed.told:
            assert error is not None
            seat.run._refused(seat.member, error, now_ns)
        if handed.leader is not None:
            handed.leader.run._lead_on(handed.leader.member, flight)

    # the end

    def _look(self, now_ns: int) -> None:
        if len(self.outputs) + len(self.errors) == len(self.choice.members):
            self._end(now_ns)

    def _leave(self) -> None:
        for flight, seat in self._joined.values():
            assert self._cache is not None
            self._cache.leave(flight, seat)

    def _end(self, now_ns: int) -> None:
        self.done = True
        self._leave()
        if not self.outputs:
            self._without(self._why(), now_ns)
            return
        if self.margin_ns and (late_ns := now_ns - self.deadline_ns - self.margin_ns) > 0:
            self._without(DeadlineMissed(f"{self.app.name}: the answer was ready {format_duration(late_ns)} too late"), now_ns)
            return
        try:
            outputs, confidence = self._serving.combine(self.outputs, self.choice)
        except CwdError as error:
            self._without(error, now_ns)
            return
        if confidence < self.app.confidence_min:
            self._default(LOW_CONFIDENCE, f"the members agree by {confidence:.3g}, and the application asks for "
                          f"{self.app.confidence_min:.3g}", now_ns, confidence)
            return
        self.result = AppResult(self.app.name, self.request_id, outputs, self._names(self.choice.members),
                                self._names(self.outputs), now_ns - self.began_ns, cached=self.cached,
                                confidence=confidence)

    def _why(self) -> CwdError:
        """Why there is no answer at all."""
        if not self.choice.members:
            return BadRequest(f"{self.app.name} has no models yet: link one", code=Code.MODEL_NOT_READY)
        if self.errors:
            return next(iter(self.errors.values()))
        return DeadlineMissed(f"{self.app.name}: none of {len(self.choice.members)} members answered in time")

    def _without(self, error: CwdError, now_ns: int) -> None:
        # a request that is at fault itself gets no default: it would hide the fault
        if self.app.default is None or error.code in _AT_FAULT:
            self.error = error
        else:
            self._default(error.code.name, error.text, now_ns, 0.0)

    def _default(self, reason: str, explanation: str, now_ns: int, confidence: float) -> None:
        self.result = AppResult(self.app.name, self.request_id, self._serving.default(),
                                self._names(self.choice.members), self._names(self.outputs), now_ns - self.began_ns,
                                cached=self.cached, confidence=confidence, default=True, reason=reason,
                                explanation=explanation)

    def _names(self, members: Iterable[int]) -> tuple[str, ...]:
        return tuple(str(self.app.members[member]) for member in sorted(members))


def _copied(outputs: Outputs) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in outputs.items()}


def _nobody() -> None:
    """Nobody waits yet."""
