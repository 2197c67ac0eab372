"""Bad input over real daemons: each fault has a code of its own and one line for people, and nobody else notices.

After every test a good request is answered at once (`still_serving`). Raw connections send what our client would not.
"""

import gzip
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from peers import BYTE, EXEC_NS, PAGE_BYTES, RawPeer, head, make_repository, worker_caps

import cwd
from cwd.cli.main import run
from cwd.errors import SENTENCES, Code
from cwd.wire.codec import encode
from cwd.wire.messages import MAGIC, Type

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

CREDITS = 32
PAYLOAD_MAX = 64 << 10
MODELS_MAX = 8


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return make_repository(tmp_path_factory.mktemp("bad") / "models")


@pytest.fixture(scope="module")
def cluster(repository):
    settings = {"credits": CREDITS, "payload_max": str(PAYLOAD_MAX), "models_max": MODELS_MAX, "slo_max": "20s"}
    with cwd.LocalCluster(repository.root, device="emulated:1", pool=16 * PAGE_BYTES, page=PAGE_BYTES, controller=settings,
                          timeout=600) as cluster:
        cluster.wait_servable()
        yield cluster


@pytest.fixture(autouse=True)
def still_serving(request):
    """What a test did is nobody else's trouble: the same process answers a good request, and all is settled."""
    if "cluster" not in request.fixturenames:
        yield
        return
    cluster = request.getfixturevalue("cluster")
    pid, epoch = cluster.pid(), cluster.status()["epoch"]
    yield
    with cluster.client() as client:
        assert client.infer("same-000", BYTE, "20s").output.shape == (1,)
    status = cluster.status()
    assert (cluster.pid(), status["epoch"]) == (pid, epoch)
    assert status["in_flight"] == 0 and status["held_bytes"] == 0


def one_line(error):
    text = str(error.value if hasattr(error, "value") else error)
    assert text and "\n" not in text and "Traceback" not in text, text
    return text


# requests at fault, by our own client and by one that checks nothing


@pytest.mark.parametrize("model, value, slo, code, words", [
    ("nosuch", BYTE, "1s", Code.UNKNOWN_MODEL, "nosuch"),
    ("same-000/9", BYTE, "1s", Code.UNKNOWN_MODEL, "same-000/9"),
    ("same-000", np.zeros(1, np.float32), "1s", Code.BAD_DTYPE, "float32.*uint8"),
    ("same-000", np.zeros(2, np.uint8), "1s", Code.BAD_SHAPE, r"\[2\].*\[1\]"),
    ("same-000", np.zeros((1, 1), np.uint8), "1s", Code.BAD_SHAPE, "leave out the batch axis"),
    ("same-000", {"z": BYTE}, "1s", Code.BAD_INPUT_NAME, "'x' is missing"),
    ("vector", np.zeros(17, np.float32), "1s", Code.UNKNOWN_SIZE, "length=17.*4, 16"),
    ("vector", np.zeros(0, np.float32), "1s", Code.UNKNOWN_SIZE, "length=0"),
    ("same-000", BYTE, None, Code.BAD_SLO, "no SLO"),
    ("same-000", BYTE, -1.0, Code.BAD_SLO, "-1.0"),
    ("same-000", BYTE, 0, Code.BAD_SLO, "SLO of 0"),
    ("same-000", BYTE, "soon", Code.BAD_SLO, "soon"),
    ("same-000", BYTE, "21s", Code.BAD_SLO, "longer than the configured maximum"),
    ("same-000", BYTE, "999h", Code.BAD_SLO, "999h"),
    ("same-000", BYTE, "1ms", Code.SLO_BELOW_EXECUTION, "shorter than the model's own execution"),
])
def test_a_request_at_fault(cluster, model, value, slo, code, words):
    with cluster.client() as client, pytest.raises(cwd.RequestError, match=words) as caught:
        client.infer(model, value, slo)
    assert caught.value.code == code
    one_line(caught)


