"""Synthetic films with exactly known depth, classes and motion: a camera walks through rooms and streets."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.data.base import Recording, Video
from unflicker.data.scenes.base import CLASSES, Scene, View
from unflicker.data.scenes.paint import Painter
from unflicker.data.scenes.sight import cast, motion, picture
from unflicker.data.scenes.world import Builder

__all__ = ["CLASSES", "KINDS", "SceneVideo", "scenes"]

KINDS = ("room", "street")


class SceneVideo(Video):
    """A camera that walks, pans, rolls and shakes through a room or a street of textured things, some of which move.

    Every frame is made when it is asked for, and is a pure function of the seed, the settings and its number: neither
    `num_frames` nor what was read before plays a part. Its pixels are exact to a ray through their centre for depth,
    classes and motion; colours are filtered: textures by mip levels, outlines by 3 x 3 rays per pixel. All moving
    things are rigid, or made of rigid parts, and so their motion is exact.

    Three videos beside it tell the truth about each frame:

    - `depth`: (n, 1, H, W) float32, metres along the optical axis, 0.05 or more; NaN in the sky, where it is unknown.
    - `labels`: (n, H, W) int64, numbers of `CLASSES`; "overhead" is a ceiling or the sky.
    - `flow`: (n, 2, H, W) float32, pixels along x and y to where the next frame has the same point, whether something
      covers it there or not; in the sky that of infinitely far points. The last frame's leads to the frame that would
      follow.

    The first frame of a video takes some 0.2 s more than the others, to paint its textures. They are kept for the four
    videos that were read last (10 to 50 MB each; four times that for frames wider than 256 pixels, a quarter up to 96),
    so take several frames of one before going on to the next.

    Args:
        seed: of everything that is drawn at random; 0 or more.
        num_frames: how many.
        height, width: of a frame, in pixels; the field of view across is the same at every size.
        kind: "room" or "street"; drawn if None.
        camera_speed: 1 walks, pans and shakes as a person with a camera at 24 frames per second; 0 stands still.
        object_speed: of the things that move by themselves, in the same way.
        photographs: whether some walls and boxes show photographs from scikit-image.
        dtype: torch.float32, in [0, 1], or torch.uint8.
        name: see `Video`.
        frame_rate: see `Video`; it changes nothing in the frames.

    Attributes:
        depth, labels, flow: the truth, each a `Video`.
        focal: the focal length, in pixels; the principal point is the middle of the frame.

    Raises:
        InputError: a setting is out of range.

    >>> video = SceneVideo(0, num_frames=8, height=24, width=32)
    >>> video.read([0, 7]).shape, video.depth.read([0]).shape, video.labels.read([0]).shape
    (torch.Size([2, 3, 24, 32]), torch.Size([1, 1, 24, 32]), torch.Size([1, 24, 32]))
    """

    def __init__(
        self,
        seed: int,
        *,
        num_frames: int = 48,
        height: int = 128,
        width: int = 192,
        kind: str | None = None,
        camera_speed: float = 1.0,
        object_speed: float = 1.0,
        photographs: bool = False,
        dtype: torch.dtype = torch.float32,
        name: str = "scene",
        frame_rate: float = 24.0,
    ) -> None:
        if min(num_frames, height, width) < 1:
            raise InputError(
                f"A video needs num_frames, height and width of 1 or more, got {num_frames}, {height}, {width}."
            )
        for speed, what in ((camera_speed, "camera_speed"), (object_speed, "object_speed")):
            if not (speed >= 0 and math.isfinite(speed)):
                raise InputError(f"{what} must be 0 or more, 1 is a walk, got {speed}.")
        if seed < 0:
            raise InputError(f"seed must be an integer, 0 or more, got {seed}.")
        if kind is not None and kind not in KINDS:
            raise InputError(f"There is no kind of scene {kind!r}; {nearest(kind, KINDS)}")
        if dtype not in (torch.float32, torch.uint8):
            raise InputError(f"dtype must be torch.float32 or torch.uint8, got {dtype}.")
        self.name, self.num_frames, self.frame_rate = name, num_frames, frame_rate
        self.height, self.width, self.dtype, self.seed = height, width, dtype, seed
        self.camera_speed, self.object_speed, self.photographs = camera_speed, object_speed, photographs
        rng = np.random.default_rng(seed)
        drawn = KINDS[int(rng.random() < 0.5)]
        self.kind = kind or drawn
        self.focal = width / 2 / math.tan(rng.uniform(0.48, 0.66))  # 55 to 76 degrees across
        self._scene_seed = int(rng.integers(2**63))
        self.settings = (seed, kind, camera_speed, object_speed, photographs, str(dtype))
        self.depth: Video = _Truth(self, "depth", self._depth)
        self.labels: Video = _Truth(self, "labels", self._labels)
        self.flow: Video = _Truth(self, "flow", self._flow)

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Return the frames with these numbers: (len(numbers), 3, H, W), float32 in [0, 1] or uint8."""
        frames = torch.stack([self._frame(n) for n in self._checked(numbers)])
        return frames.mul_(255).round_().byte() if self.dtype == torch.uint8 else frames

    def pose(self, number: int) -> Tensor:
        """Return the 4 x 4 float64 matrix from the camera of a frame to the world, in metres.

        The camera's axes point right, down and forwards; the world's z points up, and a scene's floor is at z = 0.
        """
        return torch.from_numpy(_scene(self).camera(number * self.camera_speed))

    def _view(self, n: int) -> View:
        scene = _scene(self)
        return scene.view(scene.camera(n * self.camera_speed), n * self.object_speed)

    def _hits(self, n: int) -> tuple[Tensor, Tensor]:
        return cast(_scene(self), self._view(n), (self.height, self.width), self.focal, 1)

    def _frame(self, n: int) -> Tensor:
        return picture(_scene(self), self._view(n), (self.height, self.width), self.focal)

    def _depth(self, n: int) -> Tensor:
        depth, _ = self._hits(n)
        return depth.masked_fill_(depth == torch.inf, torch.nan)[None]

    def _labels(self, n: int) -> Tensor:
        return _scene(self).labels[self._hits(n)[1]]

    def _flow(self, n: int) -> Tensor:
        return motion(self._view(n), self._view(n + 1), *self._hits(n), self.focal)


