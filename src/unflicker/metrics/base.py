"""What the metrics share: checks at their door, and one video on its way through a metric."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from unflicker.checks import InputError

AXES = {3: ("frames", "height", "width"), 4: ("frames", "channels", "height", "width")}


class Stream(Protocol):
    """One video on its way through a metric: it takes the next frames, and knows its sums as if it ended now.

    `update` checks everything before it changes anything; what it keeps does not grow with the video.
    """

    def totals(self) -> Tensor:
        """Return what this video adds to the metric's sums: a float64 vector."""
        ...


def check_clip(clip: Tensor, name: str = "preds") -> None:
    """Raise unless `clip` is floats (T, C, H, W) with one frame or more.

    >>> check_clip(torch.zeros(3, 4, 4))
    Traceback (most recent call last):
    unflicker.checks.InputError: preds must be a clip of floats (T, C, H, W), got torch.float32 (3, 4, 4).
    """
    if clip.ndim != 4 or not clip.is_floating_point() or not clip.numel():
        raise InputError(f"{name} must be a clip of floats (T, C, H, W), got {clip.dtype} {tuple(clip.shape)}.")


def check_alike(preds: Tensor, target: Tensor, names: str = "preds and target") -> None:
    """Raise unless the shapes agree, and tell by how much they do not.

    >>> check_alike(torch.zeros(6, 3, 8, 8), torch.zeros(5, 3, 8, 8))
    Traceback (most recent call last):
    unflicker.checks.InputError: preds and target must be alike, got (6, 3, 8, 8) and (5, 3, 8, 8): frames 6 against \
5, 1 apart.
    """
    if preds.shape == target.shape:
        return
    text = f"{names} must be alike, got {tuple(preds.shape)} and {tuple(target.shape)}"
    if preds.ndim == target.ndim and preds.ndim in AXES:
        axes = zip(AXES[preds.ndim], preds.shape, target.shape, strict=True)
        text += ": " + "; ".join(f"{axis} {a} against {b}, {abs(a - b)} apart" for axis, a, b in axes if a != b)
    raise InputError(text + ".")


def check_continues(clip: Tensor, last: Tensor | None, name: str = "preds") -> None:
    """Raise unless the frames of `clip` have the shape of the video's last frame.

    >>> check_continues(torch.zeros(6, 3, 8, 8), torch.zeros(3, 8, 9))
    Traceback (most recent call last):
    unflicker.checks.InputError: The frames of preds were (3, 8, 9) and are (3, 8, 8) now: begin a new video \
(continues=False).
    """
    if last is not None and clip.shape[1:] != last.shape:
        raise InputError(
            f"The frames of {name} were {tuple(last.shape)} and are {tuple(clip.shape[1:])} now: "
            f"begin a new video (continues=False)."
        )


def joined(last: Tensor | None, clip: Tensor) -> Tensor:
    """Put the last frame of what went before in front of a clip."""
    return clip if last is None else torch.cat([last.to(clip).unsqueeze(0), clip])


def euclidean(preds: Tensor, target: Tensor) -> Tensor:
    """Return ||a - b||_2 of each frame, over all its values: (T, C, H, W) to (T,).

    >>> euclidean(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)).tolist()
    [2.0]
    """
    return (preds - target).flatten(1).norm(dim=1)


def vector(*values: Tensor | float) -> Tensor:
    """Collect sums into a float64 vector."""
    return torch.stack([torch.as_tensor(value, dtype=torch.float64).cpu() for value in values])
