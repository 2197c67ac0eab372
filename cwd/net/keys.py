"""Key files and the folder of keys: who a peer is, who the controller is, and whom it lets in.

A file is a CURVE certificate as czmq and pyzmq write it (ZPL: `public-key = "..."`, and `secret-key = "..."` in a secret
one; keys in Z85, 40 characters). A folder of keys holds

    server.key_secret, server.key    the controller's pair, and its public half for everybody
    client.d/ worker.d/ admin.d/     NAME.key: the public keys that may take that role
    secret/                          NAME.key_secret: pairs made here, to be handed to their owners
    revoked/                         ROLE-NAME.key: what was taken back

Everything that is read is bounded. This module knows no socket, and imports neither numba nor the daemons.
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import zmq
from zmq.utils import z85

from cwd.errors import Code, CwdError

#: roles are the ZAP domains; the fourth folder is of keys that no domain lets in
ROLES = ("client", "worker", "admin")
REVOKED = "revoked"
#: files of one folder that are looked at; more are not admitted
KEYS_MAX = 4096
FILE_BYTES_MAX = 4096
SERVER = "server"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LINE = re.compile(r"\s*(public|secret)-key\s*=\s*\"([^\"]*)\"\s*")


@dataclass(frozen=True)
class KeyPair:
    """A public key and its secret one, in Z85."""

    public: bytes
    secret: bytes


@dataclass(frozen=True)
class PeerKeys:
    """What a connecting peer needs: a pair of its own, and the controller's public key."""

    pair: KeyPair
    server: bytes


def read_public(path: str | os.PathLike[str]) -> bytes:
    """The public key of a certificate; raises `CwdError` in one line naming the file."""
    return _key(_read(path), "public", path)


def read_pair(path: str | os.PathLike[str], *, closed: bool = True) -> KeyPair:
    """The pair of a secret certificate. Raises `CwdError`, also where others may read the file and `closed` is asked."""
    if closed and os.path.exists(path) and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise CwdError(f"{path}: others may read this secret key (chmod 600)", code=Code.BAD_ARGUMENT)
    values = _read(path)
    pair = KeyPair(_key(values, "public", path), _key(values, "secret", path))
    if zmq.curve_public(pair.secret) != pair.public:
        raise CwdError(f"{path}: the public key is not that of the secret one", code=Code.BAD_ARGUMENT)
    return pair


def peer_keys(key: str | os.PathLike[str] | None = None, server_key: str | os.PathLike[str] | None = None,
              environment: Mapping[str, str] = os.environ) -> PeerKeys | None:
    """The keys to connect with: from the files named, else (None) from CWD_KEY and CWD_SERVER_KEY; "" means none.

    Where nothing is said of either, they are curve.key and server.key in $CREDENTIALS_DIRECTORY, if those are there. None if
    there are none: the connection is then open. Raises `CwdError` if only one of the two is given.
    """
    key = environment.get("CWD_KEY") if key is None else key
    server_key = environment.get("CWD_SERVER_KEY") if server_key is None else server_key
    if key is None and server_key is None and (given := _credential("curve.key", environment)) is not None:
        public = _credential("server.key", environment)
        if public is None:
            raise CwdError(f"{given} is there, but the controller's public key beside it is missing (server.key)",
                           code=Code.BAD_ARGUMENT)
        return PeerKeys(read_pair(given, closed=False), read_public(public))
    if not key and not server_key:
        return None
    if not key or not server_key:
        raise CwdError("a key and the controller's public key go together (--key, --server-key; CWD_KEY, "
                       f"CWD_SERVER_KEY); {'the key' if not key else 'the other'} is missing", code=Code.BAD_ARGUMENT)
    return PeerKeys(read_pair(key), read_public(server_key))