@pytest.mark.parametrize("changes, code", [
    ({"model": 0}, Code.UNKNOWN_MODEL),
    ({"model": (1 << 64) - 1}, Code.UNKNOWN_MODEL),
    ({"payload": b""}, Code.BAD_PAYLOAD_SIZE),
    ({"payload": b"12"}, Code.BAD_PAYLOAD_SIZE),
    ({"dims": (1,)}, Code.UNKNOWN_SIZE),
    ({"slo_ns": 0}, Code.BAD_SLO),
    ({"slo_ns": (1 << 63) - 1}, Code.BAD_SLO),
    ({"slo_ns": EXEC_NS // 2}, Code.SLO_BELOW_EXECUTION),
])
def test_a_raw_request_at_fault(cluster, changes, code):
    with RawPeer(cluster, "clients") as peer:
        fields = {"request": 5, "model": peer.lookup("same-000"), **changes}
        peer.infer(**fields)
        reply = peer.reply()
        assert (reply["request"], Code(reply["status"])) == (5, code)
        peer.infer(6, peer.lookup("same-000"))
        assert peer.reply()["status"] == 0


def test_sizes_that_overflow(cluster):
    with RawPeer(cluster, "clients") as peer:
        model = peer.lookup("vector")
        for dims in [(0xFFFFFFFF,) * 4, (0xFFFFFFFF,), (4, 4), (0,)]:
            peer.infer(1, model, bytes(16), dims=dims)
            assert peer.reply()["status"] == Code.UNKNOWN_SIZE
        peer.infer(2, model, bytes(12), dims=(4,))
        assert peer.reply()["status"] == Code.BAD_PAYLOAD_SIZE
        peer.infer(3, model, bytes(12), dims=(3,))
        assert peer.reply()["status"] == 0


def test_duplicate_request_ids(cluster):
    """The id of a request in flight is refused, the one in flight is answered; an id may be used again afterwards."""
    with RawPeer(cluster, "clients") as peer:
        model = peer.lookup("same-000")
        for _ in range(3):
            peer.infer(9, model, slo_ns=15 * 10**9)
        assert sorted(peer.reply()["status"] for _ in range(3)) == [0, Code.DUPLICATE_REQUEST, Code.DUPLICATE_REQUEST]
        peer.infer(9, model)
        assert peer.reply()["status"] == 0


def test_too_many_in_flight(cluster):
    with RawPeer(cluster, "clients") as peer, cluster.client() as client:
        model = peer.lookup("same-000")
        for number in range(3 * CREDITS):
            peer.infer(number, model, slo_ns=15 * 10**9)
        answers = [peer.reply()["status"] for _ in range(3 * CREDITS)]
        assert answers.count(Code.CREDIT_EXCEEDED) > 0
        assert answers.count(0) >= CREDITS and set(answers) == {0, Code.CREDIT_EXCEEDED}
        client.lookup("same-000")
        with pytest.raises(cwd.CreditExceeded, match=f"{CREDITS} requests are in flight"):
            for pending in [client.submit("same-000", BYTE, "20s") for _ in range(CREDITS + 1)]:
                pending.result()


def test_a_payload_that_is_too_large(cluster):
    with cluster.client() as client, RawPeer(cluster, "clients") as peer:
        model = client.lookup("same-000")
        with pytest.raises(cwd.BadRequest, match=f"at most {PAYLOAD_MAX}") as caught:
            client._connection.start(client._session.infer, model, bytes(PAYLOAD_MAX + 1), (0, 0, 0, 0), 10**9)
        assert caught.value.code == Code.TOO_LARGE
        peer.infer(1, peer.lookup("same-000"), bytes(PAYLOAD_MAX + 1))
        assert peer.reply()["status"] == Code.TOO_LARGE


# messages at fault


@pytest.mark.parametrize("which", ["clients", "workers", "admin"])
@pytest.mark.parametrize("frames, code", [
    ([b""], Code.MALFORMED),
    ([b"\0"], Code.MALFORMED),
    ([b"GET / HTTP/1.1\r\n\r\n"], Code.MALFORMED),
    ([os.urandom(300)], Code.MALFORMED),
    ([head()], Code.MALFORMED),
    ([head(MAGIC + 1)], Code.UNSUPPORTED_VERSION),
    ([head(kind=99)], Code.UNKNOWN_TYPE),
    ([encode(Type.WELCOME, minor=0, epoch=1, host=bytes(16), now_ns=0, heartbeat_ms=1, lost_ms=1, credits=1,
             payload_bytes_max=1)], Code.UNEXPECTED_TYPE),
])
def test_a_message_at_fault(cluster, which, frames, code):
    with RawPeer(cluster, which) as peer, RawPeer(cluster, which, hello=False) as stranger:
        if head() == frames[0] and which != "clients":
            code = Code.UNEXPECTED_TYPE  # an INFER without its fields: nobody looks further
        peer.send(*frames)
        error = peer.error()
        assert Code(error["code"]) == code and one_line(error["text"] or SENTENCES[code])
        stranger.send(*frames)
        assert stranger.error()["code"] == (code if code == Code.UNSUPPORTED_VERSION else Code.NOT_INTRODUCED)


def test_truncated_at_every_length(cluster):
    with RawPeer(cluster, "clients") as peer:
        model = peer.lookup("same-000")
        whole = encode(Type.INFER, request=1, model=model, slo_ns=10**9, deadline_ns=0, app=0, dims=())
        for size in range(0, len(whole), 3):
            peer.send(whole[:size], b"\7")
            assert peer.error()["code"] in (Code.MALFORMED, Code.UNKNOWN_TYPE)
            time.sleep(0.01)  # errors are rationed: 32 per heartbeat interval
        peer.infer(1, model)
        assert peer.reply()["status"] == 0


@pytest.mark.parametrize("count", [2, 3, 30, 900])
def test_many_frames(cluster, count):
    with RawPeer(cluster, "clients") as peer, RawPeer(cluster, "admin") as admin:
        model = peer.lookup("same-000")
        request = encode(Type.INFER, request=1, model=model, slo_ns=10**9, deadline_ns=0, app=0, dims=())
        peer.send(request, *[b"\7"] * count)
        assert peer.error() | {"text": ""} == {
            "code": Code.TOO_MANY_FRAMES, "re_type": Type.INFER, "re_id": 1, "text": ""}
        admin.send(encode(Type.ADMIN, request=1, verb="status", args={}), *[b"x"] * count)
        assert admin.error()["code"] == Code.TOO_MANY_FRAMES
        peer.send(request)
        assert peer.error()["code"] == Code.MALFORMED
        peer.infer(2, model)
        assert peer.reply()["status"] == 0


def test_a_rare_message_that_is_too_large(cluster):
    with RawPeer(cluster, "clients") as peer:
        peer.say(Type.LOOKUP, request=1, name="x" * 60_000, version=0)
        assert peer.error()["code"] == Code.TOO_LARGE


def test_a_frame_that_nobody_could_want_ends_the_connection(cluster):
    """Far beyond the maximum libzmq itself hangs up; the peer that comes again is a stranger."""
    with RawPeer(cluster, "clients") as peer:
        peer.infer(1, peer.lookup("same-000"), bytes(8 << 20))
        error = None
        while error is None:  # at first the connection is still there, and model 3 is unknown
            peer.infer(2, 3)
            kind, fields = peer.hear(Type.ERROR, Type.REPLY)
            error = fields if kind == Type.ERROR else None
            time.sleep(0.01)
        assert error["code"] == Code.NOT_INTRODUCED


@pytest.mark.parametrize("changes, code, words", [
    ({"role": 2}, Code.UNEXPECTED_TYPE, "role 2"),
    ({"caps": {}}, Code.MALFORMED, "kind is missing"),
    ({"caps": worker_caps(page_bytes=1)}, Code.MALFORMED, "pages of 1 bytes"),
    ({"caps": worker_caps(pages_total=True)}, Code.MALFORMED, "pages_total"),
    ({"caps": worker_caps(pages_total=0)}, Code.MALFORMED, "pages_total is 0"),
    ({"caps": worker_caps(pages_total=-5)}, Code.MALFORMED, "pages_total is -5"),
    ({"caps": worker_caps(pages_total=(1 << 64) - 1)}, Code.MALFORMED, "pages_total"),
    ({"caps": worker_caps(pages_total=1 << 40)}, Code.MALFORMED, "pages_total"),
    ({"caps": worker_caps(images=7)}, Code.MALFORMED, "images"),
])
def test_a_worker_that_says_nonsense(cluster, changes, code, words):
    with RawPeer(cluster, "workers", hello=False) as peer:
        peer.say(Type.HELLO, **{**peer.hello(), **changes})
        error = peer.error()
        assert (Code(error["code"]), words in one_line(error["text"])) == (code, True), error


def test_hello_twice(cluster):
    with RawPeer(cluster, "clients") as peer:
        peer.say(Type.HELLO, **peer.hello())
        assert peer.error()["code"] == Code.UNEXPECTED_TYPE


@pytest.mark.parametrize("verb, args, code", [
    ("nosuch", {}, Code.UNKNOWN_VERB),
    ("status", {"after": "x"}, Code.BAD_ARGUMENT),
    ("status", {"after": -1}, Code.BAD_ARGUMENT),
    ("model.add", {}, Code.BAD_ARGUMENT),
    ("model.add", {"name": "nosuch"}, Code.UNKNOWN_MODEL),
    ("model.add", {"name": "../../etc"}, Code.BAD_MODEL),
    ("model.add", {"name": "same-000", "version": 1}, Code.MODEL_EXISTS),
    ("model.rm", {"name": "nosuch"}, Code.UNKNOWN_MODEL),
])
def test_an_admin_command_at_fault(cluster, verb, args, code):
    with pytest.raises(cwd.CwdError) as caught:
        cluster.admin(verb, **args)
    assert caught.value.code == code
    one_line(caught)


def test_a_client_that_vanishes_with_requests_queued(cluster):
    """Without GOODBYE: its queue is dropped when it has been silent for too long, and then nothing of it is left."""
    before = cluster.status()
    peer = RawPeer(cluster, "clients")
    model = peer.lookup("same-001")
    for number in range(CREDITS):
        peer.infer(number, model, slo_ns=15 * 10**9)
    peer.reply()
    peer.close()
    with cluster.client() as client:
        for _ in range(20):
            assert client.infer("same-000", BYTE, "20s").output[0] in range(256)
    until = time.monotonic() + 60
    while cluster.status()["peers"] > before["peers"]:
        assert time.monotonic() < until, "the connection is still in the table"
        time.sleep(0.1)


# the repository


def broken(repository, name, spoil):
    """A copy of mlp under another name, spoilt by `spoil(folder)`."""
    folder = repository.root / name / "1"
    shutil.copytree(repository.root / "mlp" / "1", folder)
    manifest = folder / "model.json"
    manifest.write_text(manifest.read_text().replace('"mlp"', f'"{name}"'))
    spoil(folder)


def flip_last(path):
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name, spoil, code, words", [
    ("no-manifest", lambda folder: (folder / "model.json").unlink(), Code.BAD_MODEL, "model.json: No such file"),
    ("no-json", lambda folder: (folder / "model.json").write_text('{\n"name": '), Code.BAD_MODEL, "line 2"),
    ("wrong-fields", lambda folder: (folder / "model.json").write_text("[]"), Code.BAD_MODEL, "model.json"),
    ("no-weights", lambda folder: (folder / "weights.safetensors").unlink(), Code.BAD_MODEL, "weights.safetensors"),
    ("flipped", lambda folder: flip_last(folder / "weights.safetensors"), Code.CORRUPT, "sha256"),
    ("cut", lambda folder: os.truncate(folder / "weights.safetensors", 3), Code.CORRUPT, "3 bytes"),
])
def test_a_broken_entry(cluster, repository, name, spoil, code, words):
    broken(repository, name, spoil)
    try:
        with pytest.raises(cwd.CwdError, match=words) as caught:
            cluster.admin("model.add", name=name)
        assert caught.value.code == code
        one_line(caught)
    finally:
        shutil.rmtree(repository.root / name)


