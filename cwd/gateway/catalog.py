"""Which models there are, what they take and whether they can be asked: the controller's answers, kept for a second.

Probes and status pages ask often; so each question goes to the controller once a second at most, however many ask.
Loading and unloading are admin commands: they register a model of the repository, or take it out. Weights are the
scheduler's business, so a model that is registered counts as loaded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from cwd.client import AsyncClient, Model
from cwd.client.admin import Admin
from cwd.errors import BadRequest, Code, CwdError, UnknownModel
from cwd.gateway.shards import Shards
from cwd.units import NS_PER_S

T = TypeVar("T")

_KEEP_NS = NS_PER_S
#: how old what an answer says of its version may be, where the request named none
_NAMED_NS = 5 * NS_PER_S
#: models of a listing that are worked on at once, between two looks at what else there is to do
STEP = 16
#: answers kept at most, and lookups under way at once
_KEPT_MAX, _LOOKUPS_MAX = 8192, 32
#: how long `load` waits for a new model to become servable
_LOAD_S, _LOOK_AGAIN_S = 60, 0.05
_ADMIN_S = 10.0


class Catalog:
    """The models behind one client, or several as one, and the admin commands that change them."""

    def __init__(self, client: AsyncClient | Shards, admin_endpoint: str = "") -> None:
        self._client = client
        self._admin_endpoint = admin_endpoint
        self._admins: dict[str, Admin] = {}
        self._turn = asyncio.Lock()
        self._lookups = asyncio.Semaphore(_LOOKUPS_MAX)
        self._kept: dict[Any, tuple[int, asyncio.Task[Any]]] = {}

    async def known(self, name: str, version: int, patience_ns: int) -> Model:
        """For a request: the model as the client has it, asked for if it has not.

        A name may stand for another version by now, which changes nothing but the version that is told: so it is asked
        again from time to time, and nobody waits for the answer.
        """
        found = await self._client.known(name, version, patience_ns / NS_PER_S)
        if not version:
            self._asked((name, 0), lambda: self._lookup(name, 0), _NAMED_NS)
        return found

    async def model(self, name: str, version: int = 0) -> Model:
        """The model as the controller describes it; raises `UnknownModel`, and MODEL_NOT_READY with the reason."""
        return await self._fresh((name, version), lambda: self._lookup(name, version))

    async def versions(self) -> dict[str, list[int]]:
        """Every registered model, with its versions from the oldest."""
        return await self._fresh("versions", self._versions)

    async def reasons(self, keys: list[tuple[str, int]]) -> list[str]:
        """Why each model cannot be asked; "" where it can. A few at a time: requests are served in between."""
        found: list[str] = []
        for at in range(0, len(keys), STEP):
            found += await asyncio.gather(*(self._reason(*key) for key in keys[at:at + STEP]))
        return found

    async def load(self, name: str) -> None:
        """Have a model registered, from the controller's repository, and wait until it is servable.

        Nothing happens if it is registered already. Raises `CwdError` with the reason.
        """
        if name not in await self._versions():
            try:
                await self.admin("model.add", name)
            except CwdError as error:
                if error.code != Code.MODEL_EXISTS:
                    raise
        self._kept.clear()
        until_s = time.monotonic() + _LOAD_S
        while True:
            try:
                await self._lookup(name, 0)
                return
            except CwdError as error:
                if error.code != Code.MODEL_NOT_READY or time.monotonic() > until_s:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def unload(self, name: str) -> None:
        """Take all versions of a model out; raises `UnknownModel` if there are none."""
        try:
            await self.admin("model.rm", name)
        except CwdError as error:
            raise UnknownModel(error.text) if error.code == Code.UNKNOWN_MODEL else error from None
        finally:
            self._kept.clear()

    async def admin(self, verb: str, name: str, **more: Any) -> dict[str, Any]:
        """The result of an admin command about a model; raises `CwdError`, BAD_ARGUMENT where there is no admin endpoint."""
        endpoint = self._client.of(name).admin_endpoint if isinstance(self._client, Shards) else self._admin_endpoint
        if not endpoint:
            raise BadRequest("this gateway was not given the controller's admin socket (--admin-endpoint), so models "
                             "are not loaded or unloaded through it", code=Code.UNKNOWN_VERB)
        # one command after the other: the admin connection is a blocking one, in a thread
        async with self._turn:
            try:
                return await asyncio.to_thread(lambda: self._connection(endpoint).call(verb, name=name, **more))
            finally:
                self._kept.clear()  # whoever changed something wants to see that

    async def workers(self) -> dict[str, Any] | None:
        """What the controller says of itself and its workers, for the status page; None without an admin endpoint.

        Of several controllers, their sums; workers are then numbered "CONTROLLER/WORKER".
        """
        if not isinstance(self._client, Shards):
            return await self._fresh("status", partial(self._status, self._admin_endpoint)) if self._admin_endpoint else None
        parts = {at: await self._fresh(("status", endpoint), partial(self._status, endpoint))
                 for at, endpoint in self._client.admin_endpoints().items()}
        if not parts:
            return None
        return {"workers": {f"{at}/{number}": worker for at, part in parts.items()
                            for number, worker in part["workers"].items()},
                "in_flight": sum(part["in_flight"] for part in parts.values())}

    def close(self) -> None:
        for admin in self._admins.values():
            admin.close()

    async def _status(self, endpoint: str) -> dict[str, Any]:
        async with self._turn:
            return await asyncio.to_thread(lambda: self._connection(endpoint).status())

    def _connection(self, endpoint: str) -> Admin:
        found = self._admins.get(endpoint)
        return found or self._admins.setdefault(endpoint, Admin(endpoint, name="cwd-gateway", timeout=_ADMIN_S))

    async def _lookup(self, name: str, version: int) -> Model:
        async with self._lookups:
            return await self._client.lookup(name, version)

    async def _reason(self, name: str, version: int) -> str:
        try:
            await self.model(name, version)
        except CwdError as error:
            return error.text
        return ""

    async def _versions(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for key in await self._client.models():
            name, _, version = key.rpartition("/")
            found.setdefault(name, []).append(int(version))
        return {name: sorted(found[name]) for name in sorted(found)}

    async def _fresh(self, key: Any, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a question, an error included, at most a second old; many who ask at once share it."""
        return await asyncio.shield(self._asked(key, ask, _KEEP_NS))

    def _asked(self, key: Any, ask: Callable[[], Awaitable[T]], keep_ns: int) -> asyncio.Task[T]:
        """The question under way, or its answer if that is no older than `keep_ns`."""
        now = time.monotonic_ns()
        at_ns, task = self._kept.get(key, (0, None))
        if task is None or now - at_ns > keep_ns and task.done():
            if len(self._kept) >= _KEPT_MAX:
                self._kept = {each: entry for each, entry in self._kept.items()
                              if now - entry[0] <= _KEEP_NS or not entry[1].done()}
            task = asyncio.ensure_future(ask())
            # nobody may be left to hear of an error
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._kept[key] = now, task
        return task
