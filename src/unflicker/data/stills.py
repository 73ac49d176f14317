"""Clips with exactly known motion out of single pictures: a moving camera, and shapes that move before it."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.data.base import Recording, Video
from unflicker.video import open_reader

PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}
# Texels per pixel. With so many, bilinear sampling is sharp to 2 % and right to 0.005 texels wherever it falls, up to
# Nyquist; torch's bicubic shifts by up to 0.05 of its pixels even where the picture is smooth (its a is -0.75).
FINE = 4.0
BLUR = 0.5  # standard deviation of a pixel's aperture, in pixels: 0.3 is left at Nyquist, 0.007 at twice that
FARTHEST, NEAREST = 1.2, 2.0  # how much farther than the ground a shape in front is shifted by the same camera
ALONE = 1 / 512  # less cover than this is none, and as much short of 1 is full


class StillVideo(Video):
    """A camera that pans, zooms, rolls and shakes over a picture, with soft-edged shapes that pass before it.

    Every frame is made when it is asked for, and is a pure function of the picture, the settings, the seed and its
    number: neither `num_frames` nor what was read before plays a part. The picture is low-pass filtered once, for the
    widest view the camera takes, so that nothing aliases; each frame samples that same surface, so that its motion
    is known exactly. The shapes are cut out of `foregrounds`; they stand nearer than the picture, are shifted more by
    the camera (parallax), and move by themselves. Where the picture ends it is mirrored.

    `flow` is the motion from each frame to the next, for every pixel, occluded or not: (2, H, W) float32 pixels along
    x and y. The last frame's leads to the frame that would follow. On the rim of a shape it is that of the one that
    covers more. `matches` says where the next frame shows the same point.

    Args:
        image: (3, H, W) RGB, uint8 or float32 in [0, 1], or the file of a picture, which is read with the first frame.
        num_frames: how many.
        height, width: of a frame, in pixels; the picture must be at least as large.
        seed: of everything that is drawn at random.
        motion: the fastest that a point of the picture moves, in pixels per frame; a shape in front moves up to three
            and a half times as fast. 0 stands still.
        layers: how many shapes.
        foregrounds: pictures, as `image`, to cut the shapes from; `image` itself if there are none.
        dtype: torch.float32, in [0, 1], or torch.uint8.
        name: see `Video`.
        frame_rate: see `Video`; it changes nothing in the frames.

    Attributes:
        flow: the motion, a `Video`.
        scale: pixels of the picture per pixel of a frame.

    Raises:
        InputError: a setting is out of range; a picture cannot be read, is no picture, or is smaller than a frame.

    >>> ramp = torch.linspace(0, 1, 96).expand(3, 64, 96)
    >>> video = StillVideo(ramp, num_frames=8, height=24, width=32, seed=0, motion=1.5)
    >>> video.read([0, 7]).shape, video.flow.read([0]).shape
    (torch.Size([2, 3, 24, 32]), torch.Size([1, 2, 24, 32]))
    """

    def __init__(
        self,
        image: Tensor | str | Path,
        *,
        num_frames: int,
        height: int,
        width: int,
        seed: int,
        motion: float = 2.0,
        layers: int = 1,
        foregrounds: Sequence[Tensor | str | Path] = (),
        dtype: torch.dtype = torch.float32,
        name: str = "still",
        frame_rate: float = 24.0,
    ) -> None:
        if min(num_frames, height, width) < 1:
            raise InputError(
                f"A video needs num_frames, height and width of 1 or more, got {num_frames}, {height}, {width}."
            )
        if not (motion >= 0 and math.isfinite(motion)):
            raise InputError(f"motion must be 0 or more pixels per frame, got {motion}.")
        if layers < 0:
            raise InputError(f"layers must be 0 or more, got {layers}.")
        if dtype not in (torch.float32, torch.uint8):
            raise InputError(f"dtype must be torch.float32 or torch.uint8, got {dtype}.")
        self.name, self.num_frames, self.frame_rate = name, num_frames, frame_rate
        self.height, self.width, self.dtype, self.motion, self.seed = height, width, dtype, motion, seed
        self._pictures = [image, *list(foregrounds)[:layers]]
        for picture in self._pictures:
            if isinstance(picture, Tensor):
                _check_picture(picture)
        if isinstance(image, Tensor):
            _check_size((image.shape[-1], image.shape[-2]), "The picture", height, width)
        self.paths = tuple(Path(p) for p in self._pictures if not isinstance(p, Tensor))
        self._layers = layers
        if len(self.paths) == len(self._pictures):  # a picture in memory has no name to know it again by
            self.settings = (seed, motion, layers, str(dtype))
        rng = np.random.default_rng(seed)
        self._camera = _Camera.drawn(rng, motion, math.hypot(height, width) / 2)
        self._textures_seed = int(rng.integers(2**63))
        self.flow: Video = _Flow(self)

    @property
    def scale(self) -> float:
        return _surfaces(self)[0].scale

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return the frames with these numbers: (len(numbers), 3, H, W), float32 in [0, 1] or uint8."""
        frames = torch.stack([self._frame(t) for t in self._checked(numbers)])
        return frames.mul_(255).round_().byte() if self.dtype == torch.uint8 else frames

    def matches(self, numbers: Sequence[int]) -> Tensor:
        """Return where the next frame shows the same point as this one: (len(numbers), 1, H, W) bool.

        False where the point leaves the frame or is covered by the next, and on the rim of a shape at either time.
        """
        return torch.stack([self._match(t) for t in self._checked(numbers)])

    def _frame(self, t: int) -> Tensor:
        ground, *shapes = _surfaces(self)
        frame = ground.seen(self._grid(ground, t))[0]
        for shape in shapes:
            colours, cover = shape.seen(self._grid(shape, t)).split([3, 1], 1)
            frame = torch.addcmul(colours[0], frame, 1 - cover[0])
        return frame.clamp_(0, 1)

    def _grid(self, surface: _Surface, t: int) -> Tensor:
        view = surface.view(self._camera, t) @ np.diag([self.width / 2, self.height / 2, 1])
        theta = torch.from_numpy((surface.to_grid @ view)[:2]).float()
        return F.affine_grid(theta[None], [1, 1, self.height, self.width], align_corners=False)

    def _top(self, t: int) -> tuple[Tensor, list[Tensor]]:
        """Return which surface is seen at each pixel, (H, W), and how much each shape covers, each (H, W)."""
        covers = [shape.cover(self._grid(shape, t)) for shape in _surfaces(self)[1:]]
        top = torch.zeros(self.height, self.width, dtype=torch.long)
        for i, cover in enumerate(covers, 1):
            top[cover >= 0.5] = i
        return top, covers

    def _motion(self, t: int) -> Tensor:
        top, _ = self._top(t)
        x = torch.arange(self.width, dtype=torch.float64) + 0.5 - self.width / 2
        y = (torch.arange(self.height, dtype=torch.float64) + 0.5 - self.height / 2)[:, None]
        flow = torch.zeros(2, self.height, self.width)
        for i, surface in enumerate(_surfaces(self)):
            there = np.linalg.solve(surface.view(self._camera, t + 1), surface.view(self._camera, t))
            (a, b, c), (d, e, f) = (there - np.eye(3))[:2].tolist()
            moved = torch.stack([a * x + b * y + c, d * x + e * y + f]).float()
            flow = torch.where(top == i, moved, flow)
        return flow

    def _match(self, t: int) -> Tensor:
        top, covers = self._top(t)
        mixed = torch.zeros_like(top, dtype=torch.bool)
        for i, cover in enumerate(covers, 1):
            mixed |= (cover > ALONE) & (cover < 1 - ALONE) & (top <= i)
        flow = self._motion(t)
        x = (torch.arange(self.width) + 0.5 - self.width / 2 + flow[0]) * (2 / self.width)
        y = ((torch.arange(self.height) + 0.5 - self.height / 2)[:, None] + flow[1]) * (2 / self.height)
        # To interpolate there takes the pixels around, so what lies within half a pixel of the border has left.
        left = (x.abs() > 1 - 1 / self.width) | (y.abs() > 1 - 1 / self.height)
        _, after = self._top(t + 1)
        covered = torch.zeros_like(mixed)
        for i, cover in enumerate(after, 1):
            # The next frame is sampled over two pixels on each side: its rims are widened by as much.
            some = F.max_pool2d(((cover > ALONE) & (cover < 1 - ALONE)).float()[None], 5, 1, 2)
            full = (cover >= 0.5).float()[None]
            at = torch.stack([x, y], -1)[None]
            rim, body = F.grid_sample(torch.cat([some, full])[None], at, "nearest", "border", False)[0]
            covered |= (top < i) & ((rim > 0) | (body > 0)) | (top == i) & (rim > 0)
        return ~(mixed | left | covered)[None]