def test_a_full_registry_and_a_model_that_is_too_large(cluster, repository):
    from cwd.models import profile
    from cwd.models.importers import add_factory, add_zoo
    from cwd.models.zoo import mlp_options

    large = mlp_options((16, 60_000, 4))
    entry = add_factory(repository, "large", large.pop("factory"), large.pop("args"), large, seed=1)[0]
    profile.write_table(repository, entry.manifest.program_hash, "emulated", {
        pair: EXEC_NS for pair in profile.pairs(entry.manifest.program)}, load_ns_per_page=1_000_000, page_bytes=PAGE_BYTES)
    with pytest.raises(cwd.CwdError, match="pages.*the largest pool has") as caught:
        cluster.admin("model.add", name="large")
    assert caught.value.code == Code.MODEL_TOO_LARGE
    room = MODELS_MAX - cluster.status()["models"]
    added = [entry.manifest.name for entry in add_zoo(repository, "more", "identity", copies=room + 1)]
    for name in added[:-1]:
        cluster.admin("model.add", name=name)
    with pytest.raises(cwd.CwdError, match="table of models is full") as caught:
        cluster.admin("model.add", name=added[-1])
    assert caught.value.code == Code.REGISTRY_FULL
    one_line(caught)
    for name in added[:-1]:
        cluster.admin("model.rm", name=name)
    # a place that became free is one that can be taken
    cluster.admin("model.add", name=added[-1])
    cluster.wait_servable(added[-1])
    cluster.admin("model.rm", name=added[-1])


