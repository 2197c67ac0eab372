"""Programs against torch run directly: every instance, alone and batched, padded and not, wherever its weights lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cwd.errors import Code, RepositoryError
from cwd.models import importers, probe, zoo
from cwd.models.program import Program, build_module, find_factory, places_of
from cwd.models.repository import Entry, Repository

torch.set_num_threads(1)

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2], "layer_type": "basic", "num_labels": 5}
MOBILENET = {"image_size": 32, "depth_multiplier": 0.35, "num_labels": 5}
BERT = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 32, "num_labels": 8}


class Tied(nn.Module):
    """Everything that a meta build gets wrong if nobody looks: ties, non-persistent buffers, plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embed.weight
        self.shared = self.head
        self.register_buffer("positions", torch.linspace(0, 1, 8), persistent=False)
        self.register_buffer("scale", torch.ones(6))
        self.plain = torch.arange(6.0)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.embed(ids) + self.positions[:ids.shape[1], None] + self.plain
        x = self.norm((x * self.scale).transpose(1, 2)).transpose(1, 2)
        return {"scores": self.head(x) + self.shared(x), "mean": x.mean(dim=(1, 2))[:, None]}


def image_options(architecture: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"factory": "cwd.models.zoo:transformers_model", "args": {"architecture": architecture, "config": config},
            "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": [3, 32, 32]}],
            "outputs": ["logits"], "memory_format": "channels_last", "batch_sizes": [1, 2, 4]}


def bert_options() -> dict[str, Any]:
    options = zoo.bert_options()
    options["args"] = {"architecture": "BertForSequenceClassification", "config": BERT}
    return {**options, "size_classes": [[8], [16], [32]], "batch_sizes": [1, 2, 4]}


def encoder_options() -> dict[str, Any]:
    """A BERT without a head: its output has the dynamic axis, and is trimmed."""
    return {**bert_options(), "args": {"architecture": "BertModel", "config": BERT}, "outputs": ["last_hidden_state"]}


def lm_options() -> dict[str, Any]:
    """A BERT whose output layer is tied to its embedding."""
    return {**bert_options(), "args": {"architecture": "BertForMaskedLM", "config": BERT}, "outputs": ["logits"]}


def convnet_options() -> dict[str, Any]:
    return {**zoo.convnet5m_options(), "batch_sizes": [1, 4]}


PROGRAMS = {
    "resnet": image_options("ResNetForImageClassification", RESNET),
    "mobilenet": image_options("MobileNetV2ForImageClassification", MOBILENET),
    "bert": bert_options(), "encoder": encoder_options(), "lm": lm_options(), "convnet": convnet_options(),
    "mlp": zoo.mlp_options(),
}


def add(repository: Repository, name: str, options: dict[str, Any], copies: int = 3) -> list[Entry]:
    options = dict(options)
    factory, args = options.pop("factory"), options.pop("args")
    return importers.add_factory(repository, name, factory, args, options, seed=7, copies=copies)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("models"))
    for name, options in PROGRAMS.items():
        add(repository, name, options)
    return repository


def direct(entry: Entry) -> nn.Module:
    """The module as torch alone would have it: built on the CPU, with the instance's weights copied in by torch."""
    from safetensors.torch import load_file

    spec = entry.manifest.program
    module = find_factory(spec.factory, trusted=False)(**spec.args)
    found = module.load_state_dict(load_file(entry.weights_path), strict=False)
    assert not found.unexpected_keys
    tied = [names for names, _, _ in places_of(module) if len(names) > 1]
    assert all(any(key in names for names in tied) for key in found.missing_keys)
    return module.eval()


def run_direct(entry: Entry, module: nn.Module, arrays: list[np.ndarray]) -> bytes:
    """One request through torch, at its own size and alone, without a mask."""
    spec = entry.manifest.program
    tensors = [torch.from_numpy(array)[None] for array in arrays]
    with torch.inference_mode():
        if spec.call == "positional":
            found = module(*tensors)
        else:
            found = module(**dict(zip([t.name for t in spec.client_inputs()], tensors, strict=True)))
    names = [tensor.name for tensor in spec.outputs]
    return b"".join(np.ascontiguousarray(found[name].numpy() if hasattr(found, "keys") else found.numpy()).tobytes()
                    for name in names)


