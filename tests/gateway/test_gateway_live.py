"""A real cluster behind a real gateway: tritonclient and perf_analyzer as they come, beside the native client."""

from __future__ import annotations

import asyncio
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from asgi import request

import cwd
from cwd.bench.gateway import gateway_of

pytest.importorskip("torch")
pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
PERF_ANALYZER = os.environ.get("CWD_PERF_ANALYZER") or shutil.which(
    "perf_analyzer", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(cluster, "host:port" of its gateway): an mlp, two identities and a model of two inputs, on the CPU."""
    two_inputs = pytest.importorskip("two_inputs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CWD_FACTORIES", "two_inputs")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]))
        from cwd.models import profile
        from cwd.models.importers import add_factory, add_zoo
        from cwd.models.repository import Repository

        repo = Repository(tmp_path_factory.mktemp("models") / "models", create=True)
        entries = add_zoo(repo, "same", "identity", copies=2) + add_zoo(repo, "mlp", "mlp", seed=3)
        entries += add_factory(repo, "two", "two_inputs:TwoInputs", {}, two_inputs.OPTIONS, seed=1)
        for entry in (entries[0], *entries[2:]):
            profile.measure_cpu(repo, entry, budget_ns=200_000_000)
        with cwd.LocalCluster(repo.root, device="cpu", pool="16MiB") as cluster:
            cluster.wait_servable()
            gateway = gateway_of(cluster, "--admin-endpoint", cluster.endpoint("admin"), "--slo", "5s")
            gateway.start()
            try:
                gateway.wait_ready(60)
                yield cluster, gateway.status.rpartition("//")[2]
            finally:
                assert gateway.stop(10) == 0


@pytest.fixture
def triton(served):
    http = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    with http.InferenceServerClient(served[1], concurrency=2) as client:
        yield client


def tensor(name, array, datatype, binary=True):
    from tritonclient.http import InferInput

    found = InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def refused(status, call, *args, **options):
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException) as caught:
        call(*args, **options)
    assert caught.value.status() == str(status)
    return caught.value.message()


def test_health_and_metadata(triton):
    assert triton.is_server_live() and triton.is_server_ready()
    assert triton.is_model_ready("mlp") and triton.is_model_ready("mlp", "1")
    assert not triton.is_model_ready("mlp", "2") and not triton.is_model_ready("nosuch")
    assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
    found = triton.get_model_metadata("two")
    assert found["inputs"] == [{"name": "words", "datatype": "FP32", "shape": [-1, 3]},
                               {"name": "weights", "datatype": "INT64", "shape": [-1]}]
    assert triton.get_model_config("two")["output"][1] == {"name": "total", "data_type": "TYPE_INT64", "dims": [1]}
    assert "nosuch" in refused(404, triton.get_model_metadata, "nosuch")


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_the_same_answers_as_the_native_client(served, triton, compression):
    from tritonclient.http import InferRequestedOutput

    with served[0].client(slo="5s") as native:
        for rows in (1, 4, 11):
            words, weights = RNG.standard_normal((rows, 3)).astype("f4"), RNG.integers(-5, 5, rows)
            wanted = native.infer("two", {"words": words, "weights": weights})
            for binary_in in ((True, True), (True, False), (False, False)):
                inputs = [tensor("words", words, "FP32", binary_in[0]), tensor("weights", weights, "INT64", binary_in[1])]
                for outputs in (None, [InferRequestedOutput("total", binary_data=False),
                                       InferRequestedOutput("scaled", binary_data=binary_in[1])]):
                    answer = triton.infer("two", inputs, outputs=outputs, request_id="q", timeout=4_000_000,
                                          request_compression_algorithm=compression)
                    for name in ("scaled", "total"):
                        found = answer.as_numpy(name)
                        assert found.dtype == wanted[name].dtype and np.array_equal(found, wanted[name])
            assert answer.get_response()["id"] == "q"
            facts = answer.get_response()["parameters"]
            assert facts["batch_size"] == 1 and 0 < facts["queued_us"] + facts["executed_us"] <= facts["total_us"]


def test_a_leading_axis_of_one(triton):
    x = RNG.standard_normal((1, 16)).astype("f4")
    answer = triton.infer("mlp", [tensor("x", x, "FP32")]).as_numpy("y")
    assert answer.shape == (1, 4)
    assert np.array_equal(answer[0], triton.infer("mlp", [tensor("x", x[0], "FP32")]).as_numpy("y"))


def test_refusals_are_clear(triton):
    x = RNG.standard_normal(16).astype("f4")
    assert "BYTES" in refused(400, triton.infer, "mlp", [tensor("x", np.array([b"a"] * 16, object), "BYTES")])
    assert "FP64" in refused(400, triton.infer, "mlp", [tensor("x", x.astype("f8"), "FP64")]).replace("float64", "FP64")
    assert "[16]" in refused(400, triton.infer, "mlp", [tensor("x", x[:15], "FP32")])
    assert "'x' is missing" in refused(400, triton.infer, "mlp", [])
    refused(503, triton.infer, "mlp", [tensor("x", x, "FP32")], timeout=20)


def test_overload_is_503_with_the_time_to_come_back(served):
    """A hundred at once with too little time for all: each is answered, or refused with a reason; never 504."""
    aiohttp = pytest.importorskip("aiohttp")
    inputs = {"words": np.ones((16, 3), "f4"), "weights": np.ones(16, "i8")}

    async def main():
        async with aiohttp.ClientSession(f"http://{served[1]}", connector=aiohttp.TCPConnector(limit=100)) as session:
            async def one(timeout):
                body, headers = request(inputs, timeout=timeout)
                async with session.post("/v2/models/two/infer", data=body, headers=headers) as answer:
                    return answer.status, await answer.json(), answer.headers.get("Retry-After")

            for _ in range(5):
                assert (await one(5_000_000))[0] == 200
            found = await asyncio.gather(*(one(4_000) for _ in range(100)))
            assert {status for status, _, _ in found} <= {200, 503} and any(status == 503 for status, _, _ in found)
            # whoever came too late for a plan is told when there would be one, if the controller knows
            for _, told, wait in found:
                helps = "earliest_us" in told and told["code"] != "SLO_BELOW_EXECUTION"
                assert helps == (wait is not None) and (wait is None or int(wait) >= 1)
            assert (await one(5_000_000))[0] == 200

    asyncio.run(main())


def test_the_asyncio_client(served):
    aio = pytest.importorskip("tritonclient.http.aio")

    async def main():
        async with aio.InferenceServerClient(served[1]) as client:
            assert await client.is_server_ready() and (await client.get_model_metadata("same-000"))["versions"] == ["1"]
            answers = await asyncio.gather(*(
                client.infer("same-000", [tensor("x", np.array([i], "u1"), "UINT8")]) for i in range(40)))
            assert [answer.as_numpy("y")[0] for answer in answers] == list(range(40))
            assert (await client.get_inference_statistics("same-000"))["model_stats"][0]["inference_count"] == 40

    asyncio.run(main())


def test_repository_calls(served, triton):
    def index():
        return {(entry["name"], entry["state"]) for entry in triton.get_model_repository_index()}

    assert ("same-001", "READY") in index()
    triton.load_model("same-001")  # it is there already: a hint at most
    triton.unload_model("same-001")
    assert "same-001" not in {name for name, _ in index()} and not triton.is_model_ready("same-001")
    assert set(served[0].client().models()) == {"same-000/1", "mlp/1", "two/1"}
    triton.load_model("same-001")
    assert triton.is_model_ready("same-001") and ("same-001", "READY") in index()
    assert "nosuch" in refused(404, triton.load_model, "nosuch") and refused(404, triton.unload_model, "nosuch")
    assert "config" in refused(400, triton.load_model, "mlp", config=json.dumps({"max_batch_size": 8}))


def test_statistics_are_what_was_asked(triton):
    def counts():
        entry, = triton.get_inference_statistics("mlp")["model_stats"]
        stats = entry["inference_stats"]
        return np.array([entry["inference_count"], entry["execution_count"], stats["success"]["count"],
                         stats["queue"]["count"], stats["fail"]["count"]])

    before, x = counts(), tensor("x", np.zeros(16, "f4"), "FP32")
    for _ in range(7):
        triton.infer("mlp", [x])
    refused(400, triton.infer, "mlp", [tensor("x", np.zeros(15, "f4"), "FP32")])
    assert list(counts() - before) == [7, 7, 7, 7, 1]


@pytest.mark.skipif(PERF_ANALYZER is None, reason="no perf_analyzer here: tools/perf_analyzer brings it")
@pytest.mark.parametrize("mode", ["--concurrency-range=4", "--request-rate-range=100"])
def test_perf_analyzer_runs_unmodified(served, mode, tmp_path):
    done = subprocess.run(
        [PERF_ANALYZER, "-m", "two", "-u", served[1], "--shape=words:4,3", "--shape=weights:4", mode, "-f",
         str(tmp_path / "out.csv"), "--measurement-mode=count_windows", "--measurement-request-count=50",
         "--stability-percentage=100000"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    row, = csv.DictReader((tmp_path / "out.csv").open())
    assert float(row["Inferences/Second"]) > 0 and "Client Send" in row
    server = done.stdout[done.stdout.index("Server:"):]
    found = {name: int(count) for name, count in re.findall(r"(Inference|Execution|Successful request) count: (\d+)", server)}
    assert found["Inference"] == found["Successful request"] >= found["Execution"] > 0
