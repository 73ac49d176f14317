"""Clips for training: from a folder of videos, cut at random in space and time, corrupted on the fly."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from unflicker.checks import InputError, nearest
from unflicker.corruptions import parse
from unflicker.data.base import Recording, Video, extent

CLEAN = ("clean", "base")  # targets that are the frames themselves
AHEAD = 2  # batches that each worker holds ready


def read_frames(
    recording: Recording, numbers: Sequence[int], *, target: str = "clean", size: tuple[int, int] | None = None
) -> tuple[Tensor, Tensor]:
    """Return frames (T, C, H, W), float32 in [0, 1] (values outside are clipped), and their target, uncut.

    Args:
        recording: where they come from.
        numbers: of the frames.
        target: as `ClipDataset` takes it; for "clean" and "base" it is the frames.
        size: (height, width) to scale down to, as `ClipDataset` does; None keeps theirs.

    Raises:
        InputError: a frame cannot be read, the recording has no such target, or the target is motion and is scaled.
    """
    if size is not None:
        _check_scalable(target, size == (recording.frames.height, recording.frames.width))
    clean = _floats(_resized(recording.frames.read(numbers), size, average=True)).clamp(0, 1)
    if target in CLEAN:
        return clean, clean
    _check_target(recording, target)
    return clean, _floats(_resized(recording.targets[target].read(numbers), size, average=target == "truth"))


@dataclass(frozen=True)
class _Source:
    """A recording at one scale and thinning, with the number of places in it where a clip can start."""

    recording: int
    scale: float
    every: int
    starts: int


class ClipDataset(Dataset[dict[str, Tensor]]):
    """Random clips: `dataset[i]`, for any i from 0 on, depends on the settings, the seed and i alone.

    Every start in every video, at every scale and thinning given, is equally likely. A clip keeps its crop, scale and
    turn through all of its frames. What comes out is a dict: "input" (T, C, h, w), float32 in [0, 1] (values outside
    are clipped), corrupted; and "target", the same frames of what is to come out, not corrupted.

    A recording that turns out to be damaged where a clip was drawn is told of in one warning, and listed in `damaged`;
    the clip is drawn again from the others.

    Args:
        recordings: what to cut from.
        length: frames of a clip.
        crop: height and width, a number if they are equal; None takes whole frames.
        scales: of the frames' size, above 0 up to 1; they are averaged down. Targets other than "truth" take the
            nearest pixel, for a mean of two labels, or of two depths, is neither.
        every: keep one frame in so many (10 makes 24 frames a second of 240), or several such numbers to draw from.
        reverse: run half of the clips backwards.
        flip: flip clips along both axes, and exchange the axes of square crops.
        corruptions: as `unflicker.corruptions.parse` takes them, applied in this order, drawn anew for every clip.
        target: "clean" for the frames before they are corrupted; "base" for the same, of which the trainer makes the
            base model's outputs; or a key of the recordings' targets, such as "truth".
        seed: 0 or more.

    Attributes:
        skipped: one sentence for each recording that is too short or too small, and never drawn.
        damaged: name -> one sentence for each recording found damaged up to now, while it was read.

    Raises:
        InputError: a setting outside its range, no recording long and large enough, a recording without the target or
            with one of another length or size, or motion as target with settings that change it.

    Example::

        dataset = ClipDataset(open_folder("clips/")[0], length=8, crop=256, corruptions=["gaussian_noise:2"])
        dataset[0]["input"]  # (8, 3, 256, 256)
    """

    def __init__(
        self,
        recordings: Sequence[Recording],
        *,
        length: int,
        crop: int | tuple[int, int] | None,
        scales: Sequence[float] = (1.0,),
        every: int | Sequence[int] = 1,
        reverse: bool = True,
        flip: bool = True,
        corruptions: Sequence[str] = (),
        target: str = "clean",
        seed: int = 0,
    ) -> None:
        self.recordings = list(recordings)
        self.length, self.scales, self.reverse, self.flip, self.seed = length, tuple(scales), reverse, flip, seed
        self.crop = (crop, crop) if isinstance(crop, int) else crop
        self.every = (every,) if isinstance(every, int) else tuple(every)
        self.corruptions, self.target = tuple(corruptions), target
        self._check_settings()
        for text in self.corruptions:
            parse(text)  # a wrong name is told of now
        self._lengths = [self._length(recording) for recording in self.recordings]
        self._sources = [
            _Source(i, scale, step, self._lengths[i] - (length - 1) * step)
            for i, recording in enumerate(self.recordings)
            for scale in self.scales
            for step in self.every
            if self._lengths[i] > (length - 1) * step and self._fits(recording.frames, scale)
        ]
        usable = {source.recording for source in self._sources}
        self.skipped = [self._why_skipped(i) for i in range(len(self.recordings)) if i not in usable]
        self.damaged: dict[str, str] = {}
        self._check_sources()

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clip, damaged = self.draw(index)
        self.tell(damaged)
        return clip

    def draw(self, index: int) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return clip `index`, and name -> sentence for the recordings that could not be read on the way to it.

        Raises:
            InputError: none of the recordings can be read where the clip was drawn.
        """
        if index < 0:
            raise IndexError(f"Clips are numbered from 0, got {index}.")
        lost: dict[int, str] = {}
        while True:
            rng = np.random.default_rng((self.seed, index, len(lost)))
            source, start = self._place(rng, lost)
            recording = self.recordings[source.recording]
            numbers = range(start, start + (self.length - 1) * source.every + 1, source.every)
            try:
                frames = recording.frames.read(numbers)
                truth = recording.targets[self.target].read(numbers) if self._has_target else None
            except InputError as error:
                lost[source.recording] = str(error)
                continue
            clip = self._cut(frames, truth, source.scale, rng)
            return clip, {self.recordings[i].name: sentence for i, sentence in lost.items()}

    def tell(self, damaged: dict[str, str]) -> None:
        """Warn of recordings (name -> sentence) that nobody was warned of before."""
        for name, sentence in damaged.items():
            if name not in self.damaged:
                self.damaged[name] = sentence
                warnings.warn(f"Other clips are drawn where {name} is damaged: {sentence}", stacklevel=3)

    @property
    def _has_target(self) -> bool:
        return self.target not in CLEAN

    def _place(self, rng: np.random.Generator, lost: dict[int, str]) -> tuple[_Source, int]:
        sources = [source for source in self._sources if source.recording not in lost]
        if not sources:
            reason = next(iter(lost.values()))
            raise InputError(f"None of the {len(lost)} recordings can be read; the first of them: {reason}")
        ends = np.cumsum([source.starts for source in sources])
        number = int(rng.integers(ends[-1]))
        chosen = int(np.searchsorted(ends, number, "right"))
        return sources[chosen], int(ends[chosen]) - 1 - number

    def _cut(self, frames: Tensor, target: Tensor | None, scale: float, rng: np.random.Generator) -> dict[str, Tensor]:
        size = _scaled(frames.shape[-2], frames.shape[-1], scale)
        height, width = self.crop or size
        top, left = int(rng.integers(size[0] - height + 1)), int(rng.integers(size[1] - width + 1))
        # All are drawn, whatever is used, so that one setting changes nothing else.
        backwards, upside_down, mirrored, turned = rng.integers(2, size=4).astype(bool).tolist()
        flips = [d for d, yes in ((0, self.reverse and backwards), (-2, self.flip and upside_down)) if yes]
        flips += [-1] if self.flip and mirrored else []
        turned = turned and self.flip and self.crop is not None and height == width
        seeds = rng.integers(2**31, size=len(self.corruptions))

        def cut(clip: Tensor, average: bool) -> Tensor:
            clip = _resized(clip, size, average)[..., top : top + height, left : left + width].flip(flips)
            return _floats((clip.transpose(-1, -2) if turned else clip).contiguous())

        clean = cut(frames, True).clamp(0, 1)
        corrupted = clean
        for text, seed in zip(self.corruptions, seeds.tolist(), strict=True):
            corrupted = parse(text, seed=seed)(corrupted)
        if target is None:
            return {"input": corrupted, "target": clean}
        wanted = cut(target, self.target == "truth")
        return {"input": corrupted, "target": _turned_motion(wanted, flips, turned) if self._is_flow else wanted}

    @property
    def _is_flow(self) -> bool:
        return self.target == "flow"

    def _fits(self, video: Video, scale: float) -> bool:
        height, width = _scaled(video.height, video.width, scale)
        return self.crop is None or (height >= self.crop[0] and width >= self.crop[1])

    def _length(self, recording: Recording) -> int:
        """How many frames can be used; a recording without its target is refused."""
        frames = recording.frames
        if not self._has_target:
            return frames.num_frames
        _check_target(recording, self.target)
        target = recording.targets[self.target]
        lengths = {frames.num_frames, frames.num_frames - self._is_flow}  # there is no motion behind the last frame
        if target.num_frames not in lengths or (target.height, target.width) != (frames.height, frames.width):
            raise InputError(
                f"The target {self.target!r} of {recording.name} has {extent(target)}, but the frames are "
                f"{extent(frames)}; they must be alike."
            )
        return target.num_frames

    def _check_settings(self) -> None:
        if self.length < 1:
            raise InputError(f"length must be 1 frame or more, got {self.length}.")
        if self.crop is not None and (len(self.crop) != 2 or min(self.crop) < 1):
            raise InputError(
                f"crop must be a size in pixels, (height, width), or None for whole frames, got {self.crop}."
            )
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise InputError(f"scales must be one or more numbers above 0, up to 1, got {self.scales}.")
        if not self.every or min(self.every) < 1:
            raise InputError(f"every must be 1 or more, to keep one frame in so many, got {self.every}.")
        if self.seed < 0:
            raise InputError(f"seed must be an integer, 0 or more, got {self.seed}.")
        _check_scalable(self.target, self.scales == (1.0,))
        if self.target == "flow" and (self.every != (1,) or self.reverse):
            raise InputError("The target 'flow' leads from each frame to the next; give every=1 and reverse=False.")

    def _check_sources(self) -> None:
        if not self.recordings:
            raise InputError("ClipDataset needs one recording or more, got none.")
        for scale in self.scales:
            if not any(self._fits(each.frames, scale) for each in self.recordings):
                raise InputError(f"At scale {scale:g} no recording is large enough: {self._best()}")
        for step in self.every:
            if max(self._lengths) <= (self.length - 1) * step:
                raise InputError(f"With every={step} no recording is long enough: {self._best()}")
        if not self._sources:
            raise InputError(f"No recording is both long and large enough: {self._best()}")

    def _best(self) -> str:
        """What is needed, the best there is, and what to do."""
        largest = max((each.frames for each in self.recordings), key=lambda video: min(video.height, video.width))
        size = "whole frames" if self.crop is None else f"{self.crop[0]}x{self.crop[1]} pixels"
        return (
            f"clips are {self.length} frames of {size}, the longest recording has {max(self._lengths)} frames, the "
            f"largest {largest.height}x{largest.width} pixels; lower length, every or crop, or raise scales."
        )

    def _why_skipped(self, i: int) -> str:
        video, needed = self.recordings[i].frames, (self.length - 1) * min(self.every) + 1
        if self._lengths[i] < needed:
            return f"{video.name} is too short: it has {self._lengths[i]} frames, a clip takes {needed}."
        height, width = _scaled(video.height, video.width, max(self.scales))
        return f"{video.name} is too small: it has {height}x{width} pixels at its largest scale, a crop {self.crop}."