def server_pair(folder: str | os.PathLike[str], environment: Mapping[str, str] = os.environ) -> KeyPair:
    """The controller's own pair: $CREDENTIALS_DIRECTORY/curve.key if it is there, else the folder's."""
    if (given := _credential("curve.key", environment)) is not None:
        return read_pair(given, closed=False)
    path = Path(folder) / f"{SERVER}.key_secret"
    if not path.exists():
        raise CwdError(f"{path} is missing: `cwd keys new NAME --role ROLE --dir {folder}` makes it",
                       code=Code.BAD_ARGUMENT)
    return read_pair(path)


def _credential(name: str, environment: Mapping[str, str]) -> Path | None:
    """A file that systemd handed over, if it did; it closes it to others in its own ways.

    A folder that only root may look into has nothing for us: so it is where systemd could not mount it, in some containers.
    """
    folder = environment.get("CREDENTIALS_DIRECTORY")
    path = os.path.join(folder or "", name)
    return Path(path) if folder and os.path.exists(path) else None


def default_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """$CWD_KEYS, else /etc/cwd/keys for root, else $XDG_CONFIG_HOME/cwd/keys, else ~/.config/cwd/keys."""
    if given := environment.get("CWD_KEYS"):
        return Path(given)
    if os.getuid() == 0:
        return Path("/etc/cwd/keys")
    return Path(environment.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "cwd" / "keys"


def check_folder(root: str | os.PathLike[str]) -> None:
    """Raise `CwdError` if the folder of keys is none, or if everybody may add keys to it."""
    for folder in (Path(root), *(Path(root) / f"{role}.d" for role in ROLES)):
        if folder == Path(root) and not folder.is_dir():
            raise CwdError(f"{folder}: no such folder of keys; `cwd keys new` makes one", code=Code.BAD_ARGUMENT)
        if folder.is_dir() and folder.stat().st_mode & stat.S_IWOTH:
            raise CwdError(f"{folder}: everybody may write to this folder of keys (chmod o-w)", code=Code.BAD_ARGUMENT)


class KeyFolder:
    """A folder of keys, to be written to."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)

    def make_server(self) -> Path | None:
        """Make the controller's pair if there is none: its public file, or None if it was there."""
        self._make(self.root, 0o755)
        secret, public = self.root / f"{SERVER}.key_secret", self.root / f"{SERVER}.key"
        if secret.exists():
            return None
        pair = KeyPair(*zmq.curve_keypair())
        write_new(secret, _text(pair.public, pair.secret), 0o600)
        public.unlink(missing_ok=True)
        write_new(public, _text(pair.public), 0o644)
        return public

    def new(self, name: str, roles: Iterable[str], secret: str | os.PathLike[str] | None = None) -> dict[str, str]:
        """A new pair that may take `roles`: {"secret": file, role: file}. Raises `CwdError` where the name is taken."""
        roles = list(dict.fromkeys(roles))
        if not _NAME.fullmatch(name):
            raise CwdError(f"{name!r} is no name of a key: up to 64 letters, digits, . _ -, the first a letter or digit",
                           code=Code.BAD_ARGUMENT)
        publics = {role: self.root / f"{role}.d" / f"{name}.key" for role in roles}
        for path in (path for path in publics.values() if path.exists()):
            raise CwdError(f"{path} exists: choose another name, or revoke it first", code=Code.BAD_ARGUMENT)
        self._make(self.root, 0o755)
        if secret is None:
            self._make(self.root / "secret", 0o700)
            secret = self.root / "secret" / f"{name}.key_secret"
        pair = KeyPair(*zmq.curve_keypair())
        write_new(Path(secret), _text(pair.public, pair.secret), 0o600)
        for path in publics.values():
            self._make(path.parent, 0o755)
            write_new(path, _text(pair.public), 0o644)
        return {"secret": str(secret), **{role: str(path) for role, path in publics.items()}}

    def entries(self) -> list[dict[str, str]]:
        """Every key that is listed or revoked: name, role, public key, file; files that do not read have `fault`."""
        found = []
        for role in (*ROLES, REVOKED):
            for path in key_files(self.root, role):
                row = {"name": path.stem, "role": role, "file": str(path)}
                try:
                    row["public"] = read_public(path).decode()
                except CwdError as error:
                    row["fault"] = error.text
                found.append(row)
        return found

    def revoke(self, name: str, roles: Iterable[str] = ROLES) -> list[str]:
        """Take a key's roles away: its files move to `revoked/`. The roles it had. Raises `CwdError` if it had none."""
        had = []
        for role in roles:
            path = self.root / f"{role}.d" / f"{name}.key"
            if not _NAME.fullmatch(name) or not path.exists():
                continue
            folder = self.root / REVOKED
            self._make(folder, 0o755)
            target, number = folder / f"{role}-{name}.key", 1
            while target.exists():
                number += 1
                target = folder / f"{role}-{name}.{number}.key"
            path.rename(target)
            had.append(role)
        if not had:
            raise CwdError(f"no key {name} is listed in {self.root}", code=Code.BAD_ARGUMENT)
        return had

    def _make(self, folder: Path, mode: int) -> None:
        """Public keys are no secrets: a daemon of another user may read them, and nobody else may write them."""
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise CwdError(f"{folder}: {error.strerror}", code=Code.BAD_ARGUMENT) from None


def key_files(root: str | os.PathLike[str], role: str) -> Iterator[Path]:
    """The key files of a role (or `REVOKED`), sorted by name; those with a dot in front are being written.

    None where there is no such folder; raises `OSError` where it does not read.
    """
    folder = Path(root) / (role if role == REVOKED else f"{role}.d")
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.name.endswith(".key") and entry.name[0] != ".")
    except FileNotFoundError:
        return
    yield from (folder / name for name in names)


