"""Logging as a daemon: to stderr, or with fields to systemd's journal where stderr leads there.

Plain Python, no dependency. The journal's own protocol keeps what a line of text loses: priority, logger, place in the
source, a traceback as one entry (`journalctl -o json`, `journalctl LOGGER=cwd.controller`). A daemon never waits for its
log: an entry that the journal cannot take at once goes to stderr, with its priority in front (sd-daemon's convention).
"""

from __future__ import annotations

import logging
import os
import socket
import sys

JOURNAL = "/run/systemd/journal/socket"
#: syslog's numbers
_PRIORITY = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def log_to_stderr(line_format: str, level: int = logging.INFO) -> None:
    """Set logging up for this process: lines in `line_format` on stderr, or entries of the journal."""
    if leads_to_journal():
        # level and logger are fields of their own
        logging.basicConfig(level=level, format="%(message)s", handlers=[JournalHandler()])
    else:
        logging.basicConfig(level=level, format=line_format)


def leads_to_journal(fd: int = 2) -> bool:
    """Whether systemd has connected `fd` with the journal: `$JOURNAL_STREAM` names its device and inode."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(fd)
        return (int(device), int(inode)) == (found.st_dev, found.st_ino)
    except (ValueError, OSError):
        return False


def priority(level: int) -> int:
    """Syslog's priority of a level of Python's."""
    return next((number for least, number in _PRIORITY if level >= least), 7)


def entry(record: logging.LogRecord, text: str) -> bytes:
    """One entry in the journal's own form; a value of several lines is preceded by its length."""
    fields = {"MESSAGE": text, "PRIORITY": str(priority(record.levelno)), "LOGGER": record.name,
              "SYSLOG_IDENTIFIER": "cwd", "CODE_FILE": record.pathname, "CODE_LINE": str(record.lineno),
              "CODE_FUNC": record.funcName}
    found = b""
    for name, value in fields.items():
        raw = value.encode(errors="replace")
        if b"\n" in raw:
            found += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        else:
            found += name.encode() + b"=" + raw + b"\n"
    return found


class JournalHandler(logging.Handler):
    """Sends records to the journal's socket."""

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = self.format(record)
            try:
                self._socket.sendto(entry(record, text), self._path)
            except OSError:
                sys.stderr.write(f"<{priority(record.levelno)}>{record.name}: " + " ".join(text.splitlines()) + "\n")
        except Exception:
            self.handleError(record)

    def close(self) -> None:
        self._socket.close()
        super().close()
