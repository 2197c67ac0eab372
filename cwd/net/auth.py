"""Whom the controller lets in: lists of public keys by role, and the answers to libzmq's questions (ZAP, RFC 27).

`answer` is a pure function of a question's frames and the lists. `Scanner` reads a folder of keys and says what has
changed since it last did. Both know no socket; `secure_server` and `secure_peer` set the options of one.
"""

from __future__ import annotations

import enum
import logging
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import zmq
from zmq.utils import z85

from cwd.errors import CwdError
from cwd.net.keys import KEYS_MAX, REVOKED, ROLES, KeyPair, PeerKeys, key_files, read_public

LOG = logging.getLogger("cwd.keys")

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
ZAP_VERSION = b"1.0"
#: frames of a question: version, its id, domain, address, identity, mechanism, one credential
_QUESTION = 7
_DOMAIN, _MECHANISM, _CREDENTIAL = 2, 5, 6
_RAW_KEY_BYTES = 32
_REQUEST_ID_BYTES_MAX = 255


class Verdict(enum.Enum):
    """What became of a question. The peer learns only whether it may come in."""

    ALLOWED = "allowed"
    NO_KEY = "no key"  # it did not say CURVE (libzmq itself turns those away)
    UNKNOWN = "unknown key"
    REVOKED = "revoked key"
    WRONG_ROLE = "a key of another role"
    BAD_QUESTION = "no ZAP question"


class Change(NamedTuple):
    """One difference between two readings of the folder: a key (Z85) came to a role, or left it."""

    added: bool
    role: str
    public: bytes
    name: str


class Allowed:
    """The lists: role -> {public key (Z85): name}; `REVOKED` is one of them, and lets nobody in."""

    def __init__(self) -> None:
        self.names: dict[str, dict[bytes, str]] = {role: {} for role in (*ROLES, REVOKED)}

    def apply(self, change: Change) -> None:
        if change.added:
            self.names[change.role][change.public] = change.name
        else:
            self.names[change.role].pop(change.public, None)

    def judge(self, role: str, public: bytes) -> Verdict:
        """May this key take this role?"""
        if role in ROLES and public in self.names[role]:
            return Verdict.ALLOWED
        if any(public in self.names[other] for other in ROLES):
            return Verdict.WRONG_ROLE
        return Verdict.REVOKED if public in self.names[REVOKED] else Verdict.UNKNOWN


def answer(frames: Sequence[bytes], allowed: Allowed) -> tuple[list[bytes], Verdict]:
    """The six frames that answer a question of libzmq's, and why. Never raises, whatever the frames are.

    The domain is the role. The user id of an admitted peer is its public key in Z85; libzmq then puts it on every
    message of the connection. All refusals look alike.
    """
    number = frames[1] if len(frames) > 1 and len(frames[1]) <= _REQUEST_ID_BYTES_MAX else b""
    if len(frames) < _QUESTION - 1 or frames[0] != ZAP_VERSION:
        return [ZAP_VERSION, number, b"500", b"no question of version 1.0", b"", b""], Verdict.BAD_QUESTION
    user = b""
    if frames[_MECHANISM] != b"CURVE":
        verdict = Verdict.NO_KEY
    elif len(frames) != _QUESTION or len(frames[_CREDENTIAL]) != _RAW_KEY_BYTES:
        verdict = Verdict.BAD_QUESTION
    else:
        user = z85.encode(frames[_CREDENTIAL])
        verdict = allowed.judge(frames[_DOMAIN].decode("ascii", "replace"), user)
    if verdict is Verdict.ALLOWED:
        return [ZAP_VERSION, number, b"200", b"OK", user, b""], verdict
    return [ZAP_VERSION, number, b"400", b"no", b"", b""], verdict


class Scanner:
    """Reads a folder of keys again and again; only files that changed are opened."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = root
        #: by role: file name -> (what stat said, its key or b"")
        self._files: dict[str, dict[str, tuple[tuple[int, ...], bytes]]] = {role: {} for role in (*ROLES, REVOKED)}
        self._listed: dict[str, dict[bytes, str]] = {role: {} for role in (*ROLES, REVOKED)}

    def changes(self) -> Iterator[Change]:
        """What has changed since the last call, removals first. A folder that does not read stays as it was."""
        for role in (*ROLES, REVOKED):
            try:
                now = self._read(role)
            except OSError as error:
                LOG.error("%s: %s; its keys stay as they were", error.filename, error.strerror)
                continue
            before, self._listed[role] = self._listed[role], now
            yield from (Change(False, role, key, name) for key, name in before.items() if key not in now)
            yield from (Change(True, role, key, name) for key, name in now.items() if before.get(key) != name)

    def _read(self, role: str) -> dict[bytes, str]:
        known, files = self._files[role], {}
        for number, path in enumerate(key_files(self.root, role)):
            if number == KEYS_MAX:
                LOG.warning("%s: only the first %d keys are admitted", path.parent, KEYS_MAX)
                break
            try:
                facts = os.stat(path)
            except FileNotFoundError:
                continue
            mark = (facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode, facts.st_uid)
            if path.name in known and known[path.name][0] == mark:
                files[path.name] = known[path.name]
                continue
            try:
                files[path.name] = (mark, read_public(path))
            except CwdError as error:  # said once: its mark is kept
                LOG.warning("not admitted: %s", error.text)
                files[path.name] = (mark, b"")
        self._files[role] = files
        return {key: name.removesuffix(".key") for name, (_, key) in files.items() if key}


def secure_server(socket: zmq.Socket, pair: KeyPair, role: str) -> None:
    """Have a socket that is about to bind demand a key that is listed for `role`; who has none does not connect."""
    assert role in ROLES, role
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, role.encode())
    # without an answer to its question libzmq would else let everybody in
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)


def secure_peer(socket: zmq.Socket, keys: PeerKeys) -> None:
    """Have a socket that is about to connect prove who it is, and accept nobody but the holder of the server's key."""
    socket.setsockopt(zmq.CURVE_SERVERKEY, keys.server)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keys.pair.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, keys.pair.secret)
