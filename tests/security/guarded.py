"""A controller that asks for keys, on loopback TCP as on a network, and peers that come with one or without."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import play
import zmq

from cwd.net.auth import secure_peer
from cwd.net.keys import KeyFolder, PeerKeys, read_pair, read_public
from cwd.net.probe import handshake_fault
from cwd.wire.messages import Role

SOCKETS = {"client": "clients", "worker": "workers", "admin": "admin"}
KINDS = {"client": play.Client, "worker": play.Worker, "admin": play.Admin}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Guarded(play.Controller):
    """A controller with a folder of keys, in which `client`, `worker` and `admin` are listed for those roles."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.folder = KeyFolder(root / "keys")
        self.folder.make_server()
        for role in SOCKETS:
            self.folder.new(role, [role])
        self.ports = dict(zip(SOCKETS, free_ports(3), strict=True))
        binds = {f"{SOCKETS[role]}_bind": self.endpoint(role) for role in SOCKETS}
        super().__init__(root, **{"keys": str(self.folder.root), **binds, **settings})

    def endpoint(self, role: str) -> str:
        return f"tcp://127.0.0.1:{self.ports[role]}"

    def keys(self, name: str) -> PeerKeys:
        """Of a key that was made in the folder."""
        return PeerKeys(read_pair(self.folder.root / "secret" / f"{name}.key_secret"),
                        read_public(self.folder.root / "server.key"))

    def connect(self, role: str, keys: PeerKeys | None) -> Any:
        """A peer that has connected to the socket of `role`, or tries to; nothing has been said yet."""
        peer = KINDS[role].__new__(KINDS[role])
        peer.epoch, peer.seen = 0, []
        peer.socket = self.context.socket(zmq.DEALER)
        peer.socket.linger = 0
        peer.socket.setsockopt(zmq.IMMEDIATE, 1)
        if keys is not None:
            secure_peer(peer.socket, keys)
        peer.socket.connect(self.endpoint(role))
        return peer

    def guest(self, role: str, name: str = "") -> Any:
        """A peer that has been welcomed, with key `name` (that of the role)."""
        end_s = time.monotonic() + 20  # libzmq does not try again after a refusal
        while not (peer := self.connect(role, self.keys(name or role))).socket.poll(250, zmq.POLLOUT):
            peer.close()
            assert time.monotonic() < end_s, f"{name or role} does not get in"
        if role == "worker":
            peer.join("worker")
        else:
            peer.hello(Role[role.upper()], role)
        return peer

    def comes_in(self, role: str, keys: PeerKeys | None) -> bool:
        """Whether a peer with these keys can say anything at all. Without keys nobody tells it that it cannot."""
        return handshake_fault(self.endpoint(role), keys, 20_000 if keys else 300) == ""


def until(true: Callable[[], bool], patience_s: float = 20.0) -> bool:
    """Look until it is true; False after a time that only something broken needs."""
    end_s = time.monotonic() + patience_s
    while not true():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.02)
    return True
