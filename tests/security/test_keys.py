"""Key files, the folder of keys and ZAP's answers, without a socket."""

from __future__ import annotations

import os
import random
import shutil
import stat

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils import z85

from cwd.errors import CwdError
from cwd.net.auth import Allowed, Change, Scanner, Verdict, answer
from cwd.net.keys import (
    KEYS_MAX,
    REVOKED,
    ROLES,
    KeyFolder,
    KeyPair,
    PeerKeys,
    check_folder,
    peer_keys,
    read_pair,
    read_public,
    server_pair,
)

_PUBLIC = {name: zmq.curve_keypair()[0] for name in ("client", "worker", "admin", "both", "gone", "unknown")}
_NAMES = st.sampled_from(sorted(_PUBLIC))


def _allowed() -> Allowed:
    allowed = Allowed()
    for role, name in (*zip(ROLES, ROLES, strict=True), ("client", "both"), ("admin", "both"), (REVOKED, "gone"),
                       (REVOKED, "both")):
        allowed.apply(Change(True, role, _PUBLIC[name], name))
    return allowed


def _question(domain: bytes, key: bytes, mechanism: bytes = b"CURVE") -> list[bytes]:
    return [b"1.0", b"7", domain, b"192.0.2.1", b"", mechanism, z85.decode(key)]


@given(_NAMES, st.sampled_from([*ROLES, REVOKED, "", "secret"]))
def test_a_key_gets_in_where_it_is_listed_and_nowhere_else(name, domain):
    frames, verdict = answer(_question(domain.encode(), _PUBLIC[name]), _allowed())
    roles = {"both": ("client", "admin"), "gone": (), "unknown": ()}.get(name, (name,))
    if domain in roles:
        assert (frames, verdict) == ([b"1.0", b"7", b"200", b"OK", _PUBLIC[name], b""], Verdict.ALLOWED)
    else:
        assert frames == [b"1.0", b"7", b"400", b"no", b"", b""], "every refusal looks the same"
        assert verdict is (Verdict.REVOKED if name == "gone" else Verdict.UNKNOWN if name == "unknown"
                           else Verdict.WRONG_ROLE)


@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([b"1.0", b"client", b"CURVE", b"NULL", b"PLAIN"]),
                          _NAMES.map(lambda name: z85.decode(_PUBLIC[name]))), max_size=9))
@settings(max_examples=500)
def test_whatever_the_frames_are_there_is_an_answer(question):
    frames, verdict = answer(question, _allowed())
    assert len(frames) == 6 and frames[0] == b"1.0"
    allowed = (len(question) == 7 and question[0] == b"1.0" and len(question[1]) <= 255 and question[5] == b"CURVE"
               and question[2] == b"client" and len(question[6]) == 32 and z85.encode(question[6]) in
               (_PUBLIC["client"], _PUBLIC["both"]))
    assert (verdict is Verdict.ALLOWED) == (frames[2] == b"200") == allowed


@given(st.randoms(use_true_random=False))
def test_a_changed_question_never_opens_another_door(rng: random.Random):
    frames = [bytearray(frame) for frame in _question(b"worker", _PUBLIC["client"])]
    for _ in range(rng.randrange(1, 4)):
        frame = rng.choice([one for one in frames if one])
        frame[rng.randrange(len(frame))] ^= 1 << rng.randrange(8)
    assert answer([bytes(frame) for frame in frames], _allowed())[0][2] != b"200"


