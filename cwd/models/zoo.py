"""Programs that come with cwd: what the demo, the benchmarks, the tutorial and the tests serve.

Each factory takes JSON arguments and returns a torch module; each description (`*_options`) says how requests look.
They are the factories that even an untrusted repository may name, so none of them may read files, fetch anything or
run code that its arguments choose. torch and transformers are imported inside the functions.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

from cwd.errors import RepositoryError

if TYPE_CHECKING:
    from torch import nn

HERE = "cwd.models.zoo"

_NOT_ARCHITECTURE = frozenset((
    "architectures", "dtype", "torch_dtype", "transformers_version", "auto_map", "trust_remote_code",
    "attn_implementation", "experts_implementation", "quantization_config", "use_pretrained_backbone", "use_kernels",
))


def transformers_model(architecture: str, config: dict[str, Any]) -> nn.Module:
    """A transformers model class by name, built from its configuration's fields; weights are not read."""
    import transformers

    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) and found.config_class):
        raise RepositoryError(f"transformers has no model class {architecture!r:.80}")
    settings = found.config_class(**_architecture_fields(config))
    settings.return_dict = True
    if hasattr(settings, "use_cache"):
        settings.use_cache = False
    return found(settings).eval()


def _architecture_fields(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without what is no architecture, or would make transformers fetch weights, kernels or code."""
    return {key: _architecture_fields(value) if isinstance(value, dict) else value for key, value in config.items()
            if not key.startswith("_") and key not in _NOT_ARCHITECTURE}


def identity() -> nn.Module:
    """A program that does nothing: its input is its output, and it has no weights. To measure what is around it."""
    import torch
    from torch import nn

    class Identity(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    return Identity()


def nothing() -> nn.Module:
    """A program without inputs, outputs and weights: for load that consists of messages alone."""
    import torch
    from torch import nn

    class Nothing(nn.Module):
        def forward(self) -> tuple[torch.Tensor, ...]:
            return ()

    return Nothing()


def mlp(sizes: list[int]) -> nn.Module:
    """Linear layers of the given sizes with ReLU between them: the smallest real model, for tests."""
    from torch import nn

    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet5m(classes: int = 100) -> nn.Module:
    """A plain convnet of 4.9 million parameters for 3 x 64 x 64 images: about 3 ms alone, 26 ms in a batch of 16."""
    from torch import nn

    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((32, 1), (32, 2), (64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU(inplace=True)]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(channels * 16, 896), nn.ReLU(inplace=True),
               nn.Linear(896, classes)]
    return nn.Sequential(*layers)


def early_exit(tokens: int, width: int, heads: int, blocks: int, every: int, classes: int, threshold: float) -> nn.Module:
    """An encoder that a request leaves as soon as it is sure: one whose execution times depend on data (early_exit.py)."""
    from cwd.models.early_exit import EarlyExitEncoder

    return EarlyExitEncoder(tokens, width, heads, blocks, every, classes, threshold)


def make_weights(module: nn.Module, seed: int) -> dict[str, np.ndarray]:
    """Seeded random weights for a module on the meta device, by parameter name (tied ones once, under the first name).

    Deterministic: the seed and the order of the tensors decide, not torch. Scales keep activations of order one: He's
    for convolutions, 1/sqrt(fan-in) for linear layers, ones and zeros with a little noise for normalisations. Batch
    norms still want `probe.calibrate`: residual sums grow with depth, and no formula knows how fast. Fifty random
    layers also enlarge rounding errors (MobileNet's to 1e-5 of its outputs); so beside batch norms a linear layer,
    which is the classifier, is scaled down to keep outputs comparable to 1e-5.
    """
    from torch import nn

    from cwd.models.program import places_of

    random = np.random.Generator(np.random.SFC64(seed))
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    norm_holders = {id(holder) for part in module.modules() if isinstance(part, norms) or "Norm" in type(part).__name__
                    for holder in (part._parameters, part._buffers)}
    embedding_holders = {id(part._parameters) for part in module.modules() if isinstance(part, nn.Embedding)}
    batch_norms = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())
    linear_gain = 0.15 if batch_norms else 1.0
    found = {}
    for names, places, tensor in places_of(module):
        shape, key = tuple(tensor.shape), places[0][1]
        if not tensor.is_floating_point():
            found[names[0]] = np.zeros(shape, str(tensor.dtype).removeprefix("torch."))
            continue
        noise = random.standard_normal(shape, np.float32)
        if id(places[0][0]) in norm_holders:
            base = 1 if key in ("weight", "running_var") else 0
            noise = np.clip(noise, -3, 3) * np.float32(0.05) + np.float32(base)
        elif any(id(holder) in embedding_holders for holder, _ in places):
            noise *= np.float32(0.05)
        elif len(shape) > 1:
            gain = 2**0.5 if len(shape) > 2 else linear_gain
            noise *= np.float32(gain / np.prod(shape[1:]) ** 0.5)
        else:
            noise *= np.float32(0.02)
        found[names[0]] = noise
    return found


def resnet_options() -> dict[str, Any]:
    """A ResNet-class convnet (residual blocks, batch norms; 2.8 million parameters) for 3 x 64 x 64 images."""
    config = {"embedding_size": 32, "hidden_sizes": [32, 64, 128, 256], "depths": [2, 2, 2, 2], "layer_type": "basic",
              "num_labels": 100}
    return _image_options("ResNetForImageClassification", config, 100)


def mobilenet_options() -> dict[str, Any]:
    """A MobileNet-class convnet (inverted residuals, depthwise convolutions; 1.5 million parameters), 3 x 64 x 64."""
    config = {"image_size": 64, "depth_multiplier": 0.75, "num_labels": 100}
    return _image_options("MobileNetV2ForImageClassification", config, 100)


def bert_options() -> dict[str, Any]:
    """A BERT-class encoder with a classifier for up to 128 tokens (3.3 million parameters); its mask is made."""
    config = {"vocab_size": 8000, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 4,
              "intermediate_size": 768, "max_position_embeddings": 128, "num_labels": 8}
    return {
        "factory": f"{HERE}:transformers_model",
        "args": {"architecture": "BertForSequenceClassification", "config": config},
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["sequence"]},
                   {"name": "attention_mask", "dtype": "int64", "shape": ["sequence"], "made": "mask"}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [8]}],
        "axes": ["sequence"], "padding": "mask", "size_classes": [[16], [32], [64], [128]], "batch_sizes": [1, 2, 4, 8],
    }


def convnet5m_options() -> dict[str, Any]:
    return {
        "factory": f"{HERE}:convnet5m", "args": {}, "call": "positional", "memory_format": "channels_last",
        "inputs": [{"name": "image", "dtype": "float32", "shape": [3, 64, 64]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [100]}], "batch_sizes": [1, 2, 4, 8, 16],
    }


def identity_options(nbytes: int = 1) -> dict[str, Any]:
    """The no-op program: `nbytes` in, the same out."""
    tensor = {"dtype": "uint8", "shape": [nbytes]}
    return {"factory": f"{HERE}:identity", "args": {}, "call": "positional", "inputs": [{"name": "x", **tensor}],
            "outputs": [{"name": "y", **tensor}], "batch_sizes": [1, 2, 4, 8, 16]}


def nothing_options() -> dict[str, Any]:
    return {"factory": f"{HERE}:nothing", "args": {}, "call": "positional", "inputs": [], "outputs": [],
            "batch_sizes": [1, 2, 4, 8, 16]}


def mlp_options(sizes: tuple[int, ...] = (16, 32, 4)) -> dict[str, Any]:
    return {
        "factory": f"{HERE}:mlp", "args": {"sizes": list(sizes)}, "call": "positional",
        "inputs": [{"name": "x", "dtype": "float32", "shape": [sizes[0]]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": [sizes[-1]]}], "batch_sizes": [1, 2, 4, 8],
    }


def early_exit_options() -> dict[str, Any]:
    """12 blocks (2.4 million parameters) with an exit after every second: 0.3 ms alone for who leaves first, 2.5 for who
    leaves last. With random weights noise is never sure, tokens that all point the same way are at once."""
    tokens, width, classes = 16, 128, 8
    return {
        "factory": f"{HERE}:early_exit", "call": "positional",
        "args": {"tokens": tokens, "width": width, "heads": 4, "blocks": 12, "every": 2, "classes": classes,
                 "threshold": 0.9},
        "inputs": [{"name": "features", "dtype": "float32", "shape": [tokens, width]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [classes]},
                    {"name": "depth", "dtype": "int64", "shape": []}],
        "batch_sizes": [1, 2, 4, 8],
    }


def _image_options(architecture: str, config: dict[str, Any], labels: int) -> dict[str, Any]:
    return {
        "factory": f"{HERE}:transformers_model", "args": {"architecture": architecture, "config": config},
        "memory_format": "channels_last",
        "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": [3, 64, 64]}],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": [labels]}], "batch_sizes": [1, 2, 4, 8, 16],
    }


#: short names for `cwd model add --zoo`
OPTIONS = {
    "resnet": resnet_options, "mobilenet": mobilenet_options, "bert": bert_options, "convnet5m": convnet5m_options,
    "identity": identity_options, "nothing": nothing_options, "mlp": mlp_options, "early-exit": early_exit_options,
}
