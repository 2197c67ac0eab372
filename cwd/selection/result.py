"""What an application answered: outputs, who took part, how far they agree, and whether it is only the default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cwd.client.result import Answer
from cwd.units import format_duration


class AppResult(Answer):
    """One answer of an application, in time."""

    __slots__ = ("app", "request_id", "asked", "answered", "cached", "confidence", "default", "reason",
                 "explanation", "total_ns")

    def __init__(self, app: str, request_id: int, outputs: Mapping[str, np.ndarray], asked: tuple[str, ...],
                 answered: tuple[str, ...], total_ns: int, *, cached: int = 0, confidence: float = 1.0,
                 default: bool = False, reason: str = "", explanation: str = "") -> None:
        self.app = app
        #: what `feedback` takes
        self.request_id = request_id
        self.outputs = dict(outputs)
        #: the members that were asked, and those that answered in time
        self.asked = asked
        self.answered = answered
        #: how many of the answers cost no execution: they were kept, or shared with an equal request
        self.cached = cached
        #: the weighted share of what was asked that agrees with the answer; 0 to 1
        self.confidence = confidence
        #: no model answered this: it is the application's default
        self.default = default
        #: why it is the default: a code's name, or LOW_CONFIDENCE; "" if it is not
        self.reason = reason
        self.explanation = explanation
        self.total_ns = total_ns

    @property
    def missing(self) -> tuple[str, ...]:
        """The members that were asked and did not answer in time."""
        return tuple(name for name in self.asked if name not in self.answered)

    @property
    def members_asked(self) -> int:
        return len(self.asked)

    @property
    def members_answered(self) -> int:
        return len(self.answered)

    def facts(self) -> dict[str, Any]:
        """All but the outputs, as plain data; what front doors tell."""
        found: dict[str, Any] = {
            "app": self.app, "request_id": f"{self.request_id:016x}", "default": self.default,
            "members_asked": len(self.asked), "members_answered": len(self.answered), "members": ",".join(self.answered),
            "missing": ",".join(self.missing), "cached": self.cached, "confidence": self.confidence,
            "total_us": self.total_ns // 1000}
        if self.default:
            found["reason"], found["explanation"] = self.reason, self.explanation
        return found

    def __repr__(self) -> str:
        said = f"default: {self.reason}" if self.default else f"confidence {self.confidence:.2f}"
        return (f"<{self.app} {self.request_id:016x}: {len(self.answered)} of {len(self.asked)} members in "
                f"{format_duration(self.total_ns)}, {said}>")
