"""Sensor noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError


def gaussian_noise(clip: Tensor, sigma: float, *, seed: int, start: int = 0) -> Tensor:
    """Add independent Gaussian noise to every value and clip to [0, 1].

    x + sigma * N(0, 1), as in the experiments of Instant Video Models. The noise of a frame depends on the seed, on
    the frame's number and on its row in the batch alone: a video gets the same whole, in chunks or frame by frame.

    Args:
        clip: (..., T, C, H, W) in [0, 1]; the axes in front are those of a batch, its first row as a clip alone.
        sigma: standard deviation, on the scale of [0, 1].
        seed: 0 or more.
        start: the number of the first frame in its video.

    Raises:
        InputError: `clip` is no floating-point clip, or a number is negative.

    >>> clip = torch.full((4, 3, 8, 8), 0.5)
    >>> noisy = gaussian_noise(clip, 0.1, seed=0)
    >>> torch.equal(noisy[2:3], gaussian_noise(clip[2:3], 0.1, seed=0, start=2))
    True
    """
    if clip.ndim < 4 or not clip.is_floating_point():
        raise InputError(f"clip must be floats (..., T, C, H, W), got {clip.dtype} {tuple(clip.shape)}.")
    if sigma < 0 or seed < 0 or start < 0:
        raise InputError(f"sigma, seed and start must be 0 or more, got {sigma}, {seed} and {start}.")
    noise = np.empty(clip.shape, np.float32)
    for stream, frames in enumerate(noise.reshape(-1, *clip.shape[-4:])):  # a view: filling it fills `noise`
        for t, frame in enumerate(frames, start):
            np.random.default_rng((seed, stream, t)).standard_normal(out=frame, dtype=np.float32)
    return (clip + sigma * torch.from_numpy(noise).to(clip)).clamp(0, 1)
