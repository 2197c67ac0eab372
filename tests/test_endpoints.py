"""Lists of endpoints as people write them."""

from __future__ import annotations

import pytest

import cwd
from cwd.client.admin import Admin
from cwd.config import endpoints
from cwd.errors import Code, CwdError
from cwd.gateway.options import GatewayOptions
from cwd.worker.options import WorkerOptions


@pytest.mark.parametrize(("text", "found"), [
    ("ipc:///run/cwd/clients.sock", ("ipc:///run/cwd/clients.sock",)),
    ("tcp://10.0.0.1:5571,tcp://10.0.0.2:5571", ("tcp://10.0.0.1:5571", "tcp://10.0.0.2:5571")),
    (" tcp://a:1 , tcp://b:1 ,tcp://[::1]:9", ("tcp://a:1", "tcp://b:1", "tcp://[::1]:9")),
    ("ipc://@abstract,inproc://here", ("ipc://@abstract", "inproc://here")),
])
def test_lists(text, found):
    assert endpoints(text) == found


@pytest.mark.parametrize(("text", "words"), [
    ("", "'': it is empty"), ("tcp://a:1,", "'', of 'tcp://a:1,': it is empty"), ("tcp://a:1,,tcp://b:1", "it is empty"),
    ("tcp://a:1, tcp://a:1", "'tcp://a:1', of .*: it is named twice"), ("a:5571", "'a:5571': not an ipc:// or tcp:// endpoint"),
    ("http://a:1", "not an ipc:// or tcp://"), ("tcp://a:1;tcp://b:1", None), ("tcp://a", "wanted tcp://HOST:PORT"),
    ("tcp://a:0", "wanted tcp://HOST:PORT"), ("tcp://a:65536", "wanted tcp://HOST:PORT"), ("tcp://:5571", "wanted tcp://HOST"),
    ("tcp://a:x", "wanted tcp://HOST:PORT"), ("tcp://a:٣", "wanted tcp://HOST:PORT"), ("ipc://", "it names nothing"),
    ("tcp://a:1,ipc:///" + "x" * 120, "longer than 107 bytes"),
])
def test_faults_are_named(text, words):
    if words is None:  # libzmq's "from this address" is left to it
        assert endpoints(text) == (text,)
        return
    with pytest.raises(CwdError, match=words) as caught:
        endpoints(text)
    assert caught.value.code == Code.BAD_ARGUMENT and "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [
    cwd.Client, cwd.AsyncClient, Admin, lambda text: WorkerOptions(device="emulated:1", endpoint=text),
    lambda text: GatewayOptions(endpoint=text), lambda text: GatewayOptions(admin_endpoint=text)])
def test_whoever_takes_one_says_what_is_wrong_at_once(make):
    with pytest.raises(CwdError, match="named twice"):
        make("tcp://127.0.0.1:9,tcp://127.0.0.1:9")
