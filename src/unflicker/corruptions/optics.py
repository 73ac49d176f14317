"""Optics: a lens out of focus, a camera that moved, and random Gaussian blur."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unflicker.corruptions.base import Corruption, Draw, field, filtered, gaussian_kernel


class DefocusBlur(Corruption):
    """Average over a disk of `radius` pixels, whose rim fades over one pixel: a lens out of focus.

    The frame is reflected at its borders. Nothing is drawn: the seed does not matter.

    >>> clip = torch.rand(1, 3, 16, 16)
    >>> torch.allclose(DefocusBlur(radius=0.0)(clip), clip)
    True
    """

    name = "defocus_blur"
    levels: ClassVar = {"radius": (1.0, 2.0, 3.0, 4.5, 6.5)}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", radius: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.radius: float = self._setting("radius", radius, 0, 100)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        reach = math.ceil(self.radius)
        x = torch.arange(-reach, reach + 1, dtype=frame.dtype, device=frame.device)
        disk = (self.radius + 0.5 - torch.hypot(x, x[:, None])).clamp(0, 1)
        return filtered(frame, disk / disk.sum())


class MotionBlur(Corruption):
    """Average along a straight line of `length` pixels at a random angle: a camera moving while its shutter is open.

    The angle is uniform over all directions. The frame is reflected at its borders.

    >>> clip = torch.rand(1, 3, 16, 16)
    >>> torch.allclose(MotionBlur(length=0.0)(clip), clip)
    True
    """

    name = "motion_blur"
    levels: ClassVar = {"length": (3.0, 5.0, 8.0, 12.0, 18.0)}

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", length: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.length: float = self._setting("length", length, 0, 200)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        return filtered(frame, field(line_kernel(self.length, self._rng(stream, t).random() * math.pi), frame))


class GaussianBlur(Corruption):
    """Blur with a Gaussian whose standard deviation is uniform in `sigma`, a pair (least, most) in pixels.

    The kernel has `kernel_size` taps (odd; 6 times the largest sigma unless given); the frame is reflected at its
    borders. Preset "ivm": sigma 0.1 to 2 with 11 taps (the RandomBlur of Instant Video Models' code).

    >>> clip = torch.rand(1, 3, 16, 16)
    >>> torch.allclose(GaussianBlur(sigma=(0.0, 0.0))(clip), clip)
    True
    """

    name = "gaussian_blur"
    levels: ClassVar = {"sigma": ((0.1, 1.0), (0.1, 2.0), (0.1, 3.0), (0.1, 4.0), (0.1, 6.0))}
    presets: ClassVar = {"ivm": {"sigma": (0.1, 2.0), "kernel_size": 11}}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        sigma: tuple[float, float] | None = None,
        kernel_size: int | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.sigma = self._pair("sigma", sigma)
        default = 2 * math.ceil(3 * self.sigma[1]) + 1
        self.kernel_size = self._whole("kernel_size", default if kernel_size is None else kernel_size, 1, 999)
        self.kernel_size |= 1

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        low, high = self.sigma
        kernel = gaussian_kernel(low + (high - low) * self._rng(stream, t).random(), self.kernel_size, frame)
        return filtered(filtered(frame, kernel[None]), kernel[:, None])


def line_kernel(length: float, angle: float) -> np.ndarray:
    """A line through the middle, (k, k) with sum 1, its points shared bilinearly between the pixels around them."""
    reach = math.ceil(length / 2)
    kernel = np.zeros((2 * reach + 2, 2 * reach + 2))
    along = np.linspace(-length / 2, length / 2, max(2, math.ceil(4 * length) | 1))
    x, y = reach + along * math.cos(angle), reach + along * math.sin(angle)
    left, top = np.floor(x + 1e-9).astype(int), np.floor(y + 1e-9).astype(int)
    for dy, wy in ((0, 1 - (y - top)), (1, y - top)):
        for dx, wx in ((0, 1 - (x - left)), (1, x - left)):
            np.add.at(kernel, (top + dy, left + dx), wy * wx)
    return kernel[:-1, :-1] / kernel[:-1, :-1].sum()