def test_a_repository_with_bad_entries_is_served_without_them(tmp_path):
    repository = make_repository(tmp_path / "models", copies=1)
    broken(repository, "unreadable", lambda folder: (folder / "model.json").write_text("{"))
    (repository.root / "empty" / "1").mkdir(parents=True)
    with cwd.LocalCluster(repository.root, device="emulated:1", pool=16 * PAGE_BYTES, page=PAGE_BYTES,
                          controller={"models_max": 2}, timeout=600) as cluster:
        cluster.wait_servable()
        with cluster.client() as client:
            found = client.models()
            assert len(found) == 2  # more would have been registered; the table is full, and serving goes on
            assert "mlp/1" in found and client.infer("mlp", np.zeros(16, np.float32), "20s").batch == 1
        said = "\n".join(cluster.last_lines(count=50))
        for words in ("unreadable", "empty", "table of models is full"):
            assert words in said, said
        assert "Traceback" not in said


def test_weights_that_were_changed_are_never_served(tmp_path):
    """A scan does not read weights; the worker does before it holds them, and then nobody is served from them."""
    from cwd.models import profile
    from cwd.models.importers import add_zoo
    from cwd.models.repository import Repository

    repository = Repository(tmp_path / "models", create=True)
    profile.measure_cpu(repository, add_zoo(repository, "mlp", "mlp", seed=3)[0], repeats=5, page_bytes=PAGE_BYTES)
    broken(repository, "flipped", lambda folder: flip_last(folder / "weights.safetensors"))
    with cwd.LocalCluster(repository.root, device="cpu", pool=16 * PAGE_BYTES, page=PAGE_BYTES, timeout=600) as cluster:
        cluster.wait_servable("mlp")
        with cluster.client() as client:
            with pytest.raises(cwd.CwdError, match="flipped") as caught:
                client.infer("flipped", np.zeros(16, np.float32), "1s")
            assert caught.value.code in (Code.NOT_HERE, Code.CORRUPT)
            one_line(caught)
            assert client.infer("mlp", np.zeros(16, np.float32), "20s").output.shape == (4,)
        assert "sha256" in "\n".join(cluster.last_lines("worker-0", 50))


