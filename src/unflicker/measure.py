"""Measure how steady a video is: any length in one pass, in constant memory but for one number a frame."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.flow import consistent, warp
from unflicker.flow import flow as find_flow
from unflicker.metrics.motion import NOISE
from unflicker.metrics.quality import frame_psnr
from unflicker.video.ahead import read_ahead
from unflicker.video.base import Frame
from unflicker.video.reader import open_reader

HEAT_WIDTH = 320  # of the map of where it flickers, in pixels
SLICE_ROWS = 720  # most moments in a picture of pixels over time
WORST = 4  # moments that are shown
FLOW_WIDTH = 640  # the flow of larger frames is found at about this width


@dataclass
class Version:
    """What was measured on one video. Curves have a value for every frame, None where there is none."""

    name: str
    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    heat: Tensor | None = None
    """Root mean square by which each place flickers, (h, w)."""
    rows: Tensor | None = None
    """The middle row of pixels over time, (moments, w, 3)."""
    columns: Tensor | None = None
    """The middle column of pixels over time, (moments, h, 3)."""
    worst: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    """Frames that flicker most: number, the frame and what should not have changed in it, (3, h, w) and (h, w)."""


@dataclass
class Measurement:
    """What `measure_video` found: the video first, then what it was measured against, then the truth."""

    versions: list[Version]
    frames: int
    width: int
    height: int
    seconds: list[float]
    with_flow: bool
    damage: list[str]
    """Sentences on what could not be read."""
    notes: list[str]
    """Sentences on what the numbers do not mean here."""


def measure_video(
    video: str | Path,
    *,
    truth: str | Path | None = None,
    guide: str | Path | None = None,
    against: str | Path | None = None,
    trim: bool = False,
    with_flow: bool = True,
    frame_rate: float | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> Measurement:
    """Measure a video, and others of the same content beside it.

    For every version: `instability`, the mean root mean square of frame differences per value, which counts true
    motion too; with flow `flicker`, what changes once motion is taken out (`unflicker.metrics.motion.flicker`), and
    `warping_error` along the motion of the guide; with a truth `psnr` and `temporal_difference_error`.

    Args:
        video: a file or a folder of images.
        truth: what it should look like.
        guide: where the motion is found; the truth unless given, else each version itself.
        against: another version of the video, for comparison.
        trim: stop at the end of the shortest instead of refusing videos of different length.
        with_flow: False leaves out what needs optical flow, which takes most of the time.
        frame_rate: of folders of images, in frames per second.
        on_frame: called after each frame with the number done and the number expected, if known.

    Raises:
        InputError: a video cannot be read, they differ in size or length, or there is but one frame.
    """
    paths = {"video": video, "against": against, "truth": truth, "guide": guide}
    given = {role: Path(path) for role, path in paths.items() if path is not None}
    with ExitStack() as stack:
        readers = {}
        for role, path in given.items():
            rate = frame_rate if path.is_dir() else None
            readers[role] = stack.enter_context(open_reader(path, frame_rate=rate))
        first = readers["video"].info
        for role, reader in readers.items():
            if (reader.info.width, reader.info.height) != (first.width, first.height):
                raise InputError(
                    f"{given[role]} has {reader.info.width}x{reader.info.height} pixels, but {given['video']} has "
                    f"{first.width}x{first.height}: bring them to one size first."
                )
        streams = [stack.enter_context(closing(read_ahead(reader))) for reader in readers.values()]
        follows = "guide" if guide is not None else "truth" if truth is not None else None
        measuring = {role: _Measuring(str(given[role])) for role in readers if role != "guide"}
        motions = {follows or role: _Motion(first.width) for role in measuring} if with_flow else {}
        seconds: list[float] = []
        for frames in _together(streams, list(given.values()), trim):
            now = {role: frame.data for role, frame in zip(readers, frames, strict=True)}
            moved = {role: motion.step(now[role]) for role, motion in motions.items()}
            for role, each in measuring.items():
                target = None if role == "truth" else now.get("truth")
                each.add(now[role], target, moved.get(follows or role))
            seconds.append(frames[0].pts_seconds)
            if on_frame is not None:
                on_frame(len(seconds), first.num_frames)
        if len(seconds) < 2:
            raise InputError(f"{video} has one frame: how steady a video is can be said from two frames on.")
        versions = [each.finish() for each in measuring.values()]
        damage = [f"{given[role]}: {reader.damage}" for role, reader in readers.items() if reader.damage]
    notes = [
        f"{given[role]} is scene-linear and may go above 1: PSNR takes 1 for the peak, flow and pictures clip there."
        for role, reader in readers.items()
        if reader.info.bit_depth == 32
    ]
    return Measurement(versions, len(seconds), first.width, first.height, seconds, with_flow, damage, notes)


def _together(streams: Sequence[Iterator[Frame]], paths: list[Path], trim: bool) -> Iterator[list[Frame]]:
    """Yield the frames of several videos side by side, and complain at the end if some go on longer."""
    for shared, frames in enumerate(zip_longest(*streams)):
        if any(frame is None for frame in frames):
            if not trim:
                lengths = [
                    shared + (frame is not None) + sum(1 for _ in stream)
                    for frame, stream in zip(frames, streams, strict=True)
                ]
                told = ", ".join(f"{path} {length}" for path, length in zip(paths, lengths, strict=True))
                raise InputError(f"The videos differ in length (frames: {told}); --trim stops at the shortest.")
            return
        yield list(frames)


class _Motion:
    """The optical flow between the last two frames of a video, there and back."""

    def __init__(self, width: int) -> None:
        self.scale = min(1.0, FLOW_WIDTH / width)
        self.last: Tensor | None = None

    def step(self, frame: Tensor) -> tuple[Tensor, Tensor] | None:
        last, self.last = self.last, frame
        if last is None:
            return None
        a, b = last[None], frame[None]
        return find_flow(a, b, preset="fast", scale=self.scale), find_flow(b, a, preset="fast", scale=self.scale)


class _Measuring:
    """One video being measured: the last two frames, sums, and one number a frame."""

    def __init__(self, name: str) -> None:
        self.version = Version(name)
        self.frames: list[Tensor] = []  # the last two
        self.last_error: Tensor | None = None
        self.moved: tuple[Tensor, Tensor] | None = None
        self.heat: Tensor | None = None
        self.heat_count = 0
        self.rows, self.columns = _Slice(), _Slice()
        self.count = 0
        self._worst: list[tuple[float, int, Tensor, Tensor]] = []
        self.energy = torch.zeros(2, dtype=torch.float64)  # of flicker: sum of squares, values

    def add(self, frame: Tensor, target: Tensor | None, moved: tuple[Tensor, Tensor] | None) -> None:
        self.rows.add(frame[:, frame.shape[1] // 2].T)
        self.columns.add(frame[:, :, frame.shape[2] // 2].T)
        last = self.frames[-1] if self.frames else None
        change = None if last is None else (frame - last).square_()
        self._note("instability", None if change is None else math.sqrt(_mean(change)))
        if target is not None:
            psnr = frame_psnr(frame[None], target[None]).item()
            self._note("psnr", psnr if math.isfinite(psnr) else None)
            error = frame - target
            wrong = None if self.last_error is None else math.sqrt(_mean((error - self.last_error).square_()))
            self._note("temporal_difference_error", wrong)
            self.last_error = error
        if moved is not None and last is not None:
            forward, backward = moved
            residual = (last - warp(frame[None], forward)[0]).square()
            self._note("warping_error", _mean_where(consistent(forward, backward)[0], residual))
            self._note_flicker(frame, moved)
        elif change is not None:
            self._note_place(change, self.count, frame, self.version.curves["instability"][-1])
        self.moved = moved
        self.frames = [*self.frames[-1:], frame]
        self.count += 1

    def _note_flicker(self, frame: Tensor, moved: tuple[Tensor, Tensor]) -> None:
        """Compare the frame before this one with its two neighbours, brought to it along the motion."""
        if len(self.frames) < 2 or self.moved is None:
            self._note("flicker", None)
            return
        (there, back), (forward, backward) = self.moved, moved
        mask = consistent(back, there)[0] & consistent(forward, backward)[0]
        around = (warp(self.frames[0][None], back) + warp(frame[None], forward))[0] / 2
        residual = (self.frames[1] - around).square() / NOISE
        residual = torch.where(mask & residual.isfinite(), residual, 0)
        values = int(mask.sum()) * frame.shape[0]
        self.energy += torch.tensor([residual.sum(dtype=torch.float64).item(), values], dtype=torch.float64)
        value = math.sqrt(residual.sum().item() / values) if values else None
        self._note("flicker", value, self.count - 1)
        self._note_place(residual, self.count - 1, self.frames[1], value)

    def _note_place(self, energy: Tensor, number: int, frame: Tensor, value: float | None) -> None:
        """Add to the map of where it flickers, and keep the frame if it is among the worst."""
        factor = max(1, energy.shape[-1] // HEAT_WIDTH)
        pool = (min(factor, energy.shape[-2]), factor)
        small = F.avg_pool2d(energy[None], pool)[0].mean(0).nan_to_num()
        if self.heat is None:
            self.heat = torch.zeros_like(small)
        self.heat += small
        self.heat_count += 1
        worst = self._worst
        if value is not None and (len(worst) < WORST or value > worst[0][0]):
            thumbnail = F.avg_pool2d(frame[None].nan_to_num(), pool)[0]
            near = [item for item in worst if abs(item[1] - number) < 6]  # one moment is shown once
            if near and near[0][0] >= value:
                return
            for item in near:
                worst.remove(item)
            worst.append((value, number, thumbnail, small.sqrt()))
            heapq.heapify(worst)
            if len(worst) > WORST:
                heapq.heappop(worst)

    def _note(self, curve: str, value: float | None, number: int | None = None) -> None:
        values = self.version.curves.setdefault(curve, [])
        number = self.count if number is None else number
        values.extend([None] * (number + 1 - len(values)))
        values[number] = value

    def finish(self) -> Version:
        version, curves = self.version, self.version.curves
        for name, values in curves.items():
            values.extend([None] * (self.count - len(values)))
            known = [value for value in values if value is not None]
            if name == "flicker" and self.energy[1]:
                version.numbers[name] = math.sqrt(self.energy[0].item() / self.energy[1].item())
            elif name == "temporal_difference_error" and known:
                version.numbers[name] = math.sqrt(sum(value**2 for value in known) / len(known))
            elif name != "flicker" and known:
                version.numbers[name] = sum(known) / len(known)
        version.heat = None if self.heat is None else (self.heat / self.heat_count).sqrt()
        version.rows, version.columns = self.rows.picture(), self.columns.picture()
        version.worst = [
            (number, frame, energy) for _, number, frame, energy in sorted(self._worst, key=lambda w: w[1])
        ]
        return version


class _Slice:
    """A line of pixels over time, in one piece of memory; when that is full, every other moment is dropped."""

    def __init__(self) -> None:
        self.lines: Tensor | None = None
        self.kept, self.every, self.count = 0, 1, 0

    def add(self, line: Tensor) -> None:
        if self.lines is None:
            self.lines = torch.zeros(SLICE_ROWS, *line.shape, dtype=torch.uint8)
        if self.count % self.every == 0:
            if self.kept == SLICE_ROWS:
                self.lines[: SLICE_ROWS // 2] = self.lines[::2].clone()
                self.kept, self.every = SLICE_ROWS // 2, 2 * self.every
            if self.count % self.every == 0:
                self.lines[self.kept] = line.nan_to_num().clamp(0, 1).mul(255)
                self.kept += 1
        self.count += 1

    def picture(self) -> Tensor | None:
        return None if self.lines is None else self.lines[: self.kept]


def _mean(values: Tensor) -> float:
    """The mean of what is a number."""
    mean = values.mean()
    return (mean if bool(mean.isfinite()) else values.nanmean()).item()


def _mean_where(mask: Tensor, values: Tensor) -> float | None:
    mask = mask.expand_as(values) & values.isfinite()
    return (torch.where(mask, values, 0).sum() / mask.sum()).item() if bool(mask.any()) else None
