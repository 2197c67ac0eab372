"""The elector: a process beside the controller that takes part in the election on etcd for it.

The controller's one thread must not wait for anybody; this process does, one call at a time. What to ask, and what an
answer means, is `Election`'s; here are etcd's keys and answers, and the pipes. It hears when the controller turns (an int:
when) or wants to lead no longer (None), and says what the controller should know as [name of the news, fields...]. When its
stdin ends the controller has died: it gives the lease back before it ends, so that nobody has to wait for that to run out.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import secrets
import select
import sys
import time
from time import monotonic_ns
from typing import Any
from urllib.parse import urlsplit

import msgpack

from cwd.controller.election import Answer, Call, Candidate, Election, Grant, Granted, Led, Look, Renew, Revoke, Take, Trouble, View
from cwd.net.journal import log_to_stderr
from cwd.net.priority import set_nice
from cwd.units import NS_PER_S, format_duration

LOG = logging.getLogger("cwd.controller")

_CHUNK_BYTES = 4096
#: the reason that leaves no time to ask another server at once
SLOW = "no answer in time"
#: what etcd says where it wants to know who asks
_REFUSALS = ("permission denied", "user name is empty", "invalid auth token", "authentication")


class Unanswered(Exception):
    """etcd did not answer, or not as it should; the text says why, the same for the same reason."""


class Etcd:
    """The calls of an election, on one of several etcd servers: the next one when one fails."""

    def __init__(self, urls: list[str], cluster: str, ca: str, cert: str, key: str, patience_s: float) -> None:
        import requests
        from etcd3gw.client import Etcd3Client

        session = requests.Session()
        session.trust_env = False  # no proxy on the way, and no list of certificates before the one that was given
        session.verify = ca or True
        session.cert = (cert, key) if cert else None
        self._urls, self._at = urls, 0
        self._clients = []
        for url in urls:
            parts = urlsplit(url)
            self._clients.append(Etcd3Client(
                host=parts.hostname or "", port=parts.port or 2379, protocol=parts.scheme, session=session, timeout=patience_s))
        self._folder = f"/cwd/{cluster}/"
        self.leader, self.epoch = f"{self._folder}leader", f"{self._folder}epoch"

    def call(self, call: Call) -> Answer:
        """The answer, of the first server that has one. Raises `Unanswered` when all have failed, or one has taken its time."""
        for _ in self._urls:
            answer, why = self._try(call)
            if not why:
                return answer
            url = self._urls[self._at]
            self._at = (self._at + 1) % len(self._urls)
            if why == SLOW:
                break
        raise Unanswered(f"{url}: {why}")

    def _try(self, call: Call) -> tuple[Answer, str]:
        """The answer of the server that is asked at present, or why there is none."""
        import requests
        from etcd3gw.exceptions import Etcd3Exception

        try:
            return self._ask(call), ""
        except Etcd3Exception as error:
            said = f"{error.detail_text or ''} {error}"
            return None, "" if isinstance(call, Revoke) and "lease not found" in said else self._why(said)
        except requests.exceptions.RequestException as error:
            return None, self._why(str(error))
        except (KeyError, TypeError, ValueError) as error:
            return None, f"it answers what etcd does not ({type(error).__name__}: {error})"

    @staticmethod
    def _why(said: str) -> str:
        lower = said.lower()
        if any(text in lower for text in _REFUSALS):
            return "etcd refuses: it asks for a user, or this one may not write there"
        if "certificate" in lower or "ssl" in lower:
            return "no trust over TLS: see --etcd-ca, --etcd-cert and --etcd-key"
        if "timed out" in lower or "timeout" in lower:
            return SLOW
        if "refused" in lower or "connection" in lower or "resolve" in lower:
            return "etcd is not reachable"
        return " ".join(said.split())[:200]

    def _ask(self, call: Call) -> Answer:
        client = self._clients[self._at]

        def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
            return dict(client.post(client.get_url(path), json=body))

        if isinstance(call, Look):
            end = self._folder[:-1] + chr(ord("/") + 1)
            return self._view(post("/kv/range", {"key": _packed(self._folder), "range_end": _packed(end)}).get("kvs", []))
        if isinstance(call, Grant):
            return int(post("/lease/grant", {"TTL": call.ttl_s, "ID": call.lease})["TTL"])
        if isinstance(call, Renew):
            return int(post("/lease/keepalive", {"ID": call.lease})["result"].get("TTL", 0))
        if isinstance(call, Revoke):
            post("/lease/revoke", {"ID": call.lease})
            return None
        return bool(post("/kv/txn", self._take(call)).get("succeeded", False))

    def _view(self, found: list[dict[str, Any]]) -> View:
        by_key = {base64.b64decode(item["key"]).decode(): item for item in found}
        leader, epoch = by_key.get(self.leader, {}), by_key.get(self.epoch, {})
        return View(
            base64.b64decode(leader.get("value", "")).decode(errors="replace") or "?" if leader else "",
            int(leader.get("lease", 0)), int(base64.b64decode(epoch.get("value", "")) or 0), int(epoch.get("mod_revision", 0)))

    def _take(self, call: Take) -> dict[str, Any]:
        """The transaction: nobody leads, and the epoch is the one that was seen."""
        leader, epoch = _packed(self.leader), _packed(self.epoch)
        return {
            "compare": [
                {"key": leader, "result": "EQUAL", "target": "CREATE", "create_revision": 0},
                {"key": epoch, "result": "EQUAL", "target": "MOD", "mod_revision": call.epoch_revision}],
            "success": [
                {"request_put": {"key": leader, "value": _packed(call.name), "lease": call.lease}},
                {"request_put": {"key": epoch, "value": _packed(str(call.epoch))}}],
            "failure": [],
        }


def _packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Elector:
    """The process: an `Election`, an `Etcd`, and the pipes to the controller."""

    def __init__(self, election: Election, etcd: Etcd) -> None:
        self._election, self._etcd = election, etcd
        self._unpacker = msgpack.Unpacker()
        self._listens = True
        self._trouble = ""

    def run(self) -> None:
        """Until the controller is gone, or no longer leads, and the lease is given back."""
        election = self._election
        while not election.ended:
            call = election.next(monotonic_ns(), time.time_ns())
            if call is not None:
                try:
                    answer = self._etcd.call(call)
                except Unanswered as error:
                    election.failed(monotonic_ns(), str(error))
                else:
                    election.answered(monotonic_ns(), answer)
            self._say()
            if not election.ended:
                self._hear(0 if call is not None else max(election.due_ns - monotonic_ns(), 0))

    def _hear(self, wait_ns: int) -> None:
        """What the controller has said, waiting that long for it."""
        if not self._listens:
            time.sleep(wait_ns / NS_PER_S)
            return
        if not select.select([0], [], [], wait_ns / NS_PER_S)[0]:
            return
        data = os.read(0, _CHUNK_BYTES)
        if not data:
            self._listens = False
            self._election.leave()
            return
        self._unpacker.feed(data)
        for told in self._unpacker:
            if told is None:
                self._election.leave()
            else:
                self._election.beat(told)

    def _say(self) -> None:
        """Pass the news on, and log what an operator should know."""
        for news in self._election.news:
            if isinstance(news, Granted):
                LOG.warning("the lease is %s: etcd grants no other for the %s that were asked for",
                            format_duration(news.ttl_ns), format_duration(news.asked_ns))
            elif isinstance(news, Trouble):
                if not self._trouble or not news.why:  # a line when it begins, and one when it is over
                    LOG.warning("election: %s", news.why or "etcd answers again")
                self._trouble = news.why
            if self._listens:
                self._write(msgpack.packb(said(news)))
        self._election.news.clear()

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(1, data):]
        except BrokenPipeError:
            self._listens = False
            self._election.leave()


def said(news: Any) -> list[Any]:
    """News as they go through the pipe."""
    return [type(news).__name__, *vars(news).values()]


def main() -> int:
    set_nice(0)  # the controller's own is not for what can wait
    log_to_stderr("cwd controller: %(message)s")
    given = json.loads(sys.argv[1])
    held = Led(*given["held"]) if given["held"] else None
    election = Election(Candidate(**given["me"]), lambda: secrets.randbits(62) + 1, held)
    etcd = Etcd(given["urls"], given["cluster"], given["ca"], given["cert"], given["key"], election.patience_ns / NS_PER_S)
    try:
        Elector(election, etcd).run()
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