def _check_target(recording: Recording, target: str) -> None:
    if target not in recording.targets:
        raise InputError(
            f"The recording {recording.name} has no target {target!r}; {nearest(target, [*CLEAN, *recording.targets])}"
        )


def _check_scalable(target: str, is_whole: bool) -> None:
    if target in ("flow", "disparity") and not is_whole:
        raise InputError(f"The target {target!r} is in pixels, which scaling changes; keep the frames' own size.")


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, round(height * scale)), max(1, round(width * scale))


def _resized(clip: Tensor, size: tuple[int, int] | None, average: bool) -> Tensor:
    """Scale frames (T, C, H, W), or labels (T, H, W), down: to the mean of the pixels, or to one of them.

    Classes of whole frames (T,) have no size.
    """
    if size is None or clip.ndim == 1 or size == tuple(clip.shape[-2:]):
        return clip
    if not average:
        rows, columns = (
            ((torch.arange(new) + 0.5) * (old / new)).long() for new, old in zip(size, clip.shape[-2:], strict=True)
        )
        return clip[..., rows[:, None], columns]
    # One float frame at a time: the frames may be large.
    return torch.cat([F.interpolate(_floats(frame[None]), size=size, mode="area") for frame in clip])


def _floats(clip: Tensor) -> Tensor:
    """Bytes as floats in [0, 1]; all else as it is."""
    return clip.float().div_(255) if clip.dtype == torch.uint8 else clip


