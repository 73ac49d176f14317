"""A video through a model: reading, inference and writing overlap, and memory does not grow with length."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions import Corruption
from unflicker.explain import check_explains, explain_frame, explain_path, explain_size
from unflicker.functional import luma
from unflicker.layers import pick
from unflicker.model import MOST, StabilizedModel
from unflicker.outputs import main_entry
from unflicker.state import State
from unflicker.video.ahead import WriteBehind, read_ahead
from unflicker.video.base import UNSPECIFIED, Frame, VideoInfo
from unflicker.video.reader import open_reader
from unflicker.video.writer import open_writer

# Scene cuts are looked for in the luma of pictures about 16 pixels wide, brought to one mean and one contrast so that a
# light that flickers is no cut. On 21 real clips, with noise of 0 to 0.6 or tone jitter of severity 3, no frame scores
# above 12, and 19 of the 20 cuts between clips score above 16; with jitter of severity 5, 0.5 % of the frames do.
CUT_WIDTH, CUT_SCORE, CONTRAST = 16, 16.0, 0.2
LEAST_CONTRAST = 0.05  # below it, at the end of a fade, noise would be all there is to see
DROPPED = 3  # frames in a row that are exactly black, at most, are faults of the recording; more are a black scene
BRIGHT = 0.1  # a picture that has a value above this does not fade to black, or from it, but is cut

# A frame, the pictures to write for it (3, H, W), one per output, and whether a shot begins with it.
Made = tuple[Frame, tuple[Tensor, ...], bool]


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
    explanation: str | None = None
    """The name of the video that explains the result, if one was asked for."""


def run_video(
    model: StabilizedModel,
    source: str | Path,
    destination: str | Path,
    *,
    strength: float = 1.0,
    scene_cuts: bool = True,
    compare: bool = False,
    explain: bool = False,
    overwrite: bool = False,
    frame_rate: float | None = None,
    threads: int | None = None,
    preset: str | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> RunResult:
    """Read a video (or folder of images), take it through a model as one stream, and write it.

    Sound and subtitles are copied untouched; size, times, colour and bit depth are the source's. The result appears
    under its name only when it is complete. Up to three frames in a row that are exactly black are dropped frames,
    which the past stands in for, unless `scene_cuts` is off.

    Args:
        model: takes frames (1, 3, H, W) RGB and returns the same.
        source, destination: files or folders of images.
        strength: multiplies the odds of the past; 0 is the base alone.
        scene_cuts: start afresh where a new shot begins.
        compare: write the base's output on the left and the stabilized on the right.
        explain: write a second video, in 8 bits and without sound, that shows why: see `explain_frame` for what is in
            it and `explain_path` for its name.
        overwrite: replace an existing destination, and explanation.
        frame_rate: of a folder of images, in frames per second.
        threads: for the decoder and for the encoder each; None leaves it to them.
        preset: the encoder's.
        on_frame: called after each frame with the number done and the number expected, if known.

    Raises:
        InputError: something cannot be read or written, or the model keeps no evidence that could explain anything;
            no destination is left behind.

    >>> import tempfile
    >>> model = StabilizedModel(torch.nn.Identity(), {}, (), (3, 8, 8))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with open_writer(f"{folder}/in.mp4", VideoInfo(32, 24, Fraction(24), Fraction(1, 24))) as writer:
    ...         writer.write(Frame(torch.zeros(3, 24, 32), 0, Fraction(1, 24)))
    ...     run_video(model, f"{folder}/in.mp4", f"{folder}/out.mp4").frames
    1
    """
    if not 0 <= strength <= MOST:
        raise InputError(f"strength must be 0 (off) or more, up to {MOST:g}, got {strength}.")
    if explain:
        check_explains(model)
    return _process(
        partial(_infer, model, strength=strength, compare=compare, explain=explain),
        source,
        destination,
        columns=2 if compare else 1,
        explain=explain,
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
    work: Callable[[Iterable[tuple[Frame, bool]]], Iterator[Made]],
    source: str | Path,
    destination: str | Path,
    *,
    columns: int = 1,
    explain: bool = False,
    scene_cuts: bool = False,
    overwrite: bool = False,
    frame_rate: float | None = None,
    threads: int | None = None,
    preset: str | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> RunResult:
    """Take a video through `work`, which gets each frame and whether a shot begins, and adds the pictures to write."""
    result = RunResult(explanation=explain_path(destination) if explain else None)
    for output in (destination, *([result.explanation] if result.explanation else [])):
        if Path(output).exists() and Path(source).exists() and Path(output).samefile(source):
            raise InputError(f"Input and output are both {output}; give the output another name.")
    with open_reader(source, frame_rate=frame_rate, threads=threads) as reader, contextlib.ExitStack() as cleaning:
        info = reader.info
        open_one = partial(open_writer, overwrite=overwrite, threads=threads, preset=preset)
        made = replace(info, width=info.width * columns)
        writers = [open_one(destination, made, copy_from=None if info.is_folder else source)]
        cleaning.callback(writers[0].discard)  # does nothing once it is closed
        if result.explanation:
            writers.append(open_one(result.explanation, _explained(info)))
            cleaning.callback(writers[1].discard)
        start = time.perf_counter()
        ahead = read_ahead(_with_cuts(reader) if scene_cuts else ((frame, False) for frame in reader))
        with contextlib.closing(ahead) as frames, contextlib.ExitStack() as threads_behind:
            behind = [threads_behind.enter_context(WriteBehind(writer)) for writer in writers]
            for frame, pictures, cut in work(frames):
                if cut:
                    result.cuts.append(result.frames)
                if pictures[0].shape[-2:] != (made.height, made.width):
                    result.resized += 1
                for one, writer, picture in zip(behind, writers, pictures, strict=True):
                    one.put(replace(frame, data=_fit(picture, writer.info)))
                result.frames += 1
                if on_frame is not None:
                    on_frame(result.frames, info.num_frames)
        result.seconds = time.perf_counter() - start
        for writer in writers:
            writer.close()
        result.damage = reader.damage
    return result


def _explained(info: VideoInfo) -> VideoInfo:
    """What an explanation is written as: 8 bits, and colours that mean what they say whatever the source's are."""
    height, width = explain_size(info.height, info.width)
    return replace(info, width=width, height=height, bit_depth=8, transfer=UNSPECIFIED, pixel_aspect=Fraction(1))


