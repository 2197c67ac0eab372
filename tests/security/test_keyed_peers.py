"""The real clients, the real worker and the command line, with keys and without."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from guarded import until
from play import PAGE_BYTES

import cwd
from cwd.cli.main import run
from cwd.client.admin import Admin
from cwd.controller.config import ControllerConfig
from cwd.controller.daemon import Controller
from cwd.errors import CwdError
from cwd.net import sockets
from cwd.net.keys import KeyFolder

ROOT = Path(__file__).resolve().parents[2]


def _files(guarded, name):
    return {"key": guarded.folder.root / "secret" / f"{name}.key_secret", "server_key": guarded.folder.root / "server.key"}


def test_clients_come_in_with_their_keys(guarded, monkeypatch):
    with cwd.Client(guarded.endpoint("client"), **_files(guarded, "client")) as client:
        assert "fixed-0/1" in client.models()
    for variable, file in zip(("CWD_KEY", "CWD_SERVER_KEY"), _files(guarded, "client").values(), strict=True):
        monkeypatch.setenv(variable, str(file))

    async def ask() -> dict[str, int]:
        async with cwd.AsyncClient(guarded.endpoint("client")) as client:
            return await client.models()

    assert "fixed-0/1" in asyncio.run(ask())


@pytest.mark.parametrize(("name", "fault"), [("", "ask for a key"), ("worker", "does not let this key in")])
def test_who_may_not_come_in_is_told_why(guarded, name, fault):
    files = _files(guarded, name) if name else {"key": "", "server_key": ""}
    with cwd.Client(guarded.endpoint("client"), timeout=0.3, **files) as client:
        with pytest.raises(cwd.ControllerLost, match=fault):
            client.models()

    async def ask() -> None:
        async with cwd.AsyncClient(guarded.endpoint("client"), timeout=0.3, **files) as client:
            await client.models()

    with pytest.raises(cwd.ControllerLost, match=fault):
        asyncio.run(ask())


def test_a_worker_comes_leaves_and_comes_back_with_its_key(guarded):
    guarded.folder.new("gpu", ["worker"])
    files = _files(guarded, "gpu")
    worker = subprocess.Popen(
        [sys.executable, "-m", "cwd", "worker", "--device", "emulated:2", "--endpoint", guarded.endpoint("worker"), "--page",
         str(PAGE_BYTES), "--key", str(files["key"]), "--server-key", str(files["server_key"])], cwd=ROOT,
        stderr=subprocess.DEVNULL)
    try:
        with Admin(guarded.endpoint("admin"), **_files(guarded, "admin")) as admin:
            assert until(lambda: len(admin.status()["workers"]) == 2, 60)
            guarded.folder.revoke("gpu")
            assert until(lambda: admin.status()["workers"] == {})
            (guarded.folder.root / "revoked" / "worker-gpu.key").rename(guarded.folder.root / "worker.d" / "gpu.key")
            assert until(lambda: len(admin.status()["workers"]) == 2), "it has gone on trying"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(20) == 0
    finally:
        worker.kill()
        worker.wait()


def test_the_command_line_makes_lists_and_revokes(tmp_path, capsys, guarded, monkeypatch):
    folder = ["--dir", str(tmp_path / "keys"), "--json"]

    def facts(*arguments: str) -> dict:
        assert run(["keys", *arguments, *folder]) == 0
        return json.loads(capsys.readouterr().out)

    made = facts("new", "ops", "--role", "admin", "--role", "client")
    assert Path(made["secret"]).exists() and [Path(path).parent.name for path in made["public"]] == ["admin.d", "client.d"]
    assert [(row["name"], row["role"]) for row in facts("list")["keys"]] == [("ops", "client"), ("ops", "admin")]
    assert facts("revoke", "ops", "--role", "client")["revoked"] == ["client"]
    assert run(["keys", "revoke", "nobody", *folder]) == 1
    error = capsys.readouterr().err
    assert error.startswith("cwd: error: no key nobody") and error.count("\n") == 1
    monkeypatch.setenv("CWD_KEY", "")  # the command sets it for its process
    monkeypatch.setenv("CWD_SERVER_KEY", "")
    files = _files(guarded, "admin")
    assert run(["status", "--json", "--admin-endpoint", guarded.endpoint("admin"), "--key", str(files["key"]), "--server-key",
                str(files["server_key"])]) == 0
    assert json.loads(capsys.readouterr().out)["keys"]["admin"] == 1


def test_what_others_can_reach_is_not_bound_without_keys(tmp_path):
    config = {"run_dir": str(tmp_path), "state_dir": str(tmp_path), "log": False, "nice": 0}
    with pytest.raises(CwdError, match="--keys FOLDER.*--insecure") as caught:
        Controller(ControllerConfig(clients_bind="tcp://0.0.0.0:1", **config))
    assert "\n" not in str(caught.value)
    with pytest.raises(CwdError, match="no such folder of keys"):
        Controller(ControllerConfig(keys=str(tmp_path / "keys"), **config))
    KeyFolder(tmp_path / "keys").new("a", ["client"])
    with pytest.raises(CwdError, match="server.key_secret is missing"):
        Controller(ControllerConfig(keys=str(tmp_path / "keys"), **config))
    KeyFolder(tmp_path / "keys").make_server()
    with pytest.raises(CwdError, match="malformed|not one of this machine's"):
        Controller(ControllerConfig(keys=str(tmp_path / "keys"), clients_bind="tcp://192.0.2.1:1", **config))
    for endpoint in ("tcp://*:1", "tcp://[::]:1", "tcp://192.0.2.1:1", "tcp://eth0:1"):
        with pytest.raises(CwdError, match="--keys"):
            sockets.check_endpoint(endpoint)
    for endpoint in ("tcp://127.0.0.1:1", "tcp://[::1]:1", "ipc:///tmp/x"):
        sockets.check_endpoint(endpoint)
