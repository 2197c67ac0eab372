"""The repository's reader: a process beside the controller that does its file reading, JSON and sha256.

The controller's one Python thread may not spend more than 200 us at a time, and an entry alone can cost more. So it
asks over a pipe and gets small, ready facts back, one msgpack map per line of work. Both ends are here: `RepositoryReader`
for the daemon, `main` for the process. Neither knows the core or a socket.

Questions: `{"id", "op": "scan" | "changes" | "get" | "verify" | "add", "name", "version"}`; `add` is `verify` and then
`get`. Answers carry the question's id and one of
`"program"` (facts of a program, before its first model), `"model"`, `"bad"` (one line about an entry that is skipped),
`"error"` with `"code"` (the question failed) or `"end"`. `changes` is a scan that tells what differs from the one before, and
looks at nothing but the files' times for that; besides: `"fresh"` (there was none before: all is told), `"removed"` [name,
version], and `"uses"` [name, the version that was chosen for it, or 0].
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import msgpack

from cwd.controller.side_process import SideProcess
from cwd.errors import Code, CwdError
from cwd.net.journal import log_to_stderr
from cwd.net.priority import set_nice

LOG = logging.getLogger("cwd.controller")

Answer = dict[str, Any]
_CHUNK_BYTES = 16_384

#: What a row of `shapes.SHAPE` has room for.
TERMS_MAX = 8
CLASSES_MAX = 32
AXES = 4


class RepositoryReader:
    """The daemon's end: `ask` never waits, `answers` gives what has come.

    A process that ended takes the questions under way with it: they are answered with an error that is marked `"gone"`,
    and the next question starts another process.
    """

    def __init__(self, repository: str) -> None:
        self._questions = 0
        self._open: set[int] = set()
        self._process = SideProcess("cwd.controller.reader", repository)
        self._ended = False

    @property
    def pending(self) -> int:
        """Questions that have no last answer yet."""
        return len(self._open)

    @property
    def said(self) -> int:
        """The descriptor on which answers come; for a poll set."""
        return self._process.said

    def ask(self, op: str, name: str = "", version: int = 0) -> int:
        """Send a question; its id. Raises `CwdError` if the process does not keep up."""
        if not self._open and (self._ended or not self._process.alive):
            self._process.close()
            self._process.start()
            self._ended = False
        self._questions += 1
        try:
            os.write(self._process.asked, msgpack.packb(
                {"id": self._questions, "op": op, "name": name, "version": version}))
        except OSError as error:
            raise CwdError(f"the repository's reader does not answer: {error.strerror}", code=Code.BAD_MODEL) from None
        self._open.add(self._questions)
        return self._questions

    def answers(self) -> Iterator[Answer]:
        """What has come so far, a small piece of the pipe at a time; ends when there is no more at the moment."""
        for answer in self._process.unpacker:
            yield self._counted(answer)
        try:
            data = os.read(self._process.said, _CHUNK_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._ended = True
            for identifier in sorted(self._open):
                yield self._counted({"id": identifier, "error": "the repository's reader ended before it could answer",
                                     "code": int(Code.BAD_MODEL), "gone": True})
            return
        self._process.unpacker.feed(data)
        for answer in self._process.unpacker:
            yield self._counted(answer)

    def _counted(self, answer: Answer) -> Answer:
        if "end" in answer or "error" in answer:
            self._open.discard(answer["id"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.close()


class _Answerer:
    """The process's end: answers questions from the repository until its stdin closes."""

    def __init__(self, root: str) -> None:
        from cwd.models.repository import Repository

        self._repository = Repository(root)
        self._told: set[tuple[bytes, tuple[str, ...]]] = set()
        self._profiles: dict[bytes, dict[str, Any]] = {}
        #: of `changes`: what was told of each name and version (0: its choice), and of each program with one of its entries
        self._marks: dict[tuple[str, int], Any] | None = None
        self._program_marks: dict[bytes, tuple[Any, Any]] = {}

    def run(self) -> None:
        unpacker = msgpack.Unpacker(raw=False)
        while data := os.read(0, _CHUNK_BYTES):
            unpacker.feed(data)
            for question in unpacker:
                self._answer(question)

    def _say(self, identifier: int, **answer: Any) -> None:
        data = memoryview(msgpack.packb({"id": identifier, **answer}))
        while data:
            data = data[os.write(1, data):]

    def _answer(self, question: dict[str, Any]) -> None:
        identifier, op = question["id"], question["op"]
        self._profiles.clear()  # they are read once per question: a new one may have been measured since the last
        try:
            if op == "scan":
                # the newest version comes last: without a choice it is the one in use
                for found in self._repository.scan():
                    if isinstance(found, CwdError):
                        self._say(identifier, bad=found.text, code=int(found.code))
                    else:
                        name, version = found.manifest.name, found.manifest.version
                        self._describe(identifier, found, self._repository.in_use(name) in (0, version))
            elif op == "changes":
                self._changes(identifier)
            else:
                entry = self._repository.get(question["name"], question["version"])
                if op in ("verify", "add"):
                    self._repository.verify(entry)
                if op in ("get", "add"):
                    self._describe(identifier, entry, in_use=False)
        except CwdError as error:
            self._say(identifier, error=error.text, code=int(error.code))
        except OSError as error:
            self._say(identifier, error=f"{error.filename}: {error.strerror}", code=int(Code.BAD_MODEL))
        else:
            self._say(identifier, end=True)

    def _changes(self, identifier: int) -> None:
        """What differs from the last time that came to its end; what has not changed costs two calls of stat."""
        if self._marks is None:
            self._say(identifier, fresh=True)
        before, marks = dict(self._marks or {}), {}
        for program, (mark, entry) in list(self._program_marks.items()):
            if mark != (now := self._repository.program_mark(program)):
                self._program_marks[program] = now, entry
                self._say_program(identifier, entry)
        for name, version, mark in self._repository.marks():
            marks[name, version] = mark
            if before.pop((name, version), None) != mark:
                self._changed(identifier, name, version)
        for name, version in before:
            if version:
                self._say(identifier, removed=[name, version])
        self._marks = marks

    def _changed(self, identifier: int, name: str, version: int) -> None:
        try:
            if version == 0:
                self._say(identifier, uses=[name, self._repository.in_use(name)])
                return
            entry = self._repository.read(name, version)
        except CwdError as error:
            self._say(identifier, bad=error.text, code=int(error.code))
            if version:
                self._say(identifier, removed=[name, version])
            return
        program = entry.manifest.program_hash
        if program not in self._program_marks:
            self._program_marks[program] = self._repository.program_mark(program), entry
        self._describe(identifier, entry, in_use=False)

    def _say_program(self, identifier: int, entry: Any) -> None:
        """The program's profiles have changed."""
        try:
            profiles = self._read_profiles(entry.manifest.program_hash)
            self._say(identifier, program=_program_facts(entry.manifest, profiles))
        except CwdError as error:
            self._say(identifier, bad=f"{entry.manifest.key}: {error.text}", code=int(error.code))

    def _describe(self, identifier: int, entry: Any, in_use: bool) -> None:
        manifest = entry.manifest
        profiles = self._profiles.get(manifest.program_hash)
        if profiles is None:
            profiles = self._profiles[manifest.program_hash] = self._read_profiles(manifest.program_hash)
        told = (manifest.program_hash, tuple(sorted(profiles)))
        try:
            if told not in self._told:
                self._say(identifier, program=_program_facts(manifest, profiles))
                self._told.add(told)
        except CwdError as error:
            self._say(identifier, bad=f"{manifest.key}: {error.text}", code=int(error.code))
            return
        self._say(identifier, model={
            "name": manifest.name, "version": manifest.version, "program": manifest.program_hash,
            "image": manifest.image_hash, "image_bytes": manifest.image_bytes, "manifest": manifest.manifest_map(),
            "in_use": in_use,
        })

    def _read_profiles(self, program_hash: bytes) -> dict[str, Any]:
        """`{kind: {"exec": [[batch, size class, ns], ...], "load_ns_per_page", "page_bytes"}}` of the usable profiles."""
        from cwd.models import profile

        found = {}
        for kind in self._repository.profiled_kinds(program_hash):
            try:
                value = profile.read(self._repository, program_hash, kind)
            except CwdError as error:
                LOG.warning("%s", error.text)
                continue
            found[kind] = {"exec": [[row["batch"], row["size_class"], row["median_ns"]] for row in value["exec"]],
                           "load_ns_per_page": value["load_ns_per_page"], "page_bytes": value["page_bytes"]}
        return found


