"""`cwd infer`: one request from files, and its answer with its timing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cwd.cli.common import emit, endpoint_option, json_option, key_options
from cwd.errors import Code, CwdError, RequestError
from cwd.units import format_duration

if TYPE_CHECKING:
    from cwd.client import Model, Result


@click.command()
@click.argument("model")
@click.option("--input", "-i", "inputs", metavar="[NAME=]FILE", multiple=True, help="A .npy array, or an .npz or .json "
              "with one array per input. Repeat it as NAME=FILE for several .npy files.")
@click.option("--slo", envvar="CWD_SLO", default="100ms", show_default=True, help="For how long the answer is worth "
              "something.")
@click.option("--app", default=None, help="Tag of the application.")
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="Write the outputs to this .npz file.")
@endpoint_option
@key_options
@json_option
def infer(model: str, inputs: tuple[str, ...], slo: str, app: str | None, output: str | None, endpoint: str,
          as_json: bool) -> None:
    """Send one request to MODEL (a name, or name/version), without a batch axis."""
    import numpy as np

    from cwd.client import Client

    given: dict[str, Any] = {}
    for text in inputs:
        given |= read_inputs(text)
    with Client(endpoint, name="cwd-infer") as client:
        found = client.lookup(model)
        try:
            result = client.infer(model, fit(found, given), slo, app=app)
        except RequestError as error:
            why = f"; cwd explain {error.request:016x} says more" if error.request else ""
            raise CwdError(error.text + why, code=error.code) from None
    if output:
        np.savez(output, **result.outputs)  # type: ignore[arg-type]
    emit(facts_of(result, output), as_json, lines_of(result, output))


def read_inputs(text: str) -> dict[str, Any]:
    """The arrays in one --input; an unnamed one is called "". Raises `CwdError` naming the file."""
    import json

    import numpy as np

    name, equals, path = text.rpartition("=")
    if equals and Path(text).exists():
        name, path = "", text
    try:
        if path.endswith(".npz"):
            with np.load(path, allow_pickle=False) as archive:
                return {key: archive[key] for key in archive.files}
        if path.endswith(".npy"):
            return {name: np.load(path, allow_pickle=False)}
        if path.endswith(".json"):
            value = json.loads(Path(path).read_text("utf-8"))
            return value if isinstance(value, dict) else {name: value}
    except OSError as error:
        raise CwdError(f"{path}: {error.strerror or error}", code=Code.BAD_ARGUMENT) from None
    except (ValueError, EOFError) as error:
        raise CwdError(f"{path}: not readable as {Path(path).suffix}: {error}", code=Code.BAD_ARGUMENT) from None
    raise CwdError(f"{path}: an input is a .npy, .npz or .json file", code=Code.BAD_ARGUMENT)


def fit(model: Model, given: dict[str, Any]) -> dict[str, Any]:
    """An unnamed array becomes the input of a model that has one."""
    if "" in given:
        if len(model.inputs) != 1:
            names = ", ".join(tensor.name for tensor in model.inputs)
            raise CwdError(f"{model.name} takes {names}: say --input NAME=FILE", code=Code.BAD_INPUT_NAME)
        unnamed = given.pop("")
        given[model.inputs[0].name] = unnamed
    return given


def facts_of(result: Result, output: str | None) -> dict[str, Any]:
    """The answer as plain data; with an output file its arrays are there and not here."""
    outputs = {}
    for name, array in result.outputs.items():
        outputs[name] = {"dtype": str(array.dtype), "shape": list(array.shape)}
        if output is None:
            outputs[name]["data"] = array.tolist()
    return {"model": result.model, "request": f"{result.request:016x}", "outputs": outputs, "output": output, **result.timing()}


def lines_of(result: Result, output: str | None) -> list[str]:
    """The answer for people."""
    import numpy as np

    lines = []
    with np.printoptions(precision=5, threshold=64, edgeitems=3, linewidth=110):
        for name, array in result.outputs.items():
            lines.append(f"{name}: {array.dtype}{list(array.shape)}")
            lines += [] if output else [f"  {line}" for line in str(array).splitlines()]
    times = {"total": result.total_ns, "queued": result.queued_ns, "loaded": result.load_ns, "executed": result.exec_ns,
             "round trip": result.round_trip_ns}
    lines.append(", ".join(f"{name} {format_duration(value)}" for name, value in times.items())
                 + f", batch {result.batch}, worker {result.worker}" + (", cold" if result.cold else ""))
    lines.append(f"request {result.request:016x}")
    return lines + ([f"outputs written to {output}"] if output else [])
