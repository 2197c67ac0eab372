"""Where a peer looks for its controller: at which of its endpoints, for how long, and whose WELCOME it takes.

Section 5.8 of the specification. Knows no socket, clock or message: the sessions of clients and workers have one each
and tell it what happened; they do what follows from it. With one endpoint it has nothing to say, and every WELCOME holds.
"""

from __future__ import annotations

from collections.abc import Sequence

from cwd.errors import Code, CwdError
from cwd.units import NS_PER_MS

#: how long a connection is waited for at one of several endpoints, and then the answer to HELLO: at first and at most
PATIENCE_NS = 200 * NS_PER_MS
PATIENCE_MAX_NS = 1_600 * NS_PER_MS
#: and so many times what the quickest WELCOME there took, if that is more: a slow link must not look like a dead one, and a
#: handshake with keys goes there and back several times
QUICKEST = 8
#: it doubles with every round over the endpoints until there was a WELCOME, after a loss with so many rounds only
ROUNDS = 4
#: between being turned away and trying the next endpoint
PAUSE_NS = 20 * NS_PER_MS


class Newest:
    """The highest epoch that those connections to one cluster have seen that share this."""

    def __init__(self) -> None:
        self.epoch = 0


class Route:
    """The way of one connection over `endpoints`; connections that belong together share `newest`."""

    def __init__(self, endpoints: Sequence[str], newest: Newest | None = None) -> None:
        if not endpoints:
            raise CwdError("no endpoint is given", code=Code.BAD_ARGUMENT)
        self.endpoints = tuple(endpoints)
        self.several = len(self.endpoints) > 1
        self.newest = newest or Newest()
        self._at = 0
        #: endpoints tried since the last WELCOME
        self._tried = 0
        #: what the quickest WELCOME of each endpoint took; 0: there was none
        self._quickest_ns = [0] * len(self.endpoints)

    @property
    def endpoint(self) -> str:
        """The one to be connected to now."""
        return self.endpoints[self._at]

    def patience_ns(self) -> int:
        """How long to wait at the present endpoint."""
        # of one that never answered it is only known that it may be as far away as the others
        quickest_ns = self._quickest_ns[self._at] or max(self._quickest_ns)
        rounds = self._tried // len(self.endpoints)
        doublings = min(rounds // ROUNDS if quickest_ns else rounds, 16)
        return min(max(PATIENCE_NS, QUICKEST * quickest_ns) << doublings, PATIENCE_MAX_NS)

    def round_ns(self) -> int:
        """How long it takes to wait once at each endpoint, about."""
        return self.patience_ns() * len(self.endpoints)

    def go_on(self) -> None:
        """Nobody was there, or the controller was lost: on to the next endpoint."""
        self._at = (self._at + 1) % len(self.endpoints)
        self._tried += 1

    def takes(self, epoch: int, took_ns: int) -> bool:
        """Whether a WELCOME holds that came `took_ns` after its HELLO.

        With several endpoints that of a smaller epoch than the highest seen does not: another controller has been
        elected since, and this one does not know it yet.
        """
        if self.several and epoch < self.newest.epoch:
            return False
        self.newest.epoch = max(self.newest.epoch, epoch)
        self._tried = 0
        took_ns = max(took_ns, 1)
        self._quickest_ns[self._at] = min(self._quickest_ns[self._at] or took_ns, took_ns)
        return True
