"""`Link`: the handle of one proxy process (tools/hosts/proxy.py), told over its stdin what to do to the traffic."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

#: the directions: "there" is towards the port that the link leads to
Way = Literal["there", "back", "both"]

_PROXY = Path(__file__).with_name("proxy.py")
_ANSWER_S = 20


class LinkError(Exception):
    """The proxy refused a command, or is gone."""


class Link:
    """A way to one tcp port. Each call returns when it holds; times of the proxy's own end are its own."""

    def __init__(self, run: Callable[..., subprocess.Popen[bytes]], address: str, to: str, seed: str) -> None:
        self.process = run([sys.executable, "-I", "-S", str(_PROXY), address, to, seed], stdin=subprocess.PIPE,
                           stdout=subprocess.PIPE, stderr=None)
        self._lock = threading.Lock()
        self.address, self.port = address, int(self._answer()["port"])

    @property
    def endpoint(self) -> str:
        """What a peer connects to."""
        return f"tcp://{self.address}:{self.port}"

    def delay(self, ms: float, jitter_ms: float = 0, way: Way = "both") -> None:
        """From now on bytes take `ms` and up to `jitter_ms` more, uniform and drawn for each piece, in their order."""
        self._call(do="delay", seconds=ms / 1e3, jitter_s=jitter_ms / 1e3, way=way)

    def stall(self, seconds: float | None = None, way: Way = "both") -> None:
        """Nothing passes for a while, or until `clear`; then all of it does."""
        self._call(do="stall", seconds=seconds, way=way)

    def cut(self, seconds: float | None = None, *, silent: bool = False, way: Way = "both") -> None:
        """Reset all connections and refuse new ones for a while, or until `clear`.

        `silent`: swallow instead whatever is sent, ends of connections too, and let new connections hang; at the end
        all connections of that time are reset. Only a silent cut may be of one way.
        """
        self._call(do="swallow" if silent else "cut", seconds=seconds, way=way)

    def clear(self) -> None:
        """No delay, no stall and no cut from now on."""
        self._call(do="clear")

    def stats(self) -> dict[str, int]:
        """Since the start: bytes that passed and bytes swallowed each way; connections taken, open now, reset by us, refused."""
        return self._call(do="stats")

    def _call(self, **command: Any) -> dict[str, Any]:
        with self._lock:
            assert self.process.stdin is not None
            try:
                self.process.stdin.write(json.dumps(command).encode() + b"\n")
                self.process.stdin.flush()
            except OSError:
                raise LinkError(f"the proxy at {self.endpoint} is gone") from None
            answer = self._answer()
        if "error" in answer:
            raise LinkError(answer["error"])
        return answer

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], _ANSWER_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            raise LinkError(f"the proxy does not answer (exit code {self.process.poll()})")
        return json.loads(line)
