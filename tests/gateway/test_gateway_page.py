"""The status page in a headless Chromium: its script runs, asks, and shows what the gateway counts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from asgi import request
from fake_controller import FakeController, X
from test_gateway_server import PATH, Door, within

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--virtual-time-budget=3000"]

pytestmark = [pytest.mark.e2e, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture
def controller(tmp_path):
    fake = FakeController(tmp_path / "c.sock")
    yield fake
    fake.stop()


def shown(door, tmp_path):
    """The page's document after its script has run, without its markup."""
    done = subprocess.run([CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                           f"http://127.0.0.1:{door.port}/"], capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_page_shows_what_went_through(tmp_path, controller):
    door = Door(tmp_path, controller.endpoint, "--drain", "0s")
    for _ in range(3):
        assert door.ask("POST", PATH, *request({"x": X}, timeout=5_000_000))[0] == 200
    controller.models["<b>bold</b>"] = (9, {**controller.models["double"][1], "name": "<b>bold</b>"})
    dom = shown(door, tmp_path)
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", dom))
    assert '<span id="state" class="badge good">ready</span>' in dom
    assert "3 answered in time" in text and "100.00 % share in time" in text
    # three of a batch of five: one execution; all were cold, says the controller
    assert re.search(r"double 1 ready 3 0 3 3 [0-9.]+ [0-9.]+", text), text
    assert "&lt;b&gt;bold&lt;/b&gt;" in dom  # a name is text, whatever is in it
    door.child.stop(5)


def test_the_page_says_which_controller_is_away(tmp_path, controller):
    other = FakeController(tmp_path / "d.sock")
    door = Door(tmp_path, "ipc:///nowhere", "--drain", "0s", "--shards", f"double={controller.endpoint} *={other.endpoint}")
    other.stop()
    within(10, lambda: json.loads(door.ask("GET", "/status.json")[2])["away"])
    dom = shown(door, tmp_path)
    assert f"No controller answers at {other.endpoint}." in dom and '<span id="state" class="badge good">ready</span>' in dom
    door.child.stop(5)


def test_the_page_asks_for_a_token(tmp_path, controller):
    (tmp_path / "tokens").write_text("secret\n")
    door = Door(tmp_path, controller.endpoint, "--drain", "0s", "--token-file", str(tmp_path / "tokens"))
    dom = shown(door, tmp_path)
    assert "locked" in dom and '<form id="login">' in dom and "<td>" not in dom
    door.child.stop(5)
