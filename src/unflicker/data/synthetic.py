"""A camera that moves over real photographs: clean clips, made offline from the pictures in scikit-image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError, nearest

SCENES = ("motorcycle", "astronaut", "coffee", "rocket")

FIELD = 0.72  # share of the photograph that is in view; the rest is room to move in
PERIOD = 168  # frames of one pan forth and back
REST, START = 24, 12  # frames in which the camera stays where it is, but for the hand's shake, and gathers speed
FINE = 3  # samples per output pixel, along each axis
BLUR = 0.5  # standard deviation of a pixel's aperture, in pixels: 0.3 is left at Nyquist, 0.007 at twice that


def demo_clip(
    frames: int = 72, height: int = 192, width: int = 320, seed: int = 0, *, scene: str = "motorcycle"
) -> Tensor:
    """Film a photograph with a hand-held camera while a picture of a cat is carried past: (T, 3, H, W) in [0, 1].

    The camera rests for a second, then pans, zooms and rolls a little, and shakes all the time; the picture occludes
    what is behind it. Things move up to 4 pixels a frame at 320 x 192; the field of view is the same at every size. In
    "motorcycle", a stereo pair, the camera also travels sideways, and each point moves by its measured depth. There
    is no cut, no noise but the photographs' own, and positions are exact to a fraction of a pixel.

    Args:
        frames: how many; the camera pans forth in 84 and back in 84, after a rest of 24.
        height: of a frame, in pixels.
        width: of a frame, in pixels.
        seed: of the shake and the timing.
        scene: which photograph, one of `SCENES`. All come with scikit-image; nothing is downloaded.

    Raises:
        InputError: the scene is not known, or a size is not positive.

    >>> clip = demo_clip(2, 24, 40)
    >>> clip.shape, bool((clip >= 0).all() and (clip <= 1).all())
    (torch.Size([2, 3, 24, 40]), True)
    """
    if scene not in SCENES:
        raise InputError(f"There is no scene {scene!r}; {nearest(scene, SCENES)}")
    if min(frames, height, width) < 1:
        raise InputError(f"A clip needs frames, height and width of 1 or more, got {frames}, {height}, {width}.")
    photo, cat = _photo(scene), _picture("chelsea")
    step = FIELD * min(photo.width / width, photo.height / height)  # pixels of the photograph per output pixel
    middle_x, middle_y = (photo.width - 1) / 2, (photo.height - 1) / 2
    spare_x, spare_y = middle_x - step * width / 2, middle_y - step * height / 2
    rng = np.random.default_rng(seed)
    phases, begin = rng.uniform(0, 2 * math.pi, (3, 3)), rng.uniform(0, 0.04)  # the pan starts almost at rest
    rows, columns = _sample_positions(height, width)
    clip = torch.empty(frames, 3, height, width)
    for t in range(frames):
        pans = begin + _travelled(t) / PERIOD  # how many, forth and back, up to now
        turn = 2 * math.pi * pans
        across = -math.cos(turn)  # from -1, the left end of the pan, to 1
        shake_x, shake_y, shake_roll = _shake(t, phases)
        x, y = _turned(columns, rows, 0.01 * math.sin(0.8 * turn) + 0.002 * shake_roll)
        zoom = step * (1 - 0.04 * math.sin(turn))
        x = zoom * x + middle_x + 0.72 * spare_x * across + step * width / 320 * shake_x
        y = zoom * y + middle_y + 0.3 * spare_y * math.sin(0.7 * turn) + step * width / 320 * shake_y
        samples = photo.seen_from(0.5 + 0.45 * across, x, y)
        # The cat goes against the pan, to cross the frame, and sways as it is carried.
        x = x - middle_x - 0.85 * step * width * (0.24 - begin - t / PERIOD)
        swing = 2 * math.pi * t / PERIOD
        y = y - middle_y - 0.03 * step * height * math.sin(9 * swing)
        x, y = _turned(x, y, 0.07 * math.sin(4 * swing + 1))
        samples = _with_print(samples, cat, x, y, size=0.25 * step * width, edge=zoom / FINE)
        clip[t] = _expose(samples)
    return clip.clamp_(0, 1)


@dataclass(frozen=True)
class _Photo:
    """A photograph (1, 3, H, W), and for a stereo pair the picture from the right and the disparity (H, W) between."""

    left: Tensor
    right: Tensor | None = None
    disparity: Tensor | None = None

    @property
    def width(self) -> int:
        return self.left.shape[-1]

    @property
    def height(self) -> int:
        return self.left.shape[-2]

    def seen_from(self, side: float, x: Tensor, y: Tensor) -> Tensor:
        """Return the colours (1, 3, h, w) at x, y (h, w), seen from between the left (0) and the right (1) eye.

        A point with disparity d stands at x in this view, at x + side * d in the left picture and at
        x - (1 - side) * d in the right one, which shows what is hidden from the left.
        """
        if self.right is None or self.disparity is None:
            return _sample(self.left, x, y)
        moved = _moved_disparity(self.disparity, side)
        # Nearest: a mean of two depths would be a depth where there is nothing.
        disparity, seen = _sample(moved, FINE * x + (FINE - 1) / 2, y, "nearest")[0]
        left = _sample(self.left, x + side * disparity, y)
        return torch.lerp(_sample(self.right, x - (1 - side) * disparity, y), left, seen)


def _photo(scene: str) -> _Photo:
    if scene != "motorcycle":
        return _Photo(_picture(scene))
    from skimage.data import stereo_motorcycle

    left, right, disparity = stereo_motorcycle()
    near = torch.from_numpy(np.nan_to_num(np.asarray(disparity, np.float32), nan=0.0, posinf=0.0))
    # What stands in front takes a rim of two pixels along; else its blurred outline would stick to the background.
    near = F.max_pool2d(near[None], 5, 1, 2)[0]
    return _Photo(_floats(left), _floats(right), _filled(near, near > 0))


def _picture(name: str) -> Tensor:
    import skimage.data

    return _floats(getattr(skimage.data, name)())


def _floats(picture: np.ndarray) -> Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255


def _filled(values: Tensor, known: Tensor) -> Tensor:
    """Fill the gaps of each row (H, W) with the smaller neighbour: what is hidden belongs to what is farther away."""
    width = values.shape[1]
    index = torch.arange(width).expand_as(values)
    before = torch.where(known, index, -1).cummax(1).values
    after = torch.where(known, index, width).flip(1).cummin(1).values.flip(1)
    far = torch.full_like(values[:, :1], torch.inf)
    padded = torch.cat([far, torch.where(known, values, torch.inf), far], 1)
    return torch.minimum(padded.gather(1, before + 1), padded.gather(1, after + 1))


def _moved_disparity(disparity: Tensor, side: float) -> Tensor:
    """Carry the left picture's disparity (H, W) to a view: (1, 2, H, FINE * W), disparity and whether it was seen.

    The columns are FINE times as dense, so that edges move in small steps; of several points the nearest one counts.
    """
    height, width = disparity.shape
    first = (FINE * (torch.arange(width) - side * disparity)).round().long()
    columns = torch.cat([first + i for i in range(FINE + 1)], 1)  # one more than a pixel is wide leaves no cracks
    inside = (columns >= 0) & (columns < FINE * width)
    columns = torch.where(inside, columns, FINE * width)  # what leaves the picture is collected in one more column
    moved = torch.zeros(height, FINE * width + 1)
    moved.scatter_reduce_(1, columns, disparity.repeat(1, FINE + 1), "amax")
    moved = moved[:, :-1]
    seen = moved > 0
    return torch.stack([_filled(moved, seen), seen.float()])[None]


def _sample(picture: Tensor, x: Tensor, y: Tensor, mode: str = "bilinear") -> Tensor:
    """Interpolate (1, C, H, W) at pixel positions x, y (h, w), which are centres of pixels where they are whole."""
    height, width = picture.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)
    return F.grid_sample(picture, grid[None], mode, padding_mode="border", align_corners=False)


def _sample_positions(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return rows (h, 1) and columns (1, w) of the fine samples, in output pixels from the frame's centre.

    There is a margin of one pixel around the frame, for the aperture reaches that far.
    """
    rows, columns = ((torch.arange(FINE * (n + 2)) + 0.5) / FINE - 1 - n / 2 for n in (height, width))
    return rows[:, None], columns[None]


