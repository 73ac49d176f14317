"""What a scene is made of: rigid parts on their paths, textures, a light, and a camera in a hand."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES = ("floor", "wall", "overhead", "box", "pillar", "ball", "person", "vehicle")
FLOOR, WALL, OVERHEAD, BOX, PILLAR, BALL, PERSON, VEHICLE = range(len(CLASSES))

NEAR = 0.05  # metres along the optical axis; what is nearer is not seen
FACES = 6  # of a part: 2 * axis + 1 where the outward normal is positive; curved sides are face 0


class Wave(NamedTuple):
    """A sum of sines over time, in frames."""

    amplitudes: np.ndarray
    periods: np.ndarray
    phases: np.ndarray

    def __call__(self, tau: float) -> float:
        return float((self.amplitudes * np.sin(2 * math.pi * tau / self.periods + self.phases)).sum())

    @classmethod
    def drawn(cls, rng: np.random.Generator, amplitudes: Sequence[float], periods: Sequence[float]) -> Wave:
        return cls(np.array(amplitudes), np.array(periods), rng.uniform(0, 2 * math.pi, len(periods)))


@dataclass(frozen=True)
class Camera:
    """A person's hand: where it is, in metres, and where it looks, in radians, at a time in frames."""

    place: tuple[float, float, float]
    heading: float  # counted anticlockwise from the world's y
    waves: tuple[Wave, ...]  # x, y, z, heading, pitch, roll

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, place: tuple[float, float, float], heading: float, reach: tuple[float, float]
    ) -> Camera:
        """Draw a path that leaves its place by `reach` metres across and along at most."""
        slow = rng.uniform(100, 220, 5)
        step = rng.uniform(11, 14)  # frames
        tremor = [23.0, 11.0, 6.3]  # a hand's 1 to 4 Hz
        shake = rng.uniform(0.2, 1) * np.array([2.4e-3, 1e-3, 4e-4])
        bob = rng.uniform(0.003, 0.012)
        pan, tilt = rng.uniform(0.08, 0.35), rng.uniform(0.02, 0.08)
        waves = (
            Wave.drawn(rng, [0.95 * reach[0], bob], [slow[0], 2 * step]),
            Wave.drawn(rng, [0.95 * reach[1]], [slow[1]]),
            Wave.drawn(rng, [0.08, bob], [slow[2], step]),
            Wave.drawn(rng, [pan, *shake], [slow[3], *tremor]),
            Wave.drawn(rng, [tilt, *shake], [slow[4], *tremor]),
            Wave.drawn(rng, [rng.uniform(0, 0.05), *shake], [slow[0], *tremor]),
        )
        return cls(place, heading, waves)

    def __call__(self, tau: float) -> np.ndarray:
        """Return the 4 x 4 matrix from the camera (right, down, forwards) to the world."""
        x, y, z, heading, pitch, roll = (wave(tau) for wave in self.waves)
        forwards = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
        turn = rotation(2, self.heading + heading) @ rotation(0, pitch - 0.1) @ forwards @ rotation(2, roll)
        return _rigid(turn, np.array(self.place) + np.array([x, y, z]))


