"""Any depth, segmentation, image-to-image or classification network of transformers, prepared as its own files say."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from unflicker.checks import InputError
from unflicker.networks.base import IMAGENET_MEAN, IMAGENET_STD, Framed, Mode, Sizing, from_hub

# How the architecture in config.json ends, the class that loads it, and the entry of what it returns.
KINDS = {
    "ForDepthEstimation": ("AutoModelForDepthEstimation", "predicted_depth"),
    "ForSemanticSegmentation": ("AutoModelForSemanticSegmentation", "logits"),
    "ForImageSuperResolution": ("AutoModelForImageToImage", "reconstruction"),
    "ForImageToImage": ("AutoModelForImageToImage", "reconstruction"),
    "ForImageClassification": ("AutoModelForImageClassification", "logits"),
}
BICUBIC = 3  # as preprocessor_config.json counts


def load(source: str | Path, *, trained: bool = True, weights: Mapping[str, Tensor] | None = None) -> Framed:
    """Return a network of transformers that takes frames (B, 3, H, W) RGB in [0, 1].

    It returns (B, 1, H, W) for depth, logits (B, K, H, W) for segmentation, pictures (B, 3, sH, sW) for image-to-image,
    and logits (B, K) for classification.

    Args:
        source: a local folder, or OWNER/NAME on the hub.
        trained: False takes the architecture alone, with random weights.
        weights: tensors by name to take instead of the source's.

    Raises:
        InputError: transformers is missing, the source cannot be read, or its network is for something else.
    """
    config = from_hub("AutoConfig", source)
    architecture = (config.architectures or [""])[0]
    kind = next((kind for ending, kind in KINDS.items() if architecture.endswith(ending)), None)
    if kind is None:
        raise InputError(
            f"hf:{source} is {architecture or f'a bare {config.model_type}'}; networks for depth, semantic "
            "segmentation, image-to-image and image classification can be taken."
        )
    loader, entry = kind
    net = from_hub(loader, source, trained=trained, weights=weights)
    settings = _processor(source)
    if entry == "reconstruction":
        # These pad by themselves and most want plain values.
        plain = not settings.get("do_normalize", False)
        mean, std = ((0.0,) * 3, (1.0,) * 3) if plain else _normalisation(settings)
        return Framed(net, mean=mean, std=std, entry=entry, back=None)
    mean, std = _normalisation(settings)
    bicubic = settings.get("resample") == BICUBIC
    mode: Mode = "bicubic" if bicubic else "bilinear"
    return Framed(
        net,
        mean=mean,
        std=std,
        sizing=sizing(settings, whole=loader == "AutoModelForImageClassification"),
        mode=mode,
        entry=entry,
        back="bicubic" if entry == "predicted_depth" else "bilinear",
    )


def sizing(settings: Mapping[str, Any], *, whole: bool = False) -> Sizing:
    """Read from the settings of an image processor at what size its network looks at frames.

    Nothing is cropped: where the processor crops, frames are scaled as for it and looked at whole.

    Args:
        settings: what preprocessor_config.json holds.
        whole: of classifiers, whose processors name the size of the crop: `crop_pct` of what it is taken from.

    >>> sizing({"size": {"height": 384, "width": 384}, "keep_aspect_ratio": True, "ensure_multiple_of": 32})
    Sizing(rule='least', height=384, width=384, multiple=32)
    >>> sizing({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, whole=True)
    Sizing(rule='short', height=256, width=0, multiple=1)
    """
    size, multiple = settings.get("size"), int(settings.get("ensure_multiple_of") or 1)
    if not settings.get("do_resize", True) or not size:
        divisor = settings.get("size_divisor") or settings.get("pad_size") or 32  # what pyramids halve five times
        return Sizing(multiple=divisor if isinstance(divisor, int) else 32)
    if isinstance(size, int):
        size = {"height": size, "width": size}
    if "shortest_edge" in size:
        short = size["shortest_edge"]
        if whole and settings.get("crop_pct") and short < 384:  # from there on, that processor does not crop
            short = round(short / settings["crop_pct"])
        return Sizing("short", int(short), multiple=multiple)
    if "height" in size and "width" in size:
        rule = "least" if settings.get("keep_aspect_ratio") else "exact"
        return Sizing(rule, int(size["height"]), int(size["width"]), multiple)  # type: ignore[arg-type]
    return Sizing(multiple=32)


def _normalisation(settings: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if not settings.get("do_normalize", True):
        return (0.0,) * 3, (1.0,) * 3
    return tuple(settings.get("image_mean") or IMAGENET_MEAN), tuple(settings.get("image_std") or IMAGENET_STD)


def _processor(source: str | Path) -> Mapping[str, Any]:
    """The settings in preprocessor_config.json; none where there is no such file."""
    from transformers.image_processing_base import ImageProcessingMixin

    with contextlib.suppress(OSError, ValueError):
        return ImageProcessingMixin.get_image_processor_dict(str(source))[0]
    return {}