def _turned_motion(flow: Tensor, flips: Sequence[int], turned: bool) -> Tensor:
    """Point motion (T, 2, H, W), along x and along y, to where its clip was flipped."""
    signs = torch.tensor([-1.0 if -1 in flips else 1.0, -1.0 if -2 in flips else 1.0])
    flow = flow * signs[:, None, None]
    return flow.flip(1) if turned else flow


@dataclass
class _Loaded:
    """A batch on its way from a worker; an error comes as a sentence, for as an error it comes with a stack trace."""

    clips: dict[str, Tensor] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    error: str = ""


@dataclass
class _Batches(Dataset[_Loaded]):
    """Batch b of a dataset, or a rank's share of it."""

    dataset: ClipDataset
    batch: int
    rank: int
    ranks: int

    def __getitem__(self, b: int) -> _Loaded:
        share = self.batch // self.ranks
        first = b * self.batch + self.rank * share
        try:
            drawn = [self.dataset.draw(i) for i in range(first, first + share)]
        except InputError as error:
            return _Loaded(error=str(error))
        damaged = {name: sentence for _, each in drawn for name, sentence in each.items()}
        clips = [clip for clip, _ in drawn]
        loaded = {"input": torch.stack([clip["input"] for clip in clips])}
        # One tensor where they are the same, so that it is sent once.
        same = all(clip["target"] is clip["input"] for clip in clips)
        loaded["target"] = loaded["input"] if same else torch.stack([clip["target"] for clip in clips])
        return _Loaded(loaded, damaged)


