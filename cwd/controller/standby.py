"""A controller before it is elected: it has its kernels and the repository's facts, and no socket, no table and no epoch.

Whoever tries to connect meets a closed door and goes on to the leader. The tables are made from the facts at the election,
which takes milliseconds, so that nothing has to be undone in them for what came and went while somebody else led. The
supervisor is told that a standby is ready, as it is: it waits, and does nothing else.
"""

from __future__ import annotations

import gc
import logging
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cwd.controller.candidacy import Candidacy, check_election
from cwd.controller.catalogue import Catalogue, changed_name
from cwd.controller.config import RELOADABLE, ControllerConfig, default_run_dir, default_state_dir
from cwd.controller.reader import RepositoryReader
from cwd.controller.writer import check_state_dir, new_epoch
from cwd.errors import Code, CwdError
from cwd.net import wake
from cwd.net.clock import monotonic_ns
from cwd.net.keys import check_folder, server_pair
from cwd.net.notify import notify, watchdog_period_ns
from cwd.net.sockets import check_endpoint
from cwd.settings import on_reload, reloaded, set_log_level
from cwd.units import NS_PER_MS, NS_PER_S

LOG = logging.getLogger("cwd.controller")

#: a turn without news
TURN_NS = 50 * NS_PER_MS
#: between two looks at the repository
LOOK_NS = 5 * NS_PER_S
#: between two status lines that say the same
STATUS_NS = 2 * NS_PER_S
#: by which the supervisor hears again of one that is still reading the repository
SCAN_NS = 60 * NS_PER_S


@dataclass
class Elected:
    """What the standby hands over to the controller that it becomes."""

    config: ControllerConfig
    candidacy: Candidacy
    catalogue: Catalogue
    reader: RepositoryReader | None
    #: the question to the reader that is still being answered; 0: none
    asked: int
    #: how many signals to end have come so far
    stops: Callable[[], int]

    def close(self) -> None:
        """Give everything back."""
        self.candidacy.resign()
        self.candidacy.close()
        if self.reader is not None:
            self.reader.close()


