"""Logging as a daemon: fields for the journal where stderr leads there, lines elsewhere, and never a wait."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwd.net import journal
from cwd.net.journal import JournalHandler, leads_to_journal, priority


def fields_of(raw: bytes) -> dict[str, str]:
    """An entry of the journal's own protocol, taken apart as its documentation says."""
    found = {}
    while raw:
        line, _, raw = raw.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(raw[:8], "little")
            value, raw = raw[8: 8 + size], raw[8 + size + 1:]
        found[name.decode()] = value.decode()
    return found


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    made = logging.getLogger("cwd.test-journal")
    made.propagate = False
    yield made
    for handler in list(made.handlers):
        made.removeHandler(handler)
        handler.close()


def test_entries_have_fields(tmp_path: Path, logger: logging.Logger) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(path)
        receiver.settimeout(5)
        logger.addHandler(JournalHandler(path))
        logger.warning("worker %s is gone", "w-1")
        found = fields_of(receiver.recv(65536))
        assert (found["MESSAGE"], found["PRIORITY"], found["LOGGER"]) == ("worker w-1 is gone", "4", "cwd.test-journal")
        assert found["CODE_FUNC"] == "test_entries_have_fields" and found["CODE_FILE"].endswith("test_journal.py")
        try:
            raise ValueError("broken = yes")
        except ValueError:
            logger.exception("two\nlines")
        found = fields_of(receiver.recv(65536))
        assert found["PRIORITY"] == "3" and found["MESSAGE"].startswith("two\nlines\nTraceback")
        assert found["MESSAGE"].endswith("ValueError: broken = yes") and found["SYSLOG_IDENTIFIER"] == "cwd"


def test_a_message_does_not_repeat_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "leads_to_journal", lambda: True)
    monkeypatch.setattr(journal, "JournalHandler", lambda: JournalHandler(str(tmp_path / "socket")))
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.INFO)  # it is put back
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "socket"))
        receiver.settimeout(5)
        journal.log_to_stderr("%(name)s: %(message)s")
        logging.getLogger("cwd.test-fields").warning("three GPUs")
        logging.root.handlers[0].close()
        assert fields_of(receiver.recv(65536))["MESSAGE"] == "three GPUs"


def test_what_the_journal_does_not_take_goes_to_stderr(tmp_path: Path, logger: logging.Logger,
                                                       capsys: pytest.CaptureFixture[str]) -> None:
    logger.addHandler(JournalHandler(str(tmp_path / "nobody")))
    logger.error("alone\nin the dark")
    assert capsys.readouterr().err == "<3>cwd.test-journal: alone in the dark\n"


def test_stderr_leads_to_the_journal_only_if_it_is_the_one_named(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    try:
        found = os.fstat(write)
        for text, leads in ((f"{found.st_dev}:{found.st_ino}", True), (f"{found.st_dev}:{found.st_ino + 1}", False),
                            ("", False), ("rubbish", False)):
            monkeypatch.setenv("JOURNAL_STREAM", text)
            assert leads_to_journal(write) is leads
        monkeypatch.delenv("JOURNAL_STREAM")
        assert not leads_to_journal(write)
    finally:
        os.close(read)
        os.close(write)


def test_priorities() -> None:
    levels = (logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    assert [priority(level) for level in levels] == [2, 3, 4, 6, 7]