def load(
    dataset: ClipDataset,
    *,
    batch: int,
    steps: int,
    start: int = 0,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, Tensor]]:
    """Yield the batches of steps `start` to `steps` - 1: dicts of (batch, T, C, h, w), the clips of `ClipDataset`.

    Batch b holds the clips b * batch to (b + 1) * batch - 1, whatever `workers` and `start`: a run that stopped goes on
    with the same numbers.

    Args:
        dataset: where the clips come from.
        batch: clips in a batch, of all ranks together.
        steps: the number of the last batch, counted from 1.
        start: how many batches to leave out, which costs nothing.
        workers: processes that decode ahead; 0 decodes when a batch is asked for. They end with the iterator.
        shard: (rank, of): the share of this rank of each batch, which `of` must divide.

    Raises:
        InputError: a number outside its range; whole frames of several sizes in one batch; nothing can be read.

    Example::

        for clips in load(dataset, batch=4, steps=1000, workers=2):
            preds, _ = model(clips["input"])
    """
    rank, ranks = shard
    if batch < 1 or steps < 0 or start < 0 or workers < 0:
        raise InputError(
            f"load takes a batch of 1 or more, and steps, start and workers of 0 or more, got batch={batch}, "
            f"steps={steps}, start={start}, workers={workers}."
        )
    if not 0 <= rank < ranks or batch % ranks:
        raise InputError(
            f"shard is (rank, of) with rank from 0 to of - 1 and of a divisor of the batch of {batch}, got {shard}."
        )
    if dataset.crop is None and batch > ranks:
        _check_one_size(dataset)
    return _load(dataset, _Batches(dataset, batch, rank, ranks), range(start, steps), workers)


def _load(dataset: ClipDataset, batches: _Batches, numbers: range, workers: int) -> Iterator[dict[str, Tensor]]:
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_one_thread,
        prefetch_factor=AHEAD if workers else None,
        generator=torch.Generator(),  # the global one would be drawn from
    )
    for loaded in loader:
        dataset.tell(loaded.damaged)
        if loaded.error:
            raise InputError(loaded.error)
        yield loaded.clips


def _as_it_is(loaded: Any) -> Any:
    return loaded


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)


def _check_one_size(dataset: ClipDataset) -> None:
    sizes = {_scaled(r.frames.height, r.frames.width, scale) for r in dataset.recordings for scale in dataset.scales}
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:4])
        raise InputError(f"Whole frames of several sizes ({shown}) do not fit in one batch; give a crop, or batch=1.")
