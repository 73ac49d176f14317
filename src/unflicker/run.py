"""A video through a model: reading, inference and writing overlap, and memory does not grow with length."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unflicker.checks import InputError
from unflicker.corruptions import Corruption
from unflicker.explain import check_explains, explain_frame, explain_path
from unflicker.functional import luma
from unflicker.model import MOST, StabilizedModel
from unflicker.outputs import main_tensor
from unflicker.rendering import Renderer, check_style, class_names, fitted, gives_distances
from unflicker.state import State
from unflicker.video.ahead import WriteBehind, read_ahead
from unflicker.video.base import UNSPECIFIED, Frame, VideoInfo
from unflicker.video.reader import open_reader
from unflicker.video.writer import check_destination, names_folder, open_writer

# Scene cuts are looked for in the luma of pictures about 16 pixels wide, brought to one mean and one contrast so that a
# light that flickers is no cut. On 21 real clips, with noise of 0 to 0.6 or tone jitter of severity 3, no frame scores
# above 12, and 19 of the 20 cuts between clips score above 16; with jitter of severity 5, 0.5 % of the frames do.
CUT_WIDTH, CUT_SCORE, CONTRAST = 16, 16.0, 0.2
LEAST_CONTRAST = 0.05  # below it, at the end of a fade, noise would be all there is to see
DROPPED = 3  # frames in a row that are exactly black, at most, are faults of the recording; more are a black scene
BRIGHT = 0.1  # a picture that has a value above this does not fade to black, or from it, but is cut

ALIKE = 0.1  # relative: proportions that differ by more are those of another picture
SAME_RATE = 0.01  # relative: rates that differ by more are no rounding, and frames would not be of one moment


class Moment(NamedTuple):
    """What comes in: a frame, what vouches for it (None: it does itself), and whether a shot begins with it."""

    frame: Frame
    guide: Tensor | None
    cut: bool


# A frame, the pictures to write for it (3, H, W) or (1, H, W), one per output, and whether a shot begins with it.
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
    unpaired: str | None = None
    """One sentence on which of original and processed video has frames that the other has not."""
    damage: str | None = None
    """One sentence on what could not be read, if anything."""
    explanation: str | None = None
    """The name of the video that explains the result, if one was asked for."""


def run_video(
    model: StabilizedModel,
    source: str | Path,
    destination: str | Path,
    *,
    processed: str | Path | None = None,
    render: str | None = None,
    value_range: tuple[float, float] | None = None,
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

    Sound and subtitles are copied untouched; size, times, colour and bit depth are the source's, unless what the
    network returns is larger or has to be rendered. The result appears under its name only when it is complete. Up to
    three frames in a row that are exactly black are dropped frames, which the past stands in for, unless `scene_cuts`
    is off.

    Args:
        model: takes frames (1, 3, H, W) RGB and returns pictures, depth, logits of places or of whole frames, alone or
            among other things.
        source, destination: files or folders of images.
        processed: a version of the source that flickers, whatever made it. The model then gets its frames, each with
            the source's at its side as guide: use `load_task("none")`. Frames are paired one by one, the first with
            the first, up to the end of the shorter video; times, sound and scene cuts are the source's, size and bit
            depth those of `processed`.
        render: how the result is shown, a key of `rendering.STYLES`; by its shape unless told.
        value_range: what is shown as black and as brightest of depth; see `rendering.Renderer` for the usual way.
        strength: multiplies the odds of the past; 0 is the base alone.
        scene_cuts: start afresh where a new shot begins.
        compare: write the base's output on the left and the stabilized on the right, rendered alike.
        explain: write a second video, in 8 bits and without sound, that shows why: see `explain_frame` for what is in
            it and `explain_path` for its name.
        overwrite: replace an existing destination, and explanation.
        frame_rate: of a folder of images, in frames per second.
        threads: for the decoder and for the encoder each; None leaves it to them.
        preset: the encoder's.
        on_frame: called after each frame with the number done and the number expected, if known.

    Raises:
        InputError: something cannot be read or written, the result cannot be rendered so, the two versions cannot be
            of one video, or the model keeps no evidence that could explain anything; no destination is left behind.

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
    check_style(render, value_range)
    if render == "index" and not names_folder(destination):
        raise InputError(
            f"A video file would not keep the numbers of classes exactly; name a folder for them, as "
            f"{Path(destination).stem}/, not {destination}."
        )

    renderer = Renderer(
        render, value_range=value_range, names=class_names(model.base), distances=gives_distances(model.base)
    )
    return _process(
        partial(_infer, model, renderer, strength=strength, compare=compare, explain=explain),
        source,
        destination,
        describe=partial(_described, renderer, compare),
        processed=processed,
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


def _described(renderer: Renderer, compare: bool, info: VideoInfo) -> VideoInfo:
    info = renderer.described(info)
    return replace(info, width=2 * info.width) if compare else info


def _process(
    work: Callable[[Iterable[Moment]], Generator[Made, None, None]],
    source: str | Path,
    destination: str | Path,
    *,
    describe: Callable[[VideoInfo], VideoInfo] = lambda info: info,
    processed: str | Path | None = None,
    explain: bool = False,
    scene_cuts: bool = False,
    overwrite: bool = False,
    frame_rate: float | None = None,
    threads: int | None = None,
    preset: str | None = None,
    on_frame: Callable[[int, int | None], None] | None = None,
) -> RunResult:
    """Take a video through `work`, which makes the pictures to write; `describe` says what the first are like."""
    result = RunResult(explanation=explain_path(destination) if explain else None)
    inputs = [Path(each) for each in (source, processed) if each is not None]
    for output in (destination, *([result.explanation] if result.explanation else [])):
        for each in inputs:
            if Path(output).exists() and each.exists() and Path(output).samefile(each):
                raise InputError(f"Input and output are both {output}; give the output another name.")
        check_destination(output, overwrite=overwrite)
    with contextlib.ExitStack() as cleaning:
        reader = cleaning.enter_context(open_reader(source, frame_rate=frame_rate, threads=threads))
        info, readers = reader.info, [reader]
        shots = _with_cuts if scene_cuts else _without_cuts
        moments: Iterator[Moment] = (Moment(frame, None, cut) for frame, cut in shots(reader))
        if processed is not None:
            readers.append(cleaning.enter_context(open_reader(processed, threads=threads)))
            info = _alike(source, info, processed, readers[1].info)
            moments = _paired(shots(reader), shots(readers[1]), result, (str(source), str(processed)))
        start = time.perf_counter()
        ahead = cleaning.enter_context(contextlib.closing(read_ahead(moments)))
        made = cleaning.enter_context(contextlib.closing(work(ahead)))
        first = next(made)  # a reader has one frame at least; what comes of it tells what is to be written
        about = describe(info)
        open_one = partial(open_writer, overwrite=overwrite, threads=threads, preset=preset)
        writers = [open_one(destination, about, copy_from=None if reader.info.is_folder else source)]
        cleaning.callback(writers[0].discard)  # does nothing once it is closed
        if result.explanation:
            writers.append(open_one(result.explanation, _explained(info, first[1][1])))
            cleaning.callback(writers[1].discard)
        with contextlib.ExitStack() as threads_behind:
            behind = [threads_behind.enter_context(WriteBehind(writer)) for writer in writers]
            for frame, pictures, cut in itertools.chain([first], made):
                if cut:
                    result.cuts.append(result.frames)
                if frame.data.shape[-2:] != (info.height, info.width):
                    result.resized += 1
                for one, writer, picture in zip(behind, writers, pictures, strict=True):
                    size = (writer.info.height, writer.info.width)
                    one.put(replace(frame, data=fitted(picture[None], size)[0]))
                result.frames += 1
                if on_frame is not None:
                    on_frame(result.frames, info.num_frames)
        result.seconds = time.perf_counter() - start
        for writer in writers:
            writer.close()
        result.damage = " ".join(each.damage for each in readers if each.damage) or None
    return result


def _alike(source: str | Path, original: VideoInfo, processed: str | Path, other: VideoInfo) -> VideoInfo:
    """What a processed video is to be written as, with the times of the original; refuse what cannot be its version."""
    shapes = [each.width * each.pixel_aspect / each.height for each in (original, other)]
    same = (original.width, original.height) == (other.width, other.height)
    if not same and abs(shapes[1] / shapes[0] - 1) > ALIKE:
        raise InputError(
            f"{processed} is {other.width}x{other.height} and {source} {original.width}x{original.height}: one cannot "
            "be a version of the other, for their proportions differ; bring one to what the other shows."
        )
    in_files = not original.is_folder and not other.is_folder
    if in_files and abs(other.frame_rate / original.frame_rate - 1) > SAME_RATE:
        raise InputError(
            f"{processed} has {float(other.frame_rate):.4g} frames per second and {source} "
            f"{float(original.frame_rate):.4g}, but they are paired one by one: bring one to the other's rate."
        )
    counts = [each.num_frames for each in (original, other) if each.num_frames is not None]
    times = replace(other, frame_rate=original.frame_rate, time_base=original.time_base)
    return replace(times, num_frames=min(counts, default=None), is_folder=original.is_folder)


def _paired(
    original: Iterator[tuple[Frame, bool]],
    processed: Iterator[tuple[Frame, bool]],
    result: RunResult,
    names: tuple[str, str],
) -> Iterator[Moment]:
    """Put each frame of the original beside the processed one, at its size, up to the end of the shorter video."""
    count = 0
    for frame, cut in original:
        other, _ = next(processed, (None, False))
        if other is None:
            result.unpaired = f"{names[1]} ends after {count} frames; what {names[0]} has after that is left out."
            return
        size = (other.data.shape[-2], other.data.shape[-1])
        yield Moment(replace(frame, data=other.data), fitted(frame.data[None], size)[0], cut)
        count += 1
    if next(processed, None) is not None:
        result.unpaired = f"{names[0]} ends after {count} frames; what {names[1]} has after that is left out."


def _explained(info: VideoInfo, explanation: Tensor) -> VideoInfo:
    """What an explanation is written as: 8 bits, and colours that mean what they say whatever the source's are."""
    height, width = explanation.shape[-2:]
    return replace(info, width=width, height=height, bit_depth=8, transfer=UNSPECIFIED, pixel_aspect=Fraction(1))


