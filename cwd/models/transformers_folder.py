"""What requests to a transformers model look like, guessed from its configuration; options override every field."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from cwd.errors import Code, RepositoryError
from cwd.models.repository import read_json

_SEQUENCE_CLASSES = (16, 32, 64, 128, 256, 512)
_IMAGE_CONFIGS = ("preprocessor_config.json", "processor_config.json")


def describe(folder: Path, config: dict[str, Any], module: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Options (inputs, axes, size classes, ...) for a text or image model; an error says what to give for others."""
    if "inputs" in options:
        return {}
    parameters = inspect.signature(module.forward).parameters
    if config.get("is_encoder_decoder") or "decoder_input_ids" in parameters:
        raise _unknown(folder, "an encoder-decoder has no single forward pass to serve")
    if "input_ids" in parameters and "attention_mask" in parameters:
        return _text(module)
    if "pixel_values" in parameters:
        return _image(folder, module)
    raise _unknown(folder, f"its inputs are {', '.join(list(parameters)[:6])}")


def _text(module: Any) -> dict[str, Any]:
    settings = module.config
    # RoBERTa's kin number positions from the padding token's id on
    longest = getattr(settings, "max_position_embeddings", None) or getattr(settings, "n_positions", None) or 512
    classes = [[size] for size in _SEQUENCE_CLASSES if size <= longest] or [[longest]]
    return {
        "inputs": [{"name": "input_ids", "dtype": "int64", "shape": ["sequence"],
                    "pad": getattr(settings, "pad_token_id", None) or 0},
                   {"name": "attention_mask", "dtype": "int64", "shape": ["sequence"], "made": "mask"}],
        "axes": ["sequence"], "padding": "mask", "size_classes": classes, "batch_sizes": [1, 2, 4, 8],
    }


def _image(folder: Path, module: Any) -> dict[str, Any]:
    size = getattr(module.config, "image_size", None)
    for name in _IMAGE_CONFIGS if not size else ():
        if (folder / name).exists():
            value = read_json(folder / name)
            value = value.get("image_processor", value)
            size = value.get("crop_size") or value.get("size")
            break
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if {"height", "width"} <= set(size) else size.get("shortest_edge")
    if isinstance(size, int):
        size = [size, size]
    if not size:
        raise _unknown(folder, "its configuration has no image size")
    channels = getattr(module.config, "num_channels", 3)
    return {
        "inputs": [{"name": "pixel_values", "dtype": "float32", "shape": [channels, *size]}],
        "memory_format": "channels_last", "batch_sizes": [1, 2, 4, 8, 16],
    }


def _unknown(folder: Path, why: str) -> RepositoryError:
    return RepositoryError(
        f"{folder}: {why}; give options with 'inputs' (and 'axes', 'size_classes', 'padding' for dynamic ones)",
        code=Code.BAD_ARGUMENT)
