"""The specification's tables against the code: a field, number, bound, code or state that differs in one fails here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cwd.client.session import Session, State
from cwd.errors import SENTENCES, Code
from cwd.net import route
from cwd.units import NS_PER_MS
from cwd.wire import codec, messages
from cwd.wire.messages import BY_TYPE, MAGIC, MESSAGES, Role, Type
from cwd.wire.schema import canonical_bytes

SPEC = Path(__file__).resolve().parents[1] / "proto_spec"
TEXTS = {path.name: path.read_text() for path in SPEC.glob("*.md")}


def rows(text: str) -> list[list[str]]:
    """The body rows of every table in the text, cells stripped of spaces and backquotes."""
    found = []
    for line in text.splitlines():
        if line.startswith("|") and not set(line) <= set("|-"):
            found.append([cell.strip().strip("`") for cell in line.strip().strip("|").split("|")])
    return found


def section(file: str, heading: str) -> str:
    """The text under a heading, up to the next one of its level or above."""
    lines = TEXTS[file].splitlines()
    start = lines.index(heading)
    level = len(heading) - len(heading.lstrip("#"))
    end = next((i for i in range(start + 1, len(lines)) if re.match(rf"#{{1,{level}}} ", lines[i])), len(lines))
    return "\n".join(lines[start + 1:end])


def test_the_messages_are_the_tables() -> None:
    headings = re.findall(r"^### ([A-Z_]+) \((\d+)\)$", TEXTS["messages.md"], re.M)
    assert [(name, int(number)) for name, number in headings] == [(m.type.name, m.type.value) for m in MESSAGES]
    assert len(set(Type)) == len(MESSAGES)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.type.name)
def test_message(message: messages.Message) -> None:
    text = section("messages.md", f"### {message.type.name} ({message.type.value})")
    head, *body = rows(text)
    assert head == ["field", "type", "unit", "meaning"]
    assert [(name, kind) for name, kind, _, _ in body] == [(field.name, field.type) for field in message.fields]
    for (name, _, unit, meaning), field in zip(body, message.fields, strict=True):
        assert meaning.replace("\\", "") == field.doc, f"{name}: the table and the code describe it differently"
        suffix = field.name.rpartition("_")[2]
        assert unit == suffix if suffix in ("ns", "ms") else unit not in ("ns", "ms"), f"{name}: unit {unit}"
    assert f"Sender: {message.sender}. Receiver: {message.receiver}. Payload frames: {message.payload}." in text


def test_every_field_type_is_in_the_grammar() -> None:
    grammar = section("README.md", "### 3.1 Grammar")
    fields = re.search(r"^field +=(.*)$", grammar, re.M)
    assert fields is not None
    kinds = {kind.strip() for kind in fields[1].split("/")}
    assert {field.type for message in MESSAGES for field in message.fields} <= kinds
    assert all(re.search(rf"^{kind} +=", grammar, re.M) for kind in kinds)
    assert "%x" + "CE %x" + ".".join(f"{byte:02X}" for byte in MAGIC.to_bytes(4)) in grammar


def test_bounds() -> None:
    found = {name: int(value) for name, value in rows(section("README.md", "### 3.2 Canonical and other forms"))[1:]}
    assert list(found.values()) == [messages.FRAME0_BYTES_MAX, messages.STR_BYTES_MAX, messages.ROWS_MAX,
                                    messages.MAP_DEPTH_MAX, messages.MAP_NODES_MAX]


def test_versions_and_roles() -> None:
    assert f"| Version | {messages.VERSION_MAJOR}.{messages.VERSION_MINOR} |" in TEXTS["README.md"]
    told = dict(row[1:] for row in [re.split(r"(\d+) ", part) for part in
                BY_TYPE[Type.HELLO].fields[1].doc.split(", ")])
    assert {int(number): name.upper() for number, name in told.items()} == {role.value: role.name for role in Role}
    assert {row[0] for row in rows(section("README.md", "## 2 Architecture"))[1:]} == {
        "controller", *(role.name.lower() for role in Role)}


def test_codes() -> None:
    told = [(int(number), name, text) for number, name, text in rows(TEXTS["codes.md"]) if number != "code"]
    assert told == [(code.value, code.name, SENTENCES[code]) for code in Code]


def test_every_code_that_the_text_names_exists() -> None:
    words = {name for text in TEXTS.values() for name in re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", text)}
    known = {code.name for code in Code} | {kind.name for kind in Type} | {
        "ZMQ_ROUTING_ID", "ZMQ_ROUTER_MANDATORY", "ZMQ_IMMEDIATE", "ZMQ_LINGER", "ZMQ_MAXMSGSIZE", "CLOCK_MONOTONIC"}
    assert words <= known, words - known


def test_states_are_closed() -> None:
    """Whatever state a table leads to has rows of its own, or is an end."""
    for heading in ("## 5.1 A client, or an admin", "## 5.2 The controller, for each connection", "## 5.3 A worker",
                    "## 5.8 Several endpoints"):
        table = [row for row in rows(section("peers.md", heading)) if len(row) == 4 and row[0] != "state"]
        states = {row[0] for row in table}
        elsewhere = {"START", "NEXT"} if heading == "## 5.8 Several endpoints" else set()
        assert len(table) > 5 and {row[3] for row in table} <= states | {"END", "FAILED"} | elsewhere


def test_timers_of_several_endpoints() -> None:
    table = [row for row in rows(section("peers.md", "## 5.8 Several endpoints")) if len(row) == 3 and row[0] != "timer"]
    assert [value for _, value, _ in table] == [
        f"{route.PATIENCE_NS // NS_PER_MS} ms", f"{route.PATIENCE_MAX_NS // NS_PER_MS} ms", str(route.ROUNDS),
        str(route.QUICKEST), f"{route.PAUSE_NS // NS_PER_MS} ms"]


class Peer:
    """A session with two endpoints at one point of the table of section 5.8; `at` is its time."""

    def __init__(self, state: str) -> None:
        self.session = Session(name="t", boot=bytes(16), host=bytes(16), now_ns=0, endpoints=("a", "b"))
        self.at = 0
        if state == "READY":
            self.welcome(5)
        else:
            assert state == "GREETING"
            self.session._route.newest.epoch = 5

    def hear(self, kind: Type, **fields: Any) -> None:
        self.session.receive([codec.encode(kind, **fields)], self.at)

    def welcome(self, epoch: int) -> None:
        self.hear(Type.WELCOME, minor=0, epoch=epoch, host=bytes(16), now_ns=0, credits=1, heartbeat_ms=100, lost_ms=400,
                  payload_bytes_max=1)

    def error(self, code: Code) -> None:
        self.hear(Type.ERROR, code=int(code), re_type=1, re_id=0, text="")

    def turn(self, *, sends: bool) -> None:
        """The time of the next timer comes; what is to be sent is, if there is a connection that `sends`."""
        self.at = self.session.next_timer()
        if sends and self.session.outbox:
            self.session.outbox.clear()
            if self.session.greeting:
                self.session.greeted(self.at - 1)
        self.session.tick(self.at)

    def settled(self, sends: bool) -> str:
        """The state that it comes to: what the table calls NEXT and START are attempts at another and the same endpoint."""
        generation = self.session.generation
        while self.session.state is State.CONNECTING and self.session.generation == generation == 1:
            self.turn(sends=sends)
        if self.session.state is not State.CONNECTING:
            return self.session.state.name
        return "START" if self.session.endpoint == "a" else "NEXT"


#: events of the table: what happens to a `Peer`, and whether there is a connection that takes what it sends
EVENTS = {
    "no connection for `patience`": (lambda peer: None, False),
    "a connection, but no answer to HELLO for `patience`": (lambda peer: None, True),
    "WELCOME with an epoch below the highest seen": (lambda peer: peer.welcome(4), True),
    "WELCOME with any other epoch": (lambda peer: peer.welcome(5), True),
    "ERROR UNSUPPORTED_VERSION": (lambda peer: peer.error(Code.UNSUPPORTED_VERSION), True),
    "ERROR of another code": (lambda peer: peer.error(Code.PEERS_FULL), True),
    "ERROR NOT_INTRODUCED": (lambda peer: peer.error(Code.NOT_INTRODUCED), True),
    "GOODBYE": (lambda peer: peer.hear(Type.GOODBYE, code=0, text=""), True),
    "silence for `lost_ms`": (lambda peer: [peer.turn(sends=True) for _ in range(9) if peer.session.generation == 1], True),
    "a broken connection": (lambda peer: peer.session.disconnected(peer.at), False),
}


def test_several_endpoints_are_followed_as_the_table_says() -> None:
    table = [row for row in rows(section("peers.md", "## 5.8 Several endpoints")) if len(row) == 4 and row[0] != "state"]
    assert {row[1] for row in table} == {event.strip("`") for event in EVENTS}
    for state, event, _, then in table:
        happens, sends = next(value for name, value in EVENTS.items() if name.strip("`") == event)
        peer = Peer(state)
        call = peer.session.lookup(peer.at, "m", 0, 1 << 60) if state == "READY" else None
        happens(peer)
        assert peer.settled(sends) == then, f"{state}, {event}"
        assert call is None or call.error.code == Code.CONTROLLER_LOST


def test_maps_in_the_transcripts_are_the_tables() -> None:
    transcripts = json.loads((SPEC / "vectors" / "transcripts.json").read_text())["transcripts"]
    steps = [step for transcript in transcripts for step in transcript["steps"]]
    keys = {heading: [row[0] for row in rows(section("tables.md", heading)) if row[0] not in ("key", "verb")]
            for heading in ("## 6 Capabilities of a worker", "## 7 The manifest", "## 8 Admin verbs")}
    for step in steps:
        if step["type"] == "HELLO" and step["from"] == "worker":
            assert set(step["fields"]["caps"]) == set(keys["## 6 Capabilities of a worker"])
        if step["type"] == "MODEL":
            manifest = step["fields"]["manifest"]
            told = keys["## 7 The manifest"]
            assert list(manifest) == told[:8]
            assert all(list(tensor) == told[8:] for tensor in manifest["inputs"] + manifest["outputs"])
        if step["type"] == "ADMIN" and step["fields"]["verb"] != "dance":
            assert step["fields"]["verb"] in keys["## 8 Admin verbs"]


def test_the_worked_example_is_the_transcript() -> None:
    blocks = section("README.md", "## 13 A worked example").split("```")[1].strip().split("\n\n")
    transcripts = json.loads((SPEC / "vectors" / "transcripts.json").read_text())["transcripts"]
    steps = next(transcript for transcript in transcripts if transcript["name"] == "client-infer")["steps"]
    assert len(blocks) == len(steps)
    for block, step in zip(blocks, steps, strict=True):
        title, *lines = block.splitlines()
        assert title == f"{step['from']} -> {step['to']}: {step['type']}"
        head = "".join("".join(re.match(r" +((?:[0-9a-f]{2,} ?)*)", line)[1].split())  # type: ignore[index]
                       for line in lines if "+" not in line and not line.endswith(":"))
        payload = [line.split()[1] for line in lines if line.startswith("  + ")]
        assert [head, *payload] == step["frames"]


def test_hot_messages_have_the_size_of_their_canonical_form() -> None:
    positive = json.loads((SPEC / "vectors" / "positive.json").read_text())["positive"]
    for vector in positive:
        message = BY_TYPE[Type[vector["type"]]]
        if message.hot:
            extra = 16 * len(vector["fields"].get("rows", []))
            assert len(vector["frame"]) // 2 == canonical_bytes(message.type) + extra
