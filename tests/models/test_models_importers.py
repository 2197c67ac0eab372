"""Imports: transformers folders, factories with safetensors, exported programs; and what must be refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cwd.errors import Code, CwdError, RepositoryError
from cwd.models import exported, importers
from cwd.models.program import Program
from cwd.models.repository import Entry, Repository

torch.set_num_threads(1)

BERT = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 40, "num_labels": 3}


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "models", create=True)


@pytest.fixture
def trusted(repository: Repository) -> Repository:
    (repository.root / "TRUSTED").touch()
    return repository


def ready(repository: Repository, entry: Entry) -> tuple[Program, Any]:
    program = Program.load(repository, entry.manifest.program_hash)
    image = np.zeros(max(1, entry.manifest.image_bytes), np.uint8)
    repository.build_image(entry, image)
    return program, program.bind(torch.from_numpy(image))


def assert_close(got: np.ndarray, wanted: torch.Tensor) -> None:
    np.testing.assert_allclose(got.view(np.float32), wanted.detach().numpy().reshape(-1), atol=1e-5)


@pytest.mark.parametrize("architecture", ["BertForSequenceClassification", "BertModel", "BertForMaskedLM",
                                          "RobertaForSequenceClassification", "GPT2LMHeadModel"])
def test_a_text_folder_needs_no_options(repository: Repository, tmp_path: Path, architecture: str) -> None:
    import transformers

    kind = getattr(transformers, architecture)
    config = BERT
    if architecture.startswith("GPT2"):
        config = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 40, "bos_token_id": 0,
                  "eos_token_id": 0}
    elif architecture.startswith("Roberta"):
        config = {**BERT, "max_position_embeddings": 42}
    torch.manual_seed(1)
    model = kind(kind.config_class(**config)).eval()
    model.save_pretrained(tmp_path / "saved")
    (entry,) = importers.add_folder(repository, "text", tmp_path / "saved")
    spec = entry.manifest.program
    assert spec.axes == ("sequence",)
    assert spec.size_classes == ((16,), (32,))
    assert [tensor.name for tensor in spec.client_inputs()] == ["input_ids"]
    program, binding = ready(repository, entry)
    for size in (1, 11, 32):
        ids = np.random.default_rng(size).integers(2, 100, size)
        with torch.inference_mode():
            wanted = model(input_ids=torch.from_numpy(ids)[None])[spec.outputs[0].name][0]
        (got,) = program.infer(binding, [ids], [(size,)])
        assert_close(got, wanted)


def test_an_image_folder_takes_its_size_from_the_preprocessor(repository: Repository, tmp_path: Path) -> None:
    import transformers

    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    with pytest.raises(RepositoryError, match="no image size.*inputs"):
        importers.add_folder(repository, "image", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 48}}))
    entries = importers.add_folder(repository, "image", tmp_path, copies=2)
    assert [entry.manifest.name for entry in entries] == ["image-000", "image-001"]
    assert entries[0].manifest.inputs[0].shape == (3, 48, 48)
    program, binding = ready(repository, entries[1])
    image = np.random.default_rng(0).standard_normal((3, 48, 48)).astype(np.float32)
    with torch.inference_mode():
        wanted = model(torch.from_numpy(image)[None]).logits
    assert_close(program.infer(binding, [image], [()])[0], wanted)


def test_pickled_weights_are_not_read(repository: Repository, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"], "model_type": "bert"}))
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(RepositoryError, match="pickled weights are not read"):
        importers.add_folder(repository, "text", tmp_path)


MLP_OPTIONS: dict[str, Any] = {"inputs": [{"name": "x", "dtype": "float32", "shape": [4]}], "call": "positional"}


def add_mlp(repository: Repository, **changes: Any) -> list[Entry]:
    options = {**MLP_OPTIONS, **changes.pop("options", {})}
    given: dict[str, Any] = {"seed": 0, **changes}
    return importers.add_factory(repository, "mlp", "cwd.models.zoo:mlp", {"sizes": [4, 8, 2]}, options, **given)


def test_a_factory_with_a_weights_file(repository: Repository, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).bfloat16()
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    options = {**MLP_OPTIONS, "inputs": [{"name": "x", "dtype": "float32", "shape": [4]}]}
    with pytest.raises(RepositoryError, match="does not run"):  # bfloat16 weights, float32 input
        add_mlp(repository, seed=None, weights=tmp_path / "w.safetensors", options=options)
    save_file(module.float().state_dict(), tmp_path / "w.safetensors")
    seen: list[tuple[int, int]] = []
    entries = add_mlp(repository, seed=None, weights=tmp_path / "w.safetensors", copies=2,
                      progress=lambda done, total, text: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert entries[0].manifest.outputs[0].shape == (2,)
    program, binding = ready(repository, entries[1])
    x = np.arange(4, dtype=np.float32)
    assert_close(program.infer(binding, [x], [()])[0], module(torch.from_numpy(x)))


@pytest.mark.parametrize(("changes", "words"), [
    ({"options": {"inputs": [{"name": "x", "dtype": "float32", "shape": [5]}]}}, "does not run on inputs as described"),
    ({"options": {"outputs": [{"name": "y", "dtype": "float32", "shape": [3]}]}}, "output 'y'"),
    ({"options": {"batches": [1]}}, "'batches' is none of"),
    ({"options": {"batch_sizes": [2]}}, "'batch_sizes'"),
    ({"weights": "x", "seed": 1}, "either a weights file or a seed"),
    ({"seed": None}, "either a weights file or a seed"),
    ({"copies": 0}, "out of range"), ({"version": 0}, "out of range"),
    ({"seed": None, "weights": "/nowhere.safetensors"}, "nowhere"),
])
def test_a_wrong_description_is_an_error_and_stores_nothing(repository: Repository, changes: dict[str, Any],
                                                            words: str) -> None:
    with pytest.raises(CwdError, match=words) as caught:
        add_mlp(repository, **changes)
    assert "\n" not in str(caught.value)
    assert list(repository.scan()) == []


def test_weights_that_do_not_belong_to_the_program(repository: Repository, tmp_path: Path) -> None:
    state = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).state_dict()
    path = tmp_path / "w.safetensors"
    for change, words in (({"0.weight": torch.zeros(8, 5)}, "'0.weight': shape"), ({"extra": torch.zeros(1)}, "extra")):
        save_file({**state, **change}, path)
        with pytest.raises(RepositoryError, match=words):
            add_mlp(repository, seed=None, weights=path)
    del state["2.bias"]
    save_file(state, path)
    with pytest.raises(RepositoryError, match=r"no tensor '2\.bias'"):
        add_mlp(repository, seed=None, weights=path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(RepositoryError, match=r"w\.safetensors") as caught:
        add_mlp(repository, seed=None, weights=path)
    assert caught.value.code == Code.CORRUPT


def test_copies_have_their_own_seeds_and_collide_with_nothing(repository: Repository) -> None:
    entries = add_mlp(repository, copies=3, seed=5)
    assert [(entry.manifest.name, entry.manifest.seed) for entry in entries] == [
        ("mlp-000", 5), ("mlp-001", 6), ("mlp-002", 7)]
    assert len({entry.manifest.weights_sha256 for entry in entries}) == 3
    with pytest.raises(RepositoryError) as caught:
        add_mlp(repository, copies=2)
    assert caught.value.code == Code.MODEL_EXISTS
    assert add_mlp(repository, copies=2, version=2)[0].manifest.key == "mlp-000/2"


def test_options_from_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "o.toml").write_text('call = "positional"\n[[inputs]]\nname = "x"\ndtype = "float32"\nshape = [4]\n')
    (tmp_path / "o.json").write_text(json.dumps(MLP_OPTIONS))
    assert importers.read_options(tmp_path / "o.toml") == importers.read_options(tmp_path / "o.json") == MLP_OPTIONS
    (tmp_path / "o.toml").write_text("call = ")
    for path in (tmp_path / "o.toml", tmp_path / "none.json"):
        with pytest.raises(RepositoryError, match=path.name):
            importers.read_options(path)


class Net(nn.Module):
    """Tied weights, a non-persistent buffer, a constant, batch norm, and a sequence axis that needs no mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 8)
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 30, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.linspace(1, 2, 8), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.embed(ids).transpose(1, 2)).transpose(1, 2)
        return self.head(x * self.scale + torch.tensor([0.5] * 8))


