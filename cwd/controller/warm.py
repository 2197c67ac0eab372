"""Compile, or load from the cache, every kernel that the controller calls, on a tiny world without sockets."""

from __future__ import annotations

import numpy as np

from cwd.controller import feed, flush, loop, peers, times, writer
from cwd.controller.config import ControllerConfig
from cwd.controller.host import ROLE_CLIENT, ROLE_WORKER, make_host
from cwd.controller.record import RECORD
from cwd.core.world import Config, make_world
from cwd.net.clock import monotonic_ns
from cwd.net.sync import make_ring
from cwd.net.zmq import POLL_ITEM, message, message_close, message_data, message_size, messages_close


def warm() -> None:
    """Call each kernel that Python calls, with the types that Python calls it with."""
    config = ControllerConfig(models_max=4, requests_max=4, gpus_max=2, clients_max=2, admins_max=2)
    core = Config(models_max=4, programs_max=config.programs_max, requests_max=4, gpus_max=2, clients_max=6,
                  copies_max=8, actions_max=8)
    world = make_world(core)
    ring = make_ring(RECORD, 64)
    host = make_host(config, 1, np.zeros(5, POLL_ITEM), ring)
    now_ns = monotonic_ns()
    worker = peers.add_peer(host, 1, ROLE_WORKER, 0, 1, now_ns)
    client = peers.add_peer(host, 2, ROLE_CLIENT, -1, 0, now_ns)
    for slot in (worker, client):
        times.start_clock(host, int(slot), now_ns, now_ns)
        times.clock_error(host, int(slot), now_ns)
    peers.find_peer(host, 1)
    peers.socket_of_key(1)
    times.to_worker(host, int(worker), now_ns)
    feed.feed_joined(host, world, now_ns, 0, 0, 8)
    feed.feed_program(host, world, now_ns, 0, np.array([1, 2], np.int64), 1)
    feed.feed_seed(host, world, now_ns, 0, 0, 0, 0, 1000)
    feed.feed_load_seed(host, world, now_ns, 0, 0, 1000)
    model = int(feed.feed_model(host, world, now_ns, 0, 1))
    models = np.array([model], np.int64)
    flush.adopt(host, world, now_ns, int(worker), models, 1)
    feed.feed_resident(host, world, now_ns, 0, models)
    feed.feed_prepared(host, world, now_ns, 0, 0, 1)
    action = int(feed.feed_reserved(host, world, now_ns, 0, 1000))
    feed.feed_done(host, world, now_ns, 0, action, 0, now_ns, now_ns, 0, 0, 7, -1, 0)
    feed.feed_wanted(host, world, now_ns, model)
    feed.feed_closing(host, world, now_ns)
    feed.feed_model_removed(host, world, now_ns, model)
    feed.feed_draining(host, world, now_ns, 0)
    peers.mark_leaving(host, int(client))
    loop.run(host, world, now_ns)
    writer.take(ring, np.zeros(4, RECORD))
    held = message(host.messages, 0)
    message_data(held)
    message_size(held)
    message_close(held)
    messages_close(host.messages)
