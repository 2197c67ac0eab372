"""A process of emulated GPUs, the Python half: connections, HELLOs, profiles from the repository, signals.

Everything frequent is in backends/emulated.py, which this calls again and again.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
from typing import Any

import numpy as np
import zmq

from cwd.errors import CwdError, RepositoryError
from cwd.models import profile as profiles
from cwd.models.repository import Repository
from cwd.net.clock import monotonic_ns
from cwd.net.keys import peer_keys
from cwd.net.route import Newest
from cwd.net.sockets import make_context
from cwd.net.wake import make_timerfd
from cwd.net.zmq import message_data, message_size, messages_close
from cwd.wire.memory import array_address
from cwd.wire.messages import Type
from cwd.worker import agenda as ag
from cwd.worker import link as ln
from cwd.worker import residency as rs
from cwd.worker.backends import emulated as em
from cwd.worker.hello import HASH_BYTES, caps_of, images_resident
from cwd.worker.options import WorkerOptions
from cwd.worker.session import Session

LOG = logging.getLogger("cwd.worker")


class EmulatedWorker:
    """N emulated GPUs, each with a connection of its own, in the calling thread. `wake_fd` readable interrupts it."""

    def __init__(self, options: WorkerOptions, wake_fd: int) -> None:
        self.options = options
        n = options.gpus
        # a socket that was closed is counted for a moment longer, and all may be closed at once
        self.context = make_context(sockets_max=2 * n + 64)
        self.wake_fd, self.timer_fd = wake_fd, make_timerfd()
        self.epoll = select.epoll()
        for fd in (wake_fd, self.timer_fd):
            self.epoll.register(fd, select.EPOLLIN)
        #: the descriptor by which each device's socket says that something is there, -1 none
        self._fds = [-1] * n
        self.state = em.make_emulated(n, options.pages, options.agenda_max, options.rows_max)
        counts = self.state.counts
        counts["noise_ppm"], counts["load_bytes_per_s"] = options.noise_ppm, options.load_bytes_per_s
        counts["page_bytes"], counts["out_bytes"] = options.page_bytes, options.out_bytes
        counts["random"] = (options.seed * 2 + 1) * 0x2545F4914F6CDD1D % 2**62 + 1
        self._reserve_output(options.out_bytes)
        self.repository = Repository(options.repo) if options.repo else None
        #: program hashes; a program's number is its place here
        self.programs: list[bytes] = []
        keys = peer_keys(options.key or None, options.server_key or None)
        newest = Newest()
        self.sessions = [
            Session(self.context, options.endpoint, f"{options.name}/{g}" if n > 1 else options.name,
                    self.state.links[g:g + 1], lambda g=g: self._caps(g), keys, newest)
            for g in range(n)]
        for g in range(n):
            self.sessions[g].connect()
            self._poll(g)

    @property
    def open_count(self) -> int:
        """How many GPUs the controller has welcomed."""
        return int((self.state.links["state"] == ln.OPEN).sum())

    @property
    def drained(self) -> bool:
        """Whether the controller has let every GPU go."""
        return all(session.drained for session in self.sessions)

    def summary(self) -> str:
        """What it has, for people."""
        return f"{self.open_count} of {self.options.gpus} emulated GPUs with a controller"

    def executed(self) -> int:
        """How many batches all of them have executed."""
        return int(self.state.counts["executed"][0])

    def step(self) -> bool:
        """Serve until something rare has happened, and deal with it; False if woken by `wake_fd` or a signal."""
        what, device = em.emulated_run(self.state, self.epoll.fileno(), self.wake_fd, self.timer_fd)
        if what == em.WAKE:
            return False
        session = self.sessions[device]
        socket = session.socket
        if what == em.RARE:
            self._rare(device)
        elif what == em.GREET:
            session.say_hello()
        elif what == em.LOST:
            session.reconnect("the controller is silent or gone")
        if session.socket is not socket:
            self._poll(device)
        # whatever happened touched the socket or the link: look at both again
        self.state.dirty[device], self.state.next_ns[device] = 1, 0
        return True

    def close(self, text: str = "the worker was told to stop") -> None:
        """Say goodbye for every GPU and give everything back."""
        for session in self.sessions:
            session.goodbye(text)
            session.close(linger_ms=200)
        messages_close(self.state.message)
        self.epoll.close()
        self.context.destroy(200)
        os.close(self.timer_fd)

    def _poll(self, device: int) -> None:
        """The poll set must have the device's present socket, and not the old one's descriptor."""
        old, socket = self._fds[device], self.sessions[device].socket
        if old >= 0:
            self.state.device_of[old] = -1
            with contextlib.suppress(OSError):  # it may be closed already
                self.epoll.unregister(old)
        fd = socket.getsockopt(zmq.FD)
        if fd >= em.FDS_MAX:
            raise CwdError(f"file descriptor {fd}: too many open files for one process of emulated GPUs")
        with contextlib.suppress(FileExistsError):
            self.epoll.register(fd, select.EPOLLIN)
        self.state.device_of[fd] = device
        self._fds[device] = fd

    def _rare(self, device: int) -> None:
        session, message = self.sessions[device], array_address(self.state.message)
        frame = ctypes.string_at(message_data(message), message_size(message))
        fields = session.welcome(frame)
        if fields is None:
            return
        if fields["type"] == Type.WELCOME:
            for lane in (2 * device, 2 * device + 1):
                ag.agenda_session(self.state.agenda, lane, int(session.link["session"][0]))
            rs.residency_session(self.state.residency, device, int(session.link["session"][0]))
            self.state.numbers[device] = -1
            LOG.debug("%s: welcomed, epoch %x", session.name, fields["epoch"])
        elif session.open:
            self._prepare(device, fields)

    def _prepare(self, device: int, fields: dict[str, Any]) -> None:
        """Note which program the index means, then let the agenda answer in its turn."""
        index = fields["program_index"]
        if index < em.PROGRAMS_MAX:
            self.state.numbers[device, index] = self._program(fields["program"])
        action = ag.make_action(kind=int(Type.PREPARE), program=index, received_ns=monotonic_ns(),
                                session=int(self.state.links["session"][device]))
        for name in ("action", "epoch"):
            action[name] = np.uint64(fields[name]).astype(np.int64)
        for name in ("earliest_ns", "latest_ns", "expected_ns"):
            action[name] = fields[name]
        self.state.action[:] = action
        self.state.counts["order"] = device

    def _program(self, program: bytes) -> int:
        """The program's number; a new one's profile is read from the repository."""
        if program in self.programs:
            return self.programs.index(program)
        if len(self.programs) == em.PROGRAMS_MAX:
            return -1
        self.programs.append(program)
        number = len(self.programs) - 1
        if self.repository is not None:
            try:
                self._read_profile(number, program)
            except RepositoryError as error:
                LOG.warning("program %s: no profile, so it takes what the controller expects: %s", program.hex(), error)
        return number

    def _read_profile(self, number: int, program: bytes) -> None:
        spec, kind = self.repository.program(program), self.options.profile_kind
        for size_class in range(min(len(spec.size_classes), em.CLASSES_MAX)):
            self._reserve_output(spec.output_bytes(spec.class_dims(size_class)))
        terms = spec.output_terms()
        if len(terms) <= em.TERMS_MAX:
            for at, (coefficient, exponents) in enumerate(terms):
                self.state.coefficients[number, at] = coefficient
                self.state.exponents[number, at] = exponents
            self.state.n_terms[number] = len(terms)
        profile = profiles.read(self.repository, program, kind)
        self.state.load_page_ns[number] = -(-self.options.page_bytes * profile["load_ns_per_page"] // profile["page_bytes"])
        for row, batch in enumerate(spec.batch_sizes[:em.BATCHES_MAX]):
            self.state.batches[number, row] = batch
            for size_class in range(min(len(spec.size_classes), em.CLASSES_MAX)):
                self.state.durations_ns[number, row, size_class] = profiles.exec_ns(profile, batch, size_class)

    def _reserve_output(self, size_bytes: int) -> None:
        """The zeros that outputs are sent from must be as long as the longest."""
        if size_bytes > self.state.output.size:
            self.state = self.state.replaced(output=np.zeros(size_bytes, np.uint8))

    def _caps(self, device: int) -> dict[str, Any]:
        resident = [(image, self.programs[number] if number >= 0 else bytes(HASH_BYTES))
                    for image, number in images_resident(self.state.residency, device)]
        return caps_of(kind="emulated", device=f"emulated:{device}", pages=self.options.pages,
                       page_bytes=self.options.page_bytes, agenda_max=self.options.agenda_max, prepares=False,
                       programs=self.programs, images=True, resident=resident)