def test_a_folder_is_made_listed_and_revoked(tmp_path):
    folder = KeyFolder(tmp_path / "keys")
    assert folder.make_server() == tmp_path / "keys" / "server.key" and folder.make_server() is None
    files = folder.new("alice", ["client", "admin"])
    folder.new("w-1", ["worker"], tmp_path / "w-1.secret")
    for path in (files["secret"], tmp_path / "w-1.secret", tmp_path / "keys" / "server.key_secret"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(tmp_path / "keys" / "secret").st_mode) == 0o700
    assert read_pair(files["secret"]).public == read_public(files["client"]) == read_public(files["admin"])
    assert [(row["name"], row["role"]) for row in folder.entries()] == [("alice", "client"), ("w-1", "worker"), ("alice", "admin")]
    assert server_pair(folder.root, {}).public == read_public(folder.root / "server.key")
    with pytest.raises(CwdError, match="exists"):
        folder.new("alice", ["admin"])
    assert folder.revoke("alice", ["client"]) == ["client"] and folder.revoke("alice") == ["admin"]
    assert [row["role"] for row in folder.entries()] == ["worker", REVOKED, REVOKED]
    os.unlink(files["secret"])
    folder.new("alice", ["client"])
    folder.revoke("alice")
    assert len(folder.entries()) == 4, "what was revoked before is kept"
    for name in ("alice", "nobody", "../w-1"):
        with pytest.raises(CwdError, match="no key"):
            folder.revoke(name)
    for name in ("../x", "", ".x", "a/b", "x" * 65):
        with pytest.raises(CwdError, match="no name"):
            folder.new(name, ["client"])


def test_certificates_are_those_of_pyzmq(tmp_path):
    from zmq.auth import create_certificates, load_certificate

    public, secret = create_certificates(tmp_path, "theirs")
    os.chmod(secret, 0o600)
    assert read_public(public) == load_certificate(public)[0]
    assert read_pair(secret) == KeyPair(*load_certificate(secret))
    ours = KeyFolder(tmp_path / "keys").new("ours", ["client"])
    assert load_certificate(ours["secret"]) == (read_pair(ours["secret"]).public, read_pair(ours["secret"]).secret)


_GOOD = _PUBLIC["client"].decode()


