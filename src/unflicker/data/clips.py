"""Clips for training: a folder of videos, kept in memory as bytes, cut at random in space and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError, nearest
from unflicker.video.reader import open_reader

EXTENSIONS = {".mp4", ".mkv", ".mov", ".webm", ".avi", ".m4v"}


def find_videos(folder: str | Path) -> list[Path]:
    """Return the video files of a folder, sorted by name.

    Raises:
        InputError: there is no such folder, or no video in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with video files.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    if not paths:
        raise InputError(f"{folder} has no video files ({', '.join(sorted(EXTENSIONS))}).")
    return paths


def choose(paths: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Return the videos with these names (without extension), in that order.

    >>> choose([Path("a.mp4"), Path("b.mkv")], ["b"])
    [PosixPath('b.mkv')]
    """
    known = {path.stem: path for path in paths}
    for name in names:
        if name not in known:
            raise InputError(f"There is no video {name!r} in the folder; {nearest(name, known)}")
    return [known[name] for name in names]


def read_clip(path: Path, *, size: tuple[int, int] | None = None, frames: int | None = None, every: int = 1) -> Tensor:
    """Decode a video into memory: (T, 3, H, W) uint8.

    Args:
        path: the video.
        size: (height, width) to average the frames down to; None keeps them.
        frames: stop after that many.
        every: keep one frame in so many.
    """
    kept: list[Tensor] = []
    with open_reader(path) as reader:
        for i, frame in enumerate(reader):
            if frames is not None and len(kept) == frames:
                break
            if i % every == 0:
                kept.append(_bytes(frame.data, size))
    return torch.stack(kept)


def _bytes(frame: Tensor, size: tuple[int, int] | None) -> Tensor:
    if size is not None and size != tuple(frame.shape[-2:]):
        frame = F.interpolate(frame[None], size=size, mode="area")[0]
    return frame.clamp(0, 1).mul(255).round().byte()


class Clips:
    """Random clips out of videos held in memory; the draw is a pure function of the seed.

    Args:
        paths: video files.
        scales: each video is kept at these sizes relative to its own; smaller ones are sharper and move less.
        every: keep one frame in so many (for networks trained on single frames).

    Example::

        clips = Clips(find_videos("clips/"), scales=(1.0, 0.5))
        batch = clips.draw(8, length=8, crop=96, generator=torch.Generator().manual_seed(0))  # (8, 8, 3, 96, 96)
    """

    def __init__(self, paths: Sequence[Path], *, scales: Sequence[float] = (1.0,), every: int = 1) -> None:
        self.videos: list[Tensor] = []
        for path in paths:
            video = read_clip(path, every=every)
            for scale in scales:
                size = (round(video.shape[-2] * scale), round(video.shape[-1] * scale))
                self.videos.append(
                    video if scale == 1 else torch.stack([_bytes(frame.float() / 255, size) for frame in video])
                )

    def draw(self, count: int, *, length: int, crop: int, generator: torch.Generator) -> Tensor:
        """Return `count` clips (count, length, 3, crop, crop) in [0, 1], flipped and turned at random.

        Long videos are drawn from more often, every start is as likely as any other. Half of the clips run
        backwards, which costs nothing and doubles the motions.
        """
        usable = [v for v in self.videos if len(v) >= length and min(v.shape[-2:]) >= crop]
        if not usable:
            raise InputError(f"No video is long and large enough for clips of {length} frames of {crop}x{crop} pixels.")
        starts = torch.tensor([len(v) - length + 1 for v in usable], dtype=torch.float)

        def number(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        clips = []
        for _ in range(count):
            video = usable[int(torch.multinomial(starts, 1, generator=generator))]
            t, y, x = (
                number(have - want + 1)
                for have, want in zip((len(video), *video.shape[-2:]), (length, crop, crop), strict=True)
            )
            clip = video[t : t + length, :, y : y + crop, x : x + crop]
            for flip in [axis for axis in (-1, -2, 0) if number(2)]:
                clip = clip.flip(flip)
            clips.append(clip.transpose(-1, -2) if number(2) else clip)
        return torch.stack(clips).float() / 255