@pytest.fixture(scope="module")
def pt2(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    torch.manual_seed(3)
    module = Net().eval()
    batch, length = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=64)
    example = torch.zeros(2, 8, dtype=torch.int64)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch, 1: length},))
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path)
    return path, module


PT2_OPTIONS = {"axes": ["length"], "size_classes": [[4], [16]], "padding": "free", "batch_sizes": [1, 2, 4]}


def test_an_exported_program_serves_from_a_trusted_repository(trusted: Repository, pt2: tuple[Path, nn.Module]) -> None:
    path, module = pt2
    entries = importers.add_exported(trusted, "net", path, PT2_OPTIONS, copies=2)
    spec = entries[0].manifest.program
    assert len([weight for weight in spec.weights if weight.shape == (30, 8)]) == 1, "tied weights are stored once"
    assert spec.outputs[0].shape == ("length", 30)
    stored = entries[0].program_folder / "program.pt2"
    with zipfile.ZipFile(stored) as archive:
        assert sum(item.file_size for item in archive.infolist() if "/weights/weight_" in item.filename) == 0
    program, binding = ready(trusted, entries[1])
    for size in (2, 4, 9):
        ids = np.random.default_rng(size).integers(0, 30, size)
        with torch.inference_mode():
            wanted = module(torch.from_numpy(ids)[None])[0]
        for batch in (1, 4):
            assert_close(program.infer(binding, [ids], [(size,)], batch=batch)[0], wanted)


