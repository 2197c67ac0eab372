"""The slow, obvious twin of cwd.worker.agenda for one lane: a deque and the rules as sentences."""

from __future__ import annotations

from collections import deque

from cwd.worker import agenda as real


class NaiveLane:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.waiting: deque[dict[str, int]] = deque()
        self.running: dict[str, int] | None = None
        self.session = 0

    def push(self, action: dict[str, int]) -> int:
        if action["session"] != self.session:
            return real.ABANDONED
        if len(self.waiting) == self.capacity:
            return real.LANE_FULL
        self.waiting.append(action)
        return real.OK

    def next(self, now_ns: int) -> tuple[int, int, int | None]:
        """(verdict, until_ns, id of the action that left the queue)."""
        if not self.waiting:
            return (real.BUSY if self.running else real.EMPTY), int(real.NEVER), None
        head = self.waiting[0]
        if head["session"] != self.session:
            return real.DROP, int(real.NEVER), self.waiting.popleft()["action"]
        if self.running:
            return real.BUSY, int(real.NEVER), None
        if head["earliest_ns"] > head["latest_ns"] or now_ns > head["latest_ns"]:
            return real.REFUSE, int(real.NEVER), self.waiting.popleft()["action"]
        if now_ns < head["earliest_ns"]:
            return real.WAIT, head["earliest_ns"], None
        self.running = self.waiting.popleft()
        return real.START, int(real.NEVER), self.running["action"]

    def done(self) -> None:
        self.running = None
