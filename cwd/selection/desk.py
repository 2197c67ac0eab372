"""What the shells share, without any I/O of the client: the apps ready for use, choices, what is remembered, feedback.

Not for two threads at once, but for `learn`, which waits for a disk: the blocking shell holds a lock around the rest.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cwd.errors import BadRequest, Code, CwdError, RequestError, UnknownModel
from cwd.selection.apps import App, AppStore, Member
from cwd.selection.cache import Outputs, PredictionCache
from cwd.selection.combine import combine
from cwd.selection.entry import fitted
from cwd.selection.feedback import Journal
from cwd.selection.feedback_log import PART_BYTES, log_files
from cwd.selection.losses import make_loss
from cwd.selection.margin import Margin
from cwd.selection.observation import Observation, translated
from cwd.selection.policies import make_policy
from cwd.selection.reader import RETRY_S, Known, Reader
from cwd.selection.recent import Prediction, Recent
from cwd.selection.result import AppResult
from cwd.selection.run import Run
from cwd.selection.state import Choice
from cwd.selection.states import SqliteStates, States
from cwd.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from cwd.selection.redis_states import RedisStates

LOG = logging.getLogger("cwd.selection")
#: how old what is known of the apps may be
_LOOK_NS = 100 * NS_PER_MS
#: answers and labels with more elements are not written into the feedback log
_LOGGED_MAX = 16
_CONTEXT_MAX = 256
#: so much of an SLO a choice may wait for what its policy has learned
_READING_PART, _READING_MAX_NS = 10, 50 * NS_PER_MS


class Settings(NamedTuple):
    """What a desk may use. Sizes in bytes, times in nanoseconds."""

    cache_bytes: int = 64 << 20
    #: compare inputs in full where their hashes are equal
    compare: bool = True
    recent_bytes: int = 64 << 20
    #: how long feedback may come after its prediction
    recent_ns: int = 3600 * NS_PER_S
    #: "" for a file beside the apps, else redis://HOST
    states: str = ""
    #: of one part of a feedback log; of all of them, 0 for no bound
    feedback_part_bytes: int = PART_BYTES
    feedback_keep_bytes: int = 0
    #: of choices; None for one of its own
    seed: int | None = None


class Reading(NamedTuple):
    """What is being read of a store of states, and how long it is worth waiting for."""

    done: Future[None]
    patience_s: float


class Serving:
    """An app ready for use."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.names = tuple(map(str, app.members))
        self.policy = make_policy(app.policy, app.parameters)
        self.loss = make_loss(app.loss, app.loss_parameters)
        #: of a policy that does not learn
        self.fixed: Choice | None = None
        if app.members and not self.policy.learns:
            self.fixed = self.policy.choose(self.policy.start(len(app.members)), 0.0)
        self.counts: Counter[str] = Counter()
        #: how often each member was chosen, by its name
        self.chosen: Counter[str] = Counter()

    def judged(self, outputs: Outputs) -> np.ndarray:
        """The output that is combined and that feedback is about; raises `CwdError` if there is none of its name."""
        if not self.app.output:
            return next(iter(outputs.values()))
        if self.app.output not in outputs:
            raise CwdError(f"{self.app.name}: a member has no output {self.app.output!r}; it has {', '.join(outputs)}",
                           code=Code.BAD_ARGUMENT)
        return outputs[self.app.output]

    def combine(self, outputs: Mapping[int, Outputs], choice: Choice) -> tuple[Outputs, float]:
        """(outputs, confidence) of the members that have answered."""
        if not self.app.combine:
            (only,) = outputs.values()
            return only, 1.0
        found = combine(self.app.combine, {member: self.judged(each) for member, each in outputs.items()}, choice.weights,
                        scale=self.app.scale)
        name = self.app.output or next(iter(next(iter(outputs.values()))))
        return {name: found.output}, found.confidence

    def default(self) -> Outputs:
        """The app's default as outputs."""
        return self.app.default_outputs()


