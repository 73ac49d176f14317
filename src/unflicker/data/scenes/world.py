"""Rooms and streets, laid out at random: no two things overlap, and the camera's way stays free."""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING

import numpy as np

from unflicker.data.scenes.base import (
    BALL,
    BOX,
    FACES,
    FLOOR,
    OVERHEAD,
    PERSON,
    PILLAR,
    VEHICLE,
    WALL,
    Camera,
    Light,
    Part,
    Path,
    Scene,
    Textures,
)

if TYPE_CHECKING:
    from unflicker.data.scenes.paint import Painter

FAR = 150.0  # metres to the end of a street's ground


class Builder:
    """Puts things where there is room for them: no two overlap, and the camera's path stays free."""

    def __init__(self, rng: np.random.Generator, painter: Painter, photographs: bool) -> None:
        self.rng, self.painter, self.photographs = rng, painter, photographs
        self.parts: list[Part] = []
        self.taken: list[tuple[float, float, float]] = []  # x, y, radius

    def room(self) -> Scene:
        rng, painter = self.rng, self.painter
        wide, long, high = rng.uniform(4.5, 9), rng.uniform(6.5, 13), rng.uniform(2.4, 3.8)
        walls = [painter.any_of("plaster", "plaster", "bricks", "stripes", "tiles", "marble") for _ in range(2)]
        if self.photographs:
            walls[1] = painter.add(painter.photograph())
        floor = painter.any_of("planks", "tiles", "checks", "carpet", "concrete", "marble")
        ceiling = painter.any_of("plaster", "tiles")
        room = (wide / 2, long / 2, high / 2)
        self.part(
            "shell",
            room,
            Path((0, long / 2, high / 2)),
            (WALL, WALL, WALL, WALL, FLOOR, OVERHEAD),
            (walls[0], walls[0], walls[1], walls[1], floor, ceiling),
            tile=rng.uniform(1.6, 3.0),
        )
        reach = (min(0.7, wide / 8), rng.uniform(0.3, 0.8))
        place = (
            rng.uniform(-0.2, 0.2) * wide,
            reach[1] + rng.uniform(0.5, 1.2),
            rng.uniform(1.2, min(1.8, high - 0.6)),
        )
        self.taken.append((place[0], place[1], max(reach) + 0.5))
        heading = rng.uniform(-0.4, 0.4) + 1.2 * place[0] / wide  # rather towards the middle
        area = (-wide / 2, wide / 2, 1.0, long)
        for _ in range(rng.integers(1, 4)):
            self.person(area)
        for _ in range(rng.integers(0, 3)):
            self.vehicle(area, scale=rng.uniform(0.25, 0.5), moves=True)
        for _ in range(rng.integers(2, 5)):
            self.ball(area, rng.uniform(0.15, 0.5))
        for _ in range(rng.integers(0, 4)):
            self.pillar(area, rng.uniform(0.12, 0.3), high)
        for _ in range(rng.integers(3, 8)):
            self.furniture(area, indoors=True)
        for _ in range(rng.integers(1, 6)):
            self.hang(wide, long, high)
        light = Light(
            place=(rng.uniform(-0.3, 0.3) * wide, rng.uniform(0.3, 0.8) * long, high - 0.25),
            fades=rng.uniform(2.5, 5),
            ambient=rng.uniform(0.5, 0.8),
            direct=rng.uniform(0.5, 1.0),
            haze=self.haze(0.3, 0.7),
            density=rng.uniform(0.0, 0.03),
        )
        return self.scene(light, Camera.drawn(rng, place, heading, reach))

    def street(self) -> Scene:
        rng, painter = self.rng, self.painter
        half = rng.uniform(5, 9)  # of the street, from facade to facade
        walk = rng.uniform(1.6, 2.6)
        ground = painter.any_of("asphalt", "asphalt", "tiles", "grass", "concrete")
        self.part("box", (FAR, FAR, 1.0), Path((0, 0, -1)), FLOOR, ground, tile=rng.uniform(2, 4))
        pavement = painter.any_of("tiles", "concrete", "bricks")
        for side in (-1, 1):
            path = Path((side * (half - walk / 2), 60, 0.06))
            self.part("box", (walk / 2, 80, 0.06), path, FLOOR, pavement, tile=rng.uniform(1.5, 3))
        facades = [painter.any_of("windows", "windows", "windows", "bricks", "plaster") for _ in range(5)]
        if self.photographs:
            facades.append(painter.add(painter.photograph()))
        for side in (-1, 1):
            y = -12.0
            while y < 70:
                long = rng.uniform(6, 16)
                if rng.random() < 0.85:
                    high, deep = rng.uniform(3.5, 14), rng.uniform(3, 6)
                    path = Path((side * (half + deep + rng.uniform(0, 1)), y + long / 2, high / 2))
                    face = facades[int(rng.integers(len(facades)))]
                    self.part("box", (deep, long / 2, high / 2), path, WALL, face, rng.uniform(4, 7))
                y += long + (rng.uniform(0.5, 4) if rng.random() < 0.4 else 0)
        if rng.random() < 0.4:
            path = Path((0, rng.uniform(50, 80), 4))
            self.part("box", (half + 8, 4, rng.uniform(4, 9)), path, WALL, facades[0], 6)
        reach = (rng.uniform(0.3, 0.9), rng.uniform(0.5, 2.0))
        place = (rng.uniform(-0.6, 0.6) * half, 0.0, rng.uniform(1.3, 2.2))
        self.taken.append((place[0], place[1], max(reach) + 0.6))
        heading = rng.uniform(-0.3, 0.3) + 0.3 * place[0] / half
        road = (-half + walk, half - walk, 2.0, 26.0)
        for _ in range(rng.integers(1, 3)):
            self.vehicle(road, scale=rng.uniform(0.85, 1.1), moves=True)
        for side in (-1, 1):
            kerb = (side * (half - walk - 1.0) - 0.05, side * (half - walk - 1.0) + 0.05, 4.0, 40.0)
            for _ in range(rng.integers(0, 3)):
                self.vehicle(kerb, scale=rng.uniform(0.85, 1.1), moves=False)
        for _ in range(rng.integers(2, 6)):
            self.person((-half, half, 1.5, 10.0))
        for _ in range(rng.integers(2, 5)):
            self.ball((-half, half, 1.5, 9.0), rng.uniform(0.25, 0.8))
        for _ in range(rng.integers(2, 6)):
            side = rng.choice([-1, 1]) * (half - walk / 2)
            self.pillar((side - 0.6, side + 0.6, 2.0, 30.0), rng.uniform(0.1, 0.4), rng.uniform(2.5, 6))
        for _ in range(rng.integers(3, 8)):
            self.furniture((-half, half, 1.5, 12.0))
        angle, height = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.2)
        light = Light(
            place=(1e4 * math.cos(angle), 1e4 * math.sin(angle), 1e4 * height),
            ambient=rng.uniform(0.5, 0.7),
            direct=rng.uniform(0.3, 0.7),
            haze=self.haze(0.65, 0.95),
            density=rng.uniform(0.004, 0.02),
            sky=painter.add(painter.sky()),
        )
        return self.scene(light, Camera.drawn(rng, place, heading, reach))

    def hang(self, wide: float, long: float, high: float) -> None:
        """A poster, a window or a door on one of the side walls or the far one."""
        rng, painter = self.rng, self.painter
        what = rng.choice(["poster", "window", "door"])
        a, b = (0.45, 1.0) if what == "door" else rng.uniform(0.25, 0.7, 2).tolist()
        names = {"poster": ("marks", "marks", "dots", "checks"), "window": ("windows",), "door": ("planks", "paint")}
        texture = painter.any_of(*names[what])
        if self.photographs and what == "poster":
            texture = painter.add(painter.photograph())
        z = 1.0 if what == "door" else rng.uniform(0.9 + b, max(0.9 + b, high - b - 0.2))
        if z + b > high - 0.05:
            return
        side = int(rng.integers(3))
        half, place = (a, 0.015, b), (rng.uniform(a - wide / 2, wide / 2 - a), long, z)
        if side < 2:
            half, place = (0.015, a, b), (float(2 * side - 1) * wide / 2, rng.uniform(1 + a, long - a), z)
        tile = rng.uniform(0.5, 0.8) if what == "poster" else 2 * min(a, b)
        self.part("box", half, Path(place), WALL, texture, tile)

    def scene(self, light: Light, camera: Camera) -> Scene:
        return Scene(self.parts, Textures(self.painter.pictures), light, camera)

    def haze(self, low: float, high: float) -> tuple[float, float, float]:
        red, green, blue = colorsys.hsv_to_rgb(
            self.rng.uniform(0.5, 0.65), self.rng.uniform(0, 0.2), self.rng.uniform(low, high)
        )
        return red, green, blue

    def part(
        self,
        kind: str,
        half: tuple[float, float, float],
        path: Path,
        label: int | tuple[int, ...],
        texture: int | tuple[int, ...],
        tile: float = 1.0,
        *,
        at: tuple[float, float, float] = (0.0, 0.0, 0.0),
        lie: bool = False,
        swing: float = 0.0,
        stride: float = 24.0,
    ) -> None:
        """Add a part with one label and one texture, or one for each face."""
        labels = (label,) * FACES if isinstance(label, int) else label
        textures = (texture,) * FACES if isinstance(texture, int) else texture
        offset = (self.rng.random(), self.rng.random())
        self.parts.append(
            Part(
                kind, half, path, labels, textures, tile=tile, offset=offset, at=at, lie=lie, swing=swing, stride=stride
            )
        )

    def free(
        self, area: tuple[float, float, float, float], radius: float, wide: float | None = None
    ) -> tuple[float, float] | None:
        """Find and take a place in an area (left, right, near, far) for what needs this radius; None if it is full.

        What moves along y alone is less `wide` than it is long.
        """
        left, right, near, far = area
        wide = radius if wide is None else wide
        if right - left < 2 * wide:  # it sticks out on both sides
            left = right = (left + right) / 2
        else:
            left, right = left + wide, right - wide
        for _ in range(40):
            x, y = self.rng.uniform(left, right), self.rng.uniform(min(near + radius, far - radius), far - radius)
            if all(math.hypot(x - a, y - b) > radius + r for a, b, r in self.taken):
                self.taken.append((x, y, radius))
                return x, y
        return None

    def person(self, area: tuple[float, float, float, float]) -> None:
        rng, painter = self.rng, self.painter
        reach = (rng.uniform(0.4, 1.6), rng.uniform(0.3, 0.7))
        spot = self.free(area, max(reach) + 0.35)
        if spot is None:
            return
        size, stride = rng.uniform(0.8, 1.1), rng.uniform(22, 30)
        # 0.04 metres a frame is 1 metre a second.
        period = 2 * math.pi * max(reach) / rng.uniform(0.02, 0.05)
        path = Path((*spot, 0.0), rng.uniform(0, 2 * math.pi), reach, period, rng.uniform(0, 6), follows=True)
        shirt = painter.any_of("plaster", "stripes", "dots", "carpet", "checks")
        trousers, skin = painter.any_of("plaster", "carpet"), painter.add(painter.skin())

        def limb(kind: str, half: tuple[float, ...], at: tuple[float, ...], texture: int, swing: float = 0.0) -> None:
            a, b, c = (size * h for h in half)
            x, y, z = (size * p for p in at)
            self.part(
                kind,
                (a, b, c),
                path,
                PERSON,
                texture,
                0.5,
                at=(x, y, z),
                swing=swing,
                stride=stride,
            )

        sleeves = shirt if rng.random() < 0.5 else skin
        limb("ball", (0.15, 0.23, 0.38), (0, 0, 1.1), shirt)
        limb("ball", (0.1, 0.09, 0.13), (0, 0, 1.58), skin)
        for side in (-1, 1):
            limb("cylinder", (0.085, 0.085, 0.43), (0, side * 0.11, 0.86), trousers, side * 0.45)
            limb("cylinder", (0.05, 0.05, 0.29), (0, side * 0.25, 1.36), sleeves, -side * 0.4)

    def vehicle(self, area: tuple[float, float, float, float], scale: float, moves: bool) -> None:
        rng, painter = self.rng, self.painter
        long = 2.1 * scale
        reach = rng.uniform(0.5, 2.0) * long if moves else 0.0
        spot = self.free(area, reach + long, scale if scale > 0.5 else None)
        if spot is None:
            return
        heading = math.pi / 2 if not moves or scale > 0.5 else rng.uniform(0, 2 * math.pi)
        period = 2 * math.pi * max(reach, 1) / rng.uniform(0.03, 0.1)
        path = Path((*spot, 0.0), heading, (reach, 0.0), period, rng.uniform(0, 6))
        paint, pane, rubber = (painter.add(getattr(painter, name)()) for name in ("paint", "pane", "rubber"))

        def piece(
            kind: str, half: tuple[float, ...], at: tuple[float, ...], texture: int | tuple[int, ...], lie: bool = False
        ) -> None:
            a, b, c = (scale * h for h in half)
            x, y, z = (scale * p for p in at)
            self.part(kind, (a, b, c), path, VEHICLE, texture, 1.4 * scale, at=(x, y, z), lie=lie)

        piece("box", (2.1, 0.88, 0.36), (0, 0, 0.66), paint)
        piece("box", (1.1, 0.78, 0.3), (-0.25, 0, 1.3), (pane, pane, pane, pane, paint, paint))
        for x in (-1.3, 1.3):
            for y in (-0.8, 0.8):
                piece("cylinder", (0.34, 0.34, 0.12), (x, y, 0.34), rubber, lie=True)

    def ball(self, area: tuple[float, float, float, float], radius: float) -> None:
        rng = self.rng
        moves = rng.random() < 0.7
        reach = rng.uniform(0.3, 1.2) if moves else 0.0
        spot = self.free(area, radius + reach)
        if spot is None:
            return
        hop = rng.uniform(0.2, 0.8) if moves and rng.random() < 0.4 else 0.0
        texture = self.painter.any_of("segments", "segments", "dots", "stripes", "marble")
        path = Path(
            (*spot, radius),
            rng.uniform(0, 2 * math.pi),
            (reach, 0.0),
            2 * math.pi * max(reach, 0.1) / rng.uniform(0.02, 0.06),
            rng.uniform(0, 6),
            rolls=radius,
            hop=hop,
            bounce=rng.uniform(18, 30),
        )
        self.part("ball", (radius,) * 3, path, BALL, texture, 2 * math.pi * radius)

    def pillar(self, area: tuple[float, float, float, float], radius: float, high: float) -> None:
        spot = self.free(area, radius + 0.05)
        if spot is None:
            return
        texture = self.painter.any_of("marble", "concrete", "stripes", "plaster", "bricks")
        kind = "cylinder" if self.rng.random() < 0.75 else "box"
        half = (radius, radius, high / 2)
        self.part(kind, half, Path((*spot, high / 2)), PILLAR, texture, self.rng.uniform(0.7, 1.4))

    def furniture(self, area: tuple[float, float, float, float], indoors: bool = False) -> None:
        """A box, a stack of two, and indoors a shelf or a table."""
        rng, painter = self.rng, self.painter
        what = rng.choice(["box", "stack", "shelf", "table"] if indoors else ["box", "stack"])
        a, b = rng.uniform(0.2, 0.5, 2)
        c = rng.uniform(0.15, 0.5)
        if what == "shelf":
            a, b, c = rng.uniform(0.4, 0.9), rng.uniform(0.15, 0.25), rng.uniform(0.5, 1.1)
        if what == "table":
            a, b, c = rng.uniform(0.5, 0.9), rng.uniform(0.35, 0.5), rng.uniform(0.3, 0.42)
        spot = self.free(area, math.hypot(a, b) + 0.05)
        if spot is None:
            return
        heading = rng.choice([0, math.pi / 2]) if rng.random() < 0.5 else rng.uniform(0, math.pi)
        names = ("cardboard", "marks", "planks", "checks", "tiles", "stripes", "carpet")
        texture = painter.any_of("planks", "plaster", "marble") if what == "table" else painter.any_of(*names)
        if self.photographs and what == "box":
            texture = painter.add(painter.photograph())
        path = Path((*spot, 0.0), heading)

        def piece(half: tuple[float, float, float], at: tuple[float, float, float], texture: int) -> None:
            self.part("box", half, path, BOX, texture, rng.uniform(0.6, 1.2), at=at)

        if what != "table":
            piece((a, b, c), (0, 0, c), texture)
            if what == "stack":
                piece((0.7 * a, 0.7 * b, 0.6 * c), (0.1 * a, 0, 2.6 * c), painter.any_of(*names))
            return
        piece((a, b, 0.03), (0, 0, 2 * c), texture)
        for x in (-1, 1):
            for y in (-1, 1):
                piece((0.03, 0.03, c - 0.02), (x * (a - 0.05), y * (b - 0.05), c - 0.02), texture)
