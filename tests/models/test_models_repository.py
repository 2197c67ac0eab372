"""Manifests, programs' specs, page images and the repository on disk: round trips, and every kind of damage."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cwd.errors import Code, RepositoryError
from cwd.models import layout
from cwd.models.repository import Entry, Repository
from cwd.models.spec import ProgramSpec, TensorSpec, WeightSpec, canonical, program_from_json

SPEC = ProgramSpec(
    inputs=(TensorSpec("ids", "int64", ("sequence",), pad=1), TensorSpec("mask", "int64", ("sequence",), made="mask")),
    outputs=(TensorSpec("logits", "float32", (3,)), TensorSpec("states", "float32", ("sequence", 5))),
    batch_sizes=(1, 4), factory="cwd.models.zoo:mlp", args={"sizes": [2, 3]}, axes=("sequence",),
    size_classes=((8,), (32,)), padding="mask",
    weights=(WeightSpec("a", "F32", (3, 5)), WeightSpec("b", "BF16", (2, 3, 2, 2)), WeightSpec("c", "I64", ())))


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"a": random.standard_normal((3, 5)).astype(np.float32),
            "b": random.integers(0, 2**16, (2, 3, 2, 2)).astype(np.uint16), "c": np.array(seed, np.int64)}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models", create=True)


@pytest.fixture
def entry(repository: Repository) -> Entry:
    return repository.add("net", 1, repository.add_program(SPEC), tensors())


def rewrite(path: Path, **fields: Any) -> None:
    value = json.loads(path.read_text())
    for key, field in fields.items():
        if field is ...:
            del value[key]
        else:
            value[key] = field
    path.write_text(json.dumps(value))


def test_light_modules_load_neither_torch_nor_numba() -> None:
    code = ("import sys, cwd.models.repository, cwd.models.layout, cwd.models.manifest, cwd.models.profile, "
            "cwd.models.importers; print([m for m in ('torch', 'numba', 'transformers') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_missing_torch_is_one_clear_line(tmp_path: Path) -> None:
    code = ("import sys; sys.modules['torch'] = None\n"
            "from cwd.errors import CwdError\nfrom cwd.models import importers\n"
            "from cwd.models.repository import Repository\n"
            "try:\n    importers.add_zoo(Repository(sys.argv[1]), 'a', 'mlp')\n"
            "except CwdError as error:\n    print(error)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "models need torch: pip install 'cwd[server]'\n"


def test_a_program_survives_json_and_its_hash_is_stable() -> None:
    value = json.loads(json.dumps(SPEC.to_json(), indent=3))
    again = program_from_json(value, "x.json")
    assert again == SPEC
    assert again.hash() == SPEC.hash()
    # pinned: a change here orphans every stored program, and needs a new format number
    assert SPEC.hash().hex() == "f2c73c67e0fe7f4f8494d031d4466ea6"
    assert dataclasses.replace(SPEC, batch_sizes=(1, 2)).hash() != SPEC.hash()
    assert canonical({"b": 1, "a": [1.5, "é"]}) == b'{"a":[1.5,"\\u00e9"],"b":1}'


def test_sizes(entry: Entry) -> None:
    manifest = entry.manifest
    assert manifest.payload_bytes((7, 0, 0, 0)) == 56
    assert manifest.output_bytes((7, 0, 0, 0)) == 12 + 7 * 5 * 4
    assert [manifest.size_class_of((n, 0, 0, 0)) for n in (0, 1, 8, 9, 32, 33)] == [-1, 0, 0, 1, 1, -1]
    assert manifest.size_class_of((8, 1, 0, 0)) == -1
    exact = dataclasses.replace(SPEC, padding="exact")
    assert [exact.size_class_of((n, 0, 0, 0)) for n in (7, 8, 9, 32)] == [-1, 0, -1, 1]
    fixed = dataclasses.replace(SPEC, axes=(), size_classes=((),), inputs=(), outputs=())
    assert fixed.size_class_of((0, 0, 0, 0)) == 0
    assert fixed.size_class_of((1, 0, 0, 0)) == -1
    assert manifest.image_bytes == 768
    assert [manifest.pages(page) for page in (256, 512, 768, 1 << 20)] == [3, 2, 1, 1]


def test_what_a_client_is_told(entry: Entry) -> None:
    assert entry.manifest.manifest_map() == {
        "name": "net", "version": 1, "axes": ["sequence"], "exact": False, "size_classes": [[8], [32]],
        "batch_sizes": [1, 4], "inputs": [{"name": "ids", "dtype": "int64", "shape": ["sequence"]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [3]},
                    {"name": "states", "dtype": "float32", "shape": ["sequence", 5]}]}


def test_entries_are_found_again_by_another_process_object(repository: Repository, entry: Entry) -> None:
    repository.add("net", 12, entry.manifest.program_hash, tensors(12), seed=12)
    repository.add("alpha", 2, entry.manifest.program_hash, tensors(2))
    other = Repository(repository.root)
    assert [found.manifest.key for found in other.entries()] == ["alpha/2", "net/1", "net/12"]
    assert other.get("net").manifest.version == 12
    assert other.get("net", 1) == entry
    assert other.get("net").manifest.seed == 12
    assert len({found.manifest.image_hash for found in other.entries()}) == 3
    assert len(list((repository.root / ".programs").iterdir())) == 1
    for name, version in (("net", 3), ("none", 0)):
        with pytest.raises(RepositoryError) as caught:
            other.get(name, version)
        assert caught.value.code == Code.UNKNOWN_MODEL


def test_adding_twice_removing_and_pruning(repository: Repository, entry: Entry) -> None:
    with pytest.raises(RepositoryError) as caught:
        repository.add("net", 1, entry.manifest.program_hash, tensors())
    assert caught.value.code == Code.MODEL_EXISTS
    repository.add("net", 2, entry.manifest.program_hash, tensors())
    assert repository.remove("net", 1) == ["net/1"]
    assert repository.prune() == []
    assert repository.remove("net") == ["net/2"]
    assert list(repository.scan()) == []
    assert repository.prune() == [entry.manifest.program_hash.hex()]
    with pytest.raises(RepositoryError):
        repository.remove("net")


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "a b", "x" * 128, "é", "a\n"])
def test_names_that_could_leave_the_folder_are_refused(repository: Repository, entry: Entry, name: str) -> None:
    for act in (lambda: repository.get(name), lambda: repository.remove(name),
                lambda: repository.add(name, 1, entry.manifest.program_hash, tensors())):
        with pytest.raises(RepositoryError, match="model name"):
            act()


def test_the_image_holds_every_tensor_at_its_offset(repository: Repository, entry: Entry) -> None:
    for memory_format in ("contiguous", "channels_last"):
        spec = dataclasses.replace(SPEC, memory_format=memory_format)
        out = np.full(1000, 255, np.uint8)
        assert layout.build_image(entry.weights_path, entry.manifest.weights_sha256, spec, out) == 768
        image = layout.Layout.of(spec)
        given = tensors()
        for name, slot in image.slots.items():
            assert slot.offset % 256 == 0
            wanted = given[name].transpose(0, 2, 3, 1) if slot.channels_last else given[name]
            assert out[slot.offset:slot.offset + slot.nbytes].tobytes() == wanted.tobytes()
        assert not out[60:256].any()
        assert not out[768:].any()
        assert image.slots["b"].channels_last == (memory_format == "channels_last")


def test_one_flipped_bit_in_the_weights_is_corrupt(repository: Repository, entry: Entry) -> None:
    out = np.zeros(entry.manifest.image_bytes, np.uint8)
    repository.verify(entry)
    repository.build_image(entry, out)
    data = bytearray(entry.weights_path.read_bytes())
    data[-1] ^= 1
    entry.weights_path.write_bytes(data)
    for act in (lambda: repository.verify(entry), lambda: repository.build_image(entry, out)):
        with pytest.raises(RepositoryError, match=r"weights.safetensors: its sha256") as caught:
            act()
        assert caught.value.code == Code.CORRUPT


@pytest.mark.parametrize(("field", "value", "words"), [
    ("format", 2, "'format'"), ("name", "other", "it says it is other/1"), ("version", 0, "'version'"),
    ("version", True, "'version'"), ("program", "xyz", "'program'"), ("program", "0" * 32, "program.json"),
    ("program", ..., "'program'"), ("weights", [], "'weights'"), ("weights", {"file": "../x"}, "'file'"),
    ("weights", {"file": "weights.safetensors", "sha256": "00", "bytes": 1}, "'sha256'"),
    ("image_bytes", 512, "'image_bytes'"), ("image_bytes", "many", "'image_bytes'"), ("seed", 1.5, "'seed'"),
    ("surprise", 1, "'surprise'"),
])
def test_a_bad_field_of_model_json_is_named(repository: Repository, entry: Entry, field: str, value: Any,
                                            words: str) -> None:
    repository.add("sound", 1, entry.manifest.program_hash, tensors())
    rewrite(entry.folder / "model.json", **{field: value})
    found = list(Repository(repository.root).scan())
    assert [type(one) for one in found] == [RepositoryError, Entry]
    assert words in str(found[0])
    assert ".json" in str(found[0])


@pytest.mark.parametrize(("field", "value"), [
    ("axes", [5]), ("axes", ["sequence"] * 2), ("size_classes", [[32], [8]]), ("size_classes", []),
    ("size_classes", [[1, 2]]), ("batch_sizes", [2, 4]), ("batch_sizes", [4, 1]), ("batch_sizes", []),
    ("padding", "maybe"), ("inputs", [{"name": "x", "dtype": "complex64", "shape": []}]),
    ("inputs", [{"name": "x", "dtype": "int8", "shape": ["width"]}]), ("inputs", 5), ("factory", ""),
    ("factory", "os.system"), ("exported", "0" * 64), ("weights", [["a", "F31", [1]]]), ("call", "maybe"),
    ("inputs", [{"name": "x", "dtype": "int8", "shape": [0]}]), ("tied", [["x", "nothing"]]), ("memory_format", "nhwc"),
])
def test_a_bad_field_of_program_json_is_named(field: str, value: Any) -> None:
    with pytest.raises(RepositoryError, match=rf"p\.json.*'?{field if field != 'exported' else 'factory'}") as caught:
        program_from_json({**SPEC.to_json(), field: value}, "p.json")
    assert "\n" not in str(caught.value)


def test_a_program_that_was_edited_is_corrupt(repository: Repository, entry: Entry) -> None:
    rewrite(entry.program_folder / "program.json", batch_sizes=[1, 2])
    (found,) = Repository(repository.root).scan()
    assert isinstance(found, RepositoryError)
    assert found.code == Code.CORRUPT


def test_damaged_json_names_its_line(repository: Repository, entry: Entry) -> None:
    (entry.folder / "model.json").write_text('{"format": 1,\n "name": }')
    with pytest.raises(RepositoryError, match=r"model\.json: line 2"):
        repository.get("net")
    (entry.folder / "model.json").write_text("[" * 100_000)
    with pytest.raises(RepositoryError, match=r"model\.json"):
        repository.get("net")
    (entry.folder / "model.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RepositoryError, match=r"model\.json"):
        repository.get("net")


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("content", [
    b"", b"short", safetensors({}, length=2**62), safetensors(b"not json"), safetensors([1]),
    safetensors({"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}}, b"x" * 59),
    safetensors({"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [-60, 0]}}, b"x" * 60),
    safetensors({"a": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 59]}}, b"x" * 60),
    safetensors({"a": {"dtype": "F32", "shape": [-3, -5], "data_offsets": [0, 60]}}, b"x" * 60),
    safetensors({"a": {"dtype": "Q4", "shape": [3, 5], "data_offsets": [0, 60]}}, b"x" * 60),
    safetensors({"a": {"dtype": "F32", "shape": "ab", "data_offsets": [0, 60]}}, b"x" * 60), safetensors({"a": 5}),
])
def test_a_damaged_safetensors_file_is_corrupt_and_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(RepositoryError, match=r"w\.safetensors") as caught:
        layout.WeightsFile(path)
    assert caught.value.code == Code.CORRUPT


def test_our_files_are_safetensors_to_others_too(entry: Entry) -> None:
    loaded = pytest.importorskip("safetensors.torch").load_file(entry.weights_path)
    assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == {"a": (3, 5), "b": (2, 3, 2, 2), "c": ()}
    assert loaded["a"].numpy().tobytes() == tensors()["a"].tobytes()
