"""Applications for asyncio: predictions and feedback over one `cwd.AsyncClient`."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable
from typing import Any, Protocol

import numpy as np

from cwd.client import Model, Result
from cwd.client.call import slo_to_ns
from cwd.client.model import Inputs
from cwd.errors import BadRequest, Cancelled, Code, ControllerLost, CwdError, DeadlineMissed, UnknownModel
from cwd.selection.apps import AppStore, Member
from cwd.selection.desk import Desk, Serving, Settings, request_id_of
from cwd.selection.result import AppResult
from cwd.selection.run import Asked, Run
from cwd.selection.versions import Versions, key_of
from cwd.units import NS_PER_S

_now = time.monotonic_ns


class Connected(Protocol):
    """What is asked of a `cwd.AsyncClient`, or of what stands for several."""

    @property
    def epoch(self) -> int: ...

    @property
    def mark(self) -> Any: ...

    def lost_since(self, mark: Any) -> bool: ...

    async def connect(self, timeout: float | None = None) -> object: ...

    async def known(self, model: str, version: int = 0, timeout: float | None = None) -> Model: ...

    async def lookup(self, model: str, version: int = 0) -> Model: ...

    async def models(self) -> dict[str, int]: ...

    async def infer(self, model: str, inputs: Inputs, slo: str | float | None = None, *, app: str | None = None,
                    version: int = 0) -> Result: ...


class AsyncApps:
    """The applications of a store, over one client, for the coroutines of its event loop.

    Arguments and exceptions are those of `cwd.Apps`. A cancelled `predict` ends executions that nobody else waits for.
    """

    def __init__(self, client: Connected, store: AppStore | str | os.PathLike[str] | None = None,
                 settings: Settings = Settings(), *, patient: bool = True) -> None:
        """With `patient` the first connection gets as long as it takes; else it is part of the first request's SLO, as for a
        front door, whose callers are other processes."""
        self.client = client
        self._patient = patient
        self._own_store = not isinstance(store, AppStore)
        self.store = store if isinstance(store, AppStore) else AppStore(store)
        self.desk = Desk(self.store, settings, processes=1 if patient else 2)
        self._versions = Versions()
        #: executions and lookups under way: the loop itself keeps only weak references
        self._tasks: set[asyncio.Task[Any]] = set()
        #: members that were looked up since `_mark`, for apps without a cache
        self._met: set[Member] = set()
        self._mark: Any = None
        #: of members that nothing is known of yet: many may ask at once
        self._lookups: dict[Member, asyncio.Task[Any]] = {}
        self._closed = False

    async def predict(self, app: str, inputs: Inputs, slo: str | float | None = None, *,
                      context: str | None = None) -> AppResult:
        """One prediction; see `cwd.Apps.predict`."""
        self._check_open()
        if self._patient and not self.client.epoch:
            await self.client.connect()
        return await self.serve(self.desk.serving(app, _now()), inputs, slo, context=context)

    async def serve(self, serving: Serving, inputs: Inputs, slo: str | float | None = None, *,
                    context: str | None = None) -> AppResult:
        """`predict`, for an app that the desk found, or for what was made of one."""
        now = _now()
        slo_ns = serving.app.slo_ns if slo is None else slo_to_ns(slo)
        if (reading := self.desk.reading(serving, slo_ns, context)) is not None:
            await asyncio.wait([asyncio.wrap_future(reading.done)], timeout=reading.patience_s)
        run = self.desk.begin(serving, now, slo_ns, context)
        if len(run.choice.members) == 1 and not serving.app.cache and serving.app.default is None:
            run.start(now)
            await self._execute(run, run.to_call.pop(), inputs)
        else:
            await self._run(run, serving, inputs)
        self.desk.ended(serving, run, _now())
        if run.result is None:
            assert run.error is not None
            raise run.error
        return run.result

    async def feedback(self, request: AppResult | int | str | None = None, label: Any = None, *, app: str = "",
                       inputs: Any = None, context: str | None = None, feedback_id: str | None = None) -> bool:
        """What the right answer was; see `cwd.Apps.feedback`."""
        self._check_open()
        if request is None:
            if not app or inputs is None:
                raise BadRequest("feedback is for a request, or for an app and its inputs", code=Code.BAD_ARGUMENT)
            request = await self.predict(app, inputs, context=context)
        observation = self.desk.observation(request_id_of(request), label, feedback_id, _now(), app)
        return await asyncio.to_thread(self.desk.learn, observation)

    def invalidate(self, model: str, version: int = 0) -> int:
        """Drop the answers that are kept of a model's version, or of all versions (0); how many there were."""
        return self.desk.cache.invalidate(model, version)

    async def close(self) -> None:
        """Let go of the files; the client is its owner's to close."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.desk.close()
        if self._own_store:
            self.store.close()

    async def __aenter__(self) -> AsyncApps:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise CwdError("these applications are closed")

    # one run

    async def _run(self, run: Run, serving: Serving, inputs: Inputs) -> None:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()
        calls: dict[int, asyncio.Task[Any]] = {}
        run.wake = changed.set
        timer: asyncio.TimerHandle | None = None
        try:
            began_ns, mark = _now(), self.client.mark
            known = self._knows(run, mark, began_ns)
            asked, models, failed = await self._asked(run, inputs, known)
            if not known and self._patient and not self.client.lost_since(mark):
                run.deadline_ns += _now() - began_ns  # as in `AsyncClient.infer`, looking models up takes nothing off an SLO
            timer = loop.call_later(max(run.deadline_ns - _now(), 0) / NS_PER_S, self._overdue, run)
            run.start(_now(), self.desk.cache if serving.app.cache else None, asked, failed)
            while True:
                changed.clear()
                for member in run.to_call:
                    calls[member] = self._task(self._execute(run, member, inputs, models.get(member)))
                run.to_call.clear()
                if run.done:
                    for task in calls.values():
                        if task.done() and not task.cancelled():
                            task.result()  # what is no `CwdError` is raised here
                    return
                await changed.wait()
        except asyncio.CancelledError:
            for member in run.cancel(_now()):
                if member in calls:
                    calls[member].cancel()
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def _overdue(self, run: Run) -> None:
        # the loop's clock and ours may differ by a little
        run.tick(max(_now(), run.deadline_ns))
        run.wake()

    async def _execute(self, run: Run, member: int, inputs: Inputs, model: Model | None = None) -> None:
        """One member's execution, told to the run however it ends."""
        name, version = run.app.members[member]
        try:
            try:
                outputs = await self._infer(run, name, model.version if model is not None else version, inputs)
            except UnknownModel:
                if model is None or version:
                    raise
                # the version that the name stood for is gone, and another one has its place
                self._versions.forget(run.app.members[member])
                run.unsure(member)
                outputs = await self._infer(run, name, 0, inputs)
            run.answered(member, outputs, _now())
        except CwdError as error:
            run.failed(member, error, _now())
        except BaseException:
            # a cancel, or a fault of ours: who waits for it executes it
            run.failed(member, Cancelled(), _now())
            raise
        finally:
            run.wake()

    async def _infer(self, run: Run, name: str, version: int, inputs: Inputs) -> dict[str, np.ndarray]:
        left_ns = run.deadline_ns - _now()
        if left_ns <= 0:
            raise DeadlineMissed(f"{name}: no time was left to ask")
        return (await self.client.infer(name, inputs, left_ns / NS_PER_S, app=run.app.name, version=version)).outputs

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # for the cache

    def _knows(self, run: Run, mark: Any, now_ns: int) -> bool:
        """Whether what the chosen members are is known by now, so that nothing is to be waited for."""
        members = [run.app.members[member] for member in run.choice.members]
        if run.app.cache:
            return all(self._versions.get(member, self.client.epoch, now_ns) for member in members)
        if mark != self._mark:
            self._mark = mark
            self._met.clear()
        return self._met.issuperset(members)

    async def _asked(self, run: Run, inputs: Inputs, known: bool
                     ) -> tuple[dict[int, Asked], dict[int, Model], dict[int, CwdError]]:
        """(keys and payloads, models, errors) of the members that were chosen."""
        asked: dict[int, Asked] = {}
        models: dict[int, Model] = {}
        failed: dict[int, CwdError] = {}
        cache, chosen = run.app.cache, run.choice.members
        for member, model in zip(chosen, await self._found(run, known), strict=True):
            try:
                if isinstance(model, BaseException):
                    raise model
                if not cache:
                    self._met.add(run.app.members[member])
                payload, dims = model.prepare(inputs)
                if cache:
                    models[member] = model
                    key = self.desk.cache.key(key_of(model), dims, payload)
                    asked[member] = Asked(key, dims, payload)
            except CwdError as error:
                failed[member] = error
        return asked, models, failed

    async def _found(self, run: Run, known: bool) -> list[Model | BaseException]:
        """The chosen members' models, or why there is none."""
        asking = (self._model(run.app.members[member], run.deadline_ns, run.app.cache) for member in run.choice.members)
        if known:  # tasks would cost a turn of the loop, and with it whatever others do there
            return [await _outcome(each) for each in asking]
        return await asyncio.gather(*asking, return_exceptions=True)

    async def _model(self, member: Member, until_ns: int, exact: bool) -> Model:
        """What is executed: for the cache an exact version, else whatever the name stands for when it is."""
        now = _now()
        if not exact:
            return await self.client.known(*member, timeout=max(until_ns - now, 1) / NS_PER_S)
        found = self._versions.get(member, self.client.epoch, now)
        if found is None:
            try:
                task = self._lookups.get(member)
                if task is None:
                    task = self._lookups[member] = self._task(self._look_up(member))
                    task.add_done_callback(lambda done: self._looked_up(member, done))
                async with asyncio.timeout(max(until_ns - now, 0) / NS_PER_S):
                    return await asyncio.shield(task)
            except asyncio.CancelledError:
                waiting = asyncio.current_task()
                if waiting is None or not waiting.cancelling():
                    self._check_open()  # nobody cancelled us: it was `close` that ended the lookup
                raise
            except TimeoutError:
                raise ControllerLost(f"{member}: the controller did not say in time what it is") from None
        if not member.version and self._versions.due(member, now):
            self._task(self._again(member))
        return found

    def _looked_up(self, member: Member, task: asyncio.Task[Any]) -> None:
        del self._lookups[member]
        if not task.cancelled():
            task.exception()  # nobody may be left to hear of it

    async def _look_up(self, member: Member) -> Model:
        epoch = self.client.epoch  # what was said by one that was lost meanwhile is asked again
        try:
            model = await self.client.lookup(*member)
            if not member.version:
                model = await self.client.lookup(model.name, model.version)
        except BaseException:
            self._versions.missed(member)
            raise
        self._versions.put(member, model, epoch, _now())
        return model

    async def _again(self, member: Member) -> None:
        try:
            await self._look_up(member)
        except CwdError:
            pass  # what was known becomes stale, and the next request hears why


async def _outcome(work: Awaitable[Model]) -> Model | BaseException:
    try:
        return await work
    except CwdError as error:
        return error