@dataclass(frozen=True)
class Path:
    """Where a body is at a time: at rest, to and fro on a line, or round an ellipse. Its x points forwards.

    Attributes:
        place: the middle of its way, in metres.
        heading: the way's direction, in radians anticlockwise from the world's x.
        reach: how far it goes along and across, in metres.
        period: of one round, in frames; `phase` is where it starts, in radians.
        follows: whether it turns to where it goes, which takes an ellipse.
        rolls: the radius of a ball that rolls along; 0 for what does not.
        hop: how high it jumps, `bounce` frames each time.
    """

    place: tuple[float, float, float]
    heading: float = 0.0
    reach: tuple[float, float] = (0.0, 0.0)
    period: float = 1.0
    phase: float = 0.0
    follows: bool = False
    rolls: float = 0.0
    hop: float = 0.0
    bounce: float = 24.0

    def __call__(self, tau: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the turn (3, 3) and the place (3,) in the world."""
        angle = 2 * math.pi * tau / self.period + self.phase
        along, across = self.reach[0] * math.sin(angle), self.reach[1] * math.cos(angle)
        turn = rotation(2, self.heading)
        up = self.hop * math.sin(math.pi * tau / self.bounce + self.phase) ** 2
        place = np.array(self.place) + turn @ [along, across, up]
        if self.follows:
            turn = turn @ rotation(2, math.atan2(-self.reach[1] * math.sin(angle), self.reach[0] * math.cos(angle)))
        if self.rolls:
            turn = turn @ rotation(1, along / self.rolls)
        return turn, place


@dataclass(frozen=True)
class Part:
    """A box, the inside of a box ("shell"), an ellipsoid ("ball") or an upright elliptic "cylinder".

    Attributes:
        half: half its size along x, y and z, in metres.
        path: of the body that it belongs to.
        labels, textures: of its `FACES`.
        tile: metres that the texture covers before it repeats; `offset` is where it starts, in repeats.
        at: where it sits in the body, or what it swings about; `lie` turns its axis to the body's y.
        swing: how far it swings forth and back, in radians, about its upper end, with `stride` frames a time.
    """

    kind: str
    half: tuple[float, float, float]
    path: Path
    labels: tuple[int, ...]
    textures: tuple[int, ...] = (0,) * FACES
    tile: float = 1.0
    offset: tuple[float, float] = (0.0, 0.0)
    at: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lie: bool = False
    swing: float = 0.0
    stride: float = 24.0

    def pose(self, tau: float) -> tuple[np.ndarray, np.ndarray]:
        """Return the turn (3, 3) and the place (3,) of its own frame in the world."""
        turn, place = self.path(tau)
        own = rotation(0, -math.pi / 2) if self.lie else np.eye(3)
        middle = np.array(self.at)
        if self.swing:
            own = rotation(1, self.swing * math.sin(2 * math.pi * tau / self.stride))
            middle = middle - own @ [0, 0, self.half[2]]
        return turn @ own, turn @ middle + place


class View(NamedTuple):
    """The parts at one time from one camera: p_part = turn @ p_camera + shift. All float64.

    Attributes:
        pose: (4, 4) of the camera in the world.
        turn, shift: (N, 3, 3) and (N, 3).
        lamp, up: the lamp and the world's up in each part's frame, (N, 3).
        shadows: (M, 3), the middles and radii of what stands on the floor.
    """

    pose: np.ndarray
    turn: np.ndarray
    shift: np.ndarray
    lamp: np.ndarray
    up: np.ndarray
    shadows: np.ndarray


@dataclass(frozen=True)
class Light:
    """A lamp at a place, the light from everywhere, the haze, and the sky.

    Attributes:
        place: of the lamp, or a faraway one of the sun.
        fades: metres at which the lamp is half as bright; infinite for the sun.
        ambient, direct: how bright the light from everywhere and the lamp are; 1 shows textures as they are.
        haze: RGB of what lies between; `density` is how much of it, per metre.
        sky: the texture of the clouds.
    """

    place: tuple[float, float, float]
    fades: float = math.inf
    ambient: float = 0.5
    direct: float = 0.6
    haze: tuple[float, float, float] = (0.7, 0.75, 0.8)
    density: float = 0.0
    sky: int = 0


@dataclass
class Scene:
    """All parts of a scene, its textures, its light and its camera's path: a time in frames -> its pose (4, 4).

    The world is in metres; its z points up. A surface is one face of one part, numbered `FACES` * part + face; the
    numbers behind the last part's are the sky.
    """

    parts: list[Part]
    textures: Textures
    light: Light
    camera: Callable[[float], np.ndarray]
    labels: Tensor = field(init=False)  # of each surface

    def __post_init__(self) -> None:
        self.labels = torch.tensor([*(n for part in self.parts for n in part.labels), *[OVERHEAD] * FACES])
        self.half = np.array([part.half for part in self.parts])
        looks = [[*part.half, part.tile, *part.offset, _repeats(part), part.kind == "shell"] for part in self.parts]
        self.looks = torch.tensor(looks, dtype=torch.float32)  # half, tile, offset, repeats, is a shell
        self.curved = torch.tensor([part.kind in ("ball", "cylinder") for part in self.parts])
        self.round = torch.tensor([part.kind == "ball" for part in self.parts])
        self.texture_of = torch.tensor([n for part in self.parts for n in part.textures])
        bodies: dict[Path, Part] = {}
        for part in self.parts:
            if part.kind != "shell" and max(part.half[:2]) < 3:
                bodies.setdefault(part.path, part)
        self.standing = [(path, math.sqrt(part.half[0] * part.half[1])) for path, part in bodies.items()]

    def view(self, pose: np.ndarray, tau: float) -> View:
        """Return where everything is at the time `tau`, in frames, seen from a camera with this pose (4, 4)."""
        both = [part.pose(tau) for part in self.parts]
        turns, places = np.stack([turn for turn, _ in both]), np.stack([place for _, place in both])
        back = np.swapaxes(turns, 1, 2)
        shift = (back @ (pose[:3, 3] - places)[..., None])[..., 0]
        lamp = (back @ (np.array(self.light.place) - places)[..., None])[..., 0]
        shadows = [[*path(tau)[1][:2], radius] for path, radius in self.standing]
        return View(pose, back @ pose[:3, :3], shift, lamp, turns[:, 2], np.array(shadows).reshape(-1, 3))


def rotation(axis: int, angle: float) -> np.ndarray:
    """Return the 3 x 3 rotation about an axis, in radians.

    >>> rotation(2, math.pi / 2).round(6).tolist()
    [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    turn = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    turn[i, i] = turn[j, j] = math.cos(angle)
    turn[j, i] = math.sin(angle)
    turn[i, j] = -turn[j, i]
    return turn


def _rigid(turn: np.ndarray, place: np.ndarray) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = turn, place
    return pose


def _repeats(part: Part) -> float:
    """How often the texture goes around a curved part: whole times, else it had a seam."""
    return max(1.0, round(2 * math.pi * max(part.half[:2]) / part.tile))


class Textures:
    """Square pictures (3, S, S) that repeat, S a power of 2, with all of their halvings.

    >>> half_white = torch.tensor([0.0, 1.0]).expand(3, 2, 2)
    >>> one, place = torch.tensor([0, 0]), torch.tensor([0.25, 0.25])
    >>> Textures([half_white]).at(one, place, place, torch.tensor([0.5, 1.0]))[:, 0]  # the second pixel covers it all
    tensor([0.0000, 0.5000])
    """

    def __init__(self, pictures: Sequence[Tensor]) -> None:
        level = torch.stack(list(pictures))
        self.size = level.shape[-1]
        self.starts, tables, count = [], [], 0
        while True:
            self.starts.append(count)
            tables.append(level.permute(0, 2, 3, 1).reshape(-1, 3))
            count += len(tables[-1])
            if level.shape[-1] == 1:
                break
            level = F.avg_pool2d(level, 2)
        self.table = torch.cat(tables)

    def at(self, which: Tensor, u: Tensor, v: Tensor, covers: Tensor) -> Tensor:
        """Return colours (n, 3) at u, v, counted in repeats, blurred to pixels that cover this many of them."""
        deepest = len(self.starts) - 1
        level = torch.log2((covers * self.size).clamp_min(1e-6)).clamp_(0, deepest)
        finer = level.floor().clamp_max_(max(deepest - 1, 0))
        part = level - finer
        u, v = u - u.floor(), v - v.floor()
        starts, finer = torch.tensor(self.starts), finer.long()
        indices, weights = [], []
        for step, share in ((0, 1 - part), (1, part)) if deepest else ((0, 1 - part),):
            size = self.size >> (finer + step)
            x, y = u * size - 0.5, v * size - 0.5
            left, top = x.floor(), y.floor()
            x, y = x - left, y - top
            left, top = left.long(), top.long()
            first = starts[finer + step] + which * size * size
            # The size is a power of 2, so this mask wraps around, and also what is below 0.
            rows = [first + ((top + i) & (size - 1)) * size for i in (0, 1)]
            columns = [(left + i) & (size - 1) for i in (0, 1)]
            for row, down in zip(rows, (1 - y, y), strict=True):
                for column, right in zip(columns, (1 - x, x), strict=True):
                    indices.append(row + column)
                    weights.append(share * down * right)
        return F.embedding_bag(
            torch.stack(indices, 1), self.table, per_sample_weights=torch.stack(weights, 1), mode="sum"
        )
