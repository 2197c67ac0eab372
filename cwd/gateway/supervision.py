"""What the gateway's supervisor is told: that it waits for a controller, is ready, how it goes, that its loop turns.

All of it comes from a task of the event loop that serves, so a loop that hangs says nothing more. "All is well"
(WATCHDOG) does not depend on the controller: one that is away is in the status, and is no reason to end the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from cwd.errors import CwdError
from cwd.gateway.app import Gateway
from cwd.net.notify import notify, watchdog_period_ns
from cwd.units import NS_PER_S

LOG = logging.getLogger("cwd.gateway")

#: how often the status is renewed where no watchdog asks for more
_STATUS_S = 10.0
#: how long one look for a controller takes; how long until the log has a line about it
_LOOK_S, _PATIENCE_S = 0.5, 5.0
#: what waiting for a controller may take, beyond the supervisor's own timeout: it is said again at every look
_WAIT_NS = 60 * NS_PER_S


class Supervision:
    """Of one gateway that listens at `where`."""

    def __init__(self, gateway: Gateway, where: str) -> None:
        self._gateway, self._where = gateway, where
        self._watchdog = watchdog_period_ns() > 0
        self._period_s = watchdog_period_ns() / NS_PER_S or _STATUS_S
        self._ready = False
        self._before = (time.monotonic(), 0, 0)

    async def run(self, started: Callable[[], bool]) -> None:
        """READY once there is a controller and `started()`; from then on the watchdog and the status, until cancelled."""
        await self._welcomed()
        while not started():
            await asyncio.sleep(0.01)
        if not self._gateway.stopping:
            self._ready = True
            LOG.info("serving %s on %s", self._gateway.client.endpoint, self._where)
            notify(ready=True, watchdog=self._watchdog, status=f"serving on {self._where}")
        while True:
            await asyncio.sleep(self._period_s)
            notify(watchdog=self._watchdog, status=self._summary())

    def reloading(self) -> None:
        if self._ready:
            notify(reloading=True)

    def reloaded(self) -> None:
        if self._ready:
            notify(ready=True)

    async def _welcomed(self) -> None:
        """Wait for the controller. Who asks meanwhile is served, and told that the gateway is not ready."""
        patience_s = time.monotonic() + _PATIENCE_S
        while not self._gateway.stopping:
            try:
                await self._gateway.client.connect(_LOOK_S)
                return
            except CwdError as error:
                notify(status=f"waiting for the controller: {error}", extend_ns=_WAIT_NS)
                if time.monotonic() > patience_s:
                    patience_s = float("inf")
                    LOG.warning("the gateway is not ready until a controller answers: %s", error)
                await asyncio.sleep(_LOOK_S / 10)  # an error may come at once

    def _summary(self) -> str:
        """Where it serves, how much was answered since the last summary and how much of that in time."""
        gateway, now = self._gateway, time.monotonic()
        models = gateway.statistics.models.values()
        in_time = sum(model.success for model in models)
        ended = in_time + sum(model.fail + model.cancel for model in models)
        before, in_time_before, ended_before = self._before
        self._before = (now, in_time, ended)
        ended, in_time = max(ended - ended_before, 0), max(in_time - in_time_before, 0)  # a model that is gone took its counts
        what = "finishing what is in flight" if gateway.stopping else f"serving on {self._where}"
        share = f", {in_time / ended:.1%} in time" if ended else ""
        away = gateway.away()
        lost = f"; no controller at {', '.join(away)}" if away else ""
        return f"{what}: {ended / max(now - before, 1e-3):.0f} requests/s{share}, {gateway.infer.in_flight} in flight{lost}"
