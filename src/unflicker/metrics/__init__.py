"""Metrics: plain functions of clips, preds before target, and torchmetrics classes that stream over videos.

The functions need torch alone. The classes load torchmetrics, which takes a second or two, when one is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from unflicker.metrics.depth import abs_rel, align_affine, delta
from unflicker.metrics.motion import flicker, warping_error
from unflicker.metrics.quality import psnr, ssim
from unflicker.metrics.segmentation import mean_iou, pixel_accuracy
from unflicker.metrics.temporal import (
    categorical_instability,
    corruption_robustness,
    corruption_stability,
    instability,
    smoothness,
    temporal_difference_error,
)

_CLASSES = {
    "Instability": "temporal",
    "TemporalDifferenceError": "temporal",
    "CategoricalInstability": "temporal",
    "Smoothness": "temporal",
    "CorruptionRobustness": "temporal",
    "CorruptionStability": "temporal",
    "WarpingError": "motion",
    "Flicker": "motion",
    "PSNR": "frames",
    "SSIM": "frames",
    "DepthAccuracy": "frames",
    "DepthInstability": "frames",
    "MeanIoU": "frames",
    "PixelAccuracy": "frames",
}

if TYPE_CHECKING:
    from unflicker.metrics.classes.frames import (
        PSNR,
        SSIM,
        DepthAccuracy,
        DepthInstability,
        MeanIoU,
        PixelAccuracy,
    )
    from unflicker.metrics.classes.motion import Flicker, WarpingError
    from unflicker.metrics.classes.temporal import (
        CategoricalInstability,
        CorruptionRobustness,
        CorruptionStability,
        Instability,
        Smoothness,
        TemporalDifferenceError,
    )

__all__ = [
    "PSNR",
    "SSIM",
    "CategoricalInstability",
    "CorruptionRobustness",
    "CorruptionStability",
    "DepthAccuracy",
    "DepthInstability",
    "Flicker",
    "Instability",
    "MeanIoU",
    "PixelAccuracy",
    "Smoothness",
    "TemporalDifferenceError",
    "WarpingError",
    "abs_rel",
    "align_affine",
    "categorical_instability",
    "corruption_robustness",
    "corruption_stability",
    "delta",
    "flicker",
    "instability",
    "mean_iou",
    "pixel_accuracy",
    "psnr",
    "smoothness",
    "ssim",
    "temporal_difference_error",
    "warping_error",
]


def __getattr__(name: str) -> Any:
    """Load a class when it is first used."""
    if name not in _CLASSES:
        raise AttributeError(f"module 'unflicker.metrics' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"unflicker.metrics.classes.{_CLASSES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
