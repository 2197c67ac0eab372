"""Who may ask: tokens and their file, origins, names, and what the options refuse."""

from __future__ import annotations

import os

import pytest
from asgi import app_of, ask, run

from cwd.errors import CwdError
from cwd.gateway.auth import Tokens
from cwd.gateway.options import GatewayOptions


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens"
    path.write_text("# ours\n\nfirst\n  second  \n")
    return path


def status(app, path, token=None, **headers):
    if token is not None:
        headers["Authorization"] = token
    return run(ask(app, "GET", path, headers=headers)).status


def test_tokens(file):
    app, _ = app_of(tokens=Tokens(str(file)))
    assert status(app, "/v2", "Bearer first") == status(app, "/v2", "bearer  second") == 200
    for wrong in (None, "", "Bearer", "Bearer ", "Bearer third", "Bearer firs", "Bearer # ours", "Basic first", "first"):
        assert status(app, "/v2", wrong) == 401
    answer = run(ask(app, "POST", "/v2/models/double/infer", b"{}"))
    assert answer.status == 401 and answer.headers["www-authenticate"].startswith("Bearer") and answer.json["error"]
    for path in ("/v2/health/live", "/v2/health/ready", "/", "/page.css", "/page.js"):
        assert status(app, path) == 200
    assert status(app, "/status.json") == status(app, "/v2/models/stats") == 401


def test_a_changed_file_holds_at_once(file):
    tokens = Tokens(str(file))
    assert tokens.allow(b"first") and not tokens.allow(b"third")
    file.write_text("third\n")
    assert tokens.allow(b"third") and not tokens.allow(b"first")
    replacement = file.with_name("new")
    replacement.write_text("4\n")
    os.replace(replacement, file)
    assert tokens.allow(b"4") and not tokens.allow(b"third")
    # away, unreadable: what was read last holds; empty: nobody
    file.unlink()
    assert tokens.allow(b"4")
    file.write_bytes(b"\xff\xfe")
    assert tokens.allow(b"4")
    file.write_text("# nobody\n")
    assert not tokens.allow(b"4") and not tokens.allow(b"")


def test_a_file_without_tokens_is_refused(tmp_path):
    for content in (None, b"", b"# nothing\n", b"\xff"):
        path = tmp_path / "tokens"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CwdError, match="tokens"):
            Tokens(str(path))


def test_pages_from_elsewhere_may_not_ask():
    app, _ = app_of()
    assert status(app, "/v2", Origin="http://localhost:8000") == 200
    for origin in ("http://elsewhere", "http://localhost:9", "null"):
        assert status(app, "/v2", Origin=origin) == 403
    answer = run(ask(app, "GET", "/v2", headers={"Origin": "http://localhost:8000"}))
    assert not any(name.startswith("access-control") for name in answer.headers)
    app, _ = app_of(cors="http://ours, http://theirs")
    answer = run(ask(app, "GET", "/v2", headers={"Origin": "http://theirs"}))
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "http://theirs"
    assert status(app, "/v2", Origin="http://elsewhere") == 403
    answer = run(ask(app, "OPTIONS", "/v2/models/double/infer", headers={
        "Origin": "http://ours", "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,inference-header-content-length"}))
    assert answer.status == 200 and answer.headers["access-control-allow-origin"] == "http://ours"
    assert status(app_of(cors="*")[0], "/v2", Origin="http://anywhere") == 200


def test_without_tokens_only_this_machines_names(file):
    app, _ = app_of()
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:8000", "a.localhost:1"):
        assert status(app, "/v2", Host=host) == 200
    for host in ("evil.example:8000", "10.0.0.1", "localhost.example"):
        assert status(app, "/v2", Host=host) == 403
    assert status(app_of(insecure=True)[0], "/v2", Host="any.example") == 200
    assert status(app_of(tokens=Tokens(str(file)))[0], "/v2", "Bearer first", Host="any.example") == 200


def test_options():
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert GatewayOptions(host=host).is_local
    for host in ("0.0.0.0", "::", "10.0.0.1", "name.example"):
        with pytest.raises(CwdError, match="--token-file"):
            GatewayOptions(host=host)
        assert GatewayOptions(host=host, insecure=True) and GatewayOptions(host=host, token_file="f")
    for wrong in ({"port": 65536}, {"tls_cert": "c"}, {"tls_key": "k"}, {"slo_ns": 0}, {"body_max_bytes": 0}):
        with pytest.raises(CwdError):
            GatewayOptions(**wrong)
