"""Sensor noise."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions.base import Corruption, Draw, field


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


class GaussianNoise(Corruption):
    """x + sigma * N(0, 1), clipped to [0, 1]: sensor noise; the numbers are those of `gaussian_noise`.

    Presets of Instant Video Models (denoising): "ivm-moderate" 0.1, "ivm-strong" 0.2, "ivm-extreme" 0.6, and
    "ivm-davis" 40/255. Severities are those of ImageNet-C.

    >>> clip = torch.full((2, 3, 8, 8), 0.5)
    >>> noisy = GaussianNoise.preset("ivm-moderate", seed=1)(clip)
    >>> torch.equal(noisy, gaussian_noise(clip, 0.1, seed=1))
    True
    """

    name = "gaussian_noise"
    levels: ClassVar = {"sigma": (0.08, 0.12, 0.18, 0.26, 0.38)}
    presets: ClassVar = {
        "ivm-moderate": {"sigma": 0.1},
        "ivm-strong": {"sigma": 0.2},
        "ivm-extreme": {"sigma": 0.6},
        "ivm-davis": {"sigma": 40 / 255},
    }

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", sigma: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.sigma: float = self._setting("sigma", sigma)

    def _rng(self, stream: int, t: int | None) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream, 0 if t is None or self.draw == "per_clip" else t))

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        noise = self._rng(stream, t).standard_normal(frame.shape, np.float32)
        return (frame + self.sigma * field(noise, frame)).clamp(0, 1)


class ShotNoise(Corruption):
    """Poisson(scale * x) / scale, clipped to [0, 1]: photons counted, `scale` of them at white; more is cleaner.

    Preset "ivm" is 64, the default of Instant Video Models' code; severities are those of ImageNet-C.

    >>> clip = torch.full((1, 1, 100, 100), 0.5)
    >>> round(ShotNoise(scale=50)(clip).var().item(), 3)  # x / scale
    0.01
    """

    name = "shot_noise"
    levels: ClassVar = {"scale": (60.0, 25.0, 12.0, 5.0, 3.0)}
    presets: ClassVar = {"ivm": {"scale": 64.0}}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", scale: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.scale: float = self._setting("scale", scale, 1e-3, 1e9)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        expected = self.scale * frame.detach().clamp(0, 1).to("cpu", torch.float64).numpy()
        return field(self._rng(stream, t).poisson(expected) / self.scale, frame).clamp(0, 1)


class ImpulseNoise(Corruption):
    """Each value, not each pixel, becomes 0 with probability `pepper` and 1 with probability `salt`.

    One uniform u is drawn per value: u < pepper gives 0, u > 1 - salt gives 1. Preset "ivm" is 0.05 each; severities
    are those of ImageNet-C, half of each kind.

    >>> out = ImpulseNoise(pepper=0.25, salt=0.0)(torch.ones(1, 3, 100, 100))
    >>> round(1 - out.mean().item(), 2)
    0.25
    """

    name = "impulse_noise"
    levels: ClassVar = {
        "pepper": (0.015, 0.03, 0.045, 0.085, 0.135),
        "salt": (0.015, 0.03, 0.045, 0.085, 0.135),
    }
    presets: ClassVar = {"ivm": {"pepper": 0.05, "salt": 0.05}}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        pepper: float | None = None,
        salt: float | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.pepper: float = self._setting("pepper", pepper, 0, 1)
        self.salt: float = self._setting("salt", salt, 0, 1)
        if self.pepper + self.salt > 1:
            raise InputError(f"impulse_noise: pepper and salt must sum to 1 at most, got {self.pepper + self.salt:g}.")

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        u = self._rng(stream, t).random(frame.shape, np.float32)
        peppered = frame.masked_fill(torch.from_numpy(u < self.pepper).to(frame.device), 0)
        return peppered.masked_fill(torch.from_numpy(u > 1 - self.salt).to(frame.device), 1)


class SpeckleNoise(Corruption):
    """x + x * sigma * N(0, 1), clipped to [0, 1]: noise in proportion to the light, as of radar and ultrasound.

    Severities are those of ImageNet-C.

    >>> SpeckleNoise(severity=5)(torch.zeros(1, 3, 4, 4)).max().item()
    0.0
    """

    name = "speckle_noise"
    levels: ClassVar = {"sigma": (0.15, 0.2, 0.35, 0.45, 0.6)}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", sigma: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.sigma: float = self._setting("sigma", sigma)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        noise = self._rng(stream, t).standard_normal(frame.shape, np.float32)
        return (frame + frame * self.sigma * field(noise, frame)).clamp(0, 1)
