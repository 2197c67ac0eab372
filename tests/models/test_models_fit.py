"""Fitting requests into batches, against a naive twin, with the JIT as configured."""

from __future__ import annotations

import models_naive as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwd.errors import Code, RepositoryError
from cwd.models import fit
from cwd.models.spec import ITEM_BYTES, ProgramSpec, TensorSpec

AXES = ("a", "b")


def shapes() -> st.SearchStrategy:
    return st.lists(st.one_of(st.integers(1, 4), st.sampled_from(AXES)), max_size=4).map(tuple)


@st.composite
def specs(draw: st.DrawFn) -> ProgramSpec:
    dtype = st.sampled_from(sorted(ITEM_BYTES))
    inputs = [TensorSpec(f"x{i}", draw(dtype), draw(shapes()), pad=draw(st.integers(0, 1)))
              for i in range(draw(st.integers(1, 3)))]
    inputs.append(TensorSpec("both", "int16", AXES, pad=1))
    if draw(st.booleans()):
        inputs.insert(draw(st.integers(0, len(inputs))), TensorSpec("mask", draw(dtype), draw(shapes()), made="mask"))
    outputs = [TensorSpec(f"y{i}", draw(dtype), draw(shapes())) for i in range(draw(st.integers(1, 3)))]
    return ProgramSpec(tuple(inputs), tuple(outputs), batch_sizes=(1, 2, 4), factory="m:f", axes=AXES, padding="mask",
                       size_classes=((2, 3), (5, 4)))


def random_array(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    return random.integers(0, 120, shape).astype(dtype)


@settings(deadline=None, max_examples=80)
@given(specs(), st.data())
def test_fit_equals_the_naive_twin(spec: ProgramSpec, data: st.DataObject) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size_class = data.draw(st.integers(0, 1))
    limits = spec.size_classes[size_class]
    n = data.draw(st.integers(1, 4))
    batch = data.draw(st.integers(n, 4))
    dims = [tuple(data.draw(st.integers(1, limit)) for limit in limits) for _ in range(n)]
    requests = [[random_array(random, t.dtype, t.sizes(AXES, sizes)) for t in spec.client_inputs()] for sizes in dims]
    payloads = [b"".join(array.tobytes() for array in arrays) for arrays in requests]
    assert [len(payload) for payload in payloads] == [spec.payload_bytes(sizes) for sizes in dims]

    plan = fit.make_plan(spec)
    taken = fit.requests_of(payloads, dims)
    arrays = [random_array(random, t.dtype, (batch, *t.sizes(AXES, limits))) for t in spec.inputs]
    targets = np.array([array.ctypes.data for array in arrays], np.int64)
    assert fit.fit_inputs(plan.inputs, plan.patterns, plan.classes[size_class], batch, taken.addresses, taken.sizes,
                          taken.dims, n, targets) == fit.OK
    for got, wanted in zip(arrays, naive.fit_inputs(spec, size_class, batch, requests, dims), strict=True):
        np.testing.assert_array_equal(got, wanted)

    outputs = [random_array(random, t.dtype, (batch, *t.sizes(AXES, limits))) for t in spec.outputs]
    results = [np.zeros(int(fit.row_bytes(plan.outputs, row)) + 8, np.uint8) for row in taken.dims]
    fit.fit_outputs(plan.outputs, plan.classes[size_class], taken.dims, n,
                    np.array([array.ctypes.data for array in outputs], np.int64),
                    np.array([result.ctypes.data for result in results], np.int64))
    for result, wanted_bytes in zip(results, naive.fit_outputs(spec, outputs, dims), strict=True):
        assert result[:-8].tobytes() == wanted_bytes
        assert not result[-8:].any(), "wrote past the request's output"


@given(specs(), st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_payload_terms_are_payload_bytes(spec: ProgramSpec, dims: tuple[int, int]) -> None:
    padded = (*dims, 0, 0)
    total = sum(c * int(np.prod([padded[k] ** e[k] for k in range(4)])) for c, e in spec.payload_terms())
    assert total == spec.payload_bytes(dims)
    assert total == fit.row_bytes(fit.make_plan(spec).inputs, np.array(padded, np.uint32))


def one_axis() -> ProgramSpec:
    return ProgramSpec((TensorSpec("x", "float32", ("a",), pad=-1),), (TensorSpec("y", "float32", ("a",)),), (1, 2),
                       factory="m:f", axes=("a",), padding="free", size_classes=((4,),))


@pytest.mark.parametrize(("n", "dims", "nbytes", "code"), [
    (3, 2, 8, Code.BAD_BATCH), (0, 2, 8, Code.BAD_BATCH), (1, 5, 20, Code.UNKNOWN_SIZE), (1, 0, 0, Code.UNKNOWN_SIZE),
    (1, 2, 7, Code.BAD_PAYLOAD_SIZE), (1, 2, 12, Code.BAD_PAYLOAD_SIZE), (1, 2**32 - 1, 8, Code.UNKNOWN_SIZE),
])
def test_what_does_not_fit_is_refused_before_anything_is_written(n: int, dims: int, nbytes: int, code: Code) -> None:
    plan = fit.make_plan(one_axis())
    taken = fit.requests_of([bytes(nbytes)] * max(n, 1), [(dims,)] * max(n, 1))
    array = np.full((2, 4), 7, np.float32)
    found = fit.fit_inputs(plan.inputs, plan.patterns, plan.classes[0], 2, taken.addresses, taken.sizes, taken.dims, n,
                           np.array([array.ctypes.data], np.int64))
    assert found == code
    assert (array == 7).all()


@pytest.mark.parametrize(("dtype", "pad"), [("uint8", 256), ("uint8", -1), ("int64", 0.5), ("int8", 1e30)])
def test_a_pad_value_that_its_dtype_cannot_hold_is_an_error(dtype: str, pad: float) -> None:
    spec = ProgramSpec((TensorSpec("x", dtype, ("a",), pad=pad),), (), (1,), factory="m:f", axes=("a",),
                       size_classes=((4,),))
    with pytest.raises(RepositoryError, match="pad value"):
        fit.make_plan(spec)


def test_warm_compiles_all_entry_points() -> None:
    fit.warm()