class _Flow(Video):
    """The motion in a `StillVideo`."""

    def __init__(self, video: StillVideo) -> None:
        self.name, self.num_frames, self.frame_rate = video.name, video.num_frames, video.frame_rate
        self.height, self.width, self._video = video.height, video.width, video

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return the motion from these frames to the next: (len(numbers), 2, H, W) float32, pixels along x and y."""
        return torch.stack([self._video._motion(t) for t in self._checked(numbers)])


def stills(
    images: str | Path | Sequence[Tensor | str | Path],
    *,
    num_frames: int = 32,
    height: int = 128,
    width: int = 128,
    seed: int = 0,
    motion: float = 2.0,
    layers: int = 1,
    count: int | None = None,
    dtype: torch.dtype = torch.float32,
    frame_rate: float = 24.0,
) -> list[Recording]:
    """Return recordings made of pictures, so that no video is needed, each with the target "flow".

    The shapes in front of a picture are cut from two others, drawn at random. Sizes are checked here; pictures are
    read when a frame is asked for. What was made of them is kept for the four videos that were read last (10 MB each
    for frames of 128 x 128), so it is quicker to take several frames of one before going to the next.

    Args:
        images: a folder of PNG, JPEG, TIFF, BMP or WebP files, or a list of files and of tensors (3, H, W), uint8 or
            float32 in [0, 1].
        num_frames, height, width, motion, layers, dtype, frame_rate: of each video, see `StillVideo`.
        seed: of all of them; each video has its own out of this one and its place in the list.
        count: how many videos; one for each picture if not given. More of them use the pictures again.

    Raises:
        InputError: there is no picture; one cannot be read or is smaller than a frame; a setting is out of range.

    >>> found = stills([torch.rand(3, 48, 64)], num_frames=4, height=16, width=24, count=2)
    >>> [recording.name for recording in found], list(found[0].targets)
    (['still0', 'still0-1'], ['flow'])
    """
    if isinstance(images, (str, Path)):
        pictures: list[Tensor | str | Path] = list(find_pictures(Path(images)))
    else:
        pictures = list(images)
    if not pictures:
        raise InputError("Clips from stills need at least one picture, and no pictures were given.")
    if count is not None and count < 1:
        raise InputError(f"count must be 1 or more, got {count}.")
    for picture in pictures:
        if not isinstance(picture, Tensor):
            _check_size(picture_size(Path(picture)), str(picture), height, width)
    stems = [f"still{i}" if isinstance(p, Tensor) else Path(p).stem for i, p in enumerate(pictures)]
    recordings: list[Recording] = []
    used: dict[str, int] = {}  # how often a name was
    for i in range(count or len(pictures)):
        which = i % len(pictures)
        stem = stems[which]
        again = used[stem] = used.get(stem, -1) + 1
        rng = np.random.default_rng([seed, i])
        others = [pictures[j] for j in rng.permutation(len(pictures)) if j != which][:2]
        video = StillVideo(
            pictures[which],
            num_frames=num_frames,
            height=height,
            width=width,
            seed=int(rng.integers(2**63)),
            motion=motion,
            layers=layers,
            foregrounds=others,
            dtype=dtype,
            name=f"{stem}-{again}" if again else stem,
            frame_rate=frame_rate,
        )
        recordings.append(Recording(video, {"flow": video.flow}))
    return recordings


class _Wave(NamedTuple):
    """A sum of sines over time, in frames."""

    amplitudes: np.ndarray
    periods: np.ndarray
    phases: np.ndarray

    def __call__(self, t: int) -> float:
        return float((self.amplitudes * np.sin(2 * math.pi * t / self.periods + self.phases)).sum())

    @property
    def reach(self) -> float:
        return float(np.abs(self.amplitudes).sum())

    @classmethod
    def drawn(
        cls, rng: np.random.Generator, speed: float, periods: Sequence[float] | np.ndarray, most: float = math.inf
    ) -> _Wave:
        """Draw sines that together never change by more than `speed` a frame, nor leave 0 by more than `most`."""
        shares = rng.dirichlet(np.ones(len(periods)))
        amplitudes = speed * shares * np.asarray(periods) / (2 * math.pi)
        amplitudes *= min(1.0, most / max(amplitudes.sum(), 1e-12))
        return cls(amplitudes, np.asarray(periods, np.float64), rng.uniform(0, 2 * math.pi, len(periods)))


@dataclass(frozen=True)
class _Camera:
    """Where the camera looks at a time: log zoom, roll in radians, and shift in pixels, which is x, y."""

    zoom: _Wave
    roll: _Wave
    shift: tuple[_Wave, _Wave]

    @classmethod
    def drawn(cls, rng: np.random.Generator, motion: float, radius: float) -> _Camera:
        """Draw a path on which no point within `radius` pixels of the middle moves more than `motion` a frame."""
        pan, zoom, roll, shake = motion * rng.dirichlet([3, 1, 1, 1])
        slow = rng.uniform(60, 180, 4)
        zooming = _Wave.drawn(rng, zoom / radius, slow[:1], most=0.25)
        nearer = math.exp(-zooming.reach)  # zoomed in, all else moves faster by as much
        rolling = _Wave.drawn(rng, nearer * roll / radius, slow[1:2], most=0.2)
        angle = rng.uniform(0, math.pi / 2)
        shifts = []
        for i, part in enumerate((math.cos(angle), math.sin(angle))):
            panning = _Wave.drawn(rng, nearer * pan * part, slow[2 + i : 3 + i])
            shaking = _Wave.drawn(rng, nearer * shake / math.sqrt(2), (23.0, 11.0, 6.3))  # a hand's 1 to 4 Hz
            shifts.append(_Wave(*(np.concatenate(both) for both in zip(panning, shaking, strict=True))))
        return cls(zooming, rolling, (shifts[0], shifts[1]))

    def view(self, t: int, depth: float = 1.0) -> np.ndarray:
        """Return the 3 x 3 matrix from a pixel, counted from the frame's middle, to a point of the world."""
        size, angle = math.exp(-self.zoom(t)), self.roll(t)
        cos, sin = size * math.cos(angle), size * math.sin(angle)
        x, y = (depth * wave(t) for wave in self.shift)
        return np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])


