"""Feedback that counts once and is not lost: the store of states with its log, and the states rebuilt from the log.

What the files look like stands in `feedback_log.py`. Which of two records came first is said by the version of the state
that they made; so all files of a folder together are one history, whoever wrote them and in however many parts.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cwd.errors import Code, CwdError, InvariantError
from cwd.selection.entry import Entry, after
from cwd.selection.feedback_log import PART_BYTES, FeedbackLog, Scan, has_dropped, log_files
from cwd.selection.observation import Observation
from cwd.selection.states import States

LOG = logging.getLogger("cwd.selection")

#: of one frame
_PAYLOAD_BYTES_AIM = 1 << 22


class Journal:
    """A store of states with its feedback log: what `add` has returned for is in both.

    Opening it makes good what a crash left between the two, whichever of them has more.
    """

    def __init__(self, states: States, folder: Path | str, part_bytes: int = PART_BYTES, keep_bytes: int = 0) -> None:
        """See `FeedbackLog` for the bytes. Of feedback in parts that were dropped, nothing can be put back."""
        self._states, self._folder = states, Path(folder)
        self._lock = threading.Lock()
        #: the store may have applied what the log lacks
        self._behind = True
        self._log = FeedbackLog(folder, part_bytes, keep_bytes)
        try:
            self._catch_up()
        except BaseException:
            self._log.close()
            raise

    def add(self, observation: Observation) -> bool:
        """Learn from a feedback, durably; False if its id was known, and then nothing has changed."""
        return self.add_all([observation])[0]

    def add_all(self, observations: Sequence[Observation]) -> list[bool]:
        """`add` for several with one wait for the disk. After an error the same may be added again: ids count once."""
        with self._lock:
            if self._behind:
                self._catch_up()
            self._behind = True
            records = self._states.apply(observations, self._log.log_id)
            self._to_log([record for record in records if record])
            self._behind = False
        return [bool(record) for record in records]

    def _catch_up(self) -> None:
        """Put back what the store has lost, and append what it has applied for this log and cannot know to be in it.

        Twice does no harm.
        """
        self._behind = True
        if _is_ahead(self._log.last, self._states):
            restored = restore(self._states, self._folder)
            LOG.warning("the store of states had lost what the log has; %d states were put back", restored)
        self._to_log(self._states.unlogged(self._log.log_id))
        self._behind = False

    def _to_log(self, records: list[bytes]) -> None:
        for part in _parts(records):
            self._log.append(part)
            self._states.logged(self._log.log_id, len(part))

    def close(self) -> None:
        """Let go of the log; the store is its owner's to close."""
        with self._lock:
            self._log.close()


@dataclass(frozen=True, slots=True)
class History:
    """All observations of one app and context (in memory), in the order in which they were learned from."""

    app: str
    context: str
    observations: tuple[Observation, ...]
    #: the version that each made; () for 1, 2, 3, ...
    versions: tuple[int, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether none is missing; else older ones were dropped."""
        return not self.versions or self.versions == tuple(range(1, len(self.versions) + 1))

    def entry(self, known: Entry | None = None) -> Entry:
        """The entry that they make, after a `known` one: exactly that of the store if the history is complete."""
        entry, numbers = known, self.versions or range(1, len(self.observations) + 1)
        for number, observation in zip(numbers, self.observations, strict=True):
            if entry is None or number > entry.version:
                entry = dataclasses.replace(after(entry, observation), version=number)
        if entry is None:
            raise InvariantError(f"a history of {self.app}/{self.context} without observations")
        return entry


def histories(folder: Path | str, app: str | None = None) -> list[History]:
    """What the logs of a folder say, by (app, context); of one app if it is named.

    Raises `CwdError` (CORRUPT) for damage, for a version that is in no log and for one that is in them with two contents.
    Where parts were dropped, versions may be missing: then a history is of those that are there.
    """
    found: dict[tuple[str, str], dict[int, tuple[bytes, Observation]]] = {}
    for path in log_files(folder):
        for record in Scan(path).records():
            version, observation = Observation.from_bytes(record)
            if app is not None and observation.app != app:
                continue
            known = found.setdefault((observation.app, observation.context), {}).setdefault(version, (record, observation))
            if known[0] != record:
                raise CwdError(f"{path}: two different feedbacks made version {version} of {observation.app}"
                               f"/{observation.context}", code=Code.CORRUPT)
    dropped = has_dropped(folder)  # it says so before it drops, so this is asked after all was read
    told = []
    for (name, context), versions in sorted(found.items()):
        missing = next((version for version in range(1, len(versions) + 1) if version not in versions), 0)
        if missing and not dropped:
            raise CwdError(f"{folder}: no log has the feedback that made version {missing} of {name}/{context}",
                           code=Code.CORRUPT)
        order = tuple(sorted(versions))
        told.append(History(name, context, tuple(versions[version][1] for version in order), order))
    return told


def rebuild(folder: Path | str) -> dict[tuple[str, str], Entry]:
    """The states that the logs of a folder make, by (app, context); equal to what the store has.

    Raises `CwdError` (CORRUPT) also where older feedback was dropped: what is left does not make them.
    """
    found = histories(folder)
    for history in found:
        if not history.complete:
            raise CwdError(f"{folder}: older feedback on {history.app}/{history.context} was dropped to keep within a bound",
                           code=Code.CORRUPT)
    return {(history.app, history.context): history.entry() for history in found}


def restore(states: States, folder: Path | str) -> int:
    """Put back what the logs know and the store does not (it was lost, or is an old copy); how many entries.

    Of a history whose beginning was dropped, what is left is learned from after what the store has, which is the entry that
    was lost only if the two meet; versions go on from the last. Ids of dropped feedback are not known any more.
    """
    count = 0
    for history in histories(folder):
        known = None if history.complete else states.get(history.app, history.context)
        entry = history.entry(known)
        done = states.restore(history.app, history.context, entry, [one.feedback_id for one in history.observations])
        count += done
        if done and not history.complete and (known is None or not _meets(known.version, history.versions)):
            LOG.warning("%s/%s: the store of states had lost %s, and older feedback was dropped: its policy goes on from the "
                        "last %d feedbacks alone", history.app, history.context,
                        "it" if known is None else f"all after version {known.version}", len(history.observations))
    return count


def _meets(version: int, versions: Sequence[int]) -> bool:
    """Whether every version after that one is there, up to the last."""
    later = [each for each in versions if each > version]
    return later == list(range(version + 1, version + 1 + len(later)))


def _is_ahead(last: bytes, states: States) -> bool:
    """Does the log's last record know a version that the store has not reached?

    Stores lose the end of their history or none of it: if they have the last, they have all.
    """
    if not last:
        return False
    version, observation = Observation.from_bytes(last)
    entry = states.get(observation.app, observation.context)
    return entry is None or entry.version < version


def _parts(records: list[bytes]) -> Iterator[list[bytes]]:
    """The records in groups that are one frame each; one group, unless they are very many."""
    part: list[bytes] = []
    size = 0
    for record in records:
        part.append(record)
        size += len(record)
        if size >= _PAYLOAD_BYTES_AIM:
            yield part
            part, size = [], 0
    if part:
        yield part
