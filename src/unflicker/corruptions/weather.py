"""Weather: rain, snow and fog whose particles move coherently in time, in layers of depth, with motion streaks.

A particle's place at frame t is a closed formula of t and of numbers drawn once per row of the batch, so that any frame
can be made alone. Lengths and speeds are in pixels of a frame with a short edge of 360 and scale with the frame. The
direction of the wind is drawn per row; `draw` makes no difference. The picture's depth is not known: what is far is
not hidden by what stands in front of it.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unflicker.corruptions.base import Corruption, Draw, field

GOLDEN = 0.6180339887498949  # steps by it never meet: a particle that comes round again falls in another place
SHIFT = 4  # OpenCV takes lines in 1/16 pixels
AREA = 640 * 360  # of a frame, in its units, for which the counts are


class Layer(NamedTuple):
    """Particles at one distance: how many, their diameter, speed per frame, side-to-side sway, blur and opacity."""

    number: int
    size: float
    speed: float
    sway: float
    blur: float
    opacity: float


class _Precipitation(Corruption):
    """Particles that fall in layers, behind a veil of those too far to be seen."""

    layers: ClassVar[tuple[Layer, ...]]
    colour: ClassVar[float]
    veil_colour: ClassVar[float]
    shutter: ClassVar[float]  # the part of a frame's time in which a particle leaves its streak
    widest_slant: ClassVar[float]  # of the wind, in degrees

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        density: float | None = None,
        veil: float | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.density: float = self._setting("density", density, 0, 100)
        self.veil: float = self._setting("veil", veil, 0, 1)

    def particles(self, stream: int, t: float, height: int, width: int) -> list[np.ndarray]:
        """Return for each layer the places (n, 2) of its particles at time t in frames, (x, y) in pixels.

        Some are outside the frame: they wait in a margin where they leave and enter unseen.
        """
        unit = min(height, width) / 360
        kind = zlib.crc32(self.name.encode())
        slant = math.tan(math.radians((2 * self._rng(stream, None).random() - 1) * self.widest_slant))
        places = []
        for number, layer in enumerate(self.layers):
            margin = unit * (layer.speed + layer.sway + 2 * layer.size + 4 * layer.blur) + 2
            box = np.array([width, height]) + 2 * margin
            count = round(self.density * layer.number * box.prod() / unit**2 / AREA)
            # A generator for each layer, one row for each particle: more of them are the same ones and some more.
            u = np.random.default_rng((self.seed, kind, stream, 0, number + 1)).random((count, 6))
            speed = unit * layer.speed * (0.85 + 0.3 * u[:, 2])
            fallen = u[:, 1] + speed * t / box[1]
            rounds = np.floor(fallen)
            period = 30 + 40 * u[:, 5]
            sway = unit * layer.sway * np.sin(2 * math.pi * (t / period + u[:, 4]))
            x = (u[:, 0] + GOLDEN * rounds) * box[0] + speed * (slant + 0.06 * (u[:, 3] - 0.5)) * t
            places.append(np.stack([x % box[0] + sway, (fallen - rounds) * box[1]], 1) - margin)
        return places

    def cover(self, stream: int, t: int, height: int, width: int) -> np.ndarray:
        """Return how much of each pixel particles hide in frame t: (H, W) bytes."""
        import cv2

        # OpenCV's lines have a whole number of pixels, too coarse for the particles of a small frame.
        unit = min(height, width) / 360
        fine = min(4, max(1, round(1 / unit)))
        unit, size = fine * unit, (fine * height, fine * width)
        cover: Any = np.zeros(size, np.uint8)
        heads, tails = (self.particles(stream, when, *size) for when in (t, t - self.shutter))
        for layer, head, tail in zip(self.layers, heads, tails, strict=True):
            # Where a particle came round during the exposure, its tail is at the other end of the frame.
            whole = np.abs(head - tail).max(1, initial=0) < max(size) / 2 + 2
            lines = np.stack([head, np.where(whole[:, None], tail, head)], 1)
            diameter = layer.size * unit
            thickness = max(1, round(diameter))
            ink = round(255 * layer.opacity * min(1.0, diameter / thickness))  # a thinner line is as much fainter
            drawn: Any = np.zeros_like(cover)
            if len(lines):
                fixed = np.round(lines * (1 << SHIFT)).astype(np.int32)
                cv2.polylines(drawn, list(fixed), False, ink, thickness, cv2.LINE_AA, SHIFT)
            if layer.blur * unit > 0.3:
                drawn = cv2.GaussianBlur(drawn, (0, 0), layer.blur * unit)
            np.maximum(cover, drawn, out=cover)
        return cover if fine == 1 else cv2.resize(cover, (width, height), interpolation=cv2.INTER_AREA)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        cover = torch.from_numpy(self.cover(stream, t, *frame.shape[-2:])).to(frame.device).to(frame.dtype) / 255
        hazy = frame + self.veil * (self.veil_colour - frame)
        return torch.lerp(hazy, torch.full_like(frame, self.colour), cover.expand_as(frame))


class Rain(_Precipitation):
    """Rain: bright streaks along each drop's way, long and fast near the camera, short and slow far away.

    A grey veil stands for the drops too far to be seen. `density` multiplies their number, about
    500 in sight at 1; `veil` is how much of the picture turns to grey.

    >>> clip = torch.zeros(4, 3, 36, 64)
    >>> rain = Rain(severity=4, seed=1)
    >>> torch.equal(rain(clip)[2:], rain(clip[2:], start=2))
    True
    """

    name = "rain"
    levels: ClassVar = {"density": (0.4, 0.8, 1.4, 2.2, 3.5), "veil": (0.04, 0.08, 0.14, 0.2, 0.28)}
    layers = (
        Layer(320, 1.0, 14.0, 0.0, 0.5, 0.45),
        Layer(130, 1.0, 24.0, 0.0, 0.0, 0.5),
        Layer(36, 2.0, 42.0, 0.0, 0.8, 0.55),
    )
    colour, veil_colour, shutter, widest_slant = 0.86, 0.62, 0.8, 16.0


class Snow(_Precipitation):
    """Snow: white flakes that sway as they fall, large and out of focus near the camera, in a bright veil.

    `density` multiplies the number of flakes, about 700 in sight at 1; `veil` is how much of the picture turns white.

    >>> clip = torch.zeros(4, 3, 36, 64)
    >>> snow = Snow(severity=4, seed=1)
    >>> torch.equal(snow(clip)[2:], snow(clip[2:], start=2))
    True
    """

    name = "snow"
    levels: ClassVar = {"density": (0.4, 0.8, 1.3, 2.0, 3.0), "veil": (0.04, 0.1, 0.16, 0.24, 0.34)}
    layers = (
        Layer(420, 1.6, 1.6, 3.0, 0.5, 0.75),
        Layer(180, 3.0, 2.8, 6.0, 0.7, 0.95),
        Layer(60, 5.0, 4.5, 9.0, 1.2, 0.95),
        Layer(14, 10.0, 8.0, 14.0, 3.0, 0.8),
    )
    colour, veil_colour, shutter, widest_slant = 0.98, 0.88, 0.5, 35.0


class RandomSnow(Corruption):
    """White blurred ellipses in new places in every frame: the synthetic snow of Instant Video Models' code.

    Per frame their number is uniform in `density` per pixel, ends included, and all are blurred with one Gaussian of
    sigma 1 to 4; each has full axes of 5 to 10 pixels, any rotation and an opacity of 0.5 to 1. It does not move: for
    snow that does, see `Snow`. Preset "ivm": density 5e-5 to 1e-4.

    >>> RandomSnow.preset("ivm")(torch.zeros(1, 3, 200, 200)).max().item() > 0.1
    True
    """

    name = "random_snow"
    levels: ClassVar = {"density": ((5e-5, 1e-4), (1e-4, 2e-4), (2e-4, 4e-4), (4e-4, 8e-4), (8e-4, 1.6e-3))}
    presets: ClassVar = {"ivm": {"density": (5e-5, 1e-4)}}

    def __init__(
        self,
        *,
        severity: int = 3,
        seed: int = 0,
        draw: Draw = "per_frame",
        density: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.density = self._pair("density", density)

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        import cv2

        rng = self._rng(stream, t)
        height, width = frame.shape[-2:]
        u = rng.random(2)
        count = round((self.density[0] + u[0] * (self.density[1] - self.density[0])) * height * width)
        cover = np.zeros((height, width), np.uint8)
        for x, y, a, b, angle, opacity in rng.random((count, 6)):
            middle, axes = (round(x * width * 16), round(y * height * 16)), (round(40 + 40 * a), round(40 + 40 * b))
            ink = round(255 * (0.5 + 0.5 * opacity))
            cv2.ellipse(cover, middle, axes, angle * 180, 0, 360, ink, -1, cv2.LINE_AA, SHIFT)
        blurred = cv2.GaussianBlur(cover, (0, 0), 1 + 3 * float(u[1]))
        return torch.lerp(frame, torch.ones_like(frame), (field(blurred, frame) / 255).expand_as(frame))


class Fog(Corruption):
    """Fog: banks of smooth noise that drift with the wind, thicker towards the top of the frame, which is taken as far.

    x * T + 0.85 * (1 - T), transmission T = exp(-thickness * depth(y) * density(x, y, t)), depth from 1.2 at the
    top to 0.4 at the bottom. The density is a sum of four octaves of noise; the finer ones count as nearer and drift
    faster, so that banks change as they go.

    >>> clip = torch.zeros(4, 3, 36, 64)
    >>> fog = Fog(severity=4, seed=1)
    >>> torch.equal(fog(clip)[2:], fog(clip[2:], start=2))
    True
    """

    name = "fog"
    levels: ClassVar = {"thickness": (0.35, 0.65, 1.0, 1.5, 2.2)}
    # The size of a cell, its weight and its speed per frame.
    octaves: ClassVar = (
        (300.0, 1.0, 1.2),
        (150.0, 0.6, 1.8),
        (75.0, 0.32, 2.5),
        (38.0, 0.14, 3.4),
    )
    colour: ClassVar = 0.85

    def __init__(
        self, *, severity: int = 3, seed: int = 0, draw: Draw = "per_frame", thickness: float | None = None
    ) -> None:
        super().__init__(severity=severity, seed=seed, draw=draw)
        self.thickness: float = self._setting("thickness", thickness, 0, 100)

    def density_at(self, stream: int, t: float, height: int, width: int) -> np.ndarray:
        """Return the density of the fog at time t in frames, about 0 to 2 with mean 1: (H, W)."""
        import cv2

        rng = self._rng(stream, None)
        unit = min(height, width) / 360
        step = max(1, int(10 * unit))  # it is smooth: a coarse grid, enlarged
        rows, columns = -(-height // step) + 1, -(-width // step) + 1
        total = np.zeros((rows, columns), np.float32)
        wind = math.radians((2 * rng.random() - 1) * 20) + (math.pi if rng.random() < 0.5 else 0)
        for cell, weight, speed in self.octaves:
            lattice = rng.standard_normal((32, 32), np.float32)  # repeats, far outside the frame
            angle = wind + (rng.random() - 0.5) * 0.5
            x = (np.arange(columns) * step / unit - speed * math.cos(angle) * t) / cell
            y = (np.arange(rows) * step / unit - speed * math.sin(angle) * t) / cell
            total += weight * _mixed(_mixed(lattice, y).T, x).T
        spread = math.sqrt(sum(weight**2 for _, weight, _ in self.octaves)) * 0.75
        coarse = 1 + np.tanh(0.75 * total / spread)
        full = cv2.resize(coarse, (columns * step, rows * step), interpolation=cv2.INTER_CUBIC)
        return full[:height, :width]

    def _corrupt(self, frame: Tensor, stream: int, t: int) -> Tensor:
        height, width = frame.shape[-2:]
        depth = (1.2 - 0.8 * (np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
        density = self.density_at(stream, t, height, width)
        passed = field(np.exp(-self.thickness * depth * density.clip(0)), frame)
        return torch.lerp(torch.full_like(frame, self.colour), frame, passed.expand_as(frame))


def _mixed(lattice: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Interpolate the rows of a lattice that repeats, smoothly, at the places `at`: (len(at), columns)."""
    below = np.floor(at)
    part = (at - below).astype(np.float32)[:, None]
    part = part * part * part * (part * (part * 6 - 15) + 10)
    first = below.astype(np.int64) % len(lattice)
    return lattice[first] * (1 - part) + lattice[(first + 1) % len(lattice)] * part
