"""Videos brought to one height, as the papers bring theirs: the enhanced ones to 360 lines, DAVIS to 480."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.data.base import Recording, Video


class ScaledVideo(Video):
    """A video averaged down until its shorter side is so many pixels; a smaller one stays as it is.

    Args:
        video: of pictures; what is in pixels or a number of a class cannot be averaged.
        short_side: in pixels.

    Raises:
        InputError: the side is not 1 or more.

    >>> from unflicker.data.scenes import SceneVideo
    >>> ScaledVideo(SceneVideo(0, num_frames=1, height=48, width=96), 24).read([0]).shape
    torch.Size([1, 3, 24, 48])
    """

    def __init__(self, video: Video, short_side: int) -> None:
        if short_side < 1:
            raise InputError(f"The shorter side must be 1 pixel or more, got {short_side}.")
        factor = min(1.0, short_side / min(video.height, video.width))
        self.video = video
        self.name, self.num_frames, self.frame_rate, self.paths = (
            video.name,
            video.num_frames,
            video.frame_rate,
            video.paths,
        )
        self.height, self.width = (max(1, round(side * factor)) for side in (video.height, video.width))
        self.settings = (short_side, video.settings)

    def read(self, numbers: Sequence[int]) -> Tensor:
        frames = self.video.read(self._checked(numbers))
        if frames.shape[-2:] == (self.height, self.width):
            return frames
        small = F.interpolate(frames.float(), size=(self.height, self.width), mode="area")
        return small.round_().to(torch.uint8) if frames.dtype == torch.uint8 else small


def scaled(recording: Recording, short_side: int) -> Recording:
    """Scale a recording's frames and its truth.

    Raises:
        InputError: it has a target that cannot be averaged.
    """
    other = [name for name in recording.targets if name != "truth"]
    if other:
        raise InputError(f"The target {other[0]!r} of {recording.name} cannot be scaled: leave data.short_side out.")
    targets = {name: ScaledVideo(each, short_side) for name, each in recording.targets.items()}
    return Recording(ScaledVideo(recording.frames, short_side), targets)