def _fit(picture: Tensor, info: VideoInfo) -> Tensor:
    size = (info.height, info.width)
    return picture if picture.shape[-2:] == size else F.interpolate(picture[None], size=size, mode="area")[0]


def _corrupt(corruption: Corruption, frames: Iterable[tuple[Frame, bool]]) -> Iterator[Made]:
    for t, (frame, cut) in enumerate(frames):
        yield frame, (corruption(frame.data[None], start=t)[0],), cut


def _infer(
    model: StabilizedModel, frames: Iterable[tuple[Frame, bool]], *, strength: float, compare: bool, explain: bool
) -> Iterator[Made]:
    """Yield each frame with the picture to write, then the explanation if asked for, and whether a shot began."""
    first = next(model.base.parameters(), torch.zeros(()))
    state: State | None = None
    passing: list[Any] = []  # the network's own output, which passes by where no layer inside it is stabilized
    outside = set(model.places) == {"output"}
    hook = model.base.register_forward_hook(lambda module, x, y: passing.append(y)) if outside else None
    try:
        for frame, cut in frames:
            x = frame.data[None].to(first)
            mask = None
            if not bool(torch.isfinite(x.sum())):
                # A value that is no number would spread through the network's pooling to the whole frame.
                known = torch.isfinite(x).all(1, keepdim=True)
                x, mask = torch.where(known, x, 0), known.to(x.dtype)
            passing.clear()
            with torch.inference_mode():
                y, state = model(x, state, reset=cut, strength=strength, mask=mask)
                y = _picture(y, x)
                alone = y
                if compare or explain:
                    alone = _picture(passing[0] if passing else model.base(x), x)
                shown = torch.cat([alone, y], -1) if compare else y
                pictures = [shown[0].float().cpu()]
                if explain:
                    pictures.append(explain_frame(y, alone, state))
            yield frame, tuple(pictures), cut
    finally:
        if hook is not None:
            hook.remove()