class _Truth(Video):
    """What is known about the frames of a `SceneVideo`, made by `one` from a number."""

    def __init__(self, video: SceneVideo, kind: str, one: Callable[[int], Tensor]) -> None:
        self.name, self.num_frames, self.frame_rate = video.name, video.num_frames, video.frame_rate
        self.height, self.width, self._one = video.height, video.width, one
        self.settings = (kind, video.settings)

    def read(self, numbers: Sequence[int]) -> Tensor:
        return torch.stack([self._one(n) for n in self._checked(numbers)])


def scenes(
    count: int,
    *,
    seed: int = 0,
    num_frames: int = 48,
    height: int = 128,
    width: int = 192,
    kind: str | None = None,
    camera_speed: float = 1.0,
    object_speed: float = 1.0,
    photographs: bool = False,
    dtype: torch.dtype = torch.float32,
    frame_rate: float = 24.0,
) -> list[Recording]:
    """Return recordings of synthetic scenes, each with the targets "depth", "labels" and "flow".

    Args:
        count: how many.
        seed: of all of them; each has its own out of this one and its place in the list.
        num_frames, height, width, kind, camera_speed, object_speed, photographs, dtype, frame_rate: of each video, see
            `SceneVideo`.

    Raises:
        InputError: a setting is out of range.

    >>> found = scenes(2, num_frames=4, height=16, width=24)
    >>> [recording.name for recording in found], list(found[0].targets)
    (['scene0', 'scene1'], ['depth', 'labels', 'flow'])
    """
    if count < 1:
        raise InputError(f"count must be 1 or more, got {count}.")
    if seed < 0:
        raise InputError(f"seed must be an integer, 0 or more, got {seed}.")
    recordings = []
    for i in range(count):
        video = SceneVideo(
            int(np.random.default_rng([seed, i]).integers(2**63)),
            num_frames=num_frames,
            height=height,
            width=width,
            kind=kind,
            camera_speed=camera_speed,
            object_speed=object_speed,
            photographs=photographs,
            dtype=dtype,
            name=f"scene{i}",
            frame_rate=frame_rate,
        )
        recordings.append(Recording(video, {"depth": video.depth, "labels": video.labels, "flow": video.flow}))
    return recordings


@functools.lru_cache(maxsize=4)
def _scene(video: SceneVideo) -> Scene:
    """Lay out and paint the scene of a video."""
    layout, paint = np.random.default_rng(video._scene_seed).spawn(2)
    painter = Painter(paint, 128 if video.width <= 96 else 256 if video.width <= 256 else 512)
    builder = Builder(layout, painter, video.photographs)
    return builder.room() if video.kind == "room" else builder.street()