def _expose(samples: Tensor) -> Tensor:
    """Gather fine samples (1, 3, FINE * (H + 2), FINE * (W + 2)) into pixels (1, 3, H, W) with a Gaussian aperture.

    This is the low-pass filter that keeps fine detail from aliasing into flicker that no camera would show.
    """
    offsets = (torch.arange(3 * FINE) + 0.5) / FINE - 1.5
    weights = torch.exp(-0.5 * (offsets / BLUR) ** 2)
    weights /= weights.sum()
    height, width = (n // FINE - 2 for n in samples.shape[-2:])
    down = torch.zeros(*samples.shape[:2], height, samples.shape[-1])
    pixels = torch.zeros(*samples.shape[:2], height, width)
    for i, weight in enumerate(weights.tolist()):  # several times as fast as a convolution of three channels
        down.add_(samples[..., i : i + FINE * height : FINE, :], alpha=weight)
    for i, weight in enumerate(weights.tolist()):
        pixels.add_(down[..., i : i + FINE * width : FINE], alpha=weight)
    return pixels


def _turned(x: Tensor, y: Tensor, angle: float) -> tuple[Tensor, Tensor]:
    cos, sin = math.cos(angle), math.sin(angle)
    return cos * x - sin * y, sin * x + cos * y


def _travelled(t: int) -> float:
    """Return how many frames' worth of its full speed the camera has moved at frame t."""
    moving = max(0, t - REST)
    return moving**2 / (2 * START) if moving < START else moving - START / 2


def _shake(t: int, phases: np.ndarray) -> list[float]:
    """Return the unrest of a hand at frame t, a tremor of 1 to 4 Hz: two shifts in pixels of 320, and a roll."""
    periods, amplitudes = np.array([23.0, 11.0, 6.3]), np.array([0.8, 0.35, 0.15])
    return (amplitudes * np.sin(2 * math.pi * t / periods + phases)).sum(1).tolist()


def _with_print(colours: Tensor, picture: Tensor, x: Tensor, y: Tensor, *, size: float, edge: float) -> Tensor:
    """Lay a print of a picture with a white border over (1, 3, h, w); x, y (h, w) count from its middle.

    `size` is the print's width without the border and `edge` the width over which its rim fades, both in units of x.
    """
    height, width = picture.shape[-2:]
    scale = width / size
    outside = torch.maximum(x.abs() - size / 2, y.abs() - size / 2 * height / width)
    printed = _sample(picture, scale * x + (width - 1) / 2, scale * y + (height - 1) / 2)
    paper = torch.lerp(torch.full_like(printed, 0.93), printed, _cover(outside, edge))
    return torch.lerp(colours, paper, _cover(outside - 0.05 * size, edge))


def _cover(distance: Tensor, edge: float) -> Tensor:
    """How much of a sample lies inside an outline, from its signed distance."""
    return (0.5 - distance / edge).clamp(0, 1)
