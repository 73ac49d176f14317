"""Metrics: plain functions of clips, preds before target."""

from unflicker.metrics.quality import psnr
from unflicker.metrics.temporal import instability, temporal_difference_error

__all__ = ["instability", "psnr", "temporal_difference_error"]