def _picture(output: Any, x: Tensor) -> Tensor:
    """The frames in what a network returned, (B, 3, H, W)."""
    y = pick(output, main_entry(output, x).removeprefix("::"), "The network's output")
    if y.ndim != 4 or y.shape[1] != 3:
        raise InputError(f"The network must return frames (B, 3, H, W) to make a video, got shape {tuple(y.shape)}.")
    return y


def _with_cuts(reader: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Say of each frame whether a new shot begins with it: scenedetect's content score, frame by frame.

    Dropped frames say nothing: exactly black ones, few in a row, between others. They come out as NaN, for nothing of
    them is known, and the next frame is compared with the one before them.
    """
    detect = _Detector()
    last: Frame | None = None  # the last that was not black
    black_scene = True  # as is what a video may begin with
    held: list[Frame] = []
    for frame in reader:
        if _is_black(frame):
            held.append(frame)
            if black_scene or len(held) > DROPPED:
                yield from _black_scene(held, None if black_scene else last, detect)
                held, black_scene = [], True
            continue
        for each in held:
            yield replace(each, data=torch.full_like(each.data, torch.nan)), False
        cut = detect(frame)
        yield frame, cut or (black_scene and detect.count > 1 and _is_bright(frame))
        last, held, black_scene = frame, [], False
    yield from _black_scene(held, last, detect)


def _black_scene(
    frames: list[Frame], last: Frame | None, detect: Callable[[Frame], bool]
) -> Iterator[tuple[Frame, bool]]:
    """Black frames as they are; the first is a cut unless what was last seen had faded."""
    for i, frame in enumerate(frames):
        cut = detect(frame)
        yield frame, cut or (i == 0 and last is not None and _is_bright(last))


def _is_black(frame: Frame) -> bool:
    return not bool(frame.data[..., ::8, ::8].any()) and not bool(frame.data.any())  # most are found out by a few


def _is_bright(frame: Frame) -> bool:
    return bool((frame.data > BRIGHT).any())


class _Detector:
    """Says of frame after frame whether it is a cut against the one before.

    A frame of which most is not a number says nothing, and a change of size is a new video to the model anyway.
    """

    def __init__(self) -> None:
        self.count = 0
        self._detector: Any = None
        self._shape: tuple[int, ...] = ()

    def __call__(self, frame: Frame) -> bool:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        self.count += 1
        picture = _thumbnail(frame.data)
        if picture is None:
            return False
        if frame.data.shape != self._shape:
            # min_scene_len=0: a shot of one frame is a shot.
            self._detector = ContentDetector(threshold=CUT_SCORE, luma_only=True, min_scene_len=0)
            self._shape = frame.data.shape
        return bool(self._detector.process_frame(FrameTimecode(self.count, 25.0), picture))


def _thumbnail(data: Tensor) -> np.ndarray | None:
    """Average a frame (3, H, W) down to about CUT_WIDTH columns: grey bytes (h, w, 3), or None if most is no number.

    Of large frames every few pixels are enough.
    """
    data = data[:, :: max(1, data.shape[-2] // 180), :: max(1, data.shape[-1] // 320)]
    if torch.isfinite(data).float().mean() <= 0.5:
        return None
    height, width = data.shape[-2:]
    factor = max(1, width // CUT_WIDTH)
    small = F.avg_pool2d(luma(data.nan_to_num()[None].clamp(0, 1)), (min(factor, height), factor))[0, 0]
    small = (small - small.mean()) / small.std(correction=0).clamp_min(LEAST_CONTRAST) * CONTRAST + 0.5
    return small.clamp(0, 1).mul(255).byte().unsqueeze(-1).expand(-1, -1, 3).contiguous().numpy()
