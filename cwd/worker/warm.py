"""Compile, or load from the cache, every kernel of a worker: by calling each entry point on tiny tables."""

from __future__ import annotations

import mmap
import os
import select

import numpy as np

from cwd.models import fit
from cwd.net.clock import monotonic_ns
from cwd.net.sockets import connect_dealer, make_context
from cwd.net.wake import eventfd_signal, make_eventfd, make_timerfd, poll_fds, set_timer_slack
from cwd.net.zmq import message, message_data, message_size, messages_close
from cwd.wire.kernel import TYPE_PREPARE
from cwd.worker import agenda as ag
from cwd.worker import entries as en
from cwd.worker import exchange as ex
from cwd.worker import io as io_
from cwd.worker import lanes as la
from cwd.worker import link as ln
from cwd.worker import residency as rs
from cwd.worker.backends import emulated as em
from cwd.worker.pages import PagePool


def warm() -> None:
    """Everything: both kinds of worker."""
    warm_device()
    warm_emulated()


def warm_device() -> None:
    """What a worker with a real device calls."""
    context = make_context()
    socket = connect_dealer(context, "inproc://cwd-warm")
    exchange = ex.make_exchange(2, 2, 4)
    exec_lane, load_lane = la.make_lane(exchange, exchange.exec_queue), la.make_lane(exchange, exchange.load_queue)
    link, entries = exchange.link, exchange.entries
    link["socket"], link["state"], link["session"] = socket.underlying, ln.OPEN, 1
    link["heard_ns"] = link["asked_ns"] = monotonic_ns()
    link["heartbeat_ns"] = link["lost_ns"] = 10**12
    ex.exchange_lock(exchange)
    ex.exchange_session(exchange)
    exchange.action[:] = ag.make_action(session=1, kind=TYPE_PREPARE)
    ex.exchange_queue(exchange)
    ex.exchange_unlock(exchange)
    ex.exchange_stop(exchange)
    io_.io_run(io_.Io(exchange=exchange, items=poll_fds(-1, -1)))
    la.lane_wait(exec_lane, 0)
    la.lane_answer(exec_lane)
    ex.queue_stop(load_lane.queue)
    la.lane_wait(load_lane, 0)
    la.lane_ahead(exec_lane)
    en.entry_payloads(entries, 0, 1)
    en.entry_open(entries, 0, 1)
    en.entry_drop_outputs(entries, 0, 1)
    en.entry_close(entries, 1)
    set_timer_slack(50_000)
    message_data(message(entries.frames, 0))
    message_size(message(entries.frames, 0))
    messages_close(entries.frames)
    messages_close(entries.outputs)
    socket.close(0)
    context.destroy(0)
    for fd in ex.exchange_fds(exchange):
        os.close(fd)
    _warm_pages()
    fit.warm()


def _warm_pages() -> None:
    pool, residency = PagePool(2, mmap.PAGESIZE), rs.make_residency(1, 2)
    index = rs.resident_take(residency, 0, 1, 0, 0, 1)
    pages = np.zeros(2, np.int32)
    rs.resident_pages(residency, 0, index, pages)
    window = pool.reserve(1)
    pool.fill(window, pages[:1], np.zeros(1, np.uint8))
    pool.clear(window, 1)
    pool.close()
    rs.resident_ready(residency, 0, index)
    rs.residency_session(residency, 0, 1)
    rs.resident_orphan_any(residency, 0)
    rs.resident_adopt(residency, 0, 1, 0, 0, 1)
    rs.resident_find(residency, 0, 1)
    rs.resident_usable(residency, 0, 1)
    rs.pages_free(residency, 0)
    rs.resident_drain(residency, 0, index)
    rs.resident_give(residency, 0, index)


def warm_emulated() -> None:
    """What a process of emulated GPUs calls."""
    wake, timer = make_eventfd(), make_timerfd()
    epoll = select.epoll()
    epoll.register(wake, select.EPOLLIN)
    state = em.make_emulated(1, 2, 2, 2)
    state.links["greet_ns"] = state.next_ns[:] = 2**62
    eventfd_signal(wake)
    em.emulated_run(state, epoll.fileno(), wake, timer)
    epoll.close()
    ag.agenda_session(state.agenda, 0, 1)
    rs.residency_session(state.residency, 0, 1)
    message_data(message(state.message, 0))
    message_size(message(state.message, 0))
    messages_close(state.message)
    monotonic_ns()
    os.close(wake)
    os.close(timer)
