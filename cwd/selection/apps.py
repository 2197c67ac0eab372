"""Applications: what one is (`App`), and where they are kept (`AppStore`, one SQLite file that any number of processes share).

An app has a name, members (models), a policy that chooses among them, an SLO, and what else is said of it below. Names of
apps and of models are two kinds of names; a front door that knows both looks for an app first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cwd.client.call import SLO_MAX_NS
from cwd.client.model import split_name
from cwd.errors import Code, CwdError, UnknownModel
from cwd.selection.combine import KINDS
from cwd.selection.losses import make_loss
from cwd.selection.policies import make_policy
from cwd.selection.state import MEMBERS_MAX
from cwd.units import NS_PER_MS

#: of the file; a newer one is refused, an older one is brought up to it
SCHEMA = 1
#: of whom a context is: one for all, or one for each user or session that requests name
CONTEXTS = ("app", "user", "session")
INPUT_TYPES = ("", "integers", "floats", "doubles", "bytes", "strings")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: how long a writer waits for another one
_BUSY_S = 10.0


class Member(NamedTuple):
    """A model of an app; version 0 is the one that the name stands for."""

    model: str
    version: int = 0

    def __str__(self) -> str:
        return f"{self.model}/{self.version}" if self.version else self.model

    @staticmethod
    def parse(text: str) -> Member:
        """`resnet` or `resnet/3`."""
        return Member(*split_name(text))


@dataclass(frozen=True)
class App:
    """One application. Raises `CwdError` (BAD_ARGUMENT) for what cannot work.

    `App("reader", ("bert-a", "bert-b/2"), policy="exp4", combine="vote")`: members may be given as texts.
    """

    name: str
    members: tuple[Member, ...] = ()
    #: who chooses among the members, and its parameters
    policy: str = "static"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    #: how answers become one: `vote`, `mean`, or "" for the one member's outputs as they are
    combine: str = ""
    #: for `mean`: the standard deviation at which nothing is left of the confidence
    scale: float = 1.0
    #: the output that is combined and judged; "" for the first
    output: str = ""
    #: what feedback holds against a prediction
    loss: str = "zero_one"
    loss_parameters: Mapping[str, Any] = field(default_factory=dict)
    #: of requests that bring none
    slo_ns: int = 100 * NS_PER_MS
    #: JSON of what is answered where no model can, always marked as such; None: an error says why
    default: str | None = None
    #: with less confidence the default is answered; 0 for none
    confidence_min: float = 0.0
    cache: bool = False
    #: answers older than this do not count; 0: as long as they are kept
    ttl_ns: int = 0
    context: str = "app"
    #: what Clipper's clients declare; "" for those that others made
    input_type: str = ""
    #: tells an app from an earlier one of its name, whose states and feedback it does not take over; given by the store
    life: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _members(self.members))
        _check_words(self)
        if len(self.members) > MEMBERS_MAX or len(set(self.members)) != len(self.members):
            raise _fault(f"{self.name}: members are at most {MEMBERS_MAX}, and each is named once")
        if not all(isinstance(time_ns, int) for time_ns in (self.slo_ns, self.ttl_ns)):
            raise _fault(f"{self.name}: an SLO and a TTL are whole numbers of nanoseconds")
        if not 0 < self.slo_ns <= SLO_MAX_NS or self.ttl_ns < 0:
            raise _fault(f"{self.name}: an SLO is above 0 and at most a day, a TTL not negative")
        if not (0.0 <= self.confidence_min <= 1.0 and 0.0 < self.scale < math.inf):
            raise _fault(f"{self.name}: a confidence is from 0 to 1, a scale above 0")
        if self.confidence_min and self.default is None:
            raise _fault(f"{self.name}: below its confidence the default is answered, and there is none")
        if self.default is not None:
            self.default_outputs()
        make_loss(self.loss, self.loss_parameters)
        policy = make_policy(self.policy, self.parameters)
        if self.members:
            asked = policy.choose(policy.start(len(self.members)), 0.0).members
            if len(asked) > 1 and not self.combine:
                raise _fault(f"{self.name}: {self.policy} asks {len(asked)} members: say how their answers are combined, "
                             f"{' or '.join(KINDS)}")

    @property
    def key(self) -> str:
        """Under which its states and feedback are kept."""
        return f"{self.name}#{self.life}" if self.life else self.name

    def default_outputs(self, dtype: np.dtype[Any] | None = None, shape: tuple[int, ...] | None = None
                        ) -> dict[str, np.ndarray]:
        """The default as outputs: an object of JSON names them, anything else is the one output.

        It takes the dtype and shape of the real output where that is known and it can.
        """
        if not isinstance(self.default, str):
            raise _fault(f"{self.name}: the default is a text of JSON, such as '[0]', and not {self.default!r:.60}")
        try:
            found = json.loads(self.default)
            named = found if isinstance(found, dict) else {self.output or "output": found}
            arrays = {name: np.asarray(value) for name, value in named.items()}
        except ValueError as error:
            raise _fault(f"{self.name}: the default {self.default[:80]!r} is no JSON of arrays: {error}") from None
        if any(array.dtype == object for array in arrays.values()) or not arrays:
            raise _fault(f"{self.name}: the default {self.default[:80]!r} is no JSON of numbers or texts")
        if dtype is not None and len(arrays) == 1:
            ((name, array),) = arrays.items()
            if array.dtype.kind in "iufb":
                array = array.astype(dtype) if np.can_cast(array.dtype, dtype, "same_kind") else array
                array = np.broadcast_to(array, shape).copy() if shape is not None and array.ndim == 0 else array
            arrays = {name: array}
        return arrays

    def to_json(self) -> str:
        """All but the name, as it is stored."""
        found = dataclasses.asdict(self)
        del found["name"]
        return json.dumps({**found, "members": [str(member) for member in self.members]}, sort_keys=True)

    @staticmethod
    def from_json(name: str, text: str) -> App:
        """What `to_json` wrote; raises `CwdError` for anything else."""
        try:
            found = json.loads(text)
            return App(name, tuple(map(Member.parse, found.pop("members"))), **found)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CwdError(f"the stored application {name!r} cannot be read: {error}", code=Code.CORRUPT) from None


def _members(given: Sequence[Member | str]) -> tuple[Member, ...]:
    if isinstance(given, str) or not all(isinstance(member, (Member, str)) for member in given):
        raise _fault(f"members are a sequence of models, such as ('bert-a', 'bert-b/2'), and not {given!r:.60}")
    return tuple(Member.parse(member) if isinstance(member, str) else member for member in given)


def _check_words(app: App) -> None:
    for what, name in (("the name of an application", app.name), *(("the name of a model", member.model)
                                                                    for member in app.members)):
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _fault(f"{name!r:.60} is not {what}: letters, digits, '.', '_' and '-', at most 128")
    for what, word, known in (("combine", app.combine, ("", *KINDS)), ("context", app.context, CONTEXTS),
                              ("input_type", app.input_type, INPUT_TYPES)):
        if word not in known:
            raise _fault(f"{app.name}: {what} is one of {', '.join(map(repr, known))}, and not {word!r:.40}")


def _fault(text: str) -> CwdError:
    return CwdError(text, code=Code.BAD_ARGUMENT)


def default_store() -> Path:
    """$CWD_APPS, else /var/lib/cwd/apps.db for root, else $XDG_STATE_HOME/cwd/apps.db, else in ~/.local/state."""
    if given := os.environ.get("CWD_APPS"):
        return Path(given)
    if os.getuid() == 0:
        return Path("/var/lib/cwd/apps.db")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "cwd" / "apps.db"


def _make_for_owner(path: Path) -> None:
    """An empty file, if there is none, that is its folder's owner's: the daemons that root makes apps for are not root.

    SQLite gives the files that it makes beside it to the same owner.
    """
    folder = path.parent.stat()
    with contextlib.suppress(FileExistsError):
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            os.fchown(file, folder.st_uid, folder.st_gid)
        finally:
            os.close(file)


class AppStore:
    """The applications of a cluster; changes are durable when a method returns, and `stamp` tells others of them."""

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        """Opens the file, and makes it if there is none. Raises `CwdError` if it is no store of ours."""
        self.path = Path(path) if path is not None else default_store()
        self._lock = threading.Lock()
        #: made by this object
        self.changes = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if os.geteuid() == 0:
                _make_for_owner(self.path)
            # transactions are ours to begin: reading what is then written would else be two of them
            self._base = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            with self._writing():
                self._make()
        except (sqlite3.Error, OSError) as error:
            raise CwdError(f"{self.path}: {error}", code=Code.CORRUPT) from None

    def _make(self) -> None:
        (version,) = self._base.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA:
            raise CwdError(f"{self.path} was written by a newer cwd (schema {version}, this one knows {SCHEMA})",
                           code=Code.CORRUPT)
        if version < 1:
            self._base.execute("CREATE TABLE app (name TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT")
            self._base.execute("CREATE TABLE note (name TEXT PRIMARY KEY, facts TEXT NOT NULL) STRICT")
        self._base.execute(f"PRAGMA user_version = {SCHEMA}")

    def stamp(self) -> tuple[int, int]:
        """Another one than before once anybody has changed something; takes a few microseconds."""
        with self._lock, _told(self.path):
            (version,) = self._base.execute("PRAGMA data_version").fetchone()
            return version, self.changes

    def create(self, app: App, *, replace: bool = False) -> None:
        """Keep a new app; raises `CwdError` (MODEL_EXISTS) if there is one of that name."""
        with self._writing():
            if not replace and self._found(app.name) is not None:
                raise CwdError(f"there is an application {app.name!r} already", code=Code.MODEL_EXISTS)
            self._put(dataclasses.replace(app, life=app.life or secrets.token_hex(4)))

    def change(self, name: str, **fields: Any) -> App:
        """The app with other fields, which are kept; raises `UnknownModel`, and `CwdError` for what cannot work."""
        with self._writing():
            app = dataclasses.replace(self._known(name), **fields)
            self._put(app)
            return app

    def link(self, name: str, members: Sequence[Member | str]) -> App:
        """Add members behind those that are there; one that is there already stays where it is."""
        with self._writing():
            app = self._known(name)
            new = [member for member in dict.fromkeys(_members(members)) if member not in app.members]
            app = dataclasses.replace(app, members=(*app.members, *new))
            self._put(app)
            return app

    def unlink(self, name: str, members: Sequence[Member | str]) -> App:
        """Take members out; raises `UnknownModel` for one that is not there, and `CwdError` for the one that is always asked."""
        with self._writing():
            app, members = self._known(name), _members(members)
            for member in members:
                if member not in app.members:
                    raise UnknownModel(f"{name} has no member {member}; it has "
                                       f"{', '.join(map(str, app.members)) or 'none'}")
            app = _without(app, members)
            self._put(app)
            return app

    def remove(self, name: str) -> None:
        """Forget an app; raises `UnknownModel`."""
        with self._writing():
            self._known(name)
            self._base.execute("DELETE FROM app WHERE name = ?", (name,))

    def get(self, name: str) -> App:
        """Raises `UnknownModel` if there is none of that name."""
        with self._lock, _told(self.path):
            return self._known(name)

    def all(self, skip: Callable[[CwdError], Any] | None = None) -> list[App]:
        """Every app, by name. For one that cannot be read `CwdError` is raised, or told to `skip`, and the app left out."""
        with self._lock, _told(self.path):
            rows = self._base.execute("SELECT name, facts FROM app ORDER BY name").fetchall()
        found = []
        for row in rows:
            try:
                found.append(App.from_json(*row))
            except CwdError as error:
                if skip is None:
                    raise
                skip(error)
        return found

    def notes(self) -> dict[str, Any]:
        """What was noted, by name: JSON of front doors' own, which is kept beside the apps."""
        with self._lock, _told(self.path):
            rows = self._base.execute("SELECT name, facts FROM note ORDER BY name").fetchall()
        return {name: json.loads(facts) for name, facts in rows}

    def note(self, name: str, facts: Any) -> None:
        """Keep a note; None removes it."""
        with self._writing():
            self._base.execute("DELETE FROM note WHERE name = ?", (name,))
            if facts is not None:
                self._base.execute("INSERT INTO note VALUES (?, ?)", (name, json.dumps(facts)))

    def close(self) -> None:
        with self._lock:
            self._base.close()

    def __enter__(self) -> AppStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # with the lock held

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with self._lock, _told(self.path):
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._base.execute("COMMIT")
                self.changes += 1
            except BaseException:
                self._base.execute("ROLLBACK")
                raise

    def _put(self, app: App) -> None:
        self._base.execute("INSERT INTO app VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET facts = excluded.facts",
                           (app.name, app.to_json()))

    def _found(self, name: str) -> str | None:
        row = self._base.execute("SELECT facts FROM app WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _known(self, name: str) -> App:
        facts = self._found(name)
        if facts is None:
            raise UnknownModel(f"no application {name!r:.60} is there")
        return App.from_json(name, facts)


def _without(app: App, gone: Sequence[Member]) -> App:
    """The app with fewer members; the one that `static` asks is still the same one, at its new place."""
    kept = tuple(member for member in app.members if member not in gone)
    place = app.parameters.get("member")
    if app.policy != "static" or not isinstance(place, int) or not kept or place >= len(app.members):
        return dataclasses.replace(app, members=kept)
    asked = app.members[place]
    if asked not in kept:
        raise CwdError(f"{app.name}: {asked} is the member that is always asked; make the app anew (--replace), or unlink all",
                       code=Code.BAD_ARGUMENT)
    return dataclasses.replace(app, members=kept, parameters={**app.parameters, "member": kept.index(asked)})


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    """What SQLite says, in our words."""
    try:
        yield
    except sqlite3.Error as error:
        raise CwdError(f"{path}: {error}", code=Code.CORRUPT) from None
