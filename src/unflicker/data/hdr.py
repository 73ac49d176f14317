"""High dynamic range out of nothing: procedural pictures and videos whose luminance is known beyond the clip level."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from unflicker.checks import InputError
from unflicker.data.base import Recording, Video

TRAINING_SEEDS = range(10_000)
TEST_SEEDS = range(10_000, 20_000)
FRAME_RATE = 30.0
SATURATED = (0.02, 0.20)  # fraction of the pixels that reach the clip level
BRIGHTEST = 100.0  # of the clip level; what would be brighter is as bright
UNIT = 128  # lengths are in pixels of a frame of this size, and grow with the frame
TAIL = 7  # edges beyond which what is covered, e^-14, cannot be seen
KINDS = ("ellipse", "rectangle", "ring", "glow")
PROFILES = ("flat", "falloff", "gradient", "stripes")

Plane = np.ndarray  # (size, size) float32


def hdr_image(seed: int, size: int = 128) -> tuple[Tensor, Tensor]:
    """Return what a camera gives, and the luminance it saw: x and y, both (1, size, size) float32.

    A softly lit ground, 3 to 10 features of which some are far brighter, and up to 3 dark beams before them, exposed
    so that 2 to 20 % of the pixels reach the clip level. y is linear, 1 at the clip level, up to 100. x is display-
    referred, in [0, 1] and of 8 bits: the square root of y, clipped, so that x squared is y wherever nothing clipped.

    After section 4 of Single-frame Regularization, which trains on 10,000 such frames without motion
    (`TRAINING_SEEDS`) but tells little of them: features, ranges and camera are ours.

    Args:
        seed: 0 or more. It gives the same scene at every size.
        size: of the sides, in pixels, 16 or more.

    Raises:
        InputError: the seed or the size is out of range.

    >>> x, y = hdr_image(0, size=64)
    >>> x.shape, bool(x.max() == 1), bool(y.max() > 1)
    (torch.Size([1, 64, 64]), True, True)
    """
    _check(seed, size)
    luminance = _luminance(seed, size, 0)
    return torch.from_numpy(_exposed(luminance)).float().div_(255)[None], torch.from_numpy(luminance.copy())[None]


class HDRImages(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (x, y) for training, as `hdr_image` makes them: `dataset[i]` is that of the seed `first_seed + i`.

    Args:
        count: how many.
        size: of the sides, in pixels.
        first_seed: of the first; all must be `TRAINING_SEEDS`, which no test sequence has.

    Raises:
        InputError: a number is out of range, or a seed belongs to the test sequences.

    >>> x, y = HDRImages(3, size=32)[2]
    >>> torch.equal(x, hdr_image(2, 32)[0])
    True
    """

    def __init__(self, count: int = len(TRAINING_SEEDS), *, size: int = 128, first_seed: int = 0) -> None:
        if count < 1:
            raise InputError(f"count must be 1 or more, got {count}.")
        _check(first_seed, size)
        if first_seed + count > TRAINING_SEEDS.stop:
            raise InputError(
                f"The seeds {first_seed} to {first_seed + count - 1} reach into those of the test sequences, which "
                f"begin at {TEST_SEEDS.start}; take fewer pictures, or begin lower."
            )
        self.count, self.size, self.first_seed = count, size, first_seed

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -self.count <= index < self.count:
            raise IndexError(f"There are {self.count} pictures, counted from 0; got {index}.")
        return hdr_image(self.first_seed + index % self.count, self.size)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all of them, x and y, each (count, 1, size, size), to train from memory: 128 KiB a pair at 128."""
        inputs, targets = (torch.empty(self.count, 1, self.size, self.size) for _ in range(2))
        for i in range(self.count):
            inputs[i], targets[i] = self[i]
        return inputs, targets


class HDRVideo(Video):
    """A scene of `hdr_image` in motion, as a camera with a fixed exposure sees it: (1, size, size) uint8.

    Features drift, sway, turn and bounce off the borders; beams travel across and occlude them; the ground rests. All
    of it is a formula of the frame's number, so that any frame can be asked for, and neither `num_frames` nor what
    was read before plays a part. The exposure is that of frame 0, which is `hdr_image(seed, size)`.

    Args:
        seed: 0 or more; `TEST_SEEDS` for testing.
        num_frames: how many.
        size: of the sides, in pixels, 16 or more; speeds grow with it.
        name: see `Video`; "hdr" and the seed if not given.

    Attributes:
        truth: the linear luminance, a `Video` of (1, size, size) float32, 1 at the clip level.

    Raises:
        InputError: a number is out of range.

    >>> video = HDRVideo(10_000, num_frames=8, size=32)
    >>> video.read([0, 7]).dtype, video.truth.read([0, 7]).shape
    (torch.uint8, torch.Size([2, 1, 32, 32]))
    """

    def __init__(self, seed: int, num_frames: int = 200, size: int = 128, *, name: str = "") -> None:
        _check(seed, size)
        if num_frames < 1:
            raise InputError(f"num_frames must be 1 or more, got {num_frames}.")
        self.seed, self.num_frames, self.frame_rate = seed, num_frames, FRAME_RATE
        self.height = self.width = size
        self.name = name or f"hdr{seed}"
        self.truth: Video = _Truth(self)

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return the frames with these numbers: (len(numbers), 1, size, size) uint8."""
        frames = [_exposed(_luminance(self.seed, self.width, n)) for n in self._checked(numbers)]
        return torch.from_numpy(np.stack(frames))[:, None]