@dataclass(frozen=True)
class _Surface:
    """A picture to be looked at, low-pass filtered: the ground (1, 3, h, w), or a shape (1, 4, h, w) with its cover.

    A shape's colours are multiplied by its cover, as they must be for interpolation not to bring in what is outside.
    """

    texture: Tensor
    to_grid: np.ndarray  # 3 x 3, from points in pixels to -1..1 across the texture
    scale: float  # pixels of the photograph per pixel
    depth: float = 1.0
    place: tuple[float, float] = (0.0, 0.0)
    path: tuple[_Wave, _Wave, _Wave] | None = None  # its own motion: x, y and turning

    def view(self, camera: _Camera, t: int) -> np.ndarray:
        """Return the 3 x 3 matrix from a pixel, counted from the frame's middle, to a point of this surface."""
        seen = camera.view(t, self.depth)
        if self.path is None:
            return seen
        x, y, angle = (wave(t) for wave in self.path)
        cos, sin = math.cos(angle), math.sin(angle)
        shift = np.array([[1, 0, -x - self.place[0]], [0, 1, -y - self.place[1]], [0, 0, 1]])
        return np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) @ shift @ seen

    def seen(self, grid: Tensor) -> Tensor:
        return F.grid_sample(self.texture, grid, "bilinear", "zeros" if self.path else "reflection", False)

    def cover(self, grid: Tensor) -> Tensor:
        return F.grid_sample(self.texture[:, 3:], grid, "bilinear", "zeros", False)[0, 0]


