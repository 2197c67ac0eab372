"""The cpu worker: models through the socket equal the same program run directly, wherever their pages lie."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lone_controller import FakeController

from cwd.errors import Code
from cwd.models import importers, zoo
from cwd.models.repository import Repository
from cwd.net.notify import NotifyListener
from cwd.wire.messages import Type

torch = pytest.importorskip("torch")

PAGE = 1 << 20
COPIES = 3


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Repository:
    """Three instances each of a convnet of 19 pages and of an mlp of one."""
    made = Repository(tmp_path_factory.mktemp("repo"), create=True)
    for name in ("convnet5m", "mlp"):
        options = {**getattr(zoo, f"{name}_options")(), "batch_sizes": [1, 2, 4]}
        importers.add_factory(made, name, options.pop("factory"), options.pop("args"), options, seed=7, copies=COPIES)
    return made


class Worker:
    """`cwd worker` as a process of its own."""

    def __init__(self, repository: Repository, endpoint: str, notify: str, *more: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cwd", "worker", "--repo", str(repository.root), "--endpoint", endpoint,
             "--name", "cpu", "--pages", "40", "--page-bytes", str(PAGE), *more],
            env={**os.environ, "NOTIFY_SOCKET": notify}, stderr=subprocess.PIPE, text=True)

    def end(self, *signals: int) -> tuple[int, str]:
        for number in signals:
            self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=120)
        return self.process.returncode, stderr


def wanted(repository: Repository, key: str, payload: bytes) -> bytes:
    """What the program gives for one request, run directly, alone, with the instance's weights."""
    from cwd.models.program import Program

    name, _, version = key.partition("/")
    entry = repository.get(name, int(version))
    program = Program.load(repository, entry.manifest.program_hash)
    image = np.zeros(entry.manifest.image_bytes + 256, np.uint8)
    image = image[-image.ctypes.data % 256:][:entry.manifest.image_bytes]
    repository.build_image(entry, image)
    return program.infer(program.bind(torch.from_numpy(image)), [payload], [()])[0].tobytes()


def test_instances_equal_torch_before_and_after_eviction(repository, tmp_path):
    rng = np.random.default_rng(3)
    entries = repository.entries()
    endpoint = f"ipc://{tmp_path}/workers.sock"
    with NotifyListener() as listener, FakeController(endpoint) as controller:
        worker = Worker(repository, endpoint, listener.path)
        try:
            peer, hello = controller.hello()
            assert len(hello["caps"]["programs"]) == 32 and len(hello["caps"]["images"]) == 16 * len(entries)
            assert not listener.ready
            controller.welcome(peer)
            for index, program in enumerate(sorted({entry.manifest.program_hash for entry in entries})):
                some = next(entry for entry in entries if entry.manifest.program_hash == program)
                controller.act(peer, Type.PREPARE, name=some.manifest.name, version=some.manifest.version,
                               program=program, image=bytes(16), program_index=index)
                assert controller.result(peer)[0]["status"] == 0
            programs = sorted({entry.manifest.program_hash for entry in entries})
            handle, free, loaded = 0, 40, []
            for entry in entries * 2:  # not all fit at once: the oldest leave, and come back elsewhere
                manifest, handle = entry.manifest, handle + 1
                while free < manifest.pages(PAGE):
                    controller.act(peer, Type.UNLOAD, model=loaded.pop(0))
                    fields, _ = controller.result(peer)
                    assert fields["status"] == 0
                    free = fields["pages_free"]
                controller.load(peer, handle, pages=manifest.pages(PAGE), image=manifest.image_hash,
                                program_index=programs.index(manifest.program_hash))
                fields, _ = controller.result(peer)
                assert fields["status"] == 0
                free = fields["pages_free"]
                loaded.append(handle)
                shape = [size for tensor in manifest.inputs for size in tensor.shape]
                texts = tuple(rng.standard_normal(shape, np.float32).tobytes() for _ in range(3))
                controller.execute(peer, handle, texts, batch=4)
                fields, payload = controller.result(peer)
                assert fields["status"] == 0 and len(payload) == 3
                assert 0 < fields["device_ns"] <= fields["end_ns"] - fields["begin_ns"]
                for text, got in zip(texts, payload, strict=True):
                    alone = np.frombuffer(wanted(repository, manifest.key, text), np.float32)
                    assert np.abs(np.frombuffer(got, np.float32) - alone).max() < 1e-5
            controller.execute(peer, handle, (b"short",))
            assert controller.result(peer)[0]["status"] == Code.BAD_PAYLOAD_SIZE
            controller.execute(peer, handle, (texts[0],), batch=3)
            assert controller.result(peer)[0]["status"] == Code.BAD_BATCH
            controller.act(peer, Type.PROFILE, program_index=0, model=handle, batch=2, size_class=0, repeats=4)
            fields, _ = controller.result(peer)
            assert fields["status"] == 0 and 0 < fields["device_ns"] <= fields["end_ns"] - fields["begin_ns"]
            assert listener.wait_ready(60)
        finally:
            code, stderr = worker.end(signal.SIGTERM)
        assert code == 0, stderr
        assert controller.result(peer)[0]["type"] == Type.GOODBYE


def test_a_corrupt_file_is_named_and_the_others_are_served(repository, tmp_path):
    entry = repository.entries()[-1]
    path = Path(entry.weights_path)
    whole = path.read_bytes()
    endpoint = f"ipc://{tmp_path}/workers.sock"
    try:
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with NotifyListener() as listener, FakeController(endpoint) as controller:
            worker = Worker(repository, endpoint, listener.path)
            try:
                peer, hello = controller.greet()
                assert entry.manifest.image_hash not in hello["caps"]["images"]
                assert len(hello["caps"]["images"]) == 16 * (2 * COPIES - 1)
                controller.act(peer, Type.PREPARE, name=entry.manifest.name, version=1, program_index=0,
                               program=entry.manifest.program_hash, image=entry.manifest.image_hash)
                assert controller.result(peer)[0]["status"] == Code.CORRUPT
            finally:
                code, stderr = worker.end(signal.SIGTERM)
            assert code == 0 and "sha256" in stderr and str(path) in stderr
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize(("more", "text"), [
    (("--device", "tpu"), "device 'tpu' is not"),
    (("--device", "emulated:0"), "0 emulated GPUs"),
    (("--page-bytes", "1000"), "is not a multiple of"),
    (("--pin-core", "4000"), "cannot pin to core 4000"),
    (("--pages", "100000000"), "does not fit"),
    (("--repo", "/nowhere/at/all"), "/nowhere/at/all"),
])
def test_what_a_user_can_get_wrong_is_one_line(repository, tmp_path, more, text):
    worker = Worker(repository, f"ipc://{tmp_path}/w.sock", "", *more)
    code, stderr = worker.end()
    lines = [line for line in stderr.splitlines() if "loading kernels" not in line]
    assert code != 0 and len(lines) == 1 and text in lines[0], stderr


def test_without_torch_the_cpu_backend_says_what_to_install(repository, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')")
    found = subprocess.run(
        [sys.executable, "-m", "cwd", "worker", "--repo", str(repository.root), "--endpoint", f"ipc://{tmp_path}/w.sock"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"}, capture_output=True, text=True, timeout=120,
        check=False)
    lines = [line for line in found.stderr.splitlines() if "loading kernels" not in line]
    assert found.returncode != 0 and len(lines) == 1
    assert "the cpu backend needs torch: pip install 'cwd[server]'" in lines[0]
