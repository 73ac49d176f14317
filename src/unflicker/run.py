"""A video through a model: reading, inference and writing overlap, and memory does not grow with length."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions import Corruption
from unflicker.model import MOST, StabilizedModel
from unflicker.state import State
from unflicker.video.ahead import WriteBehind, read_ahead
from unflicker.video.base import Frame
from unflicker.video.reader import open_reader
from unflicker.video.writer import open_writer

# Scene cuts are looked for in the brightness of pictures about 16 pixels wide. On 21 real clips with noise of 0 to 0.6,
# 99 % of the frames score below 7, about 0.3 % are taken for a cut, and 18 to 20 of the 20 cuts between clips are
# found. A false alarm costs little; noise of 0.6 raises some in frames less than 300 pixels wide.
CUT_WIDTH, CUT_SCORE = 16, 9.0


@dataclass
class RunResult:
    """What was done: how many frames in how many seconds, where scene cuts were found, what was wrong."""

    frames: int = 0
    seconds: float = 0.0
    cuts: list[int] = field(default_factory=list)
    """Numbers of the frames that began a new shot, counted from 0."""
    resized: int = 0
    """Frames that came in another size than the first and were brought to it after the network."""
    damage: str | None = None
    """One sentence on what could not be read, if anything."""


def run_video(
    model: StabilizedModel,
    source: str | Path,
    destination: str | Path,
    *,
    strength: float = 1.0,
    scene_cuts: bool = True,
    compare: bool = False,
    overwrite: bool = False,
    frame_rate: float | None = None,
    threads: int | None = None,
    preset: str | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> RunResult:
    """Read a video (or folder of images), take it through a model as one stream, and write it.

    Sound and subtitles are copied untouched; size, times, colour and bit depth are the source's. The result appears
    under its name only when it is complete.

    Args:
        model: takes frames (1, 3, H, W) RGB and returns the same.
        source, destination: files or folders of images.
        strength: multiplies the odds of the past; 0 is the base alone.
        scene_cuts: start afresh where a new shot begins.
        compare: write the base's output on the left and the stabilized on the right.
        overwrite: replace an existing destination.
        frame_rate: of a folder of images, in frames per second.
        threads: for the decoder and for the encoder each; None leaves it to them.
        preset: the encoder's.
        on_frame: called after each frame with the number done and the number expected, if known.

    Raises:
        InputError: something cannot be read or written; no destination is left behind.
    """
    if not 0 <= strength <= MOST:
        raise InputError(f"strength must be 0 (off) or more, up to {MOST:g}, got {strength}.")
    return _process(
        partial(_infer, model, strength=strength, compare=compare),
        source,
        destination,
        columns=2 if compare else 1,
        scene_cuts=scene_cuts,
        overwrite=overwrite,
        frame_rate=frame_rate,
        threads=threads,
        preset=preset,
        on_frame=on_frame,
    )


def corrupt_video(
    corruption: Corruption,
    source: str | Path,
    destination: str | Path,
    *,
    overwrite: bool = False,
    frame_rate: float | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> RunResult:
    """Read a video (or folder of images), corrupt it frame by frame, and write it; otherwise as `run_video`.

    Raises:
        InputError: something cannot be read or written; no destination is left behind.
    """
    return _process(
        partial(_corrupt, corruption),
        source,
        destination,
        overwrite=overwrite,
        frame_rate=frame_rate,
        on_frame=on_frame,
    )


def _process(
    work: Callable[[Iterable[tuple[Frame, bool]]], Iterator[tuple[Frame, Tensor, bool]]],
    source: str | Path,
    destination: str | Path,
    *,
    columns: int = 1,
    scene_cuts: bool = False,
    overwrite: bool = False,
    frame_rate: float | None = None,
    threads: int | None = None,
    preset: str | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> RunResult:
    """Take a video through `work`, which gets each frame and whether a shot begins, and adds the picture to write."""
    if Path(destination).exists() and Path(source).exists() and Path(destination).samefile(source):
        raise InputError(f"Input and output are both {destination}; give the output another name.")
    result = RunResult()
    with open_reader(source, frame_rate=frame_rate, threads=threads) as reader:
        info = reader.info
        made = replace(info, width=info.width * columns)
        copy_from = None if info.is_folder else source
        with open_writer(
            destination, made, copy_from=copy_from, overwrite=overwrite, threads=threads, preset=preset
        ) as writer:
            start = time.perf_counter()
            ahead = read_ahead(_with_cuts(reader) if scene_cuts else ((frame, False) for frame in reader))
            with contextlib.closing(ahead) as frames, WriteBehind(writer) as behind:
                for frame, data, cut in work(frames):
                    if cut:
                        result.cuts.append(result.frames)
                    if data.shape[-2:] != (made.height, made.width):
                        data = F.interpolate(data[None], size=(made.height, made.width), mode="area")[0]
                        result.resized += 1
                    behind.put(replace(frame, data=data))
                    result.frames += 1
                    if on_frame is not None:
                        on_frame(result.frames, info.num_frames)
            result.seconds = time.perf_counter() - start
            result.damage = reader.damage
    return result


def _corrupt(corruption: Corruption, frames: Iterable[tuple[Frame, bool]]) -> Iterator[tuple[Frame, Tensor, bool]]:
    for t, (frame, cut) in enumerate(frames):
        yield frame, corruption(frame.data[None], start=t)[0], cut


def _infer(
    model: StabilizedModel, frames: Iterable[tuple[Frame, bool]], *, strength: float, compare: bool
) -> Iterator[tuple[Frame, Tensor, bool]]:
    """Yield each frame with the picture to write, (3, H, W), and whether a shot began."""
    first = next(model.base.parameters(), torch.zeros(()))
    state: State | None = None
    for frame, cut in frames:
        x = frame.data[None].to(first)
        mask = None
        if not bool(torch.isfinite(x.sum())):
            # A value that is no number would spread through the network's pooling to the whole frame.
            known = torch.isfinite(x).all(1, keepdim=True)
            x, mask = torch.where(known, x, 0), known.to(x.dtype)
        with torch.inference_mode():
            y, state = model(x, state, reset=cut, strength=strength, mask=mask)
            if not isinstance(y, Tensor) or y.shape[-3] != 3:
                raise InputError(f"The network must return frames (B, 3, H, W) to make a video, got {_kind(y)}.")
            if compare:
                y = torch.cat([model.base(x), y], -1)
        yield frame, y[0].float().cpu(), cut


def _kind(y: Any) -> str:
    return f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__


def _with_cuts(reader: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Say of each frame whether a new shot begins with it: scenedetect's content score, frame by frame.

    A frame of which most is not a number says nothing, and a change of size is a new video to the model anyway.
    """
    from scenedetect import FrameTimecode
    from scenedetect.detectors import ContentDetector

    detector, shape = None, None
    for number, frame in enumerate(reader):
        cut = False
        picture = _thumbnail(frame.data)
        if picture is not None:
            if detector is None or frame.data.shape != shape:
                # min_scene_len=0: a shot of one frame is a shot.
                detector = ContentDetector(threshold=CUT_SCORE, luma_only=True, min_scene_len=0)
                shape = frame.data.shape
            cut = bool(detector.process_frame(FrameTimecode(number, 25.0), picture))
        yield frame, cut


def _thumbnail(data: Tensor) -> np.ndarray | None:
    """Average a frame (3, H, W) down to about CUT_WIDTH columns: BGR bytes (h, w, 3), or None if most is no number.

    Of large frames every few pixels are enough.
    """
    data = data[:, :: max(1, data.shape[-2] // 180), :: max(1, data.shape[-1] // 320)]
    if torch.isfinite(data).float().mean() <= 0.5:
        return None
    height, width = data.shape[-2:]
    factor = max(1, width // CUT_WIDTH)
    small = F.avg_pool2d(data.nan_to_num()[None].clamp(0, 1), (min(factor, height), factor))[0]
    return small.mul(255).byte().flip(0).permute(1, 2, 0).contiguous().numpy()
