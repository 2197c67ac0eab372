"""Applications for threads: predictions and feedback over one `cwd.Client`.

Executions of a prediction are sent at once and waited for at one gate, through which also comes what other threads'
executions mean for it. `_lock` guards the desk and all runs; it is taken before the connection's own lock, never after.
"""

from __future__ import annotations

import concurrent.futures
import os
import threading
import time
from collections import deque
from typing import Any

from cwd.client import Client, Model, Result
from cwd.client.call import Call, app_tag, slo_to_ns
from cwd.client.connection import Connection, Gate
from cwd.client.model import Inputs
from cwd.errors import BadRequest, Cancelled, Code, ControllerLost, CwdError, DeadlineMissed, UnknownModel
from cwd.selection.apps import AppStore, Member
from cwd.selection.cache import Outputs
from cwd.selection.desk import Desk, Serving, Settings, request_id_of
from cwd.selection.result import AppResult
from cwd.selection.run import Asked, Run
from cwd.selection.versions import Versions, key_of
from cwd.units import NS_PER_S

_now = time.monotonic_ns


class Apps:
    """The applications of a store, over one client; any number of threads may share it.

    `store` is the file that `cwd app` writes ($CWD_APPS where it is not given), or an open `AppStore`; policies' states and
    the log of feedback lie beside it. Apps may also be made here:

        with cwd.Client() as client, cwd.Apps(client, "apps.db") as apps:
            apps.store.create(cwd.App("reader", ("bert-a", "bert-b"), policy="exp3"), replace=True)
            result = apps.predict("reader", tokens)
            apps.feedback(result, label)
    """

    def __init__(self, client: Client, store: AppStore | str | os.PathLike[str] | None = None,
                 settings: Settings = Settings()) -> None:
        self._client = client
        self._connection: Connection = client._connection
        self._own_store = not isinstance(store, AppStore)
        self.store = store if isinstance(store, AppStore) else AppStore(store)
        self.desk = Desk(self.store, settings)
        self._versions = Versions()
        #: lookups of members that are known already, under way or not looked at yet; nobody waits for them
        self._again: dict[Member, Call] = {}
        self._lock = threading.Lock()
        self._closed = False

    def predict(self, app: str, inputs: Inputs, slo: str | float | None = None, *, context: str | None = None) -> AppResult:
        """One prediction, within `slo` (the app's own where it is not given) or not at all.

        `inputs` are as for `Client.infer`, and every member gets the same. `context` names the user or session of an app
        that learns for each. Raises `UnknownModel` for an app that is not there, and what `Client.infer` raises where no
        member answers and the app has no default; a default answer says so in `result.default` and why.
        """
        self._check_open()
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

    def feedback(self, request: AppResult | int | str | None = None, label: Any = None, *, app: str = "", inputs: Any = None,
                 context: str | None = None, feedback_id: str | None = None) -> bool:
        """What the right answer was; it is on the disk when this returns. False if `feedback_id` was known: nothing changed.

        `request` is a result or its `request_id`, of a prediction that this object made not too long ago. Without one,
        `app` and `inputs` say what it is about: they are predicted once more, which for a cached app costs nothing. The id
        is the request's own where none is given. Raises `BadRequest` for a request that is not remembered, or that another
        than `app` answered where that is given, too.
        """
        self._check_open()
        if request is None:
            if not app or inputs is None:
                raise BadRequest("feedback is for a request, or for an app and its inputs", code=Code.BAD_ARGUMENT)
            request = self.predict(app, inputs, context=context)
        with self._lock:
            observation = self.desk.observation(request_id_of(request), label, feedback_id, _now(), app)
        return self.desk.learn(observation)

    def invalidate(self, model: str, version: int = 0) -> int:
        """Drop the answers that are kept of a model's version, or of all versions (0); how many there were."""
        with self._lock:
            return self.desk.cache.invalidate(model, version)

    def close(self) -> None:
        """Let go of the files; the client is its owner's to close."""
        self._closed = True
        self.desk.close()
        if self._own_store:
            self.store.close()

    def __enter__(self) -> Apps:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise CwdError("these applications are closed")

    def _alone(self, run: Run, member: int, inputs: Inputs) -> None:
        """One member that nobody else asks: the client's own call."""
        try:
            run.answered(member, self._infer(run, member, inputs), _now())
        except CwdError as error:
            run.failed(member, error, _now())

    def _infer(self, run: Run, member: int, inputs: Inputs) -> Outputs:
        """A member's outputs, by the client's own call with what is left of the time."""
        name, version = run.app.members[member]
        left_ns = run.deadline_ns - _now()
        if left_ns <= 0:
            raise DeadlineMissed(f"{name}: no time was left to ask")
        return self._client.infer(name, inputs, left_ns / NS_PER_S, app=run.app.name, version=version).outputs

    def _kept(self, member: Member) -> Model | None:
        """The model of an exact version that a member is, if that is known."""
        with self._lock:
            return self._known(member, _now())

    def _look_up(self, member: Member, until_ns: int) -> Model:
        """The model of an exact version that a member is just now."""
        found = self._client._lookup(member, until_ns, until_ns)
        with self._lock:
            self._versions.put(member, found, found.epoch, _now())
        return found

    def _known(self, member: Member, now_ns: int) -> Model | None:
        """What was looked up not too long ago, and have it looked up again where that is due; with the lock held."""
        versions, session = self._versions, self._connection.session
        found = versions.get(member, session.epoch, now_ns)
        call = self._again.get(member)
        if call is not None and call.done:
            del self._again[member]
            versions.missed(member)
            if found is not None and call.error is None:
                if (call.answer.version, call.answer.handle) != (found.version, found.handle):
                    versions.forget(member)
                    return None
                versions.put(member, found, found.epoch, call.done_ns)
        if found is not None and not member.version and versions.due(member, now_ns):
            try:
                self._again[member] = self._connection.start(session.lookup, *member, self._client._timeout_ns)
            except CwdError:
                versions.missed(member)
        return found


