"""The textures of scenes: small pictures in random colours that repeat without seams."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Painter:
    """Draws textures (3, S, S) that repeat, and collects them."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng, self.size, self.pictures = rng, size, list[Tensor]()
        places = (torch.arange(size) + 0.5) / size
        self.u, self.v = places.expand(size, size), places[:, None].expand(size, size)

    def add(self, picture: Tensor) -> int:
        self.pictures.append(picture.clamp(0, 1))
        return len(self.pictures) - 1

    def any_of(self, *names: str) -> int:
        """Paint one of these, in colours drawn at random."""
        return self.add(getattr(self, names[int(self.rng.integers(len(names)))])())

    def colour(self, saturation: tuple[float, float] = (0.0, 0.5), value: tuple[float, float] = (0.35, 0.9)) -> Tensor:
        hue, rest = self.rng.random(), (self.rng.uniform(*saturation), self.rng.uniform(*value))
        return torch.tensor(colorsys.hsv_to_rgb(hue, *rest)).float()[:, None, None]

    def clouds(self, roughness: float = 1.4, stretch: float = 1.0, most: int = 40) -> Tensor:
        """Noise (S, S) of all sizes, with mean 0 and standard deviation 1; `stretch` draws it out along v."""
        most = min(most, self.size // 2 - 1)
        waves = np.zeros((self.size, self.size // 2 + 1), complex)
        ky, kx = np.mgrid[-most : most + 1, 0 : most + 1]
        strength = np.maximum(np.hypot(kx, ky * stretch), 1) ** -roughness * (np.hypot(kx, ky) <= most)
        drawn = self.rng.normal(size=(2, *kx.shape))
        waves[ky, kx] = strength * (drawn[0] + 1j * drawn[1])
        waves[0, 0] = 0
        noise = np.fft.irfft2(waves, (self.size, self.size))
        return torch.from_numpy(noise / noise.std()).float()

    def cells(self, rows: int, columns: int, shifted: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Cut into bricks: the number of each, and where in it one is, along u and v in 0..1."""
        v = self.v * rows
        row = v.floor()
        u = self.u * columns + shifted * row
        number = row.long() * columns + u.floor().long() % columns
        return number, u - u.floor(), v - row

    def joints(
        self, base: Tensor, rows: int, columns: int, shifted: float = 0.0, *, wide: float, vary: float
    ) -> Tensor:
        """Bricks or tiles of one colour, each a little other than the next, with joints `wide` repeats wide."""
        number, u, v = self.cells(rows, columns, shifted)
        each = torch.from_numpy(self.rng.normal(0, vary, (rows * columns, 3)) * 0.4).float()
        each += torch.from_numpy(self.rng.normal(0, vary, (rows * columns, 1))).float()
        colours = base + each[number].permute(2, 0, 1) + 0.04 * self.clouds(1.0)
        edge = torch.minimum(torch.minimum(u, 1 - u) / columns, torch.minimum(v, 1 - v) / rows)
        cover = ((edge - wide / 2) * self.size + 0.5).clamp(0, 1)
        return torch.lerp(self.colour((0, 0.15), (0.3, 0.85)), colours, cover)

    def plaster(self) -> Tensor:
        return self.colour() * (1 + self.rng.uniform(0.03, 0.09) * self.clouds(1.1))

    def concrete(self) -> Tensor:
        return self.colour((0, 0.12), (0.3, 0.65)) * (1 + 0.12 * self.clouds(1.0) + 0.06 * self.clouds(0.4))

    def carpet(self) -> Tensor:
        shade = torch.sigmoid(2 * self.clouds(1.7))
        return torch.lerp(self.colour((0.1, 0.6)), self.colour((0.1, 0.6)), shade) * (1 + 0.1 * self.clouds(0.3))

    def marble(self) -> Tensor:
        veins = torch.sin(2 * math.pi * (self.u * 2 + self.v + 0.35 * self.clouds(1.6))).abs().pow(0.5)
        return torch.lerp(self.colour((0, 0.4), (0.2, 0.5)), self.colour((0, 0.2), (0.7, 0.95)), veins)

    def bricks(self) -> Tensor:
        return self.joints(self.colour((0.1, 0.55), (0.35, 0.8)), 12, 4, 0.5, wide=0.014, vary=0.06)

    def tiles(self) -> Tensor:
        n = int(self.rng.integers(3, 7))
        return self.joints(self.colour((0, 0.45)), n, n, wide=0.012, vary=self.rng.uniform(0.01, 0.07))

    def checks(self) -> Tensor:
        n = 2 * int(self.rng.integers(2, 4))
        number, _, _ = self.cells(n, n)
        odd = ((number // n + number % n) % 2).float()
        both = torch.lerp(self.colour((0, 0.6), (0.15, 0.55)), self.colour((0, 0.4), (0.6, 0.95)), odd)
        return both * (1 + 0.07 * self.clouds(1.1))

    def planks(self) -> Tensor:
        n = int(self.rng.integers(5, 9))
        number, u, _ = self.cells(1, n)
        base = torch.tensor(colorsys.hsv_to_rgb(self.rng.uniform(0.04, 0.12), self.rng.uniform(0.25, 0.65), 1.0))
        tone = torch.from_numpy(self.rng.uniform(0.4, 0.75, n)).float()[number] * (1 + 0.1 * self.clouds(1.2, 8))
        gap = ((torch.minimum(u, 1 - u) / n - 0.004) * self.size + 0.5).clamp(0, 1)
        return base[:, None, None] * tone * (0.4 + 0.6 * gap)

    def stripes(self) -> Tensor:
        along = self.u if self.rng.random() < 0.6 else self.v
        wave = torch.sin(2 * math.pi * int(self.rng.integers(3, 9)) * along)
        mask = (wave * self.size / 12 + 0.5).clamp(0, 1) if self.rng.random() < 0.5 else 0.5 + 0.5 * wave
        return torch.lerp(self.colour((0, 0.7)), self.colour((0, 0.5)), mask) * (1 + 0.04 * self.clouds(1.0))

    def dots(self) -> Tensor:
        n = int(self.rng.integers(3, 7))
        _, u, v = self.cells(n, n)
        mask = ((0.3 - torch.hypot(u - 0.5, v - 0.5)) * self.size / n + 0.5).clamp(0, 1)
        return torch.lerp(self.colour((0.2, 0.9)), self.colour((0.2, 0.9)), mask)

    def segments(self) -> Tensor:
        """A beach ball."""
        n = int(self.rng.integers(3, 7))
        colours = torch.cat([self.colour((0.5, 1.0), (0.5, 1.0)).flatten(1) for _ in range(n)], 1)
        return colours[:, (self.u * n).long()] * (1 + 0.03 * self.clouds(1.0))

    def marks(self) -> Tensor:
        """Print: lines of dark strokes of all widths, in words, with a heading."""
        ink = torch.zeros(self.size, self.size)
        lines = int(self.rng.integers(7, 14))
        for line in range(lines):
            tall = 0.55 if line else 0.8
            begin, end = ((line + k) / lines for k in ((1 - tall) / 2, (1 + tall) / 2))
            inside = ((self.v[:, 0] > begin) & (self.v[:, 0] < end)).float()
            place, last = 0.08, self.rng.uniform(0.6, 0.92)
            while place < last:
                wide = self.rng.uniform(0.008, 0.03) * (1 if line else 2)
                stroke = (self.u[0] > place) & (self.u[0] < place + wide)
                part = self.rng.integers(3)  # strokes that are whole, or have only a foot or a head
                halves = (self.v[:, 0] < (begin + end) / 2) if part == 1 else (self.v[:, 0] > (begin + end) / 2)
                rows = inside if part == 0 else inside * halves
                ink = torch.maximum(ink, rows[:, None] * stroke)
                place += wide + (self.rng.uniform(0.03, 0.05) if self.rng.random() < 0.15 else 0.01)
        paper, letters = self.colour((0, 0.5), (0.6, 0.95)), self.colour((0, 0.8), (0.05, 0.35))
        return torch.lerp(paper, letters, ink) * (1 + 0.03 * self.clouds(1.0))

    def cardboard(self) -> Tensor:
        base = torch.tensor([0.66, 0.5, 0.34])[:, None, None] * self.rng.uniform(0.75, 1.15)
        tape = ((0.06 - (self.u - 0.5).abs()) * self.size + 0.5).clamp(0, 1)
        return torch.lerp(
            base * (1 + 0.05 * self.clouds(1.0)), torch.tensor([0.8, 0.7, 0.5])[:, None, None], 0.7 * tape
        )

    def windows(self) -> Tensor:
        """A facade: windows with frames in plaster or brick, some lit."""
        wall = self.bricks() if self.rng.random() < 0.4 else self.plaster()
        rows, columns = int(self.rng.integers(2, 4)), int(self.rng.integers(2, 4))
        number, u, v = self.cells(rows, columns)
        wide, tall = self.rng.uniform(0.2, 0.34), self.rng.uniform(0.25, 0.36)

        def cover(grown: float) -> Tensor:
            gap = torch.minimum((wide + grown - (u - 0.5).abs()) / columns, (tall + grown - (v - 0.5).abs()) / rows)
            return (gap * self.size + 0.5).clamp(0, 1)

        panes = torch.from_numpy(self.rng.uniform(0.1, 0.5, rows * columns)).float()[number] * (1.25 - 0.5 * v)
        glass = torch.tensor([0.75, 0.9, 1.0])[:, None, None] * panes
        bar = ((0.012 - (u - 0.5).abs() / columns * 1.5) * self.size + 0.5).clamp(0, 1)
        frame = self.colour((0, 0.3), (0.3, 0.95))
        wall = torch.lerp(wall, frame, cover(0.05))
        return torch.lerp(wall, torch.lerp(glass.expand(3, -1, -1), frame, bar), cover(0.0))

    def paint(self) -> Tensor:
        """A car's: one strong colour with a darker line."""
        line = ((0.03 - (self.v - 0.5).abs()) * self.size + 0.5).clamp(0, 1)
        base = self.colour((0.5, 1.0), (0.4, 0.95)) if self.rng.random() < 0.75 else self.colour((0, 0.1), (0.15, 0.95))
        return base * (1 - 0.4 * line) * (1 + 0.02 * self.clouds(1.5))

    def pane(self) -> Tensor:
        return torch.tensor([0.16, 0.2, 0.24])[:, None, None] * (1 + 0.35 * self.clouds(2.0))

    def skin(self) -> Tensor:
        tone = torch.lerp(torch.tensor([0.35, 0.22, 0.15]), torch.tensor([0.95, 0.76, 0.65]), self.rng.random())
        return tone[:, None, None] * (1 + 0.05 * self.clouds(1.2))

    def rubber(self) -> Tensor:
        return 0.12 + 0.02 * self.clouds(1.0).expand(3, -1, -1)

    def asphalt(self) -> Tensor:
        return self.colour((0, 0.08), (0.3, 0.5)) * (1 + 0.1 * self.clouds(0.7) + 0.08 * self.clouds(1.6))

    def grass(self) -> Tensor:
        base = torch.tensor(colorsys.hsv_to_rgb(self.rng.uniform(0.2, 0.33), 0.55, self.rng.uniform(0.35, 0.55)))
        return base[:, None, None] * (1 + 0.16 * self.clouds(0.8) + 0.08 * self.clouds(1.6))

    def sky(self) -> Tensor:
        blue = torch.tensor(colorsys.hsv_to_rgb(self.rng.uniform(0.55, 0.62), self.rng.uniform(0.1, 0.6), 0.85))
        cover = torch.sigmoid(2.5 * self.clouds(1.7) - self.rng.uniform(-1, 2.5))
        return torch.lerp(blue[:, None, None].expand(3, self.size, self.size), torch.tensor(0.93), cover)

    def photograph(self) -> Tensor:
        """A photograph from scikit-image, mirrored along both axes so that it repeats without seams."""
        import skimage.data

        names = ("astronaut", "coffee", "chelsea", "rocket")
        photo = getattr(skimage.data, names[int(self.rng.integers(len(names)))])()
        photo = torch.from_numpy(photo).permute(2, 0, 1).float()[None] / 255
        small = F.interpolate(photo, size=(self.size // 2,) * 2, mode="bilinear", antialias=True)[0]
        row = torch.cat([small, small.flip(2)], 2)
        return torch.cat([row, row.flip(1)], 1)
