"""Messages printed by the grammar: every vector, the specification's own example, and what passes a tap."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import zmq

pytest.importorskip("click")

from cwd.cli.main import run  # noqa: E402
from cwd.cli.trace import read_messages  # noqa: E402
from cwd.errors import CwdError  # noqa: E402
from cwd.observe.tap import Tap  # noqa: E402
from cwd.observe.wire import message_facts, message_lines  # noqa: E402
from cwd.wire.codec import encode  # noqa: E402
from cwd.wire.messages import BY_TYPE, Type  # noqa: E402

SPEC = Path(__file__).resolve().parents[2] / "proto_spec"


def bytes_of(lines: list[str]) -> str:
    """The hex of frame 0 that the lines show, put together again."""
    return "".join("".join(re.match(r" +((?:[0-9a-f]{2,} ?)*)", line)[1].split())  # type: ignore[index]
                   for line in lines[1:] if not line.startswith("  +") and not line.endswith(":"))


@pytest.mark.parametrize("file", ["positive.json", "loose.json"])
def test_every_vector_is_shown_whole(file: str) -> None:
    vectors = json.loads((SPEC / "vectors" / file).read_text())[file.removesuffix(".json")]
    for vector in vectors:
        frame = bytes.fromhex(vector["frame"])
        lines = message_lines([frame])
        assert lines[0] == vector["type"] and bytes_of(lines) == frame.hex(), vector["name"]
        shown = [line.split(" = ")[0].split()[-1] for line in lines[2:] if " = " in line]
        assert shown == [field.name for field in BY_TYPE[Type[vector["type"]]].fields], vector["name"]
        assert list(message_facts([frame])["fields"]) == shown


def test_frames_at_fault_are_shown_with_their_code() -> None:
    for vector in json.loads((SPEC / "vectors" / "negative.json").read_text())["negative"]:
        frame = bytes.fromhex(vector["frame"])
        lines = message_lines([frame], "somebody")
        assert lines[0].startswith(f"somebody: {vector['error']}, ") and "".join(map(str.strip, lines[1:])) == frame.hex()
        assert message_facts([frame])["error"] == vector["error"]
    assert message_lines([])[0].startswith("MALFORMED")


def test_the_specification_s_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The same bytes before the same fields as the example that the specification has, written without this."""
    example = (SPEC / "README.md").read_text().split("## 13 A worked example")[1].split("```")[1].strip().split("\n\n")
    assert run(["trace", "--wire", str(SPEC / "vectors" / "transcripts.json"), "--limit", str(len(example))]) == 0
    for block, wanted in zip(capsys.readouterr().out.strip().split("\n\n"), example, strict=True):
        ours, theirs = block.splitlines(), wanted.splitlines()
        assert ours[:2] == theirs[:2] and bytes_of(ours) == bytes_of(theirs)
        numbers = [line for line in theirs if re.search(r" = [0-9]+$", line)]
        assert set(numbers) <= set(ours)


def test_files_of_hex_and_what_is_wrong_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "frames"
    path.write_text(f"# a cancel, and a reply with its payload\n{encode(Type.CANCEL, request=5).hex()}\n"
                    f"{encode(Type.GOODBYE, code=0, text='bye').hex()} 00ff\n")
    assert run(["trace", "--wire", str(path), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["type"] for each in found] == ["CANCEL", "GOODBYE"]
    assert found[0]["fields"] == {"request": 5} and found[1]["frames"][1] == "00ff"
    for text in ("zz\n", '{"frame": 5}', "[{"):
        path.write_text(text)
        with pytest.raises(CwdError, match="frames"):
            list(read_messages(path))
    assert run(["trace", str(path)]) == 2 and run(["trace", "--wire"]) == 2


def test_a_tap_passes_everything_on_and_keeps_peers_apart(tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []
    context = zmq.Context()
    tap = Tap(f"ipc://{tmp_path}/tap", f"ipc://{tmp_path}/real",
              lambda title, frames: seen.append((title, message_facts(frames)["type"])))
    try:
        controller = context.socket(zmq.ROUTER)
        controller.bind(f"ipc://{tmp_path}/real")
        peers = [context.socket(zmq.DEALER) for _ in range(2)]
        keys = {}
        for number, peer in enumerate(peers, 1):
            peer.connect(f"ipc://{tmp_path}/tap")
            peer.send_multipart([encode(Type.CANCEL, request=number), b"payload"])
            while not controller.poll(0):
                tap.turn(20)
            key, frame, payload = controller.recv_multipart()
            assert payload == b"payload"
            keys[message_facts([frame])["fields"]["request"]] = key
        assert len(set(keys.values())) == 2
        for number, peer in enumerate(peers, 1):
            controller.send_multipart([keys[number], encode(Type.GOODBYE, code=0, text=str(number))])
            while not peer.poll(0):
                tap.turn(20)
            assert message_facts(peer.recv_multipart())["fields"]["text"] == str(number)
        assert sorted(seen) == [("controller -> peer 1", "GOODBYE"), ("controller -> peer 2", "GOODBYE"),
                                ("peer 1 -> controller", "CANCEL"), ("peer 2 -> controller", "CANCEL")]
        with pytest.raises(CwdError, match="in use"):
            Tap(f"ipc://{tmp_path}/tap", "ipc://nowhere", lambda title, frames: None)
    finally:
        tap.close()
        context.destroy(0)


def test_a_tap_with_two_endpoints_passes_on_to_the_one_that_answers(tmp_path: Path) -> None:
    context = zmq.Context()
    tap = Tap(f"ipc://{tmp_path}/tap", f"ipc://{tmp_path}/gone,ipc://{tmp_path}/real", lambda title, frames: None)
    try:
        controller = context.socket(zmq.ROUTER)
        controller.bind(f"ipc://{tmp_path}/real")

        def peer() -> zmq.Socket:
            made = context.socket(zmq.DEALER)
            made.connect(f"ipc://{tmp_path}/tap")
            made.send(encode(Type.CANCEL, request=1))
            while not tap.turn(20):
                pass
            return made

        peer()
        assert not controller.poll(50), "the first one's messages wait where nobody is"
        for _ in range(2):  # the next peer's go to the other endpoint, and stay there once that has answered
            asking = peer()
            key = controller.recv_multipart()[0]
            controller.send_multipart([key, encode(Type.GOODBYE, code=0, text="")])
            while not asking.poll(0):
                tap.turn(20)
    finally:
        tap.close()
        context.destroy(0)