@functools.lru_cache(maxsize=4)
def _surfaces(video: StillVideo) -> list[_Surface]:
    """Read a video's pictures and make them ready: the ground, then the shapes from the farthest to the nearest."""
    rng = np.random.default_rng(video._textures_seed)
    camera, size = video._camera, (video.width, video.height)
    loaded = [read_picture(picture) for picture in video._pictures]
    ground = loaded[0]
    name = "The picture" if isinstance(video._pictures[0], Tensor) else str(video._pictures[0])
    _check_size((ground.shape[2], ground.shape[1]), name, video.height, video.width)
    blur = BLUR * math.exp(camera.zoom.reach)  # in pixels, for the widest view
    # What the camera may see in its whole course, in pixels: (width, height).
    turned = math.sin(camera.roll.reach)
    reach = [math.exp(camera.zoom.reach) * (size[i] + turned * size[1 - i]) + 2 * camera.shift[i].reach for i in (0, 1)]
    surfaces = [_Surface(*_texture(ground, reach, blur, rng))]
    depths = np.sort(rng.uniform(FARTHEST, NEAREST, video._layers))
    for i, depth in enumerate(depths.tolist()):
        picture = loaded[1 + i % (len(loaded) - 1)] if len(loaded) > 1 else ground
        surfaces.append(_shape(picture, video, depth, blur, rng))
    return surfaces