@pytest.mark.parametrize(("text", "fault"), [
    ("", "no public key"), ("\0\xff" * 50, "no public key"), (f'public-key = "{_GOOD[:-1]}"\n', "40 characters"),
    (f'public-key = "{_GOOD[:-1]}~"\n', "40 characters"), ('public-key = "' + "#" * 40 + '"', "40 characters"),
    (f'public-key = "{_GOOD}"\n' * 2, "twice"), ("x" * 5000, "more than"),
    (f'public-key = "{_GOOD}"\nsecret-key = "{zmq.curve_keypair()[1].decode()}"\n', "not that of the secret"),
])
def test_what_is_no_key_is_one_line_that_names_the_file(tmp_path, text, fault):
    path = tmp_path / "k.key"
    path.write_text(text, "latin-1")
    path.chmod(0o600)
    with pytest.raises(CwdError, match=fault) as caught:
        read_pair(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_keys_of_a_peer(tmp_path):
    folder = KeyFolder(tmp_path)
    public = str(folder.make_server())
    secret = folder.new("a", ["client"])["secret"]
    keys = PeerKeys(read_pair(secret), read_public(public))
    assert peer_keys(environment={}) is None
    assert peer_keys(environment={"CWD_KEY": secret, "CWD_SERVER_KEY": public}) == keys
    assert peer_keys(secret, public, {"CWD_KEY": "elsewhere"}) == keys
    assert peer_keys("", "", {"CWD_KEY": secret, "CWD_SERVER_KEY": public}) is None, "said to be open"
    # what systemd hands over counts where nothing is said, and only then
    given = {"CREDENTIALS_DIRECTORY": str(tmp_path / "given")}
    (tmp_path / "given").mkdir()
    assert peer_keys(environment=given) is None
    shutil.copy(secret, tmp_path / "given" / "curve.key")
    with pytest.raises(CwdError, match=r"server\.key"):
        peer_keys(environment=given)
    shutil.copy(public, tmp_path / "given" / "server.key")
    assert peer_keys(environment=given) == keys
    assert peer_keys(environment={**given, "CWD_KEY": "", "CWD_SERVER_KEY": ""}) is None
    for key, server in ((secret, ""), ("", public)):
        with pytest.raises(CwdError, match="go together"):
            peer_keys(key, server)
    os.chmod(secret, 0o640)
    with pytest.raises(CwdError, match="others may read"):
        peer_keys(secret, public)


def test_the_controllers_pair_may_be_a_credential(tmp_path):
    folder = KeyFolder(tmp_path / "keys")
    with pytest.raises(CwdError, match="cwd keys new"):
        server_pair(folder.root, {})
    folder.make_server()
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    assert server_pair(folder.root, {"CREDENTIALS_DIRECTORY": str(credentials)}) == server_pair(folder.root, {})
    KeyFolder(tmp_path / "other").make_server()
    (tmp_path / "other" / "server.key_secret").rename(credentials / "curve.key")
    assert server_pair(folder.root, {"CREDENTIALS_DIRECTORY": str(credentials)}) != server_pair(folder.root, {})


def test_a_folder_that_everybody_may_write_is_refused(tmp_path):
    with pytest.raises(CwdError, match="no such folder"):
        check_folder(tmp_path / "none")
    KeyFolder(tmp_path / "keys").new("a", ["client"])
    check_folder(tmp_path / "keys")
    (tmp_path / "keys" / "client.d").chmod(0o777)
    with pytest.raises(CwdError, match="everybody may write"):
        check_folder(tmp_path / "keys")


def test_a_scanner_tells_what_changed_and_nothing_else(tmp_path):
    folder, scanner, allowed = KeyFolder(tmp_path), Scanner(tmp_path), Allowed()

    def scan() -> list[tuple[bool, str, str]]:
        changes = list(scanner.changes())
        for change in changes:
            allowed.apply(change)
        return [(change.added, change.role, change.name) for change in changes]

    assert scan() == []
    first = folder.new("a", ["client", "admin"])
    assert scan() == [(True, "client", "a"), (True, "admin", "a")] and scan() == []
    folder.revoke("a", ["admin"])
    assert scan() == [(False, "admin", "a"), (True, REVOKED, "admin-a")]
    key = read_public(first["client"])
    assert allowed.judge("client", key) is Verdict.ALLOWED and allowed.judge("admin", key) is Verdict.WRONG_ROLE
    # a file that is changed in place, that becomes something else, that is no file, that is still being written
    other = zmq.curve_keypair()[0]
    text = (tmp_path / "client.d" / "a.key").read_text()
    (tmp_path / "client.d" / "a.key").write_text(text.replace(key.decode(), other.decode()) + "# more\n")
    assert scan() == [(False, "client", "a"), (True, "client", "a")]
    assert allowed.judge("client", key) is Verdict.REVOKED and allowed.judge("client", other) is Verdict.ALLOWED
    (tmp_path / "client.d" / "a.key").write_text("nonsense")
    assert scan() == [(False, "client", "a")]
    os.mkfifo(tmp_path / "client.d" / "pipe.key")
    os.symlink(tmp_path / "client.d" / "nowhere", tmp_path / "client.d" / "link.key")
    (tmp_path / "client.d" / "folder.key").mkdir()
    (tmp_path / "client.d" / ".b.key").write_text(text)
    assert scan() == []
    (tmp_path / "client.d" / "b.key").write_text(text)
    (tmp_path / "client.d" / "c.key").write_text(text)
    assert scan() == [(True, "client", "c")], "one key under two names is one key"
    (tmp_path / "client.d" / "c.key").unlink()
    assert scan() == [(True, "client", "b")] and allowed.judge("client", key) is Verdict.ALLOWED
    for path in (tmp_path / "client.d").iterdir():
        path.rmdir() if path.name == "folder.key" else path.unlink()
    (tmp_path / "client.d").rmdir()
    assert scan() == [(False, "client", "b")]


def test_a_folder_of_too_many_keys_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr("cwd.net.auth.KEYS_MAX", 3)
    folder = KeyFolder(tmp_path)
    for number in range(5):
        folder.new(f"k{number}", ["client"])
    assert [change.name for change in Scanner(tmp_path).changes()] == ["k0", "k1", "k2"] and KEYS_MAX > 3
