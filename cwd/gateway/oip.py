"""Requests to infer, and their answers, in the Open Inference Protocol v2 with its binary tensors.

Sans-IO: a body and the length of its JSON go in, named arrays come out, and the other way round. Whatever bytes come, a
`CwdError` of one line is the only exception. The tensors of binary inputs stay where they are: arrays lie over the body.

A request is one example, so shapes have no batch axis and `max_batch_size` is 0. Clients that put a batch axis of size
one in front of every input are understood, and their outputs get one, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from cwd.client.model import Model, Tensor
from cwd.errors import BadRequest, Code
from cwd.gateway.tensors import datatype_of, dtype_of, from_bytes, from_json, shape_of, to_json

#: how many inputs, or outputs, a request may name
_TENSORS_MAX = 256
#: a `timeout` beyond it is a mistake, and would not fit into the protocol's nanoseconds
_TIMEOUT_MAX_US = 86_400 * 10**6
#: parameters of the protocol's extensions that would change an answer, and are not there
_UNSERVED = {
    "sequence_id": "sequences", "sequence_start": "sequences", "sequence_end": "sequences",
    "shared_memory_region": "shared memory", "classification": "classification",
}


@dataclass
class Request:
    """A parsed request. `binary` says for each named output, and else for all, whether it is wanted as bytes."""

    id: str | None = None
    #: 0 if it has none
    timeout_us: int = 0
    app: str | None = None
    #: of an application that learns for each user or session: which
    context: str | None = None
    #: the status that a default answer shall have; 0 for its own
    default_status: int = 0
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    #: None for all
    outputs: tuple[str, ...] | None = None
    binary: dict[str, bool] = field(default_factory=dict)
    binary_default: bool = False
    #: the only input's bytes, of a request without JSON
    raw: memoryview | None = None


def fault(text: str, code: Code = Code.MALFORMED) -> BadRequest:
    """A request that is not what the protocol says."""
    return BadRequest(text, code=code)


def parse_request(body: bytes, json_bytes: int | None) -> Request:
    """The request in a body whose first `json_bytes` are JSON (None: all; 0: none, it is the one input's bytes)."""
    if json_bytes == 0:
        return Request(raw=memoryview(body), binary_default=True)
    if json_bytes is not None and not 0 < json_bytes <= len(body):
        raise fault(f"the header says {json_bytes} bytes of JSON, and the body has {len(body)} bytes")
    found = read_json(body[:json_bytes])
    rest = memoryview(body)[len(body) if json_bytes is None else json_bytes:]
    parameters = _parameters(found, "the request")
    request = Request(id=_text(found, "id", "the request's id"), timeout_us=_timeout_us(parameters),
                      app=_text(parameters, "app", "parameter 'app'"),
                      context=_text(parameters, "context", "parameter 'context'"),
                      default_status=_default_status(parameters))
    request.binary_default = _flag(parameters, "binary_data_output", "the request")
    _read_outputs(request, found)
    for index, entry in enumerate(_entries(found, "inputs")):
        name = _name(entry, f"inputs[{index}]")
        if name in request.inputs:
            raise fault(f"input {name!r} occurs twice", Code.BAD_INPUT_NAME)
        request.inputs[name], rest = _input(name, entry, rest)
    if rest.nbytes:
        raise fault(f"{rest.nbytes} bytes follow the last binary input", Code.BAD_PAYLOAD_SIZE)
    return request


def read_json(text: bytes) -> dict[str, Any]:
    """A JSON object; `CwdError` for all else.

    By orjson: an image in JSON takes the standard library's parser 60 ms, during which nobody else is served.
    """
    try:
        found = orjson.loads(text)
    except ValueError as error:
        raise fault(f"the request's JSON does not parse: {error}"[:200]) from None
    if not isinstance(found, dict):
        raise fault("the request's JSON is not an object")
    return found


def _parameters(owner: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = owner.get("parameters", {})
    if not isinstance(found, dict):
        raise fault(f"{where}: its parameters are not an object")
    for name, what in _UNSERVED.items():
        # false and 0 ask for nothing
        if found.get(name):
            raise fault(f"{where}: there is no {what} here (parameter {name!r})", Code.BAD_ARGUMENT)
    return found


def _flag(parameters: Mapping[str, Any], name: str, where: str, default: bool = False) -> bool:
    found = parameters.get(name, default)
    if not isinstance(found, bool):
        raise fault(f"{where}: parameter {name!r} is neither true nor false", Code.BAD_ARGUMENT)
    return found


def _text(owner: Mapping[str, Any], name: str, what: str) -> str | None:
    """A text that can be sent on as UTF-8; None without one."""
    given = owner.get(name)
    try:
        if given is not None:
            given.encode()
    except (AttributeError, UnicodeEncodeError):
        raise fault(f"{what} is not a text", Code.BAD_ARGUMENT) from None
    return given


def _timeout_us(parameters: Mapping[str, Any]) -> int:
    given = parameters.get("timeout", 0)
    if type(given) is not int or not 0 <= given <= _TIMEOUT_MAX_US:
        raise fault("parameter 'timeout' is not a whole number of microseconds, at most a day", Code.BAD_SLO)
    return given


def _default_status(parameters: Mapping[str, Any]) -> int:
    given = parameters.get("default_status", 0)
    if given not in (0, 200, 203) or isinstance(given, bool):
        raise fault("parameter 'default_status' is 200 or 203", Code.BAD_ARGUMENT)
    return int(given)


def _entries(found: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = found.get(key, [])
    if not isinstance(entries, list) or len(entries) > _TENSORS_MAX or not all(isinstance(e, dict) for e in entries):
        raise fault(f"the request's {key} are not an array of at most {_TENSORS_MAX} objects")
    return entries


def _name(entry: Mapping[str, Any], where: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str):
        raise fault(f"{where} has no name", Code.BAD_INPUT_NAME)
    return name


def _read_outputs(request: Request, found: Mapping[str, Any]) -> None:
    entries = _entries(found, "outputs")
    for index, entry in enumerate(entries):
        name = _name(entry, f"outputs[{index}]")
        parameters = _parameters(entry, f"output {name!r}")
        request.binary[name] = _flag(parameters, "binary_data", f"output {name!r}", request.binary_default)
    if entries:
        request.outputs = tuple(request.binary)


def _input(name: str, entry: Mapping[str, Any], rest: memoryview) -> tuple[np.ndarray, memoryview]:
    """One input, and what is left of the body's binary part behind it."""
    parameters = _parameters(entry, f"input {name!r}")
    dtype, shape = dtype_of(name, entry.get("datatype")), shape_of(name, entry.get("shape"))
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in entry:
            raise fault(f"input {name!r} has neither data nor binary_data_size", Code.BAD_PAYLOAD_SIZE)
        return from_json(name, dtype, shape, entry["data"]), rest
    if type(size) is not int or size < 0 or "data" in entry:
        raise fault(f"input {name!r}: binary_data_size is a number of bytes, and stands instead of data",
                    Code.BAD_PAYLOAD_SIZE)
    if size > rest.nbytes:
        raise fault(f"input {name!r} has {size} bytes, and the body has {rest.nbytes} left", Code.BAD_PAYLOAD_SIZE)
    return from_bytes(name, dtype, shape, rest[:size]), rest[size:]


def fit(request: Request, model: Model) -> tuple[dict[str, np.ndarray], bool]:
    """The inputs as the native client takes them, and whether they had a batch axis of one. Raises `BadRequest`."""
    if request.raw is not None:
        return _raw_input(request.raw, model), False
    if request.outputs is not None:
        known = {tensor.name for tensor in model.outputs}
        for name in request.outputs:
            if name not in known:
                raise fault(f"{model.name} has no output {name!r:.60}; it has {', '.join(sorted(known))}",
                            Code.BAD_INPUT_NAME)
    inputs = request.inputs
    ranks = {tensor.name: len(tensor.shape) for tensor in model.inputs}
    if inputs and all(name in ranks and array.ndim == ranks[name] + 1 and array.shape[0] == 1 for name, array in inputs.items()):
        return {name: array[0] if array.ndim > 1 else array.reshape(()) for name, array in inputs.items()}, True
    return inputs, False


def _raw_input(raw: memoryview, model: Model) -> dict[str, np.ndarray]:
    """A request without JSON: the bytes of the only input; one axis may be left to find out."""
    if len(model.inputs) != 1:
        raise fault(f"{model.name} takes {len(model.inputs)} inputs: a request without JSON has one",
                    Code.BAD_INPUT_NAME)
    (tensor,) = model.inputs
    named = [size for size in tensor.shape if isinstance(size, str)]
    if len(named) > 1:
        raise fault(f"{model.name}: the sizes of {', '.join(named)} do not follow from bytes alone: send JSON",
                    Code.BAD_SHAPE)
    fixed = tensor.dtype.itemsize
    for size in tensor.shape:
        fixed *= size if isinstance(size, int) else 1
    shape = tuple(raw.nbytes // fixed if isinstance(size, str) else size for size in tensor.shape)
    return {tensor.name: from_bytes(tensor.name, tensor.dtype, shape, raw)}


def encode_answer(request: Request, model: Model, outputs: Mapping[str, np.ndarray], facts: Mapping[str, Any],
                  batched: bool) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON (None: it is nothing else). `facts` become its parameters."""
    entries, blobs = [], []
    for tensor in model.outputs:
        if request.outputs is not None and tensor.name not in request.binary:
            continue
        array = outputs[tensor.name]
        entry: dict[str, Any] = {"name": tensor.name, "datatype": datatype_of(tensor.dtype),
                                 "shape": [1, *array.shape] if batched else list(array.shape)}
        if request.binary.get(tensor.name, request.binary_default):
            blobs.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = to_json(tensor.name, array)
        entries.append(entry)
    answer: dict[str, Any] = {"model_name": model.name, "model_version": str(model.version)}
    if request.id is not None:
        answer["id"] = request.id
    head = orjson.dumps({**answer, "parameters": dict(facts), "outputs": entries}, option=orjson.OPT_SERIALIZE_NUMPY)
    return (b"".join((head, *blobs)), len(head)) if blobs else (head, None)


def metadata(model: Model, versions: Sequence[int]) -> dict[str, Any]:
    """What GET /v2/models/NAME tells. Dynamic axes are -1."""
    return {
        "name": model.name, "versions": [str(version) for version in versions], "platform": "cwd",
        "inputs": [_tensor(tensor, "datatype", "shape") for tensor in model.inputs],
        "outputs": [_tensor(tensor, "datatype", "shape") for tensor in model.outputs],
    }


def config(model: Model) -> dict[str, Any]:
    """What GET /v2/models/NAME/config tells, in the fields of other servers; what only cwd has are parameters."""
    def texts(values: Sequence[Any]) -> dict[str, str]:
        return {"string_value": ",".join(map(str, values))}

    classes = ["x".join(map(str, sizes)) for sizes in model.size_classes]
    return {
        "name": model.name, "platform": "cwd", "backend": "cwd", "max_batch_size": 0,
        "version_policy": {"specific": {"versions": [model.version]}},
        "input": [_tensor(tensor, "data_type", "dims") for tensor in model.inputs],
        "output": [_tensor(tensor, "data_type", "dims") for tensor in model.outputs],
        "model_transaction_policy": {"decoupled": False},
        "parameters": {"batch_sizes": texts(model.batch_sizes), "axes": texts(model.axes),
                       "size_classes": texts(classes)},
    }


def _tensor(tensor: Tensor, type_key: str, shape_key: str) -> dict[str, Any]:
    name = datatype_of(tensor.dtype)
    return {"name": tensor.name, type_key: f"TYPE_{name}" if type_key == "data_type" else name,
            shape_key: [size if isinstance(size, int) else -1 for size in tensor.shape]}