def write_new(path: Path, text: str, mode: int) -> None:
    """Write a file that must not be there yet, under its name only once it is whole. Raises `CwdError`."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            os.fchmod(descriptor, mode)
            os.write(descriptor, text.encode("ascii"))
        finally:
            os.close(descriptor)
        try:
            os.link(draft, path)
        finally:
            os.unlink(draft)
    except OSError as error:
        raise CwdError(f"{path}: {os.strerror(error.errno or 0)}", code=Code.BAD_ARGUMENT) from None


def _text(public: bytes, secret: bytes = b"") -> str:
    head = "# CURVE certificate of cwd: SECRET, for its owner alone" if secret else "# CURVE certificate of cwd: public"
    lines = [head, "metadata", "curve", f'    public-key = "{public.decode()}"']
    if secret:
        lines.append(f'    secret-key = "{secret.decode()}"')
    return "\n".join(lines) + "\n"


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a pipe by that name must not hold the reader up


def _read(path: str | os.PathLike[str]) -> dict[str, str]:
    """The keys that a certificate has, by their kinds, unchecked."""
    try:
        with open(path, "rb", opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CwdError(f"{path}: not a file", code=Code.BAD_ARGUMENT)
            data = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise CwdError(f"{path}: {error.strerror}", code=Code.BAD_ARGUMENT) from None
    if len(data) > FILE_BYTES_MAX:
        raise CwdError(f"{path}: no key file has more than {FILE_BYTES_MAX} bytes", code=Code.BAD_ARGUMENT)
    found: dict[str, str] = {}
    for line in data.decode("utf-8", "replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is not None:
            if match[1] in found:
                raise CwdError(f"{path}: the {match[1]} key stands twice", code=Code.BAD_ARGUMENT)
            found[match[1]] = match[2]
    return found


def _key(values: Mapping[str, str], kind: str, path: str | os.PathLike[str]) -> bytes:
    if kind not in values:
        raise CwdError(f"{path}: there is no {kind} key in it", code=Code.BAD_ARGUMENT)
    try:
        text = values[kind].encode("ascii")
        raw = z85.decode(text) if len(text) == 40 else b""
        if z85.encode(raw) != text:
            raise ValueError
    except (ValueError, KeyError, struct.error) as error:
        raise CwdError(f"{path}: the {kind} key is not 40 characters of Z85", code=Code.BAD_ARGUMENT) from error
    return text
