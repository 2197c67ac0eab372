"""Arrays to payload and back, and a clear line for everything that does not fit."""

import numpy as np
import pytest

from cwd.client.call import slo_to_ns
from cwd.client.model import Model, split_name
from cwd.errors import BadRequest, Code, RemoteProtocolError

BERT = {
    "name": "bert", "version": 2, "axes": ["tokens"], "exact": False, "size_classes": [[16], [64]],
    "batch_sizes": [1, 2],
    "inputs": [{"name": "ids", "dtype": "int64", "shape": ["tokens"]},
               {"name": "kinds", "dtype": "int32", "shape": ["tokens", 2]}],
    "outputs": [{"name": "flag", "dtype": "bool", "shape": []},
                {"name": "hidden", "dtype": "float32", "shape": ["tokens", 3]}],
}
ONE = {**BERT, "axes": [], "size_classes": [[]], "inputs": [{"name": "x", "dtype": "float32", "shape": [2, 3]}],
       "outputs": [{"name": "y", "dtype": "float16", "shape": [4]}]}


def bert(**change):
    return Model(1, {**BERT, **change})


def inputs(n, m=None):
    return {"ids": np.arange(n), "kinds": np.ones((n if m is None else m, 2), "i4")}


def test_inputs_are_concatenated_in_the_manifests_order():
    payload, dims = bert().prepare(dict(reversed(inputs(5).items())))
    assert payload == np.arange(5).tobytes() + np.ones((5, 2), "i4").tobytes() and dims == (5, 0, 0, 0)


def test_a_single_input_goes_uncopied():
    x = np.ones((2, 3), "f4")
    for given in (x, {"x": x}):
        payload, dims = Model(1, ONE).prepare(given)
        assert payload is x and dims == (0, 0, 0, 0)
    payload, _ = Model(1, ONE).prepare(np.ones((3, 2), "f4").T)
    assert payload.flags.c_contiguous
    payload, _ = Model(1, ONE).prepare([[1, 2, 3], [4, 5, 6]])
    assert payload.dtype == "f4"


def test_a_scalar_stays_one_beside_a_dynamic_axis():
    scalar = [*BERT["inputs"], {"name": "scale", "dtype": "float32", "shape": []}]
    payload, dims = bert(inputs=scalar).prepare({**inputs(5), "scale": np.array(2, "f4")})
    assert payload.endswith(np.array(2, "f4").tobytes()) and dims == (5, 0, 0, 0)


def test_outputs_have_the_trimmed_shape_and_are_writable():
    hidden = np.arange(15, dtype="f4").reshape(5, 3)
    out = bert().unpack(bytearray(b"\x01" + hidden.tobytes()), (5, 0, 0, 0))
    assert out["flag"].shape == () and out["flag"]
    assert np.array_equal(out["hidden"], hidden) and out["hidden"].flags.aligned
    out["hidden"][0] = 9
    with pytest.raises(RemoteProtocolError, match="60 bytes, where 61"):
        bert().unpack(bytes(60), (5, 0, 0, 0))


@pytest.mark.parametrize("given, code, text", [
    (np.ones(5), Code.BAD_INPUT_NAME, "2 inputs"),
    ({"ids": np.arange(5)}, Code.BAD_INPUT_NAME, "'kinds' is missing"),
    ({**inputs(5), "z": 1}, Code.BAD_INPUT_NAME, "no input 'z'"),
    ({**inputs(5), "ids": np.arange(5.0)}, Code.BAD_DTYPE, "float64"),
    ({**inputs(5), "ids": [1, [2]]}, Code.BAD_DTYPE, "ids"),
    ({**inputs(5), "ids": np.zeros((5, 5), int)}, Code.BAD_SHAPE, "[5, 5]"),
    ({**inputs(5), "ids": np.zeros((1, 5), int)}, Code.BAD_SHAPE, "leave out the batch axis"),
    ({**inputs(5), "kinds": np.zeros((5, 3), "i4")}, Code.BAD_SHAPE, "[tokens, 2]"),
    (inputs(5, 6), Code.BAD_SHAPE, "5 in 'ids' and 6 in 'kinds'"),
    (inputs(65), Code.UNKNOWN_SIZE, "tokens=65"),
    (inputs(0), Code.UNKNOWN_SIZE, "tokens=0"),
])
def test_what_does_not_fit_is_said_in_one_line(given, code, text):
    with pytest.raises(BadRequest) as caught:
        bert().prepare(given)
    assert caught.value.code == code and text in str(caught.value) and "\n" not in str(caught.value)
    assert "bert" in str(caught.value)


def test_without_a_mask_only_equal_sizes_fit():
    assert bert(exact=True).prepare(inputs(16))[1] == (16, 0, 0, 0)
    with pytest.raises(BadRequest) as caught:
        bert(exact=True).prepare(inputs(15))
    assert caught.value.code == Code.UNKNOWN_SIZE and "exactly 16, 64" in str(caught.value)


@pytest.mark.parametrize("broken", [{"inputs": 3}, {"axes": None}, {"inputs": [{"name": "x"}]},
                                    {"outputs": [{"name": "x", "dtype": "nonsense", "shape": []}]}])
def test_a_description_that_does_not_read_is_the_peers_fault(broken):
    with pytest.raises(RemoteProtocolError):
        bert(**broken)


@pytest.mark.parametrize("slo, ns", [("100ms", 10**8), ("2s", 2 * 10**9), (0.25, 25 * 10**7), (3, 3 * 10**9)])
def test_an_slo_is_a_text_or_seconds(slo, ns):
    assert slo_to_ns(slo) == ns


@pytest.mark.parametrize("slo", ["", "100", "-3ms", 0, -1, float("nan"), float("inf"), 1e9, "0ms", "9999999h"])
def test_no_negative_or_absurd_slo(slo):
    with pytest.raises(BadRequest) as caught:
        slo_to_ns(slo)
    assert caught.value.code == Code.BAD_SLO


def test_versions_in_names():
    # what is no number of a version belongs to the name, which nobody has
    assert [split_name(name) for name in ("a/²", "a/٣", "a/" + "9" * 5000)] == [("a/²", 0), ("a/٣", 0), ("a/" + "9" * 5000, 0)]
    assert split_name("a") == ("a", 0) and split_name("a/3") == ("a", 3) and split_name("a", 2) == ("a", 2)
