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
from cwd.client.model import Inputs
from cwd.config import endpoints
from cwd.errors import Code, ControllerLost, CwdError, UnknownModel

#: names whose shard is remembered; any number of names that nobody serves may be asked for
_REMEMBERED_MAX = 8192


@dataclass(frozen=True)
class Shard:
    """One controller, its standbys' endpoints after its own. `pattern` is of names, as in a shell; `admin_endpoint` may be ""."""

    pattern: str
    endpoint: str
    admin_endpoint: str = ""


def parse_shards(text: str) -> tuple[Shard, ...]:
    """Of "PATTERN=ENDPOINT" and "PATTERN=ENDPOINT=ADMIN_ENDPOINT", separated by spaces; raises `CwdError`."""
    found = []
    for word in text.split():
        parts = word.split("=")
        try:
            if len(parts) not in (2, 3) or not parts[0]:
                raise CwdError("neither two nor three parts")
            for part in parts[1:]:
                endpoints(part)
        except CwdError as error:
            raise CwdError(f"shard {word!r}: {error.text}; wanted is PATTERN=ENDPOINT or PATTERN=ENDPOINT=ADMIN_ENDPOINT",
                           code=Code.BAD_ARGUMENT) from None
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

    @property
    def epoch(self) -> int:
        """A number that changes whenever any of the controllers becomes another; 0 before the first."""
        return sum(client.epoch for client in self._clients.values())

    @property
    def mark(self) -> dict[str, tuple[int, int, bool]]:
        """What to ask `lost_since` with later."""
        return {endpoint: client.mark for endpoint, client in self._clients.items()}

    def lost_since(self, mark: dict[str, tuple[int, int, bool]]) -> bool:
        """Whether any controller that we had before was away at that `mark` or has been since."""
        return any(client.lost_since(mark[endpoint]) for endpoint, client in self._clients.items())

    @property
    def retry_ns(self) -> int:
        """After how long without any controller it helps to ask again."""
        return min(client.retry_ns for client in self._clients.values())

    def controllers(self) -> dict[str, bool]:
        """Their endpoints, and whether each answers."""
        return {endpoint: client.connected for endpoint, client in self._clients.items()}

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

    async def infer(self, model: str, inputs: Inputs, slo: str | float | None = None, *, app: str | None = None,
                    version: int = 0) -> Result:
        return await self._client(model).infer(model, inputs, slo, app=app, version=version)

    async def known(self, model: str, version: int = 0, timeout: float | None = None) -> Model:
        return await self._client(model).known(model, version, timeout)

    async def lookup(self, model: str, version: int = 0) -> Model:
        client = self._client(model)
        if not client.connected:  # listings ask for thousands
            raise ControllerLost(f"the controller at {client.endpoint} does not answer", earliest_ns=client.retry_ns)
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
