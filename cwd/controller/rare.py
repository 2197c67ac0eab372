"""Rare messages: HELLO, LOOKUP, LIST and the news that the loop has for Python, one at a time.

Each handler is short, or gives back a task (a generator of small steps) for the daemon to run between slices. What is
wrong is answered with its code; only a bug raises. This module must not know files.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from cwd.controller.admin import Admin
from cwd.controller.config import ControllerConfig
from cwd.controller.gate import Gate
from cwd.controller.host import (
    ADMINS,
    CLIENTS,
    RARE_GONE,
    RARE_RESULT,
    ROLE_ADMIN,
    ROLE_CLIENT,
    ROLE_WORKER,
    WORKERS,
    Host,
)
from cwd.controller.outgoing import Outgoing
from cwd.controller.peers import ERRORS_UNKNOWN, add_peer, find_peer
from cwd.controller.registry import Registry
from cwd.controller.times import start_clock
from cwd.controller.workers import Workers
from cwd.controller.writer import LogWriter
from cwd.errors import Code, CwdError, RemoteProtocolError
from cwd.net.clock import monotonic_ns
from cwd.net.host_id import host_id
from cwd.units import NS_PER_MS, format_size
from cwd.wire.codec import decode
from cwd.wire.messages import VERSION_MINOR, Type

LOG = logging.getLogger("cwd.controller")

_ROLES = {CLIENTS: ROLE_CLIENT, WORKERS: ROLE_WORKER, ADMINS: ROLE_ADMIN}
#: models in one MODELS message: what encoding them takes must fit into a chunk
LIST_MODELS = 64

Task = Iterator[None]


class Rare:
    """Handlers of everything that the loop hands up."""

    def __init__(self, config: ControllerConfig, host: Host, registry: Registry, workers: Workers, admin: Admin,
                 outgoing: Outgoing, log: LogWriter, gate: Gate | None = None) -> None:
        self._config, self._host, self._registry = config, host, registry
        self._workers, self._admin, self._outgoing, self._log = workers, admin, outgoing, log
        self._gate = gate
        host.state[0]["errors_left"] = ERRORS_UNKNOWN  # until the first heartbeat interval is over
        self._host_id = host_id()
        self.names: dict[int, str] = {}

    def message(self, row: Any, frame: bytes, user: bytes) -> Task | None:
        """A message that the loop did not understand, and the key of who sent it (b"" if nobody asks for keys)."""
        key, kind = int(row["key"]), int(row["type"])
        slot = int(find_peer(self._host, key))
        try:
            kind, fields = decode(frame)
        except RemoteProtocolError as error:
            self._outgoing.error(key, error.code, kind, 0, error.text[:200])
            return None
        if kind == Type.HELLO:
            return self._hello(int(row["socket"]), key, fields, user)
        if slot < 0:  # it left while its message waited for us
            return None
        if kind == Type.LOOKUP:
            self._lookup(key, fields)
        elif kind == Type.LIST:
            self._list(key, fields)
        elif kind == Type.ADMIN:
            return self._admin.command(key, fields)
        return None

    def news(self, row: Any) -> Task | None:
        """A peer that is gone, or the result of what Python sent."""
        if row["kind"] == RARE_RESULT:
            return self._workers.result(row)
        if row["kind"] == RARE_GONE:
            slot = int(row["peer"])
            name = self.names.pop(slot, "?")
            if self._gate is not None:
                self._gate.left(slot)
            if row["role"] == ROLE_WORKER:
                worker = self._workers.left(slot, int(row["generation"]))
                if worker is not None:
                    LOG.info("worker %s (gpu %d) is gone; %d left", name, worker.gpu, len(self._workers.by_slot))
            else:
                LOG.debug("%s is gone", name)
        return None

    def _hello(self, which: int, key: int, fields: dict[str, Any], user: bytes) -> Task:
        """Introduce a connection, or say why not; in steps, since each of them takes some ten microseconds."""
        role, name = fields["role"], fields["name"][:200].replace("\n", " ") or "?"
        try:
            if find_peer(self._host, key) >= 0:
                raise CwdError("HELLO came twice", code=Code.UNEXPECTED_TYPE)
            if role != _ROLES[which]:
                raise CwdError(f"role {role} is not the one of this socket", code=Code.UNEXPECTED_TYPE)
            if role == ROLE_WORKER:
                yield from self._hello_worker(key, name, fields, user)
                return
            if self._gate is not None:
                self._gate.check(role, user)
            now_ns = monotonic_ns()
            slot = int(add_peer(self._host, key, role, -1, int(fields["host"] == self._host_id), now_ns))
            if slot < 0:
                raise CwdError("the table of connections is full", code=Code.PEERS_FULL)
            if self._gate is not None:
                self._gate.entered(slot, role, user)
            start_clock(self._host, slot, fields["now_ns"], now_ns)
            self._welcome(slot, key, fields, name, self._config.credits if role == ROLE_CLIENT else 0)
            yield
            self._log.name("client", slot, name, now_ns)
        except CwdError as error:
            self._turn_away(key, name, error)

    def _turn_away(self, key: int, name: str, error: CwdError) -> None:
        """Answer a HELLO with ERROR, out of the ration of those who have not been introduced."""
        state = self._host.state[0]
        if state["errors_left"] <= 0:
            state["errors_withheld"] += 1
            return
        state["errors_left"] -= 1
        LOG.warning("%s was turned away: %s", name, error.text)
        self._outgoing.error(key, error.code, Type.HELLO, 0, error.text[:200])

    def _hello_worker(self, key: int, name: str, fields: dict[str, Any], user: bytes) -> Task:
        worker = self._workers.parse(name, fields["caps"])
        yield
        if find_peer(self._host, key) >= 0:
            raise CwdError("HELLO came twice", code=Code.UNEXPECTED_TYPE)
        if self._gate is not None:
            self._gate.check(ROLE_WORKER, user)
        self._workers.join(worker, key, fields["host"] == self._host_id, monotonic_ns(), fields["now_ns"])
        if self._gate is not None:
            self._gate.entered(worker.slot, ROLE_WORKER, user)
        self._welcome(worker.slot, key, fields, name, 0)
        if fields["host"] != self._host_id:
            self._ask(worker.slot, key)
        yield
        self._log.name("gpu", worker.gpu, name)
        LOG.info("worker %s is gpu %d: %s, %d pages of %s", name, worker.gpu, worker.device, worker.pages_total,
                 format_size(self._registry.page_bytes))
        yield
        yield from self._workers.settle(worker)

    def _welcome(self, slot: int, key: int, fields: dict[str, Any], name: str, credits: int) -> None:
        self.names[slot] = name
        self._outgoing.send(
            key, Type.WELCOME, minor=min(VERSION_MINOR, fields["minor"]), epoch=int(self._host.state[0]["epoch"]),
            host=self._host_id, now_ns=monotonic_ns(), heartbeat_ms=self._config.heartbeat_ns // NS_PER_MS,
            lost_ms=self._config.lost_ns // NS_PER_MS, credits=credits,
            payload_bytes_max=self._config.payload_max_bytes)

    def _ask(self, slot: int, key: int) -> None:
        """The first heartbeat, right behind WELCOME: its answer is here before that to any PREPARE, so that whatever has a
        window of time is told by a clock that has been measured."""
        peer = self._host.peers[slot]
        peer["beat_seq"] += 1
        peer["last_asked_ns"] = monotonic_ns()
        self._outgoing.send(key, Type.HEARTBEAT, seq=int(peer["beat_seq"]), reply=0, sent_ns=int(peer["last_asked_ns"]),
                            echo_ns=0, hold_ns=0, loop_max_ns=0, queued=int(self._host.state[0]["in_flight"]))

    def _lookup(self, key: int, fields: dict[str, Any]) -> None:
        request, name = fields["request"], fields["name"][:128]
        model = self._registry.find(name, fields["version"])
        if model is None:
            version = f"/{fields['version']}" if fields["version"] else ""
            self._outgoing.error(key, Code.UNKNOWN_MODEL, Type.LOOKUP, request, f"no model {name}{version} is registered")
        elif not self._registry.ready(model):
            code, why = self._registry.why_not_ready(model)
            self._outgoing.error(key, code, Type.LOOKUP, request, why)
        else:
            known = None if fields["version"] else self._registry.names.find(name)
            self._outgoing.send_map(key, Type.MODEL, "manifest", model.manifest, request=request,
                                    model=known.handle if known else model.handle)

    def _list(self, key: int, fields: dict[str, Any]) -> None:
        page, following = self._registry.page(fields["after"], LIST_MODELS)
        self._outgoing.send_map(key, Type.MODELS, "models", {model.key: model.handle for model in page},
                                request=fields["request"], next=following)