def shape_facts(spec: Any) -> dict[str, Any]:
    """What `shapes.set_shape` needs of a spec, as plain data; raises `CwdError` (BAD_MODEL) where a row has no room for it."""
    terms = spec.payload_terms()
    if len(terms) > TERMS_MAX or len(spec.size_classes) > CLASSES_MAX:
        raise CwdError(
            f"a program of {len(terms)} inputs and {len(spec.size_classes)} size classes; at most {TERMS_MAX} and "
            f"{CLASSES_MAX} are served", code=Code.BAD_MODEL)
    return {
        "axes": len(spec.axes),
        "exact": spec.padding == "exact",
        "terms": [[coefficient, list(exponents)] for coefficient, exponents in terms],
        "classes": [list(spec.class_dims(index)) for index in range(len(spec.size_classes))],
    }


def _program_facts(manifest: Any, profiles: dict[str, Any]) -> dict[str, Any]:
    return {"hash": manifest.program_hash, "batches": list(manifest.batch_sizes), "profiles": profiles,
            "shape": shape_facts(manifest.program)}


def main() -> int:
    set_nice(0)  # the controller's own is not for what can wait
    log_to_stderr("cwd controller: %(message)s")
    try:
        _Answerer(sys.argv[1]).run()
    except CwdError as error:
        LOG.error("%s", error.text)
        return 1
    except (BrokenPipeError, KeyboardInterrupt):
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
