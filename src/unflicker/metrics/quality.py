"""How close a clip is to the truth."""

from __future__ import annotations

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.metrics.base import check_alike, check_clip


def psnr(preds: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, of each frame, averaged over the frames; a scalar.

    mean_t 10 log10(data_range^2 / mean (y_t - x_t)^2), the inner mean over channels and pixels: the order of the means
    of Instant Video Models. A frame without error makes it infinite. It sees each frame alone, so no flicker, and not
    where the error is. Values outside [0, data_range] count as they are; nothing is clipped. NaN propagates.

    Args:
        preds: a clip (T, C, H, W).
        target: the truth, as preds.
        data_range: the largest value, such as 1, 255, or the peak of an HDR clip.

    Raises:
        InputError: the shapes differ, or they are not those of a clip, or the range is not above 0.

    >>> psnr(torch.full((2, 3, 4, 4), 0.6), torch.full((2, 3, 4, 4), 0.5)).round(decimals=3).item()
    20.0
    """
    return frame_psnr(preds, target, data_range=data_range).mean()


def frame_psnr(preds: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame, (T,), as `psnr`."""
    _check(preds, target, data_range)
    ratio = -10 * torch.log10((preds - target).square().mean((1, 2, 3)))
    return ratio + 20 * torch.log10(ratio.new_tensor(data_range)) if data_range != 1 else ratio


def ssim(preds: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Return the structural similarity of each frame, averaged over the frames; a scalar in [-1, 1], 1 at best.

    Wang et al. 2004 as torchmetrics computes it by default: a Gaussian window of 11 x 11, sigma 1.5, and
    the border mirrored and counted (scikit-image leaves it out). It sees each frame alone, so no flicker, and hardly a
    shift of the brightness. NaN propagates.

    Args:
        preds: a clip (T, C, H, W) of 11 x 11 pixels or more.
        target: the truth, as `preds`.
        data_range: the largest value.

    Raises:
        InputError: the shapes differ, or the frames are too small, or the range is not above 0.

    >>> clip = torch.rand(2, 3, 16, 16)
    >>> ssim(clip, clip).item()
    1.0
    """
    return frame_ssim(preds, target, data_range=data_range).mean()


def frame_ssim(preds: Tensor, target: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Return the structural similarity of each frame, (T,), as `ssim`."""
    _check(preds, target, data_range)
    if min(preds.shape[-2:]) < 11:
        raise InputError(f"SSIM needs frames of 11 x 11 pixels or more, got {tuple(preds.shape)}.")
    from torchmetrics.functional.image import structural_similarity_index_measure

    found = structural_similarity_index_measure(preds, target, reduction="none", data_range=float(data_range))
    assert isinstance(found, Tensor)
    return found.reshape(len(preds))


def _check(preds: Tensor, target: Tensor, data_range: float) -> None:
    if preds.ndim != 4 or target.ndim != 4:
        raise InputError(
            f"preds and target must be clips (T, C, H, W) alike, got {tuple(preds.shape)} and {tuple(target.shape)}."
        )
    check_clip(preds)
    check_alike(preds, target)
    if not 0 < data_range < float("inf"):
        raise InputError(f"data_range must be above 0 and finite, got {data_range}.")
