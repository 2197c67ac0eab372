"""Faults by a seed on a real cluster of namespaced hosts, and whether every promise held.

Two controllers and etcd, workers, a gateway and clients run on hosts of their own, with clocks of their own, over tcp with
keys. Processes are killed and started again, ways between hosts are slow, stall or break, one client reads late, one floods.
Every request must have exactly one outcome, none an answer after its deadline on its client's own clock; goodput must be
back at 95 % of its former level within 5 s after each fault, and a dead leader's successor serve within 3 s. Needs root,
iproute2 and etcd (Debian's etcd-server). Prints a table, with --json one JSON object, and exits with 1 if anything broke.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from cwd.errors import CwdError
from tools.chaos_run import report, verdict
from tools.chaos_run.daemon import ROOT, Daemon
from tools.chaos_run.faults import Done, Faults
from tools.chaos_run.ledger import Ledger, read
from tools.chaos_run.schedule import Fault, Kind, schedule
from tools.chaos_run.testbed import CLIENTS_PORT, HTTP_PORT, LINKED, WORKERS, Testbed
from tools.hosts import unavailable

#: requests per second of the sound clients: at 60 a window of goodput is a second
RATES = {"native": 80.0, "http": 60.0, "slow": 40.0, "flood": 1500.0}
SLO_S = 0.5
#: in the folder of every run: what was to happen when
PLAN = "plan.txt"
#: clients start, connect and look models up before the run begins
START_S = 4.0
#: until the last requests have ended
TAIL_S = 15.0


def missing() -> str | None:
    """Why this cannot run here; None if it can."""
    if shutil.which("etcd") is None:
        return "chaos needs etcd (Debian's etcd-server)"
    return unavailable()


class Run:
    """One run, from hosts to facts."""

    def __init__(self, folder: Path, seed: int, seconds: float, overlap: bool = False, etcd: bool = False) -> None:
        self.folder, self.seed, self.seconds, self.overlap = folder, seed, seconds, overlap
        self.schedule = schedule(seed, seconds, WORKERS, LINKED, overlap, etcd)
        self.broken: list[str] = []
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - self._began:6.1f} s] {text}\n")
        sys.stderr.flush()

    def run(self) -> dict[str, Any]:
        """The facts, with the promises that were broken. Raises `CwdError` if the cluster does not come up, or the folder
        holds what no earlier run has left there."""
        make_empty(self.folder)
        (self.folder / PLAN).write_text("".join(f"{line}\n" for line in planned(self.schedule)))
        with Testbed(self.folder, self.seed, self.say) as testbed:
            begin_wall_ns = time.time_ns() + round(START_S * 1e9)
            clients = self._clients(testbed, begin_wall_ns)
            faults = Faults(testbed, self.schedule, begin_wall_ns, self.say)
            cpu_s = testbed.cpu_s()
            faults.run(self.seconds, lambda: self._look(testbed, clients))
            cores = (testbed.cpu_s() - cpu_s) / (self.seconds + START_S)
            self._end(testbed, clients)
        ledgers = {name: read(name, self._ledger(name).read_text().splitlines()) for name in RATES}
        return self._facts(faults.done, ledgers, begin_wall_ns, cores)

    def _clients(self, testbed: Testbed, begin_wall_ns: int) -> dict[str, Daemon]:
        self.say("clients")
        native = testbed.endpoints("native", CLIENTS_PORT)
        gateway = f"{testbed.host('gateway').address}:{HTTP_PORT}"
        about: dict[str, tuple[str, dict[str, Any]]] = {
            "native": ("native", {"endpoint": native}), "http": ("http", {"endpoint": gateway, "key": testbed.token}),
            "slow": ("unruly", {"manner": "slow", "phases": self._phases(Kind.SLOW_CLIENT)}),
            "flood": ("unruly", {"manner": "flood", "phases": self._phases(Kind.FLOOD)})}
        found = {}
        for name, (module, options) in about.items():
            if name != "http":
                keys = testbed.keys(name)
                options = {"endpoint": testbed.endpoints(name, CLIENTS_PORT), "key": keys["CWD_KEY"],
                           "server_key": keys["CWD_SERVER_KEY"], **options}
            found[name] = testbed.client(
                name, module, ledger=self._ledger(name), examples=self.folder / "examples.json", begin_wall_ns=begin_wall_ns,
                seconds=self.seconds, rate=RATES[name], slo_s=SLO_S, **options)
        return found

    def _phases(self, kind: Kind) -> str:
        return ",".join(f"{fault.at_s}:{fault.length_s}" for fault in self.schedule if fault.kind is kind)

    def _look(self, testbed: Testbed, clients: dict[str, Daemon]) -> None:
        """Daemons that ended although nobody killed them are broken promises; a supervisor starts them again."""
        testbed.cpu_s()
        for daemon in [*testbed.daemons.values(), *clients.values()]:
            if not daemon.alive and not daemon.killed and (daemon.name in testbed.daemons or daemon.wait(0) != 0):
                self._break(f"{daemon.name} ended by itself: {daemon.last_words()}")
                if daemon.name in testbed.daemons:
                    daemon.start()
                else:
                    daemon.killed = True

    def _end(self, testbed: Testbed, clients: dict[str, Daemon]) -> None:
        """Wait for the clients, and see that nothing is left over at the controller."""
        until_s = time.monotonic() + TAIL_S
        for client in clients.values():
            if client.wait(until_s) != 0:
                self._break(f"{client.name} did not end in an orderly way: {client.last_words()}")
        leader = testbed.leader()
        status = testbed.status(leader) if leader else {}
        if not status:
            self._break("no controller serves at the end")
        elif status["in_flight"] or status["held_bytes"]:
            self._break(f"left over at {leader}: {status['in_flight']} requests, {status['held_bytes']} bytes")
        elif len(status["workers"]) != len(WORKERS):
            self._break(f"{len(status['workers'])} of {len(WORKERS)} workers are there at the end")

    def _break(self, line: str) -> None:
        self.broken.append(line)
        self.say(line)

    def _ledger(self, name: str) -> Path:
        return self.folder / f"ledger-{name}.jsonl"

    def _facts(self, done: list[Done], ledgers: dict[str, Ledger], begin_wall_ns: int, cores: float) -> dict[str, Any]:
        facts = verdict.judge(done, ledgers, begin_wall_ns, self.seconds, self.overlap)
        facts["broken"] += self.broken
        groups = [verdict.group_of(ledgers[name], begin_wall_ns) for name in verdict.JUDGED]
        report.picture(self.folder / "chaos.png", groups, facts["faults"], self.seconds,
                       f"cwd chaos, seed {self.seed}: {len(done)} faults in {self.seconds:g} s, SLO {SLO_S:g} s; "
                       f"{len(facts['broken'])} promises broken")
        return {"seed": self.seed, "seconds": self.seconds, "cores": round(cores, 2), **facts,
                "picture": str(self.folder / "chaos.png")}


def make_empty(folder: Path) -> None:
    """Make the folder, or remove what an earlier run left in it. Raises `CwdError` if it holds anything else."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / PLAN).exists():
            raise CwdError(f"{folder}: there is something that no run has left")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)


