"""The admin verbs: what an operator can ask a running controller, each in steps that never hold up a slice.

| verb | args | result |
|---|---|---|
| `status` | `after` int (optional) | `epoch`, `uptime_ns`, `counters`, `core`, `loop`, ..., `workers`, `next` (0 at the end) |
| `model.add` | `name`, `version` (0: newest) | `handle`, `ready` |
| `model.rm` | `name`, `version` (0: all) | `removed` |
| `model.ls` | `after` | `models` {key: {handle, ready, pages, copies, requests, ...}}, `next` |
| `model.use` | `name`, `version` | `version`, `before`: what the name stands for now, and did |
| `model.warm` | `name`, `version` | `copies`: on how many GPUs it is; if on none, one is asked to load it |
| `drain` | `on` | `queued` |
| `worker.drain` | `worker`: its number | `name`; it gets no more work, and a GOODBYE when it has none left |
| `shutdown` | -- | `queued`; then the daemon drains and ends, as for SIGTERM |

Counters are kept by the loop and only copied here; listings come in pages. Every command is a generator.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

from cwd.controller.feed import feed_wanted
from cwd.controller.host import FIRST_COUNTER, STATE, Host
from cwd.controller.outgoing import Outgoing, packed
from cwd.controller.reader import RepositoryReader
from cwd.controller.registry import ModelInfo, Registry
from cwd.controller.workers import Workers
from cwd.controller.writer import LogWriter
from cwd.core.world import COUNTERS, SLOT_MASK, World
from cwd.errors import SENTENCES, Code, CwdError
from cwd.net.clock import monotonic_ns
from cwd.wire.messages import Type

LOG = logging.getLogger("cwd.controller")

_NAMES = STATE.names or ()
COUNTER_NAMES = _NAMES[_NAMES.index(FIRST_COUNTER):]
_INNER = ("free_", "dirty_", "wanted_", "map_", "copy_map_", "outbox_", "timers_", "loads_", "sequence")
CORE_NAMES = tuple(name for name in COUNTERS.names or () if not name.startswith(_INNER))
#: rows of one answer: encoding them must fit into a chunk
WORKERS_PAGE = 4
MODELS_PAGE = 8

_ARGUMENTS = {
    "status": {"after"}, "model.add": {"name", "version"}, "model.rm": {"name", "version"}, "model.ls": {"after"},
    "model.use": {"name", "version"}, "model.warm": {"name", "version"}, "drain": {"on"}, "worker.drain": {"worker"},
}

Task = Iterator[None]


class Admin:
    """Answers ADMIN. `stop` and `drain` are the daemon's."""

    def __init__(self, host: Host, world: World, registry: Registry, workers: Workers, outgoing: Outgoing,
                 reader: RepositoryReader | None, log: LogWriter, loop: dict[str, int], stop: Callable[[], None]) -> None:
        self._host, self._world, self._registry, self._workers = host, world, registry, workers
        self._outgoing, self._reader, self._log, self._loop, self._stop = outgoing, reader, log, loop, stop
        self._start_ns = monotonic_ns()
        #: what the gate says of its lists, where keys are asked for
        self.keys: Callable[[], dict[str, Any]] | None = None
        self._verbs: dict[str, Callable[[int, int, dict[str, Any]], Task]] = {
            "status": self._status, "model.add": self._add, "model.rm": self._remove, "model.ls": self._list,
            "model.use": self._use, "model.warm": self._warm, "drain": self._drain, "worker.drain": self._drain_worker,
            "shutdown": self._shutdown,
        }
        #: questions to the repository's reader under way: id -> what to do with each answer
        self.waiting: dict[int, Callable[[dict[str, Any]], None]] = {}

    def command(self, key: int, fields: dict[str, Any]) -> Task:
        """The task that carries one command out and answers it; a fault of the asker's is answered, too."""
        request, verb = fields["request"], fields["verb"]
        try:
            steps = self._verbs.get(verb)
            if steps is None:
                raise CwdError(f"no verb {verb[:40]!r}", code=Code.UNKNOWN_VERB)
            unknown = fields["args"].keys() - _ARGUMENTS.get(verb, frozenset())
            if unknown:
                raise CwdError(f"{verb} has no argument {min(unknown)[:40]!r}", code=Code.BAD_ARGUMENT)
            yield from steps(key, request, fields["args"])
        except CwdError as error:
            self._fail(key, request, error)

    def _reply(self, key: int, request: int, result: dict[str, Any]) -> None:
        self._outgoing.send_map(key, Type.ADMIN_REPLY, "result", result, request=request, code=0, done=1)

    def _reply_in_steps(self, key: int, request: int, result: dict[str, Any]) -> Task:
        """`_reply` of a large result: packing it is a step, sending it the next."""
        yield
        value = packed(result)
        yield
        self._outgoing.send_packed(key, Type.ADMIN_REPLY, "result", value, request=request, code=0, done=1)

    def _fail(self, key: int, request: int, error: CwdError) -> None:
        self._outgoing.send(key, Type.ADMIN_REPLY, request=request, code=int(error.code), done=1,
                            result={"error": error.text[:300]})

    def _status(self, key: int, request: int, args: dict[str, Any]) -> Task:
        after = _argument(args, "after", int, 0)
        core = dict(zip(COUNTERS.names or (), self._world.counters[0].item(), strict=True))
        yield
        by_name = dict(zip(_NAMES, self._host.state[0].item(), strict=True))
        result: dict[str, Any] = {
            "epoch": by_name["epoch"], "uptime_ns": monotonic_ns() - self._start_ns,
            "draining": bool(by_name["draining"]), "in_flight": by_name["in_flight"],
            "peers": by_name["peers_used"], "held_bytes": by_name["held_bytes"],
            "counters": {name: by_name[name] for name in COUNTER_NAMES},
            "core": {name: core[name] for name in CORE_NAMES},
            "loop": dict(self._loop), "models": len(self._registry.models), "programs": len(self._registry.programs),
            "servable": self._registry.servable(),
        }
        if self.keys is not None:
            result["keys"] = self.keys()
        self._loop["python_recent_max_ns"] = 0  # since the last status
        yield
        workers: dict[str, Any] = {}
        order = sorted(self._workers.by_slot.values(), key=lambda worker: worker.gpu)
        rest = [worker for worker in order if worker.gpu >= after]
        yield
        for worker in rest[:WORKERS_PAGE]:
            peer, gpu = self._host.peers[worker.slot], self._world.gpus[worker.gpu]
            workers[str(worker.gpu)] = {
                "name": worker.name, "draining": worker.draining, "kind": worker.kind, "device": worker.device,
                "pages_total": worker.pages_total, "pages_free": int(gpu["pages_free"]), "models": int(gpu["copies"]),
                "queued": int(peer["queued"]), "actions": int(self._host.gpus[worker.gpu]["actions"]),
                "programs": len(worker.numbered), "heard_ns": monotonic_ns() - int(peer["last_heard_ns"]),
                "loop_max_ns": int(peer["loop_max_ns"]),
            }
        result["workers"] = workers
        result["next"] = rest[WORKERS_PAGE].gpu if len(rest) > WORKERS_PAGE else 0
        yield from self._reply_in_steps(key, request, result)

    def _list(self, key: int, request: int, args: dict[str, Any]) -> Task:
        page, following = self._registry.page(_argument(args, "after", int, 0), MODELS_PAGE)
        yield
        models = {}
        for model in page:
            row, core = self._host.models[model.handle & SLOT_MASK], self._world.models[model.handle & SLOT_MASK]
            ready = self._registry.ready(model)
            models[model.key] = {
                "handle": model.handle, "ready": ready, "pages": model.pages,
                "reason": "" if ready else self._registry.why_not_ready(model)[1].partition(": ")[2],
                "copies": int(core["copies_ready"]), "queued": int(core["queued"]), "requests": int(row["requests"]),
                "program": model.program.hash.hex(), "in_use": self._registry.find(model.name) is model,
            }
        yield from self._reply_in_steps(key, request, {"models": models, "next": following})

    def _add(self, key: int, request: int, args: dict[str, Any]) -> Task:
        name, version = _argument(args, "name", str), _argument(args, "version", int, 0)
        if self._reader is None:
            raise CwdError("this controller has no repository", code=Code.BAD_ARGUMENT)
        known = self._registry.find(name, version) if version else None
        if known is not None:
            raise CwdError(f"{known.key} is registered already", code=Code.MODEL_EXISTS)
        added: list[ModelInfo] = []

        def answer(told: dict[str, Any]) -> None:
            try:
                if "program" in told:
                    self._workers.program_changed(self._registry.add_program(told["program"]))
                elif "model" in told:
                    added.append(self.add_model(told["model"]))
                elif "error" in told or "bad" in told:
                    raise CwdError(told.get("error") or told["bad"], code=Code(told["code"]))
                elif added:
                    self._reply(key, request, {"handle": added[0].handle, "ready": self._registry.ready(added[0])})
            except CwdError as error:
                self.waiting[told["id"]] = lambda _: None
                self._fail(key, request, error)

        self.waiting[self._reader.ask("add", name, version)] = answer
        yield

    def add_model(self, facts: dict[str, Any]) -> ModelInfo:
        """Register a model that the reader has described, and have the workers know it."""
        model = self._registry.add_model(facts)
        self._log.name("model", model.handle, model.key)
        self._workers.model_added(model)
        return model

    def answered(self, told: dict[str, Any]) -> None:
        """An answer of the repository's reader, for whoever asked."""
        handler = self.waiting.get(told["id"])
        if handler is not None:
            handler(told)
        if "end" in told or "error" in told:
            self.waiting.pop(told["id"], None)

    def _remove(self, key: int, request: int, args: dict[str, Any]) -> Task:
        name, version = _argument(args, "name", str), _argument(args, "version", int, 0)
        gone = [model for model in self._registry.versions(name) if version in (0, model.version)]
        if not gone:
            raise CwdError(f"no model {name}" + f"/{version}" * bool(version) + " is registered", code=Code.UNKNOWN_MODEL)
        for model in gone:
            self._registry.remove_model(model)
            LOG.info("%s is no longer served", model.key)
            yield
        self._reply(key, request, {"removed": len(gone)})

    def _registered(self, args: dict[str, Any]) -> ModelInfo:
        """The model that is asked for; raises `CwdError` (UNKNOWN_MODEL, or why it cannot be served)."""
        name, version = _argument(args, "name", str), _argument(args, "version", int)
        model = self._registry.find(name, version)
        if model is None:
            raise CwdError(f"no model {name}/{version} is registered", code=Code.UNKNOWN_MODEL)
        if not self._registry.ready(model):
            code, why = self._registry.why_not_ready(model)
            raise CwdError(why, code=code)
        return model

    def _use(self, key: int, request: int, args: dict[str, Any]) -> Task:
        model = self._registered(args)
        yield
        before = self._registry.names.use(model)
        if before is not model:
            LOG.info("%s is in use, %s was before", model.key, before.key)
        self._reply(key, request, {"version": model.version, "before": before.version})

    def _warm(self, key: int, request: int, args: dict[str, Any]) -> Task:
        model = self._registered(args)
        yield
        feed_wanted(self._host, self._world, monotonic_ns(), model.handle)
        self._host.state[0]["fed"] = 1
        copies = int(self._world.models[model.handle & SLOT_MASK]["copies_ready"])
        self._reply(key, request, {"copies": copies})

    def _drain_worker(self, key: int, request: int, args: dict[str, Any]) -> Task:
        gpu = _argument(args, "worker", int)
        worker = next((found for found in self._workers.by_slot.values() if found.gpu == gpu), None)
        if worker is None:
            raise CwdError(f"no worker has number {gpu}", code=Code.BAD_ARGUMENT)
        self._workers.drain(worker)
        self._reply(key, request, {"name": worker.name})
        yield

    def _drain(self, key: int, request: int, args: dict[str, Any]) -> Task:
        on = _argument(args, "on", bool, True)
        self._host.state[0]["draining"] = on
        LOG.info("draining: new requests are refused" if on else "serving again")
        self._reply(key, request, {"queued": int(self._host.state[0]["in_flight"])})
        yield

    def _shutdown(self, key: int, request: int, args: dict[str, Any]) -> Task:
        self._reply(key, request, {"queued": int(self._host.state[0]["in_flight"])})
        self._stop()
        yield


def _argument(args: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """One argument, checked; raises `CwdError` (BAD_ARGUMENT)."""
    value = args.get(name, default)
    wrong = not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or not 0 <= value < 1 << 63))
    if value is None or wrong:
        raise CwdError(f"argument {name}: {SENTENCES[Code.BAD_ARGUMENT]}", code=Code.BAD_ARGUMENT)
    return value