def request_of(entry: Entry, seed: int, size: int = 0) -> tuple[list[np.ndarray], tuple[int, ...]]:
    spec = entry.manifest.program
    sizes = (size,) if spec.axes else ()
    arrays = probe.sample_payload(spec, sizes, seed=seed)
    if spec.axes:
        arrays = [np.random.default_rng(seed).integers(0, 100, array.shape) for array in arrays]
    return arrays, sizes


def loaded(repository: Repository, entry: Entry, where: int) -> torch.Tensor:
    """The entry's image, somewhere: `where` pages of 4 KiB into a buffer of its own."""
    buffer = np.full(where * 4096 + entry.manifest.image_bytes, 255, np.uint8)
    repository.build_image(entry, buffer[where * 4096:])
    return torch.from_numpy(buffer)[where * 4096:]


def close(got: bytes, wanted: bytes) -> bool:
    a, b = np.frombuffer(got, np.float32), np.frombuffer(wanted, np.float32)
    return a.shape == b.shape and float(np.abs(a - b).max()) <= 1e-5 and float(np.abs(b).max()) > 1e-3


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_instance_equals_torch(repository: Repository, name: str) -> None:
    entries = [repository.get(f"{name}-{index:03d}") for index in range(3)]
    program = Program.load(repository, entries[0].manifest.program_hash)
    modules = [direct(entry) for entry in entries]
    outputs = set()
    for where, turn in enumerate((0, 1, 2, 0, 2)):  # bound again after others ran, elsewhere in memory
        entry = entries[turn]
        binding = program.bind(loaded(repository, entry, where))
        arrays = [request_of(entry, seed, size) for seed, size in enumerate((5, 8, 32))]
        wanted = [run_direct(entry, modules[turn], one) for one, _ in arrays]
        payloads = [b"".join(array.tobytes() for array in one) for one, _ in arrays]
        sizes = [sizes for _, sizes in arrays]
        alone = [program.infer(binding, [payload], [size])[0].tobytes()
                 for payload, size in zip(payloads, sizes, strict=True)]
        batched = [result.tobytes() for result in program.infer(binding, payloads, sizes, batch=4)]
        for one, together, right in zip(alone, batched, wanted, strict=True):
            assert close(one, right)
            assert close(together, right)
        outputs.add(alone[0])
    assert len(outputs) == 3, "instances must have weights of their own"


def test_two_live_bindings_take_turns(repository: Repository) -> None:
    entries = [repository.get(f"mlp-{index:03d}") for index in range(2)]
    program = Program.load(repository, entries[0].manifest.program_hash)
    bindings = [program.bind(loaded(repository, entry, 1)) for entry in entries]
    payload = np.ones(16, np.float32)
    first = [program.infer(binding, [payload], [()])[0].tobytes() for binding in bindings]
    again = [program.infer(binding, [payload], [()])[0].tobytes() for binding in bindings]
    assert first == again
    assert first[0] != first[1]


def test_padding_without_a_mask_would_be_wrong_and_is_caught(tmp_path: Path) -> None:
    options = bert_options()
    del options["inputs"][1]
    repository = Repository(tmp_path)
    with pytest.raises(RepositoryError, match="padding .* changes output 'logits'"):
        add(repository, "bad", {**options, "padding": "free"}, copies=1)
    assert list(repository.scan()) == []
    (entry,) = add(repository, "exact", {**options, "padding": "exact"}, copies=1)
    program = Program.load(repository, entry.manifest.program_hash)
    binding = program.bind(loaded(repository, entry, 0))
    arrays, sizes = request_of(entry, 3, 16)
    assert close(program.infer(binding, [arrays[0].tobytes()], [sizes])[0].tobytes(),
                 run_direct(entry, direct(entry), arrays))
    with pytest.raises(RepositoryError) as caught:
        program.infer(binding, [arrays[0][:15].tobytes()], [(15,)])
    assert caught.value.code == Code.UNKNOWN_SIZE


