"""Applications for threads: predictions and feedback over one `cwd.Client`.

Executions of a prediction are sent at once and waited for at one gate, through which also comes what other threads'
executions mean for it. `_lock` guards the desk and all runs; it is taken before the connection's own lock, never after.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from typing import Any

from cwd.client import Client, Model, Result
from cwd.client.call import Call, app_tag, slo_to_ns
from cwd.client.connection import Connection, Gate
from cwd.client.model import Inputs
from cwd.errors import BadRequest, Cancelled, Code, ControllerLost, CwdError, DeadlineMissed, UnknownModel
from cwd.selection.apps import AppStore, Member
from cwd.selection.desk import Desk, Serving, Settings, request_id_of
from cwd.selection.result import AppResult
from cwd.selection.run import Asked, Run
from cwd.selection.versions import Versions, key_of
from cwd.units import NS_PER_S

_now = time.monotonic_ns


class Apps:
    """The applications of a store, over one client; any number of threads may share it.

    `store` is the file that `cwd app` writes ($CWD_APPS where it is not given), or an open `AppStore`.
    """

    def __init__(self, client: Client, store: AppStore | str | os.PathLike[str] | None = None,
                 settings: Settings = Settings()) -> None:
        self._client = client
        self._connection: Connection = client._connection
        self._own_store = not isinstance(store, AppStore)
        self.store = store if isinstance(store, AppStore) else AppStore(store)
        self.desk = Desk(self.store, settings)
        self._versions = Versions()
        self._lock = threading.Lock()

    def predict(self, app: str, inputs: Inputs, slo: str | float | None = None, *, context: str | None = None) -> AppResult:
        """One prediction, within `slo` (the app's own where it is not given) or not at all.

        `inputs` are as for `Client.infer`, and every member gets the same. `context` names the user or session of an app
        that learns for each. Raises `UnknownModel` for an app that is not there, and what `Client.infer` raises where no
        member answers and the app has no default; a default answer says so in `result.default` and why.
        """
        if not self._client.epoch:
            self._client.connect()  # the first connection gets as long as it takes
        now = _now()
        with self._lock:
            serving = self.desk.serving(app, now)
            slo_ns = serving.app.slo_ns if slo is None else slo_to_ns(slo)
            reading = self.desk.reading(serving, slo_ns, context)
        if reading is not None:
            concurrent.futures.wait([reading.done], reading.patience_s)
        with self._lock:
            run = self.desk.begin(serving, now, slo_ns, context)
        if len(run.choice.members) == 1 and not serving.app.cache and serving.app.default is None:
            run.start(now)
            self._alone(run, run.to_call.pop(), inputs)
        else:
            _Waiting(self, run, serving, inputs).through()
        with self._lock:
            self.desk.ended(serving, run, _now())
        if run.result is None:
            assert run.error is not None
            raise run.error
        return run.result

    def feedback(self, request: int | str | None = None, label: Any = None, *, app: str = "", inputs: Any = None,
                 context: str | None = None, feedback_id: str | None = None) -> bool:
        """What the right answer was; it is on the disk when this returns. False if `feedback_id` was known: nothing changed.

        `request` is a result's `request_id`, of a prediction that this process made not too long ago. Without one, `app`
        and `inputs` say what it is about: they are predicted once more, which for a cached app costs nothing. The id is
        the request's own where none is given. Raises `BadRequest` for a request that is not remembered.
        """
        if request is None:
            if not app or inputs is None:
                raise BadRequest("feedback is for a request id, or for an app and its inputs", code=Code.BAD_ARGUMENT)
            request = self.predict(app, inputs, context=context).request_id
        with self._lock:
            observation = self.desk.observation(request_id_of(request), label, feedback_id, _now())
        return self.desk.learn(observation)

    def close(self) -> None:
        """Let go of the files; the client is its owner's to close."""
        self.desk.close()
        if self._own_store:
            self.store.close()

    def __enter__(self) -> Apps:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _alone(self, run: Run, member: int, inputs: Inputs) -> None:
        """One member that nobody else asks: the client's own call."""
        name, version = run.app.members[member]
        try:
            result = self._client.infer(name, inputs, (run.deadline_ns - _now()) / NS_PER_S, app=run.app.name,
                                        version=version)
            run.answered(member, result.outputs, _now())
        except CwdError as error:
            run.failed(member, error, _now())

    def _model(self, member: Member, until_ns: int) -> Model:
        """The model of an exact version that a member is just now."""
        now, client = _now(), self._client
        with self._lock:
            found = self._versions.get(member, client.epoch, now)
            if found is not None and (member.version or not self._versions.due(member, now)):
                return found
        try:
            self._connection.ready(until_ns)
            model = client.lookup(*member)
            if not member.version:
                model = client.lookup(model.name, model.version)
        except BaseException:
            with self._lock:
                self._versions.missed(member)
            raise
        with self._lock:
            self._versions.put(member, model, client.epoch, _now())
        return model


class _Waiting:
    """One thread's way through one run."""

    def __init__(self, apps: Apps, run: Run, serving: Serving, inputs: Inputs) -> None:
        self._apps, self._run, self._serving, self._inputs = apps, run, serving, inputs
        self._gate = Gate()
        self._calls: dict[Call, int] = {}
        self._models: dict[int, Model] = {}
        self._tag = app_tag(run.app.name)

    def through(self) -> None:
        """Until the run is done."""
        run, apps = self._run, self._apps
        run.wake = self._woken
        try:
            asked, failed = self._asked()
            with apps._lock:
                run.start(_now(), apps.desk.cache if self._serving.app.cache else None, asked, failed)
            while True:
                for member in self._to_call():
                    self._send(member)
                if run.done:
                    break
                apps._connection.wait(self._gate, run.deadline_ns)
                self._take()
        finally:
            self._leave()

    def _woken(self) -> None:
        self._apps._connection.pass_through(self._gate, None)

    def _asked(self) -> tuple[dict[int, Asked], dict[int, CwdError]]:
        """Models, payloads and keys of the members that were chosen, and why some cannot be asked."""
        asked: dict[int, Asked] = {}
        failed: dict[int, CwdError] = {}
        apps, run, began_ns = self._apps, self._run, _now()
        session = apps._client._session
        visit = session.visit
        for member in run.choice.members:
            try:
                model = self._models[member] = self._model(run.app.members[member])
                payload, dims = model.prepare(self._inputs)
                if run.app.cache:
                    key = apps.desk.cache.key(key_of(model, apps._client.epoch), dims, payload)
                    asked[member] = Asked(key, dims, payload)
            except CwdError as error:
                failed[member] = error
        if not session.interrupted(visit):
            run.deadline_ns += _now() - began_ns  # as in `Client.infer`, looking models up takes nothing off an SLO
        return asked, failed

    def _model(self, member: Member) -> Model:
        """What is executed: for the cache an exact version, else whatever the name stands for when it is."""
        apps, client = self._apps, self._apps._client
        if self._run.app.cache:
            return apps._model(member, self._run.deadline_ns)
        return client._session.models.get(member) or client._first_lookup(member, self._run.deadline_ns - _now())[0]

    def _to_call(self) -> list[int]:
        with self._apps._lock:
            found, self._run.to_call[:] = list(self._run.to_call), []
        return found

    def _send(self, member: int) -> None:
        connection, model = self._apps._connection, self._models[member]
        left_ns = self._run.deadline_ns - _now()
        try:
            if left_ns <= 0:
                raise DeadlineMissed(f"{model.name}: no time was left to ask")
            payload, dims = model.prepare(self._inputs)
            call = connection.start(connection.session.infer, model, payload, dims, left_ns, self._tag)
        except (ControllerLost, UnknownModel):
            self._once_more(member)
        except CwdError as error:
            self._failed(member, error)
        else:
            self._calls[call] = member
            connection.watch(call, self._gate)

    def _take(self) -> None:
        """What has come through the gate; and what time alone has done."""
        while self._gate.ready:
            call = self._gate.ready.popleft()
            if call is None:
                continue
            member = self._calls.pop(call)
            if isinstance(call.error, (ControllerLost, UnknownModel)):
                self._once_more(member)
            elif call.error is not None:
                self._failed(member, call.error)
            else:
                self._answered(member, call)
        with self._apps._lock:
            self._run.tick(_now())

    def _answered(self, member: int, call: Call) -> None:
        try:
            outputs = Result(call).outputs
        except CwdError as error:
            self._failed(member, error)
            return
        with self._apps._lock:
            self._run.answered(member, outputs, _now())

    def _failed(self, member: int, error: CwdError) -> None:
        with self._apps._lock:
            self._run.failed(member, error, _now())

    def _once_more(self, member: int) -> None:
        """The connection broke, or the model is another by now: as `Client.infer` does it, within what time is left."""
        name, version = self._run.app.members[member]
        left_ns = self._run.deadline_ns - _now()
        with self._apps._lock:
            self._apps._versions.forget(self._run.app.members[member])
            if not version:
                self._run.unsure(member)
        try:
            if left_ns <= 0:
                raise DeadlineMissed(f"{name}: no time was left to ask again")
            result = self._apps._client.infer(name, self._inputs, left_ns / NS_PER_S, app=self._run.app.name,
                                              version=version)
        except CwdError as error:
            self._failed(member, error)
            return
        with self._apps._lock:
            self._run.answered(member, result.outputs, _now())

    def _leave(self) -> None:
        """What is still under way is overdue, or nobody waits for it any more: others may execute it."""
        with self._apps._lock:
            given_up = self._run.done
            self._run.cancel(_now())
            for member in self._calls.values():
                self._run.failed(member, DeadlineMissed() if given_up else Cancelled(), _now())
        for call in self._calls:
            self._apps._connection.do(self._apps._connection.session.cancel, call)