def test_an_exported_program_is_refused_without_trust(repository: Repository, pt2: tuple[Path, nn.Module]) -> None:
    with pytest.raises(RepositoryError, match="TRUSTED") as caught:
        importers.add_exported(repository, "net", pt2[0], PT2_OPTIONS)
    assert caught.value.code == Code.UNTRUSTED_PROGRAM
    (repository.root / "TRUSTED").touch()
    (entry,) = importers.add_exported(repository, "net", pt2[0], PT2_OPTIONS)
    (repository.root / "TRUSTED").unlink()
    with pytest.raises(RepositoryError) as caught:
        Program.load(repository, entry.manifest.program_hash)
    assert caught.value.code == Code.UNTRUSTED_PROGRAM


def test_an_exported_program_that_changed_is_corrupt(trusted: Repository, pt2: tuple[Path, nn.Module]) -> None:
    (entry,) = importers.add_exported(trusted, "net", pt2[0], PT2_OPTIONS)
    stored = entry.program_folder / "program.pt2"
    stored.write_bytes(stored.read_bytes() + b"x")
    with pytest.raises(RepositoryError, match="sha256") as caught:
        Program.load(trusted, entry.manifest.program_hash)
    assert caught.value.code == Code.CORRUPT


def test_archives_that_hold_pickles_or_libraries_are_refused(tmp_path: Path, pt2: tuple[Path, nn.Module]) -> None:
    def changed(name: str, edit: dict[str, Any]) -> Path:
        path = tmp_path / f"{name}.pt2"
        with zipfile.ZipFile(pt2[0]) as old, zipfile.ZipFile(path, "w") as new:
            for item in old.infolist():
                data = old.read(item)
                for part, change in edit.items():
                    data = change(data) if part in item.filename else data
                new.writestr(item.filename, data)
        return path

    with pytest.raises(RepositoryError, match="sample_inputs") as caught:  # as torch writes it: a pickle
        exported.check_archive(pt2[0])
    assert caught.value.code == Code.CORRUPT
    bare = changed("bare", {"sample_inputs": lambda data: b""})
    exported.check_archive(bare)
    unsafe = {"sample_inputs": lambda data: b"",
              "model_weights_config": lambda data: data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)}
    with pytest.raises(RepositoryError, match="model_weights_config"):
        exported.check_archive(changed("unsafe", unsafe))
    (tmp_path / "junk.pt2").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(RepositoryError, match="no exported program"):
        exported.check_archive(tmp_path / "junk.pt2")


def test_a_dynamic_axis_without_size_classes_is_an_error(trusted: Repository, pt2: tuple[Path, nn.Module]) -> None:
    with pytest.raises(RepositoryError, match="'size_classes' is missing"):
        importers.add_exported(trusted, "net", pt2[0])
