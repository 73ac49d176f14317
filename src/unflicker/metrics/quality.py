"""How close a clip is to the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from unflicker.checks import InputError


def psnr(preds: Tensor, target: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, of each frame, averaged over the frames; a scalar.

    mean_t -10 log10(mean (y_t - x_t)^2), the inner mean over channels and pixels, for values in [0, 1]: the order of
    the means of Instant Video Models. A frame without error makes it infinite.

    Args:
        preds: a clip (T, C, H, W).
        target: the truth, as preds.

    Raises:
        InputError: the shapes differ, or they are not those of a clip.

    >>> psnr(torch.full((2, 3, 4, 4), 0.6), torch.full((2, 3, 4, 4), 0.5)).round(decimals=3).item()
    20.0
    """
    if preds.shape != target.shape or preds.ndim != 4:
        raise InputError(
            f"preds and target must be clips (T, C, H, W) alike, got {tuple(preds.shape)} and {tuple(target.shape)}."
        )
    return (-10 * torch.log10((preds - target).square().mean((1, 2, 3)))).mean()
