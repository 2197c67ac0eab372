"""Admin commands over the admin socket: a verb and its arguments out, a map of facts back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from cwd.client.connection import Connection
from cwd.config import endpoint as endpoint_of
from cwd.net.keys import peer_keys
from cwd.units import NS_PER_MS, NS_PER_S
from cwd.wire.messages import Role

_now = time.monotonic_ns
#: how often progress is looked for while a command runs
_PROGRESS_NS = 100 * NS_PER_MS


class Admin:
    """A connection to a controller's admin socket. `endpoint` may be a list: the controller that serves is found."""

    def __init__(self, endpoint: str | None = None, *, name: str = "admin", timeout: float = 10.0,
                 key: str | os.PathLike[str] | None = None, server_key: str | os.PathLike[str] | None = None) -> None:
        self._connection = Connection(endpoint or endpoint_of("admin"), name, Role.ADMIN,
                                      keys=peer_keys(key, server_key))
        self._timeout_ns = round(timeout * NS_PER_S)

    def call(self, verb: str, *, timeout: float | None = None, progress: Callable[[dict[str, Any]], None] | None = None,
             **args: Any) -> dict[str, Any]:
        """The result of one command; `progress` is called with each map sent on the way.

        Raises `CwdError` with the controller's reason, `ControllerLost` if no answer comes within `timeout` seconds.
        """
        patience_ns = self._timeout_ns if timeout is None else round(timeout * NS_PER_S)
        connection = self._connection
        connection.ready(_now() + self._timeout_ns)
        call = connection.start(connection.session.admin, verb, args, patience_ns)
        while not call.done:
            connection.wait(call, _now() + _PROGRESS_NS)
            while call.payload and progress is not None:
                progress(call.payload.popleft())
        if call.error is not None:
            raise call.error
        return dict(call.answer)

    @property
    def epoch(self) -> int:
        """Of the controller that welcomed us last; 0 before."""
        return self._connection.session.epoch

    def status(self) -> dict[str, Any]:
        """What the controller is doing, with all of its workers (they come in pages)."""
        facts = self.call("status")
        while facts.get("next"):
            page = self.call("status", after=facts["next"])
            facts["workers"].update(page["workers"])
            facts["next"] = page["next"]
        facts.pop("next", None)
        return facts

    def models(self) -> dict[str, dict[str, Any]]:
        """Every registered model: "name/version" -> handle, ready and more."""
        found: dict[str, dict[str, Any]] = {}
        after = 0
        while True:
            page = self.call("model.ls", after=after)
            found.update(page["models"])
            after = page["next"]
            if not after:
                return found

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