def test_ties_buffers_and_plain_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CWD_FACTORIES", __name__)
    repository = Repository(tmp_path)
    options = {"inputs": [{"name": "ids", "dtype": "int64", "shape": [8]}], "outputs": ["scores", "mean"]}
    (entry,) = importers.add_factory(repository, "tied", f"{__name__}:Tied", {}, options, seed=5)
    spec = entry.manifest.program
    assert [weight.name for weight in spec.weights if weight.shape == (20, 6)] == ["embed.weight"]
    assert not any("positions" in weight.name for weight in spec.weights)
    assert [(tensor.name, tensor.shape) for tensor in spec.outputs] == [("scores", (8, 20)), ("mean", (1,))]
    program = Program.load(repository, entry.manifest.program_hash)
    binding = program.bind(loaded(repository, entry, 2))
    module = Tied()
    from safetensors.torch import load_file

    module.load_state_dict(load_file(entry.weights_path), strict=False)
    ids = np.arange(8)
    got = program.infer(binding, [ids], [()])[0].tobytes()
    assert close(got, run_direct(entry, module.eval(), [ids]))


@pytest.mark.parametrize("factory", [
    "os:system", "subprocess:run", "cwd.models.zoo:np.load", "cwd.models.zoo:itertools.repeat", "torch:load",
    "cwd.models.zoo2:mlp", "builtins:eval",
])
def test_an_untrusted_repository_may_not_name_any_factory(factory: str) -> None:
    with pytest.raises(RepositoryError) as caught:
        build_module(factory, {}, trusted=False)
    assert caught.value.code == Code.UNTRUSTED_PROGRAM


def test_factories_that_fail_say_so_in_one_line() -> None:
    for factory, args, words in (
            ("cwd.models.zoo:mlp", {"wrong": 1}, "wrong"), ("cwd.models.nothing:x", {}, "nothing"),
            ("cwd.models.zoo:transformers_model", {"architecture": "pipeline", "config": {}}, "pipeline"),
            ("builtins:dict", {}, "not a torch module")):
        with pytest.raises(RepositoryError, match=words) as caught:
            build_module(factory, args, trusted=True)
        assert "\n" not in str(caught.value)


def test_a_configuration_cannot_make_transformers_fetch_anything() -> None:
    hostile = {"a": 1, "_attn_implementation": "x/y", "auto_map": {}, "nested": {"attn_implementation": "x/y", "b": 2}}
    assert zoo._architecture_fields(hostile) == {"a": 1, "nested": {"b": 2}}
    args = {**PROGRAMS["bert"]["args"], "config": {**BERT, "_attn_implementation": "someone/kernel"}}
    module = build_module("cwd.models.zoo:transformers_model", args, trusted=False)
    assert "/" not in module.config._attn_implementation


def test_the_zoo_describes_its_programs_rightly(tmp_path: Path) -> None:
    """The full-size demo programs import, which runs each and compares its outputs with their description."""
    repository = Repository(tmp_path)
    for name in ("resnet", "mobilenet", "bert", "identity", "nothing"):
        importers.add_zoo(repository, name, name, seed=1)
    assert len(repository.entries()) == 5


def test_seeded_weights_are_deterministic_and_sane() -> None:
    module = build_module("cwd.models.zoo:transformers_model", PROGRAMS["resnet"]["args"], trusted=False)
    one, same, other = zoo.make_weights(module, 3), zoo.make_weights(module, 3), zoo.make_weights(module, 4)
    assert list(one) == list(same)
    assert all((one[key] == same[key]).all() for key in one)
    assert any((one[key] != other[key]).any() for key in one)
    variances = [value for key, value in one.items() if key.endswith("running_var")]
    assert variances
    assert all((value > 0.5).all() for value in variances)
    with pytest.raises(RepositoryError, match="no program 'x' in the zoo"):
        importers.add_zoo(Repository("/tmp"), "x", "x")