class _Truth(Video):
    """The luminance in an `HDRVideo`."""

    def __init__(self, video: HDRVideo) -> None:
        self.name, self.num_frames, self.frame_rate = video.name, video.num_frames, video.frame_rate
        self.height, self.width, self.seed = video.height, video.width, video.seed

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return the luminance in these frames: (len(numbers), 1, size, size) float32, 1 at the clip level."""
        frames = [_luminance(self.seed, self.width, n) for n in self._checked(numbers)]
        return torch.from_numpy(np.stack(frames))[:, None]


def hdr_sequences(count: int = 50, *, num_frames: int = 200, size: int = 128) -> list[Recording]:
    """Return the sequences of the test, each with the target "truth": those of the first `count` of `TEST_SEEDS`.

    Section 4 of Single-frame Regularization tests on 50 of 200 frames at 128 x 128; the frame rate, which it does not
    tell, is 30 here.

    Raises:
        InputError: a number is out of range.

    >>> found = hdr_sequences(2, num_frames=4, size=32)
    >>> [recording.name for recording in found], list(found[0].targets)
    (['hdr10000', 'hdr10001'], ['truth'])
    """
    if not 1 <= count <= len(TEST_SEEDS):
        raise InputError(f"count must be 1 to {len(TEST_SEEDS)}, got {count}.")
    videos = [HDRVideo(seed, num_frames, size) for seed in TEST_SEEDS[:count]]
    return [Recording(video, {"truth": video.truth}) for video in videos]


def _check(seed: int, size: int) -> None:
    if seed < 0:
        raise InputError(f"seed must be an integer, 0 or more, got {seed}.")
    if size < 16:
        raise InputError(f"size must be 16 pixels or more, got {size}.")


def _exposed(luminance: Plane) -> np.ndarray:
    """The bytes of a camera whose values squared are linear, as in HDRCNN."""
    return np.rint(255 * np.sqrt(np.minimum(luminance, 1))).astype(np.uint8)


@functools.lru_cache(maxsize=64)  # frames and truth are asked for one after the other
def _luminance(seed: int, size: int, n: int) -> Plane:
    """The linear luminance of frame n, 1 at the clip level; not to be written to."""
    taken = _taken(seed)
    frame = taken.first if (n, size) == (0, UNIT) else _scene(seed, size).seen(n)
    frame = np.minimum(frame * np.float32(taken.gain), np.float32(BRIGHTEST))
    frame.setflags(write=False)
    return frame


@functools.lru_cache(maxsize=8)
def _scene(seed: int, size: int) -> _Scene:
    taken = _taken(seed)
    return taken.scene if size == UNIT else _Scene.drawn(np.random.default_rng((seed, taken.attempt)), size)


class _Taken(NamedTuple):
    """Which of the scenes that a seed can draw is taken, itself and its frame 0 at the size `UNIT`, and its gain."""

    attempt: int
    scene: _Scene
    first: Plane
    gain: float


@functools.lru_cache(maxsize=8)
def _taken(seed: int) -> _Taken:
    """The first scene of which a fraction within `SATURATED` clips, and nothing of the ground or the beams.

    Where bright features are too small for the fraction that is wanted, the gain would grow until everything glares.
    All of it is judged at one size, so that all sizes agree.
    """
    fraction = np.random.default_rng(seed).uniform(*SATURATED)
    for attempt in itertools.count():
        scene = _Scene.drawn(np.random.default_rng((seed, attempt)), UNIT)
        first = scene.seen(0)
        gain = 1 / _clip_level(first, fraction)
        reached = np.count_nonzero(first * np.float32(gain) >= 1) / first.size
        if SATURATED[0] <= reached <= SATURATED[1] and gain * scene.dark() < 1:
            return _Taken(attempt, scene, first, gain)
    raise AssertionError


def _clip_level(luminance: Plane, fraction: float) -> float:
    """The luminance that as nearly as can be this fraction of the pixels reaches.

    Pixels of an even surface reach it together or not at all, whichever comes nearer.
    """
    values = np.sort(luminance, axis=None)[::-1]
    wanted = int(fraction * len(values))
    level = float(values[wanted])
    brighter = np.count_nonzero(values > 1.01 * level)
    as_bright = np.count_nonzero(values > 0.99 * level)
    if brighter > 0 and wanted - brighter < as_bright - wanted:
        return float(values[brighter - 1]) * 0.9999  # beyond rounding
    return float(values[as_bright - 1]) * 0.9999


@dataclass(frozen=True)
class _Scene:
    """A ground (size, size), and what is before it, from back to front."""

    ground: Plane
    features: tuple[_Feature, ...]
    beams: tuple[_Beam, ...]

    def dark(self) -> float:
        """The highest luminance of what is no feature."""
        return max(float(self.ground.max()), *(beam.luminance for beam in self.beams), 0.0)

    def seen(self, n: int) -> Plane:
        frame = self.ground.copy()
        size = len(frame)
        for feature in self.features:
            feature.paint(frame, n, size)
        for beam in self.beams:
            beam.paint(frame, n, size)
        return frame

    @classmethod
    def drawn(cls, rng: np.random.Generator, size: int) -> _Scene:
        ground = _ground(rng, size)
        features = tuple(_Feature.drawn(rng) for _ in range(rng.integers(3, 11)))
        return cls(ground, features, tuple(_Beam.drawn(rng) for _ in range(rng.integers(0, 4))))


@dataclass(frozen=True)
class _Feature:
    """Something that moves before the ground. Lengths are in pixels of a frame of 128, but for edge and period.

    Attributes:
        kind: "ellipse", "rectangle", "ring", or "glow", which adds to what is behind.
        profile: "flat", "falloff", "gradient" or "stripes": how the luminance changes across it, by `depth`.
        luminance: at the brightest.
        semi: half its width and height; of a glow, twice the standard deviations.
        edge: pixels within which it mostly fades, to each side of its outline.
        period: pixels from stripe to stripe.
        drift, amplitude, rate, phase: of the motion along x and y, in pixels a frame, pixels, radians a frame, radians.
        turn, spin: of the angle, in radians, and radians a frame.
    """

    kind: str
    profile: str
    luminance: float
    depth: float
    semi: tuple[float, float]
    band: float  # of a ring, half the width of what is left, as a share of the whole
    edge: float
    period: float
    place: np.ndarray
    drift: np.ndarray
    amplitude: np.ndarray
    rate: np.ndarray
    phase: np.ndarray
    turn: float
    spin: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Feature:
        radius, aspect = rng.uniform(4, 24), rng.uniform(0.5, 2)
        return cls(
            kind=KINDS[rng.integers(len(KINDS))],
            profile=PROFILES[rng.integers(len(PROFILES))],
            luminance=_log_uniform(rng, 0.1, 30),
            depth=rng.uniform(0.3, 0.9),
            semi=(radius * math.sqrt(aspect), radius / math.sqrt(aspect)),
            band=rng.uniform(0.1, 0.3),
            edge=rng.uniform(0.7, 2.5),
            period=rng.uniform(4, 16),
            place=rng.uniform(0, UNIT, 2),
            drift=rng.normal(0, 0.35, 2),
            amplitude=rng.uniform(0, 12, 2),
            rate=2 * math.pi / FRAME_RATE * rng.uniform(0.1, 0.8, 2),
            phase=rng.uniform(0, 2 * math.pi, 2),
            turn=rng.uniform(0, 2 * math.pi),
            spin=math.radians(rng.normal(0, 0.6)),
        )

    def paint(self, frame: Plane, n: int, size: int) -> None:
        scale = size / UNIT
        at = self.place + self.drift * n + self.amplitude * np.sin(self.rate * n + self.phase)
        at = UNIT - np.abs(at % (2 * UNIT) - UNIT)  # thrown back at the borders
        at, angle = scale * at, self.turn + self.spin * n
        a, b = scale * self.semi[0], scale * self.semi[1]
        if self.kind == "glow":
            u, v = _turned(range(size), range(size), angle, at)
            frame += np.float32(self.luminance) * np.exp(-2 * (np.square(u / a) + np.square(v / b)))
            return
        reach = math.hypot(a, b) + TAIL * self.edge
        columns, rows = (range(size)[max(0, int(p - reach)) : max(0, math.ceil(p + reach))] for p in at)
        frame = frame[rows.start : rows.stop, columns.start : columns.stop]
        u, v = _turned(columns, rows, angle, at)
        cover = _SHAPES[self.kind](u, v, a, b, self.band, self.edge)
        frame += cover * (np.float32(self.luminance) * self._shading(u, v, a, b) - frame)

    def _shading(self, u: Plane, v: Plane, a: float, b: float) -> Plane | np.float32:
        """The luminance across it as a share of the brightest, (size, size) or a number."""
        if self.profile == "falloff":
            return 1 / (1 + (8 * self.depth) * (np.square(u / a) + np.square(v / b)))
        if self.profile == "gradient":
            return np.clip(1 - self.depth * (0.5 - (0.5 / a) * u), 0.05, 1)
        if self.profile == "stripes":
            return 1 - self.depth * (0.5 - 0.5 * np.cos((2 * math.pi / self.period) * u + self.phase[0]))
        return np.float32(1)


@dataclass(frozen=True)
class _Beam:
    """A straight bar across the whole frame that travels along its normal, and enters anew when it has left."""

    half_width: float
    luminance: float
    angle: float
    place: float  # share of its way
    speed: float  # pixels a frame, in a frame of 128
    edge: float

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> _Beam:
        return cls(
            half_width=rng.uniform(3, 10),
            luminance=_log_uniform(rng, 0.005, 0.3),
            angle=rng.uniform(0, 2 * math.pi),
            place=rng.uniform(),
            speed=rng.normal(0, 0.7),
            edge=rng.uniform(0.7, 1.5),
        )

    def paint(self, frame: Plane, n: int, size: int) -> None:
        scale = size / UNIT
        half = scale * self.half_width
        # From where the last of it has left on one side to where the first of it enters on the other.
        reach = size / 2 * (abs(math.cos(self.angle)) + abs(math.sin(self.angle))) + half + TAIL * self.edge
        at = (2 * reach * self.place + scale * self.speed * n) % (2 * reach) - reach
        u, _ = _turned(range(size), range(size), self.angle, np.full(2, size / 2))
        frame += _inside(np.abs(u - np.float32(at)) - np.float32(half), self.edge) * (
            np.float32(self.luminance) - frame
        )


def _ground(rng: np.random.Generator, size: int) -> Plane:
    """A level with a linear gradient and a few broad waves, all of it above 0."""
    level = _log_uniform(rng, 0.02, 0.25)
    whole, middle = range(size), np.full(2, size / 2)
    across, _ = _turned(whole, whole, rng.uniform(0, 2 * math.pi), middle)
    ground = 1 + (rng.uniform(0, 0.6) / size) * across
    for _ in range(rng.integers(1, 4)):
        across, _ = _turned(whole, whole, rng.uniform(0, 2 * math.pi), middle)
        wavelength = rng.uniform(24, 128) * size / UNIT
        ground = ground + rng.uniform(0.03, 0.15) * np.cos(
            (2 * math.pi / wavelength) * across + rng.uniform(0, 2 * math.pi)
        )
    return (level * ground).astype(np.float32)


def _turned(columns: range, rows: range, angle: float, at: np.ndarray) -> tuple[Plane, Plane]:
    """The places of pixels, counted from x, y = `at` along axes that are turned by an angle: (rows, columns) each."""
    cos, sin = math.cos(angle), math.sin(angle)
    x = np.arange(columns.start, columns.stop) + (0.5 - at[0])
    y = np.arange(rows.start, rows.stop)[:, None] + (0.5 - at[1])
    # Products of rows and of columns, so that the frame is gone over once.
    u = (cos * x).astype(np.float32) + (sin * y).astype(np.float32)
    return u, (cos * y).astype(np.float32) - (sin * x).astype(np.float32)


def _inside(distance: Plane, edge: float) -> Plane:
    """How much of a pixel is covered, from its signed distance to the outline: the logistic step, within about `edge`.

    Its tails are exponential: between a lamp and the dark the logarithm, too, changes by steps that are bounded, where
    an edge that ends somewhere would jump by whole pixels as it moves.
    """
    return 1 / (1 + np.exp(np.clip(distance * np.float32(2 / edge), -40, 40)))


def _outline(u: Plane, v: Plane, a: float, b: float) -> Plane:
    """The distance to an ellipse in pixels, negative inside; exact to first order at the outline."""
    p, q = u / a, v / b
    r = np.sqrt(p * p + q * q)
    slope = np.sqrt(np.square(p / a) + np.square(q / b))
    return (r - 1) * r / np.maximum(slope, np.float32(1e-6))


def _ellipse(u: Plane, v: Plane, a: float, b: float, band: float, edge: float) -> Plane:
    return _inside(_outline(u, v, a, b), edge)


def _rectangle(u: Plane, v: Plane, a: float, b: float, band: float, edge: float) -> Plane:
    return _inside(np.abs(u) - np.float32(a), edge) * _inside(np.abs(v) - np.float32(b), edge)


def _ring(u: Plane, v: Plane, a: float, b: float, band: float, edge: float) -> Plane:
    half = max(band * min(a, b), edge)  # as wide as its edges at least, or it would be a faint line
    return _inside(np.abs(_outline(u, v, max(a - half, 1), max(b - half, 1))) - np.float32(half), edge)


_SHAPES: dict[str, Callable[[Plane, Plane, float, float, float, float], Plane]] = {
    "ellipse": _ellipse,
    "rectangle": _rectangle,
    "ring": _ring,
}


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))