def _texture(
    picture: Tensor, reach: Sequence[float], blur: float, rng: np.random.Generator
) -> tuple[Tensor, np.ndarray, float]:
    """Cut a random part, of `reach` (width, height) pixels at a random scale, out of a picture (3, H, W).

    Return it with FINE texels per pixel and blurred by `blur` pixels, (1, 3, h, w), the matrix to its grid, and the
    scale: 1 or more, unless the picture is smaller than a frame.
    """
    have = (picture.shape[2], picture.shape[1])
    largest = min(have[i] / reach[i] for i in (0, 1))
    scale = math.exp(rng.uniform(0, math.log(largest))) if largest > 1 else 1.0
    cut = [min(have[i], math.ceil(scale * reach[i])) for i in (0, 1)]
    x, y = (int(rng.integers(have[i] - cut[i] + 1)) for i in (0, 1))
    part = picture[None, :, y : y + cut[1], x : x + cut[0]]
    part = part.float() / 255 if part.dtype == torch.uint8 else part
    texels = [max(2, round(FINE * n / scale)) for n in cut]
    fine = F.interpolate(part, size=(texels[1], texels[0]), mode="bicubic", antialias=True).clamp_(0, 1)
    fine = _blurred(fine, blur * FINE)
    return fine, np.diag([2 * scale / cut[0], 2 * scale / cut[1], 1]), scale


def _shape(picture: Tensor, video: StillVideo, depth: float, blur: float, rng: np.random.Generator) -> _Surface:
    """Cut a random smooth shape out of a picture (3, H, W), and draw its path."""
    small = min(video.height, video.width)
    radius, softness = rng.uniform(0.14, 0.3) * small, rng.uniform(1, 3)
    edge = blur * softness  # how soft the rim is, in pixels: near things are out of focus
    reach = 2 * (1.4 * radius + 4 * edge)
    # A picture that is too small for it is enlarged.
    enlarged = reach / min(picture.shape[1:])
    if enlarged > 1:
        size = [math.ceil(enlarged * n) for n in picture.shape[1:]]
        picture = picture.float() / 255 if picture.dtype == torch.uint8 else picture
        picture = F.interpolate(picture[None], size=size, mode="bicubic")[0].clamp_(0, 1)
    colours, to_grid, scale = _texture(picture, (reach, reach), blur, rng)
    height, width = colours.shape[-2:]
    x = ((torch.arange(width) + 0.5) / width * 2 - 1) / float(to_grid[0, 0])
    y = (((torch.arange(height) + 0.5) / height * 2 - 1) / float(to_grid[1, 1]))[:, None]
    angle, waves = torch.atan2(y, x), torch.zeros(height, width)
    for k, amplitude in zip((2, 3, 4, 5), 0.4 * rng.dirichlet(np.ones(4)), strict=True):
        waves += amplitude * torch.cos(k * angle + rng.uniform(0, 2 * math.pi))
    inside = (radius * (1 + waves) - torch.hypot(x, y)) * FINE
    cover = _blurred((inside + 0.5).clamp(0, 1)[None, None], edge * FINE)
    # Its own motion, as fast again as the ground's or half that more, through the frame at some early time.
    way, speed = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 1.5) * video.motion * math.exp(-video._camera.zoom.reach)
    periods = rng.uniform(40, 120, 3)
    path = (
        _Wave.drawn(rng, 0.85 * speed * abs(math.cos(way)), periods[:1]),
        _Wave.drawn(rng, 0.85 * speed * abs(math.sin(way)), periods[1:2]),
        _Wave.drawn(rng, 0.15 * speed / max(1.4 * radius, 1), periods[2:], most=0.5),
    )
    then = int(rng.integers(24))
    pixel = np.array([rng.uniform(-0.3, 0.3) * video.width, rng.uniform(-0.3, 0.3) * video.height, 1])
    at = video._camera.view(then, depth) @ pixel
    place = (float(at[0]) - path[0](then), float(at[1]) - path[1](then))
    return _Surface(torch.cat([colours * cover, cover], 1), to_grid, scale, depth, place, path)


