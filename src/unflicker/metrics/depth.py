"""How right, and how steady, depth is."""

from __future__ import annotations

import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.losses import affine_align
from unflicker.metrics.base import check_alike, check_clip, check_continues, joined, vector

CAP = 200.0
FAR = 1e9


def valid_depth(target: Tensor) -> Tensor:
    """Return where a true depth is known: finite, above 0 and not the far plane (1e9)."""
    return torch.isfinite(target) & (target > 0) & (target <= FAR)


def depth_of(disparity: Tensor, *, cap: float = CAP) -> Tensor:
    """Return 1 / disparity, at most `cap`: a disparity of 0 or below is as far as it gets. NaN stays NaN.

    >>> depth_of(torch.tensor([0.5, 0.0, -1.0])).tolist()
    [2.0, 200.0, 200.0]
    """
    floor = 1 / cap
    return torch.where(disparity <= floor, cap, 1 / disparity.clamp_min(floor)).to(disparity)


def disparity_of(depth: Tensor) -> Tensor:
    """Return 1 / depth, and NaN where the depth is not known.

    >>> disparity_of(torch.tensor([2.0, 0.0, 1e10])).tolist()
    [0.5, nan, nan]
    """
    known = valid_depth(depth)
    return torch.where(known, 1 / torch.where(known, depth, 1), torch.nan)


def align_affine(preds: Tensor, target: Tensor) -> Tensor:
    """Fit each frame's disparity to the truth by a scale and a shift of its own; a clip like `preds`.

    a_t y_t + b_t with (a_t, b_t) = argmin sum (a y_t + b - 1 / x_t)^2 over the frame's pixels whose true depth is
    known, in float64. The fit takes out flicker of scale and shift, so measure instability before it as well. A frame
    of one value gets the truth's mean; a frame without known depth is returned as it is. NaN in a frame's known
    pixels makes that frame NaN.

    Args:
        preds: disparity (T, 1, H, W), of any scale.
        target: true depth, as `preds`; NaN, 0 and beyond 1e9 are unknown.

    Raises:
        InputError: the shapes differ.

    >>> depth = torch.tensor([1.0, 2.0, 4.0]).view(1, 1, 1, 3)
    >>> (1 / align_affine(3 / depth + 5, depth)).round(decimals=4).flatten().tolist()
    [1.0, 2.0, 4.0]
    """
    check_clip(preds)
    check_alike(preds, target)
    known = valid_depth(target)
    fitted = affine_align(preds.double(), disparity_of(target.double()))
    return torch.where(known.flatten(1).any(1).view(-1, 1, 1, 1), fitted, preds.double()).to(preds)


def depth_errors(preds: Tensor, target: Tensor, *, align: bool = True, cap: float = CAP) -> Tensor:
    """Return AbsRel and delta < 1.25 of each frame with known depth, (frames, 2); see `abs_rel` and `delta`."""
    check_clip(preds)
    check_alike(preds, target)
    if not 0 < cap < float("inf"):
        raise InputError(f"cap must be above 0 and finite, got {cap}.")
    known = valid_depth(target).flatten(1)
    depth = depth_of((align_affine(preds, target) if align else preds).flatten(1).double(), cap=cap)
    depth = torch.where(known, depth, 1)
    truth = torch.where(known, target.flatten(1).double(), 1)
    counts = known.sum(1)
    relative = ((depth - truth).abs() / truth).sum(1) / counts.clamp_min(1)
    close = torch.where(known, torch.maximum(depth / truth, truth / depth) < 1.25, False).sum(1) / counts.clamp_min(1)
    return torch.stack([relative, close.to(relative)], 1)[counts > 0]


def abs_rel(preds: Tensor, target: Tensor, *, align: bool = True, cap: float = CAP) -> Tensor:
    """Return the mean relative error of depth, of each frame, averaged over the frames; a scalar, 0 at best.

    mean |d_t - x_t| / x_t over the pixels whose true depth x is known, d = min(1 / disparity, cap), and a disparity of
    0 or below reads as the cap. It sees each frame alone: with `align`, which fits every frame anew, flicker of scale
    and shift is free. NaN in known pixels propagates.

    Args:
        preds: disparity (T, 1, H, W).
        target: true depth, as `preds`; NaN, 0 and beyond 1e9 are unknown.
        align: fit each frame's disparity first (`align_affine`); else `preds` is 1 / depth in the target's unit.
        cap: the largest depth, in the target's unit.

    Raises:
        InputError: the shapes differ, or no depth is known.

    >>> depth = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    >>> round(abs_rel(1 / (1.5 * depth), depth, align=False).item(), 4)
    0.5
    """
    return _mean(depth_errors(preds, target, align=align, cap=cap), target)[0].to(preds)


def delta(preds: Tensor, target: Tensor, *, align: bool = True, cap: float = CAP) -> Tensor:
    """Return the share of pixels whose depth is right within a factor of 1.25, averaged over the frames; 1 at best.

    mean [max(d_t / x_t, x_t / d_t) < 1.25], a scalar in [0, 1]; arguments and what it does not see as for `abs_rel`,
    nor by how much a pixel is wrong. A NaN among the known pixels is wrong, as is the frame that is fitted to it.

    Raises:
        InputError: the shapes differ, or no depth is known.

    >>> depth = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    >>> delta(1 / (torch.tensor([1.2, 1.3]) * depth), depth, align=False).item()
    0.5
    """
    return _mean(depth_errors(preds, target, align=align, cap=cap), target)[1].to(preds)


def _mean(errors: Tensor, target: Tensor) -> Tensor:
    if not len(errors):
        raise InputError(f"No depth is known in the target {tuple(target.shape)}: it is NaN, 0 or beyond {FAR:g}.")
    return errors.mean(0)


class DepthStream:
    """Sums for the instability of disparity over a video: [raw, pairs, aligned, pairs], normalized per value."""

    def __init__(self) -> None:
        self.last: Tensor | None = None  # the last frame, raw and aligned
        self.known: Tensor | None = None  # where its depth is known
        self.sums = torch.zeros(4, dtype=torch.float64)

    def update(self, preds: Tensor, target: Tensor) -> None:
        aligned = align_affine(preds, target)
        check_continues(preds, None if self.last is None else self.last[: len(self.last) // 2])
        known = valid_depth(target)
        both = joined(self.last, torch.cat([preds, aligned], 1).detach())
        seen = joined(self.known, known)
        kept = (seen[1:] & seen[:-1]).flatten(1)
        counts = kept.sum(1)
        half = both.shape[1] // 2
        for i, clip in enumerate((both[:, :half], both[:, half:])):
            squares = torch.where(kept, clip.diff(dim=0).flatten(1), 0).square().sum(1, dtype=torch.float64)
            rms = (squares[counts > 0] / counts[counts > 0]).sqrt()
            self.sums[2 * i : 2 * i + 2] += vector(rms.sum(), len(rms))
        self.last, self.known = both[-1].clone(), known[-1].clone()

    def totals(self) -> Tensor:
        return self.sums
