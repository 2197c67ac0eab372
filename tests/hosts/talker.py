"""An echo on a port (`talker.py serve PORT`), and whoever talks to it by lines on stdin (`talker.py talk ADDRESS PORT`)."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading


def serve(port: str) -> None:
    listener = socket.create_server(("", int(port)))
    print("up", flush=True)
    while True:
        threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            pass


def talk(address: str, port: str) -> None:
    talker = Talker(address, int(port))
    for line in sys.stdin:
        do, _, number = line.strip().partition(" ")
        try:
            answer = getattr(talker, do)(*([int(number)] if number else []))
        except OSError as error:
            answer = type(error).__name__
        print(json.dumps(answer), flush=True)


class Talker:
    """One connection at a time, and what became of what was said."""

    def __init__(self, address: str, port: int) -> None:
        self.to, self.random = (address, port), random.Random(1)
        self.said = b""

    def dial(self) -> str:
        self.connection = socket.create_connection(self.to, 2)
        return "dialled"

    def say(self, count: int) -> str:
        """Send so many bytes; they come back when `hear` waits for them."""
        self.said = self.random.randbytes(count)
        self.sender = threading.Thread(target=self._send, daemon=True)
        self.sender.start()
        return "said"

    def _send(self) -> None:
        try:
            self.connection.sendall(self.said)
        except OSError:
            pass

    def silence(self) -> str:
        """Nothing comes for a while."""
        self.connection.settimeout(.3)
        return "heard" if self.connection.recv(1, socket.MSG_PEEK) else "end"

    def hear(self) -> str:
        self.connection.settimeout(10)
        found = bytearray()
        while len(found) < len(self.said):
            data = self.connection.recv(1 << 20)
            if not data:
                return "end"
            found += data
        return "same" if bytes(found) == self.said else "different"


if __name__ == "__main__":
    {"serve": serve, "talk": talk}[sys.argv[1]](*sys.argv[2:])