class Standby:
    """`run` waits for the election. Raises `CwdError` for what an operator can cause, and would stop it from leading."""

    def __init__(self, config: ControllerConfig, load: Callable[[], ControllerConfig] | None = None) -> None:
        self.config = config
        self._load = load or (lambda: config)
        self._state_dir = Path(config.state_dir or default_state_dir())
        check_election(config)
        check_state_dir(Path(config.run_dir or default_run_dir()))
        check_state_dir(self._state_dir)
        if config.keys:
            check_folder(config.keys)
            server_pair(config.keys)
        for name in ("clients", "workers", "admin"):
            check_endpoint(config.endpoint(name), open_bind=config.insecure or bool(config.keys))
        self._catalogue = Catalogue()
        self._reader = RepositoryReader(config.repository) if config.repository else None
        self._candidacy: Candidacy | None = None
        self._wake_fd = wake.signal_pipe()
        self._asked = self._stops = 0
        self._scanned = self._reader is None
        self._hangup = self._ready = self._troubled = False
        self._status = ""
        self._look_ns = self._status_ns = self._watchdog_ns = 0
        self._watchdog_period_ns = watchdog_period_ns()

    def _stop(self, *_: Any) -> None:
        self._stops += 1

    def _hang_up(self, *_: Any) -> None:
        self._hangup = True

    def run(self) -> Elected | None:
        """Wait: what the leader goes on with, or None when told to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        on_reload(self._hang_up)
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            while self._stops == 0:
                self.step()
                if self._candidacy is not None and self._candidacy.until_ns > monotonic_ns():
                    return self._hand_over(self._candidacy)
        except BaseException:
            self._close()
            raise
        notify(stopping=True, status="ends")
        self._close()
        return None

    def step(self) -> None:
        """One turn: what has come from the elector and the reader, and what is due."""
        descriptors = [self._wake_fd]
        if self._reader is not None and self._reader.pending:
            descriptors.append(self._reader.said)
        if self._candidacy is not None:
            descriptors.append(self._candidacy.said)
        if self._wake_fd in select.select(descriptors, [], [], TURN_NS / NS_PER_S)[0]:
            wake.drain(self._wake_fd)
        now_ns = monotonic_ns()
        self._read(now_ns)
        self._take_part(now_ns)
        if self._hangup:
            self._reload()
        self._watch(now_ns)

    def _read(self, now_ns: int) -> None:
        """Follow the repository: at first all of it, and now and then what has changed."""
        if self._reader is None:
            return
        if not self._reader.pending and now_ns >= self._look_ns:
            self._look_ns = now_ns + LOOK_NS
            try:
                self._asked = self._reader.ask("changes")
            except CwdError as error:  # it has just ended; the next look starts another
                LOG.warning("%s", error.text)
        for told in self._reader.answers() if self._reader.pending else ():
            if "gone" in told and not self._scanned:  # there is no repository, or reading it ends the reader
                raise CwdError(told["error"], code=Code(told["code"]))
            if "error" in told:
                LOG.error("%s", told["error"])
            changes = self._catalogue.take(told)
            for kind, value in changes if self._scanned else ():
                LOG.info("repository: %s %s", kind, changed_name(kind, value))
            self._scanned |= "end" in told or "error" in told

    def _take_part(self, now_ns: int) -> None:
        """Once all is ready, be a candidate."""
        if not self._scanned:
            return
        if self._candidacy is not None and self._candidacy.lost:  # it led, but this process was stopped meanwhile
            self._candidacy.close()
            self._candidacy = None
        if self._candidacy is None:
            self._candidacy = Candidacy(self.config, new_epoch(self._state_dir, 0))
        self._candidacy.attend(now_ns)

    def _watch(self, now_ns: int) -> None:
        """Tell the supervisor: READY once it could lead, what it waits for, and that it still turns."""
        said = self._say()
        changed, self._status = said != self._status, said
        if self._candidacy is None:
            if changed:
                notify(status=said, extend_ns=SCAN_NS)
            return
        before, self._troubled = self._troubled, bool(self._candidacy.trouble)
        if changed and not (before and self._troubled):  # each of several servers may have a trouble of its own, in turns
            LOG.info("%s", said)
        if not self._ready:
            LOG.info("standing by in cluster %s with %d models", self.config.cluster, len(self._catalogue.models))
        if changed or not self._ready or now_ns >= self._status_ns:
            notify(ready=not self._ready, status=said)
            self._ready, self._status_ns = True, now_ns + STATUS_NS
        if self._watchdog_period_ns and now_ns >= self._watchdog_ns:
            self._watchdog_ns = now_ns + self._watchdog_period_ns
            notify(watchdog=True)

    def _say(self) -> str:
        if self._candidacy is None:
            return f"reading the repository: {len(self._catalogue.models)} models"
        if self._candidacy.trouble:
            return f"standby: {self._candidacy.trouble}"
        if self._candidacy.leader is None:
            return "standby: asking etcd who leads"
        return f"standby of {self._candidacy.leader}" if self._candidacy.leader else "standby: nobody leads"

    def _reload(self) -> None:
        """Take over what the settings now say, as far as a leader could, too."""
        self._hangup = False
        if self._ready:
            notify(reloading=True)
        self.config = reloaded(self.config, self._load, RELOADABLE, LOG)
        set_log_level(self.config.log_level)
        if self._ready:
            notify(ready=True)

    def _hand_over(self, candidacy: Candidacy) -> Elected:
        os.close(signal.set_wakeup_fd(-1))
        os.close(self._wake_fd)
        assert candidacy.led is not None
        LOG.info("elected in cluster %s, epoch %d", self.config.cluster, candidacy.led.epoch)
        asked = self._asked if self._reader is not None and self._reader.pending else 0
        return Elected(self.config, candidacy, self._catalogue, self._reader, asked, lambda: self._stops)

    def _close(self) -> None:
        if self._candidacy is not None:
            self._candidacy.resign()
            self._candidacy.close()
        if self._reader is not None:
            self._reader.close()
