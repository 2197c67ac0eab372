"""Several controllers behind one gateway: which of them a model's requests go to, by the model's name.

It stands where a single client stands. Controllers know nothing of each other: each has its own models, workers and
clock. One that is away costs its own models alone, which stay in listings as what cannot be asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cwd.client import AsyncClient, Model, Result
from cwd.errors import Code, ControllerLost, CwdError, UnknownModel

#: names whose shard is remembered; any number of names that nobody serves may be asked for
_REMEMBERED_MAX = 8192


@dataclass(frozen=True)
class Shard:
    """One controller. `pattern` is of names, as in a shell; `admin_endpoint` may be ""."""

    pattern: str
    endpoint: str
    admin_endpoint: str = ""


def parse_shards(text: str) -> tuple[Shard, ...]:
    """Of "PATTERN=ENDPOINT" and "PATTERN=ENDPOINT=ADMIN_ENDPOINT", separated by spaces; raises `CwdError`."""
    found = []
    for word in text.split():
        parts = word.split("=")
        if len(parts) not in (2, 3) or not all(parts) or not all("://" in part for part in parts[1:]):
            raise CwdError(f"shard {word!r}: wanted is PATTERN=ENDPOINT or PATTERN=ENDPOINT=ADMIN_ENDPOINT",
                           code=Code.BAD_ARGUMENT)
        found.append(Shard(*parts))
    return tuple(found)


class Shards:
    """A client of several controllers, with what the gateway asks of one; a name goes to the first pattern that fits it."""

    def __init__(self, shards: Sequence[Shard], make: Callable[[str], Any]) -> None:
        """`make(endpoint)` is an `AsyncClient`. Two patterns may name one controller, which then is one client."""
        self._shards = tuple(shards)
        self._clients: dict[str, AsyncClient] = {shard.endpoint: make(shard.endpoint) for shard in shards}
        self._chosen: dict[str, Shard] = {}
        self._listed: dict[str, dict[str, int]] = {}

    @property
    def endpoint(self) -> str:
        """All of them, for people."""
        return ", ".join(self._clients)

    @property
    def connected(self) -> bool:
        """Whether at least one can be asked: what it serves must not end because another is away."""
        return any(client.connected for client in self._clients.values())

    def away(self) -> list[str]:
        """The endpoints where no controller answers."""
        return [endpoint for endpoint, client in self._clients.items() if not client.connected]

    def admin_endpoints(self) -> dict[int, str]:
        """Those of the controllers that answer, by a controller's number."""
        admins = {shard.endpoint: shard.admin_endpoint for shard in self._shards if shard.admin_endpoint}
        return {number: admins[endpoint] for number, (endpoint, client) in enumerate(self._clients.items())
                if endpoint in admins and client.connected}

    def of(self, name: str) -> Shard:
        """The shard of a model's name; raises `UnknownModel` if no pattern fits it."""
        found = self._chosen.get(name)
        if found is None:
            bare = name.partition("/")[0]
            found = next((shard for shard in self._shards if fnmatch.fnmatchcase(bare, shard.pattern)), None)
            if found is None:
                raise UnknownModel(f"{name:.100}: no controller of this gateway is for such a name")
            if len(self._chosen) >= _REMEMBERED_MAX:
                self._chosen.clear()
            self._chosen[name] = found
        return found

    async def connect(self, timeout: float | None = None) -> None:
        """Return when all have welcomed us, or after `timeout` seconds if one has; raises `ControllerLost` if none has."""
        outcomes = await asyncio.gather(*(client.connect(timeout) for client in self._clients.values()),
                                        return_exceptions=True)
        faults = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if len(faults) == len(outcomes):
            raise faults[0]

    async def infer(self, model: str, *args: Any, **options: Any) -> Result:
        return await self._client(model).infer(model, *args, **options)

    async def known(self, model: str, version: int = 0, timeout: float | None = None) -> Model:
        return await self._client(model).known(model, version, timeout)

    async def lookup(self, model: str, version: int = 0) -> Model:
        client = self._client(model)
        if not client.connected:  # listings ask for thousands
            raise ControllerLost(f"the controller at {client.endpoint} does not answer")
        return await client.lookup(model, version)

    async def models(self) -> dict[str, int]:
        """All controllers' models, each only where its requests go; of one that is away, what it had last."""
        async def listed(endpoint: str, client: AsyncClient) -> dict[str, int]:
            if client.connected:
                with contextlib.suppress(ControllerLost):
                    self._listed[endpoint] = await client.models()
            return {key: handle for key, handle in self._listed.get(endpoint, {}).items() if self._is_at(key, endpoint)}

        if not self.connected:
            raise ControllerLost(f"no controller answers at {self.endpoint}")
        parts = await asyncio.gather(*(listed(*each) for each in self._clients.items()))
        return {key: handle for part in parts for key, handle in part.items()}

    def _is_at(self, key: str, endpoint: str) -> bool:
        try:
            return self.of(key.rpartition("/")[0]).endpoint == endpoint
        except UnknownModel:
            return False

    def _client(self, name: str) -> AsyncClient:
        return self._clients[self.of(name).endpoint]

    async def close(self) -> None:
        await asyncio.gather(*(client.close() for client in self._clients.values()))

    async def __aenter__(self) -> Shards:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