def _blurred(x: Tensor, sigma: float) -> Tensor:
    """Blur (1, C, H, W) with a Gaussian of `sigma` texels; outside, the border repeats."""
    radius = math.ceil(3 * sigma)
    weights = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    height, width = x.shape[-2:]
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    down = torch.zeros_like(padded[..., :height, :])
    for i, weight in enumerate(weights.tolist()):  # several times as fast as a convolution of three channels
        down.add_(padded[..., i : i + height, :], alpha=weight)
    blurred = torch.zeros_like(x)
    for i, weight in enumerate(weights.tolist()):
        blurred.add_(down[..., i : i + width], alpha=weight)
    return blurred


def read_picture(picture: Tensor | str | Path) -> Tensor:
    """Return a file's picture, upright: (3, H, W) RGB, uint8, or float32 in [0, 1] if it has more than 8 bits.

    Raises:
        InputError: it cannot be read.
    """
    if isinstance(picture, Tensor):
        return picture
    from PIL import Image, ImageOps

    try:
        with Image.open(picture) as image:
            if not image.mode.startswith(("I", "F")):  # more than 8 bits of grey, which PIL would clip
                upright = ImageOps.exif_transpose(image).convert("RGB")
                return torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    except OSError as error:
        raise InputError(f"{picture} cannot be read as a picture; replace it, or leave it out.") from error
    with open_reader(picture) as reader:
        return next(iter(reader)).data.clamp(0, 1)


def picture_size(path: Path) -> tuple[int, int]:
    """Return a picture's width and height, upright, from its header.

    Raises:
        InputError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            turned = picture.getexif().get(0x112, 1) >= 5  # EXIF's orientation: 5 to 8 lie on their side
            return (picture.height, picture.width) if turned else (picture.width, picture.height)
    except OSError as error:
        raise InputError(f"{path} cannot be read as a picture; replace it, or leave it out.") from error


def find_pictures(folder: Path) -> list[Path]:
    """Return the pictures of a folder, by their extensions (`PICTURES`), sorted by name.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with pictures.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
    if not found:
        raise InputError(f"{folder} has no pictures ({', '.join(sorted(PICTURES))}); give a folder that has.")
    return found


def _check_picture(picture: Tensor) -> None:
    if picture.ndim != 3 or picture.shape[0] != 3 or picture.dtype not in (torch.uint8, torch.float32):
        raise InputError(
            "A picture must be (3, H, W), uint8 or float32 in [0, 1], "
            f"got {tuple(picture.shape)} {picture.dtype}; convert it."
        )
    if picture.dtype == torch.float32 and picture.numel():
        low, high = (float(v) for v in picture.aminmax())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"A picture of float32 must lie in [0, 1], got values from {low:g} to {high:g}; divide or clip them."
            )


def _check_size(size: tuple[int, int], name: str, height: int, width: int) -> None:
    if size[0] < width or size[1] < height:
        raise InputError(
            f"{name} has {size[0]}x{size[1]} pixels (width x height), too few for frames of {width}x{height}; "
            "give a larger one, or ask for smaller frames."
        )