def _corrupt(corruption: Corruption, moments: Iterable[Moment]) -> Generator[Made, None, None]:
    for t, (frame, _, cut) in enumerate(moments):
        yield frame, (corruption(frame.data[None], start=t)[0],), cut


def _infer(
    model: StabilizedModel,
    renderer: Renderer,
    moments: Iterable[Moment],
    *,
    strength: float,
    compare: bool,
    explain: bool,
) -> Generator[Made, None, None]:
    """Yield each frame with the picture to write, then the explanation if asked for, and whether a shot began."""
    first = next(model.base.parameters(), torch.zeros(()))
    state: State | None = None
    passing: list[Any] = []  # the network's own output, which passes by where no layer inside it is stabilized
    outside = all(key.partition("::")[0] == "output" for key in model.places)
    hook = model.base.register_forward_hook(lambda module, x, y: passing.append(y)) if outside else None
    try:
        for frame, beside, cut in moments:
            x = frame.data[None].to(first)
            guide = None if beside is None else beside[None].to(first)
            mask = None
            if not all(bool(torch.isfinite(each.sum())) for each in (x, guide) if each is not None):
                # A value that is no number would spread through the network's pooling to the whole frame.
                known = torch.isfinite(x if guide is None else x + guide).all(1, keepdim=True)
                x, mask = torch.where(known, x, 0), known.to(x.dtype)
                guide = None if guide is None else torch.where(known, guide, 0)
            passing.clear()
            with torch.inference_mode():
                y, state = model(x, state, reset=cut, strength=strength, guide=guide, mask=mask)
                y = main_tensor(y, x)
                renderer.follow(y, x, seconds=frame.pts_seconds, cut=cut)
                shown = renderer(y, x)
                alone = main_tensor(passing[0] if passing else model.base(x), x) if compare or explain else y
                if compare:
                    shown = torch.cat([renderer(alone, x), shown], -1)
                pictures = [shown[0].cpu()]
                if explain:
                    pictures.append(explain_frame(renderer.display(y, x), renderer.display(alone, x), state))
            yield frame, tuple(pictures), cut
    finally:
        if hook is not None:
            hook.remove()


def _without_cuts(reader: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    return ((frame, False) for frame in reader)


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