class _Waiting:
    """One thread's way through one run."""

    def __init__(self, apps: Apps, run: Run, serving: Serving, inputs: Inputs) -> None:
        self._apps, self._run, self._serving, self._inputs = apps, run, serving, inputs
        self._gate = Gate()
        #: members whose execution is ours, until the run has been told how it went; of them, those under way
        self._ours: set[int] = set()
        self._calls: dict[Call, int] = {}
        self._models: dict[int, Model] = {}
        #: members to be asked once more, and why
        self._repeats: deque[tuple[int, CwdError]] = deque()
        self._tag = app_tag(run.app.name)
        #: what looking models up has taken
        self._looking_ns = 0

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
                while self._repeats and not run.done:
                    self._repeat(*self._repeats.popleft())
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
        apps, run = self._apps, self._run
        session = apps._client._session
        mark = session.mark
        for member in run.choice.members:
            try:
                model = self._models[member] = self._model(run.app.members[member])
                payload, dims = model.prepare(self._inputs)
                if run.app.cache:
                    key = apps.desk.cache.key(key_of(model), dims, payload)
                    asked[member] = Asked(key, dims, payload)
            except CwdError as error:
                failed[member] = error
        if not session.lost_since(mark):
            run.deadline_ns += self._looking_ns  # as in `Client.infer`, looking models up takes nothing off an SLO
        return asked, failed

    def _model(self, member: Member) -> Model:
        """What is executed: for the cache an exact version, else whatever the name stands for when it is."""
        apps, client = self._apps, self._apps._client
        known = apps._kept(member) if self._run.app.cache else client._session.models.get(member)
        if known is not None:
            return known
        began_ns = _now()
        if self._run.app.cache:
            found = apps._look_up(member, self._run.deadline_ns)
        else:
            found, _ = client._first_lookup(member, self._run.deadline_ns - began_ns)
        self._looking_ns += _now() - began_ns
        return found

    def _to_call(self) -> list[int]:
        with self._apps._lock:
            found, self._run.to_call[:] = list(self._run.to_call), []
            self._ours.update(found)
        return found

    def _send(self, member: int) -> None:
        connection, model = self._apps._connection, self._models[member]
        left_ns = self._run.deadline_ns - _now()
        try:
            if left_ns <= 0:
                raise DeadlineMissed(f"{model.name}: no time was left to ask")
            payload, dims = model.prepare(self._inputs)
            call = connection.start(connection.session.infer, model, payload, dims, left_ns, self._tag)
        except (ControllerLost, UnknownModel) as error:
            self._once_more(member, error)
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
                self._once_more(member, call.error)
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
            self._ours.discard(member)
            self._run.answered(member, outputs, _now())

    def _failed(self, member: int, error: CwdError) -> None:
        with self._apps._lock:
            self._ours.discard(member)
            self._run.failed(member, error, _now())

    def _once_more(self, member: int, error: CwdError) -> None:
        """The connection broke, or the model is another by now: it is asked again, within what time is left."""
        with self._apps._lock:
            self._apps._versions.forget(self._run.app.members[member])
            if not self._run.app.members[member].version:
                self._run.unsure(member)
        self._repeats.append((member, error))

    def _repeat(self, member: int, error: CwdError) -> None:
        """As `Client.infer` does it, but the answer is waited for with all others': one that is silent holds up nobody."""
        run, session = self._run, self._apps._connection.session
        before = self._models[member]
        key = run.app.members[member]
        try:
            if isinstance(error, UnknownModel) and session.models.get(key) is before:
                session.models.pop(key, None)
            found = self._apps._look_up(key, run.deadline_ns)
            if isinstance(error, UnknownModel) and (found.epoch, found.handle) == (before.epoch, before.handle):
                raise error
        except CwdError as again:
            self._failed(member, again)
            return
        self._models[member] = found
        self._send(member)

    def _leave(self) -> None:
        """What is still ours is overdue, or nobody waits for it any more: others may execute it."""
        with self._apps._lock:
            given_up = self._run.done
            self._run.cancel(_now())
            for member in self._ours:
                self._run.failed(member, DeadlineMissed() if given_up else Cancelled(), _now())
        for call in self._calls:
            self._apps._connection.do(self._apps._connection.session.cancel, call)