def planned(faults: list[Fault]) -> list[str]:
    return [f"{fault.at_s:7.2f} s  {fault.kind:12s} {fault.target:10s} {fault.length_s:.2f} s" for fault in faults]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tools/chaos", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the run, 60 at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--overlap", action="store_true", help="faults need not wait until the one before is over")
    parser.add_argument("--etcd", action="store_true", help="etcd is killed, too, and started again before a lease is over")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--out", type=Path, default=ROOT / "run" / "chaos",
                        help="folder of logs, ledgers and the picture; what an earlier run left there goes")
    given = parser.parse_args(arguments)
    if (why := missing()) is not None:
        sys.exit(f"chaos: {why}")
    try:
        run = Run(given.out, given.seed, given.seconds, given.overlap, given.etcd)
        for line in planned(run.schedule):
            run.say(line)
        facts = run.run()
    except (CwdError, ValueError) as error:
        sys.exit(f"chaos: {error}")
    run.say(f"{facts['cores']:g} cores were used; {facts['picture']}")
    lines = [json.dumps(facts)] if given.json else [*report.table(facts["faults"]), *facts["broken"]]
    sys.stdout.write("\n".join(lines) + "\n")
    if given.json:
        sys.stderr.write("".join(f"broken: {line}\n" for line in facts["broken"]))
    return 1 if facts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
