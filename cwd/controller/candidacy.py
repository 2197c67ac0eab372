"""A controller's part in the election, as its own thread sees it: it beats, hears whether it leads, and never waits.

The elector beside it does the rest. If that ends, another is started and goes on with the lease that was held. Nothing is
trusted but `until_ns`: past it the controller must not act, whatever the elector has said or failed to say.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import os
import re
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import msgpack

from cwd.controller import election
from cwd.controller.config import ControllerConfig
from cwd.controller.election import Candidate, Follows, Led, Lost, News, Trouble
from cwd.controller.side_process import SideProcess
from cwd.errors import Code, CwdError
from cwd.units import NS_PER_MS, NS_PER_S

LOG = logging.getLogger("cwd.controller")

#: between two beats
BEAT_NS = 50 * NS_PER_MS
#: between two electors that ended by themselves
RESTART_NS = 250 * NS_PER_MS
_CHUNK_BYTES = 4096
_RESIGN_STEP_S = 0.002


def etcd_urls(text: str) -> list[str]:
    """The servers of a list with commas. Raises `CwdError` (BAD_ARGUMENT) for what is none."""
    urls = [url.strip().rstrip("/") for url in text.split(",") if url.strip()]
    for url in urls:
        try:
            parts = urlsplit(url)
            sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.path
        except ValueError:
            sound = False
        if not sound:
            raise CwdError(f"{url!r} is no address of etcd: http://HOST:PORT or https://HOST:PORT", code=Code.BAD_ARGUMENT)
    return urls


def check_election(config: ControllerConfig) -> None:
    """Raise `CwdError` (BAD_ARGUMENT) for an election that could never be held."""
    if not etcd_urls(config.etcd):
        raise CwdError("etcd: no address is given", code=Code.BAD_ARGUMENT)
    if importlib.util.find_spec("etcd3gw") is None:
        raise CwdError("an election needs etcd3gw: pip install 'cwd[standby]'", code=Code.BAD_ARGUMENT)
    if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", config.cluster) is None:
        raise CwdError(f"{config.cluster!r} is no name for a cluster: letters, digits, dots, dashes", code=Code.BAD_ARGUMENT)
    if not NS_PER_S // 2 <= config.lease_ns <= 3600 * NS_PER_S:
        raise CwdError("lease: from 500ms to an hour", code=Code.BAD_ARGUMENT)
    if bool(config.etcd_cert) != bool(config.etcd_key):
        raise CwdError("etcd_cert and etcd_key: one is of no use without the other", code=Code.BAD_ARGUMENT)
    for path in filter(None, (config.etcd_ca, config.etcd_cert, config.etcd_key)):
        if not os.access(path, os.R_OK):
            raise CwdError(f"{path}: cannot be read", code=Code.BAD_ARGUMENT)


class Candidacy:
    """From the first question to etcd until the lease is given back."""

    def __init__(self, config: ControllerConfig, epoch_min: int) -> None:
        me = Candidate(f"{config.name} on {socket.gethostname()}", config.lease_ns, epoch_min)
        self.cluster = config.cluster
        self._facts = {"urls": etcd_urls(config.etcd), "cluster": config.cluster, "ca": config.etcd_ca,
                       "cert": config.etcd_cert, "key": config.etcd_key, "me": dataclasses.asdict(me)}
        self.led: Led | None = None
        #: who leads, "" if nobody does, None as long as that is not known
        self.leader: str | None = None
        #: why etcd does not answer; why this controller leads no longer
        self.trouble = self.lost = ""
        #: electors that ended
        self.restarts = 0
        self._resigned = False
        self._beat_ns = self._restart_ns = 0
        self._process = self._start()

    def _start(self) -> SideProcess:
        held = dataclasses.astuple(self.led) if self.led is not None else None
        return SideProcess("cwd.controller.elector", json.dumps({**self._facts, "held": held}))

    @property
    def said(self) -> int:
        """The descriptor on which news come; for a poll set."""
        return self._process.said

    @property
    def until_ns(self) -> int:
        """Until when this controller leads for sure; 0: it does not."""
        return self.led.until_ns if self.led is not None and not self.lost else 0

    def attend(self, now_ns: int) -> None:
        """Beat if it is time, and take in what has come. Never waits."""
        if now_ns >= self._beat_ns:
            self._beat_ns = now_ns + BEAT_NS
            self._tell(now_ns)
        try:
            data = os.read(self._process.said, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if data:
            self._process.unpacker.feed(data)
            for name, *fields in self._process.unpacker:
                self._take(getattr(election, name)(*fields))
        elif now_ns >= self._restart_ns and not self.lost and not self._resigned:
            self._restart(now_ns)

    def facts(self) -> dict[str, Any]:
        """What an operator may want to know of it."""
        led = self.led
        return {"role": "leader" if self.until_ns else "standby", "cluster": self.cluster, "epoch": led.epoch if led else 0,
                "lease_ns": led.ttl_ns if led else 0, "left_ns": max(self.until_ns - time.monotonic_ns(), 0),
                "trouble": self.trouble[:200], "restarts": self.restarts}

    def _tell(self, value: int | None) -> None:
        try:
            os.write(self._process.asked, msgpack.packb(value))
        except OSError:
            pass  # it does not read, or is gone: then no lease is renewed, and reading finds it out

    def _take(self, news: News) -> None:
        if isinstance(news, Led):
            self.led = news
        elif isinstance(news, Lost):
            self.lost = news.why
        elif isinstance(news, Follows):
            self.leader = news.leader
        elif isinstance(news, Trouble):
            self.trouble = news.why

    def _restart(self, now_ns: int) -> None:
        LOG.error("the elector ended; another is started%s", " and goes on with the lease" if self.led is not None else "")
        self.restarts += 1
        self._process.close()
        self._process = self._start()
        self._restart_ns, self._beat_ns = now_ns + RESTART_NS, 0

    def resign(self, wait_s: float = 1.0) -> None:
        """Have the lease given back, and wait so long for it. Nothing may be done as a leader from here on."""
        self._resigned = True
        self._tell(None)
        until_s = time.monotonic() + wait_s
        while self._process.alive and time.monotonic() < until_s:
            time.sleep(_RESIGN_STEP_S)

    def close(self) -> None:
        """End the elector, whatever it holds."""
        self._process.close()
