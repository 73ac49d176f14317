"""Geometry: elastic distortion and a camera held by hand."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.corruptions.base import Corruption, Draw, field, filtered, gaussian_kernel, short_edge


class Elastic(Corruption):
    """Displace every pixel by a smooth random field, as torchvision's `ElasticTransform(alpha, sigma)` does.

    Two fields of uniform noise in [-1, 1] are blurred with a Gaussian of `sigma` pixels (its kernel 8 * sigma + 1 wide,
    made odd), then multiplied by alpha over the frame's height (for x) and width (for y), on the grid's scale, in
    which a frame is 2 wide. In a square frame the displacement is alpha / 2 * noise in pixels: with alpha 50 and
    sigma 5 about 0.8 pixels in standard deviation. Bilinear; what comes from outside is 0. Unlike torchvision's, it
    takes frames smaller than the kernel. Preset "ivm": alpha 50, sigma 5.

    >>> clip = torch.rand(1, 3, 32, 32)
    >>> torch.allclose(Elastic(alpha=0.0, sigma=5.0)(clip), clip, atol=1e-5)
    True
    """

    name = "elastic"
    levels: ClassVar = {"alpha": (15.0, 30.0, 50.0, 80.0, 120.0), "sigma": (5.0,) * 5}
    presets: ClassVar = {"ivm": {"alpha": 50.0, "sigma": 5.0}}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        alpha: float | None = None,
        sigma: float | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.alpha: float = self._setting("alpha", alpha)
        self.sigma: float = self._setting("sigma", sigma, 0, 100)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        height, width = frame.shape[-2:]
        noise = field(self._rng(stream, t).random((2, height, width), np.float32) * 2 - 1, frame)
        if self.sigma > 0:
            kernel = gaussian_kernel(self.sigma, int(8 * self.sigma + 1) | 1, noise)
            noise = filtered(filtered(noise, kernel[None]), kernel[:, None])
        shift = torch.stack([noise[0] * self.alpha / height, noise[1] * self.alpha / width], -1)
        grid = F.affine_grid(field(np.eye(2, 3), frame)[None], [1, 1, height, width], align_corners=False)
        return F.grid_sample(frame[None], grid + shift, padding_mode="zeros", align_corners=False)[0]


class CameraShake(Corruption):
    """Shift and roll the frame as a shaking hand does: smoothly, along a path that is drawn once per row.

    Each of x, y and roll is a sum of three sines with periods of 23, 11 and 6.3 frames and random phases; `amplitude`
    is the shift's largest value in pixels of a frame with a short edge of 360, and the roll's is 1 degree per 20 of
    them.
    Bilinear; the border is repeated outwards. `draw` makes no difference.

    >>> clip = torch.rand(1, 3, 1, 40, 40).expand(1, 3, 1, 40, 40)
    >>> out = CameraShake(amplitude=20.0)(clip)
    >>> bool((out[0, 0] - out[0, 1]).abs().max() > 0)
    True
    """

    name = "camera_shake"
    levels: ClassVar = {"amplitude": (1.0, 2.0, 4.0, 8.0, 16.0)}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", amplitude: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.amplitude: float = self._setting("amplitude", amplitude)

    def path(self, stream: int, t: int) -> tuple[float, float, float]:
        """The shift (x, y) in pixels of 360 and the roll in radians at frame t."""
        phases = self._rng(stream, None).random((3, 3)) * 2 * math.pi
        periods, weights = np.array([23.0, 11.0, 6.3]), np.array([0.6, 0.28, 0.12])
        x, y, roll = (weights * np.sin(2 * math.pi * t / periods + phases)).sum(1) * self.amplitude
        return float(x), float(y), float(roll) * math.pi / 180 / 20

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        height, width = frame.shape[-2:]
        x, y, roll = self.path(stream, t)
        unit = short_edge(frame)
        cos, sin = math.cos(roll), math.sin(roll)
        # affine_grid counts from -1 to 1 along both edges; a roll has to count pixels.
        matrix = np.array(
            [
                [cos, -sin * height / width, -2 * x * unit / width],
                [sin * width / height, cos, -2 * y * unit / height],
            ]
        )
        grid = F.affine_grid(field(matrix, frame)[None], [1, 1, height, width], align_corners=False)
        return F.grid_sample(frame[None], grid, padding_mode="border", align_corners=False)[0]
