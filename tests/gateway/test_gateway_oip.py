"""Reading requests and writing answers, without HTTP: what goes round comes back, and garbage is one `CwdError`."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from asgi import DOUBLE, MIXED, manifest, outputs_of, request
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn

from cwd.client.model import Model
from cwd.errors import BadRequest, Code, CwdError
from cwd.gateway import oip
from cwd.gateway.body import unpacked
from cwd.gateway.tensors import DTYPES, from_json, to_json

X = np.arange(6, dtype="f4").reshape(2, 3)


def parse(body, headers):
    length = headers.get("Inference-Header-Content-Length")
    return oip.parse_request(body, None if length is None else int(length))


def refused(found, code, word=""):
    """Parsing (and fitting to `double`) is refused with this code, and says what is at fault."""
    body, headers = found if isinstance(found, tuple) else (json.dumps(found).encode(), {})
    with pytest.raises(BadRequest) as caught:
        DOUBLE.prepare(oip.fit(parse(body, headers), DOUBLE)[0])
    assert caught.value.code == code and word in caught.value.text and "\n" not in caught.value.text


def tensor(**fields):
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 3], **fields}]}


arrays = st.sampled_from(sorted(DTYPES)).flatmap(lambda name: hn.arrays(
    DTYPES[name], hn.array_shapes(min_dims=0, max_dims=4, max_side=4),
    elements={"allow_nan": False, "allow_infinity": False} if "FP" in name else None))


@given(st.dictionaries(st.text(max_size=5), arrays, max_size=4), st.data())
def test_inputs_come_out_as_they_went_in(inputs, data):
    binary = {name for name, array in inputs.items() if array.dtype == "f2" or data.draw(st.booleans())}
    found = parse(*request(inputs, binary=binary, id="7", timeout=5, app="a"))
    assert (found.id, found.timeout_us, found.app) == ("7", 5, "a") and list(found.inputs) == list(inputs)
    for name, array in inputs.items():
        assert found.inputs[name].dtype == array.dtype and np.array_equal(found.inputs[name], array)
        assert found.inputs[name].shape == array.shape


@given(arrays, st.booleans(), st.booleans())
def test_outputs_come_out_as_they_went_in(array, binary, batched):
    model = Model(1, manifest("m", {}, {"y": (str(array.dtype), array.shape)}))
    asked = oip.Request(binary_default=binary or array.dtype == "f2")
    body, length = oip.encode_answer(asked, model, {"y": array}, {"total_us": 1}, batched)
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    found, outputs = outputs_of(SimpleNamespace(body=body, headers=headers))
    assert (length is None) == (not asked.binary_default)
    assert found["model_name"] == "m" and found["model_version"] == "1" and found["parameters"] == {"total_us": 1}
    assert "id" not in found and outputs["y"].shape == ((1,) if batched else ()) + array.shape
    assert np.array_equal(outputs["y"].reshape(array.shape), array)


@given(st.binary(max_size=300), st.none() | st.integers(0, 400))
def test_any_bytes_are_read_or_refused(body, length):
    try:
        oip.fit(oip.parse_request(body, length), MIXED)
    except CwdError as error:
        assert error.text and "\n" not in error.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(
        ["x", "a", "b", "FP32", "INT64", "BOOL", "BYTES", "FP16", 2**63, -1, 2**200]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["name", "datatype", "shape", "data", "parameters", "binary_data_size", "binary_data"]), inner,
        max_size=5), max_leaves=20)
almost = st.fixed_dictionaries(
    {"inputs": st.lists(st.fixed_dictionaries(
        {"name": st.sampled_from(["x", "a", "b", "c"]) | json_values, "datatype": st.sampled_from([*DTYPES, "BYTES"]) | json_values,
         "shape": st.lists(st.integers(-1, 4), max_size=3) | json_values},
        optional={"data": json_values, "parameters": json_values | st.fixed_dictionaries(
            {"binary_data_size": st.integers(-1, 64) | json_values})}), max_size=3) | json_values},
    optional={"id": json_values, "outputs": json_values, "parameters": json_values | st.fixed_dictionaries(
        {"timeout": json_values, "binary_data_output": json_values, "app": json_values})})


@given(almost, st.binary(max_size=64))
def test_almost_requests_are_read_or_refused(found, rest):
    head = json.dumps(found).encode()
    for model in (DOUBLE, MIXED):
        try:
            inputs, _ = oip.fit(oip.parse_request(head + rest, len(head)), model)
            model.prepare(inputs)
        except CwdError as error:
            assert error.text and "\n" not in error.text


@given(st.binary(max_size=200), st.sampled_from([b"gzip", b"deflate", b"br", b"\xff"]))
def test_any_compressed_bytes_are_unpacked_or_refused(body, encoding):
    with pytest.raises(BadRequest):
        unpacked(body + b"?", encoding, 1000)


def test_nested_and_flat_data_are_the_same():
    for data in (X.tolist(), X.ravel().tolist(), [[[0, 1, 2]], [[3.0, 4, 5]]]):
        found = parse(json.dumps(tensor(data=data)).encode(), {})
        assert np.array_equal(found.inputs["x"], X) and found.inputs["x"].flags.c_contiguous


@pytest.mark.parametrize("datatype, data", [
    ("INT8", [128]), ("UINT8", [-1]), ("INT32", [1.0]), ("INT64", [2**63]), ("INT64", [2**80]), ("INT16", ["1"]),
    ("FP32", [1e39]), ("FP64", ["1"]), ("FP32", [None]), ("FP32", [{}]), ("BOOL", [2]), ("BOOL", [0.0]), ("FP16", [1.0]),
    ("FP64", [True]),
])
def test_no_value_is_bent(datatype, data):
    with pytest.raises(BadRequest) as caught:
        from_json("x", DTYPES[datatype], (1,), data)
    assert caught.value.code == Code.BAD_DTYPE and "'x'" in caught.value.text


def test_faults_are_named():
    refused(tensor(data=[1, 2]), Code.BAD_SHAPE, "2 elements")
    refused(tensor(data=[[1], [2, 3]]), Code.BAD_SHAPE, "ragged")
    refused(tensor(datatype="BYTES", data=["a"] * 6), Code.BAD_DTYPE, "BYTES")
    refused(tensor(datatype="UINT64", data=[1] * 6), Code.BAD_DTYPE, "UINT64")
    refused(tensor(datatype="FP31", data=[1] * 6), Code.BAD_DTYPE, "FP31")
    refused(tensor(shape=[-1, 3], data=[]), Code.BAD_SHAPE)
    refused(tensor(datatype="FP64", data=[1] * 6), Code.BAD_DTYPE, "float64")
    refused(tensor(), Code.BAD_PAYLOAD_SIZE, "neither data")
    refused(tensor(parameters={"shared_memory_region": "r"}), Code.BAD_ARGUMENT, "shared memory")
    refused({"parameters": {"sequence_id": 3}, **tensor(data=[0] * 6)}, Code.BAD_ARGUMENT, "sequences")
    refused({"parameters": {"timeout": "1"}, **tensor(data=[0] * 6)}, Code.BAD_SLO, "microseconds")
    refused({"parameters": {"timeout": -1}, **tensor(data=[0] * 6)}, Code.BAD_SLO)
    refused({"inputs": []}, Code.BAD_INPUT_NAME, "'x'")
    refused({"inputs": tensor(data=[0] * 6)["inputs"] * 2}, Code.BAD_INPUT_NAME, "twice")
    refused({"outputs": [{"name": "z"}], **tensor(data=[0] * 6)}, Code.BAD_INPUT_NAME, "'z'")
    refused({"id": 7, **tensor(data=[0] * 6)}, Code.BAD_ARGUMENT, "id")
    refused((b"[" * 100_000, {}), Code.MALFORMED, "JSON")
    refused((b'{"inputs": NaN}', {}), Code.MALFORMED, "JSON")
    refused((b"[]", {}), Code.MALFORMED, "object")
    body, headers = request({"x": X}, binary=["x"])
    refused((body[:-1], headers), Code.BAD_PAYLOAD_SIZE, "23 left")
    refused((body + b"!", headers), Code.BAD_PAYLOAD_SIZE, "1 bytes follow")
    refused((body, {"Inference-Header-Content-Length": "9999"}), Code.MALFORMED, "9999")
    flags, headers = request({"x": np.ones((2, 3), "?")}, binary=["x"])
    refused((flags[:-1] + b"\x02", headers), Code.BAD_DTYPE, "neither 0 nor 1")


def test_a_batch_axis_of_one_is_understood():
    found = parse(*request({"x": X[None]}))
    inputs, batched = oip.fit(found, DOUBLE)
    assert batched and np.array_equal(inputs["x"], X)
    inputs, batched = oip.fit(parse(*request({"x": X})), DOUBLE)
    assert not batched and inputs["x"].shape == (2, 3)
    # of two examples only the model's own check speaks
    refused(request({"x": np.stack([X, X])}), Code.BAD_SHAPE, "[2, 2, 3]")
    mixed = {"a": np.ones((1, 2), "f4"), "b": np.ones((1, 5), "i8"), "c": np.ones(1, "?")}
    inputs, batched = oip.fit(parse(*request(mixed)), MIXED)
    assert batched and inputs["c"].shape == () and inputs["b"].shape == (5,)


def test_a_request_without_json_is_the_one_input():
    inputs, _ = oip.fit(oip.parse_request(X.tobytes(), 0), DOUBLE)
    assert np.array_equal(inputs["x"], X)
    dynamic = Model(1, manifest("d", {"x": ("int16", ("n", 2))}, {}, axes=["n"], classes=[[4]]))
    inputs, _ = oip.fit(oip.parse_request(bytes(12), 0), dynamic)
    assert inputs["x"].shape == (3, 2)
    for model, body in ((DOUBLE, b"x"), (dynamic, bytes(13)), (MIXED, b"")):
        with pytest.raises(BadRequest):
            oip.fit(oip.parse_request(body, 0), model)


def test_only_the_outputs_that_are_wanted():
    outputs = {"sum": np.array(1.5), "half": np.ones(2, "f2"), "back": np.arange(3)}
    asked = parse(*request({}, outputs=[{"name": "back", "parameters": {"binary_data": True}}, {"name": "sum"}]))
    body, length = oip.encode_answer(asked, MIXED, outputs, {}, False)
    found = json.loads(body[:length])
    assert [entry["name"] for entry in found["outputs"]] == ["sum", "back"]
    assert found["outputs"][0]["data"] == [1.5] and body[length:] == outputs["back"].tobytes()
    for name, array in (("half", outputs["half"]), ("sum", np.array(np.nan))):
        with pytest.raises(BadRequest):
            to_json(name, array)


def test_metadata_and_config():
    found = oip.metadata(MIXED, [1, 3])
    assert found["versions"] == ["1", "3"]
    assert found["inputs"][1] == {"name": "b", "datatype": "INT64", "shape": [-1]}
    assert found["outputs"][0] == {"name": "sum", "datatype": "FP64", "shape": []}
    config = oip.config(MIXED)
    assert config["max_batch_size"] == 0 and config["input"][2] == {"name": "c", "data_type": "TYPE_BOOL", "dims": []}
    assert config["parameters"]["size_classes"] == {"string_value": "8"}