class Desk:
    """Apps, their states, and what is remembered of predictions."""

    def __init__(self, store: AppStore, settings: Settings = Settings(), *, processes: int = 1) -> None:
        """`processes` that an answer passes until its caller has it, this one included: 2 behind a front door."""
        self.store = store
        self.settings = settings
        self.cache = PredictionCache(settings.cache_bytes, compare=settings.compare)
        self.recent = Recent(settings.recent_bytes, settings.recent_ns)
        self.margin = Margin(processes)
        #: of all apps, those that are gone included: as their counts, and how often members were chosen in all
        self.totals: Counter[str] = Counter()
        self.chosen = 0
        #: feedback: accepted, duplicate, refused (it cannot be joined) and failed (it could not be kept)
        self.feedback: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._folder = Path(store.path).parent
        self._random = random.Random(settings.seed)
        #: ids count up from a random number: who made one can be told by it
        self._first_id = self._next_id = secrets.randbits(40) << 22
        self._serving: dict[str, Serving] = {}
        self._stamp: Any = None
        #: why the store could not be read at the last look
        self._trouble = ""
        self._looked_ns = self._changes = 0
        self._opening = threading.Lock()
        #: choices of policies that learn, by what they went by
        self.choices: Counter[Known] = Counter()
        #: of a store that is no file: nobody who answers waits for it
        self.reader: Reader | None = None
        if settings.states:
            check_states(settings.states)
            self.reader = Reader(lambda: open_remote(settings.states))
        self._states: States | None = None
        self._journal: Journal | None = None

    # apps

    def serving(self, name: str, now_ns: int) -> Serving:
        """The app of that name; raises `UnknownModel`. Others' changes of the store are seen within a tenth of a second."""
        found = self.find(name, now_ns)
        if found is None:
            raise UnknownModel(f"no application {name!r:.60} is there")
        return found

    def find(self, name: str, now_ns: int) -> Serving | None:
        """The app of that name, if there is one."""
        return self.all(now_ns).get(name)

    def all(self, now_ns: int) -> dict[str, Serving]:
        """Every app, by name."""
        if now_ns - self._looked_ns >= _LOOK_NS or self.store.changes != self._changes:
            self._look(now_ns)
        return self._serving

    def _look(self, now_ns: int) -> None:
        """Follow the store. While it cannot be read the apps are as they were; raises `CwdError` if they never were known."""
        self._looked_ns, self._changes = now_ns, self.store.changes
        try:
            stamp = self.store.stamp()
            apps = self.store.all(skip=_unreadable) if stamp != self._stamp else None
        except CwdError as error:
            if self._stamp is None:
                raise
            if error.text != self._trouble:
                LOG.error("%s; applications stay as they were", error.text)
            self._trouble = error.text
            return
        self._trouble = ""
        if apps is None:
            return
        before, self._serving = self._serving, {}
        for app in apps:
            known = before.get(app.name)
            self._serving[app.name] = made = known if known is not None and known.app == app else Serving(app)
            if known is not None and known.app.life == app.life:
                made.counts, made.chosen = known.counts, known.chosen
        self._stamp = stamp

    def narrowed(self, serving: Serving, member: Member) -> Serving:
        """The app as if that were its only member; counted as the app itself. What is fed back of it says nothing of others."""
        app = serving.app
        found = Serving(dataclasses.replace(app, members=(member,), policy="static", parameters={}, combine="",
                                            confidence_min=0.0))
        found.counts, found.chosen = serving.counts, serving.chosen
        return found

    # predictions

    def reading(self, serving: Serving, slo_ns: int, context: str | None) -> Reading | None:
        """What a choice should wait for a little, outside of any lock; None where nothing is to be waited for."""
        if self.reader is None or serving.fixed is not None or not serving.app.members:
            return None
        done = self.reader.reading(serving.app.key, self.context_of(serving.app, context))
        return Reading(done, min(slo_ns // _READING_PART, _READING_MAX_NS) / NS_PER_S) if done is not None else None

    def begin(self, serving: Serving, now_ns: int, slo_ns: int, context: str | None) -> Run:
        """A run with its choice made; the shell starts it. Raises `BadRequest` for an app that cannot be asked.

        `reading` comes before it.
        """
        app = serving.app
        where = self.context_of(app, context)
        if not app.members and app.default is None:
            raise BadRequest(f"{app.name} has no models yet: link one", code=Code.MODEL_NOT_READY)
        choice = serving.fixed or (self._choice(serving, where) if app.members else Choice((), (), ()))
        self._next_id += 1
        # one model's answer comes in time, or there is none
        margin_ns = 0 if len(choice.members) == 1 and app.default is None else self.margin.of(slo_ns, now_ns)
        return Run(serving, choice, self._next_id, now_ns, now_ns + slo_ns - margin_ns, where, margin_ns)

    def context_of(self, app: App, context: str | None) -> str:
        """The context whose state is used; raises `BadRequest` where one is needed and not given."""
        if app.context == "app":
            return ""
        if not isinstance(context, str) or not 0 < len(context) <= _CONTEXT_MAX:
            raise BadRequest(f"{app.name} learns for each {app.context}: say which ('context', a text of at most "
                             f"{_CONTEXT_MAX} characters)", code=Code.BAD_ARGUMENT)
        try:
            context.encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can say: no store takes it
            raise BadRequest(f"{app.name}: the context is no text of Unicode", code=Code.BAD_ARGUMENT) from None
        return context

    def _choice(self, serving: Serving, context: str) -> Choice:
        if self.reader is not None:
            entry, known = self.reader.get(serving.app.key, context)
        else:
            entry, known = self.states().get(serving.app.key, context), Known.CURRENT
        self.choices[known] += 1
        return serving.policy.choose(fitted(entry, serving.policy, serving.names), self._random.random())

    def ended(self, serving: Serving, run: Run, now_ns: int) -> None:
        """Remember a run that is done, for feedback, and count it."""
        if run.margin_ns and now_ns >= run.deadline_ns:
            self.margin.observe(now_ns - run.deadline_ns, now_ns)
        result = run.result
        for counts in (serving.counts, self.totals):
            _count(counts, result)
        for member in run.choice.members:
            serving.chosen[serving.names[member]] += 1
        self.chosen += len(run.choice.members)
        if result is None:
            return
        try:
            answers = {member: np.array(serving.judged(outputs)) for member, outputs in run.outputs.items()}
            answer = None if result.default else np.array(serving.judged(result.outputs))
        except CwdError:
            return  # there is no such output: nothing to judge
        self.recent.add(run.request_id, Prediction(serving.app.name, serving.app.key, run.context, serving.names,
                                                   run.choice, answers, answer, now_ns))

    # feedback

    def observation(self, request_id: int, label: Any, feedback_id: str | None, now_ns: int, app: str = "") -> Observation:
        """What a feedback says of a prediction that is remembered; raises `BadRequest` for one that is not.

        `app` is whose it is said to be ("": whoever's it is): an id that was mixed up teaches nobody.
        """
        try:
            return self._observation(request_id, label, feedback_id, now_ns, app)
        except CwdError:
            self._count_feedback("refused")
            raise

    def _observation(self, request_id: int, label: Any, feedback_id: str | None, now_ns: int, app_name: str) -> Observation:
        found = self.recent.get(request_id, now_ns)
        serving = self.find(found.app, now_ns) if found is not None else None
        if found is None:
            raise self._not_remembered(request_id)
        if app_name not in ("", found.app):
            raise BadRequest(f"prediction {request_id:016x} is of {found.app}, and not of {app_name}", code=Code.BAD_ARGUMENT)
        if serving is None or serving.app.key != found.key:
            raise BadRequest(f"{found.app}, which made prediction {request_id:016x}, has been removed since",
                             code=Code.BAD_ARGUMENT)
        truth = np.asarray(label)
        if truth.dtype == object:
            raise BadRequest("a label is a number, a text or an array of them", code=Code.BAD_DTYPE)
        app, loss = serving.app, serving.loss
        choice, answers = translated(found.choice, found.answers, found.members, serving.names)
        return Observation(
            feedback_id or f"{request_id:016x}", app.key, found.context, app.policy, serving.policy.parameters(),
            serving.names, choice, {member: loss(answer, truth) for member, answer in sorted(answers.items())},
            None if found.answer is None else loss(found.answer, truth),
            {member: answer.tolist() for member, answer in sorted(answers.items()) if answer.size <= _LOGGED_MAX},
            truth.tolist() if truth.size <= _LOGGED_MAX else None, time.time_ns())

    def _not_remembered(self, request_id: int) -> BadRequest:
        """Why nothing is known of a prediction; NOT_HERE if somebody else may know it."""
        if self._first_id < request_id <= self._next_id:
            return BadRequest(f"prediction {request_id:016x} is not remembered any more, or never was: feedback comes within "
                              f"{self.settings.recent_ns // NS_PER_S} s of it, and while it is among the last "
                              f"{self.settings.recent_bytes >> 20} MiB of them", code=Code.BAD_ARGUMENT)
        return BadRequest(f"prediction {request_id:016x} was not made here, but by another gateway or process, or before this one "
                          "was started: send feedback to the one that answered, or send the inputs in place of the id",
                          code=Code.NOT_HERE)

    def learn(self, observation: Observation) -> bool:
        """Keep a feedback durably; False if its id was known. Waits for the disk; any thread may call it.

        Raises `RequestError` where it could not be kept, at once if the store of states is away: the same feedback may be
        sent again, and counts once.
        """
        try:
            if self.reader is not None and not self.reader.up:
                raise RequestError("the store of states is away: no feedback is taken until it is back", code=Code.NOT_HERE,
                                   earliest_ns=round(RETRY_S * NS_PER_S))
            new = self.journal().add(observation)
        except CwdError as error:
            self._count_feedback("failed")
            if self.reader is not None and error.code == Code.NOT_HERE:
                self.reader.suspect()
            raise error if isinstance(error, RequestError) else RequestError(error.text, code=error.code) from error
        self._count_feedback("accepted" if new else "duplicate")
        return new

    def _count_feedback(self, outcome: str) -> None:
        with self._counting:  # threads learn
            self.feedback[outcome] += 1

    def states(self) -> States:
        """The store of policies' states, opened when it is first needed."""
        if self._states is not None:  # without the lock, which opening a long feedback log holds
            return self._states
        with self._opening:
            if self._states is None:
                self._states = open_states(self.settings.states, self._folder)
            return self._states

    def journal(self) -> Journal:
        """The feedback log, opened when it is first needed."""
        states = self.states()
        with self._opening:
            if self._journal is None:
                self._journal = Journal(states, feedback_folder(self._folder), self.settings.feedback_part_bytes,
                                        self.settings.feedback_keep_bytes)
            return self._journal

    def feedback_sizes(self) -> list[int]:
        """The bytes of each part of all feedback logs here, those of other processes included."""
        found = []
        for path in log_files(feedback_folder(self._folder)):
            with contextlib.suppress(OSError):  # it may just be dropped
                found.append(path.stat().st_size)
        return found

    def close(self) -> None:
        """Let go of the files; the store of apps is its owner's."""
        if self.reader is not None:
            self.reader.close()
        with self._opening:
            if self._journal is not None:
                self._journal.close()
            if self._states is not None:
                with contextlib.suppress(RequestError):  # it is away
                    self._states.close()


def _count(counts: Counter[str], result: AppResult | None) -> None:
    """One prediction that has ended; None for one with an error."""
    counts["predictions"] += 1
    if result is None:
        counts["errors"] += 1
        return
    asked, answered = result.members_asked, result.members_answered
    counts["members_asked"] += asked
    counts["members_answered"] += answered
    counts["cached"] += result.cached
    counts["answered_by_none" if not answered else "answered_by_all" if answered == asked else "answered_by_some"] += 1
    if result.default:
        counts["defaults"] += 1
        counts[f"default:{result.reason}"] += 1


def _unreadable(error: CwdError) -> None:
    LOG.warning("%s", error)


def open_states(where: str, folder: Path) -> States:
    """The store of states: in `folder` if `where` is empty, else at a Redis."""
    if not where:
        folder.mkdir(parents=True, exist_ok=True)
        return SqliteStates(folder / "states.db")
    return open_remote(where)


def open_remote(where: str) -> RedisStates:
    """A store that is no file; waits for it, and raises `CwdError` if it does not answer."""
    from cwd.selection.redis_states import RedisStates

    return RedisStates(where)


def check_states(where: str) -> None:
    """Raises `CwdError` for a store that could never be opened; whether it answers is not asked."""
    from cwd.selection.redis_states import check_url

    check_url(where)


def feedback_folder(folder: Path) -> Path:
    """Where the feedback logs are, beside the apps."""
    return folder / "feedback"


def request_id_of(request: AppResult | str | int) -> int:
    """A result's request id, or as people write one: 16 hexadecimal digits. Raises `BadRequest`."""
    if isinstance(request, AppResult):
        return request.request_id
    if isinstance(request, int):
        return request
    try:
        return int(request, 16)
    except (TypeError, ValueError):
        raise BadRequest(f"{request!r:.40} is no request id: 16 hexadecimal digits", code=Code.BAD_ARGUMENT) from None


def label_of(text: str) -> Any:
    """A label as people write it: JSON, or a plain text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