# the command line and the daemons' start


@pytest.mark.parametrize("name, text, words", [
    ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,374,44\nyesterday,1,2\n", ":3: "),
    ("b.csv", "HashOwner,HashApp,HashFunction,Trigger,1,2\na,b,c,http,1,x\n", ":2: "),
    ("c.csv", "one,two\n", ":1: "),
    ("d.txt", "1\n2\nthree\n", ":3: "),
    ("e.txt.gz", None, "e.txt.gz"),
    ("nosuch.csv", "", "nosuch.csv"),
])
def test_a_bad_trace_file(cluster, capfd, tmp_path, name, text, words):
    path = tmp_path / name
    if text is None:
        path.write_bytes(gzip.compress(b"1\n2\n" * 1000)[:-20])
    elif text:
        path.write_text(text)
    code = run(["replay", str(path), "--endpoint", cluster.endpoint(), "--out", str(tmp_path / "report")])
    out, err = capfd.readouterr()
    assert code == 1 and out == "" and len(err.splitlines()) == 1
    assert err.startswith("cwd: error: ") and words in err, err


def test_endpoints_in_use(cluster):
    """A second controller in the same folder ends with one line, and does not take the sockets away."""
    done = subprocess.run([sys.executable, "-m", "cwd", "controller", "--run-dir", str(cluster.folder), "--state-dir",
                           str(cluster.folder / "second")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if "error" in line]
    assert errors == done.stderr.splitlines()[-1:] and "clients.sock: it is in use by another process" in errors[0]


def test_a_port_in_use(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        done = subprocess.run([sys.executable, "-m", "cwd", "controller", "--run-dir", str(tmp_path), "--state-dir",
                               str(tmp_path), "--clients-bind", endpoint], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and f"cannot listen on {endpoint}: it is in use" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_missing_torch(tmp_path, repository):
    """A worker of the cpu kind without torch says what to install; one that is emulated does not need it."""
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-m", "cwd", "worker", "--device", "cpu", "--repo", str(repository.root),
                           "--endpoint", f"ipc://{tmp_path}/none.sock"], capture_output=True, text=True, timeout=120,
                          env=environment)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "cwd: error: the cpu backend needs torch: pip install 'cwd[server]'"


def test_every_code_has_a_sentence_of_its_own():
    assert len(set(SENTENCES.values())) == len(SENTENCES) == len(Code)
    assert all("\n" not in text for text in SENTENCES.values())
